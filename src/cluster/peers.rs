//! Which other nodes there are, by the database, and by what they tell.

use std::{collections::BTreeMap, time::Duration};

use super::{lives::Lives, recent::Recent, silence::Silence};
use crate::{
    model::{Cause, Epoch, Moment, NodeName},
    store::NodeRow,
};

/// How often a node that is heard of has to be missing in the database before it is gone.
const PATIENCE: u8 = 2;
/// Nodes that are heard of at most without the database's having named them.
const UNLISTED: usize = 256;

#[derive(Debug)]
pub(super) struct Peer {
    incarnation: Epoch,
    /// Whether its row says that it has stopped in order.
    leaving: bool,
    /// As its own word that it stops, for so many more surveys that do not show it.
    stopping: u8,
    /// Whether its row has been seen.
    pub listed: bool,
    /// Whether it was reported that it is there, and that it has left.
    met: bool,
    parted: bool,
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
    pub silence: Silence,
}

impl Peer {
    fn new(incarnation: Epoch) -> Self {
        Self {
            incarnation,
            leaving: false,
            stopping: 0,
            listed: false,
            met: false,
            parted: false,
            expired: false,
            missing: 0,
            buried: None,
            said: Recent::default(),
            beat: 0,
            silence: Silence::default(),
        }
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving || self.stopping > 0
    }

    /// Whether it has stopped in order, now that it is over.
    fn has_stopped(&self) -> bool {
        self.is_leaving() || self.buried == Some(true)
    }

    /// Whether the database shows it alive, and it is to stay so.
    pub fn is_listed_alive(&self) -> bool {
        self.listed && !self.expired && !self.is_leaving()
    }

    /// Its life is over: what is to be reported of that.
    fn last_news(&self, node: &NodeName) -> Option<Finding> {
        match self.has_stopped() {
            _ if !self.listed || self.parted => None,
            true => Some(Finding::Left { node: node.clone() }),
            false => Some(Finding::Died { node: node.clone() }),
        }
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
    /// News: it is there, or there again under its name.
    Met { node: NodeName, again: bool },
    /// News: it has stopped in order.
    Left { node: NodeName },
    /// News: it has ended without a word.
    Died { node: NodeName },
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
    pub(super) peers: BTreeMap<NodeName, Peer>,
    lives: Lives,
    /// Since when this node has renewed its lease without a failure or a pause, and when it did last.
    steady: Option<Moment>,
    renewed: Option<Moment>,
    /// When the silence of others was looked at last, and when a survey said who lives.
    pub(super) listened: Option<Moment>,
    pub(super) surveyed: Option<Moment>,
}

impl Peers {
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            peers: BTreeMap::new(),
            lives: Lives::default(),
            steady: None,
            renewed: None,
            listened: None,
            surveyed: None,
        }
    }

    /// How many other nodes live and stay.
    pub fn alive(&self) -> usize {
        self.peers.values().filter(|peer| !peer.is_leaving()).count()
    }

    /// Whether the node lives, as far as is known.
    pub fn is_alive(&self, node: &NodeName) -> bool {
        self.peers.contains_key(node)
    }

    /// Why a presence of the node ended that has no row any more, where no message said why.
    pub fn cause_of_absence(&self, node: &NodeName) -> Cause {
        match self.peers.get(node) {
            Some(peer) if peer.is_leaving() => Cause::Shutdown,
            Some(_) => Cause::Disconnected,
            None => Cause::NodeLost,
        }
    }

    /// Notes how a renewal of this node's own lease went.
    pub fn renewed(&mut self, held: bool, lease: Duration, now: Moment) {
        let last = self.renewed.replace(now);
        // A database that stood still has let all leases run out, without any failure.
        let paused = last.is_some_and(|last| now.since(last) >= lease);
        self.steady = match self.steady.filter(|_| !paused) {
            since if held => since.or(Some(now)),
            _ => None,
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
        self.is_heard(node, now);
        let Some(peer) = self.peers.get_mut(node) else { return false };
        let last = std::mem::replace(&mut peer.beat, number);
        number == last || last.checked_add(1) == Some(number)
    }

    /// A beat was heard, perhaps of a life that the database has not confirmed yet.
    pub fn is_heard(&mut self, node: &NodeName, now: Moment) {
        if self.peers.get_mut(node).is_some_and(|peer| peer.silence.end(now)) {
            tracing::info!(%node, "a node is heard on the bus again");
        }
    }

    /// The node says that it stops. Answers whether that is news; the database has the last word.
    pub fn says_that_it_stops(&mut self, node: &NodeName) -> bool {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.listed) else { return false };
        peer.stopping = PATIENCE;
        !std::mem::replace(&mut peer.parted, true)
    }

    /// A node's life is over. Answers what is to be reported of that, if it has not been.
    pub fn bury(&mut self, node: &NodeName, incarnation: Epoch) -> Option<Finding> {
        let known = self.peers.get(node).is_some_and(|peer| peer.incarnation == incarnation);
        let peer = known.then(|| self.peers.remove(node)).flatten();
        self.lives.end(incarnation, peer.as_ref().is_some_and(Peer::has_stopped));
        peer?.last_news(node)
    }

    /// Whether that life of the node is over or, as far as is known, about to be, and had stopped in
    /// order.
    pub fn has_stopped(&self, node: &NodeName, incarnation: Epoch) -> bool {
        match self.peers.get(node).filter(|peer| peer.incarnation == incarnation) {
            Some(peer) => peer.has_stopped(),
            None => self.lives.has_stopped(incarnation),
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
                gone.push((node.clone(), peer.incarnation, peer.has_stopped()));
            }
        }
        for (node, incarnation, leaving) in gone {
            findings.extend(self.bury(&node, incarnation));
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
        let before = before.map(|peer| (peer.incarnation, peer.silence, peer.listed));
        if let Some((before, ..)) = before {
            findings.extend(self.bury(node, before));
            findings.push(Finding::Reborn);
        }
        let peer = self.peers.entry(node.clone()).or_insert_with(|| Peer::new(incarnation));
        let mut again = false;
        if let Some((_, silence, listed)) = before {
            (peer.silence, again) = (silence, listed);
        }
        let is_new = !std::mem::replace(&mut peer.listed, true);
        (peer.leaving, peer.expired, peer.buried) = (*leaving, *expired, None);
        if !leaving && peer.stopping > 0 {
            peer.stopping -= 1;
            // It has not stopped, whoever said so.
            peer.parted = peer.stopping > 0;
        }
        if !leaving && !expired && !std::mem::replace(&mut peer.met, true) {
            findings.push(Finding::Met { node: node.clone(), again });
        }
        // Of one that had stopped before it was met, there is nothing to report.
        if *leaving && !std::mem::replace(&mut peer.parted, true) && !is_new {
            findings.push(Finding::Left { node: node.clone() });
        }
        if *expired {
            findings.push(Finding::Expired { node: node.clone(), incarnation });
        }
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
