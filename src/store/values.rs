//! The values that go into the database and come out of it, and the lease under which a node writes.

use std::sync::Arc;
#[cfg(any(test, feature = "postgres", feature = "testing"))]
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::Serialize;

#[cfg(any(test, feature = "postgres", feature = "testing"))]
use super::StoreError;
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
    pub seen: Vec<Seen>,
}

/// When a connection was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The connection.
    pub connection: ConnectionId,
    /// When it was last seen.
    pub at: DateTime<Utc>,
    /// In how many rooms the node holds it, so that it should have as many rows.
    pub rooms: usize,
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
    /// Connections of [`Batch::seen`] that have fewer rows of this node than they should: somebody else
    /// has deleted some, or another node holds them.
    pub missing: Vec<ConnectionId>,
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
    /// The row of this node was that of another store of this process, which has been given up, or of an
    /// earlier state of the database. Its presences have rows, perhaps not the right ones: write every row
    /// again, then delete those that should not be there.
    Continued {
        /// The incarnation of the node from now on.
        incarnation: Epoch,
    },
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
pub(crate) struct NodeLease {
    node: Option<LeasedNode>,
    /// Those of this process, in all stores that were opened from one another.
    own: Arc<Mutex<ProcessIncarnations>>,
}

#[cfg(any(test, feature = "postgres", feature = "testing"))]
#[derive(Debug)]
struct LeasedNode {
    name: NodeName,
    lease: Duration,
    current: Option<Epoch>,
    next: NextIncarnations,
    /// The number of the last batch that was committed.
    head: u64,
}

/// The next incarnation of a node: that of a new life, or that in which it goes on. Each is chosen before the
/// database is asked and kept until it answers, so that a node whose answer was lost recognises its own row,
/// and how it came to be.
#[cfg(any(test, feature = "postgres", feature = "testing"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextIncarnations {
    pub life: Epoch,
    pub continued: Epoch,
}

/// The incarnations of a process: those that were in the database for certain, and those that may be.
#[cfg(any(test, feature = "postgres", feature = "testing"))]
#[derive(Debug, Default)]
struct ProcessIncarnations {
    confirmed: VecDeque<Epoch>,
    chosen: VecDeque<Epoch>,
}

/// The incarnations of the node that a store writes for.
#[cfg(any(test, feature = "postgres", feature = "testing"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnIncarnations {
    /// The one that it writes in; none before a start or a renewal.
    pub current: Option<Epoch>,
    /// The next ones.
    pub next: NextIncarnations,
    /// All of this process from which it may go on: not that of a new life of this store.
    pub own: Vec<Epoch>,
    /// The number of the last batch that was committed: a row with a lower one is of an earlier state of the
    /// database.
    pub head: u64,
}

/// What the row of a node has to show for the node to write.
#[cfg(any(test, feature = "postgres", feature = "testing"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub incarnation: Epoch,
    pub lease: Duration,
    /// The least number of its last batch.
    pub head: u64,
}

#[cfg(any(test, feature = "postgres", feature = "testing"))]
impl NodeLease {
    /// That of a further store of this process. It writes nothing until it has renewed the lease.
    pub fn successor(&self) -> Self {
        Self { node: None, own: Arc::clone(&self.own) }
    }

    /// Sets the node and its lease. The incarnations stay those of before if it is the same node.
    pub fn set(&mut self, node: &NodeName, lease: Duration) -> OwnIncarnations {
        let mut all = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.node.take().filter(|known| known.name == *node);
        let known = known.map_or_else(
            || {
                let (name, next) = (node.clone(), all.choose());
                LeasedNode { name, lease, current: None, next, head: 0 }
            },
            |known| LeasedNode { lease, ..known },
        );
        let LeasedNode { current, next, head, .. } = known;
        self.node = Some(known);
        let own = all.all().filter(|own| *own != next.life).collect();
        OwnIncarnations { current, next, own, head }
    }

    /// What has to be so for the node to write; nothing for a node that was never started.
    ///
    /// # Errors
    ///
    /// [`StoreError::Lapsed`] if the node was started, by this or by another store of this process, and this
    /// one has to renew the lease first.
    pub fn fence(&self, node: &NodeName) -> Result<Option<Fence>, StoreError> {
        let of_other = self.node.as_ref().is_some_and(|known| known.name != *node);
        let started = self.node.as_ref().filter(|_| !of_other);
        match started.and_then(|known| Some((known, known.current?))) {
            Some((LeasedNode { lease, head, .. }, incarnation)) => {
                Ok(Some(Fence { incarnation, lease: *lease, head: *head }))
            }
            None if !of_other && !self.own().is_empty() => Err(StoreError::Lapsed),
            None => Ok(None),
        }
    }

