//! Who is where, right now, for actix-web apps: rooms, presences, heartbeats, observers and group
//! messages, as actors.
//!
//! An app starts the actors once, gives each WebSocket a [`Connection`], and sends messages to the
//! [`RoomRegistry`]. The registry keeps all rooms in memory, tells their members who comes and goes, and
//! mirrors them in a database.
//!
//! ```
//! use actix::prelude::*;
//! use actix_presence::{
//!     Connection, Disconnect, ForwardMessage, GetSnapshot, PresenceConfig, RoomName, UserId,
//! };
//!
//! /// A client's side. In an app this is an actor that writes to a WebSocket.
//! struct Session;
//!
//! impl Actor for Session {
//!     type Context = Context<Self>;
//! }
//!
//! impl Handler<ForwardMessage> for Session {
//!     type Result = ();
//!     fn handle(&mut self, msg: ForwardMessage, _: &mut Self::Context) {
//!         println!("to the client: {}", msg.payload);
//!     }
//! }
//!
//! impl Handler<Disconnect> for Session {
//!     type Result = ();
//!     fn handle(&mut self, order: Disconnect, ctx: &mut Self::Context) {
//!         println!("close with {}, because {}", order.code, order.cause);
//!         ctx.stop();
//!     }
//! }
//!
//! #[actix::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let presence = PresenceConfig::new("sqlite::memory:").start()?;
//!     let registry = presence.registry();
//!     let lobby = RoomName::new("lobby")?;
//!
//!     let ada = Connection::new(registry.clone());
//!     let join = ada.join(lobby.clone(), Session.start()).user(Some(UserId::new("ada")?));
//!     let joined = registry.send(join).await??;
//!     let users: Vec<_> = joined.snapshot.users().map(|user| user.id.to_string()).collect();
//!     assert_eq!(users, ["ada"]);
//!
//!     drop(ada); // leaves every room
//!     assert!(registry.send(GetSnapshot { room: lobby }).await??.is_none());
//!     Ok(presence.shutdown(std::time::Duration::from_secs(5)).await?)
//! }
//! ```
//!
//! # Where to begin
//!
//! - [Concepts](guide::concepts): room, presence, connection, user, session, grace and node, and a join
//!   told step by step
//! - [Embedding](guide::embedding): from the shortest session to one of your own, observers,
//!   authorization, tests and shutdown
//! - [Coming from Django](guide::from_django): each call of django-channels-presence beside ours
//! - [All pages](guide) of the documentation, those for clients and operators included
//!
//! # Where to find what
//!
//! Everything an app uses is here at the root; [`prelude`] is for a glob import.
//!
//! - start: [`PresenceConfig`] starts the actors and gives a [`PresenceHandle`]
//! - handlers: [`PresenceClient`] has the messages as asynchronous methods
//! - sessions: [`Connection`] for actors of an app's own; [`WsSession`] and [`PhoenixSession`] ready-made
//! - messages to the [`RoomRegistry`]: [`Join`], [`Leave`], [`Touch`], [`Publish`], [`Kick`],
//!   [`Subscribe`], queries such as [`GetSnapshot`] and [`ListRooms`]
//! - values: [`RoomName`], [`UserId`], [`ConnectionId`], [`Presence`], [`Snapshot`], [`Diff`]
//!
//! [`store`] and [`bus`] are what several nodes are made of, [`sockets`] is for apps that run an
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
mod error_chain;
#[cfg(any(doc, doctest))]
pub mod guide;
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
    handle::{PresenceClient, PresenceConfig, PresenceHandle, StartError},
    messages::{
        BusState, Counters, Decision, GetStatus, JoinRequest, PresenceError, Shutdown, Status,
        UnheardNode,
    },
    registry::{Pruner, RoomRegistry},
    supervision::Crashed,
};
// Sessions.
pub use self::{
    messages::{
        Dialect, Disconnect, Feed, ForwardMessage, Forwarded, Heard, Register, SessionPlace,
        SessionPlaces, TakePlace, close_code,
    },
    session::{
        Connection, IdleStep, IdleWatch, Outlet, OutletStream, PhoenixSession, WsOptions,
        WsSession, WsSessionError,
    },
    sockets::{configure_tcp, watch_socket},
};
// Being in rooms, and talking there.
pub use self::messages::{
    Admit, Audience, CloseRoom, Content, Flush, FlushError, Join, JoinError, Joined, Kick,
    KickFrom, Kicked, Leave, LeaveAll, Payload, PrunePresences, PruneReport, PruneRooms, Pruned,
    Publish, PublishError, Touch, UpdateInfo, UpdateUser, UserUpdated,
};
// Asking and observing.
pub use self::messages::{
    Change, Departed, Explain, Explained, GetOccupancy, GetSnapshot, ListPresences, ListRooms,
    PresenceChanged, QueryError, RoomFilter, Scope, Subscribe, SubscribeUsers, SubscriptionId,
    Unsubscribe, UserChange, UserChanged, UsersSubscribed, WhereIs,
};
// Who is where, as values.
pub use self::model::{
    Activity, Cause, ConnectionId, Diff, Epoch, Info, InvalidConnectionId, InvalidEpoch,
    InvalidInfo, InvalidName, InvalidNodeName, Left, LimitReached, Limits, MAX_DEPTH,
    MAX_INFO_BYTES, MAX_NAME_CHARS, MAX_NODE_NAME_CHARS, Member, Moment, NodeName, Occupancy,
    Offline, Presence, PresenceState, Rights, RoomName, RoomSummary, Rooms, SeenPresence, Sender,
    SessionKey, Snapshot, SnapshotDiff, Superseded, UnfitJson, Update, UserId, check_info,
    check_payload,
};

