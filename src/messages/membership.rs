//! Coming, staying and going.

use std::{
    borrow::Cow,
    sync::Arc,
    thread::{self, ThreadId},
    time::Duration,
};

use actix::{dev::OneshotSender, prelude::*};
use serde::{Deserialize, Serialize};

use super::{DEFAULT_BACKLOG_LIMIT, Disconnect, ForwardMessage};
use crate::{
    model::{
        Activity, Cause, ConnectionId, Info, LimitReached, Presence, RoomName, SessionKey,
        Snapshot, Superseded, UserId,
    },
    sockets::SocketKey,
};

/// How a connection wants to hear of its rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// Published text as it is, and no member lists: for apps with a protocol of their own.
    #[default]
    Raw,
    /// The JSON frames of the server, with this much about who is there.
    Json(Feed),
    /// The frames of Phoenix Channels, version 2.0.0.
    Phoenix,
}

/// How much a JSON connection hears about who is in its room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feed {
    /// The whole member list after changes: the frame of the original's documentation.
    #[default]
    Full,
    /// The whole list once, then what changed; for large rooms.
    Diff,
    /// Only how many; for very large rooms.
    Count,
    /// Nothing.
    None,
}

/// "I enter this room." Sent by a session before it reads anything from its client.
///
/// Makes the room if need be, and is idempotent: the same connection joining again with the same user
/// and info changes nothing, with others it changes its presence in one step. Every join is a sign of
/// life of the connection in all its rooms.
///
/// Make it on the session's own thread: what the room gets is sent to `forward` from there, without
/// waiting. A session needs a mailbox with room for a burst (`ctx.set_mailbox_capacity(256)`); one whose
/// mailbox is full loses its place with [`Cause::SlowConsumer`]. A join that is made where no actix arbiter
/// runs is served by the registry's own thread.
#[derive(Debug, Message)]
#[rtype(result = "Result<Joined, JoinError>")]
pub struct Join {
    /// The room to enter.
    pub room: RoomName,
    /// Who enters; the same in every message of this session.
    pub connection: ConnectionId,
    /// Whose connection it is; `None` is anonymous.
    pub user: Option<UserId>,
    /// What to attach to the presence. A join that resumes a client session keeps what is attached
    /// there already.
    pub info: Info,
    /// The part of the info that is fixed, as by a token. In a session that is resumed it replaces what
    /// was fixed before: keys that it no longer has go.
    pub fixed: Info,
    /// The client session it is a connection of, if the client has one that survives reconnects.
    pub session: Option<SessionKey>,
    /// How it wants to hear of its rooms; the latest join of a connection counts for all of them.
    pub dialect: Dialect,
    /// Takes what is published to the room.
    pub forward: Recipient<ForwardMessage>,
    /// Takes the order to close, once, when the registry puts the connection out of its last room.
    pub disconnect: Option<Recipient<Disconnect>>,
    /// Where it was made, if an arbiter runs there.
    pub(crate) thread: Option<SessionThread>,
    /// How many bytes of frames may wait for it.
    pub(crate) backlog_limit: usize,
    /// The socket of its session, on the session's thread, if it is watched.
    pub(crate) socket: Option<SocketKey>,
}

impl Join {
    /// An anonymous join; [`user`](Self::user) says whose connection it is.
    #[must_use]
    pub fn new(
        room: RoomName,
        connection: ConnectionId,
        forward: Recipient<ForwardMessage>,
    ) -> Self {
        Self {
            room,
            connection,
            user: None,
            info: Info::EMPTY,
            fixed: Info::EMPTY,
            session: None,
            dialect: Dialect::Raw,
            forward,
            disconnect: None,
            thread: SessionThread::current(),
            backlog_limit: DEFAULT_BACKLOG_LIMIT,
            socket: None,
        }
    }

    /// Says whose connection it is, if it is known.
    #[must_use]
    pub fn user(self, user: impl Into<Option<UserId>>) -> Self {
        Self { user: user.into(), ..self }
    }

    /// Attaches info to the presence.
    #[must_use]
    pub fn info(self, info: Info) -> Self {
        Self { info, ..self }
    }

