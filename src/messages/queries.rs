//! Questions, and the registry's own state.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;

use chrono::{DateTime, Utc};

use crate::model::{
    Cause, ConnectionId, Epoch, NodeName, Occupancy, Presence, RoomName, RoomSummary, SeenPresence,
    Snapshot, UserId,
};

/// Asks who is in a room. `None` if nobody is. Costs the registry a few pointers whatever the room's
/// size.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Option<Snapshot>")]
pub struct GetSnapshot {
    /// Which room.
    pub room: RoomName,
}

/// Asks how many are in a room; O(1).
#[derive(Clone, Debug, Message)]
#[rtype(result = "Occupancy")]
pub struct GetOccupancy {
    /// Which room.
    pub room: RoomName,
}

impl<A, M> actix::dev::MessageResponse<A, M> for Occupancy
where
    A: Actor,
    M: Message<Result = Self>,
{
    fn handle(self, _: &mut A::Context, tx: Option<actix::dev::OneshotSender<Self>>) {
        if let Some(tx) = tx {
            // The receiver may have been dropped.
            let _ = tx.send(self);
        }
    }
}

/// Asks which rooms a user is in, by name, with the number of connections in each.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Vec<(RoomName, usize)>")]
pub struct WhereIs {
    /// Which user.
    pub user: UserId,
}

/// Asks for a page of the rooms in the order of their names.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Vec<RoomSummary>")]
pub struct ListRooms {
    /// The last room of the page before.
    pub after: Option<RoomName>,
    /// How many at most.
    pub limit: usize,
}

/// Asks for a page of the presences of a room in the order of [`Snapshot::presences`]. `None` if
/// nobody is in the room.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Option<Vec<SeenPresence>>")]
pub struct ListPresences {
    /// Which room.
    pub room: RoomName,
    /// The last presence of the page before; it need not be there any more.
    pub after: Option<Presence>,
    /// How many at most.
    pub limit: usize,
}

/// Asks why a presence is here, or why it is no longer: of presences that ended in the last ten
/// minutes, the latest 10,000 are remembered (fewer if their names are long), without their info. `None`
/// if nothing is known of it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Option<Explained>")]
pub struct Explain {
    /// In which room.
    pub room: RoomName,
    /// Whose presence: the id that is shown, or that of the connection that is behind it now.
    pub connection: ConnectionId,
}

/// What is known of a presence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The presence, with the last sign of life.
    pub seen: SeenPresence,
    /// The time now.
    pub now: DateTime<Utc>,
    /// How long silence counts as presence.
    pub max_age: Duration,
    /// When and why it ended, if it did.
    pub departed: Option<Departed>,
}

/// The end of a presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departed {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// Why.
    pub cause: Cause,
    /// The room's version after that.
    pub version: u64,
}

/// Asks to be told when everything that was answered before is committed to the database.
///
/// Bounded: it answers as soon as a write has failed, and the rows follow when the database is back.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), FlushError>")]
pub struct Flush;

/// Why rows are not in the database.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The database failed. Presence goes on, and the rows are written once it works again.
    #[error(
        "the database cannot be written now ({reason}); the rows are written once it works again"
    )]
    Database {
        /// A short label, such as `locked`, `full`, `read_only`, `gone`.
        reason: &'static str,
        /// The error of the store.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The database does not answer. The rows are written once it does.
    #[error("the database does not answer; the rows are written once it does")]
    Stalled,
    /// The database refuses some rows. They are written again once their presences change.
    #[error("the database refuses some rows; the log says why")]
    RowsRefused,
    /// The presence system has shut down, or does so now.
    #[error("the presence system has shut down")]
    Closed,
    /// The shutdown took longer than its timeout. The next start removes the rows.
    #[error("the rows were not written within the timeout")]
    Timeout,
}

impl FlushError {
    /// A short label, such as `locked`, `full`, `stalled`, `rows_refused`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Database { reason, .. } => reason,
            Self::Stalled => "stalled",
            Self::RowsRefused => "rows_refused",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
        }
    }
}

/// Asks how the registry is; O(1).
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Status")]
pub struct GetStatus;

/// How the registry is.
#[derive(Clone, Debug, PartialEq, Eq, MessageResponse)]
#[non_exhaustive]
pub struct Status {
    /// The incarnation of the registry, in which versions and counts go on.
    pub epoch: Epoch,
    /// How long it has been running.
    pub uptime: Duration,
    /// Rooms with somebody in them, as far as this node follows them.
    pub rooms: usize,
    /// Connections of this node that are in some room.
    pub connections: usize,
    /// Connections in rooms, each counted once per room: those of other nodes, too, in the rooms that
    /// this node follows.
    pub presences: usize,
    /// Those of them that this node holds: over all nodes they add up to all presences there are.
    pub held: usize,
    /// Users in rooms, each counted once.
    pub users: usize,
    /// Presences whose row is not yet what memory says.
    pub unwritten: usize,
    /// Why the database does not take rows, if so: see [`FlushError::reason`].
    pub database: Option<&'static str>,
    /// For how long it has not taken any.
    pub lag: Duration,
    /// For how long this node's lease in the database has not been renewed.
    pub lease_age: Duration,
    /// Events that wait for the observer furthest behind.
    pub observer_lag: usize,
    /// Nodes that live and stay, this one included.
    pub nodes: usize,
    /// Nodes of which two beats or more are missing on the bus, of the four in each lease: they have
    /// died, or what they say does not arrive here. While one lives by the database and is not heard for
    /// a lease, rooms are read from the database once a lease.
    pub unheard: Vec<UnheardNode>,
    /// How the other nodes are heard.
    pub bus: BusState,
    /// Whether a [`Shutdown`] is under way.
    pub closing: bool,
    /// What has happened so far.
    pub counters: Counters,
}

/// A node that is not heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnheardNode {
    /// Its name.
    pub node: NodeName,
    /// For how long it has not been heard.
    pub silence: Duration,
}

impl From<(&NodeName, Duration)> for UnheardNode {
    fn from((node, silence): (&NodeName, Duration)) -> Self {
        Self { node: node.clone(), silence }
    }
}

/// How a node hears the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusState {
    /// There are no others.
    Local,
    /// By the bus.
    Up,
    /// Not: why, in one word.
    Down(&'static str),
}

/// What has happened since the registry started. Each number only grows, so a rate is the difference
/// of two, by the difference of [`Status::uptime`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Presences that began.
    pub joins: u64,
    /// Presences that ended, for each cause.
    pub leaves: Vec<(Cause, u64)>,
    /// Signs of life of connections that are in some room.
    pub touches: u64,
    /// Messages published to rooms.
    pub messages: u64,
    /// Messages taken by members.
    pub deliveries: u64,
    /// Member lists sent: one for each time that a room's listeners were told.
    pub lists_sent: u64,
    /// Rows of presences written or deleted.
    pub rows_written: u64,
}

/// Ends everything in order: nobody joins any more, everybody is told to close, a few at a time over at
/// most two seconds, and leaves with [`Cause::Shutdown`](crate::Cause::Shutdown); then the rows are
/// written. Answers when they are, or why they cannot be.
///
/// Until its session leaves, a connection is a member, and hears what was said before it was told to
/// close. One that does not leave by itself is ended half a second after the last was told.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), FlushError>")]
pub struct Shutdown;
