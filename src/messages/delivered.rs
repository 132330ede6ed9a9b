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
use crate::model::{Cause, ConnectionId, RoomName, Sender, UserId};

/// Sends something to every connection of an [audience](Audience): to exactly those who belong to it when the
/// registry handles this, each once. Returns how many took it; a thread that has not delivered it within a
/// second is not counted.
///
/// A receiver whose mailbox is full is removed ([`Cause::SlowConsumer`]); the others never wait. Connections on
/// other nodes get it at most once, and are counted as far as this node knows them or the database answers.
#[derive(Debug, Message)]
#[rtype(result = "Result<usize, PublishError>")]
pub struct Publish {
    /// Who gets it.
    pub to: Audience,
    /// What to send.
    pub content: Content,
    /// The sender, which has to be in the room, in each of several rooms, or in any room where the audience is
    /// a user or a connection; sending counts as its activity.
    pub from: Option<ConnectionId>,
    /// A connection that does not get it, usually the sender.
    pub except: Option<ConnectionId>,
}

impl Publish {
    /// A text that everybody gets as it is.
    #[must_use]
    pub fn new(to: impl Into<Audience>, text: impl Into<ByteString>) -> Self {
        Self { to: to.into(), content: Content::Text(text.into()), from: None, except: None }
    }

    /// A JSON value, which everybody gets as a message of their dialect.
    #[must_use]
    pub fn json(to: impl Into<Audience>, payload: impl Into<Payload>) -> Self {
        let content = Content::Json(payload.into().into());
        Self { to: to.into(), content, from: None, except: None }
    }

    /// An event of a Phoenix channel: a name and a JSON value.
    #[must_use]
    pub fn event(
        to: impl Into<Audience>,
        event: impl Into<ByteString>,
        payload: impl Into<Payload>,
    ) -> Self {
        let content = Content::Event { event: event.into(), payload: payload.into().into() };
        Self { to: to.into(), content, from: None, except: None }
    }

    /// Names the sender: see [`from`](Self::from).
    #[must_use]
    pub fn sent_by(self, connection: ConnectionId) -> Self {
        Self { from: Some(connection), ..self }
    }

    /// Leaves one connection out.
    #[must_use]
    pub fn except(self, connection: ConnectionId) -> Self {
        Self { except: Some(connection), ..self }
    }
}

/// Who gets what is [published](Publish). A connection in no room gets nothing.
///
/// ```
/// use actix_presence::{ConnectionId, Publish, RoomName, UserId};
///
/// # let (lobby, garden) = (RoomName::new("lobby")?, RoomName::new("garden")?);
/// # let (ada, tab) = (UserId::new("ada")?, ConnectionId::new());
/// Publish::new(lobby.clone(), "to a room");
/// Publish::new([lobby, garden], "to both, and once to who is in both");
/// Publish::new(ada, "to all connections of a user, on all nodes");
/// Publish::new(tab, "to one connection");
/// # Ok::<(), actix_presence::InvalidName>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Audience {
    /// The members of a room.
    Room(RoomName),
    /// The members of several rooms. A [`ForwardMessage`] names one of the rooms that its receiver is in.
    Rooms(Vec<RoomName>),
    /// Every connection that is in some room as this user, on all nodes. A [`ForwardMessage`] names the room
    /// that its receiver has been in for longest as this user.
    User(UserId),
    /// This connection: by its own id, or by that of its presence, which differs after it has taken over a
    /// client session. A [`ForwardMessage`] names the room that it has been in for longest.
    Connection(ConnectionId),
}

impl From<RoomName> for Audience {
    fn from(room: RoomName) -> Self {
        Self::Room(room)
    }
}

impl From<Vec<RoomName>> for Audience {
    fn from(rooms: Vec<RoomName>) -> Self {
        Self::Rooms(rooms)
    }
}

impl<const N: usize> From<[RoomName; N]> for Audience {
    fn from(rooms: [RoomName; N]) -> Self {
        Self::Rooms(rooms.into())
    }
}

impl From<UserId> for Audience {
    fn from(user: UserId) -> Self {
        Self::User(user)
    }
}

impl From<ConnectionId> for Audience {
    fn from(connection: ConnectionId) -> Self {
        Self::Connection(connection)
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
    /// The sender is not in the room, in one of the rooms, or in any room.
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
    /// Who sent it, if it is a message whose [`Publish`] names the sender.
    pub from: Option<Sender>,
    pub(crate) reservation: Option<Reservation>,
}

impl ForwardMessage {
    /// A message that does not count towards a backlog.
    #[must_use]
    pub fn new(room: RoomName, kind: Forwarded, payload: impl Into<ByteString>) -> Self {
        Self { room, kind, payload: payload.into(), from: None, reservation: None }
    }
}

impl Clone for ForwardMessage {
    /// The same message; only the original counts towards the backlog.
    fn clone(&self) -> Self {
        let (room, payload, from) = (self.room.clone(), self.payload.clone(), self.from.clone());
        Self { room, kind: self.kind, payload, from, reservation: None }
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
    /// The connection was removed from this room and is still in others: it was kicked, the room was closed,
    /// or a newer connection of its client session has taken over. The payload is empty, and not for the
    /// client. Who is removed from the last room gets [`Disconnect`] instead.
    Closed {
        /// Why it was removed.
        cause: Cause,
    },
}

/// Tells a session to close; nothing follows it. The connection was removed from its last room or, during a
/// [`Shutdown`](crate::Shutdown), stays a member until its session leaves, which it should do at once.
///
/// Sent at most once, also to a full mailbox. One that has [registered](Register) is told of a shutdown in no room,
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    /// The WebSocket close code: see [`close_code`].
    pub code: u16,
    /// Why the session has to close.
    pub cause: Cause,
}

/// What a session is sent: see [`Connection::outlet`](crate::Connection::outlet).
#[derive(Clone, Debug)]
pub enum Heard {
    /// A frame.
    Frame(ForwardMessage),
    /// The order to close.
    Close(Disconnect),
}

/// Has a connection told to close during a [`Shutdown`](crate::Shutdown), also while it is in no room. Holds until
/// its [`LeaveAll`](crate::LeaveAll); sent again, it names another recipient.
///
/// [`Connection::register`](crate::Connection::register) sends it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Register {
    /// The connection.
    pub connection: ConnectionId,
    /// The recipient of the order to close.
    pub disconnect: Recipient<Disconnect>,
}

impl Register {
    /// The message for this connection.
    #[must_use]
    pub fn new(connection: ConnectionId, disconnect: Recipient<Disconnect>) -> Self {
        Self { connection, disconnect }
    }
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
