//! The tables beside those of an app, and those of an earlier version.

use std::{fs, sync::Barrier, thread, time::Duration};

use actix_presence::{
    ConnectionId, Flush, Join, PresenceConfig, RoomName, StartError,
    store::{PostgresOptions, PostgresStore, SchemaName, Store, StoreError, migrate},
    testing::{
        Heard, Probe,
        store_contract::{at, row, upserts, write},
    },
};
use diesel::{PgConnection, connection::SimpleConnection, prelude::*};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};
use tempfile::TempDir;

use crate::{
    contract::{TABLES_OF_AN_APP, url},
    database::{MIGRATIONS, lines},
    server::Postgres,
};

/// The recorded versions.
pub fn versions(conn: &mut PgConnection, record: &str) -> Vec<String> {
    lines(conn, &format!("SELECT version::text AS line FROM {record} ORDER BY version"))
}

/// The schemas that have a table.
fn schemas_with(conn: &mut PgConnection, table: &str) -> Vec<String> {
    let sql = "SELECT schemaname::text AS line FROM pg_tables WHERE tablename = ";
    lines(conn, &format!("{sql}'{table}' ORDER BY 1"))
}

pub fn in_schema(name: &str) -> PostgresOptions {
    let mut options = PostgresOptions::default();
    options.schema = Some(SchemaName::new(name).unwrap());
    options
}

/// A database with the tables that an earlier version made, by Diesel alone.
pub fn of_an_earlier_version() -> (String, PgConnection) {
    let database = Postgres::shared().fresh_database();
    let mut conn = PgConnection::establish(&database).unwrap();
    conn.run_pending_migrations(FileBasedMigrations::from_path("migrations/postgres").unwrap())
        .unwrap();
    (database, conn)
}

/// The migrations of an app: one for each table, named as those of the library.
fn migrations_of_an_app() -> (TempDir, FileBasedMigrations) {
    let directory = tempfile::tempdir().unwrap();
    for (number, create) in TABLES_OF_AN_APP.split(';').enumerate() {
        let table = create.split_whitespace().nth(2).unwrap();
        let migration = directory.path().join(format!("2025-01-01-00000{number}_{table}"));
        fs::create_dir(&migration).unwrap();
        fs::write(migration.join("up.sql"), create).unwrap();
        fs::write(migration.join("down.sql"), format!("DROP TABLE {table}")).unwrap();
    }
    let migrations = FileBasedMigrations::from_path(directory.path()).unwrap();
    (directory, migrations)
}

