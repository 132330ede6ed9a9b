//! Calls that the database does not answer, while it answers others.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use actix_presence::{
    store::{Batch, PostgresStore, Renewal, SharedStore, Store, StoreError},
    testing::store_contract::{
        LEASE, StoreFixture, at, id, node, room, row, upserts, write, write_as,
    },
};

use diesel::connection::SimpleConnection;

use crate::{
    contract::{OnPostgres, options, url},
    server::Postgres,
};

/// How long the database may not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// As much as a deadline of a second may be late here.
const MAX_WAIT: Duration = Duration::from_secs(3);

fn open(fixture: &OnPostgres) -> PostgresStore {
    let mut options = options();
    options.answer_timeout = ANSWER_TIMEOUT;
    options.statement_timeout = Duration::from_secs(60);
    options.lock_timeout = Duration::from_secs(60);
    PostgresStore::open_with(&url(&fixture.url), options).unwrap()
}

/// Waits until it is so, at most for as long as is allowed.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < MAX_WAIT, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_call_without_an_answer_is_overdue_and_refused_when_it_is_carried_out_late() {
    let server = Postgres::start();
    let mut fixture = OnPostgres::on(&server);
    let mut store = open(&fixture);
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    write_as("n", &mut store, &upserts([row("a", 1, None)]));
    let (pulse, opener) = (store.pulse(), store.opener().unwrap());
    assert!(!pulse.is_waiting());

    let backends = server.pause_backends("actix-presence");
    assert_eq!(backends, 1);
    let (done, late) = mpsc::channel();
    let hung = thread::spawn(move || {
        done.send(store.apply(&node("n"), &upserts([row("a", 2, None)]), at(1))).unwrap();
    });
    until("it hangs", || pulse.is_overdue());

    let mut next = opener();
    assert!(matches!(next.renew(&node("n"), at(1), LEASE).unwrap(), Renewal::Continued { .. }));
    let _ = next.apply(&node("n"), &upserts([row("a", 3, None)]), at(1)).unwrap();
    assert!(late.try_recv().is_err(), "it still hangs");
    server.resume();
    let refused = late.recv().unwrap().unwrap_err();
    assert!(matches!(refused, StoreError::Lapsed), "{refused:?}");
    hung.join().unwrap();
    assert!(!pulse.is_waiting());
    let rows: Vec<_> = fixture.rows().into_iter().map(|(_, row)| row).collect();
    assert_eq!(rows, [row("a", 1, None), row("a", 3, None)]);
}

/// As long as a transaction that hangs holds it, the node can neither renew its lease nor write.
#[test]
fn a_row_of_the_node_that_somebody_holds_is_waited_for_with_an_end() {
    let fixture = OnPostgres::new();
    let mut options = options();
    options.lock_timeout = Duration::from_millis(100);
    let url = url(&fixture.url);
    let mut other = PostgresStore::open_with(&url, options).unwrap();
    let _ = other.renew(&node("m"), at(0), LEASE).unwrap();
    let mut shell = fixture.shell();
    shell.batch_execute("BEGIN; SELECT FROM nodes FOR UPDATE").unwrap();
    let held = other.renew(&node("m"), at(1), LEASE).unwrap_err();
    let StoreError::Failed { source } = &held else { panic!("{held:?}") };
    assert!(source.to_string().contains("lock"), "{source}");
    shell.batch_execute("COMMIT").unwrap();
    assert_eq!(other.renew(&node("m"), at(1), LEASE).unwrap(), Renewal::Held);
}

/// Statement by statement, however long it takes.
#[test]
fn a_call_that_is_answered_piece_by_piece_is_not_overdue() {
    let fixture = OnPostgres::new();
    let mut store = open(&fixture);
    fixture.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END';
         CREATE TRIGGER slow BEFORE INSERT ON rooms FOR EACH STATEMENT EXECUTE FUNCTION slow();
         CREATE TRIGGER slow BEFORE INSERT ON presences FOR EACH STATEMENT EXECUTE FUNCTION slow();
         CREATE TRIGGER slow_delete BEFORE DELETE ON presences FOR EACH STATEMENT EXECUTE FUNCTION slow()",
    );
    let pulse = store.pulse();
    let started = Instant::now();
    let deletes = vec![(room("a"), id(2))];
    let batch = Batch { deletes, ..upserts([row("a", 1, None)]) };
    let writing = thread::spawn(move || write(&mut store, &batch));
    while !writing.is_finished() {
        assert!(!pulse.is_overdue());
        thread::sleep(Duration::from_millis(5));
    }
    writing.join().unwrap();
    assert!(started.elapsed() > ANSWER_TIMEOUT, "longer than one answer may take");
}
