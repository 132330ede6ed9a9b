//! Rooms and presences as plain values.
//!
//! Nothing here knows actors, databases, clocks or logs: every operation takes the time, changes the
//! value, and returns what happened.

mod depth;
mod diff;
mod few;
mod ids;
mod info;
mod joining;
#[cfg(test)]
mod joining_tests;
mod members;
mod membership;
mod node;
mod presence;
mod queries;
mod recent_leaves;
mod remote;
#[cfg(test)]
mod remote_tests;
mod rooms;
mod sessions;
mod shrink;
mod snapshot;
mod time;
mod tree;

pub use depth::{MAX_DEPTH, is_shallow};
pub use diff::{Diff, Left, Offline, Update};
pub(crate) use few::Few;
pub use ids::{
    ConnectionId, Epoch, InvalidConnectionId, InvalidEpoch, InvalidName, MAX_NAME_CHARS, RoomName,
    UserId,
};
pub use info::{Info, InvalidInfo, MAX_INFO_BYTES};
pub(crate) use joining::{Entered, Entering, NotEntered, Resumed};
pub use node::{InvalidNodeName, MAX_NODE_NAME_CHARS, NodeName};
pub use presence::{
    Activity, Cause, Member, Occupancy, Presence, PresenceState, RoomSummary, SeenPresence,
};
pub(crate) use recent_leaves::{RecentLeave, RecentLeaves};
pub(crate) use remote::{Remote, RemoteChange, RemoteOutcome, Yielded};
pub use rooms::{LimitReached, Limits, Rooms};
pub use sessions::{SessionKey, Sessions, Superseded};
pub(crate) use shrink::Shrink;
pub(crate) use snapshot::Place;
pub use snapshot::Snapshot;
pub use time::Moment;
pub(crate) use time::micros;
