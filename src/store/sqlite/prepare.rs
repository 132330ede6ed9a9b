//! Preparing a new connection: its settings, the write-ahead log, the tables.

use std::{
    thread,
    time::{Duration, Instant},
};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_query, sql_types::Text,
};

use super::{
    checkpoint::MAX_LOG_SIZE,
    migrate::{migrate, refuse_foreign_file},
};
use crate::store::{Result, StoreError, transaction::Failure};

/// Prepares a new connection: write-ahead log and tables. Returns the number of migrations applied.
///
/// SQLite returns "locked" at once where waiting could end in a deadlock, for example when two processes
/// change the journal mode of a new file, so it is retried until the timeout.
pub(super) fn prepare(conn: &mut SqliteConnection, timeout: Duration) -> Result<usize> {
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
    // Before anything changes: the journal mode is that of the file.
    refuse_foreign_file(conn)?;
    let mode = journal_mode(conn)?;
    if !is_usable(&mode) {
        let reason = format!("SQLite stays in the journal mode `{mode}`");
        return Err(StoreError::unavailable(reason).into());
    }
    conn.batch_execute(&format!(
        "PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = {MAX_LOG_SIZE};"
    ))?;
    migrate(conn)
}

/// Asks for the write-ahead log, and returns the journal mode that SQLite has chosen: where it cannot have
/// the log it stays in the mode before, without an error.
fn journal_mode(conn: &mut SqliteConnection) -> Result<String, Failure> {
    #[derive(QueryableByName)]
    struct Mode {
        #[diesel(sql_type = Text)]
        journal_mode: String,
    }
    let mode: Mode = sql_query("PRAGMA journal_mode = WAL").get_result(conn)?;
    Ok(mode.journal_mode)
}

/// Whether readers and the writer do not block each other in this mode; a database in memory has neither.
fn is_usable(journal_mode: &str) -> bool {
    matches!(journal_mode, "wal" | "memory")
}

/// Whether the database can be used without shared memory. If it cannot be used otherwise, that is what
/// is missing: SQLite itself says "disk I/O error" then, or another one.
///
/// With an exclusive lock the log needs no shared memory, and no other process may have the file.
pub(super) fn works_without_shared_memory(database: &str) -> bool {
    let try_it = || {
        let mut conn = SqliteConnection::establish(database).ok()?;
        conn.batch_execute("PRAGMA locking_mode = EXCLUSIVE").ok()?;
        let mode = journal_mode(&mut conn).ok()?;
        conn.batch_execute("BEGIN IMMEDIATE; SELECT count(*) FROM sqlite_schema; ROLLBACK").ok()?;
        Some(is_usable(&mode))
    };
    try_it().unwrap_or(false)
}
