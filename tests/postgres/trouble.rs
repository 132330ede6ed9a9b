//! A database that is away, busy, or refuses.

use std::{
    thread,
    time::{Duration, Instant},
};

use actix_presence::{
    store::{
        Applied, Batch, BatchEntry, DatabaseUrl, PostgresOptions, PostgresStore, Renewal,
        SharedStore, Store, StoreError,
    },
    testing::store_contract::{
        LEASE, ManualChange, StoreFixture, at, id, node, room, row, upserts, write, write_as,
    },
};
use diesel::connection::SimpleConnection;

use crate::{
    contract::{OnPostgres, options, url},
    server::Postgres,
};

fn impatient() -> PostgresOptions {
    let mut options = options();
    options.answer_timeout = Duration::from_secs(1);
    options.statement_timeout = Duration::from_millis(300);
    options.lock_timeout = Duration::from_millis(100);
    options
}

fn store(fixture: &OnPostgres, options: PostgresOptions) -> PostgresStore {
    PostgresStore::open_with(&url(&fixture.url), options).unwrap()
}

fn fails(store: &mut PostgresStore, batch: &Batch) -> StoreError {
    store.apply(&node("n"), batch, at(0)).unwrap_err()
}

#[test]
fn a_database_that_is_away_is_unavailable_and_found_when_it_is_back() {
    let server = Postgres::start();
    let mut fixture = OnPostgres::on(&server);
    let _ = fixture.store.start(&node("n"), at(0), LEASE).unwrap();
    write(&mut fixture.store, &upserts([row("a", 1, None)]));
    server.stop();
    let started = Instant::now();
    for _ in 0..3 {
        let away = fails(&mut fixture.store, &upserts([row("a", 2, None)]));
        assert!(matches!(away, StoreError::Unavailable { .. }), "{away:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "a refused connection is no waiting");
    server.start_again();
    write(&mut fixture.store, &upserts([row("a", 2, None)]));
    assert_eq!(fixture.store.renew(&node("n"), at(1), LEASE).unwrap(), Renewal::Held);

    // Away and back between two calls: nobody finds out.
    server.stop();
    server.start_again();
    write(&mut fixture.store, &upserts([row("a", 3, None)]));
    assert_eq!(fixture.rows().len(), 3);
}

#[test]
fn a_database_that_stands_still_is_not_waited_for_when_opening() {
    let server = Postgres::start();
    let database = server.fresh_database();
    server.pause();
    let mut options = options();
    options.connect_timeout = Duration::from_secs(2);
    let started = Instant::now();
    let away = PostgresStore::open_with(&url(&database), options.clone()).err().unwrap();
    assert!(matches!(away, StoreError::Unavailable { .. }), "{away:?}");
    assert!(started.elapsed() < Duration::from_secs(10));
    server.resume();
    let _ = PostgresStore::open_with(&url(&database), options).unwrap();
}

#[test]
fn what_cannot_be_reached_is_told_without_the_password() {
    for place in ["127.0.0.1:1/x", "/x?host=/nowhere", "no-such-host.invalid/x"] {
        let url = url(&format!("postgres://ada:s3cret@{place}"));
        let away = PostgresStore::open(&url).err().unwrap();
        assert!(matches!(away, StoreError::Unavailable { .. }), "{away:?}");
        assert!(!format!("{away:?}").contains("s3cret"), "{away:?}");
    }
    let missing = Postgres::shared().fresh_database() + "_not";
    let missing = PostgresStore::open(&url(&missing)).err().unwrap();
    assert!(matches!(missing, StoreError::Unavailable { .. }), "{missing:?}");
}

#[test]
fn what_others_hold_is_locked_and_then_written() {
    let fixture = OnPostgres::new();
    let mut store = store(&fixture, impatient());
    write(&mut store, &upserts([row("a", 1, None)]));
    let mut shell = fixture.shell();
    shell.batch_execute("BEGIN; LOCK TABLE presences IN EXCLUSIVE MODE").unwrap();
    let batch = upserts((0..100).map(|n| row("b", n, None)));
    let started = Instant::now();
    let locked = fails(&mut store, &batch);
    assert!(matches!(locked, StoreError::Failed { .. }), "{locked:?}");
    assert!(started.elapsed() < Duration::from_secs(3), "not row by row");
    assert_eq!(
        store.read(&[room("a")], at(0)).unwrap().rows.len(),
        0,
        "readers are not locked out"
    );
    shell.batch_execute("COMMIT").unwrap();
    write(&mut store, &batch);
}

#[test]
fn a_room_that_somebody_is_entering_is_not_pruned() {
    let mut fixture = OnPostgres::new();
    fixture.change_manually(ManualChange::AddRoom("a"));
    fixture.change_manually(ManualChange::AddRoom("b"));
    let mut shell = fixture.shell();
    let enter = "BEGIN;
        INSERT INTO presences (room_id, channel_name, joined_at, last_seen, node_id)
        SELECT id, repeat('0', 32), '2024-01-01', '2024-01-01', 'n'
        FROM rooms WHERE channel_name = 'a'";
    shell.batch_execute(enter).unwrap();
    let pruned = thread::scope(|scope| {
        let pruning = scope.spawn(|| fixture.store.prune_rooms().unwrap());
        // Whether it waits for the transaction or not.
        thread::sleep(Duration::from_millis(100));
        shell.batch_execute("COMMIT").unwrap();
        pruning.join().unwrap()
    });
    assert_eq!((pruned, fixture.rows().len()), (1, 1));
}

#[test]
fn a_statement_that_takes_too_long_is_ended() {
    let fixture = OnPostgres::new();
    let mut store = store(&fixture, impatient());
    fixture.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON presences FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let batch = upserts([row("b", 1, None), row("b", 2, None)]);
    let late = fails(&mut store, &batch);
    assert!(matches!(late, StoreError::Failed { .. }), "{late:?}");
    fixture.sql("DROP TRIGGER slow ON presences");
    write(&mut store, &batch);
}

#[test]
fn a_session_that_is_ended_while_it_is_idle_is_made_anew_unnoticed() {
    let mut fixture = OnPostgres::new();
    write(&mut fixture.store, &upserts([row("a", 1, None)]));
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'actix-presence' AND datname = current_database()";
    fixture.sql(end);
    write(&mut fixture.store, &upserts([row("a", 2, None)]));
    fixture.sql(end);
    assert_eq!(fixture.store.read(&[room("a")], at(0)).unwrap().rows.len(), 0);
    fixture.sql(end);
    assert!(matches!(
        fixture.store.renew(&node("n"), at(0), LEASE).unwrap(),
        Renewal::Lapsed { .. }
    ));
}

#[test]
fn rights_that_are_missing_are_told() {
    let mut fixture = OnPostgres::new();
    write(&mut fixture.store, &upserts([row("a", 1, None)]));
    fixture.sql("REVOKE INSERT ON presences FROM presence");
    let refused = fails(&mut fixture.store, &upserts([row("a", 2, None)]));
    let StoreError::Failed { source } = &refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("permission denied for table presences"), "{source}");
    fixture.sql("GRANT INSERT ON presences TO presence");
    write(&mut fixture.store, &upserts([row("a", 2, None)]));
}

/// The text of an error is in whatever language, and Diesel keeps its code to itself.
#[test]
fn errors_are_told_apart_by_trial_and_not_by_their_text() {
    let mut fixture = OnPostgres::new();
    let fail = |whom: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
                IF {whom} THEN
                    RAISE ''storniere Anfrage wegen Zeitüberschreitung einer Sperre''
                        USING ERRCODE = ''55P03'';
                END IF;
                RETURN NEW; END'"
        )
    };
    fixture.sql(&fail("NEW.user_id = ''eve''"));
    fixture.sql("CREATE TRIGGER f BEFORE INSERT ON presences FOR EACH ROW EXECUTE FUNCTION fail()");
    let eve = (100..103).map(|n| row("b", n, Some("eve")));
    let rows: Vec<_> = (0..50).map(|n| row("a", n, None)).chain(eve).collect();
    let applied = fixture.store.apply(&node("n"), &upserts(rows.clone()), at(0)).unwrap();
    let refused: Vec<_> = applied.set_aside.iter().map(|aside| aside.change.clone()).collect();
    assert_eq!(refused, [100, 101, 102].map(|n| BatchEntry::Upsert(room("b"), id(n))));
    assert!(applied.set_aside[0].reason.contains("Sperre"), "shown as it is");
    assert_eq!(fixture.rows().len(), 50);

    fixture.sql(&fail("true"));
    let failed = fails(&mut fixture.store, &upserts(rows));
    let StoreError::Failed { source } = &failed else { panic!("{failed:?}") };
    assert!(source.to_string().contains("Sperre"), "{source}");
}

