//! What is asked of a database that several nodes share.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Row, Store, StoreError};
use crate::model::{ConnectionId, Epoch, NodeName, RoomName, RoomSummary, UserId};

/// A node as its row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node: NodeName,
    /// Its life: a new process, or one whose rows were removed, has another.
    pub incarnation: Epoch,
    /// The number of the last batch that it has committed; 0 is none.
    pub head: u64,
    /// Whether its lease has run out, by the database's clock.
    pub expired: bool,
    /// Whether it has stopped, and its presences only wait for their clients to come back elsewhere.
    pub leaving: bool,
}

/// Rooms as all nodes have written them, seen at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomRows {
    /// The nodes: every batch up to a node's head is in the rows, and no later one.
    pub nodes: Vec<NodeRow>,
    /// The presences, each with the node that holds it. A node that has no row has no presences.
    pub rows: Vec<(NodeName, Row)>,
}

/// What became of a node that was thought dead.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Burial {
    /// Its lease runs, another incarnation has its name, or somebody else is at it: nothing was done.
    Alive,
    /// Somebody else has removed its rows.
    Gone,
    /// Its row and its presences are removed: these.
    Buried {
        /// The presences.
        rows: Vec<Row>,
        /// Whether it had stopped in order, and these are those whose clients did not come back.
        leaving: bool,
    },
}

/// Whose connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whom {
    /// This one, by its own id or by that of a presence that it is behind.
    Connection(ConnectionId),
    /// Those that are in some room as this user.
    User(UserId),
}

/// A database that several nodes share. Each writes the rows of its own presences and no others'.
///
/// Duties of every implementation besides those of [`Store`], which
/// [`testing::store_contract`](crate::testing::store_contract) checks:
///
/// - What [`apply`](Store::apply) commits of a started node raises the head in its row to the
///   batch's number and extends its lease, in the same transaction. If its row is gone or of another
///   incarnation, nothing is written ([`StoreError::Lapsed`]).
/// - A presence that is held by another node is overwritten only by one with a higher turn, or an
///   equal one of a node whose name sorts after the other's; it is never deleted.
/// - Leases are judged by the database's clock.
/// - Two nodes that write the same rooms never lock one another out: they do it in one order.
/// - Every query has its index.
pub trait SharedStore: Store {
    /// The rows of some rooms, and the nodes, in one snapshot.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn read(&mut self, rooms: &[RoomName], now: DateTime<Utc>) -> Result<RoomRows, StoreError>;

    /// Every node there is.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn nodes(&mut self, now: DateTime<Utc>) -> Result<Vec<NodeRow>, StoreError>;

    /// Removes a dead node with its presences, unless it lives or was removed already.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn bury(
        &mut self,
        node: &NodeName,
        incarnation: Epoch,
        now: DateTime<Utc>,
    ) -> Result<Burial, StoreError>;

    /// The rows of some connections in a room, with the nodes that hold them.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn find(
        &mut self,
        room: &RoomName,
        connections: &[ConnectionId],
    ) -> Result<Vec<(NodeName, Row)>, StoreError>;

    /// The rows of some presences, each once, with the nodes that hold them.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn held(
        &mut self,
        presences: &[(RoomName, ConnectionId)],
    ) -> Result<Vec<(NodeName, Row)>, StoreError>;

    /// At most `limit` rooms with somebody in them, in the order of their names (byte by byte), after
    /// the one named; their version is 0.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn list(
        &mut self,
        after: Option<&RoomName>,
        limit: usize,
    ) -> Result<Vec<RoomSummary>, StoreError>;

    /// The rooms a user is in, by name, with the number of connections in each.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn where_is(&mut self, user: &UserId) -> Result<Vec<(RoomName, usize)>, StoreError>;

    /// The connections that are in some room, each once, with a node that holds them.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn connections(&mut self, whom: &Whom) -> Result<Vec<(ConnectionId, NodeName)>, StoreError>;
}