    /// Says which part of the [info](Self::info) is fixed: see [`fixed`](Self::fixed).
    #[must_use]
    pub fn fixed_info(self, fixed: Info) -> Self {
        Self { fixed, ..self }
    }

    /// Names the client session, if there is one: a connection that ends without a goodbye then
    /// fades for [`grace`](crate::PresenceConfig::grace), and a newer one of the same session and
    /// user takes its place unnoticed, in each room that it joins.
    #[must_use]
    pub fn session(self, session: impl Into<Option<SessionKey>>) -> Self {
        Self { session: session.into(), ..self }
    }

    /// Chooses how to hear of the room.
    #[must_use]
    pub fn dialect(self, dialect: Dialect) -> Self {
        Self { dialect, ..self }
    }

    /// Takes the order to close.
    #[must_use]
    pub fn disconnect(self, disconnect: Recipient<Disconnect>) -> Self {
        Self { disconnect: Some(disconnect), ..self }
    }
}

/// The thread of a session, whose dispatcher delivers to it.
#[derive(Clone, Debug)]
pub(crate) struct SessionThread {
    pub id: ThreadId,
    pub arbiter: ArbiterHandle,
}

impl SessionThread {
    /// This thread, if an arbiter runs here.
    fn current() -> Option<Self> {
        Some(Self { id: thread::current().id(), arbiter: Arbiter::try_current()? })
    }
}

/// The answer to a [`Join`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Joined {
    /// The id of the connection's presence, under which the snapshot, diffs and other clients know it:
    /// the connection's own, or that of the connection that it replaced.
    pub presence: ConnectionId,
    /// The room with the newcomer in it.
    pub snapshot: Snapshot,
    /// Whether the join changed anything.
    pub changed: bool,
}

/// Whether somebody may join: what the [`authorize`](crate::PresenceConfig::authorize) hook answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow,
    /// No, and what to tell the client.
    Deny(Cow<'static, str>),
}

impl Decision {
    /// No, for this reason.
    #[must_use]
    pub fn deny(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Deny(reason.into())
    }
}

/// Why a [`Join`] was refused; nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The connection has left everything while its join waited for what other nodes know.
    #[error("the connection has left before it could join")]
    Withdrawn,
    /// A limit forbids it; somebody has to leave first.
    #[error(transparent)]
    Limit(#[from] LimitReached),
    /// The app's `authorize` hook said no; asking again will not help.
    #[error("not allowed: {reason}")]
    Denied {
        /// What the hook gave as its reason.
        reason: Cow<'static, str>,
    },
    /// A newer connection of the same client session has taken its place in the room.
    #[error(transparent)]
    Superseded(#[from] Superseded),
    /// The registry is shutting down; another node may take it.
    #[error("shutting down")]
    ShuttingDown,
}

/// "Could this user join now?" The [`Join`] itself may still be refused when others are quicker.
///
/// A browser does not tell a page why a WebSocket failed: only a request that cannot become a session, such
/// as a plain GET of the same address, can show the reason, and limits and the `authorize` hook are the
/// registry's.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), JoinError>")]
pub struct Admit {
    /// The room to enter.
    pub room: RoomName,
    /// Whose connection it would be; `None` is anonymous.
    pub user: Option<UserId>,
    /// What would be attached to the presence.
    pub info: Info,
    /// The client session, if there is one: resuming it needs no place in the room.
    pub session: Option<SessionKey>,
}

/// "I go out of this room." Answers whether the connection was in it; else nothing happens.
#[derive(Clone, Debug, Message)]
#[rtype(result = "bool")]
pub struct Leave {
    /// The room to leave.
    pub room: RoomName,
    /// Who leaves.
    pub connection: ConnectionId,
    /// Why; default [`Cause::Left`].
    pub cause: Cause,
}

impl Leave {
    /// A goodbye.
    #[must_use]
    pub fn new(room: RoomName, connection: ConnectionId) -> Self {
        Self { room, connection, cause: Cause::Left }
    }
}

/// "I go out of all my rooms": one change for each. Answers how many; an unknown connection is in
/// none.
///
/// Sent with `do_send` when a session ends, because it must not be lost.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "usize")]
pub struct LeaveAll {
    /// Who leaves.
    pub connection: ConnectionId,
    /// Why; default [`Cause::Left`].
    pub cause: Cause,
}

impl LeaveAll {
    /// A goodbye.
    #[must_use]
    pub fn new(connection: ConnectionId) -> Self {
        Self { connection, cause: Cause::Left }
    }

    /// The end of a session for a cause of its own.
    #[must_use]
    pub fn because(connection: ConnectionId, cause: Cause) -> Self {
        Self { connection, cause }
    }
}

/// "I am still here." Sent by a session on any traffic; at least every third of `max_age`.
///
/// Moves `last_seen` of every presence of the connection, in memory; the rows follow in bulk.
/// Unknown connections are ignored: a late touch never brings anybody back. A touch may be lost; the
/// next one makes up for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Touch {
    /// Who is alive.
    pub connection: ConnectionId,
    /// How it showed.
    pub activity: Activity,
}

