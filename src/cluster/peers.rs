//! Which other nodes there are, by the database, and by what they tell.

use std::{collections::BTreeMap, time::Duration};

use super::{lives::Lives, recent::Recent};
use crate::{
    mirror::store::NodeRow,
    model::{Epoch, Moment, NodeName},
};

/// How often a node that is heard of has to be missing in the database before it is gone.
const PATIENCE: u8 = 2;
/// Nodes that are heard of at most without the database's having named them.
const UNLISTED: usize = 256;

#[derive(Debug)]
struct Peer {
    incarnation: Epoch,
    leaving: bool,
    /// Whether its row has been seen.
    listed: bool,
    /// Whether its lease had run out then.
    expired: bool,
    /// How often it has not been, since it was heard of.
    missing: u8,
    /// Whether another node has said that it removed this one's rows, and that it had stopped in order.
    /// The next survey shows whether that is so.
    buried: Option<bool>,
    /// The numbers of the last messages that it published.
    said: Recent,
    /// The number of its last beat.
    beat: u64,
    /// When a beat was heard last, or the silence began to count.
    heard: Option<Moment>,
    /// Whether that is a lease ago or more, and no beat has been heard since.
    unheard: bool,
}

impl Peer {
    fn new(incarnation: Epoch) -> Self {
        Self {
            incarnation,
            leaving: false,
            listed: false,
            expired: false,
            missing: 0,
            buried: None,
            said: Recent::default(),
            beat: 0,
            heard: None,
            unheard: false,
        }
    }

    /// Whether the database shows it alive, and it is to stay so.
    fn is_listed_alive(&self) -> bool {
        self.listed && !self.expired && !self.leaving
    }
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
    /// It lives, though it was called dead.
    Alive { node: NodeName },
}

/// The other nodes.
#[derive(Debug)]
pub(crate) struct Peers {
    me: NodeName,
    peers: BTreeMap<NodeName, Peer>,
    lives: Lives,
    /// Since when this node has renewed its lease without a failure.
    steady: Option<Moment>,
    /// When silence was judged last.
    judged: Option<Moment>,
}

