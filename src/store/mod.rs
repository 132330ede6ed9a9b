//! The database: the only place that knows SQL.
//!
//! [`Store`] says what is asked of a database, [`SqliteStore`] does it with SQLite. [`SharedStore`]
//! says what is asked of one that several nodes share; with the feature `postgres` there is a
//! `PostgresStore` that does it. A store is slow and may fail; it belongs on a thread of its own (the
//! [`Writer`](crate::mirror::Writer)'s), or in a command.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::model::{Cause, ConnectionId, Epoch, Info, NodeName, Presence, RoomName, SessionKey};

mod bulk;
mod chunks;
mod error;
mod life;
mod migrate;
mod open;
mod owner;
#[cfg(feature = "postgres")]
mod postgres;
pub(crate) mod reader;
pub mod schema;
mod shared;
mod sqlite;
#[cfg(test)]
mod sqlite_tests;
mod stamp;
mod transact;
mod url;

pub use error::{Source, StoreError};
pub(crate) use life::Life;
pub use migrate::migrate;
pub use open::open;
pub use owner::{OwnerError, OwnerLock};
#[cfg(feature = "postgres")]
pub use postgres::{LeaseClock, PostgresOptions, PostgresStore, PostgresUrl};
pub use shared::{Burial, NodeRow, RoomRows, SharedStore, Whom};
pub use sqlite::{SqliteOptions, SqliteStore};
pub use url::{DatabaseUrl, InvalidDatabaseUrl, SqlitePath};

const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);

/// How long to wait before the database is asked again that has failed so often before.
pub(crate) fn retry_delay(failures: u32) -> Duration {
    FIRST_RETRY_DELAY.saturating_mul(1 << failures.min(10)).min(MAX_RETRY_DELAY)
}

/// A presence as it is to stand in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where it is.
    pub room: RoomName,
    /// Who it is.
    pub presence: Presence,
    /// When its connection was last heard of.
    pub last_seen: DateTime<Utc>,
    /// The client session that it belongs to, for [`SharedStore`]s.
    pub session: Option<SessionKey>,
    /// The part of its info that is fixed, by a token, for [`SharedStore`]s.
    pub fixed: Info,
    /// Until when its client may come back, if it is away, for [`SharedStore`]s.
    pub fading: Option<DateTime<Utc>>,
    /// How often it went from one node to another, for [`SharedStore`]s.
    pub generation: u32,
    /// The connection behind it, if it is not the one that founded it, for [`SharedStore`]s.
    pub current_connection: Option<ConnectionId>,
}

/// Changes to write in one transaction: deletes, then upserts, then signs of life.
///
/// A presence (a connection in a room) is in `upserts` or in `deletes`, at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Its number among the batches of the node's incarnation, for [`SharedStore`]s: they rise.
    pub number: u64,
    /// Presences as they are now, new or changed.
    pub upserts: Vec<Row>,
    /// Presences that are no more.
    pub deletes: Vec<(RoomName, ConnectionId)>,
    /// When connections were last heard of, for all their presences of this node.
    pub seen: Vec<(ConnectionId, DateTime<Utc>)>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.deletes.is_empty() && self.seen.is_empty()
    }
}

/// What became of a batch: everything is committed but the changes set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Applied {
    /// Changes the database refuses; they fail again if they are sent again as they are.
    pub set_aside: Vec<SetAside>,
}

/// A change that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Which one.
    pub change: Change,
    /// Why, in the words of the database.
    pub reason: String,
}

/// One change of a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Of [`Batch::upserts`].
    Upsert(RoomName, ConnectionId),
    /// Of [`Batch::deletes`].
    Delete(RoomName, ConnectionId),
    /// Of [`Batch::seen`].
    Seen(ConnectionId),
}

/// A batch that is in the database.
#[derive(Debug)]
pub(crate) struct Committed {
    pub batch: Arc<Batch>,
    /// Why those have left that the batch deletes, in its order; none for one that another node
    /// holds.
    pub causes: Vec<Option<Cause>>,
    /// What of it the database has refused.
    pub refused: Vec<Change>,
}

