//! The bounded queues between a node and the thread of its bus: to Redis, and from it.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::Msg;
use tokio::{sync::Notify, time::timeout};

use crate::bus::{Channel, ClusterIdentity, MAX_ENVELOPE_BYTES, NotSent};

/// The largest number of queued envelopes.
pub(super) const MAX_ENVELOPES: usize = 8_192;

/// The largest size of all queued envelopes.
const MAX_OUTBOX_BYTES: usize = 64 * 1024 * 1024;

/// The largest number and size of the envelopes in a batch, unless it is a single one.
const MAX_BATCH_ENVELOPES: usize = 1_024;
const MAX_BATCH_BYTES: usize = 1024 * 1024;

/// The largest number of channels in a batch.
const MAX_BATCH_CHANNELS: usize = 1_024;

/// How long the last envelopes may take to be sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Between the node, which never waits, and the thread of its bus.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<OutboxState>,
    put: Notify,
    requested: Notify,
    identified: Notify,
    end: Notify,
    sent: Notify,
}

#[derive(Debug, Default)]
struct OutboxState {
    identity: Option<Arc<ClusterIdentity>>,
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

    /// Sets the identity. What is queued under another one is dropped.
    pub fn identify(&self, identity: ClusterIdentity) {
        let mut state = self.lock();
        if state.identity.as_deref() != Some(&identity) {
            state.identity = Some(Arc::new(identity));
            state.close();
            self.identified.notify_one();
            self.sent.notify_one();
        }
    }

    /// The identity, as soon as there is another one than `before`.
    pub async fn identity(&self, before: Option<&ClusterIdentity>) -> Arc<ClusterIdentity> {
        loop {
            let identity = self.lock().identity.clone();
            if let Some(identity) = identity.filter(|one| Some(&**one) != before) {
                return identity;
            }
            self.identified.notified().await;
        }
    }

    /// The bus is up under an identity, unless there is another one now.
    pub fn open(&self, identity: &ClusterIdentity) {
        let mut state = self.lock();
        state.open = state.identity.as_deref() == Some(identity);
    }

    /// The bus is down: the queues are emptied and closed.
    pub fn close(&self) {
        self.lock().close();
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

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutboxState {
    fn close(&mut self) {
        let (ended, identity) = (self.ended, self.identity.take());
        *self = Self { ended, identity, ..Self::default() };
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.open && self.envelopes.len() < MAX_ENVELOPES && self.bytes + bytes <= MAX_OUTBOX_BYTES
    }

    fn has_work(&self) -> bool {
        self.sending || !self.envelopes.is_empty()
    }

    fn take_envelopes(&mut self) -> Vec<Outgoing> {
        let mut bytes = 0;
        let within = |(taken, envelope): &(usize, &Outgoing)| {
            bytes += envelope.payload.len();
            *taken == 0 || *taken < MAX_BATCH_ENVELOPES && bytes <= MAX_BATCH_BYTES
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

/// The largest number of queued messages.
const MAX_MESSAGES: usize = 65_536;

/// The largest size of all queued messages.
const MAX_INBOX_BYTES: usize = 64 * 1024 * 1024;

/// Between the connections and the listener, on the thread of the bus.
///
/// The client for Redis never stops reading, so the queue is bounded here, and not in Redis. For the same
/// reason a slow listener does not look like a Redis that hangs.
#[derive(Default)]
pub(super) struct Inbox {
    state: RefCell<InboxState>,
    changed: Notify,
}

#[derive(Default)]
struct InboxState {
    /// The last state of the bus that the listener got: why it is down, if it is.
    reported: Option<Option<&'static str>>,
    queue: VecDeque<QueuedEvent>,
    messages: usize,
    bytes: usize,
}

/// An event for the listener.
pub(super) enum QueuedEvent {
    Up,
    Down(&'static str),
    Subscribed(Channel),
    Message(Msg),
}

/// The queue is full.
#[derive(Debug)]
pub(super) struct Overrun;

impl Inbox {
    pub fn up(&self) {
        self.push(QueuedEvent::Up);
    }

    /// Empties the queue. The listener is told unless it knows the reason already.
    pub fn down(&self, reason: &'static str) {
        let mut state = self.state.borrow_mut();
        let reported = state.reported;
        *state = InboxState { reported, ..InboxState::default() };
        // If it has not got the last `Up`, that never was.
        if reported != Some(Some(reason)) {
            state.queue.push_back(QueuedEvent::Down(reason));
            self.changed.notify_one();
        }
    }

    pub fn subscribed(&self, channel: Channel) {
        self.push(QueuedEvent::Subscribed(channel));
    }

    pub fn message(&self, message: Msg) -> Result<(), Overrun> {
        let mut state = self.state.borrow_mut();
        state.messages += 1;
        state.bytes += message.get_payload_bytes().len();
        // A single message is accepted whatever its size: it is in memory already.
        if state.messages > 1 && (state.messages > MAX_MESSAGES || state.bytes > MAX_INBOX_BYTES) {
            return Err(Overrun);
        }
        drop(state);
        self.push(QueuedEvent::Message(message));
        Ok(())
    }

    /// The next event.
    pub async fn next(&self) -> QueuedEvent {
        loop {
            if let Some(event) = self.state.borrow_mut().pop() {
                return event;
            }
            self.changed.notified().await;
        }
    }

    fn push(&self, event: QueuedEvent) {
        self.state.borrow_mut().queue.push_back(event);
        self.changed.notify_one();
    }
}

impl InboxState {
    fn pop(&mut self) -> Option<QueuedEvent> {
        let event = self.queue.pop_front()?;
        match &event {
            QueuedEvent::Up => self.reported = Some(None),
            QueuedEvent::Down(reason) => self.reported = Some(Some(reason)),
            QueuedEvent::Subscribed(_) => {}
            QueuedEvent::Message(message) => {
                self.messages -= 1;
                self.bytes -= message.get_payload_bytes().len();
            }
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests;