impl Peers {
    pub fn new(me: NodeName) -> Self {
        Self { me, peers: BTreeMap::new(), lives: Lives::default(), steady: None, judged: None }
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
        if self.lives.is_over(incarnation) {
            return Met::Over;
        }
        if *node == self.me {
            return Met::Known;
        }
        match self.peers.get(node) {
            Some(peer) if peer.incarnation == incarnation => Met::Known,
            Some(_) => {
                self.lives.doubt(incarnation);
                Met::Unsure
            }
            // The bus can name more nodes than there are.
            None if self.peers.values().filter(|peer| !peer.listed).count() >= UNLISTED => {
                Met::Unsure
            }
            None => {
                tracing::debug!(%node, "met a node");
                self.peers.insert(node.clone(), Peer::new(incarnation));
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
    pub fn is_over(&self, incarnation: Epoch) -> bool {
        self.lives.is_over(incarnation)
    }

    /// Whether a message with this number was not heard before.
    pub fn says(&mut self, node: &NodeName, number: u64) -> bool {
        self.peers.get_mut(node).is_some_and(|peer| peer.said.note(number))
    }

    /// A beat was heard. Answers whether its number follows the last one: after any other number
    /// something was missed, or the number before was wrong.
    pub fn beats(&mut self, node: &NodeName, number: u64, now: Moment) -> bool {
        let Some(peer) = self.peers.get_mut(node) else { return false };
        peer.heard = Some(now);
        if std::mem::take(&mut peer.unheard) {
            tracing::info!(%node, "a node is heard on the bus again");
        }
        let last = std::mem::replace(&mut peer.beat, number);
        number == last || last.checked_add(1) == Some(number)
    }

    /// The nodes that live by the database and are not heard on the bus.
    pub fn unheard(&self) -> impl Iterator<Item = &NodeName> {
        let unheard = |(_, peer): &(&NodeName, &Peer)| peer.unheard && peer.is_listed_alive();
        self.peers.iter().filter(unheard).map(|(node, _)| node)
    }

    /// After a survey: nodes of which no beat was heard for a lease are unheard from now on. Answers
    /// those of which that is news.
    pub fn judge_silence(&mut self, lease: Duration, now: Moment) -> Vec<NodeName> {
        // A process that stood still, or had no database, has beats in its mailbox to come.
        let last = self.judged.replace(now);
        let was_away = last.is_none_or(|last| now.since(last) > lease * 2 / 3);
        let mut news = Vec::new();
        for (node, peer) in &mut self.peers {
            if was_away || !peer.is_listed_alive() {
                peer.heard = Some(now);
            }
            let heard = *peer.heard.get_or_insert(now);
            if !peer.unheard && now.since(heard) >= lease {
                peer.unheard = true;
                news.push(node.clone());
            }
        }
        news
    }

    /// This node has heard nobody for a while, which was its own fault: silence counts from now on.
    pub fn forgive_silence(&mut self) {
        for peer in self.peers.values_mut() {
            (peer.heard, peer.unheard) = (None, false);
        }
    }

    /// A node's life is over.
    pub fn bury(&mut self, node: &NodeName, incarnation: Epoch) {
        self.lives.end(incarnation);
        if self.peers.get(node).is_some_and(|peer| peer.incarnation == incarnation) {
            self.peers.remove(node);
        }
    }

    /// Another node says that this life is over: the next survey shows whether it is.
    pub fn is_said_to_be_buried(&mut self, node: &NodeName, incarnation: Epoch, leaving: bool) {
        self.lives.doubt(incarnation);
        if let Some(peer) = self.peers.get_mut(node)
            && peer.incarnation == incarnation
        {
            peer.buried = Some(leaving);
        }
    }

    /// The database is asked about all nodes.
    pub fn ask(&mut self) {
        self.lives.ask();
    }

    /// Takes what the database says of all nodes.
    pub fn survey(&mut self, rows: &[NodeRow]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let others: Vec<_> = rows.iter().filter(|row| row.node != self.me).collect();
        for row in &others {
            self.survey_one(row, &mut findings);
        }
        self.lives.settle(|life| rows.iter().any(|row| row.incarnation == life));
        let mut gone = Vec::new();
        for (node, peer) in &mut self.peers {
            if others.iter().any(|row| row.node == *node) {
                continue;
            }
            peer.missing += 1;
            if peer.listed || peer.buried.is_some() || peer.missing >= PATIENCE {
                let leaving = peer.leaving || peer.buried == Some(true);
                gone.push((node.clone(), peer.incarnation, leaving));
            }
        }
        for (node, incarnation, leaving) in gone {
            self.bury(&node, incarnation);
            findings.push(Finding::Gone { node, leaving });
        }
        findings
    }

    fn survey_one(&mut self, row: &NodeRow, findings: &mut Vec<Finding>) {
        let NodeRow { node, incarnation, expired, leaving, .. } = row;
        let (node, incarnation) = (node, *incarnation);
        if self.lives.is_over(incarnation) {
            if *expired || !self.lives.revive(incarnation) {
                return;
            }
            findings.push(Finding::Alive { node: node.clone() });
        }
        let before = self.peers.get(node).filter(|peer| peer.incarnation != incarnation);
        let silence = before.map(|before| (before.incarnation, before.heard, before.unheard));
        if let Some((before, ..)) = silence {
            self.bury(node, before);
            findings.push(Finding::Reborn);
        }
        let peer = self.peers.entry(node.clone()).or_insert_with(|| Peer::new(incarnation));
        if let Some((_, heard, unheard)) = silence {
            (peer.heard, peer.unheard) = (heard, unheard);
        }
        if !std::mem::replace(&mut peer.listed, true) {
            tracing::info!(%node, "met a node");
        }
        (peer.leaving, peer.expired, peer.buried) = (*leaving, *expired, None);
        if *expired {
            findings.push(Finding::Expired { node: node.clone(), incarnation });
        }
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
