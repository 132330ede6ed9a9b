//! The store on SQLite, and the lock of its file.

mod connection;
mod statements;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use diesel::{
    dsl::{count, exists, not},
    prelude::*,
    sql_types::{BigInt, Text},
    upsert::excluded,
};

use self::{
    connection::Database,
    statements::{Stamp, apply},
};
use super::{
    Applied, Batch, DatabaseUrl, DeadNode, Renewal, Result, RoomCounts, SqlitePath, Started, Store,
    schema::{nodes, presences, rooms},
    transaction::{oldest, to_count},
};
use crate::model::{Epoch, NodeName};

pub use self::connection::SqliteOptions;

/// Migrates a database, creating it if there is none. Returns the number of migrations applied.
pub(super) fn migrate(url: &DatabaseUrl, options: SqliteOptions) -> Result<usize> {
    Database::open(url, options).map(|(_, migrations)| migrations)
}

/// A [`Store`] on a SQLite file, or in memory.
///
/// It has one connection, since a store has one user, and `:memory:` is a database per connection. Before
/// each call it checks whether the open file is still the one at its path.
pub struct SqliteStore {
    database: Database,
    /// Held for as long as this store may write.
    _owner: Option<OwnerLock>,
}

impl SqliteStore {
    /// Opens a database, creating and migrating it as needed.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError); a missing directory is not created.
    pub fn open(url: &DatabaseUrl) -> Result<Self> {
        Self::open_with(url, SqliteOptions::default())
    }

    /// Opens a database as [`open`](Self::open) does, with options.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    pub fn open_with(url: &DatabaseUrl, options: SqliteOptions) -> Result<Self> {
        let (database, _) = Database::open(url, options)?;
        Ok(Self { database, _owner: None })
    }

    /// Keeps the lock until the store is dropped.
    #[must_use]
    pub fn owned(self, lock: Option<OwnerLock>) -> Self {
        Self { _owner: lock, ..self }
    }
}

#[derive(Insertable)]
#[diesel(table_name = nodes)]
struct LeaseRow<'a> {
    id: &'a str,
    started_at: Stamp,
    lease_expires_at: Stamp,
}

impl<'a> LeaseRow<'a> {
    fn new(node: &'a NodeName, now: DateTime<Utc>, lease: Duration) -> Self {
        let end = Stamp::after(now, lease);
        Self { id: node.as_str(), started_at: Stamp(now), lease_expires_at: end }
    }
}

impl Store for SqliteStore {
    fn apply(&mut self, node: &NodeName, batch: &Batch, now: DateTime<Utc>) -> Result<Applied> {
        self.database.write(|conn| apply(conn, node, batch, now))
    }

    fn start(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Started> {
        self.database.write(|conn| {
            let dead = dead_nodes(conn)?;
            diesel::delete(presences::table).execute(conn)?;
            diesel::delete(nodes::table).execute(conn)?;
            let row = LeaseRow::new(node, now, lease);
            diesel::insert_into(nodes::table).values(row).execute(conn)?;
            Ok(Started { incarnation: Epoch::new(), dead, inherited: Vec::new(), stopped: false })
        })
    }

    fn renew(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Renewal> {
        self.database.write(|conn| {
            let end: Option<Stamp> = nodes::table
                .find(node.as_str())
                .select(nodes::lease_expires_at)
                .first(conn)
                .optional()?;
            diesel::insert_into(nodes::table)
                .values(LeaseRow::new(node, now, lease))
                .on_conflict(nodes::id)
                .do_update()
                .set(nodes::lease_expires_at.eq(excluded(nodes::lease_expires_at)))
                .execute(conn)?;
            let held = end.is_some_and(|Stamp(end)| end >= now);
            Ok(match held {
                true => Renewal::Held,
                false => Renewal::Lapsed { incarnation: Epoch::new() },
            })
        })
    }

    fn stop(&mut self, node: &NodeName) -> Result<usize> {
        self.database.write(|conn| {
            let own = presences::node_id.eq(node.as_str());
            let removed = diesel::delete(presences::table.filter(own)).execute(conn)?;
            diesel::delete(nodes::table.find(node.as_str())).execute(conn)?;
            Ok(removed)
        })
    }

    fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> Result<usize> {
        let Some(oldest) = oldest(now, max_age) else { return Ok(0) };
        let owner = nodes::table.filter(nodes::id.eq(presences::node_id));
        let lives = exists(owner.filter(nodes::lease_expires_at.ge(Stamp(now))));
        let stale = presences::last_seen.lt(Stamp(oldest)).and(not(lives));
        self.database
            .write(|conn| Ok(diesel::delete(presences::table.filter(stale)).execute(conn)?))
    }

    fn prune_rooms(&mut self) -> Result<usize> {
        let inside = presences::table.filter(presences::room_id.eq(rooms::id));
        self.database.write(|conn| {
            Ok(diesel::delete(rooms::table.filter(not(exists(inside)))).execute(conn)?)
        })
    }

    fn rooms(&mut self, now: DateTime<Utc>) -> Result<Vec<RoomCounts>> {
        let counts = (
            rooms::channel_name,
            count(presences::id.nullable()),
            count(presences::user_id.nullable()).aggregate_distinct(),
            count(presences::user_id.nullable()),
        );
        let lives = nodes::id.eq(presences::node_id).and(nodes::lease_expires_at.ge(Stamp(now)));
        let alive = presences::table.inner_join(nodes::table.on(lives));
        let rows: Vec<(String, i64, i64, i64)> = self.database.read(|conn| {
            Ok(rooms::table
                .left_join(alive)
                .group_by((rooms::id, rooms::channel_name))
                .order(rooms::channel_name)
                .select(counts)
                .load(conn)?)
        })?;
        let rooms = rows.into_iter().map(|(channel_name, connections, users, known)| RoomCounts {
            channel_name,
            connections: to_count(connections),
            users: to_count(users),
            anonymous: to_count(connections - known),
        });
        Ok(rooms.collect())
    }
}

/// Every node that has a row or presences.
fn dead_nodes(conn: &mut SqliteConnection) -> QueryResult<Vec<DeadNode>> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Text)]
        node: String,
        #[diesel(sql_type = BigInt)]
        presences: i64,
    }
    let found: Vec<Found> = diesel::sql_query(
        "SELECT node, sum(presences) AS presences FROM (
            SELECT id AS node, 0 AS presences FROM nodes
            UNION ALL SELECT node_id, count(*) FROM presences GROUP BY node_id
        ) GROUP BY node ORDER BY node",
    )
    .load(conn)?;
    let dead = found.into_iter();
    Ok(dead.map(|dead| DeadNode { node: dead.node, presences: to_count(dead.presences) }).collect())
}

