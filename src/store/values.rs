//! The values that go into the database and come out of it.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::model::{Cause, ConnectionId, Epoch, NodeName, PresenceRecord, RoomName};

/// A presence as it is written to the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its room.
    pub room: RoomName,
    /// The presence. SQLite stores what a node needs that has the database for itself.
    pub record: PresenceRecord,
}

/// Changes to write in one transaction: deletes, then upserts, then `last_seen` updates.
///
/// A presence (a connection in a room) is in `upserts` or in `deletes`, at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Its number among the batches of the node's incarnation, for shared stores: strictly increasing.
    pub number: u64,
    /// New or changed presences, as they are now.
    pub upserts: Vec<Row>,
    /// Presences that have ended.
    pub deletes: Vec<(RoomName, ConnectionId)>,
    /// When connections were last seen, for all their presences of this node.
    pub seen: Vec<Seen>,
}

/// When a connection was last seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The connection.
    pub connection: ConnectionId,
    /// When it was last seen.
    pub at: DateTime<Utc>,
    /// In how many rooms the node holds it, so that it should have as many rows.
    pub rooms: usize,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.deletes.is_empty() && self.seen.is_empty()
    }
}

/// The result of a batch: everything but the changes set aside is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Applied {
    /// Changes that the database refuses; unchanged, they would fail again.
    pub set_aside: Vec<SetAside>,
    /// Connections of [`Batch::seen`] that have fewer rows of this node than they should: somebody else
    /// has deleted some, or another node holds them.
    pub missing: Vec<ConnectionId>,
}

/// A change that the database refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The change.
    pub change: BatchEntry,
    /// The error message of the database.
    pub reason: String,
}

/// One change of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchEntry {
    /// Of [`Batch::upserts`].
    Upsert(RoomName, ConnectionId),
    /// Of [`Batch::deletes`].
    Delete(RoomName, ConnectionId),
    /// Of [`Batch::seen`].
    Seen(ConnectionId),
}

/// A batch that is committed.
#[derive(Debug)]
pub(crate) struct Committed {
    /// The batch.
    pub batch: Arc<Batch>,
    /// The causes of the leaves that the batch deletes, in its order; none for a presence that
    /// another node holds now.
    pub causes: Vec<Option<Cause>>,
    /// The entries that the database refuses.
    pub refused: Vec<BatchEntry>,
}

/// A node that was found dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadNode {
    /// Its name as stored, unchecked.
    pub node: String,
    /// How many presences of it were removed.
    pub presences: usize,
}

/// The result of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Started {
    /// The incarnation of the node from now on.
    pub incarnation: Epoch,
    /// Nodes that were found dead, ordered by name; their rows are removed.
    pub dead: Vec<DeadNode>,
    /// The rows of an earlier incarnation in a shared store, which belong to this one now.
    pub inherited: Vec<Row>,
    /// Whether that incarnation had shut down ([`Store::hand_over`](super::Store::hand_over)).
    pub stopped: bool,
}

/// The result of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Renewal {
    /// The lease had not expired.
    Held,
    /// The row of this node was that of another store of this process, which has been given up, or of an
    /// earlier state of the database. Its presences have rows, perhaps not the right ones: write every row
    /// again, then delete those that should not be there.
    Continued {
        /// The incarnation of the node from now on.
        incarnation: Epoch,
    },
    /// The lease had expired or was missing. Other nodes may have removed this node's rows: write
    /// every row again.
    Lapsed {
        /// The incarnation of the node from now on.
        incarnation: Epoch,
    },
}

/// The number of presences in a room, by the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoomCounts {
    /// Its name as stored, unchecked.
    pub channel_name: String,
    /// All connections.
    pub connections: usize,
    /// Distinct users.
    pub users: usize,
    /// Connections without a user.
    pub anonymous: usize,
}

/// The row of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its name.
    pub node: NodeName,
    /// Its incarnation: a new process, or one whose rows were removed, has a new one.
    pub incarnation: Epoch,
    /// The number of its last committed batch; 0 if there is none.
    pub head: u64,
    /// Whether its lease has expired, by the database's clock.
    pub expired: bool,
    /// Whether it has shut down, and its fading presences wait for their clients to come back.
    pub leaving: bool,
}

/// The rows of some rooms, read in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomRows {
    /// All nodes: the rows contain every batch up to a node's head, and no later one.
    pub nodes: Vec<NodeRow>,
    /// The presences, each with the node that holds it. Only nodes that have a row hold presences.
    pub rows: Vec<(NodeName, Row)>,
}

/// The result of [`SharedStore::reap`](super::SharedStore::reap).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Reaped {
    /// Its lease runs, another incarnation has its name, or its row is locked: nothing was done.
    Alive,
    /// Its rows had been removed already.
    Gone,
    /// Its row and its presences are removed.
    Removed {
        /// The presences.
        rows: Vec<Row>,
        /// Whether it had shut down, and the clients of these presences did not come back.
        leaving: bool,
    },
}