/// A node that is no more, with what it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadNode {
    /// Its name as it stands in the rows, which anybody may have written.
    pub node: String,
    /// How many presences it left, now removed.
    pub presences: usize,
}

/// What a start found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Started {
    /// The incarnation in which the node writes from now on.
    pub incarnation: Epoch,
    /// Every node that was found dead, ordered by name; its rows are removed.
    pub dead: Vec<DeadNode>,
    /// What an earlier life of the node left in a [`SharedStore`], which is this one's now.
    pub inherited: Vec<Row>,
    /// Whether that life had stopped in order ([`Store::hand_over`]).
    pub stopped: bool,
}

/// What a renewal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Renewal {
    /// The lease had not run out.
    Held,
    /// The lease had run out or was gone. Others may have removed this node's rows meanwhile: write
    /// every row again.
    Lapsed {
        /// The incarnation in which the node writes from now on.
        incarnation: Epoch,
    },
}

/// A room with how many are in it, as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoomCounts {
    /// Its name as it stands in the row, which anybody may have written.
    pub channel_name: String,
    /// Connections, known and anonymous.
    pub connections: usize,
    /// Distinct users.
    pub users: usize,
    /// Connections without a user.
    pub anonymous: usize,
}

/// A database that mirrors presences: what the mirror and the commands ask of it.
///
/// Duties of every implementation, which [`testing::store_contract`](crate::testing::store_contract)
/// checks:
///
/// - A call is one transaction: all of it is committed when it answers, or nothing is.
/// - Everything can be asked again: a second time changes nothing.
/// - Rows are found by name, never by a remembered number, so rows and rooms that somebody deleted
///   come back with the next upsert.
/// - Statements are per batch, not per row.
/// - A row the database refuses does not keep others out: it is set aside. A database that fails as
///   a whole fails the call.
/// - A lease has run out when it is *later* than its end; a presence is stale when it is *older*
///   than the age. Equal stays.
/// - The time is an argument; microseconds are kept.
pub trait Store: Send {
    /// Writes a batch as `node`; rooms that have no row get one made at `now`.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the batch can be given again as it is.
    fn apply(
        &mut self,
        node: &NodeName,
        batch: &Batch,
        now: DateTime<Utc>,
    ) -> Result<Applied, StoreError>;

    /// Writes the row of `node` with a lease until `now + lease`, in a new incarnation.
    ///
    /// With SQLite every other node is dead, and so is an earlier life of this one: whoever starts
    /// there holds the [`OwnerLock`]. What they left is removed. In a [`SharedStore`] what an earlier
    /// life of `node` left is handed to this one, and others are left alone.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn start(
        &mut self,
        node: &NodeName,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Started, StoreError>;

    /// Extends the lease of `node` to `now + lease`; makes its row if it is gone.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn renew(
        &mut self,
        node: &NodeName,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Renewal, StoreError>;

    /// Removes the presences and the lease of `node`. Answers how many presences.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn stop(&mut self, node: &NodeName) -> Result<usize, StoreError>;

    /// Ends the node's part as [`stop`](Self::stop) does, but in a [`SharedStore`] for the presences
    /// that are fading, which stay with the node's row for `grace` after `now`; then they are for
    /// others to [bury](SharedStore::bury). Answers how many presences it removed.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn hand_over(
        &mut self,
        node: &NodeName,
        _now: DateTime<Utc>,
        _grace: Duration,
    ) -> Result<usize, StoreError> {
        self.stop(node)
    }

    /// Removes presences last seen before `now - max_age` whose node has no lease that still runs.
    /// Answers how many.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn prune_presences(
        &mut self,
        now: DateTime<Utc>,
        max_age: Duration,
    ) -> Result<usize, StoreError>;

    /// Removes rooms without presences, with a few statements for all of them. Answers how many.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn prune_rooms(&mut self) -> Result<usize, StoreError>;

    /// All rooms with their counts, also the empty ones, ordered by name.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn rooms(&mut self) -> Result<Vec<RoomCounts>, StoreError>;
}
