//! Which other nodes there are, by the database and by what they publish.

use std::{collections::BTreeMap, time::Duration};

use super::{numbers::KnownIncarnations, silence::Silence};
use crate::{
    model::{Cause, Epoch, Moment, NodeName},
    store::NodeRow,
};

/// After how many surveys without it a node that only the bus has named is removed.
const MAX_MISSING: u8 = 2;
/// For how many surveys that do not confirm it a node counts as stopping after it said so.
const MAX_UNCONFIRMED_STOP: u8 = 2;
/// The largest number of nodes that only the bus has named.
const MAX_UNLISTED: usize = 256;
#[derive(Debug)]
pub(super) struct Peer {
    incarnation: Epoch,
    /// Whether its row says that it has stopped in order.
    leaving: bool,
    /// For how many more unconfirming surveys it counts as stopping because it said so.
    stopping: u8,
    /// Whether its row has been seen.
    pub listed: bool,
    /// Whether it was reported that it has joined, and that it has left.
    join_reported: bool,
    left_reported: bool,
    /// Whether its lease had run out by its row.
    expired: bool,
    /// In how many surveys it was missing.
    missing: u8,
    /// Whether another node has said that it removed this one's rows, and that it had stopped in order.
    /// The next survey shows whether that is so.
    reaped: Option<bool>,
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
            join_reported: false,
            left_reported: false,
            expired: false,
            missing: 0,
            reaped: None,
            beat: 0,
            silence: Silence::default(),
        }
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving || self.stopping > 0
    }

    /// Whether it has stopped in order, now that it is over.
    fn has_stopped(&self) -> bool {
        self.is_leaving() || self.reaped == Some(true)
    }

    /// Whether the database shows it alive, and it is to stay so.
    pub fn is_listed_alive(&self) -> bool {
        self.listed && !self.expired && !self.is_leaving()
    }

    /// The event to log now that it is over.
    fn last_event(&self, node: &NodeName) -> Option<NodeEvent> {
        match self.has_stopped() {
            _ if !self.listed || self.left_reported => None,
            true => Some(NodeEvent::Left { node: node.clone() }),
            false => Some(NodeEvent::Died { node: node.clone() }),
        }
    }
}

/// Whether something of a node is to be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SenderStatus {
    /// Yes.
    Known,
    /// Yes, for the first time.
    New,
    /// Not yet: it is of another incarnation than is known, and only the database knows which is later.
    Unconfirmed,
    /// No: that incarnation of it is over.
    Ended,
}

/// What the database says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeEvent {
    /// To log: it is there, or there again under its name.
    Joined { node: NodeName, again: bool },
    /// To log: it has stopped in order.
    Left { node: NodeName },
    /// To log: it has ended without having stopped in order.
    Died { node: NodeName },
    /// Its row has been removed, and with it its presences.
    Gone { node: NodeName, leaving: bool },
    /// Its lease has run out.
    Expired { node: NodeName, incarnation: Epoch },
    /// One has started again, and what is known of it is of the incarnation before.
    Restarted,
    /// It lives, though it was taken for dead.
    Recovered { node: NodeName },
}

impl NodeEvent {
    /// One line for each arrival, each orderly leave and each death.
    pub fn log(&self) {
        match self {
            Self::Joined { node, again: false } => tracing::info!(%node, "met a node"),
            Self::Joined { node, again: true } => {
                tracing::info!(%node, "a node has come back under its name");
            }
            Self::Left { node } => tracing::info!(%node, "a node has left"),
            Self::Died { node } => tracing::warn!(%node, "a node has died: its presences end"),
            Self::Recovered { node } => {
                tracing::debug!(%node, "a node that was declared dead is alive by the database");
            }
            Self::Gone { .. } | Self::Expired { .. } | Self::Restarted => {}
        }
    }
}

/// The other nodes.
#[derive(Debug)]
pub(crate) struct Peers {
    me: NodeName,
    pub(super) peers: BTreeMap<NodeName, Peer>,
    incarnations: KnownIncarnations,
    /// Since when this node has renewed its lease without a failure or a pause, and when it did last.
    steady: Option<Moment>,
    renewed: Option<Moment>,
    /// When the silence of others was last looked at, and when the last survey was.
    pub(super) listened: Option<Moment>,
    pub(super) surveyed: Option<Moment>,
}