#[actix::test]
async fn an_app_with_tables_of_the_same_names_goes_on_with_its_own_migrations() {
    let database = Postgres::shared().fresh_database();
    let mut app = PgConnection::establish(&database).unwrap();
    let (_directory, migrations) = migrations_of_an_app();
    app.run_pending_migrations(migrations.clone()).unwrap();
    app.batch_execute("INSERT INTO rooms VALUES (7, 2)").unwrap();

    let presence = PresenceConfig::new(&database).schema("realtime").start().unwrap();
    let (session, _heard) = Probe::<Heard>::new();
    let room = RoomName::new("lobby").unwrap();
    let join = Join::new(room, ConnectionId::new(), session.recipient());
    presence.registry().send(join).await.unwrap().unwrap();
    presence.registry().send(Flush).await.unwrap().unwrap();

    let ours = "SELECT rooms.channel_name AS line FROM realtime.presences
        JOIN realtime.rooms ON rooms.id = presences.room_id";
    assert_eq!(lines(&mut app, ours), ["lobby"]);
    assert_eq!(lines(&mut app, "SELECT beds::text AS line FROM rooms"), ["2"]);
    assert_eq!(versions(&mut app, "__diesel_schema_migrations").len(), 4);

    app.revert_last_migration(migrations.clone()).unwrap();
    app.run_pending_migrations(migrations.clone()).unwrap();
    app.revert_all_migrations(migrations).unwrap();
    assert_eq!(schemas_with(&mut app, "rooms"), ["realtime"]);
    assert_eq!(lines(&mut app, ours), ["lobby"]);
    presence.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[test]
fn tables_of_somebody_else_are_named_and_left_alone() {
    for (table, create) in
        ["rooms", "presences", "nodes", "cluster"].iter().zip(TABLES_OF_AN_APP.split(';'))
    {
        let database = Postgres::shared().fresh_database();
        let mut app = PgConnection::establish(&database).unwrap();
        app.batch_execute(create).unwrap();
        let refused = PostgresStore::open(&url(&database)).err().unwrap();
        let StoreError::Unsuitable { reason } = &refused else { panic!("{refused:?}") };
        for part in [format!("`{table}`"), "`public`".into(), "PresenceConfig::schema".into()] {
            assert!(reason.contains(&part), "{reason}");
        }
        assert_eq!(schemas_with(&mut app, table), ["public"]);
        assert!(PostgresStore::open_with(&url(&database), in_schema("realtime")).is_ok());
    }
}

#[test]
fn a_database_of_an_earlier_version_is_taken_over_with_its_rows() {
    let (database, mut conn) = of_an_earlier_version();
    conn.batch_execute(
        "INSERT INTO __diesel_schema_migrations (version) VALUES ('20240101000000');
         INSERT INTO rooms (channel_name, created_at) VALUES ('lobby', '2025-01-01')",
    )
    .unwrap();
    assert_eq!(migrate(&database.parse().unwrap()).unwrap(), 0, "there was nothing to apply");
    assert_eq!(versions(&mut conn, "presence_migrations").len(), MIGRATIONS);
    assert_eq!(versions(&mut conn, "__diesel_schema_migrations"), ["20240101000000"]);
    let mut store = PostgresStore::open(&url(&database)).unwrap();
    assert_eq!(store.rooms(at(0)).unwrap()[0].channel_name, "lobby");
    write(&mut store, &upserts([row("lobby", 1, None)]));
    // That version does not start on it any more.
    let files = FileBasedMigrations::from_path("migrations/postgres").unwrap();
    assert!(conn.run_pending_migrations(files).is_err());
}

#[test]
fn a_database_of_which_an_earlier_version_made_a_part_is_taken_over_and_completed() {
    let (database, mut conn) = of_an_earlier_version();
    let files = || FileBasedMigrations::from_path("migrations/postgres").unwrap();
    for _ in 0..3 {
        conn.revert_last_migration(files()).unwrap();
    }
    assert_eq!(migrate(&database.parse().unwrap()).unwrap(), 3);
    assert_eq!(versions(&mut conn, "presence_migrations").len(), MIGRATIONS);
    assert!(versions(&mut conn, "__diesel_schema_migrations").is_empty());
}

#[test]
fn nothing_moves_between_schemas() {
    // The tables where they are can be named, too.
    for cure in [PostgresOptions::default(), in_schema("public")] {
        let (database, mut conn) = of_an_earlier_version();
        let store = PostgresStore::open_with(&url(&database), in_schema("realtime"));
        assert!(store.is_ok());
        assert_eq!(schemas_with(&mut conn, "rooms"), ["public", "realtime"]);
        assert_eq!(schemas_with(&mut conn, "presence_migrations"), ["realtime"]);
        assert_eq!(versions(&mut conn, "__diesel_schema_migrations").len(), MIGRATIONS);
        let directory = tempfile::tempdir().unwrap();
        let guests = directory.path().join("2024-01-01-000000_guests");
        fs::create_dir(&guests).unwrap();
        fs::write(guests.join("up.sql"), "CREATE TABLE guests (id INT)").unwrap();
        fs::write(guests.join("down.sql"), "DROP TABLE guests").unwrap();
        let app = FileBasedMigrations::from_path(directory.path()).unwrap();
        conn.run_pending_migrations(app.clone()).unwrap();
        assert!(conn.revert_last_migration(app.clone()).is_err());
        assert!(PostgresStore::open_with(&url(&database), cure).is_ok());
        conn.revert_last_migration(app).unwrap();
        assert!(versions(&mut conn, "__diesel_schema_migrations").is_empty());
        assert_eq!(schemas_with(&mut conn, "rooms"), ["public", "realtime"]);
    }
}

#[test]
fn an_entry_of_the_same_number_is_left_to_its_app_where_the_tables_are_not_ours() {
    let database = Postgres::shared().fresh_database();
    let mut app = PgConnection::establish(&database).unwrap();
    let (_directory, migrations) = migrations_of_an_app();
    app.run_pending_migrations(migrations).unwrap();
    assert!(versions(&mut app, "__diesel_schema_migrations").contains(&"20250101000000".into()));
    assert!(PostgresStore::open(&url(&database)).is_err());
    assert!(PostgresStore::open_with(&url(&database), in_schema("realtime")).is_ok());
    assert_eq!(versions(&mut app, "__diesel_schema_migrations").len(), 4);
}

#[test]
fn the_search_path_of_the_url_is_as_good_as_the_option() {
    let database = Postgres::shared().fresh_database();
    let mut app = PgConnection::establish(&database).unwrap();
    app.batch_execute(TABLES_OF_AN_APP).unwrap();
    let by_path = format!("{database}?options=-csearch_path%3Drealtime");
    let missing = PostgresStore::open(&url(&by_path)).err().unwrap();
    assert!(missing.to_string().contains("search_path"), "{missing}");
    app.batch_execute("CREATE SCHEMA realtime").unwrap();
    let mut store = PostgresStore::open(&url(&by_path)).unwrap();
    write(&mut store, &upserts([row("lobby", 1, None)]));
    let mut named = PostgresStore::open_with(&url(&database), in_schema("realtime")).unwrap();
    assert_eq!(named.rooms(at(0)).unwrap().len(), 1);
    // Statements that name no schema would find the tables of the app.
    let hidden = format!("{database}?options=-csearch_path%3Dpublic,realtime");
    let refused = PostgresStore::open(&url(&hidden)).err().unwrap();
    let StoreError::Unsuitable { reason } = &refused else { panic!("{refused:?}") };
    assert!(reason.contains("`public`") && reason.contains("`rooms`"), "{reason}");
}

#[test]
fn many_may_create_a_schema_at_once() {
    const THREADS: usize = 6;
    let (database, barrier) = (Postgres::shared().fresh_database(), Barrier::new(THREADS));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                PostgresStore::open_with(&url(&database), in_schema("realtime")).unwrap();
            });
        }
    });
    let mut conn = PgConnection::establish(&database).unwrap();
    assert_eq!(versions(&mut conn, "realtime.presence_migrations").len(), MIGRATIONS);
}

