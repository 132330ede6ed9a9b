//! The bounded queues between a node and the thread of its bus: to Redis, and from it.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::Msg;
use tokio::{sync::Notify, time::timeout};

use crate::bus::{Channel, ClusterIdentity, NotSent};

/// The largest number of queued envelopes.
pub(super) const MAX_ENVELOPES: usize = 8_192;

/// The largest size of all queued envelopes.
const MAX_OUTBOX_BYTES: usize = 64 * 1024 * 1024;

/// The size of the largest envelope.
pub(super) const MAX_SENT_BYTES: usize = 16 * 1024 * 1024;

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
        if payload.len() > MAX_SENT_BYTES || !state.has_room(payload.len()) {
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
mod tests {
    use futures_util::FutureExt;
    use redis::Value;

    use super::*;

    fn identity(key: u8) -> ClusterIdentity {
        ClusterIdentity::new([key; 32], [key; 16])
    }

    fn open() -> Outbox {
        let outbox = Outbox::default();
        outbox.identify(identity(1));
        outbox.open(&identity(1));
        outbox
    }

    fn put(outbox: &Outbox, bytes: usize) -> bool {
        outbox.put(|| (String::new(), vec![0; bytes])).is_ok()
    }

    #[test]
    fn the_outbox_is_bounded_in_number_and_size() {
        let outbox = open();
        assert_eq!((0..10_000).filter(|_| put(&outbox, 1)).count(), MAX_ENVELOPES);
        let outbox = open();
        assert!(!put(&outbox, MAX_SENT_BYTES + 1));
        assert_eq!(
            (0..10).filter(|_| put(&outbox, MAX_SENT_BYTES)).count(),
            MAX_OUTBOX_BYTES / MAX_SENT_BYTES
        );
        assert!(put(&open(), MAX_SENT_BYTES));
    }

    #[test]
    fn nothing_is_encoded_for_a_bus_that_is_down() {
        let outbox = open();
        put(&outbox, 1);
        outbox.close();
        assert_eq!(outbox.put(|| unreachable!()), Err(NotSent));
        outbox.request(Channel::Nodes, true);
        outbox.open(&identity(1));
        assert!(outbox.lock().take_envelopes().is_empty());
        assert!(outbox.lock().take_channels().is_empty());
    }

    #[test]
    fn what_is_queued_under_another_identity_is_dropped() {
        let outbox = open();
        outbox.identify(identity(1));
        assert!(put(&outbox, 1), "the same one changes nothing");
        outbox.request(Channel::Nodes, true);
        outbox.identify(identity(2));
        assert!(!put(&outbox, 1));
        outbox.open(&identity(1));
        assert!(!put(&outbox, 1), "that was about the one before");
        outbox.open(&identity(2));
        assert!(outbox.lock().take_envelopes().is_empty());
        assert!(outbox.lock().take_channels().is_empty());
        let found = outbox.identity(Some(&identity(1))).now_or_never();
        assert_eq!(found.as_deref(), Some(&identity(2)));
        assert!(outbox.identity(Some(&identity(2))).now_or_never().is_none());
        outbox.close();
        assert!(outbox.identity(None).now_or_never().is_some());
    }

    #[test]
    fn batches_are_in_order_and_bounded() {
        let outbox = open();
        for bytes in [MAX_BATCH_BYTES + 1, 1, MAX_BATCH_BYTES, 1] {
            assert!(put(&outbox, bytes));
        }
        let mut batches = (0..4).map(|_| outbox.lock().take_envelopes().len());
        assert_eq!(batches.by_ref().collect::<Vec<_>>(), [1, 1, 1, 1]);
        (0..MAX_BATCH_ENVELOPES + 1).for_each(|_| assert!(put(&outbox, 1)));
        assert_eq!(outbox.lock().take_envelopes().len(), MAX_BATCH_ENVELOPES);
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

    fn message(bytes: usize) -> Msg {
        let words = [b"message".to_vec(), b"channel".to_vec(), vec![0; bytes]];
        let value = Value::Array(words.into_iter().map(Value::BulkString).collect());
        Msg::from_owned_value(value).unwrap()
    }

    fn take(inbox: &Inbox) -> Option<&'static str> {
        inbox.next().now_or_never().map(|event| match event {
            QueuedEvent::Up => "up",
            QueuedEvent::Down(reason) => reason,
            QueuedEvent::Subscribed(_) => "subscribed",
            QueuedEvent::Message(_) => "message",
        })
    }

    #[test]
    fn down_is_reported_at_once_and_again_for_another_reason() {
        let inbox = Inbox::default();
        inbox.down("refused");
        inbox.down("timeout");
        assert_eq!((take(&inbox), take(&inbox)), (Some("timeout"), None));
        inbox.down("timeout");
        assert_eq!(take(&inbox), None);
        inbox.down("denied");
        assert_eq!((take(&inbox), take(&inbox)), (Some("denied"), None));

        inbox.up();
        assert_eq!(take(&inbox), Some("up"));
        inbox.subscribed(Channel::Nodes);
        inbox.message(message(1)).unwrap();
        inbox.down("lost");
        inbox.up();
        assert_eq!([(); 3].map(|()| take(&inbox)), [Some("lost"), Some("up"), None]);
    }

    #[test]
    fn an_unreported_up_is_withdrawn() {
        let inbox = Inbox::default();
        inbox.down("lost");
        take(&inbox);
        inbox.up();
        inbox.down("lost");
        assert_eq!(take(&inbox), None);
    }

    #[test]
    fn the_inbox_is_bounded_in_number_and_size() {
        let inbox = Inbox::default();
        assert_eq!(
            (0..100_000).take_while(|_| inbox.message(message(1)).is_ok()).count(),
            MAX_MESSAGES
        );
        let inbox = Inbox::default();
        inbox.message(message(MAX_INBOX_BYTES)).unwrap();
        assert!(inbox.message(message(1)).is_err());
        // A single message is accepted whatever its size.
        let inbox = Inbox::default();
        inbox.message(message(MAX_INBOX_BYTES + 1)).unwrap();
        assert_eq!(take(&inbox), Some("message"));
        inbox.message(message(MAX_INBOX_BYTES)).unwrap();
    }
}