impl Touch {
    /// A sign of life: some frame.
    #[must_use]
    pub fn new(connection: ConnectionId) -> Self {
        Self { connection, activity: Activity::Frame }
    }

    /// A heartbeat.
    #[must_use]
    pub fn heartbeat(connection: ConnectionId) -> Self {
        Self { connection, activity: Activity::Heartbeat }
    }
}

/// Touches in their order, then joins, of several sessions of a thread.
#[derive(Debug, Default, Message)]
#[rtype(result = "()")]
pub(crate) struct Batch {
    pub touches: Vec<Touch>,
    pub joins: Vec<PendingJoin>,
    /// Dropped when the registry has read the batch, which tells the thread how many are unread.
    pub unread: Option<Arc<()>>,
}

/// A join with the channel for its answer.
#[derive(Debug)]
pub(crate) struct PendingJoin {
    pub join: Join,
    pub reply: OneshotSender<Result<Joined, JoinError>>,
}

/// Replaces the info of a presence. Answers whether that changed anything.
#[derive(Clone, Debug, Message)]
#[rtype(result = "bool")]
pub struct UpdateInfo {
    /// In which room.
    pub room: RoomName,
    /// Whose.
    pub connection: ConnectionId,
    /// The new info.
    pub info: Info,
}

/// Puts out a connection, or all connections of a user, with [`Cause::Kicked`]. Answers how many
/// connections went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Message)]
#[serde(rename_all = "snake_case")]
#[rtype(result = "usize")]
pub enum Kick {
    /// This connection, out of all its rooms: by its own id, or by that of its presence, which is another
    /// one's if it has taken over a client session.
    Connection(ConnectionId),
    /// Every connection that is in some room as this user, out of all its rooms.
    User(UserId),
}

/// Puts everybody out of a room with [`Cause::RoomClosed`], in one change. Answers how many went.
/// Anybody may join it again.
#[derive(Clone, Debug, Message)]
#[rtype(result = "usize")]
pub struct CloseRoom {
    /// Which room.
    pub room: RoomName,
}

/// Removes every presence that was silent for longer than the age. Sent by the
/// [`Pruner`](crate::Pruner), or by anybody who does not want to wait for it.
///
/// Costs as much as there are to remove.
#[derive(Clone, Copy, Debug, Default, Message)]
#[rtype(result = "PruneReport")]
pub struct PrunePresences {
    /// Strictly older than this goes; `None` is `max_age`.
    pub age: Option<Duration>,
}

/// Who was pruned.
#[derive(Clone, Debug, Default, PartialEq, Eq, MessageResponse)]
pub struct PruneReport {
    /// The rooms that changed, by name.
    pub rooms: Vec<Pruned>,
}

impl PruneReport {
    /// How many presences were removed in all.
    #[must_use]
    pub fn removed(&self) -> usize {
        self.rooms.iter().map(|room| room.presences.len()).sum()
    }
}

/// Who was pruned from one room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Which room.
    pub room: RoomName,
    /// Who went.
    pub presences: Vec<Presence>,
}

/// Removes the rows of rooms in which nobody is. Answers how many rows went.
///
/// In memory an empty room is gone at once; only its row stays for a while.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<usize, super::FlushError>")]
pub struct PruneRooms;
