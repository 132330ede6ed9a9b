//! The lease of the node that a store writes for.

use std::time::Duration;

use crate::model::{Epoch, NodeName};

/// The node that a store writes for in a shared database, with its lease and its incarnations.
#[derive(Debug, Default)]
pub(crate) struct NodeLease(Option<Lease>);

#[derive(Clone, Debug)]
struct Lease {
    node: NodeName,
    duration: Duration,
    incarnations: Incarnations,
}

/// The incarnations of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incarnations {
    /// The one that it writes in; none before a start or a renewal.
    pub current: Option<Epoch>,
    /// The next one. Chosen before the database is asked and kept until it answers, so that a node
    /// whose answer was lost recognises its own row.
    pub next: Epoch,
}

impl NodeLease {
    /// Sets the node and its lease. The incarnations stay those of before if it is the same node.
    pub fn set(&mut self, node: &NodeName, duration: Duration) -> Incarnations {
        let known = self.0.take().filter(|known| known.node == *node);
        let incarnations = known
            .map_or_else(|| Incarnations { current: None, next: Epoch::new() }, |l| l.incarnations);
        self.0 = Some(Lease { node: node.clone(), duration, incarnations });
        incarnations
    }

    /// The incarnation and the lease of the node, if it is this one and has been started.
    pub fn fence(&self, node: &NodeName) -> Option<(Epoch, Duration)> {
        let lease = self.0.as_ref().filter(|lease| lease.node == *node)?;
        Some((lease.incarnations.current?, lease.duration))
    }

    /// The incarnation of the node, if it is this one and has been started.
    pub fn incarnation(&self, node: &NodeName) -> Option<Epoch> {
        self.fence(node).map(|(incarnation, _)| incarnation)
    }

    /// Changes to the next incarnation, which is in the database now.
    pub fn begin(&mut self) {
        if let Some(Lease { incarnations, .. }) = &mut self.0 {
            let Incarnations { next, .. } = *incarnations;
            *incarnations = Incarnations { current: Some(next), next: Epoch::new() };
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
