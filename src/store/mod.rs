//! The database: the only place that knows SQL.
//!
//! [`Store`] is the interface to a database, [`SharedStore`] that to one which several nodes share.
//! `SqliteStore` implements the first, `PostgresStore` both. A store blocks and may fail; it belongs on
//! a thread of its own (a writer's or a reader's), or in a command.

pub(crate) mod lane;
mod migrations;
#[cfg(any(test, feature = "postgres", feature = "testing"))]
mod node_lease;
#[cfg(feature = "postgres")]
mod postgres;
mod pulse;
pub(crate) mod reader;
pub mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;
mod transaction;
mod url;
mod values;

use std::{path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

#[cfg(feature = "postgres")]
pub(crate) use self::node_lease::OwnIncarnations;
#[cfg(any(test, feature = "postgres", feature = "testing"))]
pub(crate) use self::node_lease::{Fence, NodeLease};
#[cfg(any(test, feature = "testing"))]
pub(crate) use self::transaction::oldest;
pub(crate) use self::values::Committed;
#[cfg(feature = "postgres")]
pub use self::{
    postgres::{InvalidSchemaName, LeaseClock, PostgresOptions, PostgresStore, SchemaName},
    url::PostgresUrl,
};
pub use self::{
    pulse::{Pulse, Waiting},
    url::{DatabaseUrl, InvalidDatabaseUrl},
    values::{
        Applied, Batch, BatchEntry, DeadNode, NodeRow, Reaped, Renewal, RoomCounts, RoomRows, Row,
        Seen, SetAside, Started,
    },
};
#[cfg(feature = "sqlite")]
pub use self::{
    sqlite::{OwnerError, OwnerLock, SqliteOptions, SqliteStore},
    url::SqlitePath,
};
pub use crate::model::PresenceRecord;
use crate::{
    error_chain::error_chain,
    messages::Kick,
    model::{ClusterIdentity, ConnectionId, Epoch, NodeName, RoomName, RoomSummary, UserId},
};

/// Opens a database of any kind, creating and migrating it as needed.
///
/// # Errors
///
/// [`StoreError`].
pub fn open(url: &DatabaseUrl) -> Result<Box<dyn Store>> {
    match url {
        #[cfg(feature = "sqlite")]
        DatabaseUrl::SqliteMemory | DatabaseUrl::SqliteFile(_) => {
            Ok(Box::new(SqliteStore::open(url)?))
        }
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Ok(Box::new(PostgresStore::open(url)?)),
    }
}

/// Migrates a database to this version, creating a SQLite database if there is none. Returns the number
/// of migrations applied.
///
/// Several processes may start at once on one database; they wait for one another, up to 30 seconds.
///
/// # Errors
///
/// [`StoreError`]; none of the migrations is applied then. [`StoreError::Unsuitable`] where somebody else has
/// something of a name that they need, or the role may not create them.
pub fn migrate(url: &DatabaseUrl) -> Result<usize> {
    match url {
        #[cfg(feature = "sqlite")]
        DatabaseUrl::SqliteMemory | DatabaseUrl::SqliteFile(_) => {
            sqlite::migrate(url, SqliteOptions::default())
        }
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => postgres::migrate(url, &PostgresOptions::default()),
    }
}

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
///
/// # Errors
///
/// Every call may fail with a [`StoreError`]. Nothing of it was done then, and it can be repeated.
pub trait Store: Send {
    /// Writes a batch as `node`; missing rooms are created at `now`.
    fn apply(&mut self, node: &NodeName, batch: &Batch, now: DateTime<Utc>) -> Result<Applied>;

    /// Writes the row of `node` with a lease until `now + lease`, in a new incarnation.
    ///
    /// With SQLite every other node is dead, and so is an earlier incarnation of this one: the
    /// caller holds the lock on the file. Their rows are removed. In a [`SharedStore`] the rows of
    /// an earlier incarnation of `node` are handed to this one, and other nodes are left alone.
    fn start(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Started>;

    /// Extends the lease of `node` to `now + lease`; creates its row if it is missing.
    fn renew(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Renewal>;

    /// Removes the presences and the lease of `node`. Returns the number of presences removed.
    fn stop(&mut self, node: &NodeName) -> Result<usize>;

    /// Stops the node as [`stop`](Self::stop) does, except that in a [`SharedStore`] fading
    /// presences and the node's row stay for `grace` after `now`; other nodes
    /// [reap](SharedStore::reap) them then. Returns the number of presences removed.
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
    fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> Result<usize>;

    /// Removes rooms without presences, with a constant number of statements. Returns the number
    /// removed.
    fn prune_rooms(&mut self) -> Result<usize>;

    /// All rooms, including empty ones, ordered by name, with the presences whose node has a running
    /// lease: what a crashed process has left does not count.
    fn rooms(&mut self, now: DateTime<Utc>) -> Result<Vec<RoomCounts>>;
}

/// A database that several nodes share. Each node writes the rows of its own presences only.
///
/// Every implementation has to obey these rules besides those of [`Store`], which
/// `testing::store_contract` checks:
///
/// - A commit by [`apply`](Store::apply) of a started node raises the head in its row to the
///   batch's number and extends its lease, in the same transaction. If its row is missing or belongs
///   to another incarnation, nothing is written ([`StoreError::Lapsed`]).
/// - A presence held by another node is overwritten only with a higher generation, or with an equal one
///   by a node whose name sorts after the other's; it is never deleted.
/// - Leases are judged by the database's clock, which is that of [`time`](Self::time).
/// - Nodes that write the same rooms never deadlock: all of them write in one order.
/// - Every query uses an index.
/// - All stores on a database have one identity, and stores on two databases have two: also where one
///   was read from a dump of the other, if that can be told.
pub trait SharedStore: Store {
    /// The time by the database's clock, at the moment of the call. The nodes correct their clocks by it.
    fn time(&mut self, now: DateTime<Utc>) -> Result<DateTime<Utc>>;

    /// What the nodes of this database have in common on the bus. Whoever comes first makes it.
    fn identity(&mut self) -> Result<ClusterIdentity>;

    /// The rows of some rooms, and all nodes, in one snapshot.
    fn read(&mut self, rooms: &[RoomName], now: DateTime<Utc>) -> Result<RoomRows>;

    /// All nodes.
    fn nodes(&mut self, now: DateTime<Utc>) -> Result<Vec<NodeRow>>;

    /// Removes a dead node with its presences, unless it lives or was removed already.
    fn reap(&mut self, node: &NodeName, incarnation: Epoch, now: DateTime<Utc>) -> Result<Reaped>;

    /// The rows of some connections in a room, with the nodes that hold them.
    fn find(
        &mut self,
        room: &RoomName,
        connections: &[ConnectionId],
    ) -> Result<Vec<(NodeName, Row)>>;

    /// The rows of some presences, each once, with the nodes that hold them.
    fn held(&mut self, presences: &[(RoomName, ConnectionId)]) -> Result<Vec<(NodeName, Row)>>;

    /// At most `limit` occupied rooms, ordered by name (byte by byte), after the given one; their
    /// version is 0.
    fn list(&mut self, after: Option<&RoomName>, limit: usize) -> Result<Vec<RoomSummary>>;

    /// The rooms a user is in, by name, with the number of connections in each.
    fn where_is(&mut self, user: &UserId) -> Result<Vec<(RoomName, usize)>>;

    /// The connections to kick that are in some room, each once, with a node that holds them.
    fn connections(&mut self, kick: &Kick) -> Result<Vec<(ConnectionId, NodeName)>>;

    /// The connections meant, each once, that are in some room and do not fade, with a node that holds them.
    fn receivers(&mut self, of: &Kick) -> Result<Vec<(ConnectionId, NodeName)>>;

    /// The places of all rows of a node.
    fn places(&mut self, node: &NodeName) -> Result<Vec<(RoomName, ConnectionId)>>;

    /// Whether the database answers the call that this store is in. A store that does not say so is
    /// waited for without end.
    fn pulse(&self) -> Pulse {
        Pulse::default()
    }

    /// What opens further stores on the same database for the same process: one takes over when a call
    /// of this one hangs, see [`Renewal::Continued`]. Without it, no call is given up.
    fn opener(&self) -> Option<StoreOpener> {
        None
    }
}

/// How long a node with this lease waits for an answer of the database: a third of the lease, at least 2 s
/// and at most 10 s.
pub(crate) fn answer_timeout(lease: Duration) -> Duration {
    (lease / 3).clamp(Duration::from_secs(2), Duration::from_secs(10))
}

/// Opens a store, without waiting for the database.
pub type StoreOpener = Arc<dyn Fn() -> Box<dyn SharedStore> + Send + Sync>;

/// The cause of a [`StoreError`].
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// The result of a call of a store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why a call of a store failed, by what the caller can do about it. The text has the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process held a lock for longer than the store waits. Try again soon.
    #[error("the database is locked by another process")]
    Locked,
    /// There is no space left on the disk, in the quota or below the limit of file sizes. Try again once
    /// there is.
    #[error("the database or its disk is full, or a file has reached its limit (`ulimit -f`)")]
    Full,
    /// The database cannot be written. Try again once its permissions have changed.
    #[error("the database is read-only")]
    ReadOnly,
    /// The process may not use a file of the database, or its directory. Try again once it may.
    #[error("the database may not be used: {}", error_chain(&**source))]
    Denied {
        /// The error of the operating system.
        r#source: Source,
    },
    /// The write-ahead log of SQLite needs memory that processes share, which this file system does not
    /// have, as network file systems do not. Use a directory on a local disk.
    #[error(
        "the file system has no shared memory for `{}`: put the database into a directory on a local disk: {}",
        file.display(),
        error_chain(&**source)
    )]
    NoSharedMemory {
        /// The file of the shared memory.
        file: PathBuf,
        /// The error of the database.
        r#source: Source,
    },
    /// Another server has taken the database, since the lock file of this one was deleted. Try again once
    /// that server has ended.
    #[error("another server has taken the database after its lock file was deleted: {}", error_chain(&**source))]
    Taken {
        /// The error of the lock.
        r#source: Source,
    },
    /// The database was lost or replaced, and another one is open. Call [`Store::start`], then write
    /// every row again. Reported once.
    #[error("the database was lost or replaced, its rows have to be written again")]
    Gone,
    /// The database cannot be reached. Try again.
    #[error("the database cannot be reached: {}", error_chain(&**source))]
    Unavailable {
        /// The error of the database or the operating system.
        r#source: Source,
    },
    /// The file is damaged or not a database. Try again once it has been replaced.
    #[error("the database is damaged, or not a database: {}", error_chain(&**source))]
    Corrupt {
        /// The error of the database.
        r#source: Source,
    },
    /// Tables or columns of the migrations are missing.
    #[error("the tables of the database are not those of this version; run its migrations: {}", error_chain(&**source))]
    Schema {
        /// The error of the database.
        r#source: Source,
    },
    /// The database reports an error that says nothing about a row, such as a missing right or a lock that
    /// somebody else holds for too long. Try again later.
    #[error("the database reports an error: {}", error_chain(&**source))]
    Failed {
        /// The error of the database, in the language of its messages.
        r#source: Source,
    },
    /// The database is not one that can be used: its encoding, what is in between, what somebody else has in
    /// it under the names of the tables, or a right to create them that is missing. It is left unchanged, and
    /// trying again does not help.
    #[error("{reason}")]
    Unsuitable {
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The database has not answered for too long, and the call was given up: whether it was carried out is
    /// unknown. Try again; another connection is used if there can be one.
    #[error("the database does not answer")]
    Stalled,
    /// The node has no row any more in a shared database, so nothing is written in its name. Renew
    /// its lease, then write every row again.
    #[error("the lease of this node has expired, and other nodes have removed its rows")]
    Lapsed,
    /// Another process uses the node's name. Try again once it has ended.
    #[error("another process uses the name of this node")]
    NameTaken,
    /// The store panicked; the panic was caught. Try again.
    #[error("the store panicked")]
    Panicked,
    /// The writer has closed its store. Trying again does not help.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// A short label, for readiness and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Denied { .. } => "denied",
            Self::NoSharedMemory { .. } => "no_shared_memory",
            Self::Taken { .. } => "taken",
            Self::Gone => "gone",
            Self::Unavailable { .. } => "unavailable",
            Self::Corrupt { .. } => "corrupt",
            Self::Schema { .. } => "schema",
            Self::Failed { .. } => "failed",
            Self::Unsuitable { .. } => "unsuitable",
            Self::Stalled => "stalled",
            Self::Lapsed => "lapsed",
            Self::NameTaken => "name_taken",
            Self::Panicked => "panicked",
            Self::Closed => "closed",
        }
    }

    pub(crate) fn unavailable(source: impl Into<Source>) -> Self {
        Self::Unavailable { source: source.into() }
    }
}
