//! The connection to a SQLite database.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use diesel::{
    SqliteConnection,
    connection::SimpleConnection,
    r2d2::{
        ConnectionManager, CustomizeConnection, Error as ConnectError, NopErrorHandler, Pool,
        PooledConnection, R2D2Connection,
    },
};
use scheduled_thread_pool::ScheduledThreadPool;

use super::{
    checkpoint::{Checkpoints, truncate},
    files::{FileId, LogFiles, UnusableFile, directory, explained, shared_memory},
    owner::{OwnerError, OwnerLock},
    prepare::{prepare, works_without_shared_memory},
};
use crate::{
    store::{
        DatabaseUrl, Result, SqlitePath, StoreError,
        transaction::{Failure, transact_by},
    },
    supervision::check_threads,
};

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

/// A database with its connection, which is replaced when the file is.
pub(super) struct Database {
    location: Location,
    options: SqliteOptions,
    open: Option<Open>,
    /// The file that was open last.
    known: Option<FileId>,
    /// Whether the database that was open is gone, until [`StoreError::Gone`] has reported it.
    lost: bool,
    /// Held for as long as this process may write.
    owner: Option<OwnerLock>,
    checkpoints: Checkpoints,
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
    /// The files of the log, unless SQLite may be closing them.
    log: Option<LogFiles>,
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
        let mut database = Self {
            location,
            options,
            open: None,
            known: None,
            lost: false,
            owner: None,
            checkpoints: Checkpoints::default(),
        };
        database.check_file()?;
        let (_, migrations) = database.connect(options.open_timeout)?;
        Ok((database, migrations.unwrap_or(0)))
    }

    /// Keeps the lock of the owner.
    pub fn own(&mut self, lock: Option<OwnerLock>) {
        self.owner = lock;
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
        // Not looked at again if the call panics, since the pool then closes the connection.
        let log = self.open.as_mut().and_then(|open| open.log.take());
        let result = call(&mut conn).map_err(Failure::into_error::<SqliteConnection>);
        let result = result.map_err(|error| self.explained(error));
        let full = matches!(result, Err(StoreError::Full));
        if let (Access::Write, Location::File(path)) = (access, &self.location)
            && (full || result.is_ok())
        {
            let timeout = self.options.busy_timeout;
            self.checkpoints.run(&mut conn, path.as_path(), timeout, full);
        }
        let broken = conn.is_broken();
        drop(conn);
        if let Some(open) = &mut self.open {
            open.log = log;
        }
        // Opening the file again may help.
        let useless = matches!(
            &result,
            Err(StoreError::ReadOnly
                | StoreError::Denied { .. }
                | StoreError::Corrupt { .. }
                | StoreError::Schema { .. }
                | StoreError::Unavailable { .. })
        );
        if broken || useless {
            self.close();
        }
        result
    }

    /// A connection to the database that is at the path now.
    pub fn connection(&mut self, access: Access) -> Result<Connected> {
        self.check_owner()?;
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

    /// Takes the owner's lock again if its file is no longer at its path. Another server may have used the
    /// database meanwhile.
    fn check_owner(&mut self) -> Result<()> {
        let Some(owner) = &mut self.owner else { return Ok(()) };
        match owner.retake() {
            Ok(false) => Ok(()),
            Ok(true) => {
                let lock = owner.path().to_owned();
                self.lose(&lock);
                Ok(())
            }
            Err(error) => {
                self.close();
                Err(match error {
                    OwnerError::Taken { .. } => StoreError::Taken { source: error.into() },
                    OwnerError::Io { .. } => StoreError::unavailable(error),
                })
            }
        }
    }

    /// Closes the connection if its files are no longer at their paths. Returns whether the file is writable.
    fn check_file(&mut self) -> Result<bool> {
        let Location::File(path) = self.location.clone() else { return Ok(true) };
        let path = path.as_path();
        let file = match fs::metadata(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.known.is_some() {
                    self.lose(path);
                }
                self.close();
                // SQLite creates the file, but not its directory.
                let directory = fs::metadata(directory(path));
                return directory
                    .map(|_| true)
                    .map_err(|error| self.explained(StoreError::unavailable(error)));
            }
            Err(error) => {
                self.close();
                return Err(self.explained(StoreError::unavailable(error)));
            }
        };
        if self.known.is_some_and(|known| known != FileId::of(&file)) {
            self.lose(path);
        }
        let log = self.open.as_ref().and_then(|open| open.log);
        if let Some(missing) = log.and_then(|log| log.missing(path)) {
            if missing != shared_memory(path) {
                self.rescue_log();
            }
            self.lose(&missing);
        }
        if file.is_dir() {
            let unusable = UnusableFile::new(path, io::ErrorKind::IsADirectory);
            return Err(StoreError::unavailable(unusable));
        }
        Ok(!file.permissions().readonly())
    }

    /// Moves a log that has no name any more into the database. Otherwise who opens the database would
    /// look for its pages in another log, for as long as other processes share the memory that says which
    /// pages there are.
    fn rescue_log(&mut self) {
        let conn = self.open.as_ref().and_then(|open| open.pool.get().ok());
        // What is not saved is written again.
        let _ = conn.map(|mut conn| truncate(&mut conn, self.options.busy_timeout));
    }

    /// Closes the database, whose rows are gone with this file.
    fn lose(&mut self, file: &Path) {
        self.close();
        if !std::mem::replace(&mut self.lost, true) {
            let file = file.display();
            tracing::warn!(%file, "a file of the database was deleted or replaced");
        }
    }

    /// The connection, prepared; with the number of migrations if it is new.
    fn connect(&mut self, timeout: Duration) -> Result<(Connected, Option<usize>)> {
        let open = match &mut self.open {
            Some(open) => open,
            closed => closed.insert(Open::new(&self.location, self.options)?),
        };
        let prepared = open.pool.get().map_err(StoreError::unavailable).and_then(|mut conn| {
            if !open.fresh.swap(false, Ordering::Relaxed) {
                return Ok((conn, None));
            }
            prepare(&mut conn, timeout).map(|migrations| (conn, Some(migrations)))
        });
        let (conn, migrations) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.open = None;
                return Err(self.why_unusable(error));
            }
        };
        if let (Some(_), Location::File(path)) = (migrations, &self.location) {
            let file = fs::metadata(path.as_path()).map_err(StoreError::unavailable)?;
            self.known = Some(FileId::of(&file));
            open.log = Some(LogFiles::of(path.as_path()));
        }
        Ok((conn, migrations))
    }

    /// The error of a call with its cause, as far as the system knows it.
    fn explained(&self, error: StoreError) -> StoreError {
        match &self.location {
            Location::Memory => error,
            Location::File(path) => explained(error, path.as_path()),
        }
    }

    /// The error of opening the database, which is closed, with its cause.
    fn why_unusable(&self, error: StoreError) -> StoreError {
        let error = self.explained(error);
        let Location::File(path) = &self.location else { return error };
        let may_lack_memory =
            matches!(error, StoreError::Unavailable { .. } | StoreError::ReadOnly);
        if !may_lack_memory || !works_without_shared_memory(&path.for_sqlite()) {
            return error;
        }
        let source = match error {
            StoreError::Unavailable { source } => source,
            // SQLite has found memory that it cannot map for writing.
            _ => "SQLite can only read it".into(),
        };
        StoreError::NoSharedMemory { file: shared_memory(path.as_path()), source }
    }

    /// Closes a file; a database in memory would be lost with its connection.
    fn close(&mut self) {
        if let Location::File(_) = self.location {
            self.open = None;
        }
    }
}

