//! Messages to the members of a room.

use actix::prelude::*;
use bytestring::ByteString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::Reservation;
use crate::model::{Cause, ConnectionId, RoomName};

/// Sends something to every member of a room: to exactly those who are in it when the registry reads
/// this. Answers how many took it; a thread that has not delivered it within a second is not counted.
///
/// A member whose mailbox is full loses its place ([`Cause::SlowConsumer`]); the others never wait.
#[derive(Debug, Message)]
#[rtype(result = "Result<usize, NotAMember>")]
pub struct Publish {
    /// To which room.
    pub room: RoomName,
    /// What.
    pub content: Content,
    /// Who says it. A sender has to be in the room, and sending is a sign of life.
    pub from: Option<ConnectionId>,
    /// A member that shall not get it, usually the sender.
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
    pub fn json(room: RoomName, payload: Box<RawValue>) -> Self {
        Self { room, content: Content::Json(payload), from: None, except: None }
    }

    /// An event of a Phoenix channel: a name and a JSON value.
    #[must_use]
    pub fn event(room: RoomName, event: impl Into<ByteString>, payload: Box<RawValue>) -> Self {
        let content = Content::Event { event: event.into(), payload };
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

/// A [`Publish`] of a session that waits for the answer before it handles anything else: answered soon, even
/// if a thread has not delivered the message yet.
#[derive(Debug, Message)]
#[rtype(result = "Result<usize, NotAMember>")]
pub(crate) struct Say(pub Publish);

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

/// The sender of a [`Publish`] is not in the room; nobody got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender is not in the room")]
pub struct NotAMember;

/// Something for a member's client, encoded once and shared by all who get it.
///
/// Its bytes count towards what may wait for the connection until it is dropped: a session that holds
/// messages back should hold back this, and not just its payload.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForwardMessage {
    /// From which room.
    pub room: RoomName,
    /// What it is.
    pub kind: Forwarded,
    /// The text of the frame.
    pub payload: ByteString,
    /// `None` for a message that no dispatcher has sent.
    pub(crate) reservation: Option<Reservation>,
}

impl ForwardMessage {
    /// A message that does not count towards what waits for a connection.
    #[must_use]
    pub fn new(room: RoomName, kind: Forwarded, payload: impl Into<ByteString>) -> Self {
        Self { room, kind, payload: payload.into(), reservation: None }
    }
}

impl Clone for ForwardMessage {
    /// The same message; only the original counts towards what waits for the connection.
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
    /// Who is in the room: the whole of it.
    State,
    /// What changed in the room.
    Diff,
    /// The connection was removed from this room, and is in others still: the room was closed, or a newer
    /// connection of its client session has taken its place. The payload is empty, and not to be sent to
    /// the client as it is.
    Closed,
}

/// Tells a session to close; it gets nothing more. The connection has left its last room or, where the
/// registry is [shutting down](crate::Shutdown), stays a member until its session has left, which it should
/// do at once.
///
/// Sent at most once, also to a full mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    /// The WebSocket close code that tells the client what to do next: see [`close_code`].
    pub code: u16,
    /// Why.
    pub cause: Cause,
}

/// The WebSocket close code for a cause, if the registry closes connections for it.
///
/// After 4001, 4002 and 4004 a client should not come back by itself.
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
