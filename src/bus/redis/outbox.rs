//! The queues for Redis: envelopes to publish, and subscriptions to change.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use crate::bus::{Channel, NotSent};

/// The largest number of queued envelopes.
pub(super) const MAX_ENVELOPES: usize = 8_192;

/// The largest size of all queued envelopes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The size of the largest envelope.
pub(super) const MAX_ENVELOPE_BYTES: usize = 16 * 1024 * 1024;

/// The largest number and size of the envelopes in a batch, unless it is a single one.
const MAX_BATCH: usize = 1_024;
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// The largest number of channels in a batch.
const MAX_BATCH_CHANNELS: usize = 1_024;

/// How long the last envelopes may take to be sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Between the node, which never waits, and the thread of its bus.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    put: Notify,
    requested: Notify,
    end: Notify,
    sent: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    ended: bool,
    envelopes: VecDeque<Outgoing>,
    bytes: usize,
    /// Whether a batch has been taken and not been sent yet.
    sending: bool,
    /// By channel whether to subscribe to it; the last request counts.
    requested: HashMap<Channel, bool>,
}

/// An envelope for a channel of Redis.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub channel: String,
    pub payload: Vec<u8>,
}

impl Outbox {
    /// Queues an envelope, which is encoded only if there is room.
    pub fn put(&self, encode: impl FnOnce() -> (String, Vec<u8>)) -> Result<(), NotSent> {
        if !self.lock().has_room(0) {
            return Err(NotSent);
        }
        let (channel, payload) = encode();
        let mut state = self.lock();
        if payload.len() > MAX_ENVELOPE_BYTES || !state.has_room(payload.len()) {
            return Err(NotSent);
        }
        state.bytes += payload.len();
        state.envelopes.push_back(Outgoing { channel, payload });
        self.put.notify_one();
        Ok(())
    }

    /// Requests to subscribe to a channel, or to end that. A bus that is down ignores it.
    pub fn request(&self, channel: Channel, subscribe: bool) {
        let mut state = self.lock();
        if state.open {
            state.requested.insert(channel, subscribe);
            self.requested.notify_one();
        }
    }

    /// The next batch of envelopes.
    pub async fn envelopes(&self) -> Vec<Outgoing> {
        loop {
            let batch = self.lock().take_envelopes();
            if !batch.is_empty() {
                return batch;
            }
            self.put.notified().await;
        }
    }

    /// The next batch of channels, with whether to subscribe to them.
    pub async fn channels(&self) -> Vec<(Channel, bool)> {
        loop {
            let batch = self.lock().take_channels();
            if !batch.is_empty() {
                return batch;
            }
            self.requested.notified().await;
        }
    }

    /// The batch has been sent.
    pub fn sent(&self) {
        self.lock().sending = false;
        self.sent.notify_one();
    }

    /// The bus is up.
    pub fn open(&self) {
        self.lock().open = true;
    }

    /// The bus is down: the queues are emptied and closed.
    pub fn close(&self) {
        let mut state = self.lock();
        *state = State { ended: state.ended, ..State::default() };
        self.sent.notify_one();
    }

    /// The node has dropped the bus.
    pub fn end(&self) {
        self.lock().ended = true;
        self.end.notify_one();
    }

    /// Whether the node has dropped the bus.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    /// Waits for [`end`](Self::end), and then for a short time until the queue is sent.
    pub async fn ended_and_sent(&self) {
        self.end.notified().await;
        let sent = async {
            while self.lock().has_work() {
                self.sent.notified().await;
            }
        };
        // If that takes longer, the other nodes read the database.
        let _ = timeout(DRAIN_TIMEOUT, sent).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self, bytes: usize) -> bool {
        self.open && self.envelopes.len() < MAX_ENVELOPES && self.bytes + bytes <= MAX_BYTES
    }

    fn has_work(&self) -> bool {
        self.sending || !self.envelopes.is_empty()
    }

    fn take_envelopes(&mut self) -> Vec<Outgoing> {
        let mut bytes = 0;
        let within = |(taken, envelope): &(usize, &Outgoing)| {
            bytes += envelope.payload.len();
            *taken == 0 || *taken < MAX_BATCH && bytes <= MAX_BATCH_BYTES
        };
        let taken = self.envelopes.iter().enumerate().take_while(within).count();
        let batch: Vec<Outgoing> = self.envelopes.drain(..taken).collect();
        self.sending |= !batch.is_empty();
        self.bytes -= batch.iter().map(|envelope| envelope.payload.len()).sum::<usize>();
        batch
    }

    fn take_channels(&mut self) -> Vec<(Channel, bool)> {
        let channels: Vec<Channel> =
            self.requested.keys().take(MAX_BATCH_CHANNELS).cloned().collect();
        channels.into_iter().filter_map(|channel| self.requested.remove_entry(&channel)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Outbox {
        let outbox = Outbox::default();
        outbox.open();
        outbox
    }

    fn put(outbox: &Outbox, bytes: usize) -> bool {
        outbox.put(|| (String::new(), vec![0; bytes])).is_ok()
    }

    #[test]
    fn its_number_and_its_size_are_bounded() {
        let outbox = open();
        assert_eq!((0..10_000).filter(|_| put(&outbox, 1)).count(), MAX_ENVELOPES);
        let outbox = open();
        assert!(!put(&outbox, MAX_ENVELOPE_BYTES + 1));
        assert_eq!(
            (0..10).filter(|_| put(&outbox, MAX_ENVELOPE_BYTES)).count(),
            MAX_BYTES / MAX_ENVELOPE_BYTES
        );
        assert!(put(&open(), MAX_ENVELOPE_BYTES));
    }

    #[test]
    fn nothing_is_encoded_for_a_bus_that_is_down() {
        let outbox = open();
        put(&outbox, 1);
        outbox.close();
        assert_eq!(outbox.put(|| unreachable!()), Err(NotSent));
        outbox.request(Channel::Nodes, true);
        outbox.open();
        assert!(outbox.lock().take_envelopes().is_empty());
        assert!(outbox.lock().take_channels().is_empty());
    }

    #[test]
    fn batches_are_in_order_and_bounded() {
        let outbox = open();
        for bytes in [MAX_BATCH_BYTES + 1, 1, MAX_BATCH_BYTES, 1] {
            assert!(put(&outbox, bytes));
        }
        let mut batches = (0..4).map(|_| outbox.lock().take_envelopes().len());
        assert_eq!(batches.by_ref().collect::<Vec<_>>(), [1, 1, 1, 1]);
        (0..MAX_BATCH + 1).for_each(|_| assert!(put(&outbox, 1)));
        assert_eq!(outbox.lock().take_envelopes().len(), MAX_BATCH);
        assert_eq!(outbox.lock().take_envelopes().len(), 1);
        assert_eq!(outbox.lock().bytes, 0);
    }

    #[test]
    fn the_last_request_for_a_channel_counts() {
        let outbox = open();
        for subscribe in [true, false, true, false] {
            outbox.request(Channel::Nodes, subscribe);
        }
        assert_eq!(outbox.lock().take_channels(), [(Channel::Nodes, false)]);
        assert!(outbox.lock().take_channels().is_empty());
    }
}
