//! The connection to a SQLite database, and its migrations.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use diesel::{
    SqliteConnection,
    connection::SimpleConnection,
    r2d2::{ConnectionManager, CustomizeConnection, Error as ConnectError, Pool, PooledConnection},
    result::Error as DieselError,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use scheduled_thread_pool::ScheduledThreadPool;

use crate::store::{
    DatabaseUrl, Result, SqlitePath, StoreError,
    transaction::{Classify, Failure, migration_error, transact_by},
};

pub(super) const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

type Manager = ConnectionManager<SqliteConnection>;
pub(super) type Connected = PooledConnection<Manager>;

/// The timeouts of a `SqliteStore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// How long a call waits for a lock held by another process. Default 5 s.
    pub busy_timeout: Duration,
    /// How long opening waits for others that open and migrate the same file. Default 30 s.
    pub open_timeout: Duration,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { busy_timeout: Duration::from_secs(5), open_timeout: Duration::from_secs(30) }
    }
}

/// Errors by their messages: Diesel gives no result codes. These are the texts of `sqlite3_errstr`, one for
/// each code, which are never translated; what a trigger raises has its own text.
const SQLITE_MESSAGES: [(Kind, &[&str]); 6] = [
    (
        Kind::Locked,
        &[
            "database is locked",
            "database table is locked",
            "database schema is locked",
            "locking protocol",
        ],
    ),
    (Kind::Full, &["database or disk is full"]),
    (Kind::ReadOnly, &["attempt to write a readonly database"]),
    (
        Kind::Corrupt,
        &[
            "database disk image is malformed",
            "file is not a database",
            "malformed database schema",
        ],
    ),
    (
        Kind::Schema,
        &[
            "no such table",
            "no such column",
            "foreign key mismatch",
            "ON CONFLICT clause does not match",
        ],
    ),
    (
        Kind::Unavailable,
        &[
            "disk I/O error",
            "unable to open database file",
            "out of memory",
            "access permission denied",
            "authorization denied",
            "interrupted",
            "large file support is disabled",
            "bad parameter or other API misuse",
            "no such savepoint",
            "cannot commit",
            "cannot rollback",
            "cannot start a transaction",
        ],
    ),
];

/// A failure that SQLite has a text for.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Locked,
    Full,
    ReadOnly,
    Corrupt,
    Schema,
    Unavailable,
}

fn kind(message: &str) -> Option<Kind> {
    let is = |texts: &[&str]| texts.iter().any(|text| message.starts_with(text));
    let known = SQLITE_MESSAGES.iter().find_map(|(kind, texts)| is(texts).then_some(*kind));
    known.or(message.contains(" has no column named ").then_some(Kind::Schema))
}

impl Classify for SqliteConnection {
    /// What has none of the texts is what a trigger raises: the fault of a row.
    fn classify(error: DieselError) -> Failure {
        let DieselError::DatabaseError(_, info) = &error else { return Failure::Query(error) };
        let Some(kind) = kind(info.message()) else {
            return Failure::Row(info.message().to_owned());
        };
        Failure::Store(match kind {
            Kind::Locked => StoreError::Locked,
            Kind::Full => StoreError::Full,
            Kind::ReadOnly => StoreError::ReadOnly,
            Kind::Corrupt => StoreError::Corrupt { source: error.into() },
            Kind::Schema => StoreError::Schema { source: error.into() },
            Kind::Unavailable => StoreError::unavailable(error),
        })
    }
}

/// A database with its connection, which is replaced when the file is.
pub(super) struct Database {
    location: Location,
    options: SqliteOptions,
    open: Option<Open>,
    /// The file that was open last.
    known: Option<FileId>,
    /// Whether the database that was open is gone, until [`StoreError::Gone`] has reported it.
    lost: bool,
}

#[derive(Clone, Debug)]
enum Location {
    Memory,
    File(SqlitePath),
}

