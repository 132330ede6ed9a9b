//! What happens to a store when its files grow, vanish, or cannot be what SQLite needs.

use std::{fs, path::PathBuf, time::Duration};

use diesel::connection::SimpleConnection;
use serde_json::json;

use super::{
    OwnerError, OwnerLock, SqliteOptions, SqliteStore,
    checkpoint::{Checkpoints, MAX_LOG_SIZE},
    files::{beside, log_size, shared_memory},
    tests::{IMPATIENT, InFile, fails, lines, rows, with_a_row},
};
use crate::{
    model::Info,
    store::{Batch, DatabaseUrl, Store, StoreError},
    testing::store_contract::{LEASE, ManualChange, StoreFixture, at, node, row, upserts, write},
};

/// Rows that make the log larger than it may stay.
fn many(room: &str) -> Batch {
    let rows = (0..4000).map(|n| {
        let mut row = row(room, n, Some("ada"));
        row.record.presence.info = Info::new(json!({"text": "x".repeat(2000)})).unwrap();
        row
    });
    upserts(rows)
}

fn log_file(fixture: &InFile) -> PathBuf {
    beside(fixture.file(), "-wal")
}

/// What another process sees of the database.
fn seen_from_outside(fixture: &InFile) -> usize {
    let mut shell = fixture.shell();
    assert_eq!(
        lines(&mut shell, "SELECT integrity_check AS line FROM pragma_integrity_check"),
        ["ok"]
    );
    rows(&mut shell).len()
}

#[test]
fn the_log_is_small_again_soon_after_a_long_read() {
    let (mut fixture, small) = with_a_row();
    let mut reader = fixture.shell();
    reader.batch_execute("BEGIN; SELECT count(*) FROM presences").unwrap();
    for room in ["c", "d"] {
        write(&mut fixture.store, &many(room));
    }
    let grown = log_size(fixture.file());
    assert!(grown > 3 * MAX_LOG_SIZE, "{grown}");
    reader.batch_execute("COMMIT").unwrap();
    // The first one moves all of the log into the database, the second one begins it anew.
    for _ in 0..2 {
        write(&mut fixture.store, &small);
    }
    let shrunk = log_size(fixture.file());
    assert!(shrunk <= MAX_LOG_SIZE, "{shrunk} after {grown}");
    assert_eq!(fixture.rows().len(), 8002);
}

#[test]
fn a_large_log_is_emptied_now_and_then_and_nobody_waits_long_for_it() {
    let (mut fixture, _) = with_a_row();
    let mut conn = fixture.shell();
    conn.batch_execute("PRAGMA wal_autocheckpoint = 0").unwrap();
    let mut reader = fixture.shell();
    reader.batch_execute("BEGIN; SELECT count(*) FROM presences").unwrap();
    write(&mut fixture.store, &many("c"));
    let mut checkpoints = Checkpoints::default();
    let begun = std::time::Instant::now();
    checkpoints.run(&mut conn, fixture.file(), Duration::from_secs(60), false);
    assert!(begun.elapsed() < Duration::from_secs(30), "it waits as long as the writer would");
    assert!(log_size(fixture.file()) > MAX_LOG_SIZE);
    let timeout = "SELECT CAST(timeout AS TEXT) AS line FROM pragma_busy_timeout";
    assert_eq!(lines(&mut conn, timeout), ["60000"]);
    reader.batch_execute("COMMIT").unwrap();
    checkpoints.run(&mut conn, fixture.file(), Duration::from_secs(60), false);
    assert!(log_size(fixture.file()) > MAX_LOG_SIZE, "not twice in a row");
    Checkpoints::default().run(&mut conn, fixture.file(), Duration::from_secs(60), false);
    assert_eq!(log_size(fixture.file()), 0);
    conn.batch_execute("CREATE TABLE small (id INTEGER)").unwrap();
    Checkpoints::default().run(&mut conn, fixture.file(), Duration::from_secs(60), false);
    assert!(log_size(fixture.file()) > 0);
    Checkpoints::default().run(&mut conn, fixture.file(), Duration::from_secs(60), true);
    assert_eq!(log_size(fixture.file()), 0, "a full disk needs every byte");
}

#[test]
fn a_deleted_log_is_noticed_and_reported_once() {
    for (deleted, others) in
        [(&["-wal"][..], false), (&["-wal"], true), (&["-shm"], false), (&["-wal", "-shm"], false)]
    {
        let (mut fixture, batch) = with_a_row();
        let mut other = others.then(|| fixture.shell());
        if let Some(other) = &mut other {
            assert_eq!(rows(other).len(), 1);
        }
        for ending in deleted {
            fs::remove_file(beside(fixture.file(), ending)).unwrap();
        }
        assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone), "{deleted:?} {others}");
        let _ = fixture.store.start(&node("n"), at(0), LEASE).unwrap();
        write(&mut fixture.store, &batch);
        assert_eq!(seen_from_outside(&fixture), 1, "{deleted:?} {others}");
    }
}

