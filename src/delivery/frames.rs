//! Frames for the members of a room, each encoded once per dialect and only when first asked for.

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;
use bytestring::ByteString;

use crate::{
    messages::{Content, Dialect},
    model::{Cause, Place, Snapshot, UserId},
    wire::{json, phoenix},
};

/// One thing that was published.
pub(super) struct Published<'a> {
    room: &'a Snapshot,
    content: &'a Content,
    from: Option<&'a json::Sender>,
    raw: Option<ByteString>,
    json: Option<ByteString>,
    phoenix: Option<ByteString>,
}

impl<'a> Published<'a> {
    pub fn new(room: &'a Snapshot, content: &'a Content, from: Option<&'a json::Sender>) -> Self {
        Self { room, content, from, raw: None, json: None, phoenix: None }
    }

    pub fn frame(&mut self, dialect: Dialect) -> ByteString {
        let (room, content, from) = (self.room.room(), self.content, self.from);
        let once = match dialect {
            Dialect::Raw => &mut self.raw,
            Dialect::Json(_) => &mut self.json,
            Dialect::Phoenix => &mut self.phoenix,
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
        once.get_or_insert_with(encode).clone()
    }
}

/// What may be different between two versions of a room.
#[derive(Default)]
pub(super) struct Touched {
    /// Users whose entry may have changed, with the cause of the last leave.
    pub users: HashMap<UserId, Cause, RandomState>,
    /// Places where presences came, went or changed, with the cause of the last leave.
    pub places: BTreeMap<Place, Cause>,
}

impl Touched {
    pub fn clear(&mut self) {
        self.users.clear();
        self.places.clear();
    }
}

/// Who is there, and what changed since.
pub(super) struct Presences<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    touched: &'a Touched,
    full: Option<ByteString>,
    state: Option<ByteString>,
    diff: Option<ByteString>,
    count: Option<ByteString>,
    phoenix_state: Option<ByteString>,
    phoenix_diff: Option<ByteString>,
}

impl<'a> Presences<'a> {
    pub fn new(before: &'a Snapshot, after: &'a Snapshot, touched: &'a Touched) -> Self {
        Self {
            before,
            after,
            touched,
            full: None,
            state: None,
            diff: None,
            count: None,
            phoenix_state: None,
            phoenix_diff: None,
        }
    }

    pub fn full(&mut self) -> ByteString {
        self.full.get_or_insert_with(|| self.after.to_json()).clone()
    }

    pub fn state(&mut self) -> ByteString {
        self.state.get_or_insert_with(|| json::presence_state(self.after)).clone()
    }

    pub fn count(&mut self) -> ByteString {
        self.count.get_or_insert_with(|| json::presence_count(self.after)).clone()
    }

    pub fn diff(&mut self) -> ByteString {
        let changed = || self.touched.users.iter().map(|(user, cause)| (user, *cause));
        let encode = || json::presence_diff(self.before, self.after, changed());
        self.diff.get_or_insert_with(encode).clone()
    }

    pub fn phoenix_state(&mut self) -> ByteString {
        self.phoenix_state.get_or_insert_with(|| phoenix::presence_state(self.after)).clone()
    }

    pub fn phoenix_diff(&mut self) -> ByteString {
        let (before, after) = (self.before, self.after);
        let changes = self.touched.places.iter().filter_map(|(place, cause)| {
            let (was, is) = (before.presence(place), after.presence(place));
            let before = was.clone().map(|was| (was, *cause));
            (was != is).then_some(phoenix::Change { before, after: is })
        });
        let encode = || {
            let (room, epoch) = (after.room(), after.epoch());
            phoenix::presence_diff(room, epoch, before.version(), after.version(), changes)
        };
        self.phoenix_diff.get_or_insert_with(encode).clone()
    }
}
