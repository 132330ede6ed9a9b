//! Messages, and the count of those who took one. Each frame is encoded at most once, by the first thread that needs
//! it.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ahash::RandomState;
use bytestring::ByteString;
use tokio::sync::oneshot;

use crate::{
    counters::Counter,
    messages::{Content, Dialect},
    model::{ConnectionId, RoomName, Sender},
    wire::{json, phoenix},
};

pub(crate) struct Publication {
    pub message: Arc<MessageBody>,
    /// The sender's presence and the version of its join, where both are known.
    pub joined: Option<(ConnectionId, u64)>,
    /// A connection that does not get it.
    pub except: Option<ConnectionId>,
    /// The connections that get it, if not all.
    pub only: Option<Arc<[ConnectionId]>>,
}

/// A message for the members of a room on this node.
#[derive(Clone)]
pub(super) struct LocalMessage {
    pub frames: Arc<MessageFrames>,
    /// The sender's presence, if it has one.
    pub sender: Option<ConnectionId>,
    pub except: Option<ConnectionId>,
    /// The members that get it, if not all.
    pub only: Option<Arc<[ConnectionId]>>,
    /// It is for the members whose entry has at most this number.
    pub last_entry: u64,
    /// The version that a listener has to be sent before.
    pub min_version: u64,
}

/// What is published, in the encodings that do not depend on the room.
pub(crate) struct MessageBody {
    content: Content,
    from: Option<Sender>,
    raw: OnceLock<ByteString>,
    json: OnceLock<ByteString>,
    /// Who has got it, if it goes to several rooms: one connection may be in many of them.
    reached: Option<Mutex<HashSet<ConnectionId, RandomState>>>,
    taken: Arc<AtomicUsize>,
    deliveries: Counter,
    /// Closed when all threads have dropped the message, and so delivered it.
    _delivered: oneshot::Sender<()>,
}

/// The frames of a message for the members of one room.
pub(super) struct MessageFrames {
    room: RoomName,
    body: Arc<MessageBody>,
    phoenix: OnceLock<ByteString>,
}

pub(crate) struct DeliveryCount {
    taken: Arc<AtomicUsize>,
    delivered: oneshot::Receiver<()>,
}

impl MessageBody {
    /// A message, for several rooms or one, and the count of its receivers.
    pub fn new(
        content: Content,
        from: Option<Sender>,
        several_rooms: bool,
        deliveries: Counter,
    ) -> (Arc<Self>, DeliveryCount) {
        let (_delivered, delivered) = oneshot::channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let count = DeliveryCount { taken: Arc::clone(&taken), delivered };
        let [raw, json] = [const { OnceLock::new() }; 2];
        let reached = several_rooms.then(Mutex::default);
        let body = Self { content, from, raw, json, reached, taken, deliveries, _delivered };
        (Arc::new(body), count)
    }

    fn encode(&self, room: &RoomName, dialect: Dialect) -> ByteString {
        let (content, from) = (&self.content, self.from.as_ref());
        match (content, dialect) {
            (Content::Text(text), Dialect::Raw | Dialect::Json(_)) => text.clone(),
            (Content::Text(text), Dialect::Phoenix) => phoenix::message(room, &&**text, from),
            (Content::Json(value), Dialect::Raw) => value.get().into(),
            (Content::Json(value), Dialect::Json(_)) => json::message(None, value, from),
            (Content::Json(value), Dialect::Phoenix) => phoenix::message(room, value, from),
            (Content::Event { payload, .. }, Dialect::Raw) => payload.get().into(),
            (Content::Event { event, payload }, Dialect::Json(_)) => {
                json::message(Some(event), payload, from)
            }
            (Content::Event { event, payload }, Dialect::Phoenix) => {
                phoenix::broadcast(room, event, payload)
            }
        }
    }
}

impl MessageFrames {
    pub fn new(room: RoomName, body: Arc<MessageBody>) -> Self {
        Self { room, body, phoenix: OnceLock::new() }
    }

    pub fn room(&self) -> &RoomName {
        &self.room
    }

    pub fn sender(&self) -> Option<&Sender> {
        self.body.from.as_ref()
    }

    /// The size of the content, without the frame of a dialect.
    pub fn bytes(&self) -> usize {
        match &self.body.content {
            Content::Text(text) => text.len(),
            Content::Json(value) | Content::Event { payload: value, .. } => value.get().len(),
        }
    }

    /// Whether the connection has not got it yet, by another room; it gets it now.
    pub fn reaches(&self, connection: ConnectionId) -> bool {
        let Some(reached) = &self.body.reached else { return true };
        reached.lock().unwrap_or_else(PoisonError::into_inner).insert(connection)
    }

    /// Counts members that took it.
    pub fn count_taken(&self, more: usize) {
        self.body.taken.fetch_add(more, Relaxed);
        self.body.deliveries.add(more);
    }

    pub fn frame(&self, dialect: Dialect) -> ByteString {
        let frame = match dialect {
            Dialect::Raw => &self.body.raw,
            Dialect::Json(_) => &self.body.json,
            Dialect::Phoenix => &self.phoenix,
        };
        frame.get_or_init(|| self.body.encode(&self.room, dialect)).clone()
    }
}

impl DeliveryCount {
    /// Counts members on other nodes.
    pub fn add(&self, more: usize) {
        self.taken.fetch_add(more, Relaxed);
    }

    /// How many took it, if all threads have delivered it already.
    pub fn known(&mut self) -> Option<usize> {
        let pending = matches!(self.delivered.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        (!pending).then(|| self.taken.load(Relaxed))
    }

    /// How many took it: when all threads have delivered it, or at the timeout those until then.
    pub async fn count(self, timeout: Duration) -> usize {
        // A stalled thread must not block the publisher.
        let _ = tokio::time::timeout(timeout, self.delivered).await;
        self.taken.load(Relaxed)
    }
}