/// By default the `search_path` begins with the schema of the role's name.
#[test]
fn a_schema_that_would_hide_the_tables_of_the_app_is_not_created() {
    let database = Postgres::shared().fresh_database();
    let mut app = PgConnection::establish(&database).unwrap();
    app.batch_execute(TABLES_OF_AN_APP).unwrap();
    let refused = PostgresStore::open_with(&url(&database), in_schema("presence")).err().unwrap();
    let StoreError::Unsuitable { reason } = &refused else { panic!("{refused:?}") };
    assert!(reason.contains("role"), "{reason}");
    assert_eq!(schemas_with(&mut app, "rooms"), ["public"]);
    app.batch_execute("CREATE SCHEMA presence").unwrap();
    assert!(PostgresStore::open_with(&url(&database), in_schema("presence")).is_ok());
}

#[test]
fn the_name_of_a_schema_is_checked_before_the_database_is_touched() {
    let config = |database, schema: &str| PresenceConfig::new(database).schema(schema).validate();
    assert!(config("postgres://nowhere.invalid/db", "presence").is_ok());
    let invalid = config("postgres://nowhere.invalid/db", "pg_catalog");
    assert!(matches!(invalid, Err(StartError::Schema(_))), "{invalid:?}");
    let elsewhere = config("sqlite::memory:", "presence");
    assert!(matches!(elsewhere, Err(StartError::SchemaWithoutPostgres)), "{elsewhere:?}");
}