/// What an app uses, for a glob import beside others: none of its names is one of `diesel::prelude` or of
/// `actix::prelude`. [`Connection`] is called [`PresenceConnection`](prelude::PresenceConnection) here, since
/// Diesel has a trait of that name.
///
/// ```
/// use actix_presence::prelude::*;
/// use diesel::prelude::*;
///
/// /// Ada's connection, in a transaction of Diesel.
/// fn join(
///     me: &PresenceConnection,
///     session: actix::Addr<Session>,
///     database: &mut SqliteConnection,
/// ) -> Result<Join, Box<dyn std::error::Error>> {
///     let name = database.transaction(|database| {
///         diesel::select("ada".into_sql::<diesel::sql_types::Text>()).get_result::<String>(database)
///     })?;
///     Ok(me.join(RoomName::new("lobby")?, session).user(UserId::new(name)?))
/// }
/// # struct Session;
/// # impl actix::Actor for Session { type Context = actix::Context<Self>; }
/// # impl actix::Handler<ForwardMessage> for Session {
/// #     type Result = ();
/// #     fn handle(&mut self, _: ForwardMessage, _: &mut Self::Context) {}
/// # }
/// # impl actix::Handler<Disconnect> for Session {
/// #     type Result = ();
/// #     fn handle(&mut self, _: Disconnect, _: &mut Self::Context) {}
/// # }
/// ```
pub mod prelude {
    /// The crate's [`Connection`](crate::Connection).
    pub use crate::Connection as PresenceConnection;
    pub use crate::{
        Admit, Audience, Cause, Change, CloseRoom, ConnectionId, Decision, Dialect, Diff,
        Disconnect, Epoch, Explain, Feed, Flush, FlushError, ForwardMessage, Forwarded,
        GetOccupancy, GetSnapshot, GetStatus, Heard, IdleStep, IdleWatch, Info, InvalidInfo,
        InvalidName, Join, JoinError, JoinRequest, Joined, Kick, KickFrom, Kicked, Leave, LeaveAll,
        Left, ListPresences, ListRooms, Member, NodeName, Occupancy, Offline, Outlet, OutletStream,
        Payload, PhoenixSession, Presence, PresenceChanged, PresenceClient, PresenceConfig,
        PresenceError, PresenceHandle, PrunePresences, PruneReport, PruneRooms, Publish,
        PublishError, QueryError, Rights, RoomFilter, RoomName, RoomRegistry, RoomSummary, Scope,
        SeenPresence, SessionKey, Snapshot, StartError, Status, Subscribe, SubscribeUsers,
        SubscriptionId, Touch, Unsubscribe, Update, UpdateInfo, UpdateUser, UserChange,
        UserChanged, UserId, UserUpdated, WhereIs, WsOptions, WsSession, WsSessionError,
        configure_tcp, watch_socket,
    };
}
