//! What was published to a room: encoded once per dialect and only when first asked for, by whichever
//! thread that is.

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
    model::RoomName,
    wire::{json, phoenix},
};

/// One thing that was published.
pub(super) struct Published {
    room: RoomName,
    content: Content,
    from: Option<json::Sender>,
    raw: OnceLock<ByteString>,
    json: OnceLock<ByteString>,
    phoenix: OnceLock<ByteString>,
    taken: Arc<AtomicUsize>,
    deliveries: Counter,
    /// Dropped with this, and so when it has been handed to everybody.
    _served: oneshot::Sender<()>,
}

/// How many take what was published.
pub(crate) struct Taking {
    taken: Arc<AtomicUsize>,
    served: oneshot::Receiver<()>,
}

impl Published {
    pub fn new(
        room: RoomName,
        content: Content,
        from: Option<json::Sender>,
        deliveries: Counter,
    ) -> (Self, Taking) {
        let (_served, served) = oneshot::channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let taking = Taking { taken: Arc::clone(&taken), served };
        let [raw, json, phoenix] = [const { OnceLock::new() }; 3];
        (Self { room, content, from, raw, json, phoenix, taken, deliveries, _served }, taking)
    }

    pub fn room(&self) -> &RoomName {
        &self.room
    }

    /// The size of what is published, without what a dialect puts around it.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Json(value) | Content::Event { payload: value, .. } => value.get().len(),
        }
    }

    /// So many more have taken it.
    pub fn taken_by(&self, more: usize) {
        self.taken.fetch_add(more, Relaxed);
        self.deliveries.add(more);
    }

    pub fn frame(&self, dialect: Dialect) -> ByteString {
        let (room, content, from) = (&self.room, &self.content, self.from.as_ref());
        let once = match dialect {
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
        once.get_or_init(encode).clone()
    }
}

impl Taking {
    /// Nobody.
    pub fn none() -> Self {
        Self { taken: Arc::default(), served: oneshot::channel().1 }
    }

    /// So many more take it elsewhere.
    pub fn add(&self, more: usize) {
        self.taken.fetch_add(more, Relaxed);
    }

    /// How many have taken it when everybody was served, or as many as have when the time is up.
    pub async fn count(self, patience: Duration) -> usize {
        // A thread that stands still must not hold up who publishes.
        let _ = tokio::time::timeout(patience, self.served).await;
        self.taken.load(Relaxed)
    }
}
