//! Rooms and presences as plain values.
//!
//! Nothing here knows actors, databases, clocks or logs: every operation takes the time, changes the
//! value, and returns what happened.

mod collections;
mod encoding;
mod identity;
mod ids;
mod info;
mod json;
mod membership;
mod names;
mod presence;
mod queries;
mod recent_leaves;
mod remote;
#[cfg(test)]
mod remote_tests;
mod rights;
mod rooms;
mod sessions;
#[cfg(test)]
mod sessions_tests;
mod snapshot;
mod snapshot_diff;
mod tree;
mod updates;

pub(crate) use collections::{Few, Shrink};
pub(crate) use identity::CODE_BYTES;
pub use identity::ClusterIdentity;
pub use ids::{ConnectionId, Epoch, InvalidConnectionId, InvalidEpoch};
pub(crate) use info::StoredInfo;
pub use info::{Info, InvalidInfo, MAX_DEPTH, MAX_INFO_BYTES};
pub use json::{UnfitJson, check_info, check_payload};
pub(crate) use names::ANONYMOUS_PREFIX;
pub use names::{
    InvalidName, InvalidNodeName, MAX_NAME_CHARS, MAX_NODE_NAME_CHARS, NodeName, RoomName, UserId,
};
pub(crate) use presence::micros;
pub use presence::{
    Activity, Cause, Member, Moment, Occupancy, Presence, PresenceState, RoomSummary, SeenPresence,
    Sender,
};
pub(crate) use recent_leaves::{RecentLeave, RecentLeaves};
pub use remote::PresenceRecord;
pub(crate) use remote::{Remote, RemoteChange, RemoteOutcome, Yielded};
pub use rights::Rights;
pub use rooms::{LimitReached, Limits, Rooms};
pub(crate) use sessions::{Entered, Entering, NotEntered, Resumed, Sessions};
pub use sessions::{SessionKey, Superseded};
pub use snapshot::{Diff, Left, Offline, Snapshot, Update};
pub use snapshot_diff::SnapshotDiff;
pub(crate) use tree::Position;
