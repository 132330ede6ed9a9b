//! What a session is sent: frames of its rooms, and the order to close, for which it may register.

use std::sync::Weak;

use actix::prelude::*;
use bytestring::ByteString;

use super::Reservation;
use crate::model::{Cause, ConnectionId, RoomName, Sender};

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
    /// Who sent it, if it is a message whose [`Publish`](crate::Publish) names the sender.
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
    /// client. A connection that is removed from its last room gets [`Disconnect`] instead.
    Closed {
        /// Why it was removed.
        cause: Cause,
    },
}

/// Tells a session to close; nothing follows it. The connection was removed from its last room or, during a
/// [`Shutdown`](crate::Shutdown), stays a member until its session leaves, which it should do at once.
///
/// Sent at most once, also to a full mailbox. A connection that has [registered](Register) is told of a shutdown
/// even while it is in no room. After a [crash](crate::PresenceHandle::closed) of the registry the code is 1011.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    /// The WebSocket close code: see [`close_code`].
    pub code: u16,
    /// Why the session has to close.
    pub cause: Cause,
}

impl Disconnect {
    /// The reason for the close frame: the cause or, after a crash, `internal error`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        if *self == CRASHED { "internal error" } else { self.cause.as_str() }
    }
}

/// What a session is sent: see [`Connection::outlet`](crate::Connection::outlet).
#[derive(Clone, Debug)]
pub enum Heard {
    /// A frame.
    Frame(ForwardMessage),
    /// The order to close.
    Close(Disconnect),
}

/// Registers a connection to be told to close during a [`Shutdown`](crate::Shutdown), even while it is in no room.
/// A later one replaces the recipient. A [`Join`](crate::Join) after it that names no recipient of its own uses this
/// one.
///
/// [`Connection::register`](crate::Connection::register) sends it, and it holds until that is dropped. Sent by hand
/// it holds until the [`LeaveAll`](crate::LeaveAll) of the connection.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Register {
    /// The connection.
    pub connection: ConnectionId,
    /// The recipient of the order to close.
    pub disconnect: Recipient<Disconnect>,
    /// Gone with the connection, if it is a [`Connection`](crate::Connection).
    pub(crate) alive: Option<Weak<()>>,
}

impl Register {
    /// The message for this connection.
    #[must_use]
    pub fn new(connection: ConnectionId, disconnect: Recipient<Disconnect>) -> Self {
        Self { connection, disconnect, alive: None }
    }
}

/// A [`Register`] on its way to the registry. Dropped before that has it, it tells the session to close: there is no
/// registry any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Registration(Option<Register>);

impl Registration {
    pub fn new(
        connection: ConnectionId,
        disconnect: Recipient<Disconnect>,
        alive: Option<Weak<()>>,
    ) -> Self {
        Self(Some(Register { connection, disconnect, alive }))
    }

    /// The registration, for the registry.
    pub fn take(mut self) -> Option<Register> {
        self.0.take()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(Register { disconnect, .. }) = &self.0 {
            disconnect.do_send(GOING_AWAY);
        }
    }
}

/// What sessions are told when the app or the server stops (RFC 6455, section 7.4.1).
pub(crate) const GOING_AWAY: Disconnect = Disconnect { code: 1001, cause: Cause::Shutdown };

/// What sessions are told when the registry has crashed: an internal error (RFC 6455, section 7.4.1).
pub(crate) const CRASHED: Disconnect = Disconnect { code: 1011, cause: Cause::Disconnected };

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
        Cause::Shutdown => Some(GOING_AWAY.code),
    }
}
