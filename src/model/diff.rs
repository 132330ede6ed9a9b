//! What one change of a room did.

use chrono::{DateTime, Utc};

use super::{Activity, Cause, ConnectionId, Presence, RoomName, UserId};

/// One change of one room, never empty: who joined, left or changed, connection by connection, and
/// which users thereby came online or went offline.
///
/// Each connection has exactly one join and one leave per membership; a user alternates between online and
/// offline, so nobody has to count tabs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    /// Which room.
    pub room: RoomName,
    /// The room's version after the change: one above the version before.
    pub version: u64,
    /// Presences that began.
    pub joins: Vec<Presence>,
    /// Presences that ended, each with its cause.
    pub leaves: Vec<Left>,
    /// Presences that go on with another user or info.
    pub updates: Vec<Update>,
    /// Users whose first connection in the room this is.
    pub online: Vec<UserId>,
    /// Users whose last connection in the room has gone.
    pub offline: Vec<Offline>,
}

/// A presence that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The presence as it was.
    pub presence: Presence,
    /// The connection behind it: another than [`Presence::connection`] if that was
    /// [taken over](super::Rooms::take_over) on this node.
    pub connection: ConnectionId,
    /// Why it ended.
    pub cause: Cause,
    /// When its connection was last heard of.
    pub last_seen: DateTime<Utc>,
    /// How it was heard of then.
    pub activity: Activity,
    /// The room's version when it joined.
    pub joined_version: u64,
}

/// A presence that goes on with another user or info.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The presence as it was.
    pub before: Presence,
    /// The presence as it is now.
    pub after: Presence,
}

/// A user whose last connection in a room has gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offline {
    /// Which user.
    pub user: UserId,
    /// Why that last presence ended. [`Cause::Left`] if the connection stays as another user.
    pub cause: Cause,
}

impl Diff {
    pub(super) fn new(room: RoomName, version: u64) -> Self {
        Self {
            room,
            version,
            joins: Vec::new(),
            leaves: Vec::new(),
            updates: Vec::new(),
            online: Vec::new(),
            offline: Vec::new(),
        }
    }

    /// Whether the change is one of many presences at once: a prune, or the end of a room, a node or
    /// the registry, also when only one presence was left to go.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        let at_once = |cause| {
            matches!(cause, Cause::Expired | Cause::RoomClosed | Cause::NodeLost | Cause::Shutdown)
        };
        self.joins.len() + self.leaves.len() + self.updates.len() > 1
            || self.leaves.iter().any(|leave| at_once(leave.cause))
    }

    /// The presence that joined; `None` in a bulk change.
    #[must_use]
    pub fn added(&self) -> Option<&Presence> {
        self.joins.first().filter(|_| !self.is_bulk())
    }

    /// The presence that left; `None` in a bulk change.
    #[must_use]
    pub fn removed(&self) -> Option<&Presence> {
        self.leaves.first().map(|leave| &leave.presence).filter(|_| !self.is_bulk())
    }

    /// Every connection that the change is about.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        let joined = self.joins.iter().map(|presence| presence.connection);
        let left = self.leaves.iter().map(|leave| leave.presence.connection);
        let updated = self.updates.iter().map(|update| update.after.connection);
        joined.chain(left).chain(updated)
    }

    /// Every user whose entry in the member list the change may have touched, with repeats.
    pub(crate) fn users(&self) -> impl Iterator<Item = &UserId> + '_ {
        let joined = self.joins.iter().map(|presence| &presence.user);
        let left = self.leaves.iter().map(|leave| &leave.presence.user);
        let updated = self.updates.iter().flat_map(|u| [&u.before.user, &u.after.user]);
        joined.chain(left).chain(updated).flatten()
    }
}
