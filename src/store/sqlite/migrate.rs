//! Migrates the tables of a file.

use diesel::{
    QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    migration::Migration,
    sql_query,
    sql_types::{BigInt, Text},
    sqlite::Sqlite,
};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};

use crate::store::{
    migrations::{self, Created, FIRST, Inspect, Kind, RECORD, Record, foreign},
    transaction::{Failure, migration_error, transact, transact_by},
};

pub(super) const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// What the migrations create.
const CREATED: [Created; 8] = [
    Created::table("rooms", FIRST, &["id", "channel_name", "created_at"]),
    Created::table(
        "presences",
        FIRST,
        &["id", "room_id", "channel_name", "user_id", "info", "joined_at", "last_seen", "node_id"],
    ),
    Created::index("presences_channel_name", FIRST),
    Created::index("presences_user_id", FIRST),
    Created::index("presences_last_seen", FIRST),
    Created::index("presences_node_id", FIRST),
    Created::table("nodes", FIRST, &["id", "started_at", "lease_expires_at"]),
    Created::trigger("rooms_take_their_presences", FIRST),
];

/// What is to be done with a file.
struct Plan {
    record: Record,
    creates_record: bool,
    pending: Vec<Box<dyn Migration<Sqlite>>>,
}

impl Plan {
    fn is_done(&self) -> bool {
        self.record.is_own() && self.pending.is_empty()
    }
}

/// Applies what is pending, in one transaction. Returns how many migrations.
pub(super) fn migrate(conn: &mut SqliteConnection) -> Result<usize, Failure> {
    // Checked first without the write lock, so that a database in use is not blocked.
    if transact(conn, plan)?.is_done() {
        return Ok(0);
    }
    transact_by(apply_pending, |run| conn.immediate_transaction(run))
}

/// Refuses a file in which somebody else has something of the names that are needed. Only reads.
pub(super) fn refuse_foreign_file(conn: &mut SqliteConnection) -> Result<(), Failure> {
    transact(conn, plan).map(drop)
}

/// Finds what is to be done. Fails if something is there already that is to be created. Only reads, in an open
/// transaction: another process may be about to create the tables.
fn plan(conn: &mut SqliteConnection) -> Result<Plan, Failure> {
    let record = Record::find(conn)?;
    let all = migrations::all::<SqliteConnection>(&SQLITE_MIGRATIONS)?;
    let pending = migrations::pending(all, &record.versions);
    for created in &CREATED {
        if migrations::includes(&pending, created.version) {
            refuse(conn, created.kind, created.name)?;
        }
    }
    let creates_record = !record.is_own() && !migrations::has_empty_record(conn)?;
    if creates_record {
        refuse(conn, Kind::Table, RECORD)?;
    }
    Ok(Plan { record, creates_record, pending })
}

fn apply_pending(conn: &mut SqliteConnection) -> Result<usize, Failure> {
    let Plan { record, creates_record, pending } = plan(conn)?;
    if creates_record {
        create_record(conn)?;
    }
    if !record.is_own() {
        take_over(conn, &record)?;
    }
    for migration in &pending {
        migration.run(conn).map_err(migration_error::<SqliteConnection>)?;
        sql_query(format!("INSERT INTO {RECORD} (version) VALUES (?1)"))
            .bind::<Text, _>(migrations::version(&**migration))
            .execute(conn)?;
    }
    Ok(pending.len())
}

fn create_record(conn: &mut SqliteConnection) -> Result<(), Failure> {
    conn.batch_execute(&format!(
        "CREATE TABLE {RECORD} (
            version VARCHAR(50) PRIMARY KEY NOT NULL,
            run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)"
    ))?;
    Ok(())
}

