//! The tables.

use std::{
    sync::{Arc, Barrier},
    thread,
};

use actix_presence::{
    store::{self, DatabaseUrl, PostgresStore, Store, StoreError, migrate},
    testing::store_contract::{LEASE, StoreFixture, at, node, row, upserts, write},
};
use diesel::{
    PgConnection, migration::MigrationSource, pg::Pg, prelude::*, sql_query, sql_types::Text,
};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};

use crate::{
    contract::{OnPostgres, url},
    server::Postgres,
};

/// How many migrations the library has.
pub const MIGRATIONS: usize = 5;

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

/// What a query answers in its column `line`.
pub fn lines(conn: &mut PgConnection, sql: &str) -> Vec<String> {
    let lines: Vec<Line> = sql_query(sql).load(conn).unwrap();
    lines.into_iter().map(|line| line.line).collect()
}

/// What there is in a schema, beside records of migrations.
fn objects(conn: &mut PgConnection, schema: &str) -> Vec<String> {
    lines(
        conn,
        &format!(
            "SELECT relkind::text || ' ' || relname AS line FROM pg_class
             WHERE relnamespace = '{schema}'::regnamespace AND relname NOT LIKE '%\\_migrations%'
             ORDER BY 1"
        ),
    )
}

#[test]
fn migrations_go_up_down_and_up_again() {
    let database = Postgres::shared().fresh_database();
    let mut conn = PgConnection::establish(&database).unwrap();
    let files = || FileBasedMigrations::from_path("migrations/postgres").unwrap();
    assert_eq!(MigrationSource::<Pg>::migrations(&files()).unwrap().len(), MIGRATIONS);
    conn.run_pending_migrations(files()).unwrap();
    let made = objects(&mut conn, "public");
    assert_eq!(made.len(), 17, "4 tables, 11 indexes, 2 sequences: {made:?}");
    conn.revert_all_migrations(files()).unwrap();
    assert!(objects(&mut conn, "public").is_empty());
    let parsed: DatabaseUrl = database.parse().unwrap();
    assert_eq!(migrate(&parsed).unwrap(), MIGRATIONS);
    assert_eq!(objects(&mut conn, "public"), made);
    assert_eq!(migrate(&parsed).unwrap(), 0);
}

#[test]
fn both_databases_have_the_columns_that_people_read() {
    let fixture = OnPostgres::new();
    let columns = lines(
        &mut fixture.shell(),
        "SELECT table_name || '.' || column_name || ' ' || is_nullable || ' ' || data_type AS line
         FROM information_schema.columns WHERE table_schema = 'public'
             AND table_name NOT LIKE '%\\_migrations' AND table_name <> 'cluster' ORDER BY 1",
    );
    let columns: Vec<_> = columns.iter().map(|column| as_declared(column)).collect();
    let mut declared = declared(include_str!("../../src/store/schema/postgres.rs"));
    declared.sort();
    assert_eq!(columns, declared);
    let names: Vec<_> = columns.iter().filter_map(|column| column.split(' ').next()).collect();
    for column in self::declared(include_str!("../../src/store/schema.rs")) {
        let name = column.split(' ').next().unwrap();
        assert!(names.contains(&name), "{column}");
    }
}

/// A column as `diesel::table!` has it.
fn as_declared(column: &str) -> String {
    let mut parts = column.splitn(3, ' ');
    let [name, nullable, kind] = [(); 3].map(|()| parts.next().unwrap());
    let kind = match kind {
        "text" => "Text",
        "timestamp without time zone" => "Timestamp",
        "bigint" => "BigInt",
        "integer" => "Integer",
        "boolean" => "Bool",
        other => panic!("{name} is {other}"),
    };
    match nullable {
        "YES" => format!("{name} Nullable<{kind}>"),
        _ => format!("{name} {kind}"),
    }
}

/// The columns of the tables that a text declares, as `table.column type`.
fn declared(text: &str) -> Vec<String> {
    let (mut table, mut columns) = ("", Vec::new());
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        let line = line.strip_prefix("$($schema.)? ").unwrap_or(line);
        if let Some((name, _)) = line.split_once(" (id) {") {
            table = name;
        } else if let Some(column) = line.strip_suffix(',').filter(|line| line.contains(" -> ")) {
            columns.push(format!("{table}.{}", column.replace(" -> ", " ")));
        }
    }
    columns
}

#[test]
fn many_may_migrate_a_new_database_at_once() {
    const THREADS: usize = 8;
    let database = Postgres::shared().fresh_database();
    let parsed: DatabaseUrl = database.parse().unwrap();
    let barrier = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (parsed, barrier) = (parsed.clone(), Arc::clone(&barrier));
            thread::spawn(move || {
                barrier.wait();
                migrate(&parsed).unwrap()
            })
        })
        .collect();
    let applied: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(applied.iter().sum::<usize>(), MIGRATIONS, "{applied:?}");
}

/// Names and infos are of all languages, and what cannot be stored would be seen on one node alone.
#[test]
fn a_database_that_is_not_in_utf8_is_refused() {
    let server = Postgres::shared();
    for encoding in ["SQL_ASCII", "LATIN1"] {
        let name = format!("in_{}", encoding.to_lowercase());
        server.admin(&format!(
            "CREATE DATABASE {name} OWNER presence ENCODING '{encoding}' TEMPLATE template0"
        ));
        let other = server.fresh_database();
        let (server, _) = other.rsplit_once('/').unwrap();
        let refused = PostgresStore::open(&url(&format!("{server}/{name}"))).err().unwrap();
        assert!(matches!(refused, StoreError::Unsuitable { .. }), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains(encoding) && text.contains("UTF8"), "{text}");
    }
}

#[test]
fn the_tables_of_a_newer_version_go_on_working() {
    let mut fixture = OnPostgres::new();
    write(&mut fixture.store, &upserts([row("a", 1, None)]));
    fixture.sql(
        "ALTER TABLE presences ADD mood text, ADD level int NOT NULL DEFAULT 3;
         ALTER TABLE nodes ADD region text; CREATE TABLE later (id int);
         INSERT INTO presence_migrations (version) VALUES ('20990101000000')",
    );
    write(&mut fixture.store, &upserts([row("a", 2, None)]));
    let mut store = PostgresStore::open(&url(&fixture.url)).unwrap();
    let started = store.start(&node("n"), at(0), LEASE).unwrap();
    assert_eq!(started.inherited.len(), 2);
    assert_eq!(migrate(&fixture.url.parse().unwrap()).unwrap(), 0);
}

#[test]
fn a_database_of_any_kind_is_opened_by_its_url() {
    let mut fixture = OnPostgres::new();
    let parsed: DatabaseUrl = fixture.url.parse().unwrap();
    let mut opened = store::open(&parsed).unwrap();
    let _ = opened.apply(&node("n"), &upserts([row("a", 1, None)]), at(0)).unwrap();
    assert_eq!(fixture.rows().len(), 1);
    assert_eq!(opened.rooms(at(0)).unwrap(), fixture.store.rooms(at(0)).unwrap());
    let mut memory = store::open(&DatabaseUrl::SqliteMemory).unwrap();
    assert_eq!(memory.rooms(at(0)).unwrap(), []);
}
