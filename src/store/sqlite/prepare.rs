//! Preparing a new connection: its settings, the write-ahead log, the tables.

use std::{
    thread,
    time::{Duration, Instant},
};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_query, sql_types::Text,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::checkpoint::MAX_LOG_SIZE;
use crate::store::{
    Result, StoreError,
    transaction::{Failure, migration_error, transact_by},
};

pub(super) const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

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
    let failed = migration_error::<SqliteConnection>;
    let mode = journal_mode(conn)?;
    if !is_usable(&mode) {
        let reason = format!("SQLite stays in the journal mode `{mode}`");
        return Err(StoreError::unavailable(reason).into());
    }
    conn.batch_execute(&format!(
        "PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = {MAX_LOG_SIZE};"
    ))?;
    // Checked first without the write lock, so that a database in use is not blocked.
    if !conn.has_pending_migration(SQLITE_MIGRATIONS).map_err(failed)? {
        return Ok(0);
    }
    let migrate = |conn: &mut SqliteConnection| {
        Ok(conn.run_pending_migrations(SQLITE_MIGRATIONS).map_err(failed)?.len())
    };
    transact_by(migrate, |run| conn.immediate_transaction(run))
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
