//! The messages of the actors: what one may send to [`RoomRegistry`](crate::RoomRegistry), and what
//! it sends to sessions and observers.
//!
//! A session sends [`Join`], then [`Touch`] on any traffic, and [`LeaveAll`] when it ends; it gets
//! [`ForwardMessage`]s, and at most one [`Disconnect`]. An observer sends [`Subscribe`] and gets
//! [`PresenceChanged`].

mod authorizing;
mod backlog;
mod closing;
mod delivered;
mod error;
mod kicking;
mod membership;
mod observing;
mod payload;
mod places;
mod pruning;
mod publishing;
mod queries;
mod statuses;
mod users;

pub use authorizing::{Admit, Decision, JoinRequest};
pub(crate) use backlog::{Backlog, DEFAULT_BACKLOG_LIMIT, Reservation, backlog_limit};
pub(crate) use delivered::{CRASHED, GOING_AWAY, Registration};
pub use delivered::{Disconnect, ForwardMessage, Forwarded, Heard, Register, close_code};
pub use error::PresenceError;
pub use kicking::{CloseRoom, Kick, KickFrom, Kicked};
pub use membership::{Dialect, Feed, Join, JoinError, Joined, Leave, LeaveAll, Touch, UpdateInfo};
pub(crate) use membership::{PendingJoin, SessionBatch, SessionThread, UpdatePresence};
pub use observing::{
    Change, PresenceChanged, RoomFilter, Scope, Subscribe, SubscriptionId, Unsubscribe,
};
pub use payload::Payload;
pub(crate) use places::PlaceBack;
pub use places::{SessionPlace, SessionPlaces, TakePlace};
pub use pruning::{PrunePresences, PruneReport, PruneRooms, Pruned};
pub(crate) use publishing::SessionPublish;
pub use publishing::{Audience, Content, Publish, PublishError};
pub use queries::{
    BusState, Counters, Departed, Explain, Explained, Flush, FlushError, GetOccupancy, GetSnapshot,
    GetStatus, ListPresences, ListRooms, QueryError, Shutdown, Status, UnheardNode, WhereIs,
};
pub use users::{
    SubscribeUsers, UpdateUser, UserChange, UserChanged, UserUpdated, UsersSubscribed,
};
