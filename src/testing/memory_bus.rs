//! A bus inside one process, whose connections a test can cut, delay and garble.

mod hub;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actix::prelude::*;

use self::hub::{End, Hub, Next, PublishedEvent};
use super::bus_contract::BusFixture;
use crate::bus::{Bus, BusEvent, Channel, ClusterIdentity, Envelope, NotSent};
#[cfg(test)]
use crate::model::Epoch;

/// What the ends of a [`MemoryBus`] are connected to. A clone is the same hub.
///
/// It behaves like Redis: a node receives its own envelopes, and hears those ends only that have its identity.
/// An envelope comes twice if it has subscribed to the room and to all rooms, which Redis' does not. What is
/// published is encoded and decoded. It has no threads and no
/// randomness: in a runtime of one thread, also with a paused clock, everything happens in the same order
/// each time.
///
/// A node is started on it by [`PresenceConfig::start_shared`](crate::PresenceConfig::start_shared): the guide's
/// [several nodes in one test](crate::guide::embedding#several-nodes-in-one-test) has a whole example.
///
/// ```
/// use actix_presence::testing::MemoryHub;
///
/// let hub = MemoryHub::new();
/// let (here, there) = (hub.bus(), hub.bus());
/// // The ends go to their nodes; the test keeps the connection.
/// let connection = here.connection();
/// connection.cut();
/// connection.heal();
/// # drop((here, there));
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryHub(Arc<Mutex<Hub>>);

/// One end of a [`MemoryHub`], for one node. Dropping it disconnects it.
///
/// `listen` has to be called inside a Tokio runtime, such as that of actix.
#[derive(Debug)]
pub struct MemoryBus(MemoryConnection);

/// The connection between a [`MemoryBus`] and its hub, for the test to disturb. A clone is the same
/// connection.
#[derive(Clone, Debug)]
pub struct MemoryConnection {
    hub: MemoryHub,
    end: u64,
}

impl MemoryHub {
    /// Creates a hub without ends.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an end.
    #[must_use]
    pub fn bus(&self) -> MemoryBus {
        let mut hub = self.lock();
        hub.last_end += 1;
        let end = hub.last_end;
        hub.ends.insert(end, End::default());
        MemoryBus(MemoryConnection { hub: self.clone(), end })
    }

    /// Publishes bytes to all ends with subscriptions to this channel: what is not an [`Envelope`] by their
    /// identity is received as [`BusEvent::Unreadable`].
    pub fn publish_bytes(&self, channel: &Channel, bytes: &[u8]) {
        let (channel, bytes) = (channel.clone(), bytes.into());
        // No end has the number 0.
        self.lock().publish(0, PublishedEvent { channel, identity: None, bytes });
    }

    /// The number of the next envelope of an incarnation.
    #[cfg(test)]
    pub(crate) fn next_number(&self, incarnation: Epoch) -> u64 {
        self.lock().numbers.get(&incarnation).map_or(1, |last| last + 1)
    }

    /// Delivers nothing any more, which the ends do not notice: up to 8,192 envelopes of each end wait.
    pub fn stall(&self) {
        self.lock().stalled = true;
    }

    /// Ends [`stall`](Self::stall): the waiting envelopes are delivered.
    pub fn resume(&self) {
        let mut hub = self.lock();
        hub.stalled = false;
        for (from, published) in std::mem::take(&mut hub.waiting) {
            hub.publish(from, published);
        }
        hub.ends.values().for_each(End::wake);
    }

