//! The lease under which a node writes into a shared database, and its incarnations.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::StoreError;
use crate::model::{Epoch, NodeName};

/// The node that a store writes for in a shared database: its lease and its incarnations.
#[derive(Debug, Default)]
pub(crate) struct NodeLease {
    node: Option<LeasedNode>,
    /// Those of this process, in all stores that were opened from one another.
    own: Arc<Mutex<ProcessIncarnations>>,
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextIncarnations {
    pub life: Epoch,
    pub continued: Epoch,
}

/// The incarnations of a process: those that were in the database for certain, and those that may be.
#[derive(Debug, Default)]
struct ProcessIncarnations {
    confirmed: VecDeque<Epoch>,
    chosen: VecDeque<Epoch>,
}

/// The incarnations of the node that a store writes for.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub incarnation: Epoch,
    pub lease: Duration,
    /// The least number of its last batch.
    pub head: u64,
}

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
