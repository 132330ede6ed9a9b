//! Under which name a store writes into a database that others share, and in which life.

use std::time::Duration;

use crate::model::{Epoch, NodeName};

/// A node as its own store knows it.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    node: NodeName,
    lease: Duration,
    /// The incarnation it writes in; none before it was started or renewed.
    incarnation: Option<Epoch>,
    /// The one it writes in next. Chosen before the database is asked, and kept until it has answered:
    /// so a node whose answer was lost finds its own row, and not another's.
    next: Epoch,
}

impl Life {
    /// The node's life so far if it is the same node, else a new one.
    pub(crate) fn of(known: Option<&Self>, node: &NodeName, lease: Duration) -> Self {
        match known {
            Some(known) if known.node == *node => Self { lease, ..known.clone() },
            _ => Self { node: node.clone(), lease, incarnation: None, next: Epoch::new() },
        }
    }

    /// The incarnation and the lease of the node, if it is this one and has been started.
    pub(crate) fn fence(known: Option<&Self>, node: &NodeName) -> Option<(Epoch, Duration)> {
        let life = known.filter(|life| life.node == *node)?;
        Some((life.incarnation?, life.lease))
    }

    pub(crate) fn node(&self) -> &NodeName {
        &self.node
    }

    pub(crate) fn incarnation(&self) -> Option<Epoch> {
        self.incarnation
    }

    pub(crate) fn next(&self) -> Epoch {
        self.next
    }

    /// Goes on in the next incarnation, which the database has now.
    pub(crate) fn begin(&mut self) -> Epoch {
        let begun = std::mem::replace(&mut self.next, Epoch::new());
        self.incarnation = Some(begun);
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_incarnation_stays_until_it_has_begun() {
        let (node, other) = (NodeName::new("n").unwrap(), NodeName::new("m").unwrap());
        let lease = Duration::from_secs(15);
        let mut life = Life::of(None, &node, lease);
        assert_eq!(Life::fence(Some(&life), &node), None, "not started");
        let again = Life::of(Some(&life), &node, lease);
        assert_eq!(again.next(), life.next());
        let begun = life.begin();
        assert_eq!(begun, again.next());
        assert_ne!(begun, life.next());
        assert_eq!(Life::fence(Some(&life), &node), Some((begun, lease)));
        assert_eq!(Life::fence(Some(&life), &other), None);
        assert_eq!(Life::of(Some(&life), &other, lease).incarnation(), None);
    }
}
