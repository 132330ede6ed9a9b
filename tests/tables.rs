//! The tables in a file beside the one of an app, which has tables of the same names, and files of somebody
//! else, which are left as they are.

use std::{fs, path::Path, time::Duration};

use actix_presence::{
    ConnectionId, Flush, Join, PresenceConfig, RoomName, StartError,
    store::{SqliteStore, StoreError, migrate},
    testing::{Heard, Probe},
};
use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, connection::SimpleConnection,
    sql_query, sql_types::Text,
};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

fn lines(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let lines: Vec<Line> = sql_query(sql).load(conn).unwrap();
    lines.into_iter().map(|line| line.line).collect()
}

/// The migrations of an app: one for each table, named as those of the library.
fn migrations(directory: &Path) -> FileBasedMigrations {
    for (number, table) in ["rooms", "presences", "nodes"].iter().enumerate() {
        let migration = directory.join(format!("2025-01-01-00000{number}_{table}"));
        fs::create_dir_all(&migration).unwrap();
        let create = format!("CREATE TABLE {table} (number INTEGER PRIMARY KEY, beds INTEGER)");
        fs::write(migration.join("up.sql"), create).unwrap();
        fs::write(migration.join("down.sql"), format!("DROP TABLE {table}")).unwrap();
    }
    FileBasedMigrations::from_path(directory).unwrap()
}

#[actix::test]
async fn an_app_with_tables_of_the_same_names_goes_on_with_its_own_migrations() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let migrations = migrations(&directory.path().join("migrations"));
    let mut app = SqliteConnection::establish(&at("app.db")).unwrap();
    app.run_pending_migrations(migrations.clone()).unwrap();

    let foreign = PresenceConfig::new(format!("sqlite://{}", at("app.db"))).start();
    let Err(StartError::Store(StoreError::Unsuitable { reason })) = foreign else {
        panic!("{foreign:?}")
    };
    assert!(reason.contains("`rooms`"), "{reason}");

    let presence = PresenceConfig::new(format!("sqlite://{}", at("presence.db"))).start().unwrap();
    let (session, _heard) = Probe::<Heard>::new();
    let room = RoomName::new("lobby").unwrap();
    let join = Join::new(room, ConnectionId::new(), session.recipient());
    presence.registry().send(join).await.unwrap().unwrap();
    presence.registry().send(Flush).await.unwrap().unwrap();

    // Both in one query.
    app.batch_execute(&format!("ATTACH DATABASE '{}' AS presence", at("presence.db"))).unwrap();
    app.batch_execute("INSERT INTO rooms (number, beds) VALUES (1, 2)").unwrap();
    let both = "SELECT ours.channel_name || ' ' || rooms.beds AS line
        FROM presence.rooms AS ours CROSS JOIN rooms";
    assert_eq!(lines(&mut app, both), ["lobby 2"]);

    app.revert_last_migration(migrations.clone()).unwrap();
    app.run_pending_migrations(migrations.clone()).unwrap();
    app.revert_all_migrations(migrations).unwrap();
    assert_eq!(lines(&mut app, "SELECT channel_name AS line FROM presence.rooms"), ["lobby"]);
    presence.shutdown(Duration::from_secs(5)).await.unwrap();
}

/// Asserts that a file in which this was executed is not started on, for the sake of that name, and that it
/// stays as it was.
fn assert_refused(sql: &str, what: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("app.db");
    let connect = || SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    let everything = "SELECT type || ' ' || name || ' ' || coalesce(sql, '') AS line
        FROM sqlite_schema ORDER BY 1";
    connect().batch_execute(sql).unwrap();
    let before = (fs::read(&file).unwrap(), lines(&mut connect(), everything));
    let url = format!("sqlite://{}", file.display()).parse().unwrap();
    let refused = SqliteStore::open(&url).err();
    let Some(StoreError::Unsuitable { reason }) = &refused else { panic!("{what}: {refused:?}") };
    let there = format!("the file has {what} that is not one of actix-presence");
    assert!(reason.contains(&there), "{reason}");
    assert!(reason.contains("a file that the library has for itself"), "what to do: {reason}");
    assert_eq!(lines(&mut connect(), everything), before.1);
    assert!(fs::read(&file).unwrap() == before.0, "{what}: the file is changed");
}

