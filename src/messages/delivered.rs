//! Messages to the members of a room, and the backlog of frames that a member's socket has not taken yet.
//!
//! A mailbox is bounded in frames, which may be large. So each delivered frame carries a [`Reservation`] of
//! its bytes, which ends when the frame is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use actix::prelude::*;
use bytestring::ByteString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::Payload;
use crate::model::{Cause, ConnectionId, RoomName};

/// Sends something to every member of a room: to exactly those who are in it when the registry handles
/// this. Returns how many took it; a thread that has not delivered it within a second is not counted.
///
/// A member whose mailbox is full is removed ([`Cause::SlowConsumer`]); the others never wait.
#[derive(Debug, Message)]
#[rtype(result = "Result<usize, PublishError>")]
pub struct Publish {
    /// The room.
    pub room: RoomName,
    /// What to send.
    pub content: Content,
    /// The sender, which has to be in the room; sending counts as its activity.
    pub from: Option<ConnectionId>,
    /// A member that does not get it, usually the sender.
    pub except: Option<ConnectionId>,
}

impl Publish {
    /// A text that every member gets as it is.
    #[must_use]
    pub fn new(room: RoomName, text: impl Into<ByteString>) -> Self {
        Self { room, content: Content::Text(text.into()), from: None, except: None }
    }

    /// A JSON value, which every member gets as a message of its dialect.
    #[must_use]
    pub fn json(room: RoomName, payload: impl Into<Payload>) -> Self {
        let content = Content::Json(payload.into().into());
        Self { room, content, from: None, except: None }
    }

    /// An event of a Phoenix channel: a name and a JSON value.
    #[must_use]
    pub fn event(
        room: RoomName,
        event: impl Into<ByteString>,
        payload: impl Into<Payload>,
    ) -> Self {
        let content = Content::Event { event: event.into(), payload: payload.into().into() };
        Self { room, content, from: None, except: None }
    }

    /// Names the sender: a connection that has to be in the room.
    #[must_use]
    pub fn sent_by(self, connection: ConnectionId) -> Self {
        Self { from: Some(connection), ..self }
    }

    /// Leaves one member out.
    #[must_use]
    pub fn except(self, connection: ConnectionId) -> Self {
        Self { except: Some(connection), ..self }
    }
}

/// A [`Publish`] of a session that waits for the reply before it handles anything else: the reply does not wait
/// for the delivery.
#[derive(Debug, Message)]
#[rtype(result = "Result<usize, PublishError>")]
pub(crate) struct SessionPublish(pub Publish);

/// What is published.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Content {
    /// Text as it is, for every dialect.
    #[serde(with = "text")]
    Text(ByteString),
    /// A JSON value, wrapped as each dialect has it; as it is for [`Dialect::Raw`](super::Dialect).
    Json(Box<RawValue>),
    /// An event with a JSON value, wrapped as each dialect has it; the value alone for
    /// [`Dialect::Raw`](super::Dialect).
    #[serde(with = "event")]
    Event {
        /// The event's name.
        event: ByteString,
        /// Its value.
        payload: Box<RawValue>,
    },
}

impl Content {
    /// Its size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Json(value) => value.get().len(),
            Self::Event { event, payload } => event.len() + payload.get().len(),
        }
    }
}

/// The encoding of [`Content::Text`].
mod text {
    use super::*;

    pub fn serialize<S: Serializer>(text: &ByteString, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ByteString, D::Error> {
        String::deserialize(from).map(ByteString::from)
    }
}

/// The encoding of [`Content::Event`]: its name and its value in an array.
mod event {
    use super::*;

    pub fn serialize<S: Serializer>(
        event: &ByteString,
        payload: &RawValue,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        (&**event, payload).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<(ByteString, Box<RawValue>), D::Error> {
        let (event, payload) = <(String, _)>::deserialize(from)?;
        Ok((event.into(), payload))
    }
}

/// Why a [`Publish`] was refused; nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The sender is not in the room.
    #[error("the sender is not in the room")]
    NotAMember,
    /// The sender may not publish in the room: its [rights](crate::Rights::publish) say so. Sending it again
    /// will not help.
    #[error("the sender may not publish in the room")]
    NotAllowed,
}

/// A frame for a member's client, encoded once and shared by all members.
///
/// Its bytes count towards the connection's backlog until it is dropped: a session that queues messages
/// should queue this, and not just the payload.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForwardMessage {
    /// The room.
    pub room: RoomName,
    /// What it is.
    pub kind: Forwarded,
    /// The text of the frame.
    pub payload: ByteString,
    pub(crate) reservation: Option<Reservation>,
}

impl ForwardMessage {
    /// A message that does not count towards a backlog.
    #[must_use]
    pub fn new(room: RoomName, kind: Forwarded, payload: impl Into<ByteString>) -> Self {
        Self { room, kind, payload: payload.into(), reservation: None }
    }
}

