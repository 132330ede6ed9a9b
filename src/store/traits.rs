//! The interface to the database: [`Store`], and [`SharedStore`] where several nodes use it.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{
    error::Result,
    values::{Applied, Batch, NodeRow, Reaped, Renewal, RoomCounts, RoomRows, Row, Started},
};
use crate::{
    messages::Kick,
    model::{ConnectionId, Epoch, NodeName, RoomName, RoomSummary, UserId},
};

/// A database that mirrors presences: what the mirror and the commands need of it.
///
/// Every implementation has to obey these rules, which
/// `testing::store_contract` checks:
///
/// - A call is one transaction: all of it is committed when the call returns, or nothing is.
/// - Every call can be repeated: the second time changes nothing.
/// - Rows are found by name, never by a cached number, so rows and rooms deleted by hand come back
///   with the next upsert.
/// - Statements are per batch, not per row.
/// - A row that the database refuses is set aside and does not block the others. A failure of the
///   database itself fails the call.
/// - A lease has expired when the time is *later* than its end; a presence is stale when it is
///   *older* than the age. Equal is not expired and not stale.
/// - The time is an argument; it is stored with microseconds.
pub trait Store: Send {
    /// Writes a batch as `node`; missing rooms are created at `now`.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError); the same batch can be passed again.
    fn apply(&mut self, node: &NodeName, batch: &Batch, now: DateTime<Utc>) -> Result<Applied>;

    /// Writes the row of `node` with a lease until `now + lease`, in a new incarnation.
    ///
    /// With SQLite every other node is dead, and so is an earlier incarnation of this one: the
    /// caller holds the lock on the file. Their rows are removed. In a [`SharedStore`] the rows of
    /// an earlier incarnation of `node` are handed to this one, and other nodes are left alone.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn start(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Started>;

    /// Extends the lease of `node` to `now + lease`; creates its row if it is missing.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn renew(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Renewal>;

    /// Removes the presences and the lease of `node`. Returns the number of presences removed.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn stop(&mut self, node: &NodeName) -> Result<usize>;

    /// Stops the node as [`stop`](Self::stop) does, except that in a [`SharedStore`] fading
    /// presences and the node's row stay for `grace` after `now`; other nodes
    /// [reap](SharedStore::reap) them then. Returns the number of presences removed.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn hand_over(
        &mut self,
        node: &NodeName,
        _now: DateTime<Utc>,
        _grace: Duration,
    ) -> Result<usize> {
        self.stop(node)
    }

    /// Removes presences last seen before `now - max_age` whose node has no running lease. Returns
    /// the number removed.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> Result<usize>;

    /// Removes rooms without presences, with a constant number of statements. Returns the number
    /// removed.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn prune_rooms(&mut self) -> Result<usize>;

    /// All rooms with their counts, including empty ones, ordered by name.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn rooms(&mut self) -> Result<Vec<RoomCounts>>;
}

/// A database that several nodes share. Each node writes the rows of its own presences only.
///
/// Every implementation has to obey these rules besides those of [`Store`], which
/// `testing::store_contract` checks:
///
/// - A commit by [`apply`](Store::apply) of a started node raises the head in its row to the
///   batch's number and extends its lease, in the same transaction. If its row is missing or belongs
///   to another incarnation, nothing is written ([`StoreError::Lapsed`](super::StoreError::Lapsed)).
/// - A presence held by another node is overwritten only with a higher generation, or with an equal one
///   by a node whose name sorts after the other's; it is never deleted.
/// - Leases are judged by the database's clock.
/// - Nodes that write the same rooms never deadlock: all of them write in one order.
/// - Every query uses an index.
pub trait SharedStore: Store {
    /// The rows of some rooms, and all nodes, in one snapshot.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn read(&mut self, rooms: &[RoomName], now: DateTime<Utc>) -> Result<RoomRows>;

    /// All nodes.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn nodes(&mut self, now: DateTime<Utc>) -> Result<Vec<NodeRow>>;

    /// Removes a dead node with its presences, unless it lives or was removed already.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn reap(&mut self, node: &NodeName, incarnation: Epoch, now: DateTime<Utc>) -> Result<Reaped>;

    /// The rows of some connections in a room, with the nodes that hold them.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn find(
        &mut self,
        room: &RoomName,
        connections: &[ConnectionId],
    ) -> Result<Vec<(NodeName, Row)>>;

    /// The rows of some presences, each once, with the nodes that hold them.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn held(&mut self, presences: &[(RoomName, ConnectionId)]) -> Result<Vec<(NodeName, Row)>>;

    /// At most `limit` occupied rooms, ordered by name (byte by byte), after the given one; their
    /// version is 0.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn list(&mut self, after: Option<&RoomName>, limit: usize) -> Result<Vec<RoomSummary>>;

    /// The rooms a user is in, by name, with the number of connections in each.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn where_is(&mut self, user: &UserId) -> Result<Vec<(RoomName, usize)>>;

    /// The connections to kick that are in some room, each once, with a node that holds them.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    fn connections(&mut self, kick: &Kick) -> Result<Vec<(ConnectionId, NodeName)>>;
}
