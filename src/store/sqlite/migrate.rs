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
    migrations::{self, CreatedTable, DIESEL_RECORD, FIRST, RECORD, foreign},
    transaction::{Failure, migration_error, transact_by},
};

pub(super) const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// The tables that the migrations create.
const CREATED: [CreatedTable; 3] = [
    CreatedTable { name: "rooms", version: FIRST, columns: &["id", "channel_name", "created_at"] },
    CreatedTable {
        name: "presences",
        version: FIRST,
        columns: &[
            "id",
            "room_id",
            "channel_name",
            "user_id",
            "info",
            "joined_at",
            "last_seen",
            "node_id",
        ],
    },
    CreatedTable {
        name: "nodes",
        version: FIRST,
        columns: &["id", "started_at", "lease_expires_at"],
    },
];

/// Applies what is pending, in one transaction. Returns how many migrations.
pub(super) fn migrate(conn: &mut SqliteConnection) -> Result<usize, Failure> {
    // Checked first without the write lock, so that a database in use is not blocked.
    if has_table(conn, RECORD)? && pending(conn)?.is_empty() {
        return Ok(0);
    }
    transact_by(apply_pending, |run| conn.immediate_transaction(run))
}

/// Refuses a file in which somebody else has tables of these names. Only reads.
pub(super) fn refuse_foreign_file(conn: &mut SqliteConnection) -> Result<(), Failure> {
    match has_table(conn, RECORD)? || is_of_an_earlier_version(conn)? {
        true => Ok(()),
        false => refuse_foreign(conn, FIRST),
    }
}

fn apply_pending(conn: &mut SqliteConnection) -> Result<usize, Failure> {
    if !has_table(conn, RECORD)? {
        create_record(conn)?;
    }
    let pending = pending(conn)?;
    for migration in &pending {
        let version = migrations::version(&**migration);
        refuse_foreign(conn, &version)?;
        migration.run(conn).map_err(migration_error::<SqliteConnection>)?;
        sql_query(format!("INSERT INTO {RECORD} (version) VALUES (?1)"))
            .bind::<Text, _>(version)
            .execute(conn)?;
    }
    Ok(pending.len())
}

/// Creates the record, with what an earlier version has recorded in Diesel's table.
fn create_record(conn: &mut SqliteConnection) -> Result<(), Failure> {
    let takes_over = is_of_an_earlier_version(conn)?;
    if !takes_over {
        refuse_foreign(conn, FIRST)?;
    }
    conn.batch_execute(&format!(
        "CREATE TABLE {RECORD} (
            version VARCHAR(50) PRIMARY KEY NOT NULL,
            run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)"
    ))?;
    if takes_over {
        for migration in migrations::all::<SqliteConnection>(&SQLITE_MIGRATIONS)? {
            let version = migrations::version(&*migration);
            for sql in [
                format!(
                    "INSERT INTO {RECORD} (version, run_on)
                     SELECT version, run_on FROM {DIESEL_RECORD} WHERE version = ?1"
                ),
                format!("DELETE FROM {DIESEL_RECORD} WHERE version = ?1"),
            ] {
                sql_query(sql).bind::<Text, _>(&version).execute(conn)?;
            }
        }
    }
    Ok(())
}

fn pending(conn: &mut SqliteConnection) -> Result<Vec<Box<dyn Migration<Sqlite>>>, Failure> {
    let recorded = versions(conn, RECORD)?;
    Ok(migrations::pending(migrations::all::<SqliteConnection>(&SQLITE_MIGRATIONS)?, &recorded))
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

fn versions(conn: &mut SqliteConnection, record: &str) -> Result<Vec<String>, Failure> {
    let versions: Vec<Version> = sql_query(format!("SELECT version FROM {record}")).load(conn)?;
    Ok(versions.into_iter().map(|found| found.version).collect())
}

/// Whether an earlier version has created the tables, and recorded that in Diesel's table.
fn is_of_an_earlier_version(conn: &mut SqliteConnection) -> Result<bool, Failure> {
    if !has_table(conn, DIESEL_RECORD)? {
        return Ok(false);
    }
    for table in CREATED.iter().filter(|table| table.version == FIRST) {
        for column in table.columns {
            let found = "SELECT count(*) AS count FROM pragma_table_info(?1) WHERE name = ?2";
            let found = sql_query(found).bind::<Text, _>(table.name).bind::<Text, _>(column);
            if found.get_result::<Count>(conn)?.count == 0 {
                return Ok(false);
            }
        }
    }
    Ok(versions(conn, DIESEL_RECORD)?.iter().any(|version| version == FIRST))
}

/// Fails if there is a table already that a migration creates.
fn refuse_foreign(conn: &mut SqliteConnection, version: &str) -> Result<(), Failure> {
    for table in CREATED.iter().filter(|table| table.version == version) {
        if has_table(conn, table.name)? {
            let way_out = "name a file that the library has for itself, as \
                `PresenceConfig::new(\"sqlite://presence.db\")` does";
            return Err(foreign(table.name, "the file", way_out).into());
        }
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// Whether there is a table, or something else in its place, of this name; SQLite ignores its case.
fn has_table(conn: &mut SqliteConnection, table: &str) -> Result<bool, Failure> {
    let found = "SELECT count(*) AS count FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE";
    Ok(sql_query(found).bind::<Text, _>(table).get_result::<Count>(conn)?.count > 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use diesel::Connection;
    use diesel_migrations::MigrationHarness;

    use super::{super::tests::lines, *};
    use crate::store::StoreError;

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
    fn every_table_of_the_migrations_is_known() {
        assert_eq!(migrations::tables_of("migrations/sqlite"), migrations::tables_in(&CREATED));
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