/// Moves to the record what an earlier version has recorded in Diesel's table.
fn take_over(conn: &mut SqliteConnection, earlier: &Record) -> Result<(), Failure> {
    if let Some(table) = earlier.table {
        for version in &earlier.versions {
            for sql in [
                format!(
                    "INSERT INTO {RECORD} (version, run_on)
                     SELECT version, run_on FROM {table} WHERE version = ?1"
                ),
                format!("DELETE FROM {table} WHERE version = ?1"),
            ] {
                sql_query(sql).bind::<Text, _>(version).execute(conn)?;
            }
        }
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

impl Inspect for SqliteConnection {
    const CREATED: &'static [Created] = &CREATED;

    fn has_record(&mut self, table: &str) -> Result<bool, Failure> {
        self.has_columns(table, &["version", "run_on"])
    }

    fn has_columns(&mut self, table: &str, columns: &[&str]) -> Result<bool, Failure> {
        let found = found(self, table)?;
        if !found.iter().any(|found| found.what == "a table") {
            return Ok(false);
        }
        for column in columns {
            let found = "SELECT count(*) AS count FROM pragma_table_info(?1) WHERE name = ?2";
            let found = sql_query(found).bind::<Text, _>(table).bind::<Text, _>(column);
            if found.get_result::<Count>(self)?.count == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn versions(&mut self, record: &str) -> Result<Vec<String>, Failure> {
        let sql = format!("SELECT coalesce(version, '') AS version FROM {record}");
        let versions: Vec<Version> = sql_query(sql).load(self)?;
        Ok(versions.into_iter().map(|found| found.version).collect())
    }
}

/// Fails if there is something that has this name already: triggers have names for themselves, all others
/// have theirs in common.
fn refuse(conn: &mut SqliteConnection, kind: Kind, name: &str) -> Result<(), Failure> {
    let is_in_the_way = |found: &&Found| (found.what == "a trigger") == (kind == Kind::Trigger);
    match found(conn, name)?.iter().find(is_in_the_way) {
        Some(Found { what }) => {
            let way_out = "name a file that the library has for itself, as \
                `PresenceConfig::new(\"sqlite://presence.db\")` does";
            Err(foreign(what, name, "the file", way_out).into())
        }
        None => Ok(()),
    }
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// What there is of a name.
#[derive(QueryableByName)]
struct Found {
    /// Its kind, with an article.
    #[diesel(sql_type = Text)]
    what: String,
}

/// What there is of this name; SQLite ignores its case.
fn found(conn: &mut SqliteConnection, name: &str) -> Result<Vec<Found>, Failure> {
    let found = "SELECT CASE type WHEN 'index' THEN 'an index' ELSE 'a ' || type END AS what
        FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE";
    Ok(sql_query(found).bind::<Text, _>(name).load(conn)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use diesel::Connection;
    use diesel_migrations::MigrationHarness;

    use super::{super::tests::lines, *};
    use crate::store::{StoreError, migrations::DIESEL_RECORD};

    /// The columns of all tables as `table.column type`.
    fn columns(conn: &mut SqliteConnection) -> Vec<String> {
        lines(
            conn,
            "SELECT tables.name || '.' || columns.name || ' ' ||
                CASE \"notnull\" WHEN 1
                THEN columns.type ELSE 'NULLABLE<' || columns.type || '>' END AS line
             FROM sqlite_schema AS tables JOIN pragma_table_info(tables.name) AS columns
             WHERE tables.type = 'table' AND tables.name NOT LIKE '%\\_migrations' ESCAPE '\\'
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

    /// A database as the first version made it: by Diesel alone.
    fn of_the_first_version() -> SqliteConnection {
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        conn.run_pending_migrations(SQLITE_MIGRATIONS).unwrap();
        conn
    }

    fn objects(conn: &mut SqliteConnection) -> Vec<String> {
        let sql = "SELECT name AS line FROM sqlite_schema WHERE name NOT LIKE '%\\_migrations'
            ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
        lines(conn, sql)
    }

    fn recorded(conn: &mut SqliteConnection, record: &str) -> Vec<String> {
        lines(conn, &format!("SELECT version AS line FROM {record} ORDER BY version"))
    }

    #[test]
    fn migrations_go_up_down_and_up_and_make_what_the_code_expects() {
        let mut conn = of_the_first_version();
        let made = objects(&mut conn);
        assert_eq!(columns(&mut conn), columns_of_the_code());
        assert_eq!(columns(&mut conn).len(), 14);
        assert_eq!(made.len(), 8, "3 tables, 4 indexes, 1 trigger: {made:?}");
        conn.revert_all_migrations(SQLITE_MIGRATIONS).unwrap();
        assert!(objects(&mut conn).is_empty());
        assert_eq!(migrate(&mut conn).unwrap(), 1);
        assert_eq!(objects(&mut conn), made);
        assert_eq!(migrate(&mut conn).unwrap(), 0);
    }

    #[test]
    fn everything_that_the_migrations_create_is_known() {
        assert_eq!(migrations::created_by("migrations/sqlite"), migrations::known(&CREATED));
    }

    #[test]
    fn what_an_earlier_version_recorded_in_the_table_of_diesel_is_moved_and_the_rest_stays() {
        let mut conn = of_the_first_version();
        conn.batch_execute(
            "INSERT INTO __diesel_schema_migrations (version) VALUES ('20240101000000');
             INSERT INTO rooms (channel_name, created_at) VALUES ('lobby', '2025-01-01 00:00:00')",
        )
        .unwrap();
        assert_eq!(migrate(&mut conn).unwrap(), 0, "there was nothing to do");
        assert_eq!(recorded(&mut conn, RECORD), [FIRST]);
        assert_eq!(recorded(&mut conn, DIESEL_RECORD), ["20240101000000"]);
        assert_eq!(lines(&mut conn, "SELECT channel_name AS line FROM rooms"), ["lobby"]);
        // The earlier version does not start on it any more.
        assert!(conn.run_pending_migrations(SQLITE_MIGRATIONS).is_err());
    }

    #[test]
    fn an_entry_of_the_same_number_is_left_to_its_app_where_the_tables_are_not_ours() {
        for tables in ["", "CREATE TABLE rooms (id); CREATE TABLE nodes (id);"] {
            let mut conn = SqliteConnection::establish(":memory:").unwrap();
            let sql =
                "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50), run_on TIMESTAMP);
                INSERT INTO __diesel_schema_migrations (version) VALUES ('20250101000000');";
            conn.batch_execute(&format!("{sql}{tables}")).unwrap();
            let migrated = migrate(&mut conn).map_err(Failure::into_error::<SqliteConnection>);
            match tables {
                "" => assert_eq!(migrated.unwrap(), 1),
                _ => assert!(matches!(migrated, Err(StoreError::Unsuitable { .. }))),
            }
            assert_eq!(recorded(&mut conn, DIESEL_RECORD), [FIRST]);
        }
    }

    #[test]
    fn a_file_with_tables_of_somebody_else_is_refused_by_name_and_unchanged() {
        for table in ["rooms", "presences", "Nodes"] {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("app.db");
            let mut app = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
            app.batch_execute(&format!("CREATE TABLE {table} (id INTEGER, beds INTEGER)")).unwrap();
            let before = fs::read(&file).unwrap();
            let url = format!("sqlite://{}", file.display()).parse().unwrap();
            let refused = crate::store::open(&url).err().unwrap();
            assert!(matches!(refused, StoreError::Unsuitable { .. }), "{refused:?}");
            let text = refused.to_string();
            assert!(text.contains(&format!("`{}`", table.to_lowercase())), "{text}");
            assert!(text.contains("a file that the library has for itself"), "{text}");
            assert!(fs::read(&file).unwrap() == before, "it is changed");
        }
    }
}
