//! Keeps the write-ahead log small.
//!
//! SQLite moves the log into the database after commits, and begins it anew when nobody reads an old part
//! of it any more. While somebody does it grows, and a file that has grown stays as large as it was.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use diesel::{
    QueryResult, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_query, sql_types::Integer,
};

use super::files::log_size;
use crate::log_limit::LogLimit;

/// A larger log is made small when nobody reads it: about what SQLite lets it grow to between two
/// checkpoints.
pub(super) const MAX_LOG_SIZE: u64 = 4 * 1024 * 1024;

/// A log of this size means that somebody reads for long, which is logged.
const REMARKABLE_LOG_SIZE: u64 = 4 * MAX_LOG_SIZE;

/// The time between two attempts.
const INTERVAL: Duration = Duration::from_secs(20);

/// How long an attempt waits for each lock, during which the writer does nothing else.
const PATIENCE: Duration = Duration::from_millis(100);

/// When the log was last made small.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    last: Option<Instant>,
}

impl Checkpoints {
    /// Makes the log small if it is large, or if the disk is full, and the last attempt was long ago. An
    /// attempt that fails is repeated later: what is wrong the next write reports.
    pub fn run(
        &mut self,
        conn: &mut SqliteConnection,
        database: &Path,
        busy_timeout: Duration,
        full: bool,
    ) {
        let size = log_size(database);
        let now = Instant::now();
        let large = size > if full { 0 } else { MAX_LOG_SIZE };
        if !large || self.last.is_some_and(|last| now - last < INTERVAL) {
            return;
        }
        self.last = Some(now);
        let emptied = truncate(conn, busy_timeout);
        if matches!(emptied, Ok(true)) {
            tracing::debug!(size, "the write-ahead log of the database is empty again");
        } else if size > REMARKABLE_LOG_SIZE {
            static LARGE: LogLimit = LogLimit::new();
            if LARGE.pass().is_some() {
                let file = database.display();
                tracing::warn!(
                    %file, size,
                    "the write-ahead log of the database grows: another program reads it for long"
                );
            }
        }
    }
}

/// Empties the log. Returns whether nobody was in the way.
pub(super) fn truncate(conn: &mut SqliteConnection, busy_timeout: Duration) -> QueryResult<bool> {
    #[derive(QueryableByName)]
    struct Checkpoint {
        #[diesel(sql_type = Integer)]
        busy: i32,
    }
    let wait = |conn: &mut SqliteConnection, timeout: Duration| {
        conn.batch_execute(&format!("PRAGMA busy_timeout = {}", timeout.as_millis()))
    };
    wait(conn, PATIENCE.min(busy_timeout))?;
    let done = sql_query("PRAGMA wal_checkpoint(TRUNCATE)").get_result::<Checkpoint>(conn);
    wait(conn, busy_timeout)?;
    Ok(done?.busy == 0)
}
