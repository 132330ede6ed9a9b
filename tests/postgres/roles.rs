//! Roles that lack a right.

use actix_presence::{
    store::{PostgresOptions, PostgresStore, StoreError, migrate},
    testing::store_contract::{row, upserts, write},
};
use diesel::{Connection, PgConnection, connection::SimpleConnection};

use crate::{beside::in_schema, contract::url, database::MIGRATIONS, server::Postgres};

#[test]
fn who_may_not_make_tables_can_use_those_that_are_there() {
    let database = Postgres::shared().fresh_database();
    let superuser = Postgres::as_superuser(&database);
    assert_eq!(migrate(&superuser.parse().unwrap()).unwrap(), MIGRATIONS);
    PgConnection::establish(&superuser)
        .unwrap()
        .batch_execute(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO presence",
        )
        .unwrap();
    let mut store = PostgresStore::open(&url(&database)).unwrap();
    write(&mut store, &upserts([row("a", 1, None)]));
}

#[test]
fn who_may_not_make_tables_where_there_are_none_is_told_which_rights_are_missing() {
    let database = Postgres::shared().fresh_database();
    let mut superuser = PgConnection::establish(&Postgres::as_superuser(&database)).unwrap();
    superuser
        .batch_execute(
            "ALTER SCHEMA public OWNER TO postgres; REVOKE CREATE ON SCHEMA public FROM public",
        )
        .unwrap();
    let refused = migrate(&database.parse().unwrap()).err().unwrap();
    let StoreError::Unsuitable { reason } = &refused else { panic!("{refused:?}") };
    for part in ["`presence`", "`public`", "`USAGE`", "`CREATE`", "PresenceConfig::schema"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    superuser.batch_execute("GRANT USAGE, CREATE ON SCHEMA public TO presence").unwrap();
    assert_eq!(migrate(&database.parse().unwrap()).unwrap(), MIGRATIONS);
    // Only columns are missing then, for which the owner of a table needs no right in the schema.
    superuser
        .batch_execute(
            "REVOKE CREATE ON SCHEMA public FROM presence;
             ALTER TABLE presences DROP COLUMN updated_at;
             DELETE FROM presence_migrations WHERE version = '20261201000000'",
        )
        .unwrap();
    assert_eq!(migrate(&database.parse().unwrap()).unwrap(), 1);
}

#[test]
fn who_may_not_create_schemas_can_use_one_that_is_there() {
    let database = Postgres::shared().fresh_database();
    let mut superuser = PgConnection::establish(&Postgres::as_superuser(&database)).unwrap();
    let name = database.rsplit('/').next().unwrap();
    superuser
        .batch_execute(&format!(
            "ALTER DATABASE {name} OWNER TO postgres;
             CREATE SCHEMA realtime AUTHORIZATION presence"
        ))
        .unwrap();
    assert!(PostgresStore::open_with(&url(&database), in_schema("realtime")).is_ok());
    let refused = PostgresStore::open_with(&url(&database), in_schema("another")).err().unwrap();
    let StoreError::Unsuitable { reason } = &refused else { panic!("{refused:?}") };
    for part in ["`another`", "`presence`", "`CREATE`"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    superuser.batch_execute("CREATE SCHEMA another").unwrap();
    let refused = PostgresStore::open_with(&url(&database), in_schema("another")).err().unwrap();
    assert!(refused.to_string().contains("`USAGE` and `CREATE`"), "{refused}");
}

/// The record belongs to the app, which lets nobody else read it.
#[test]
fn who_may_not_read_the_record_of_an_app_can_have_tables_beside_it() {
    Postgres::shared().admin("CREATE ROLE app");
    let by_default = PostgresOptions::default;
    let diesel = "__diesel_schema_migrations";
    for (record, schema, path, first, then) in [
        (diesel, "public", "public", by_default(), by_default()),
        (diesel, "app", "app,public", by_default(), by_default()),
        (diesel, "app", "public", in_schema("app"), in_schema("app")),
        (diesel, "app", "app,realtime", in_schema("realtime"), by_default()),
        ("presence_migrations", "app", "app,realtime", in_schema("realtime"), by_default()),
    ] {
        let database = Postgres::shared().fresh_database();
        let mut superuser = PgConnection::establish(&Postgres::as_superuser(&database)).unwrap();
        superuser
            .batch_execute(&format!(
                "CREATE SCHEMA IF NOT EXISTS {schema};
                 GRANT USAGE, CREATE ON SCHEMA {schema} TO presence;
                 SET search_path = {schema};
                 CREATE TABLE {record} (version VARCHAR(50), run_on TIMESTAMP);
                 INSERT INTO {record} (version) VALUES ('20250101000000');
                 ALTER TABLE {record} OWNER TO app"
            ))
            .unwrap();
        let url = url(&format!("{database}?options=-csearch_path%3D{path}"));
        for options in [first, then] {
            let opened = PostgresStore::open_with(&url, options.clone());
            let opened = opened.map_err(|error| format!("{path}: {options:?}: {error}"));
            write(&mut opened.unwrap(), &upserts([row("a", 1, None)]));
        }
    }
}

#[test]
fn who_may_not_use_a_schema_of_the_search_path_is_told_so() {
    let database = Postgres::shared().fresh_database();
    let mut superuser = PgConnection::establish(&Postgres::as_superuser(&database)).unwrap();
    let name = database.rsplit('/').next().unwrap();
    superuser
        .batch_execute(
            "ALTER SCHEMA public OWNER TO postgres; REVOKE ALL ON SCHEMA public FROM public;
             CREATE SCHEMA presence; CREATE SCHEMA \"Real, \"\"time\"; CREATE SCHEMA realtime",
        )
        .unwrap();
    for (path, schema) in [
        ("missing, PUBLIC", "public"),
        ("\"$user\", public", "presence"),
        ("\"Real, \"\"time\", \"realtime\"", "Real, \"time"),
        ("'realtime'", "realtime"),
        ("missing, \"Public\", \"real\"", ""),
    ] {
        let set = format!("ALTER ROLE presence IN DATABASE {name} SET search_path = {path}");
        superuser.batch_execute(&set).unwrap();
        let refused = PostgresStore::open(&url(&database)).err();
        let Some(StoreError::Unsuitable { reason }) = &refused else { panic!("{refused:?}") };
        let parts = match schema {
            "" => vec!["no schema of the connection's `search_path` exists".to_owned()],
            _ => vec!["the role `presence`".into(), format!("`{schema}`"), "`USAGE`".into()],
        };
        for part in parts {
            assert!(reason.contains(&part), "{path}: {part}: {reason}");
        }
    }
    superuser.batch_execute("GRANT USAGE, CREATE ON SCHEMA realtime TO presence").unwrap();
    let set = format!("ALTER ROLE presence IN DATABASE {name} SET search_path = realtime");
    superuser.batch_execute(&set).unwrap();
    assert!(PostgresStore::open(&url(&database)).is_ok());
}

#[test]
fn who_may_only_use_the_tables_is_told_who_has_to_migrate_them() {
    const LAST: &str = "ALTER TABLE presences DROP COLUMN updated_at;
        DELETE FROM presence_migrations WHERE version = '20261201000000';";
    const LAST_TWO: &str = "ALTER TABLE presences DROP COLUMN updated_at; DROP TABLE cluster;
        DELETE FROM presence_migrations WHERE version >= '20261130000000';";
    const EARLIER: &str = "ALTER TABLE presence_migrations RENAME TO __diesel_schema_migrations;";
    for (before, may_create, missing) in [
        (LAST.to_owned(), false, 1),
        (LAST_TWO.to_owned(), false, 2),
        (LAST_TWO.to_owned(), true, 2),
        (EARLIER.to_owned(), false, 0),
        (format!("{LAST}{EARLIER}"), true, 1),
    ] {
        let database = Postgres::shared().fresh_database();
        let owner = Postgres::as_superuser(&database);
        let mut superuser = PgConnection::establish(&owner).unwrap();
        if !may_create {
            superuser.batch_execute("ALTER SCHEMA public OWNER TO postgres").unwrap();
        }
        migrate(&owner.parse().unwrap()).unwrap();
        let grant =
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO presence;";
        superuser.batch_execute(&format!("{before}{grant}")).unwrap();
        for options in [PostgresOptions::default(), in_schema("public")] {
            let refused = PostgresStore::open_with(&url(&database), options).err();
            let Some(StoreError::Unsuitable { reason }) = &refused else { panic!("{refused:?}") };
            for part in ["the role `presence`", "`postgres`", "`public`", "presence migrate"] {
                assert!(reason.contains(part), "{before}: {part}: {reason}");
            }
            assert!(!reason.contains("PresenceConfig::schema"), "{before}: {reason}");
        }
        assert_eq!(migrate(&owner.parse().unwrap()).unwrap(), missing);
        superuser.batch_execute(grant).unwrap();
        assert!(PostgresStore::open(&url(&database)).is_ok());
    }
}

/// Another schema would have no tables.
#[test]
fn the_owner_of_tables_who_may_create_no_others_is_told_to_get_that_right() {
    let database = Postgres::shared().fresh_database();
    let mut superuser = PgConnection::establish(&Postgres::as_superuser(&database)).unwrap();
    migrate(&database.parse().unwrap()).unwrap();
    superuser
        .batch_execute(
            "ALTER SCHEMA public OWNER TO postgres;
             ALTER TABLE presence_migrations RENAME TO __diesel_schema_migrations",
        )
        .unwrap();
    let refused = migrate(&database.parse().unwrap()).err();
    let Some(StoreError::Unsuitable { reason }) = &refused else { panic!("{refused:?}") };
    assert!(reason.contains("grant it `USAGE` and `CREATE` on it"), "{reason}");
    assert!(!reason.contains("PresenceConfig::schema"), "{reason}");
}
