//! The tables as migrations, embedded in the binary.

use std::{
    thread,
    time::{Duration, Instant},
};

use diesel::{SqliteConnection, connection::SimpleConnection, result::Error};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

#[cfg(feature = "postgres")]
use super::PostgresOptions;
use super::{
    DatabaseUrl, SqliteOptions, SqliteStore, StoreError,
    error::{Failure, Source},
    transact::transact_locked,
};

pub(super) const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// Brings a database's tables up to this version, making a SQLite database if there is none. Answers
/// how many migrations that took.
///
/// Several processes may start at once on one database; they wait for one another, up to 30 seconds.
///
/// # Errors
///
/// [`StoreError`]; the migrations done until then stay, each one is all or nothing.
pub fn migrate(url: &DatabaseUrl) -> Result<usize, StoreError> {
    #[cfg(feature = "postgres")]
    if let DatabaseUrl::Postgres(url) = url {
        return super::postgres::migrate(url, PostgresOptions::default());
    }
    let (_, applied) = SqliteStore::open_counting(url, SqliteOptions::default())?;
    Ok(applied)
}

/// Makes a connection ready to use: write-ahead log and tables. Answers how many migrations ran.
///
/// SQLite answers "locked" at once where waiting could end in a deadlock, as when two processes
/// change the journal of a new file, so all of it is tried again until `patience` ends.
pub(super) fn prepare(
    conn: &mut SqliteConnection,
    patience: Duration,
) -> Result<usize, StoreError> {
    const PAUSE: Duration = Duration::from_millis(10);
    let started = Instant::now();
    loop {
        match prepare_once(conn) {
            Err(StoreError::Locked) if started.elapsed() < patience => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

fn prepare_once(conn: &mut SqliteConnection) -> Result<usize, StoreError> {
    conn.batch_execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")?;
    // Asked first without the write lock, so that a database at work is not held up.
    if !conn.has_pending_migration(MIGRATIONS).map_err(migration_error)? {
        return Ok(0);
    }
    transact_locked(conn, |conn| {
        let applied = conn.run_pending_migrations(MIGRATIONS).map_err(migration_error)?;
        Ok(applied.len())
    })
    .map_err(Failure::into_error)
}

pub(super) fn migration_error(source: Source) -> StoreError {
    match source.downcast::<Error>() {
        Ok(error) => match Failure::from(*error) {
            Failure::Row(reason) => StoreError::Schema { source: reason.into() },
            failure => failure.into_error(),
        },
        Err(source) => StoreError::Schema { source },
    }
}