impl Peers {
    pub fn new(me: NodeName) -> Self {
        Self {
            me,
            peers: BTreeMap::new(),
            incarnations: KnownIncarnations::default(),
            steady: None,
            renewed: None,
            listened: None,
            surveyed: None,
        }
    }

    /// Whether the database knows other nodes that have not stopped.
    pub fn has_others(&self) -> bool {
        self.peers.values().any(|peer| !peer.leaving)
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
    /// one that was away itself would take all of them for dead.
    pub fn may_judge(&self, lease: Duration, now: Moment) -> bool {
        self.steady.is_some_and(|since| now.since(since) >= lease)
    }

    /// Whether something that was received from a node is to be taken in.
    pub fn status_of(&mut self, node: &NodeName, incarnation: Epoch) -> SenderStatus {
        if self.incarnations.is_over(incarnation) {
            return SenderStatus::Ended;
        }
        if *node == self.me {
            return SenderStatus::Known;
        }
        match self.peers.get(node) {
            Some(peer) if peer.incarnation == incarnation => SenderStatus::Known,
            Some(_) => {
                self.incarnations.doubt(incarnation);
                SenderStatus::Unconfirmed
            }
            // The bus can name more nodes than there are.
            None if self.peers.values().filter(|peer| !peer.listed).count() >= MAX_UNLISTED => {
                SenderStatus::Unconfirmed
            }
            None => {
                self.peers.insert(node.clone(), Peer::new(incarnation));
                SenderStatus::New
            }
        }
    }

    /// Whether the database has shown the node in the incarnation that is known.
    pub fn is_listed(&self, node: &NodeName) -> bool {
        self.peers.get(node).is_some_and(|peer| peer.listed)
    }

    /// As [`status_of`](Self::status_of), of a node whose row was read.
    pub fn row_status(&mut self, row: &NodeRow) -> SenderStatus {
        let status = self.status_of(&row.node, row.incarnation);
        if let (SenderStatus::New | SenderStatus::Known, Some(peer)) =
            (status, self.peers.get_mut(&row.node))
        {
            peer.leaving |= row.leaving;
        }
        status
    }

    /// Whether that incarnation of some node is over.
    pub fn is_over(&self, incarnation: Epoch) -> bool {
        self.incarnations.is_over(incarnation)
    }

    /// A beat was heard. Answers whether its number follows the last one: after any other number a beat was
    /// missed.
    pub fn beats(&mut self, node: &NodeName, number: u64, now: Moment) -> bool {
        self.is_heard(node, now);
        let Some(peer) = self.peers.get_mut(node) else { return false };
        let last = std::mem::replace(&mut peer.beat, number);
        last.checked_add(1) == Some(number)
    }

    /// A beat was heard, perhaps of an incarnation that the database has not confirmed yet.
    pub fn is_heard(&mut self, node: &NodeName, now: Moment) {
        if self.peers.get_mut(node).is_some_and(|peer| peer.silence.end(now)) {
            tracing::info!(%node, "a node is heard on the bus again");
        }
    }

    /// The node says that it stops. Answers whether that was not known; the database has the last word.
    pub fn says_that_it_stops(&mut self, node: &NodeName) -> bool {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.listed) else { return false };
        peer.stopping = MAX_UNCONFIRMED_STOP;
        !std::mem::replace(&mut peer.left_reported, true)
    }

    /// An incarnation of a node is over. Answers what is to be reported of that, if it has not been.
    pub fn end(&mut self, node: &NodeName, incarnation: Epoch) -> Option<NodeEvent> {
        let known = self.peers.get(node).is_some_and(|peer| peer.incarnation == incarnation);
        let peer = known.then(|| self.peers.remove(node)).flatten();
        self.incarnations.end(incarnation, peer.as_ref().is_some_and(Peer::has_stopped));
        peer?.last_event(node)
    }

