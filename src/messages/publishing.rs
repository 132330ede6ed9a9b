//! Publishing: what is sent, to whom, and why it may be refused.

use actix::prelude::*;
use bytestring::ByteString;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Payload;
use crate::model::{ConnectionId, RoomName, UserId};

/// Sends something to every connection of an [audience](Audience): to exactly those who belong to it when the
/// registry handles this, each once. Returns how many took it; a thread that has not delivered it within a
/// second is not counted.
///
/// A receiver whose mailbox is full is removed ([`Cause::SlowConsumer`](crate::Cause::SlowConsumer)); the others
/// never wait. Connections on other nodes get it at most once, and are counted as far as this node knows them or
/// the database answers.
#[derive(Debug, Message)]
#[rtype(result = "Result<usize, PublishError>")]
pub struct Publish {
    /// Who gets it.
    pub to: Audience,
    /// What to send.
    pub content: Content,
    /// The sender by its connection's own id, which has to be in the room with the right to publish, or in each of
    /// several rooms. Where the audience is a user or a connection, any one room with that right is enough, also one
    /// that the receiver is not in. Sending counts as its activity.
    pub from: Option<ConnectionId>,
    /// A connection that does not get it, usually the sender.
    pub except: Option<ConnectionId>,
}

impl Publish {
    /// A text. Raw sessions and JSON clients get it as it is, so to those it has to be JSON of your own; Phoenix
    /// clients get it as a [JSON](Self::json) string.
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

    /// An event of a Phoenix channel: a name and a JSON value. Names that begin with `phx_` or `presence_` are
    /// refused ([`PublishError::ReservedEvent`]).
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
    /// The members of several rooms. A [`ForwardMessage`](crate::ForwardMessage) names one of the rooms that its
    /// receiver is in.
    Rooms(Vec<RoomName>),
    /// Every connection that is in some room as this user, on all nodes. A
    /// [`ForwardMessage`](crate::ForwardMessage) names the room that its receiver has been in for longest as this
    /// user.
    User(UserId),
    /// This connection: by its own id, or by that of its presence, which differs after it has taken over a
    /// client session. A [`ForwardMessage`](crate::ForwardMessage) names the room that it has been in for longest.
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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Content {
    /// Text as it is, for every dialect.
    Text(ByteString),
    /// A JSON value, wrapped as each dialect has it; as it is for [`Dialect::Raw`](super::Dialect).
    Json(Box<RawValue>),
    /// An event with a JSON value, wrapped as each dialect has it; the value alone for
    /// [`Dialect::Raw`](super::Dialect).
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
    /// The name of the event begins with `phx_` or `presence_`: clients would take it for the server's own.
    #[error("the name of the event is reserved")]
    ReservedEvent,
}
