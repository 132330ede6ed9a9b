//! The messages of the actors: what one may send to [`RoomRegistry`](crate::RoomRegistry), and what
//! it sends to sessions and observers.
//!
//! A session sends [`Join`], then [`Touch`] on any traffic, and [`LeaveAll`] when it ends; it gets
//! [`ForwardMessage`]s, and at most one [`Disconnect`]. An observer sends [`Subscribe`] and gets
//! [`PresenceChanged`].

mod delivered;
mod error;
mod membership;
mod observing;
mod payload;
mod places;
mod queries;
mod statuses;
mod users;

pub use delivered::{
    Audience, Content, Disconnect, ForwardMessage, Forwarded, Heard, Publish, PublishError,
    Register, close_code,
};
pub(crate) use delivered::{
    Backlog, DEFAULT_BACKLOG_LIMIT, Reservation, SessionPublish, backlog_limit,
};
pub use error::PresenceError;
pub use membership::{
    Admit, CloseRoom, Decision, Dialect, Feed, Join, JoinError, JoinRequest, Joined, Kick,
    KickFrom, Kicked, Leave, LeaveAll, PrunePresences, PruneReport, PruneRooms, Pruned, Touch,
    UpdateInfo,
};
pub(crate) use membership::{PendingJoin, SessionBatch, SessionThread};
pub use observing::{
    Change, PresenceChanged, RoomFilter, Scope, Subscribe, SubscriptionId, Unsubscribe,
};
pub use payload::Payload;
pub(crate) use places::PlaceBack;
pub use places::{SessionPlace, SessionPlaces, TakePlace};
pub use queries::{
    BusState, Counters, Departed, Explain, Explained, Flush, FlushError, GetOccupancy, GetSnapshot,
    GetStatus, ListPresences, ListRooms, QueryError, Shutdown, Status, UnheardNode, WhereIs,
};
pub use users::{
    SubscribeUsers, UpdateUser, UserChange, UserChanged, UserUpdated, UsersSubscribed,
};
