//! Queries, and the state of the registry.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    error_chain::error_chain,
    model::{
        Cause, ConnectionId, Epoch, NodeName, Occupancy, Presence, RoomName, RoomSummary,
        SeenPresence, Snapshot, UserId,
    },
};

const NOT_ASKED: &str = "the database that the nodes share cannot be asked";
const NOT_WRITTEN: &str = "the database cannot be written now";
const WRITTEN_LATER: &str = "the rows are written once it works again";

/// Why a question cannot be answered. Only where rooms are shared with other nodes: a single node answers
/// from its memory.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The database that the nodes share failed. Ask again after a pause.
    #[error("{NOT_ASKED}: {}", error_chain(&**source))]
    Database {
        /// A short label, such as `locked`, `unavailable`, `schema`.
        reason: &'static str,
        /// The error of the store.
        r#source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The database that the nodes share has not answered in time: within two seconds about one room, within
    /// five about all. Ask again after a pause.
    #[error("the database that the nodes share has not answered in time")]
    Timeout,
    /// The presence system shuts down, and reads no more rooms.
    #[error("the presence system shuts down")]
    Closed,
}

impl QueryError {
    /// The text without the words of the database, which may name its host or its role: for clients.
    pub(super) fn without_cause(&self) -> String {
        match self {
            Self::Database { .. } => NOT_ASKED.to_owned(),
            error => error.to_string(),
        }
    }

    /// A short label, such as `locked`, `unavailable`, `timeout`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Database { reason, .. } => reason,
            Self::Timeout => "timeout",
            Self::Closed => "closed",
        }
    }
}

/// Asks for the members of a room; `None` if it is empty. O(1), whatever the room's size.
///
/// On several nodes a room that this node does not follow yet is read from the database first, and then
/// followed for a while.
///
/// # Errors
///
/// [`QueryError`] if that room cannot be read; one that was read before is answered from memory, whatever
/// the database does.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Option<Snapshot>, QueryError>")]
pub struct GetSnapshot {
    /// The room.
    pub room: RoomName,
}

/// Asks for the number of members of a room; O(1).
///
/// # Errors
///
/// [`QueryError`], when [`GetSnapshot`] has one.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Occupancy, QueryError>")]
pub struct GetOccupancy {
    /// The room.
    pub room: RoomName,
}

/// Asks which rooms a user is in, by name, with the number of connections in each.
///
/// # Errors
///
/// [`QueryError`] if the database does not answer; on several nodes no node knows that by itself.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Vec<(RoomName, usize)>, QueryError>")]
pub struct WhereIs {
    /// The user.
    pub user: UserId,
}

/// Asks for a page of the rooms in the order of their names.
///
/// # Errors
///
/// [`QueryError`] if the database does not answer; on several nodes no node knows all rooms by itself.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Vec<RoomSummary>, QueryError>")]
pub struct ListRooms {
    /// The last room of the page before.
    pub after: Option<RoomName>,
    /// The size of the page.
    pub limit: usize,
}

/// Asks for a page of the presences of a room in the order of [`Snapshot::presences`]; `None` if it is empty.
///
/// When presences of other nodes were last seen is read from the database; without its answer it is what
/// this node has heard of them, which may be earlier.
///
/// # Errors
///
/// [`QueryError`], when [`GetSnapshot`] has one.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Option<Vec<SeenPresence>>, QueryError>")]
pub struct ListPresences {
    /// The room.
    pub room: RoomName,
    /// The last presence of the page before; it may have left since.
    pub after: Option<Presence>,
    /// The size of the page.
    pub limit: usize,
}

/// Asks for a presence and, if it has ended, why: of the presences that ended in the last ten minutes, the
/// latest 10,000 are remembered (fewer if their names are long), without their info. `None` if it is unknown.
///
/// When a presence of another node was last seen is known as with [`ListPresences`].
///
/// # Errors
///
/// [`QueryError`] if this node does not know the presence, and its room cannot be read.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Option<Explained>, QueryError>")]
pub struct Explain {
    /// The room.
    pub room: RoomName,
    /// The id of the presence, or of its current connection.
    pub connection: ConnectionId,
}

/// What is known of a presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The presence, with its last activity.
    pub seen: SeenPresence,
    /// The time now.
    pub now: DateTime<Utc>,
    /// How long a silent connection stays present.
    pub max_age: Duration,
    /// Its end, if it has ended.
    pub departed: Option<Departed>,
}

/// The end of a presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departed {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// Why it ended.
    pub cause: Cause,
    /// The room's version after that.
    pub version: u64,
}

/// Waits until every change that was answered before is committed to the database, or until a write has
/// failed; the rows are then written when the database works again.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), FlushError>")]
pub struct Flush;

