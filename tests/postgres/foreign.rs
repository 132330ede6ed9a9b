//! What somebody else has under the names of the library: a start that is refused changes nothing.

use std::{sync::Barrier, thread};

use actix_presence::{
    PresenceConfig, StartError,
    store::{PostgresOptions, PostgresStore, StoreError, migrate},
    testing::store_contract::{row, upserts, write},
};
use diesel::{Connection, PgConnection, connection::SimpleConnection};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};

use crate::{
    beside::{in_schema, of_an_earlier_version, versions},
    contract::url,
    database::lines,
    server::Postgres,
};

const TABLES: [&str; 5] = ["rooms", "presences", "nodes", "cluster", "presence_migrations"];

/// The versions of the migrations.
const VERSIONS: [&str; 5] =
    ["20250101000000", "20261128000000", "20261129000000", "20261130000000", "20261201000000"];

/// Enters these versions in a record.
fn record(conn: &mut PgConnection, record: &str, versions: &[&str]) {
    for version in versions {
        conn.batch_execute(&format!("INSERT INTO {record} (version) VALUES ('{version}')"))
            .unwrap();
    }
}

/// Everything that there is outside the schemas of the system: schemas, relations with the number of their
/// columns, types. Whatever is dropped and made again has another number.
fn everything(conn: &mut PgConnection) -> Vec<String> {
    lines(
        conn,
        "WITH schemas AS (
            SELECT oid, nspname FROM pg_namespace
            WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema')
         SELECT format('schema %s %s', nspname, oid) AS line FROM schemas
         UNION ALL
         SELECT format('%s.%s %s %s %s', nspname, relname, relkind, relnatts, pg_class.oid)
         FROM pg_class JOIN schemas ON schemas.oid = relnamespace
         UNION ALL
         SELECT format('type %s.%s %s', nspname, typname, pg_type.oid)
         FROM pg_type JOIN schemas ON schemas.oid = typnamespace
         ORDER BY 1",
    )
}

/// Asserts that a start is refused for the sake of what the schema has under this name, and that the
/// database is as it was.
fn assert_refused(database: &str, options: PostgresOptions, schema: &str, what: &str) {
    let mut conn = PgConnection::establish(database).unwrap();
    let before = everything(&mut conn);
    let refused = PostgresStore::open_with(&url(database), options).err();
    let Some(StoreError::Unsuitable { reason }) = &refused else { panic!("{what}: {refused:?}") };
    let there = format!("the schema `{schema}` has {what} that is not one of actix-presence");
    assert!(reason.contains(&there), "{reason}");
    assert!(reason.contains("PresenceConfig::schema"), "what to do: {reason}");
    assert_eq!(everything(&mut conn), before, "{what}");
}

#[test]
fn whatever_has_a_name_of_a_table_is_refused_and_nothing_is_created() {
    const KINDS: [(&str, &str); 8] = [
        ("a table", "CREATE TABLE {} (id BIGINT PRIMARY KEY)"),
        ("a view", "CREATE VIEW {} AS SELECT 1 AS id"),
        ("a materialized view", "CREATE MATERIALIZED VIEW {} AS SELECT 1 AS id"),
        ("a sequence", "CREATE SEQUENCE {}"),
        (
            "an index",
            "CREATE TABLE guests (version TEXT, run_on DATE); CREATE INDEX {} ON guests (version, run_on)",
        ),
        ("a type", "CREATE TYPE {} AS (version TEXT, run_on DATE)"),
        ("a type", "CREATE TYPE {} AS ENUM ('single', 'double')"),
        ("a type", "CREATE DOMAIN {} AS INTEGER"),
    ];
    let database = Postgres::shared().fresh_database();
    let mut app = PgConnection::establish(&database).unwrap();
    for (number, (kind, create)) in KINDS.into_iter().enumerate() {
        for table in TABLES {
            let (schema, create) = (format!("{table}_{number}"), create.replace("{}", table));
            app.batch_execute(&format!(
                "CREATE SCHEMA {schema}; SET search_path = {schema}; {create}"
            ))
            .unwrap();
            assert_refused(&database, in_schema(&schema), &schema, &format!("{kind} `{table}`"));
        }
    }
}

