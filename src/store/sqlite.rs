//! The store on SQLite.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::{
    connection::SimpleConnection,
    dsl::{count, exists, not},
    prelude::*,
    r2d2::{ConnectionManager, CustomizeConnection, Error as ConnectError, Pool, PooledConnection},
    sql_types::{BigInt, Text},
    upsert::excluded,
};

use super::{
    Applied, Batch, DatabaseUrl, DeadNode, OwnerLock, Renewal, RoomCounts, SqlitePath, Started,
    Store, StoreError, bulk,
    error::Failure,
    migrate,
    schema::{nodes, presences, rooms},
    stamp::Stamp,
    transact::transact_locked,
};

use crate::model::{Epoch, NodeName};

type Manager = ConnectionManager<SqliteConnection>;
pub(super) type Connected = PooledConnection<Manager>;

/// How long a [`SqliteStore`] waits for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// How long a call waits for a lock that another process holds. Default 5 s.
    pub busy_timeout: Duration,
    /// How long opening waits for others that open and migrate the same file. Default 30 s.
    pub open_timeout: Duration,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { busy_timeout: Duration::from_secs(5), open_timeout: Duration::from_secs(30) }
    }
}

/// A [`Store`] on a SQLite file, or in memory.
///
/// One connection: a store has one user, and `:memory:` is a database per connection. Before each
/// call it looks whether the file it has open is still the one at its path.
pub struct SqliteStore {
    place: Place,
    options: SqliteOptions,
    open: Option<Open>,
    /// The file that was open last.
    known: Option<FileId>,
    /// The database that was open is not there any more; said once with [`StoreError::Gone`].
    lost: bool,
    /// Held as long as this store may write.
    _owner: Option<OwnerLock>,
}

#[derive(Clone, Debug)]
enum Place {
    Memory,
    File(SqlitePath),
}

struct Open {
    pool: Pool<Manager>,
    /// Set when the pool has made a connection, which has to be prepared.
    fresh: Arc<AtomicBool>,
}

impl SqliteStore {
    /// Opens a database, making and migrating it as needed.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; a directory that is missing is not made.
    pub fn open(url: &DatabaseUrl) -> Result<Self, StoreError> {
        Self::open_with(url, SqliteOptions::default())
    }

