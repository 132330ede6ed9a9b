//! How long a node has not been heard, and what follows from that.

use std::time::Duration;

use super::peers::{Peer, Peers};
use crate::model::{Moment, NodeName};

/// How late a beat may be on its way: timers, threads, the network.
const BEAT_DELAY: Duration = Duration::from_millis(500);

/// How often a node with this lease beats.
pub(crate) fn beat_interval(lease: Duration) -> Duration {
    lease / 4
}

/// How often silence is looked at: often enough that the second missing beat is noticed soon.
pub(crate) fn listen_interval(lease: Duration) -> Duration {
    beat_interval(lease) / 4
}

/// After how much silence two beats are missing.
pub(super) fn two_beats(lease: Duration) -> Duration {
    let beat = beat_interval(lease);
    beat * 2 + BEAT_DELAY.min(beat)
}

/// The silence of one node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silence {
    /// When a beat was heard last, or this node began to listen for one.
    heard: Option<Moment>,
    /// Since when every survey has shown the node alive.
    vouched: Option<Moment>,
    /// Whether it has been reported that two beats are missing.
    pub reported: bool,
    /// Whether it has been reported that the database shows the node alive all the same.
    contradicted: bool,
}

impl Silence {
    /// A beat was heard. Answers whether the silence before it had been reported.
    pub fn end(&mut self, now: Moment) -> bool {
        self.heard = Some(now);
        self.contradicted = false;
        std::mem::take(&mut self.reported)
    }

    /// How long it has lasted.
    pub fn length(&self, now: Moment) -> Duration {
        self.heard.map_or(Duration::ZERO, |heard| now.since(heard))
    }

    /// This node could not hear: silence that is not reported yet counts from now on.
    pub fn forgive(&mut self, now: Moment) {
        if !self.reported {
            *self = Self { heard: Some(now), contradicted: false, ..*self };
        }
    }

    /// Whether it has lasted for so long now, and has not been reported.
    pub fn exceeds(&mut self, limit: Duration, now: Moment) -> bool {
        let heard = *self.heard.get_or_insert(now);
        let exceeds = !self.reported && now.since(heard) >= limit;
        self.reported |= exceeds;
        exceeds
    }

    /// A survey has shown the node `alive` or not; after a time without surveys that is new.
    pub fn survey(&mut self, alive: bool, was_away: bool, now: Moment) {
        self.vouched = match self.vouched {
            Some(since) if alive && !was_away => Some(since),
            _ => alive.then_some(now),
        };
    }

    /// Whether the node has lived by the database and not been heard for so long.
    pub fn is_contradicted(&self, limit: Duration, now: Moment) -> bool {
        let lasts = |since: Option<Moment>| since.is_some_and(|since| now.since(since) >= limit);
        lasts(self.heard) && lasts(self.vouched)
    }

    /// As [`is_contradicted`](Self::is_contradicted), once for each silence.
    pub fn contradicts(&mut self, limit: Duration, now: Moment) -> bool {
        let news = !self.contradicted && self.is_contradicted(limit, now);
        self.contradicted |= news;
        news
    }
}

impl Peers {
    /// The nodes of which two beats are missing, with how long they have not been heard.
    pub fn unheard(&self, now: Moment) -> impl Iterator<Item = (&NodeName, Duration)> {
        let unheard = |(_, peer): &(&NodeName, &Peer)| peer.silence.reported && !peer.is_leaving();
        let peers = self.peers.iter().filter(unheard);
        peers.map(move |(node, peer)| (node, peer.silence.length(now)))
    }

    /// Looks, each [`listen_interval`](super::listen_interval), of which nodes two beats are missing
    /// now. Needs no database. While this node's own bus is down (it does not `hear`), silence means nothing.
    pub fn listen(
        &mut self,
        lease: Duration,
        hears: bool,
        now: Moment,
    ) -> Vec<(NodeName, Duration)> {
        let last = self.listened.replace(now);
        // A process that stood still has beats in its mailbox to come.
        let stood_still = last.is_some_and(|last| now.since(last) >= beat_interval(lease));
        let mut news = Vec::new();
        for (node, peer) in &mut self.peers {
            if stood_still {
                peer.silence.forgive(now);
            }
            let counts = hears && peer.listed && !peer.is_leaving();
            if counts && peer.silence.exceeds(two_beats(lease), now) {
                news.push((node.clone(), peer.silence.length(now)));
            }
        }
        news
    }

    /// After a survey: notes which nodes the database shows alive.
    pub fn vouch(&mut self, lease: Duration, now: Moment) {
        // After a time without surveys nothing is known of that time.
        let last = self.surveyed.replace(now);
        let was_away = last.is_none_or(|last| now.since(last) > lease * 2 / 3);
        for peer in self.peers.values_mut() {
            peer.silence.survey(peer.is_listed_alive(), was_away, now);
        }
    }

    /// Whether there is a node that has lived by the database for a lease and was not heard.
    pub fn any_contradicted(&self, lease: Duration, now: Moment) -> bool {
        let mut peers = self.peers.values();
        peers.any(|peer| peer.silence.is_contradicted(lease, now))
    }

    /// The nodes that the database shows alive though they are not heard, once for each silence. One
    /// that has died beats no more, and its lease, extended just before, runs on for a while: so this
    /// is later than [`any_contradicted`](Self::any_contradicted).
    pub fn contradicted(&mut self, lease: Duration, now: Moment) -> Vec<NodeName> {
        let limit = lease + two_beats(lease);
        let peers = self.peers.iter_mut();
        let news = peers
            .filter_map(|(node, peer)| peer.silence.contradicts(limit, now).then(|| node.clone()));
        news.collect()
    }

    /// This node could not hear the others for a while: their silence counts from now on.
    pub fn forgive_silence(&mut self, now: Moment) {
        for peer in self.peers.values_mut() {
            peer.silence.forgive(now);
        }
    }
}
