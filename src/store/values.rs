//! The values that go into the database and come out of it, and the lease under which a node writes.

use std::sync::Arc;
#[cfg(any(test, feature = "postgres", feature = "testing"))]
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::model::{Cause, ConnectionId, Epoch, NodeName, PresenceRecord, RoomName};

/// A presence as it is written to the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its room.
    pub room: RoomName,
    /// The presence. SQLite stores what a node needs that has the database for itself.
    pub record: PresenceRecord,
}

/// Changes to write in one transaction: deletes, then upserts, then `last_seen` updates.
///
/// A presence (a connection in a room) is in `upserts` or in `deletes`, at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Its number among the batches of the node's incarnation, for shared stores: strictly increasing.
    pub number: u64,
    /// New or changed presences, as they are now.
    pub upserts: Vec<Row>,
    /// Presences that have ended.
    pub deletes: Vec<(RoomName, ConnectionId)>,
    /// When connections were last seen, for all their presences of this node.
    pub seen: Vec<(ConnectionId, DateTime<Utc>)>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.deletes.is_empty() && self.seen.is_empty()
    }
}

/// The result of a batch: everything but the changes set aside is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Applied {
    /// Changes that the database refuses; unchanged, they would fail again.
    pub set_aside: Vec<SetAside>,
}

/// A change that the database refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The change.
    pub change: BatchEntry,
    /// The error message of the database.
    pub reason: String,
}

/// One change of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchEntry {
    /// Of [`Batch::upserts`].
    Upsert(RoomName, ConnectionId),
    /// Of [`Batch::deletes`].
    Delete(RoomName, ConnectionId),
    /// Of [`Batch::seen`].
    Seen(ConnectionId),
}

/// A batch that is committed.
#[derive(Debug)]
pub(crate) struct Committed {
    /// The batch.
    pub batch: Arc<Batch>,
    /// The causes of the leaves that the batch deletes, in its order; none for a presence that
    /// another node holds now.
    pub causes: Vec<Option<Cause>>,
    /// The entries that the database refuses.
    pub refused: Vec<BatchEntry>,
}

/// A node that was found dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadNode {
    /// Its name as stored, unchecked.
    pub node: String,
    /// How many presences of it were removed.
    pub presences: usize,
}

/// The result of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Started {
    /// The incarnation of the node from now on.
    pub incarnation: Epoch,
    /// Nodes that were found dead, ordered by name; their rows are removed.
    pub dead: Vec<DeadNode>,
    /// The rows of an earlier incarnation in a shared store, which belong to this one now.
    pub inherited: Vec<Row>,
    /// Whether that incarnation had shut down ([`Store::hand_over`](super::Store::hand_over)).
    pub stopped: bool,
}

/// The result of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Renewal {
    /// The lease had not expired.
    Held,
    /// The lease had expired or was missing. Other nodes may have removed this node's rows: write
    /// every row again.
    Lapsed {
        /// The incarnation of the node from now on.
        incarnation: Epoch,
    },
}

/// The number of presences in a room, by the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoomCounts {
    /// Its name as stored, unchecked.
    pub channel_name: String,
    /// All connections.
    pub connections: usize,
    /// Distinct users.
    pub users: usize,
    /// Connections without a user.
    pub anonymous: usize,
}

/// The row of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node: NodeName,
    /// Its incarnation: a new process, or one whose rows were removed, has a new one.
    pub incarnation: Epoch,
    /// The number of its last committed batch; 0 if there is none.
    pub head: u64,
    /// Whether its lease has expired, by the database's clock.
    pub expired: bool,
    /// Whether it has shut down, and its fading presences wait for their clients to come back.
    pub leaving: bool,
}

/// The rows of some rooms, read in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomRows {
    /// All nodes: the rows contain every batch up to a node's head, and no later one.
    pub nodes: Vec<NodeRow>,
    /// The presences, each with the node that holds it. Only nodes that have a row hold presences.
    pub rows: Vec<(NodeName, Row)>,
}

/// The result of [`SharedStore::reap`](super::SharedStore::reap).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Reaped {
    /// Its lease runs, another incarnation has its name, or its row is locked: nothing was done.
    Alive,
    /// Its rows had been removed already.
    Gone,
    /// Its row and its presences are removed.
    Removed {
        /// The presences.
        rows: Vec<Row>,
        /// Whether it had shut down, and the clients of these presences did not come back.
        leaving: bool,
    },
}

/// The node that a store writes for in a shared database: its lease and its incarnations.
#[cfg(any(test, feature = "postgres", feature = "testing"))]
#[derive(Debug, Default)]
pub(crate) struct NodeLease(Option<(NodeName, Duration, OwnIncarnations)>);

/// The incarnations of the node that a store writes for.
#[cfg(any(test, feature = "postgres", feature = "testing"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnIncarnations {
    /// The one that it writes in; none before a start or a renewal.
    pub current: Option<Epoch>,
    /// The next one. Chosen before the database is asked and kept until it answers, so that a node
    /// whose answer was lost recognises its own row.
    pub next: Epoch,
}

#[cfg(any(test, feature = "postgres", feature = "testing"))]
impl NodeLease {
    /// Sets the node and its lease. The incarnations stay those of before if it is the same node.
    pub fn set(&mut self, node: &NodeName, lease: Duration) -> OwnIncarnations {
        let known = self.0.take().filter(|(known, ..)| known == node);
        let new = || OwnIncarnations { current: None, next: Epoch::new() };
        let incarnations = known.map_or_else(new, |(.., incarnations)| incarnations);
        self.0 = Some((node.clone(), lease, incarnations));
        incarnations
    }

    /// The incarnation and the lease of the node, if it is this one and has been started.
    pub fn fence(&self, node: &NodeName) -> Option<(Epoch, Duration)> {
        let (_, lease, incarnations) = self.0.as_ref().filter(|(known, ..)| known == node)?;
        Some((incarnations.current?, *lease))
    }

    /// The incarnation of the node, if it is this one and has been started.
    pub fn incarnation(&self, node: &NodeName) -> Option<Epoch> {
        self.fence(node).map(|(incarnation, _)| incarnation)
    }

    /// Changes to the next incarnation, which is in the database now.
    pub fn begin(&mut self) {
        if let Some((.., OwnIncarnations { current, next })) = &mut self.0 {
            *current = Some(std::mem::replace(next, Epoch::new()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_incarnation_stays_until_it_has_begun() {
        let [node, other] = ["n", "m"].map(|name| NodeName::new(name).unwrap());
        let duration = Duration::from_secs(15);
        let mut lease = NodeLease::default();
        let before = lease.set(&node, duration);
        assert_eq!(lease.fence(&node), None, "not started");
        assert_eq!(lease.set(&node, duration), before);
        lease.begin();
        let after = lease.set(&node, duration);
        assert_eq!(after.current, Some(before.next));
        assert_ne!(after.next, before.next);
        assert_eq!(lease.fence(&node), Some((before.next, duration)));
        assert_eq!(lease.fence(&other), None);
        assert_eq!(lease.set(&other, duration).current, None);
    }
}