impl Open {
    fn new(location: &Location, options: SqliteOptions) -> Result<Self> {
        // Connecting takes no lock, so it succeeds or fails at once.
        const POOL_TIMEOUT: Duration = Duration::from_secs(1);
        let connector = connector().map_err(|error| StoreError::unavailable(NoThread(error)))?;
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
            // The caller gets the error.
            .error_handler(Box::new(NopErrorHandler))
            .thread_pool(connector)
            .build_unchecked(ConnectionManager::new(name));
        Ok(Self { pool, fresh, log: None })
    }
}

/// The thread that makes connections cannot be started.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot start a thread: raise the limit (`ulimit -u`, the pids limit of the container): {0}"
)]
struct NoThread(io::Error);

/// The thread on which r2d2 makes connections, for all stores of the process.
fn connector() -> io::Result<Arc<ScheduledThreadPool>> {
    static CONNECTOR: OnceLock<Arc<ScheduledThreadPool>> = OnceLock::new();
    if CONNECTOR.get().is_none() {
        // The pool panics if it cannot start one.
        check_threads()?;
    }
    let start = || {
        let name = "presence-sqlite";
        let pool = ScheduledThreadPool::builder().num_threads(1).thread_name_pattern(name);
        Arc::new(pool.build())
    };
    Ok(Arc::clone(CONNECTOR.get_or_init(start)))
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