    /// The incarnations of the node in this process; none if this store writes for another node.
    pub fn own_of(&self, node: &NodeName) -> Vec<Epoch> {
        let other = self.node.as_ref().is_some_and(|known| known.name != *node);
        if other { Vec::new() } else { self.own() }
    }

    fn own(&self) -> Vec<Epoch> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).all().collect()
    }

    /// Changes to this incarnation, one of the next ones, which is in the database now.
    pub fn begin(&mut self, incarnation: Epoch) {
        let mut all = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        all.confirm(incarnation);
        if let Some(known) = &mut self.node {
            (known.current, known.next, known.head) = (Some(incarnation), all.choose(), 0);
        }
    }

    /// A batch is committed.
    pub fn committed(&mut self, number: u64) {
        if let Some(known) = &mut self.node {
            known.head = known.head.max(number);
        }
    }
}

#[cfg(any(test, feature = "postgres", feature = "testing"))]
impl ProcessIncarnations {
    /// How many are remembered that were never confirmed, and how many that were.
    const MAX_CHOSEN: usize = 64;
    const MAX_CONFIRMED: usize = 16;

    fn all(&self) -> impl Iterator<Item = Epoch> {
        self.confirmed.iter().chain(&self.chosen).copied()
    }

    fn choose(&mut self) -> NextIncarnations {
        let next = NextIncarnations { life: Epoch::new(), continued: Epoch::new() };
        self.chosen.extend([next.life, next.continued]);
        let surplus = self.chosen.len().saturating_sub(Self::MAX_CHOSEN);
        self.chosen.drain(..surplus);
        next
    }

    fn confirm(&mut self, incarnation: Epoch) {
        self.chosen.retain(|chosen| *chosen != incarnation);
        self.confirmed.push_back(incarnation);
        let surplus = self.confirmed.len().saturating_sub(Self::MAX_CONFIRMED);
        self.confirmed.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    #[test]
    fn the_next_incarnations_stay_until_one_has_begun() {
        let [node, other] = ["n", "m"].map(|name| NodeName::new(name).unwrap());
        let mut lease = NodeLease::default();
        assert_eq!(lease.fence(&node).unwrap(), None, "never started");
        let before = lease.set(&node, LEASE);
        assert!(matches!(lease.fence(&node), Err(StoreError::Lapsed)), "about to start");
        assert_eq!(lease.set(&node, LEASE), before);
        assert_eq!(before.own, [before.next.continued], "a lost answer would be known");
        lease.begin(before.next.life);
        lease.committed(3);
        let after = lease.set(&node, LEASE);
        assert_eq!(after.current, Some(before.next.life));
        assert!(after.own.contains(&before.next.life) && !after.own.contains(&after.next.life));
        let fence = Fence { incarnation: before.next.life, lease: LEASE, head: 3 };
        assert_eq!(lease.fence(&node).unwrap(), Some(fence));
        assert_eq!(lease.fence(&other).unwrap(), None);
        assert_eq!(lease.set(&other, LEASE).current, None);
    }

    #[test]
    fn a_further_store_of_a_process_renews_before_it_writes_and_knows_what_is_its_own() {
        let node = NodeName::new("n").unwrap();
        let mut first = NodeLease::default();
        assert_eq!(first.successor().fence(&node).unwrap(), None, "nothing was started");
        let begun = first.set(&node, LEASE).next.life;
        first.begin(begun);
        let mut second = first.successor();
        assert!(matches!(second.fence(&node), Err(StoreError::Lapsed)));
        let own = second.set(&node, LEASE);
        assert_eq!(own.current, None);
        assert!(matches!(second.fence(&node), Err(StoreError::Lapsed)), "its renewal failed");
        let first = first.set(&node, LEASE);
        assert!(own.own.contains(&begun) && own.own.contains(&first.next.life));
        assert!(!own.own.contains(&own.next.life));
        assert!(first.own.contains(&own.next.life));
    }

    #[test]
    fn what_was_in_the_database_is_not_forgotten_for_what_may_be() {
        let node = NodeName::new("n").unwrap();
        let mut first = NodeLease::default();
        let begun = first.set(&node, LEASE).next.life;
        first.begin(begun);
        for _ in 0..1000 {
            first.successor().set(&node, LEASE);
        }
        let own = first.successor().set(&node, LEASE).own;
        assert!(own.contains(&begun) && own.len() <= 100, "{}", own.len());
    }
}