/// The names are those that a database has, so none can be forgotten.
#[test]
fn a_start_takes_another_name_or_is_refused_and_nothing_is_created() {
    let database = Postgres::shared().fresh_database();
    let mut app = PgConnection::establish(&database).unwrap();
    PostgresStore::open_with(&url(&database), in_schema("realtime")).unwrap();
    let names = "SELECT relname::text AS line FROM pg_class
        WHERE relnamespace = 'realtime'::regnamespace ORDER BY 1";
    let mut refused = Vec::new();
    for name in lines(&mut app, names) {
        let schema = format!("beside_{name}");
        app.batch_execute(&format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.{name} (id INT)"
        ))
        .unwrap();
        if PostgresStore::open_with(&url(&database), in_schema(&schema)).is_err() {
            assert_refused(&database, in_schema(&schema), &schema, &format!("a table `{name}`"));
            refused.push(name);
        }
    }
    let indexes = ["channel_name", "current_connection", "last_seen", "node_id", "user_id"];
    let mut expected: Vec<_> = indexes.map(|column| format!("presences_{column}")).into();
    expected.extend(TABLES.map(str::to_owned));
    expected.sort();
    assert_eq!(refused, expected);
}

#[test]
fn a_config_is_refused_as_a_store_is() {
    let database = Postgres::shared().fresh_database();
    let mut app = PgConnection::establish(&database).unwrap();
    app.batch_execute("CREATE SCHEMA app; CREATE TABLE app.cluster (name TEXT)").unwrap();
    let before = everything(&mut app);
    let refused = actix::System::new()
        .block_on(async { PresenceConfig::new(&database).schema("app").start() });
    let Err(StartError::Store(StoreError::Unsuitable { reason })) = refused else {
        panic!("{refused:?}")
    };
    assert!(reason.contains("`cluster`"), "{reason}");
    assert_eq!(everything(&mut app), before);
    app.batch_execute("ALTER TABLE app.cluster RENAME TO clusters").unwrap();
    assert!(PostgresStore::open_with(&url(&database), in_schema("app")).is_ok());
}

#[test]
fn of_many_that_start_at_once_none_creates_anything() {
    const THREADS: usize = 4;
    let (database, barrier) = (Postgres::shared().fresh_database(), Barrier::new(THREADS));
    let mut app = PgConnection::establish(&database).unwrap();
    app.batch_execute("CREATE TABLE cluster (name TEXT)").unwrap();
    let before = everything(&mut app);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                barrier.wait();
                let refused = PostgresStore::open(&url(&database)).err();
                assert!(matches!(refused, Some(StoreError::Unsuitable { .. })), "{refused:?}");
            });
        }
    });
    assert_eq!(everything(&mut app), before);
}

/// Takes back the last two migrations of a database that Diesel alone has migrated.
fn before_the_table_cluster(conn: &mut PgConnection) {
    let files = || FileBasedMigrations::from_path("migrations/postgres").unwrap();
    for _ in 0..2 {
        conn.revert_last_migration(files()).unwrap();
    }
}

#[test]
fn a_database_of_an_earlier_version_is_not_taken_over_beside_a_table_of_somebody_else() {
    let numbers_of_the_app: [&[&str]; 2] = [&[], &["20261130000000"]];
    for (table, numbers) in
        ["cluster", "cluster", "presence_migrations"].iter().zip(numbers_of_the_app.iter().cycle())
    {
        let (database, mut conn) = of_an_earlier_version();
        before_the_table_cluster(&mut conn);
        conn.batch_execute(&format!("CREATE TABLE {table} (name TEXT PRIMARY KEY)")).unwrap();
        record(&mut conn, "__diesel_schema_migrations", numbers);
        let before = versions(&mut conn, "__diesel_schema_migrations");
        for options in [PostgresOptions::default(), in_schema("public")] {
            assert_refused(&database, options, "public", &format!("a table `{table}`"));
        }
        assert_eq!(versions(&mut conn, "__diesel_schema_migrations"), before);
    }
}

#[test]
fn entries_of_an_app_with_the_numbers_of_later_migrations_stay_its_own() {
    let later = &VERSIONS[1..];
    for numbers in later.chunks(1).chain(later.chunks(2)).chain([later]) {
        let (database, mut conn) = of_an_earlier_version();
        for _ in later {
            let files = FileBasedMigrations::from_path("migrations/postgres").unwrap();
            conn.revert_last_migration(files).unwrap();
        }
        record(&mut conn, "__diesel_schema_migrations", numbers);
        assert_eq!(migrate(&database.parse().unwrap()).unwrap(), later.len(), "{numbers:?}");
        assert_eq!(versions(&mut conn, "__diesel_schema_migrations"), numbers);
        assert_eq!(versions(&mut conn, "presence_migrations"), VERSIONS);
        let mut store = PostgresStore::open(&url(&database)).unwrap();
        write(&mut store, &upserts([row("lobby", 1, None)]));
    }
}

