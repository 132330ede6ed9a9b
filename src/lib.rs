#![doc = include_str!("../README.md")]
//!
//! # Where to find what
//!
//! Everything an app uses is here at the root:
//!
//! - start: [`PresenceConfig`] starts the actors and gives a [`PresenceHandle`]
//! - sessions: [`Connection`] for actors of an app's own; [`WsSession`] and [`PhoenixSession`] ready-made
//! - messages to the [`RoomRegistry`]: [`Join`], [`Leave`], [`Touch`], [`Publish`], [`Kick`],
//!   [`Subscribe`], queries such as [`GetSnapshot`] and [`ListRooms`]
//! - values: [`RoomName`], [`UserId`], [`ConnectionId`], [`Presence`], [`Snapshot`], [`Diff`]
//!
//! [`store`] and [`bus`] are what several nodes are made of, [`sockets`] is for who runs an
//! `HttpServer`.
//!
//! # Features
//!
//! - `sqlite` (default): databases in a file or in memory; SQLite is compiled in
//! - `postgres`: databases that several nodes share; needs the system's libpq
//! - `redis`: several nodes, over Redis (implies `postgres`)
//! - `testing`: the module `testing`, with a manual clock, probe actors, and the contracts of stores
//!   and buses as tests
#![deny(missing_docs)]

#[cfg(not(any(feature = "sqlite", feature = "postgres")))]
compile_error!("actix-presence needs a database: enable the feature `sqlite` or `postgres`");

pub mod bus;
mod clock;
mod cluster;
mod counters;
mod delivery;
mod handle;
pub mod log_limit;
mod messages;
mod mirror;
mod model;
mod registry;
mod session;
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;
pub mod sockets;
pub mod store;
mod supervision;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod wire;

// Starting, and what runs then.
pub use self::{
    clock::Clock,
    handle::{PresenceConfig, PresenceHandle, StartError},
    messages::{BusState, Counters, Decision, GetStatus, Shutdown, Status, UnheardNode},
    registry::{Pruner, RoomRegistry},
    supervision::Crashed,
};
// Sessions.
pub use self::{
    messages::{
        Dialect, Disconnect, Feed, ForwardMessage, Forwarded, SessionPlace, SessionPlaces,
        TakePlace, close_code,
    },
    session::{Connection, PhoenixSession, StopSignal, WsOptions, WsSession, WsSessionError},
    sockets::{configure_tcp, watch_socket},
};
// Being in rooms, and talking there.
pub use self::messages::{
    Admit, CloseRoom, Content, Flush, FlushError, Join, JoinError, Joined, Kick, Leave, LeaveAll,
    NotAMember, PrunePresences, PruneReport, PruneRooms, Pruned, Publish, Touch, UpdateInfo,
};
// Asking and observing.
pub use self::messages::{
    Change, Departed, Explain, Explained, GetOccupancy, GetSnapshot, ListPresences, ListRooms,
    PresenceChanged, RoomFilter, Scope, Subscribe, SubscriptionId, Unsubscribe, WhereIs,
};
// Who is where, as values.
pub use self::model::{
    Activity, Cause, ConnectionId, Diff, Epoch, Info, InvalidConnectionId, InvalidEpoch,
    InvalidInfo, InvalidName, InvalidNodeName, Left, LimitReached, Limits, MAX_DEPTH,
    MAX_INFO_BYTES, MAX_NAME_CHARS, MAX_NODE_NAME_CHARS, Member, Moment, NodeName, Occupancy,
    Offline, Presence, PresenceState, RoomName, RoomSummary, Rooms, SeenPresence, SessionKey,
    Snapshot, Superseded, Update, UserId, is_shallow,
};