    /// A node goes on in a new incarnation. Answers whether it was known in the one before, which is over.
    pub fn continues(&mut self, node: &NodeName, before: Epoch, incarnation: Epoch) -> bool {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.incarnation == before) else {
            return false;
        };
        peer.incarnation = incarnation;
        self.incarnations.continues(before, incarnation);
        true
    }

    /// The incarnation in which this one goes on, or itself.
    pub fn latest(&self, incarnation: Epoch) -> Epoch {
        self.incarnations.latest(incarnation)
    }

    /// Whether that incarnation of the node is over or, as far as is known, about to be, and had stopped in
    /// order.
    pub fn has_stopped(&self, node: &NodeName, incarnation: Epoch) -> bool {
        match self.peers.get(node).filter(|peer| peer.incarnation == incarnation) {
            Some(peer) => peer.has_stopped(),
            None => self.incarnations.has_stopped(incarnation),
        }
    }

    /// Another node says that this incarnation is over: the next survey shows whether it is.
    pub fn is_said_to_be_reaped(&mut self, node: &NodeName, incarnation: Epoch, leaving: bool) {
        self.incarnations.doubt(incarnation);
        if let Some(peer) = self.peers.get_mut(node)
            && peer.incarnation == incarnation
        {
            peer.reaped = Some(leaving);
        }
    }

    /// The database is asked about all nodes.
    pub fn ask(&mut self) {
        self.incarnations.ask();
    }

    /// Takes what the database says of all nodes.
    pub fn survey(&mut self, rows: &[NodeRow]) -> Vec<NodeEvent> {
        let mut events = Vec::new();
        let others: Vec<_> = rows.iter().filter(|row| row.node != self.me).collect();
        for row in &others {
            self.survey_one(row, &mut events);
        }
        self.incarnations.settle(|life| rows.iter().any(|row| row.incarnation == life));
        let mut removed = Vec::new();
        for (node, peer) in &mut self.peers {
            if others.iter().any(|row| row.node == *node) {
                continue;
            }
            peer.missing += 1;
            if peer.listed || peer.reaped.is_some() || peer.missing >= MAX_MISSING {
                removed.push((node.clone(), peer.incarnation, peer.has_stopped()));
            }
        }
        for (node, incarnation, leaving) in removed {
            events.extend(self.end(&node, incarnation));
            events.push(NodeEvent::Gone { node, leaving });
        }
        events
    }

    fn survey_one(&mut self, row: &NodeRow, events: &mut Vec<NodeEvent>) {
        let NodeRow { node, incarnation, expired, leaving, .. } = row;
        let (node, incarnation) = (node, *incarnation);
        if self.incarnations.is_over(incarnation) {
            if *expired || !self.incarnations.revive(incarnation) {
                return;
            }
            events.push(NodeEvent::Recovered { node: node.clone() });
        }
        let before = self.peers.get(node).filter(|peer| peer.incarnation != incarnation);
        let before = before.map(|peer| (peer.incarnation, peer.silence, peer.listed));
        if let Some((before, ..)) = before {
            events.extend(self.end(node, before));
            events.push(NodeEvent::Restarted);
        }
        let peer = self.peers.entry(node.clone()).or_insert_with(|| Peer::new(incarnation));
        let mut again = false;
        if let Some((_, silence, listed)) = before {
            (peer.silence, again) = (silence, listed);
        }
        let is_new = !std::mem::replace(&mut peer.listed, true);
        (peer.leaving, peer.expired, peer.reaped) = (*leaving, *expired, None);
        if !leaving && peer.stopping > 0 {
            peer.stopping -= 1;
            // Its row shows that it has not stopped.
            peer.left_reported = peer.stopping > 0;
        }
        if !leaving && !expired && !std::mem::replace(&mut peer.join_reported, true) {
            events.push(NodeEvent::Joined { node: node.clone(), again });
        }
        // Of one that had stopped before it was met, there is nothing to report.
        if *leaving && !std::mem::replace(&mut peer.left_reported, true) && !is_new {
            events.push(NodeEvent::Left { node: node.clone() });
        }
        if *expired {
            events.push(NodeEvent::Expired { node: node.clone(), incarnation });
        }
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