#[test]
fn a_record_of_somebody_else_is_refused_whatever_numbers_it_has() {
    let records = [&["20240101000000"], &VERSIONS[..1], &VERSIONS[3..4], &VERSIONS];
    for (is_beside_an_earlier_version, numbers) in
        records.map(|numbers| (false, numbers)).into_iter().chain([(true, records[0])])
    {
        let (database, mut conn) = of_an_earlier_version();
        if !is_beside_an_earlier_version {
            let files = FileBasedMigrations::from_path("migrations/postgres").unwrap();
            conn.revert_all_migrations(files).unwrap();
        }
        conn.batch_execute("CREATE TABLE presence_migrations (version TEXT, run_on TIMESTAMP)")
            .unwrap();
        record(&mut conn, "presence_migrations", numbers);
        let left = versions(&mut conn, "__diesel_schema_migrations");
        for options in [PostgresOptions::default(), in_schema("public")] {
            assert_refused(&database, options, "public", "a table `presence_migrations`");
        }
        assert_eq!(versions(&mut conn, "presence_migrations"), numbers);
        assert_eq!(versions(&mut conn, "__diesel_schema_migrations"), left);
    }
}

#[test]
fn an_empty_record_is_filled() {
    let database = Postgres::shared().fresh_database();
    let mut conn = PgConnection::establish(&database).unwrap();
    PostgresStore::open_with(&url(&database), in_schema("realtime")).unwrap();
    conn.batch_execute(
        "CREATE TABLE presence_migrations (LIKE realtime.presence_migrations INCLUDING ALL)",
    )
    .unwrap();
    assert_eq!(migrate(&database.parse().unwrap()).unwrap(), VERSIONS.len());
    assert_eq!(versions(&mut conn, "presence_migrations"), VERSIONS);
}

#[test]
fn an_empty_record_does_not_keep_an_earlier_version_from_being_taken_over() {
    for options in [PostgresOptions::default(), in_schema("public")] {
        let (database, mut conn) = of_an_earlier_version();
        conn.batch_execute(
            "CREATE TABLE presence_migrations (LIKE __diesel_schema_migrations INCLUDING ALL)",
        )
        .unwrap();
        PostgresStore::open_with(&url(&database), options).unwrap();
        assert_eq!(versions(&mut conn, "presence_migrations"), VERSIONS);
        assert!(versions(&mut conn, "__diesel_schema_migrations").is_empty());
    }
}

#[test]
fn an_empty_record_does_not_hide_one_in_a_later_schema() {
    let database = Postgres::shared().fresh_database();
    let mut conn = PgConnection::establish(&database).unwrap();
    PostgresStore::open_with(&url(&database), in_schema("realtime")).unwrap();
    conn.batch_execute(
        "CREATE TABLE presence_migrations (LIKE realtime.presence_migrations INCLUDING ALL)",
    )
    .unwrap();
    let path = format!("{database}?options=-csearch_path%3Dpublic,realtime");
    assert_eq!(migrate(&path.parse().unwrap()).unwrap(), 0);
    assert!(PostgresStore::open(&url(&path)).is_ok());
    assert!(versions(&mut conn, "public.presence_migrations").is_empty());
}

/// A table, and not a view that has its columns.
#[test]
fn a_view_is_not_taken_for_a_table_whatever_is_recorded() {
    for name in ["presence_migrations", "__diesel_schema_migrations"] {
        let database = Postgres::shared().fresh_database();
        let mut conn = PgConnection::establish(&database).unwrap();
        PostgresStore::open_with(&url(&database), in_schema("realtime")).unwrap();
        conn.batch_execute(&format!("CREATE TABLE {name} AS TABLE realtime.presence_migrations"))
            .unwrap();
        for table in &TABLES[..4] {
            let view = format!("CREATE VIEW {table} AS TABLE realtime.{table}");
            conn.batch_execute(&view).unwrap();
        }
        assert_refused(&database, in_schema("public"), "public", "a view `rooms`");
        assert_eq!(versions(&mut conn, name), VERSIONS);
    }
}