#[test]
fn a_row_that_somebody_holds_does_not_hold_up_the_others() {
    let mut fixture = OnPostgres::new();
    let mut store = store(&fixture, impatient());
    write(&mut store, &upserts([row("a", 7, None)]));
    let mut shell = fixture.shell();
    shell.batch_execute("BEGIN; SELECT FROM presences FOR UPDATE").unwrap();
    let batch = upserts((0..100).map(|n| row("a", n, Some("ada"))));
    let Applied { set_aside, .. } = store.apply(&node("n"), &batch, at(0)).unwrap();
    let changes: Vec<_> = set_aside.into_iter().map(|aside| aside.change).collect();
    assert_eq!(changes, [BatchEntry::Upsert(room("a"), id(7))]);
    shell.batch_execute("COMMIT").unwrap();
    assert_eq!(fixture.rows().len(), 100);
    write(&mut store, &batch);
}

#[test]
fn a_database_that_may_only_be_read_is_read_only_until_it_may_be_written() {
    let fixture = OnPostgres::new();
    let database = fixture.url.rsplit('/').next().unwrap().to_owned();
    fixture.sql(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on"));
    let mut store = store(&fixture, options());
    let refused = fails(&mut store, &upserts([row("a", 2, None)]));
    assert!(matches!(refused, StoreError::ReadOnly), "{refused:?}");
    assert_eq!(store.rooms(at(0)).unwrap(), []);
    let mut shell = fixture.shell();
    shell.batch_execute("SET default_transaction_read_only = off").unwrap();
    shell
        .batch_execute(&format!("ALTER DATABASE {database} RESET default_transaction_read_only"))
        .unwrap();
    // The session that has read is still one of before, as with a server that was one to write to.
    write(&mut store, &upserts([row("a", 2, None)]));
}

#[test]
fn tables_that_are_missing_are_told() {
    let mut fixture = OnPostgres::new();
    for (broken, mended) in [
        ("ALTER TABLE presences RENAME TO p", "ALTER TABLE p RENAME TO presences"),
        ("ALTER TABLE presences RENAME turn TO t", "ALTER TABLE presences RENAME t TO turn"),
        (
            "ALTER TABLE presences DROP CONSTRAINT presences_room_id_channel_name_key",
            "ALTER TABLE presences ADD UNIQUE (room_id, channel_name)",
        ),
    ] {
        fixture.sql(broken);
        let failed = fails(&mut fixture.store, &upserts([row("a", 1, None)]));
        assert!(matches!(failed, StoreError::Schema { .. }), "{failed:?}");
        fixture.sql(mended);
        write(&mut fixture.store, &upserts([row("a", 1, None)]));
    }
}

#[test]
fn a_row_that_is_left_out_without_an_error_is_set_aside() {
    let mut fixture = OnPostgres::new();
    fixture.sql(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER no BEFORE INSERT ON rooms FOR EACH ROW
         WHEN (NEW.channel_name = 'b') EXECUTE FUNCTION no();
         CREATE TRIGGER no BEFORE INSERT ON presences FOR EACH ROW
         WHEN (NEW.user_id = 'eve') EXECUTE FUNCTION no()",
    );
    let batch = upserts([row("a", 1, None), row("a", 2, Some("eve")), row("b", 1, None)]);
    let Applied { set_aside, .. } = fixture.store.apply(&node("n"), &batch, at(0)).unwrap();
    let changes: Vec<_> = set_aside.into_iter().map(|aside| aside.change).collect();
    let upsert = |name, number| BatchEntry::Upsert(room(name), id(number));
    assert_eq!(changes, [upsert("a", 2), upsert("b", 1)]);
    assert_eq!(fixture.rows().len(), 1);
}

#[test]
fn what_is_set_aside_does_not_keep_the_head_back() {
    let mut fixture = OnPostgres::new();
    let _ = fixture.store.start(&node("n"), at(0), LEASE).unwrap();
    fixture.sql("ALTER TABLE presences ADD CHECK (user_id <> 'eve')");
    let rows = [row("a", 1, Some("eve")), row("a", 2, None)];
    let batch = Batch { number: 4, ..upserts(rows) };
    let applied = fixture.store.apply(&node("n"), &batch, at(0)).unwrap();
    assert_eq!(applied.set_aside.len(), 1);
    assert_eq!(fixture.store.nodes(at(0)).unwrap()[0].head, 4);
}

#[test]
fn rows_that_are_no_values_are_skipped() {
    let mut fixture = OnPostgres::new();
    let _ = fixture.store.start(&node("n"), at(0), LEASE).unwrap();
    write(&mut fixture.store, &upserts([row("a", 1, Some("ada"))]));
    fixture.sql(
        "INSERT INTO nodes (id, started_at, lease_expires_at) VALUES ('', now(), now()), ('x', now(), now());
         INSERT INTO rooms (channel_name, created_at)
            SELECT E'b\\n' || n, now() FROM generate_series(1, 20) AS n;
         INSERT INTO rooms (channel_name, created_at) VALUES ('c', now());
         INSERT INTO presences (room_id, channel_name, user_id, info, joined_at, last_seen, node_id, turn)
         SELECT rooms.id, bad.*
         FROM rooms CROSS JOIN (VALUES
            ('specific.a!b', 'ada', '{}', now(), now(), 'n', 0),
            (repeat('0', 32), '__proto__', '{}', now(), now(), 'n', 0),
            (repeat('6', 32), 'toString', '{}', now(), now(), 'n', 0),
            (repeat('1', 32), 'ada', '[', now(), now(), 'n', 0),
            (repeat('2', 32), 'ada', '[]', now(), now(), 'n', 0),
            (repeat('3', 32), 'ada', '{}', now(), now(), '', 0),
            (repeat('4', 32), 'ada', '{}', now(), now(), 'n', -1)) AS bad
         WHERE rooms.channel_name = 'a';
         INSERT INTO presences (room_id, channel_name, joined_at, last_seen, node_id)
         SELECT id, repeat('5', 32), '2024-01-01', '2024-01-01', 'n'
         FROM rooms WHERE channel_name <> 'a'",
    );
    let read = fixture.store.read(&[room("a")], at(0)).unwrap();
    assert_eq!(read.rows, [(node("n"), row("a", 1, Some("ada")))]);
    assert_eq!(read.nodes.len(), 1);
    let listed = fixture.store.list(Some(&room("a")), 3).unwrap();
    assert_eq!(listed.iter().map(|room| room.room.as_str()).collect::<Vec<_>>(), ["c"]);
    let forever = "UPDATE presences SET last_seen = 'infinity'";
    assert!(fixture.shell().batch_execute(forever).is_err(), "no such time is taken");
}

#[test]
fn an_info_that_an_earlier_version_nested_deeper_is_read() {
    let mut fixture = OnPostgres::new();
    let _ = fixture.store.start(&node("n"), at(0), LEASE).unwrap();
    write(&mut fixture.store, &upserts([row("a", 1, Some("ada"))]));
    let deep = r#"{"a":"#.repeat(126) + "1" + &"}".repeat(126);
    fixture.sql(&format!("UPDATE presences SET info = '{deep}'"));
    let read = fixture.store.read(&[room("a")], at(0)).unwrap();
    assert_eq!(read.rows[0].1.record.presence.info.as_json(), deep);
}

#[test]
fn leases_go_by_the_clock_of_the_database() {
    let mut fixture = OnPostgres::new();
    let mut store = store(&fixture, PostgresOptions::default());
    let lease = Duration::from_millis(200);
    // Whatever this process thinks the time is.
    let _ = store.start(&node("n"), at(1_000_000_000), Duration::from_secs(60)).unwrap();
    assert!(!store.nodes(at(2_000_000_000)).unwrap()[0].expired);
    let _ = store.renew(&node("n"), at(1_000_000_000), lease).unwrap();
    thread::sleep(lease * 2);
    assert!(store.nodes(at(0)).unwrap()[0].expired);
    write_as("n", &mut store, &upserts([row("a", 1, None)]));
    assert!(!store.nodes(at(0)).unwrap()[0].expired, "who writes lives");
    assert_eq!(fixture.rows().len(), 1);
}

#[test]
fn a_url_may_have_options_of_its_own() {
    let url = Postgres::shared().fresh_database() + "?application_name=mine&connect_timeout=3";
    let DatabaseUrl::Postgres(url) = url.parse().unwrap() else { panic!() };
    let mut store = PostgresStore::open(&url).unwrap();
    assert_eq!(store.rooms(at(0)).unwrap(), []);
}