struct Open {
    pool: Pool<Manager>,
    /// Whether the pool has made a connection that is still to be prepared.
    fresh: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Database {
    /// Opens a database, and returns the number of migrations that were applied.
    pub fn open(url: &DatabaseUrl, options: SqliteOptions) -> Result<(Self, usize)> {
        let location = match url {
            DatabaseUrl::SqliteMemory => Location::Memory,
            DatabaseUrl::SqliteFile(path) => Location::File(path.clone()),
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(_) => return Err(StoreError::unavailable("this is not SQLite")),
        };
        let mut database = Self { location, options, open: None, known: None, lost: false };
        database.check_file()?;
        let (_, migrations) = database.connect(options.open_timeout)?;
        Ok((database, migrations.unwrap_or(0)))
    }

    /// Runs a call that only reads.
    pub fn read<T>(
        &mut self,
        call: impl FnOnce(&mut SqliteConnection) -> Result<T, Failure>,
    ) -> Result<T> {
        self.call(Access::Read, call)
    }

    /// Runs a transaction that writes. It takes the write lock at its beginning: a transaction that reads
    /// first may be refused the lock later, without waiting.
    pub fn write<T>(
        &mut self,
        body: impl FnOnce(&mut SqliteConnection) -> Result<T, Failure>,
    ) -> Result<T> {
        self.call(Access::Write, |conn| transact_by(body, |run| conn.immediate_transaction(run)))
    }

    /// Runs a call, and closes a connection that has become useless.
    fn call<T>(
        &mut self,
        access: Access,
        call: impl FnOnce(&mut SqliteConnection) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut conn = self.connection(access)?;
        let result = call(&mut conn).map_err(Failure::into_error::<SqliteConnection>);
        drop(conn);
        // Opening the file again may help.
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

    /// A connection to the database that is at the path now.
    pub fn connection(&mut self, access: Access) -> Result<Connected> {
        let writable = self.check_file()?;
        if access == Access::Write && !writable {
            // SQLite decides when it opens a file whether it may write.
            self.close();
            return Err(StoreError::ReadOnly);
        }
        let (conn, migrations) = self.connect(Duration::ZERO)?;
        // A file that needed tables again has been truncated.
        let emptied = migrations.is_some_and(|migrations| migrations > 0);
        if std::mem::take(&mut self.lost) || emptied {
            return Err(StoreError::Gone);
        }
        Ok(conn)
    }

    /// Closes the connection if its file is no longer at the path. Returns whether the file is writable.
    fn check_file(&mut self) -> Result<bool> {
        let Location::File(path) = &self.location else { return Ok(true) };
        let file = match fs::metadata(path.as_path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = path.as_path().parent().filter(|path| !path.as_os_str().is_empty());
                // SQLite creates the file, but not its directory.
                let directory = fs::metadata(directory.unwrap_or(Path::new(".")));
                self.close();
                self.lost |= self.known.is_some();
                return directory.map(|_| true).map_err(StoreError::unavailable);
            }
            Err(error) => {
                self.close();
                return Err(StoreError::unavailable(error));
            }
        };
        if self.known.is_some_and(|known| known != FileId::of(&file)) {
            self.close();
            self.lost = true;
        }
        if file.is_dir() {
            return Err(StoreError::unavailable(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        Ok(!file.permissions().readonly())
    }

    /// The connection, prepared; with the number of migrations if it is new.
    fn connect(&mut self, timeout: Duration) -> Result<(Connected, Option<usize>)> {
        let open = self.open.get_or_insert_with(|| Open::new(&self.location, self.options));
        let mut conn = open.pool.get().map_err(StoreError::unavailable)?;
        if !open.fresh.swap(false, Ordering::Relaxed) {
            return Ok((conn, None));
        }
        let migrations = match prepare(&mut conn, timeout) {
            Ok(migrations) => migrations,
            Err(error) => {
                drop(conn);
                self.open = None;
                return Err(error);
            }
        };
        if let Location::File(path) = &self.location {
            let file = fs::metadata(path.as_path()).map_err(StoreError::unavailable)?;
            self.known = Some(FileId::of(&file));
        }
        Ok((conn, Some(migrations)))
    }

    /// Closes a file; a database in memory would be lost with its connection.
    fn close(&mut self) {
        if let Location::File(_) = self.location {
            self.open = None;
        }
    }
}

impl Open {
    fn new(location: &Location, options: SqliteOptions) -> Self {
        // Connecting takes no lock, so it succeeds or fails at once.
        const POOL_TIMEOUT: Duration = Duration::from_secs(1);
        /// The thread on which r2d2 makes connections, for all stores of the process.
        static CONNECTOR: LazyLock<Arc<ScheduledThreadPool>> = LazyLock::new(|| {
            let name = "presence-sqlite";
            let pool = ScheduledThreadPool::builder().num_threads(1).thread_name_pattern(name);
            Arc::new(pool.build())
        });
        let fresh = Arc::new(AtomicBool::new(false));
        let settings = Settings { busy_timeout: options.busy_timeout, fresh: Arc::clone(&fresh) };
        let name = match location {
            Location::Memory => ":memory:".to_owned(),
            Location::File(path) => path.for_sqlite(),
        };
        let pool = Pool::builder()
            .max_size(1)
            // Connecting creates the file, so it happens only after the path has been checked, and a
            // database in memory ends with its connection.
            .min_idle(Some(0))
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            .connection_timeout(POOL_TIMEOUT)
            .connection_customizer(Box::new(settings))
            .thread_pool(Arc::clone(&CONNECTOR))
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

/// Prepares a new connection: write-ahead log and tables. Returns the number of migrations applied.
///
/// SQLite returns "locked" at once where waiting could end in a deadlock, for example when two processes
/// change the journal mode of a new file, so it is retried until the timeout.
fn prepare(conn: &mut SqliteConnection, timeout: Duration) -> Result<usize> {
    const RETRY_PAUSE: Duration = Duration::from_millis(10);
    let started = Instant::now();
    loop {
        match prepare_once(conn).map_err(Failure::into_error::<SqliteConnection>) {
            Err(StoreError::Locked) if started.elapsed() < timeout => thread::sleep(RETRY_PAUSE),
            result => return result,
        }
    }
}

fn prepare_once(conn: &mut SqliteConnection) -> Result<usize, Failure> {
    let failed = migration_error::<SqliteConnection>;
    conn.batch_execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")?;
    // Checked first without the write lock, so that a database in use is not blocked.
    if !conn.has_pending_migration(SQLITE_MIGRATIONS).map_err(failed)? {
        return Ok(0);
    }
    let migrate = |conn: &mut SqliteConnection| {
        Ok(conn.run_pending_migrations(SQLITE_MIGRATIONS).map_err(failed)?.len())
    };
    transact_by(migrate, |run| conn.immediate_transaction(run))
}

/// The identity of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    #[cfg(unix)]
    fn of(file: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self(file.dev(), file.ino())
    }

    /// On other systems an open file cannot be replaced.
    #[cfg(not(unix))]
    fn of(_: &fs::Metadata) -> Self {
        Self(0, 0)
    }
}

#[cfg(test)]
mod tests {
    use diesel::Connection;

    use super::{super::tests::lines, *};

    /// The columns of all tables as `table.column type`.
    fn columns(conn: &mut SqliteConnection) -> Vec<String> {
        lines(
            conn,
            "SELECT tables.name || '.' || columns.name || ' ' ||
                CASE \"notnull\" WHEN 1
                THEN columns.type ELSE 'NULLABLE<' || columns.type || '>' END AS line
             FROM sqlite_schema AS tables JOIN pragma_table_info(tables.name) AS columns
             WHERE tables.type = 'table' AND tables.name NOT LIKE '\\_\\_diesel%' ESCAPE '\\'
             ORDER BY tables.name, columns.cid",
        )
    }

    /// The same of the text of `schema.rs`.
    fn columns_of_the_code() -> Vec<String> {
        let mut table = "";
        let mut columns = Vec::new();
        for line in include_str!("../schema.rs").lines().map(str::trim) {
            if line.starts_with("//") {
                continue;
            }
            if let Some((name, _)) = line.split_once(" (").filter(|_| line.ends_with('{')) {
                table = name;
            } else if let Some((column, kind)) =
                line.split_once(" -> ").filter(|_| line.ends_with(','))
            {
                columns.push(format!(
                    "{table}.{column} {}",
                    kind.trim_end_matches(',').to_uppercase()
                ));
            }
        }
        columns
    }

    #[test]
    fn migrations_go_up_down_and_up_and_make_what_the_code_expects() {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        let objects = "SELECT name AS line FROM sqlite_schema
            WHERE name NOT LIKE '%diesel_schema%' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
        conn.run_pending_migrations(SQLITE_MIGRATIONS).unwrap();
        let made = lines(&mut conn, objects);
        assert_eq!(columns(&mut conn), columns_of_the_code());
        assert_eq!(columns(&mut conn).len(), 14);
        conn.revert_all_migrations(SQLITE_MIGRATIONS).unwrap();
        assert!(lines(&mut conn, objects).is_empty());
        conn.run_pending_migrations(SQLITE_MIGRATIONS).unwrap();
        assert_eq!(lines(&mut conn, objects), made);
        assert_eq!(made.len(), 8, "3 tables, 4 indexes, 1 trigger: {made:?}");
    }
}
