//! What a session tells the registry: that its connection joins, is still there, changes its info, leaves.

use std::{
    borrow::Cow,
    sync::Arc,
    thread::{self, ThreadId},
};

use actix::{dev::OneshotSender, prelude::*};

use super::{DEFAULT_BACKLOG_LIMIT, Disconnect, ForwardMessage, Registration};
use crate::{
    model::{
        Activity, Cause, ConnectionId, Info, LimitReached, Rights, RoomName, SessionKey, Snapshot,
        Superseded, UserId,
    },
    sockets::SocketKey,
};

/// The protocol of the frames that a connection gets from its rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// Published text as it is, and no member lists: for apps with a protocol of their own.
    #[default]
    Raw,
    /// The JSON frames of the server, with member lists as the feed says.
    Json(Feed),
    /// The frames of Phoenix Channels, version 2.0.0.
    Phoenix,
}

/// How much a JSON connection is sent about the members of its room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feed {
    /// The full member list after changes: the frame of the documentation of django-channels-presence.
    #[default]
    Full,
    /// The full list once, then diffs; for large rooms.
    Diff,
    /// Only the number of members; for very large rooms.
    Count,
    /// Nothing.
    None,
}

/// Adds a connection to a room. Sent by a session before it reads anything from its client.
///
/// Creates the room if necessary, and is idempotent: a member that joins again with the same user and info
/// changes nothing, with others it updates its presence in one change. Counts as activity of the connection
/// in all its rooms.
///
/// Make it on the session's own thread: frames are sent to `forward` from there, without waiting. A session
/// needs a mailbox with room for a burst (`ctx.set_mailbox_capacity(256)`); one whose mailbox is full is
/// removed with [`Cause::SlowConsumer`]. A join that is made where no actix arbiter runs is served by the
/// registry's own thread.
#[derive(Debug, Message)]
#[rtype(result = "Result<Joined, JoinError>")]
pub struct Join {
    /// The room to enter.
    pub room: RoomName,
    /// The connection; the same in every message of this session.
    pub connection: ConnectionId,
    /// The user; `None` is anonymous.
    pub user: Option<UserId>,
    /// What to attach to the presence. A resumed client session keeps its info.
    pub info: Info,
    /// The part of the info that is fixed, as by a token. In a resumed session it replaces the earlier
    /// fixed part: keys that it no longer has are removed.
    pub fixed: Info,
    /// The client session that survives reconnects, if the client has one.
    pub session: Option<SessionKey>,
    /// The frames that it gets; the latest join of a connection counts for all its rooms.
    pub dialect: Dialect,
    /// The recipient of the room's frames.
    pub forward: Recipient<ForwardMessage>,
    /// The recipient of the order to close, sent when the registry removes it from its last room.
    pub disconnect: Option<Recipient<Disconnect>>,
    /// The thread it was made on, if an arbiter runs there.
    pub(crate) thread: Option<SessionThread>,
    /// How many bytes of frames may wait for it.
    pub(crate) backlog_limit: usize,
    /// The socket of its session, on the session's thread, if it is watched.
    pub(crate) socket: Option<SocketKey>,
}

impl Join {
    /// An anonymous join.
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

    /// Sets the user; `None` is anonymous.
    #[must_use]
    pub fn user(self, user: impl Into<Option<UserId>>) -> Self {
        Self { user: user.into(), ..self }
    }

    /// Attaches info to the presence.
    #[must_use]
    pub fn info(self, info: Info) -> Self {
        Self { info, ..self }
    }

    /// Sets which part of the [info](Self::info) is fixed: see [`fixed`](Self::fixed).
    #[must_use]
    pub fn fixed_info(self, fixed: Info) -> Self {
        Self { fixed, ..self }
    }

    /// Sets the client session, if there is one: a connection that is lost then fades for
    /// [`grace`](crate::PresenceConfig::grace), and a newer one of the same session and user takes over its
    /// presence, without a leave or a join, in each room that it joins.
    #[must_use]
    pub fn session(self, session: impl Into<Option<SessionKey>>) -> Self {
        Self { session: session.into(), ..self }
    }

    /// Sets the frames to get.
    #[must_use]
    pub fn dialect(self, dialect: Dialect) -> Self {
        Self { dialect, ..self }
    }

    /// Sets the recipient of the order to close.
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
    /// The room with the newcomer in it; its counts alone for one who may not see its
    /// [members](Rights::members).
    pub snapshot: Snapshot,
    /// Whether the join changed anything.
    pub changed: bool,
    /// What the connection may do in the room.
    pub rights: Rights,
}

