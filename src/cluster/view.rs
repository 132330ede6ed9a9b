//! How much this node knows of one room on the others.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::{
    bus::RoomChanges,
    model::{Epoch, NodeName},
    store::NodeRow,
};

/// How many changes are held back at most while a room is read.
const MAX_HELD: usize = 1024;

/// Whether a room's rows are to be read.
#[derive(Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    No,
    /// They wait for it.
    Queued,
    /// They are being read.
    Now,
    /// They are, and have to be again.
    NowAndAgain,
}

/// What to do with changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Take them into the room.
    Take,
    /// Nothing: they are in it.
    Known,
    /// Wait for the rows.
    Later,
    /// Others before them were missed: read the rows.
    Missed,
}

/// One room as it is on the other nodes.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Whether its rows have been read: what they said is known, and what came after.
    complete: bool,
    reading: Reading,
    /// The nodes when the rows were read, with the batches that were in them.
    read: Option<Arc<[NodeRow]>>,
    /// The batches heard of since.
    heads: SmallVec<[(NodeName, Epoch, u64); 1]>,
    /// What came while the rows were read.
    held: Vec<(NodeName, Epoch, RoomChanges)>,
    /// Until when it is followed without members here.
    pub until: u64,
    /// Whether it waits for that.
    pub lingers: bool,
}

impl View {
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The number of the last batch of a node that is known here; 0 is none.
    pub fn head(&self, node: &NodeName, incarnation: Epoch) -> u64 {
        let heard = self.heads.iter().find(|(n, e, _)| n == node && *e == incarnation);
        if let Some((_, _, head)) = heard {
            return *head;
        }
        let mut read = self.read.iter().flat_map(|read| read.iter());
        let row = read.find(|row| row.node == *node && row.incarnation == incarnation);
        row.map_or(0, |row| row.head)
    }

    /// The incarnation that a node had when the rows were read.
    pub fn incarnation(&self, node: &NodeName) -> Option<Epoch> {
        let mut read = self.read.iter().flat_map(|read| read.iter());
        read.find(|row| row.node == *node).map(|row| row.incarnation)
    }

    /// Whether this is the number of the last batch of a node that had the room, as far as is known:
    /// rows may be of a later one that had not.
    pub fn is_at(&self, node: &NodeName, incarnation: Epoch, number: u64) -> bool {
        let heard = self.heads.iter().find(|(n, e, _)| n == node && *e == incarnation);
        match heard {
            Some((_, _, heard)) => *heard == number,
            None => self.head(node, incarnation) >= number,
        }
    }

    /// A node goes on in a new incarnation, with the batches of the one before.
    pub fn continues(&mut self, node: &NodeName, before: Epoch, incarnation: Epoch) {
        let head = self.head(node, before);
        self.heads.retain(|(known, _, _)| known != node);
        if head > 0 {
            self.heads.push((node.clone(), incarnation, head));
        }
        for (_, epoch, _) in self.held.iter_mut().filter(|(of, ..)| of == node) {
            if *epoch == before {
                *epoch = incarnation;
            }
        }
    }

    /// What to do with changes; those to be taken count as known.
    pub fn judge(&mut self, node: &NodeName, incarnation: Epoch, changes: &RoomChanges) -> Verdict {
        if !self.complete || matches!(self.reading, Reading::Now | Reading::NowAndAgain) {
            return Verdict::Later;
        }
        let head = self.head(node, incarnation);
        if changes.number <= head {
            return Verdict::Known;
        }
        if changes.previous > head {
            return Verdict::Missed;
        }
        self.heads.retain(|(known, _, _)| known != node);
        self.heads.push((node.clone(), incarnation, changes.number));
        Verdict::Take
    }

    /// Keeps changes until the rows are read; too many, and the rows are read again after that.
    pub fn hold(&mut self, node: NodeName, incarnation: Epoch, changes: RoomChanges) {
        if self.held.len() < MAX_HELD {
            self.held.push((node, incarnation, changes));
        } else if self.reading == Reading::Now {
            self.reading = Reading::NowAndAgain;
        }
    }

