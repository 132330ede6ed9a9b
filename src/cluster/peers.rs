//! Which other nodes there are, by the database, and by what they tell.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    mirror::store::NodeRow,
    model::{Epoch, Moment, NodeName},
};

/// Lives that are over, of which something may still be heard.
const RETIRED: usize = 1024;
/// How often a node that is heard of has to be missing in the database before it is gone.
const PATIENCE: u8 = 2;

#[derive(Debug)]
struct Peer {
    incarnation: Epoch,
    leaving: bool,
    /// Whether its row has been seen.
    listed: bool,
    /// How often it has not been, since it was heard of.
    missing: u8,
    /// The number of the last thing that it published.
    said: u64,
    /// That of its last beat; none if some were missed and made up for.
    beat: Option<u64>,
}

/// Whether something of a node is to be listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// Yes.
    Known,
    /// Yes, for the first time.
    New,
    /// Not yet: it is another life than is known, later or earlier, which the database knows.
    Unsure,
    /// No: that life of it is over.
    Over,
}

/// What the database says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is gone, with its rows.
    Gone { node: NodeName, leaving: bool },
    /// Its lease has run out.
    Expired { node: NodeName, incarnation: Epoch },
    /// One has begun another life, and what is known of it is of the one before.
    Reborn,
}

/// The other nodes.
#[derive(Debug)]
pub(crate) struct Peers {
    me: NodeName,
    peers: BTreeMap<NodeName, Peer>,
    retired: VecDeque<Epoch>,
    /// Lives that were heard of and that the database has to confirm: those of before the survey that
    /// is under way, and those of since.
    asked: Vec<Epoch>,
    doubtful: Vec<Epoch>,
    /// Since when this node has renewed its lease without a failure.
    steady: Option<Moment>,
}

impl Peers {
    pub fn new(me: NodeName) -> Self {
        let (peers, retired) = (BTreeMap::new(), VecDeque::new());
        let (asked, doubtful) = (Vec::new(), Vec::new());
        Self { me, peers, retired, asked, doubtful, steady: None }
    }

    /// How many other nodes live and stay.
    pub fn alive(&self) -> usize {
        self.peers.values().filter(|peer| !peer.leaving).count()
    }

    /// Whether the node lives, as far as is known.
    pub fn is_alive(&self, node: &NodeName) -> bool {
        self.peers.contains_key(node)
    }

    /// Notes how a renewal of this node's own lease went.
    pub fn renewed(&mut self, held: bool, now: Moment) {
        self.steady = match (held, self.steady) {
            (false, _) => None,
            (true, since) => since.or(Some(now)),
        };
    }

    /// Whether this node has been in touch with the database for so long that it may judge others:
    /// who was away itself would call everybody dead.
    pub fn may_judge(&self, lease: Duration, now: Moment) -> bool {
        self.steady.is_some_and(|since| now.since(since) >= lease)
    }

    /// Something was heard of a node.
    pub fn meet(&mut self, node: &NodeName, incarnation: Epoch) -> Met {
        if self.is_retired(incarnation) {
            return Met::Over;
        }
        if *node == self.me {
            return Met::Known;
        }
        let (leaving, listed, missing, said, beat) = (false, false, 0, 0, Some(0));
        match self.peers.get(node) {
            Some(peer) if peer.incarnation == incarnation => Met::Known,
            Some(_) => {
                let known = |doubtful: &[Epoch]| doubtful.contains(&incarnation);
                if !known(&self.doubtful) && !known(&self.asked) && self.doubtful.len() < RETIRED {
                    self.doubtful.push(incarnation);
                }
                Met::Unsure
            }
            None => {
                tracing::info!(%node, "met a node");
                let new = Peer { incarnation, leaving, listed, missing, said, beat };
                self.peers.insert(node.clone(), new);
                Met::New
            }
        }
    }

    /// Somebody's row was seen beside what it is about.
    pub fn meet_row(&mut self, row: &NodeRow) -> Met {
        let met = self.meet(&row.node, row.incarnation);
        if let (Met::New | Met::Known, Some(peer)) = (met, self.peers.get_mut(&row.node)) {
            peer.leaving |= row.leaving;
        }
        met
    }

    /// Whether that life of some node is over.
    pub fn is_retired(&self, incarnation: Epoch) -> bool {
        self.retired.contains(&incarnation)
    }

    fn retire(&mut self, incarnation: Epoch) {
        if self.retired.len() >= RETIRED {
            self.retired.pop_front();
        }
        self.retired.push_back(incarnation);
    }

    /// Whether a message with this number was not heard before.
    pub fn says(&mut self, node: &NodeName, number: u64) -> bool {
        let Some(peer) = self.peers.get_mut(node) else { return false };
        let new = number > peer.said;
        peer.said = peer.said.max(number);
        new
    }

    /// Whether a beat with this number follows the last one that was heard.
    pub fn beats(&mut self, node: &NodeName, number: u64) -> bool {
        let Some(peer) = self.peers.get_mut(node) else { return false };
        let last = peer.beat;
        peer.beat = Some(last.map_or(number, |last| last.max(number)));
        last.is_none_or(|last| number <= last.saturating_add(1))
    }

    /// Everything that was missed so far is made up for.
    pub fn forgive_beats(&mut self) {
        for peer in self.peers.values_mut() {
            peer.beat = None;
        }
    }