#[test]
fn tables_that_were_dropped_are_made_again_when_the_record_is_dropped_as_well() {
    let database = Postgres::shared().fresh_database();
    let mut conn = PgConnection::establish(&database).unwrap();
    let parsed = database.parse().unwrap();
    migrate(&parsed).unwrap();
    conn.batch_execute("ALTER TABLE presences DROP COLUMN info; DROP TABLE cluster").unwrap();
    assert_eq!(migrate(&parsed).unwrap(), 0, "all of them are recorded");
    conn.batch_execute("DROP TABLE presences, rooms, nodes").unwrap();
    let options = PostgresOptions::default();
    assert_refused(&database, options, "public", "a table `presence_migrations`");
    conn.batch_execute("DROP TABLE presence_migrations").unwrap();
    assert_eq!(migrate(&parsed).unwrap(), VERSIONS.len());
}

/// A schema `realtime` without what the last two migrations make, and a table `cluster` of somebody else.
fn between_versions(cluster: &str) -> (String, PgConnection) {
    let database = Postgres::shared().fresh_database();
    let mut conn = PgConnection::establish(&database).unwrap();
    PostgresStore::open_with(&url(&database), in_schema("realtime")).unwrap();
    conn.batch_execute(&format!(
        "DROP TABLE realtime.cluster;
         ALTER TABLE realtime.presences DROP COLUMN updated_at;
         DELETE FROM realtime.presence_migrations WHERE version >= '20261130000000';
         CREATE TABLE {cluster} (name TEXT PRIMARY KEY)"
    ))
    .unwrap();
    (database, conn)
}

#[test]
fn a_database_between_two_versions_stays_there_beside_a_table_of_somebody_else() {
    let (database, mut conn) = between_versions("realtime.cluster");
    assert_refused(&database, in_schema("realtime"), "realtime", "a table `cluster`");
    assert_eq!(versions(&mut conn, "realtime.presence_migrations").len(), 3);
    conn.batch_execute("DROP TABLE realtime.cluster").unwrap();
    assert!(PostgresStore::open_with(&url(&database), in_schema("realtime")).is_ok());
}

#[test]
fn tables_that_would_be_hidden_are_not_created() {
    let (database, mut conn) = between_versions("public.cluster");
    let hidden = format!("{database}?options=-csearch_path%3Dpublic,realtime");
    assert_refused(&hidden, PostgresOptions::default(), "public", "a table `cluster`");
    assert_eq!(versions(&mut conn, "realtime.presence_migrations").len(), 3);
    let found = format!("{database}?options=-csearch_path%3Drealtime,public");
    assert_eq!(migrate(&found.parse().unwrap()).unwrap(), 2);
}

#[test]
fn a_record_of_somebody_else_in_another_schema_does_not_matter() {
    let database = Postgres::shared().fresh_database();
    let mut app = PgConnection::establish(&database).unwrap();
    app.batch_execute(
        "CREATE TABLE presence_migrations (version TEXT, run_on DATE);
         INSERT INTO presence_migrations VALUES ('20250101000000', '2025-01-01');
         CREATE SCHEMA realtime",
    )
    .unwrap();
    assert_refused(
        &database,
        PostgresOptions::default(),
        "public",
        "a table `presence_migrations`",
    );
    for path in ["realtime,public", "public,realtime"] {
        let url = url(&format!("{database}?options=-csearch_path%3D{path}"));
        assert!(PostgresStore::open(&url).is_ok(), "{path}");
    }
    assert_eq!(versions(&mut app, "public.presence_migrations"), VERSIONS[..1]);
}

#[test]
fn a_start_that_fails_on_the_way_leaves_nothing_behind() {
    let database = Postgres::shared().fresh_database();
    let mut superuser = PgConnection::establish(&Postgres::as_superuser(&database)).unwrap();
    superuser
        .batch_execute(
            "CREATE FUNCTION public.no_more() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN
                IF to_regclass('realtime.cluster') IS NOT NULL THEN RAISE 'no more tables'; END IF;
             END $$;
             CREATE EVENT TRIGGER no_more ON ddl_command_end EXECUTE FUNCTION public.no_more()",
        )
        .unwrap();
    let before = everything(&mut superuser);
    assert!(PostgresStore::open_with(&url(&database), in_schema("realtime")).is_err());
    assert_eq!(everything(&mut superuser), before);
    superuser.batch_execute("DROP EVENT TRIGGER no_more").unwrap();
    assert!(PostgresStore::open_with(&url(&database), in_schema("realtime")).is_ok());
}