    /// Cuts the connections of all ends, which reconnect at once, without subscriptions.
    pub fn break_connections(&self) {
        let ends: Vec<u64> = self.lock().ends.keys().copied().collect();
        for end in ends {
            let connection = MemoryConnection { hub: self.clone(), end };
            connection.cut();
            connection.heal();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Hub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusFixture for MemoryHub {
    fn bus(&self) -> Box<dyn Bus> {
        Box::new(self.bus())
    }

    async fn publish_bytes(&self, _: &ClusterIdentity, channel: &Channel, bytes: &[u8]) {
        self.publish_bytes(channel, bytes);
    }

    async fn break_connections(&self) {
        self.break_connections();
    }

    async fn stall(&self) {
        self.stall();
    }

    async fn resume(&self) {
        self.resume();
    }
}

impl MemoryBus {
    /// The connection of this end.
    #[must_use]
    pub fn connection(&self) -> MemoryConnection {
        self.0.clone()
    }
}

impl MemoryConnection {
    /// Cuts it: the node gets [`BusEvent::Down`], and receives and sends nothing any more. Its queued
    /// events and its subscriptions are lost.
    pub fn cut(&self) {
        self.change(|hub, end| hub.cut(end, "cut"));
    }

    /// Reconnects it: the node gets [`BusEvent::Up`]. Does nothing if it is not cut.
    pub fn heal(&self) {
        self.change(Hub::heal);
    }

    /// Holds back all events for the node but `Up` and `Down`, until [`release`](Self::release). What it
    /// publishes is delivered.
    pub fn hold(&self) {
        self.change(|hub, end| hub.with(end, |end| end.held = true));
    }

    /// Delivers the events that were held back.
    pub fn release(&self) {
        self.change(|hub, end| hub.with(end, |end| end.held = false));
    }

    /// Delays what this node publishes from now on to the other one (or to itself). The order stays, so it
    /// may be delayed further by what was published before.
    pub fn delay_to(&self, other: &Self, delay: Duration) {
        self.change(|hub, end| hub.links.entry((end, other.end)).or_default().delay = delay);
    }

    /// Delivers the next envelopes of this node twice.
    pub fn duplicate_next(&self, envelopes: usize) {
        self.change(|hub, end| hub.with(end, |end| end.duplicate = envelopes));
    }

    /// Drops the next envelopes of this node, unnoticed. Redis does not do this.
    pub fn lose_next(&self, envelopes: usize) {
        self.change(|hub, end| hub.with(end, |end| end.lose = envelopes));
    }

    /// The subscriptions of the node.
    #[must_use]
    pub fn subscriptions(&self) -> HashSet<Channel> {
        let hub = self.hub.lock();
        hub.ends.get(&self.end).map(|end| end.subscriptions.clone()).unwrap_or_default()
    }

    fn change(&self, change: impl FnOnce(&mut Hub, u64)) {
        let mut hub = self.hub.lock();
        change(&mut hub, self.end);
        hub.with(self.end, |end| end.wake());
    }
}

impl Bus for MemoryBus {
    fn listen(&mut self, listener: Recipient<BusEvent>) {
        self.0.change(|hub, end| {
            hub.with(end, |end| end.listens = true);
            match hub.ends.get(&end) {
                Some(End { cut: true, .. }) => hub.queue(end, BusEvent::Down("cut"), None),
                Some(End { identity: Some(_), .. }) => hub.queue(end, BusEvent::Up, None),
                _ => {}
            }
        });
        tokio::spawn(deliver_all(self.connection(), listener));
    }

    fn identify(&mut self, identity: ClusterIdentity) {
        self.0.change(|hub, end| hub.identify(end, identity));
    }

    fn subscribe(&mut self, channel: Channel) {
        self.0.change(|hub, end| hub.subscribe(end, channel));
    }

    fn unsubscribe(&mut self, channel: Channel) {
        self.0.change(|hub, end| {
            hub.with(end, |end| {
                end.subscriptions.remove(&channel);
            });
        });
    }

    fn publish(&mut self, envelope: &Envelope) -> Result<(), NotSent> {
        self.0.hub.lock().take(self.0.end, envelope)
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        let end = self.0.hub.lock().ends.remove(&self.0.end);
        if let Some(end) = end {
            end.wake();
        }
    }
}

/// Sends the events to the listener until the end is dropped or the listener stops.
async fn deliver_all(connection: MemoryConnection, listener: Recipient<BusEvent>) {
    let MemoryConnection { hub, end } = connection;
    let Some(changed) = hub.lock().ends.get(&end).map(|end| end.changed.clone()) else { return };
    loop {
        let next = hub.lock().next(end);
        match next {
            Next::Deliver(event) => {
                if listener.send(event).await.is_err() {
                    return;
                }
            }
            Next::WaitUntil(due) => {
                // Another event may become the first meanwhile.
                let _ = tokio::time::timeout_at(due, changed.notified()).await;
            }
            Next::Wait => changed.notified().await,
            Next::End => return,
        }
    }
}

#[cfg(test)]
mod tests;
