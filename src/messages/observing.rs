//! Observing changes.

use std::sync::Arc;

use actix::prelude::*;
use chrono::{DateTime, Utc};

use crate::model::{
    Cause, Diff, Epoch, Left, NodeName, Offline, Presence, RoomName, Snapshot, Update, UserId,
};

/// The rooms that an observer observes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoomFilter {
    /// All of them.
    Any,
    /// This one.
    Room(RoomName),
    /// Those whose names begin so, such as `team:`.
    Prefix(String),
}

impl RoomFilter {
    pub(crate) fn admits(&self, room: &RoomName) -> bool {
        match self {
            Self::Any => true,
            Self::Room(only) => only == room,
            Self::Prefix(prefix) => room.as_str().starts_with(prefix),
        }
    }
}

/// Whose changes an observer gets, where several nodes share their rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Those of the presences that this node holds: of the observers on all nodes exactly one gets each
    /// change. The end of presences whose node has died is reported by the node that notices.
    #[default]
    Node,
    /// Those of all nodes. This node then follows the room of the filter, or all rooms of the cluster unless it
    /// names one: for [`RoomFilter::Prefix`], too.
    Cluster,
}

/// Asks for a [`PresenceChanged`] after every change from now on. Returns an id for [`Unsubscribe`]; an
/// observer whose actor has stopped is removed automatically.
///
/// To get the state before: subscribe first, then ask for [`ListRooms`](super::ListRooms) and
/// [`GetSnapshot`](super::GetSnapshot), and skip events whose version the snapshot has already, as
/// [`Snapshot::apply`] does.
///
/// An observer that panics has stopped: it is unsubscribed, and
/// [`PresenceHandle::shutdown`](crate::PresenceHandle::shutdown) does not wait for it. In a
/// [`SyncArbiter`](actix::SyncArbiter) of which a thread is left it goes on, without the event in which it panicked;
/// that is logged, and counted by `presence_observer_events_lost_total`.
#[derive(Debug, Message)]
#[rtype(result = "SubscriptionId")]
pub struct Subscribe {
    /// The rooms to observe.
    pub filter: RoomFilter,
    /// The recipient of the events.
    pub observer: Recipient<PresenceChanged>,
    /// Whose changes to report.
    pub scope: Scope,
}

impl Subscribe {
    /// A subscription to the changes of this node; [`scope`](Self::scope) widens it.
    #[must_use]
    pub fn new(filter: RoomFilter, observer: Recipient<PresenceChanged>) -> Self {
        Self { filter, observer, scope: Scope::Node }
    }

    /// Sets whose changes to report.
    #[must_use]
    pub fn scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }
}

/// Ends a subscription. Returns whether there was one.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "bool")]
pub struct Unsubscribe {
    /// The subscription.
    pub id: SubscriptionId,
}

/// One subscription of one observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, MessageResponse)]
pub struct SubscriptionId(pub(crate) u64);

/// One change of one room, sent to observers in order, each once.
///
/// `version` is one above that of the room's event before, as long as the room has members: for every
/// observer of a node alone, and with [`Scope::Cluster`]. With [`Scope::Node`] it is only higher, since
/// changes by other nodes raise it and go to their observers. An observer that lags gets a room's state
/// instead of its single changes ([`Change::Resync`]), or, in more than 65,536 rooms at once, one event to
/// read all rooms again ([`Change::ResyncAll`]). It never delays a room or another observer.
///
/// [`PresenceHandle::shutdown`](crate::PresenceHandle::shutdown) waits until all events are handled.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct PresenceChanged {
    /// The room.
    pub room: RoomName,
    /// The incarnation in which the version counts.
    pub epoch: Epoch,
    /// The room's version after the change.
    pub version: u64,
    /// The room right after the change; its version is higher than this one's if the room is empty then.
    pub snapshot: Snapshot,
    /// The node whose presences changed.
    pub node: NodeName,
    /// When this node made the change, or heard of it from another one; of changes that were conflated, the
    /// latest.
    pub at: DateTime<Utc>,
    /// The change.
    pub change: Change,
}

/// The change in a [`PresenceChanged`].
#[derive(Clone, Debug)]
pub enum Change {
    /// A single change.
    Diff(Arc<Diff>),
    /// Several changes that were conflated; the snapshot is the room after them. An observer that keeps the
    /// snapshot before knows what has changed: see [`Snapshot::since`].
    Resync,
    /// Changes in more rooms than are kept for an observer that lags. The snapshot is that of one room; read
    /// the others again, as after [`Subscribe`]. Later changes follow.
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

    /// Whether more than one presence may have joined or left: after a prune, when a room or the registry
    /// closes, and when changes were conflated.
    #[must_use]
    pub fn bulk_change(&self) -> bool {
        self.diff().is_none_or(Diff::is_bulk)
    }

    /// Why presences ended, if any did.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.leaves().first().map(|leave| leave.cause)
    }

    /// Presences that joined.
    #[must_use]
    pub fn joins(&self) -> &[Presence] {
        self.diff().map_or(&[], |diff| &diff.joins)
    }

    /// Presences that left, each with its cause.
    #[must_use]
    pub fn leaves(&self) -> &[Left] {
        self.diff().map_or(&[], |diff| &diff.leaves)
    }

    /// Presences whose user or info has changed.
    #[must_use]
    pub fn updates(&self) -> &[Update] {
        self.diff().map_or(&[], |diff| &diff.updates)
    }

    /// Users whose first connection in the room was added.
    #[must_use]
    pub fn online(&self) -> &[UserId] {
        self.diff().map_or(&[], |diff| &diff.online)
    }

    /// Users whose last connection in the room was removed.
    #[must_use]
    pub fn offline(&self) -> &[Offline] {
        self.diff().map_or(&[], |diff| &diff.offline)
    }
}
