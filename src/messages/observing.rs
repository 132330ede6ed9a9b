//! Hearing of every change.

use std::sync::Arc;

use actix::prelude::*;

use crate::model::{
    Cause, Diff, Epoch, Left, NodeName, Offline, Presence, RoomName, Snapshot, Update, UserId,
};

/// Which rooms an observer wants to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoomFilter {
    /// All of them.
    Any,
    /// This one.
    Room(RoomName),
}

impl RoomFilter {
    pub(crate) fn admits(&self, room: &RoomName) -> bool {
        match self {
            Self::Any => true,
            Self::Room(only) => only == room,
        }
    }
}

/// Whose changes an observer wants to hear of, where several nodes share their rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Those of the presences that this node holds: of observers on all nodes, exactly one hears of
    /// each change. Presences that end with their node are told by the one that notices.
    #[default]
    Node,
    /// Those of all nodes. This node follows the rooms of the filter then, which for
    /// [`RoomFilter::Any`] is everything that happens anywhere.
    Cluster,
}

/// Asks for a [`PresenceChanged`] after every change from now on. Answers an id to
/// [`Unsubscribe`] with; an observer whose actor has stopped is forgotten by itself.
///
/// For what was there before: subscribe first, then ask for [`ListRooms`](super::ListRooms) and
/// [`GetSnapshot`](super::GetSnapshot). An event whose version the snapshot already has can be
/// passed over, as [`Snapshot::apply`] does.
#[derive(Debug, Message)]
#[rtype(result = "SubscriptionId")]
pub struct Subscribe {
    /// Of which rooms.
    pub filter: RoomFilter,
    /// Who wants to hear.
    pub observer: Recipient<PresenceChanged>,
    /// Of whose changes.
    pub scope: Scope,
}

impl Subscribe {
    /// A subscription to the changes of this node; [`scope`](Self::scope) widens it.
    #[must_use]
    pub fn new(filter: RoomFilter, observer: Recipient<PresenceChanged>) -> Self {
        Self { filter, observer, scope: Scope::Node }
    }

    /// Chooses whose changes to hear of.
    #[must_use]
    pub fn scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }
}

/// Ends a subscription. Answers whether there was one.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub struct Unsubscribe {
    /// Which one.
    pub id: SubscriptionId,
}

/// One subscription of one observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, MessageResponse)]
pub struct SubscriptionId(pub(crate) u64);

/// One change of one room, told to observers in order, each once.
///
/// `version` is one above that of the event before for the same room, as long as the room has
/// somebody in it: for every observer of a node alone, and with [`Scope::Cluster`]. With [`Scope::Node`]
/// it is only above it, since changes by other nodes raise it and are told to their observers.
/// An observer too slow to follow loses the single changes of a room and gets its state instead
/// ([`Change::Resync`]); in more than 65,536 rooms at once, it is told to read all of them again
/// ([`Change::ResyncAll`]). It never slows a room or another observer down.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct PresenceChanged {
    /// Which room.
    pub room: RoomName,
    /// The incarnation in which the version counts.
    pub epoch: Epoch,
    /// The room's version after the change.
    pub version: u64,
    /// The room right after the change; its version is higher than this one's if the room is empty then.
    pub snapshot: Snapshot,
    /// The node whose presences changed.
    pub node: NodeName,
    /// What happened.
    pub change: Change,
}

/// What a [`PresenceChanged`] tells.
#[derive(Clone, Debug)]
pub enum Change {
    /// Exactly this.
    Diff(Arc<Diff>),
    /// More changes of the room than the observer could follow; the snapshot is the room after them.
    Resync,
    /// Changes in more rooms than are kept for an observer that lags. The snapshot is that of one room;
    /// read the others again, as after [`Subscribe`]. The subscription goes on: later changes follow.
    ResyncAll,
}

impl PresenceChanged {
    /// The change itself, unless it was conflated with others.
    #[must_use]
    pub fn diff(&self) -> Option<&Diff> {
        match &self.change {
            Change::Diff(diff) => Some(diff),
            Change::Resync | Change::ResyncAll => None,
        }
    }

    /// The presence that was added, or `None`, also in a bulk change.
    #[must_use]
    pub fn added(&self) -> Option<&Presence> {
        self.diff()?.added()
    }

    /// The presence that was removed, or `None`, also in a bulk change.
    #[must_use]
    pub fn removed(&self) -> Option<&Presence> {
        self.diff()?.removed()
    }

    /// Whether more than one presence may have come or gone: after a prune, when a room or the
    /// registry closes, and when single changes were conflated.
    #[must_use]
    pub fn bulk_change(&self) -> bool {
        self.diff().is_none_or(Diff::is_bulk)
    }

    /// Why presences ended, if any did.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.leaves().first().map(|leave| leave.cause)
    }

    /// Presences that began.
    #[must_use]
    pub fn joins(&self) -> &[Presence] {
        self.diff().map_or(&[], |diff| &diff.joins)
    }

    /// Presences that ended, each with its cause.
    #[must_use]
    pub fn leaves(&self) -> &[Left] {
        self.diff().map_or(&[], |diff| &diff.leaves)
    }

    /// Presences that go on with another user or info.
    #[must_use]
    pub fn updates(&self) -> &[Update] {
        self.diff().map_or(&[], |diff| &diff.updates)
    }

    /// Users who came into the room with this change.
    #[must_use]
    pub fn online(&self) -> &[UserId] {
        self.diff().map_or(&[], |diff| &diff.online)
    }

    /// Users who are no longer in the room after this change.
    #[must_use]
    pub fn offline(&self) -> &[Offline] {
        self.diff().map_or(&[], |diff| &diff.offline)
    }
}