#[test]
fn a_log_that_another_process_has_made_anew_is_noticed() {
    let (mut fixture, batch) = with_a_row();
    fs::remove_file(log_file(&fixture)).unwrap();
    // It may see nothing, or fail: the log with the tables in it is gone.
    let _ = fixture.shell().batch_execute("SELECT count(*) FROM presences");
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone));
    write(&mut fixture.store, &batch);
    assert_eq!(seen_from_outside(&fixture), 2, "nothing was lost: the old log was still open");
}

#[test]
fn a_failed_call_and_a_panic_are_no_loss() {
    let (mut fixture, batch) = with_a_row();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        fixture.store.database.read::<()>(|_| panic!("as the test says"))
    }));
    assert!(panicked.is_err());
    write(&mut fixture.store, &batch);
    fixture.change_manually(ManualChange::HideNodes);
    assert!(fixture.store.renew(&node("n"), at(0), LEASE).is_err());
    write(&mut fixture.store, &batch);
    assert_eq!(fixture.rows().len(), 2);
}

/// A store that owns its file.
fn owned() -> (InFile, Batch) {
    let (mut fixture, batch) = with_a_row();
    let url = DatabaseUrl::SqliteFile(fixture.path.clone());
    let lock = OwnerLock::take(&fixture.path).unwrap();
    fixture.store = SqliteStore::open_with(&url, IMPATIENT).unwrap().owned(Some(lock));
    (fixture, batch)
}

fn is_refused(fixture: &InFile) -> bool {
    matches!(OwnerLock::take(&fixture.path), Err(OwnerError::Taken { .. }))
}

#[test]
fn the_lock_follows_a_database_that_is_deleted_with_it() {
    let (mut fixture, batch) = owned();
    for ending in ["", "-wal", "-shm", ".lock"] {
        fs::remove_file(beside(fixture.file(), ending)).unwrap();
    }
    assert!(!is_refused(&fixture));
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone));
    assert!(is_refused(&fixture), "it is the owner of the new file");
    write(&mut fixture.store, &batch);
    fs::remove_file(beside(fixture.file(), ".lock")).unwrap();
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone));
    assert!(is_refused(&fixture), "also if the lock alone was deleted");
    fs::remove_dir_all(fixture.directory.path()).unwrap();
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Unavailable { .. }));
    fs::create_dir(fixture.directory.path()).unwrap();
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone));
    assert!(is_refused(&fixture), "and with its directory");
}

#[test]
fn a_server_that_has_taken_the_database_is_named_until_it_has_ended() {
    let (mut fixture, batch) = owned();
    fs::remove_file(beside(fixture.file(), ".lock")).unwrap();
    let second = OwnerLock::take(&fixture.path).unwrap();
    for _ in 0..2 {
        let taken = fails(&mut fixture, &batch);
        assert!(matches!(taken, StoreError::Taken { .. }), "{taken:?}");
        assert!(taken.to_string().contains("presence.db.lock"), "{taken}");
    }
    drop(second);
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone), "the other one has written");
    write(&mut fixture.store, &batch);
}

#[test]
fn a_file_system_without_shared_memory_is_named_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    // Nothing can be mapped here.
    fs::create_dir(shared_memory(&path)).unwrap();
    let url: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
    let refused = SqliteStore::open_with(&url, IMPATIENT).err().unwrap();
    assert!(matches!(refused, StoreError::NoSharedMemory { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("a.db-shm") && text.contains("local disk"), "{text}");
    fs::remove_dir(shared_memory(&path)).unwrap();
    SqliteStore::open_with(&url, IMPATIENT).unwrap();
}

#[test]
fn a_database_that_is_only_locked_does_not_lack_shared_memory() {
    let (mut fixture, _) = with_a_row();
    fixture.store = SqliteStore::open(&DatabaseUrl::SqliteMemory).unwrap();
    let mut other = fixture.shell();
    other.batch_execute("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    let url = DatabaseUrl::SqliteFile(fixture.path.clone());
    let options = SqliteOptions { open_timeout: Duration::ZERO, ..IMPATIENT };
    let refused = SqliteStore::open_with(&url, options).err().unwrap();
    assert!(matches!(refused, StoreError::Locked), "{refused:?}");
}