/// Why a [`Join`] was refused; nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The connection has left while its join waited for authorization or for the room's rows.
    #[error("the connection has left before it could join")]
    Withdrawn,
    /// A limit is reached; retrying helps only after a leave.
    #[error(transparent)]
    Limit(#[from] LimitReached),
    /// A hook of the app has refused it; or the connection was kicked, or the room closed, while its join waited.
    #[error("not allowed: {reason}")]
    Denied {
        /// The reason that the hook gave.
        reason: Cow<'static, str>,
    },
    /// A hook of the app [could not say](crate::Decision::Undecided), has panicked or has not answered in time.
    /// Retry later.
    #[error("authorization failed, try again later")]
    Undecided,
    /// Too many joins wait for the hook [`authorize_async`](crate::PresenceConfig::authorize_async). Retry
    /// later.
    #[error("too many joins wait for authorization")]
    Busy,
    /// A newer connection of the same client session has taken over its presence.
    #[error(transparent)]
    Superseded(#[from] Superseded),
    /// The registry is shutting down; another node may accept it.
    #[error("shutting down")]
    ShuttingDown,
}

/// Removes a connection from a room. Returns whether it was in it. Joins of it that wait for authorization
/// are refused with [`JoinError::Withdrawn`].
///
/// It is what a session says of itself, by its own id, and the session is not told: to put somebody out of a room
/// use [`KickFrom`](crate::KickFrom).
#[derive(Clone, Debug, Message)]
#[rtype(result = "bool")]
pub struct Leave {
    /// The room to leave.
    pub room: RoomName,
    /// The connection.
    pub connection: ConnectionId,
    /// Why; default [`Cause::Left`].
    pub cause: Cause,
}

impl Leave {
    /// A leave with [`Cause::Left`].
    #[must_use]
    pub fn new(room: RoomName, connection: ConnectionId) -> Self {
        Self { room, connection, cause: Cause::Left }
    }
}

/// Removes a connection from all its rooms: one change for each. Returns how many.
///
/// Sent with `do_send` when a session ends, because it must not be lost.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "usize")]
pub struct LeaveAll {
    /// The connection.
    pub connection: ConnectionId,
    /// Why; default [`Cause::Left`].
    pub cause: Cause,
}

impl LeaveAll {
    /// A leave with [`Cause::Left`].
    #[must_use]
    pub fn new(connection: ConnectionId) -> Self {
        Self { connection, cause: Cause::Left }
    }

    /// A leave with another cause.
    #[must_use]
    pub fn because(connection: ConnectionId, cause: Cause) -> Self {
        Self { connection, cause }
    }
}

/// Records activity of a connection. Sent by a session on any traffic; at least every third of `max_age`.
///
/// Moves `last_seen` of every presence of the connection, in memory; the rows follow in bulk.
/// Unknown connections are ignored: a late touch never brings one back. A touch may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct Touch {
    /// The connection.
    pub connection: ConnectionId,
    /// The kind of activity.
    pub activity: Activity,
}

impl Touch {
    /// A touch for some frame.
    #[must_use]
    pub fn new(connection: ConnectionId) -> Self {
        Self { connection, activity: Activity::Frame }
    }

    /// A touch for a heartbeat.
    #[must_use]
    pub fn heartbeat(connection: ConnectionId) -> Self {
        Self { connection, activity: Activity::Heartbeat }
    }
}

/// Touches in their order, then joins, of several sessions of a thread.
#[derive(Debug, Default, Message)]
#[rtype(result = "()")]
pub(crate) struct SessionBatch {
    pub registrations: Vec<Registration>,
    pub touches: Vec<Touch>,
    pub joins: Vec<PendingJoin>,
    /// Dropped when the registry has read the batch: the thread counts the unread ones.
    pub unread: Option<Arc<()>>,
}

/// A join with the channel for its answer.
#[derive(Debug)]
pub(crate) struct PendingJoin {
    pub join: Join,
    pub reply: OneshotSender<Result<Joined, JoinError>>,
    /// What the hooks that were asked so far have granted.
    pub rights: Option<Rights>,
}

impl PendingJoin {
    pub fn new(join: Join, reply: OneshotSender<Result<Joined, JoinError>>) -> Self {
        Self { join, reply, rights: None }
    }
}

/// Replaces the info of a presence. Returns whether that changed anything.
///
/// What a session says of itself: a connection that was replaced has none any more, although its presence is
/// listed under its id. [`PresenceClient::update_info`](crate::PresenceClient::update_info) takes that id.
#[derive(Clone, Debug, Message)]
#[rtype(result = "bool")]
pub struct UpdateInfo {
    /// The room.
    pub room: RoomName,
    /// The connection.
    pub connection: ConnectionId,
    /// The new info.
    pub info: Info,
}

/// As [`UpdateInfo`], by the connection or by the id under which its presence is listed.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
pub(crate) struct UpdatePresence(pub UpdateInfo);