#[test]
fn a_file_that_has_a_name_of_the_library_is_refused_and_unchanged() {
    let tables = ["rooms", "presences", "nodes", "presence_migrations"];
    let indexes = ["channel_name", "user_id", "last_seen", "node_id"];
    let indexes = indexes.map(|column| format!("presences_{column}"));
    for name in tables.into_iter().chain(indexes.iter().map(String::as_str)) {
        for (kind, create) in [
            ("a table", "CREATE TABLE {} (id INTEGER PRIMARY KEY)"),
            ("a view", "CREATE VIEW {} AS SELECT 1 AS version, 2 AS run_on"),
            ("an index", "CREATE TABLE guests (version); CREATE INDEX {} ON guests (version)"),
        ] {
            assert_refused(&create.replace("{}", name), &format!("{kind} `{name}`"));
        }
    }
    assert_refused(
        "CREATE TABLE guests (id); CREATE TRIGGER Rooms_Take_Their_Presences AFTER DELETE ON guests
         BEGIN DELETE FROM guests; END",
        "a trigger `rooms_take_their_presences`",
    );
}

#[test]
fn a_file_of_an_earlier_version_is_not_taken_over_beside_a_record_of_somebody_else() {
    let up = fs::read_to_string("migrations/sqlite/2025-01-01-000000_presence/up.sql").unwrap();
    let record = "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50), run_on TIMESTAMP);
        INSERT INTO __diesel_schema_migrations (version) VALUES ('20250101000000');";
    let foreign = "CREATE TABLE presence_migrations (name TEXT)";
    assert_refused(&format!("{up}{record}{foreign}"), "a table `presence_migrations`");
}

#[test]
fn a_record_of_somebody_else_is_refused_whatever_numbers_it_has() {
    let create = "CREATE TABLE presence_migrations (version TEXT, run_on TIMESTAMP);
        INSERT INTO presence_migrations (version) VALUES ";
    for versions in ["('20240101000000')", "('20250101000000')", "('20250101000000'), (NULL)"] {
        assert_refused(&format!("{create}{versions}"), "a table `presence_migrations`");
    }
}

#[test]
fn an_empty_record_is_filled_and_that_of_a_newer_version_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("presence.db");
    let mut shell = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    let record = "CREATE TABLE presence_migrations (version TEXT PRIMARY KEY, run_on TIMESTAMP)";
    shell.batch_execute(record).unwrap();
    let url = format!("sqlite://{}", file.display()).parse().unwrap();
    assert_eq!(migrate(&url).unwrap(), 1);
    let newer = "INSERT INTO presence_migrations (version) VALUES ('20990101000000')";
    shell.batch_execute(newer).unwrap();
    assert_eq!(migrate(&url).unwrap(), 0);
    let versions = "SELECT version AS line FROM presence_migrations ORDER BY version";
    assert_eq!(lines(&mut shell, versions), ["20250101000000", "20990101000000"]);
}

#[test]
fn an_empty_record_does_not_keep_an_earlier_version_from_being_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("presence.db");
    let mut shell = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    let migrations = FileBasedMigrations::from_path("migrations/sqlite").unwrap();
    shell.run_pending_migrations(migrations).unwrap();
    let empty = "CREATE TABLE presence_migrations (version TEXT PRIMARY KEY, run_on TIMESTAMP)";
    shell.batch_execute(empty).unwrap();
    let url = format!("sqlite://{}", file.display()).parse().unwrap();
    assert_eq!(migrate(&url).unwrap(), 0);
    let versions = "SELECT version AS line FROM presence_migrations";
    assert_eq!(lines(&mut shell, versions), ["20250101000000"]);
    let left = "SELECT version AS line FROM __diesel_schema_migrations";
    assert!(lines(&mut shell, left).is_empty());
}

/// Triggers have names for themselves.
#[test]
fn a_trigger_may_have_the_name_of_a_table() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("app.db");
    let mut app = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    app.batch_execute(
        "CREATE TABLE guests (id); CREATE TRIGGER rooms AFTER DELETE ON guests
         BEGIN DELETE FROM guests; END",
    )
    .unwrap();
    let url = format!("sqlite://{}", file.display()).parse().unwrap();
    assert!(SqliteStore::open(&url).is_ok());
}