    /// Opens a database as [`open`](Self::open) does, with options.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open_with(url: &DatabaseUrl, options: SqliteOptions) -> Result<Self, StoreError> {
        Self::open_counting(url, options).map(|(store, _)| store)
    }

    /// Keeps the lock until the store is dropped.
    #[must_use]
    pub fn owned(self, lock: Option<OwnerLock>) -> Self {
        Self { _owner: lock, ..self }
    }

    /// Opens a database, and says how many migrations that took.
    pub(super) fn open_counting(
        url: &DatabaseUrl,
        options: SqliteOptions,
    ) -> Result<(Self, usize), StoreError> {
        let place = match url {
            DatabaseUrl::SqliteMemory => Place::Memory,
            DatabaseUrl::SqliteFile(path) => Place::File(path.clone()),
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(_) => return Err(StoreError::unavailable("this is not SQLite")),
        };
        let mut store = Self { place, options, open: None, known: None, lost: false, _owner: None };
        store.find()?;
        let (_, applied) = store.connect(options.open_timeout)?;
        Ok((store, applied.unwrap_or(0)))
    }

    /// A connection to the database that is at the path now.
    pub(super) fn connection(&mut self, access: Access) -> Result<Connected, StoreError> {
        let writable = self.find()?;
        if access == Access::Write && !writable {
            // SQLite decides on opening whether it may write.
            self.close();
            return Err(StoreError::ReadOnly);
        }
        let (conn, applied) = self.connect(Duration::ZERO)?;
        // A file that needed tables again was emptied in its place.
        let emptied = applied.is_some_and(|migrations| migrations > 0);
        if std::mem::take(&mut self.lost) || emptied {
            return Err(StoreError::Gone);
        }
        Ok(conn)
    }

    /// Looks at the file, lets go of one that is not at its path any more, says if it is writable.
    fn find(&mut self) -> Result<bool, StoreError> {
        let Place::File(path) = &self.place else { return Ok(true) };
        let directory = path.directory();
        let found = match fs::metadata(path.as_path()) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.close();
                self.lost |= self.known.is_some();
                // Opening makes the file, but not its directory.
                return fs::metadata(directory).map(|_| true).map_err(StoreError::unavailable);
            }
            Err(error) => {
                self.close();
                return Err(StoreError::unavailable(error));
            }
        };
        if self.known.is_some_and(|known| known != FileId::of(&found)) {
            self.close();
            self.lost = true;
        }
        if found.is_dir() {
            return Err(StoreError::unavailable(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        Ok(!found.permissions().readonly())
    }

    /// Takes the connection, prepared, with the number of migrations if it is a new one.
    fn connect(&mut self, patience: Duration) -> Result<(Connected, Option<usize>), StoreError> {
        let open = self.open.get_or_insert_with(|| Open::new(&self.place, self.options));
        let mut conn = open.pool.get().map_err(StoreError::unavailable)?;
        if !open.fresh.swap(false, Ordering::Relaxed) {
            return Ok((conn, None));
        }
        let applied = match migrate::prepare(&mut conn, patience) {
            Ok(applied) => applied,
            Err(error) => {
                drop(conn);
                self.open = None;
                return Err(error);
            }
        };
        if let Place::File(path) = &self.place {
            let found = fs::metadata(path.as_path()).map_err(StoreError::unavailable)?;
            self.known = Some(FileId::of(&found));
        }
        Ok((conn, Some(applied)))
    }

    /// Runs a call, and lets go of a connection that has become useless.
    fn call<T>(
        &mut self,
        access: Access,
        call: impl FnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut conn = self.connection(access)?;
        let result = call(&mut conn);
        drop(conn);
        // Opening it again is what can help.
        if let Err(
            StoreError::ReadOnly
            | StoreError::Corrupt { .. }
            | StoreError::Schema { .. }
            | StoreError::Unavailable { .. },
        ) = &result
        {
            self.close();
        }
        result
    }

    /// Runs a transaction that writes.
    fn write<T>(
        &mut self,
        body: impl FnOnce(&mut SqliteConnection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.call(Access::Write, |conn| transact_locked(conn, body).map_err(Failure::into_error))
    }

    /// Lets go of a file; memory would be lost with its connection.
    fn close(&mut self) {
        if let Place::File(_) = self.place {
            self.open = None;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Open {
    fn new(place: &Place, options: SqliteOptions) -> Self {
        // Connecting takes no lock, so it works at once or not at all.
        const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
        let fresh = Arc::new(AtomicBool::new(false));
        let settings = Settings { busy_timeout: options.busy_timeout, fresh: Arc::clone(&fresh) };
        let name = match place {
            Place::Memory => ":memory:".to_owned(),
            Place::File(path) => path.for_sqlite(),
        };
        let pool = Pool::builder()
            .max_size(1)
            .min_idle(Some(0))
            // A connection that the pool exchanged by itself would be an empty memory.
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            .connection_timeout(CONNECT_TIMEOUT)
            .connection_customizer(Box::new(settings))
            .build_unchecked(ConnectionManager::new(name));
        Self { pool, fresh }
    }
}

#[derive(Debug)]
struct Settings {
    busy_timeout: Duration,
    fresh: Arc<AtomicBool>,
}

impl CustomizeConnection<SqliteConnection, ConnectError> for Settings {
    fn on_acquire(&self, conn: &mut SqliteConnection) -> Result<(), ConnectError> {
        let millis = self.busy_timeout.as_millis();
        let settings = format!("PRAGMA busy_timeout = {millis}; PRAGMA foreign_keys = ON;");
        conn.batch_execute(&settings).map_err(ConnectError::QueryError)?;
        self.fresh.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Which file a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    fn of(file: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self(file.dev(), file.ino())
    }

    /// Elsewhere a file that is open cannot be exchanged.
    #[cfg(not(unix))]
    fn of(_: &fs::Metadata) -> Self {
        Self(0, 0)
    }
}

#[derive(Insertable)]
#[diesel(table_name = nodes)]
struct Lease<'a> {
    id: &'a str,
    started_at: Stamp,
    lease_expires_at: Stamp,
}

impl<'a> Lease<'a> {
    fn new(node: &'a NodeName, now: DateTime<Utc>, lease: Duration) -> Self {
        let end = Stamp::after(now, lease);
        Self { id: node.as_str(), started_at: Stamp(now), lease_expires_at: end }
    }
}

impl Store for SqliteStore {
    fn apply(
        &mut self,
        node: &NodeName,
        batch: &Batch,
        now: DateTime<Utc>,
    ) -> Result<Applied, StoreError> {
        self.write(|conn| bulk::apply(conn, node, batch, now))
    }

    fn start(
        &mut self,
        node: &NodeName,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Started, StoreError> {
        self.write(|conn| {
            let dead = dead_nodes(conn)?;
            diesel::delete(presences::table).execute(conn)?;
            diesel::delete(nodes::table).execute(conn)?;
            let row = Lease::new(node, now, lease);
            diesel::insert_into(nodes::table).values(row).execute(conn)?;
            Ok(Started { incarnation: Epoch::new(), dead, inherited: Vec::new(), stopped: false })
        })
    }

    fn renew(
        &mut self,
        node: &NodeName,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Renewal, StoreError> {
        self.write(|conn| {
            let end: Option<Stamp> = nodes::table
                .find(node.as_str())
                .select(nodes::lease_expires_at)
                .first(conn)
                .optional()?;
            diesel::insert_into(nodes::table)
                .values(Lease::new(node, now, lease))
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

    fn stop(&mut self, node: &NodeName) -> Result<usize, StoreError> {
        self.write(|conn| {
            let own = presences::node_id.eq(node.as_str());
            let removed = diesel::delete(presences::table.filter(own)).execute(conn)?;
            diesel::delete(nodes::table.find(node.as_str())).execute(conn)?;
            Ok(removed)
        })
    }

    fn prune_presences(
        &mut self,
        now: DateTime<Utc>,
        max_age: Duration,
    ) -> Result<usize, StoreError> {
        let age = TimeDelta::from_std(max_age).ok();
        let Some(oldest) = age.and_then(|age| now.checked_sub_signed(age)) else { return Ok(0) };
        let owner = nodes::table.filter(nodes::id.eq(presences::node_id));
        let lives = exists(owner.filter(nodes::lease_expires_at.ge(Stamp(now))));
        let stale = presences::last_seen.lt(Stamp(oldest)).and(not(lives));
        self.write(|conn| Ok(diesel::delete(presences::table.filter(stale)).execute(conn)?))
    }

    fn prune_rooms(&mut self) -> Result<usize, StoreError> {
        let inside = presences::table.filter(presences::room_id.eq(rooms::id));
        self.write(|conn| {
            Ok(diesel::delete(rooms::table.filter(not(exists(inside)))).execute(conn)?)
        })
    }

    fn rooms(&mut self) -> Result<Vec<RoomCounts>, StoreError> {
        let counts = (
            rooms::channel_name,
            count(presences::id.nullable()),
            count(presences::user_id.nullable()).aggregate_distinct(),
            count(presences::user_id.nullable()),
        );
        let rows: Vec<(String, i64, i64, i64)> = self.call(Access::Read, |conn| {
            Ok(rooms::table
                .left_join(presences::table)
                .group_by((rooms::id, rooms::channel_name))
                .order(rooms::channel_name)
                .select(counts)
                .load(conn)?)
        })?;
        let rooms = rows.into_iter().map(|(channel_name, connections, users, known)| RoomCounts {
            channel_name,
            connections: number(connections),
            users: number(users),
            anonymous: number(connections - known),
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
    Ok(dead.map(|dead| DeadNode { node: dead.node, presences: number(dead.presences) }).collect())
}

/// A count of SQL, which is never negative.
fn number(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}
