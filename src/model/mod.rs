//! Rooms and presences as plain values.
//!
//! Nothing here knows actors, databases, clocks or logs: every operation takes the time, changes the
//! value, and returns what happened.

mod collections;
mod diff;
mod ids;
mod info;
mod joining;
#[cfg(test)]
mod joining_tests;
mod members;
mod membership;
mod names;
mod presence;
mod queries;
mod recent_leaves;
mod remote;
#[cfg(test)]
mod remote_tests;
mod rooms;
mod sessions;
mod snapshot;
mod time;
mod tree;

pub(crate) use collections::{Few, Shrink};
pub use diff::{Diff, Left, Offline, Update};
pub use ids::{ConnectionId, Epoch, InvalidConnectionId, InvalidEpoch};
pub use info::{Info, InvalidInfo, MAX_DEPTH, MAX_INFO_BYTES, is_shallow};
pub(crate) use joining::{Entered, Entering, NotEntered, Resumed};
pub use names::{
    InvalidName, InvalidNodeName, MAX_NAME_CHARS, MAX_NODE_NAME_CHARS, NodeName, RoomName, UserId,
};
pub use presence::{
    Activity, Cause, Member, Occupancy, Presence, PresenceState, RoomSummary, SeenPresence,
};
pub(crate) use recent_leaves::{RecentLeave, RecentLeaves};
pub use remote::PresenceRecord;
pub(crate) use remote::{Remote, RemoteChange, RemoteOutcome, Yielded};
pub use rooms::{LimitReached, Limits, Rooms};
pub(crate) use sessions::Sessions;
pub use sessions::{SessionKey, Superseded};
pub use snapshot::Snapshot;
pub use time::Moment;
pub(crate) use time::micros;
pub(crate) use tree::Place;