/// Why rows are not in the database.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The database failed. Presence goes on, and the rows are written once it works again.
    #[error("{NOT_WRITTEN}: {}; {WRITTEN_LATER}", error_chain(&**source))]
    Database {
        /// A short label, such as `locked`, `full`, `read_only`, `gone`.
        reason: &'static str,
        /// The error of the store.
        r#source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The database does not answer. The rows are written once it does.
    #[error("the database does not answer; the rows are written once it does")]
    Stalled,
    /// The database refuses some rows. They are written again once their presences change.
    #[error("the database refuses some rows; the log says why")]
    RowsRefused,
    /// The presence system has shut down, does so now, or has crashed (see
    /// [`PresenceHandle::closed`](crate::PresenceHandle::closed)).
    #[error("the presence system has ended")]
    Closed,
    /// The shutdown took longer than its timeout. The next start removes the rows.
    #[error("the rows were not written within the timeout")]
    Timeout,
    /// The rows are written, but at the end of the shutdown's timeout observers had not handled all events.
    #[error("observers have not handled all changes within the timeout; the rows are written")]
    Unobserved,
}

impl FlushError {
    /// The text without the words of the database, which may name its host or its role: for clients.
    pub(super) fn without_cause(&self) -> String {
        match self {
            Self::Database { .. } => format!("{NOT_WRITTEN}; {WRITTEN_LATER}"),
            error => error.to_string(),
        }
    }

    /// A short label, such as `locked`, `full`, `stalled`, `rows_refused`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Database { reason, .. } => reason,
            Self::Stalled => "stalled",
            Self::RowsRefused => "rows_refused",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Unobserved => "unobserved",
        }
    }
}

/// Asks for the state of the registry; O(1). The gauges are reported to the recorder of `metrics` with it, and each
/// second anyway.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Status")]
pub struct GetStatus;

/// The state of the registry.
#[derive(Clone, Debug, PartialEq, Eq, MessageResponse)]
#[non_exhaustive]
pub struct Status {
    /// The incarnation of the registry, within which versions and counters ascend.
    pub epoch: Epoch,
    /// How long it has been running.
    pub uptime: Duration,
    /// Rooms with members, as far as this node follows them.
    pub rooms: usize,
    /// Connections of this node that are in some room.
    pub connections: usize,
    /// Presences, including those of other nodes in the rooms that this node follows.
    pub presences: usize,
    /// Presences that this node holds; the sum over all nodes is the number of all presences.
    pub held: usize,
    /// Users in rooms, each counted once.
    pub users: usize,
    /// Presences whose row is not up to date.
    pub unwritten: usize,
    /// Why the database cannot be written, if so: see [`FlushError::reason`].
    pub database: Option<&'static str>,
    /// The error behind that with its sources, the message of the database among them.
    pub database_cause: Option<String>,
    /// For how long the database could not be written.
    pub lag: Duration,
    /// Why the database did not answer the last question, if it did not: see [`QueryError::reason`]. On several
    /// nodes a question is asked at least every third of a lease.
    pub unanswered: Option<&'static str>,
    /// For how long this node's lease in the database has not been renewed.
    pub lease_age: Duration,
    /// How much this node's clock was ahead of the database's when it was measured last; negative if it was
    /// behind, `None` if it was not measured, as on a single node with SQLite. The times of presences are
    /// corrected by it.
    pub clock_ahead: Option<TimeDelta>,
    /// Events that wait for the observer furthest behind.
    pub observer_lag: usize,
    /// Live nodes that are not stopping, including this one.
    pub nodes: usize,
    /// Nodes of which at least two of the four beats per lease are missing on the bus: they have died, or their
    /// messages do not arrive here. While one that is silent for a lease still renews that lease in the
    /// database, rooms are read from there once per lease.
    pub unheard: Vec<UnheardNode>,
    /// The state of the bus.
    pub bus: BusState,
    /// Whether a [`Shutdown`] is in progress.
    pub closing: bool,
    /// The counters since the start.
    pub counters: Counters,
}

/// A node whose beats are missing on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnheardNode {
    /// The name of the node.
    pub node: NodeName,
    /// The time since its last message.
    pub silence: Duration,
}

impl From<(&NodeName, Duration)> for UnheardNode {
    fn from((node, silence): (&NodeName, Duration)) -> Self {
        Self { node: node.clone(), silence }
    }
}

/// The state of the connection to the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusState {
    /// There is no bus: the node is alone.
    Local,
    /// The bus works.
    Up,
    /// The bus does not work: a short label of the reason.
    Down(&'static str),
}

/// Counters since the registry started. Each only grows; a rate is the difference of two values divided by
/// that of [`Status::uptime`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Presences that joined.
    pub joins: u64,
    /// Presences that left, for each cause.
    pub leaves: Vec<(Cause, u64)>,
    /// Touches of connections that are in some room.
    pub touches: u64,
    /// Messages published to rooms.
    pub messages: u64,
    /// Messages taken by members.
    pub deliveries: u64,
    /// Member lists sent, each to all listeners of a room.
    pub lists_sent: u64,
    /// Rows of presences written or deleted.
    pub rows_written: u64,
}

/// Shuts down in order: joins are refused, all connections are told to close, in batches over at most two
/// seconds, and leave with [`Cause::Shutdown`](crate::Cause::Shutdown); then the rows are written. Returns
/// when they are, or why they cannot be. Observers may still have events to handle then, for which
/// [`PresenceHandle::shutdown`](crate::PresenceHandle::shutdown) waits.
///
/// Until its session leaves, a connection is a member, and gets what was published before it was told to
/// close. One that has not left half a second after the last order is removed.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), FlushError>")]
pub struct Shutdown;
