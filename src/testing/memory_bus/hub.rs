//! The hub of a bus in memory: its ends, and what is on its way to them.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::bus::{BusEvent, Channel, ClusterIdentity, Envelope, NotSent};
#[cfg(test)]
use crate::model::Epoch;

/// The largest number of envelopes of one end that wait while the hub is stalled.
pub(super) const MAX_STALLED: usize = 8_192;

/// The largest number of events queued for one end.
pub(super) const MAX_QUEUE: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Hub {
    pub ends: BTreeMap<u64, End>,
    pub links: HashMap<(u64, u64), HubLink>,
    pub last_end: u64,
    /// Counts the events, so that those of the same moment stay in order.
    pub last_event: u64,
    pub stalled: bool,
    pub waiting: VecDeque<(u64, PublishedEvent)>,
    /// The number of the last envelope of each incarnation.
    #[cfg(test)]
    pub numbers: HashMap<Epoch, u64>,
}

/// From one end to another.
#[derive(Debug, Default)]
pub(super) struct HubLink {
    pub delay: Duration,
    /// When the last envelope arrives; no later one arrives before it.
    pub last: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct End {
    pub identity: Option<ClusterIdentity>,
    pub listens: bool,
    pub cut: bool,
    pub held: bool,
    pub lose: usize,
    pub duplicate: usize,
    pub subscriptions: HashSet<Channel>,
    /// The queued events by the time at which they arrive.
    pub queue: BTreeMap<(Instant, u64), BusEvent>,
    pub changed: Arc<Notify>,
}

#[derive(Clone, Debug)]
pub(super) struct PublishedEvent {
    pub channel: Channel,
    /// Of whom it can be heard; none is everybody.
    pub identity: Option<ClusterIdentity>,
    pub bytes: Arc<[u8]>,
}

/// The next step of the task of an end.
pub(super) enum Next {
    Deliver(BusEvent),
    WaitUntil(Instant),
    Wait,
    End,
}

impl Hub {
    pub fn with(&mut self, end: u64, change: impl FnOnce(&mut End)) {
        self.ends.get_mut(&end).map(change);
    }

    pub fn cut(&mut self, end: u64, why: &'static str) {
        let Some(state) = self.ends.get_mut(&end).filter(|end| !end.cut) else { return };
        state.cut = true;
        state.subscriptions.clear();
        state.queue.clear();
        self.waiting.retain(|(from, _)| *from != end);
        self.queue(end, BusEvent::Down(why), None);
    }

    pub fn heal(&mut self, end: u64) {
        let Some(state) = self.ends.get_mut(&end).filter(|end| end.cut) else { return };
        state.cut = false;
        if state.identity.is_some() {
            self.queue(end, BusEvent::Up, None);
        }
    }

    pub fn identify(&mut self, end: u64, identity: ClusterIdentity) {
        let Some(state) = self.ends.get_mut(&end) else { return };
        if state.identity.as_ref() == Some(&identity) {
            return;
        }
        let before = state.identity.replace(identity);
        if state.cut {
            return;
        }
        if before.is_some() {
            self.cut(end, "identity");
            self.heal(end);
        } else {
            self.queue(end, BusEvent::Up, None);
        }
    }

    pub fn subscribe(&mut self, end: u64, channel: Channel) {
        let Some(state) = self.ends.get_mut(&end).filter(|end| end.connected()) else { return };
        state.subscriptions.insert(channel.clone());
        self.queue(end, BusEvent::Subscribed(channel), None);
    }

    /// Accepts an envelope of an end.
    pub fn take(&mut self, from: u64, envelope: &Envelope) -> Result<(), NotSent> {
        let state = self.ends.get_mut(&from).filter(|end| end.connected()).ok_or(NotSent)?;
        let identity = state.identity.clone().ok_or(NotSent)?;
        #[cfg(test)]
        self.numbers.insert(envelope.incarnation, envelope.number);
        let (channel, bytes) = (envelope.channel(), envelope.encode(&identity).into());
        let published = PublishedEvent { channel, identity: Some(identity), bytes };
        if self.stalled && self.waiting.iter().filter(|w| w.0 == from).count() >= MAX_STALLED {
            return Err(NotSent);
        }
        if state.lose > 0 {
            state.lose -= 1;
            return Ok(());
        }
        if state.duplicate > 0 {
            state.duplicate -= 1;
            self.publish(from, published.clone());
        }
        self.publish(from, published);
        Ok(())
    }

    pub fn publish(&mut self, from: u64, published: PublishedEvent) {
        if self.stalled {
            return self.waiting.push_back((from, published));
        }
        let receivers: Vec<_> =
            self.ends.iter().map(|(id, end)| (*id, end.receive(&published))).collect();
        for (end, events) in receivers {
            for event in events {
                self.queue(end, event, Some(from));
            }
        }
    }

    /// Queues an event for an end, perhaps from another end.
    pub fn queue(&mut self, to: u64, event: BusEvent, from: Option<u64>) {
        let now = Instant::now();
        let due = from.and_then(|from| self.links.get_mut(&(from, to))).map_or(now, |link| {
            let due = (now + link.delay).max(link.last.unwrap_or(now));
            *link.last.insert(due)
        });
        self.last_event += 1;
        let Some(end) = self.ends.get_mut(&to).filter(|end| end.listens) else { return };
        let overrun = end.queue.len() >= MAX_QUEUE;
        end.queue.insert((due, self.last_event), event);
        end.wake();
        if overrun {
            self.cut(to, "overrun");
            self.heal(to);
        }
    }

    pub fn next(&mut self, end: u64) -> Next {
        let stalled = self.stalled;
        let Some(end) = self.ends.get_mut(&end) else { return Next::End };
        let Some(first) = end.queue.first_entry() else { return Next::Wait };
        if (stalled || end.held) && !matches!(first.get(), BusEvent::Up | BusEvent::Down(_)) {
            return Next::Wait;
        }
        let (due, _) = *first.key();
        if due > Instant::now() { Next::WaitUntil(due) } else { Next::Deliver(first.remove()) }
    }
}

impl End {
    pub fn connected(&self) -> bool {
        self.listens && !self.cut && self.identity.is_some()
    }

    /// What it receives of something that is published: as often as its subscriptions match.
    pub fn receive(&self, published: &PublishedEvent) -> Vec<BusEvent> {
        let PublishedEvent { channel, identity: sender, bytes } = published;
        let Some(identity) = &self.identity else { return Vec::new() };
        let times = self.matching(channel);
        let hears = sender.as_ref().is_none_or(|sender| sender.channel() == identity.channel());
        if times == 0 || !hears {
            return Vec::new();
        }
        let event = Envelope::decode(bytes, &channel.name(), identity)
            .map_or_else(BusEvent::Unreadable, BusEvent::Received);
        vec![event; times]
    }

    /// The number of its subscriptions that match a channel.
    pub fn matching(&self, channel: &Channel) -> usize {
        let among_rooms =
            matches!(channel, Channel::Room(_)) && self.subscriptions.contains(&Channel::Rooms);
        usize::from(self.subscriptions.contains(channel)) + usize::from(among_rooms)
    }

    pub fn wake(&self) {
        self.changed.notify_one();
    }
}
