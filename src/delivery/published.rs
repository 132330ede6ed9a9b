//! Messages for the members of a room: each is encoded at most once per dialect, by the first thread that
//! needs it.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytestring::ByteString;
use tokio::sync::oneshot;

use crate::{
    counters::Counter,
    messages::{Content, Dialect},
    model::{ConnectionId, RoomName},
    wire::{json, phoenix},
};

/// What is published to a room.
pub(crate) struct Publication {
    pub content: Content,
    pub from: Option<json::Sender>,
    /// The sender's presence and the version of its join, where both are known.
    pub joined: Option<(ConnectionId, u64)>,
    /// A connection that does not get it.
    pub except: Option<ConnectionId>,
}

/// A message on its way to the members of a room.
#[derive(Clone)]
pub(super) struct RoomMessage {
    pub published: Arc<Published>,
    /// The sender's presence, if it has one.
    pub sender: Option<ConnectionId>,
    pub except: Option<ConnectionId>,
    /// It is for the members whose entry has at most this number.
    pub last_entry: u64,
    /// The version that a listener has to be sent before.
    pub min_version: u64,
}

/// The content of a message, with its frames.
pub(super) struct Published {
    room: RoomName,
    content: Content,
    from: Option<json::Sender>,
    raw: OnceLock<ByteString>,
    json: OnceLock<ByteString>,
    phoenix: OnceLock<ByteString>,
    taken: Arc<AtomicUsize>,
    deliveries: Counter,
    /// Closed when all threads have dropped the message, and so delivered it.
    _delivered: oneshot::Sender<()>,
}

/// How many members took a message.
pub(crate) struct DeliveryCount {
    taken: Arc<AtomicUsize>,
    delivered: oneshot::Receiver<()>,
}

impl Published {
    pub fn new(
        room: RoomName,
        content: Content,
        from: Option<json::Sender>,
        deliveries: Counter,
    ) -> (Self, DeliveryCount) {
        let (_delivered, delivered) = oneshot::channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let count = DeliveryCount { taken: Arc::clone(&taken), delivered };
        let [raw, json, phoenix] = [const { OnceLock::new() }; 3];
        (Self { room, content, from, raw, json, phoenix, taken, deliveries, _delivered }, count)
    }

    pub fn room(&self) -> &RoomName {
        &self.room
    }

    /// The size of the content, without the frame of a dialect.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Json(value) | Content::Event { payload: value, .. } => value.get().len(),
        }
    }

    /// Counts members that took it.
    pub fn count_taken(&self, more: usize) {
        self.taken.fetch_add(more, Relaxed);
        self.deliveries.add(more);
    }

    pub fn frame(&self, dialect: Dialect) -> ByteString {
        let (room, content, from) = (&self.room, &self.content, self.from.as_ref());
        let frame = match dialect {
            Dialect::Raw => &self.raw,
            Dialect::Json(_) => &self.json,
            Dialect::Phoenix => &self.phoenix,
        };
        let encode = || match (content, dialect) {
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
        };
        frame.get_or_init(encode).clone()
    }
}

impl DeliveryCount {
    /// Nobody took it.
    pub fn none() -> Self {
        Self { taken: Arc::default(), delivered: oneshot::channel().1 }
    }

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