impl Clone for ForwardMessage {
    /// The same message; only the original counts towards the backlog.
    fn clone(&self) -> Self {
        Self::new(self.room.clone(), self.kind, self.payload.clone())
    }
}

/// What a [`ForwardMessage`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forwarded {
    /// Something published to the room.
    Message,
    /// The full member list.
    State,
    /// What changed in the room.
    Diff,
    /// The connection was removed from this room and is still in others: the room was closed, or a newer
    /// connection of its client session has taken over. The payload is empty, and not for the client.
    Closed,
}

/// Tells a session to close; nothing follows it. The connection was removed from its last room or, during a
/// [`Shutdown`](crate::Shutdown), stays a member until its session leaves, which it should do at once.
///
/// Sent at most once, also to a full mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    /// The WebSocket close code: see [`close_code`].
    pub code: u16,
    /// Why the session has to close.
    pub cause: Cause,
}

/// The WebSocket close code for a cause, if the registry closes connections for it.
///
/// After 4001, 4002 and 4004 a client should not reconnect by itself.
#[must_use]
pub fn close_code(cause: Cause) -> Option<u16> {
    match cause {
        Cause::Left | Cause::Disconnected | Cause::NodeLost => None,
        Cause::Expired => Some(4000),
        Cause::Kicked => Some(4001),
        Cause::Replaced => Some(4002),
        Cause::SlowConsumer => Some(4003),
        Cause::RoomClosed => Some(4004),
        Cause::Shutdown => Some(1001),
    }
}

/// How many bytes may wait for a connection by default.
pub(crate) const DEFAULT_BACKLOG_LIMIT: usize = 1024 * 1024;

/// How many bytes may wait for a connection whose own frames have at most this size.
pub(crate) fn backlog_limit(max_frame_size: usize) -> usize {
    max_frame_size.saturating_mul(2).max(DEFAULT_BACKLOG_LIMIT)
}

/// The size of the frames that wait for one connection. Its dispatcher adds, dropped frames subtract.
#[derive(Debug)]
pub(crate) struct Backlog {
    limit: usize,
    /// Bytes of messages, diffs and counts.
    bytes: AtomicUsize,
    /// Whether a full list waits; there is at most one.
    state: AtomicBool,
}

/// A frame's part of a [`Backlog`], released when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    backlog: Arc<Backlog>,
    part: ReservedPart,
}

#[derive(Debug)]
enum ReservedPart {
    Bytes(usize),
    State,
}

impl Backlog {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, bytes: AtomicUsize::new(0), state: AtomicBool::new(false) })
    }

    /// Reserves the bytes of a frame; one larger than the limit is accepted when nothing else waits.
    // Only the connection's dispatcher reserves, so nothing is added between check and update.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let waiting = self.bytes.load(Relaxed);
        if waiting > 0 && waiting.saturating_add(bytes) > self.limit {
            return None;
        }
        self.bytes.fetch_add(bytes, Relaxed);
        Some(Reservation { backlog: Arc::clone(self), part: ReservedPart::Bytes(bytes) })
    }

    /// Reserves space for a full list, if none waits.
    pub fn reserve_state(self: &Arc<Self>) -> Option<Reservation> {
        let taken = self.state.swap(true, Relaxed);
        (!taken).then(|| Reservation { backlog: Arc::clone(self), part: ReservedPart::State })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match self.part {
            ReservedPart::Bytes(bytes) => drop(self.backlog.bytes.fetch_sub(bytes, Relaxed)),
            ReservedPart::State => self.backlog.state.store(false, Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_accepted_up_to_the_limit_and_again_when_others_are_dropped() {
        let backlog = Backlog::new(100);
        let first = backlog.reserve(60).unwrap();
        let second = backlog.reserve(40).unwrap();
        assert!(backlog.reserve(1).is_none());
        drop(first);
        assert!(backlog.reserve(61).is_none());
        assert!(backlog.reserve(60).is_some());
        drop(second);
    }

    #[test]
    fn a_frame_over_the_limit_is_accepted_when_nothing_else_waits() {
        let backlog = Backlog::new(100);
        let large = backlog.reserve(1000).unwrap();
        assert!(backlog.reserve(1).is_none());
        drop(large);
        let _small = backlog.reserve(1).unwrap();
        assert!(backlog.reserve(1000).is_none());
    }

    #[test]
    fn at_most_one_full_list_waits_whatever_else_does() {
        let backlog = Backlog::new(100);
        let (_frame, state) = (backlog.reserve(100).unwrap(), backlog.reserve_state().unwrap());
        assert!(backlog.reserve_state().is_none());
        drop(state);
        assert!(backlog.reserve_state().is_some());
    }
}