    /// A node's life is over. Answers whether it was known in that one.
    pub fn bury(&mut self, node: &NodeName, incarnation: Epoch) -> bool {
        if !self.is_retired(incarnation) {
            self.retire(incarnation);
        }
        match self.peers.get(node) {
            Some(peer) if peer.incarnation == incarnation => {
                self.peers.remove(node);
                true
            }
            _ => false,
        }
    }

    /// The database is asked about all nodes.
    pub fn ask(&mut self) {
        self.asked.append(&mut self.doubtful);
    }

    /// Takes what the database says of all nodes.
    pub fn survey(&mut self, rows: &[NodeRow]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let others = || rows.iter().filter(|row| row.node != self.me);
        let others: Vec<_> = others().collect();
        for row in &others {
            let NodeRow { node, incarnation, expired, leaving, .. } = row;
            match self.meet(node, *incarnation) {
                Met::Over => continue,
                Met::Unsure => {
                    if let Some(before) = self.peers.remove(node) {
                        self.retire(before.incarnation);
                    }
                    self.meet(node, *incarnation);
                    findings.push(Finding::Reborn);
                }
                Met::New | Met::Known => {}
            }
            if let Some(peer) = self.peers.get_mut(node) {
                (peer.listed, peer.leaving) = (true, *leaving);
            }
            if *expired {
                let (node, incarnation) = (node.clone(), *incarnation);
                findings.push(Finding::Expired { node, incarnation });
            }
        }
        for doubtful in std::mem::take(&mut self.asked) {
            if !rows.iter().any(|row| row.incarnation == doubtful) && !self.is_retired(doubtful) {
                self.retire(doubtful);
            }
        }
        let mut gone = Vec::new();
        for (node, peer) in &mut self.peers {
            if others.iter().any(|row| row.node == *node) {
                continue;
            }
            peer.missing += 1;
            if peer.listed || peer.missing >= PATIENCE {
                gone.push((node.clone(), peer.incarnation, peer.leaving));
            }
        }
        for (node, incarnation, leaving) in gone {
            self.bury(&node, incarnation);
            findings.push(Finding::Gone { node, leaving });
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn row(name: &str, incarnation: Epoch) -> NodeRow {
        let (node, head, expired, leaving) = (node(name), 0, false, false);
        NodeRow { node, incarnation, head, expired, leaving }
    }

    fn peers() -> Peers {
        Peers::new(node("me"))
    }

    #[test]
    fn which_of_two_lives_is_the_later_one_only_the_database_knows() {
        let (mut peers, [old, new]) = (peers(), [Epoch::new(), Epoch::new()]);
        assert_eq!(peers.meet(&node("n"), new), Met::New);
        assert_eq!(peers.meet(&node("n"), old), Met::Unsure, "something late, or a new life");
        peers.ask();
        assert_eq!(peers.survey(&[row("n", new)]), []);
        assert_eq!(peers.meet(&node("n"), old), Met::Over);

        let later = Epoch::new();
        assert_eq!(peers.meet(&node("n"), later), Met::Unsure);
        assert_eq!(peers.survey(&[row("n", later)]), [Finding::Reborn]);
        assert_eq!(peers.meet(&node("n"), new), Met::Over);
        assert_eq!(peers.meet(&node("n"), later), Met::Known);
    }

    #[test]
    fn a_life_that_was_heard_of_during_a_survey_is_not_judged_by_it() {
        let (mut peers, [first, second]) = (peers(), [Epoch::new(), Epoch::new()]);
        peers.meet(&node("n"), first);
        peers.ask();
        assert_eq!(peers.meet(&node("n"), second), Met::Unsure);
        assert_eq!(peers.survey(&[row("n", first)]), []);
        assert_eq!(peers.meet(&node("n"), second), Met::Unsure);
    }

    #[test]
    fn a_node_is_gone_when_its_row_is_and_one_that_was_never_listed_a_little_later() {
        let (mut peers, [a, b]) = (peers(), [Epoch::new(), Epoch::new()]);
        assert_eq!(peers.survey(&[row("a", a), row("me", Epoch::new())]), []);
        peers.meet(&node("b"), b);
        let gone = |name| Finding::Gone { node: node(name), leaving: false };
        assert_eq!(peers.survey(&[]), [gone("a")]);
        assert_eq!(peers.survey(&[]), [gone("b")]);
        assert_eq!((peers.meet(&node("a"), a), peers.alive()), (Met::Over, 0));
    }

    #[test]
    fn who_was_not_in_touch_with_the_database_for_a_whole_lease_judges_nobody() {
        let at = |secs: u64| Moment { monotonic: secs * 1_000_000, wall: 0 };
        let (mut peers, lease) = (peers(), Duration::from_secs(15));
        for (secs, renewed, may) in [
            (0, true, false),
            (14, true, false),
            (15, true, true),
            (16, false, false),
            (31, true, false),
        ] {
            peers.renewed(renewed, at(secs));
            assert_eq!(peers.may_judge(lease, at(secs)), may, "at {secs} s");
        }
    }

    #[test]
    fn what_is_said_twice_is_heard_once_and_a_missing_beat_is_noticed() {
        let (mut peers, life) = (peers(), Epoch::new());
        peers.meet(&node("n"), life);
        assert_eq!(
            [1, 1, 3, 2, 4].map(|number| peers.says(&node("n"), number)),
            [true, false, true, false, true]
        );
        assert_eq!(
            [1, 2, 2, 4].map(|number| peers.beats(&node("n"), number)),
            [true, true, true, false]
        );
    }
}