    /// The rows are to be read; whether the room has to be put into the queue for that.
    pub fn wants_reading(&mut self) -> bool {
        match self.reading {
            Reading::No => {
                self.reading = Reading::Queued;
                true
            }
            Reading::Now => {
                self.reading = Reading::NowAndAgain;
                false
            }
            Reading::Queued | Reading::NowAndAgain => false,
        }
    }

    /// The rows are being read, if they wait for it.
    pub fn reads(&mut self) -> bool {
        let waited = self.reading == Reading::Queued;
        if waited {
            self.reading = Reading::Now;
        }
        waited
    }

    /// The rows were read. Answers what came meanwhile, and whether they have to be read again.
    pub fn was_read(
        &mut self,
        nodes: &Arc<[NodeRow]>,
    ) -> (Vec<(NodeName, Epoch, RoomChanges)>, bool) {
        let again = std::mem::take(&mut self.reading) == Reading::NowAndAgain;
        self.complete = true;
        self.read = Some(Arc::clone(nodes));
        self.heads.clear();
        (std::mem::take(&mut self.held), again)
    }

    /// The rows could not be read.
    pub fn was_not_read(&mut self) {
        self.reading = Reading::No;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RoomName;

    fn changes(number: u64, previous: u64) -> RoomChanges {
        RoomChanges { room: RoomName::new("lobby").unwrap(), number, previous, changes: Vec::new() }
    }

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    /// A view that was read when the node had committed so many batches.
    fn read(incarnation: Epoch, head: u64) -> View {
        let (node, expired, leaving) = (node("n"), false, false);
        let row = NodeRow { node, incarnation, head, expired, leaving };
        let mut view = View::default();
        assert!(view.wants_reading());
        assert!(view.reads());
        assert_eq!(view.was_read(&Arc::from([row])), (Vec::new(), false));
        view
    }

    #[test]
    fn what_the_rows_have_is_known_what_follows_is_taken_and_a_gap_is_seen() {
        let life = Epoch::new();
        let mut view = read(life, 5);
        let mut judge = |number, previous| view.judge(&node("n"), life, &changes(number, previous));
        assert_eq!(judge(5, 3), Verdict::Known);
        assert_eq!(judge(7, 4), Verdict::Take);
        assert_eq!(judge(7, 4), Verdict::Known, "twice");
        assert_eq!(judge(9, 8), Verdict::Missed);
        assert_eq!(judge(9, 7), Verdict::Take);
        // Another incarnation of the node begins from nothing.
        assert_eq!(view.judge(&node("n"), Epoch::new(), &changes(1, 0)), Verdict::Take);
        assert_eq!(view.judge(&node("m"), Epoch::new(), &changes(2, 1)), Verdict::Missed);
    }

    #[test]
    fn a_number_that_is_higher_than_the_node_says_is_seen_as_one_that_is_lower() {
        let life = Epoch::new();
        let mut view = read(life, 5);
        let is_at = |view: &View, number| view.is_at(&node("n"), life, number);
        assert!(is_at(&view, 3) && is_at(&view, 5) && !is_at(&view, 6));
        assert_eq!(view.judge(&node("n"), life, &changes(7, 4)), Verdict::Take);
        assert!(is_at(&view, 7) && !is_at(&view, 8) && !is_at(&view, 6));
    }

    #[test]
    fn what_comes_while_the_rows_are_read_waits_and_too_much_has_them_read_again() {
        let life = Epoch::new();
        let mut view = View::default();
        assert_eq!(view.judge(&node("n"), life, &changes(1, 0)), Verdict::Later);
        assert!(view.wants_reading() && !view.wants_reading());
        assert!(view.reads());
        for number in 0..=MAX_HELD as u64 {
            view.hold(node("n"), life, changes(number, 0));
        }
        let (held, again) = view.was_read(&Arc::from([]));
        assert_eq!((held.len(), again), (MAX_HELD, true));
        assert!(view.is_complete());
    }
}
