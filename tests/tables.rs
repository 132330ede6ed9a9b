//! The tables in a file beside the one of an app, which has tables of the same names.

use std::{fs, path::Path, time::Duration};

use actix_presence::{
    ConnectionId, Flush, Join, PresenceConfig, RoomName, StartError,
    store::StoreError,
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