/// The lock of the one server that uses a SQLite file, held until it is dropped.
///
/// It is a lock on the file `PATH.lock` beside the database, which the operating system releases when the
/// process ends, in whatever way. The lock file stays: if it were deleted, two processes could lock two
/// files of the same name. Commands that only read or prune need no lock.
#[derive(Debug)]
pub struct OwnerLock {
    path: PathBuf,
    _locked: File,
}

/// Why the lock of a SQLite file cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnerError {
    /// Another server uses the file; stop it, or use another file.
    #[error("another server uses this database (`{}` is locked)", lock.display())]
    Taken {
        /// The lock file.
        lock: PathBuf,
    },
    /// The lock file cannot be created or locked.
    #[error("cannot lock `{}`", lock.display())]
    Io {
        /// The lock file.
        lock: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl OwnerLock {
    /// Takes the lock, without waiting.
    ///
    /// # Errors
    ///
    /// [`OwnerError::Taken`] if another server has it.
    pub fn take(database: &SqlitePath) -> Result<Self, OwnerError> {
        let path = lock_path(database);
        let io = |source| OwnerError::Io { lock: path.clone(), source };
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, _locked: file }),
            Err(TryLockError::WouldBlock) => Err(OwnerError::Taken { lock: path }),
            Err(TryLockError::Error(source)) => Err(OwnerError::Io { lock: path, source }),
        }
    }

    /// The lock file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The path of the lock file: beside the database file itself, even if the path is a link to it.
fn lock_path(database: &SqlitePath) -> PathBuf {
    let path = database.as_path();
    let mut name = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).into_os_string();
    name.push(".lock");
    name.into()
}

#[cfg(test)]
mod lock_tests {
    use super::*;

    fn database(directory: &Path, name: &str) -> SqlitePath {
        SqlitePath::new(directory.join(name).to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_second_owner_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(directory.path(), "a b?.db");
        let first = OwnerLock::take(&path).unwrap();
        assert_eq!(first.path(), directory.path().join("a b?.db.lock"));
        let refused = OwnerLock::take(&path).unwrap_err();
        assert!(refused.to_string().contains("a b?.db.lock"), "{refused}");
        assert!(matches!(refused, OwnerError::Taken { .. }));
        drop(first);
        OwnerLock::take(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_the_database_is_the_same_database() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (database(directory.path(), "a"), database(directory.path(), "b"));
        File::create(file.as_path()).unwrap();
        std::os::unix::fs::symlink(file.as_path(), link.as_path()).unwrap();
        let _first = OwnerLock::take(&file).unwrap();
        assert!(matches!(OwnerLock::take(&link), Err(OwnerError::Taken { .. })));
    }

    #[test]
    fn a_missing_directory_is_reported_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let refused = OwnerLock::take(&database(directory.path(), "none/a")).unwrap_err();
        assert!(matches!(&refused, OwnerError::Io { lock, .. } if lock.ends_with("none/a.lock")));
    }
}
