//! The contract on SQLite, and the troubles of a file.

use std::{
    fs,
    path::Path,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use chrono::TimeDelta;
use diesel::{
    SqliteConnection, connection::SimpleConnection, prelude::*, sql_query, sql_types::Text,
};
use serde_json::json;
use tempfile::TempDir;

use super::{SqliteOptions, SqliteStore, connection::Access, statements::Stamp};
use crate::{
    model::{ConnectionId, Info, NodeName, Presence, PresenceRecord, RoomName, UserId},
    owned_store_contract,
    store::{
        Batch, DatabaseUrl, Renewal, Row, SqlitePath, Store, StoreError, migrate,
        schema::{presences, rooms},
    },
    store_contract,
    testing::store_contract::{
        LEASE, ManualChange, StoreFixture, Verb, at, node, row, upserts, write,
    },
};

store_contract!(in_memory, super::Memory);
store_contract!(in_a_file, super::InFile);
owned_store_contract!(of_one_process_in_memory, super::Memory);
owned_store_contract!(of_one_process_in_a_file, super::InFile);

pub(super) const IMPATIENT: SqliteOptions = SqliteOptions {
    busy_timeout: Duration::from_millis(20),
    open_timeout: Duration::from_secs(30),
};

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

pub(super) fn lines(conn: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let lines: Vec<Line> = sql_query(sql).load(conn).unwrap();
    lines.into_iter().map(|line| line.line).collect()
}

pub(super) fn rows(conn: &mut SqliteConnection) -> Vec<(NodeName, Row)> {
    type Columns = (String, String, Option<String>, String, Stamp, Stamp, String);
    let columns = (
        rooms::channel_name,
        presences::channel_name,
        presences::user_id,
        presences::info,
        presences::joined_at,
        presences::last_seen,
        presences::node_id,
    );
    let rows: Vec<Columns> = presences::table
        .inner_join(rooms::table)
        .order((rooms::channel_name, presences::channel_name))
        .select(columns)
        .load(conn)
        .unwrap();
    let typed = rows.into_iter().map(|(room, connection, user, info, joined_at, seen, node)| {
        let presence = Presence {
            connection: connection.parse().unwrap(),
            user: user.map(|user| UserId::new(user).unwrap()),
            info: serde_json::from_str(&info).unwrap(),
            joined_at: joined_at.0,
            updated_at: joined_at.0,
        };
        let record = PresenceRecord { last_seen: seen.0, ..PresenceRecord::new(presence) };
        let row = Row { room: RoomName::new(room).unwrap(), record };
        (NodeName::new(node).unwrap(), row)
    });
    typed.collect()
}

fn refusal(verb: Verb, connection: ConnectionId) -> String {
    let row = if verb == Verb::Insert { "NEW" } else { "OLD" };
    let verb = verb.as_sql();
    format!(
        "CREATE TRIGGER refuse_{verb}_{connection} BEFORE {verb} ON presences
         WHEN {row}.channel_name = '{connection}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )
}

struct Memory(SqliteStore);

impl Memory {
    fn sql(&mut self, sql: &str) {
        self.0.database.connection(Access::Write).unwrap().batch_execute(sql).unwrap();
    }
}

impl StoreFixture for Memory {
    type Store = SqliteStore;

    fn new() -> Self {
        Self(SqliteStore::open(&DatabaseUrl::SqliteMemory).unwrap())
    }

    fn store(&mut self) -> &mut SqliteStore {
        &mut self.0
    }

    fn change_manually(&mut self, change: ManualChange<'_>) {
        self.sql(&change.to_sql());
    }

    fn rows(&mut self) -> Vec<(NodeName, Row)> {
        rows(&mut self.0.database.connection(Access::Read).unwrap())
    }

    fn refuse(&mut self, verb: Verb, connection: ConnectionId) {
        self.sql(&refusal(verb, connection));
    }
}

pub(super) struct InFile {
    pub store: SqliteStore,
    pub path: SqlitePath,
    pub directory: TempDir,
}

impl InFile {
    fn named(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = SqlitePath::new(directory.path().join(name).to_str().unwrap()).unwrap();
        let url = DatabaseUrl::SqliteFile(path.clone());
        let store = SqliteStore::open_with(&url, IMPATIENT).unwrap();
        Self { store, path, directory }
    }

    pub fn file(&self) -> &Path {
        self.path.as_path()
    }

    /// A connection as a shell makes it: foreign keys off.
    pub fn shell(&self) -> SqliteConnection {
        let mut shell = SqliteConnection::establish(&self.path.for_sqlite()).unwrap();
        shell.batch_execute("PRAGMA foreign_keys = OFF; PRAGMA busy_timeout = 5000").unwrap();
        shell
    }

    fn sql(&self, sql: &str) {
        self.shell().batch_execute(sql).unwrap();
    }

    fn writable(&self, writable: bool) {
        let mut permissions = fs::metadata(self.file()).unwrap().permissions();
        #[cfg(unix)]
        std::os::unix::fs::PermissionsExt::set_mode(
            &mut permissions,
            if writable { 0o644 } else { 0o444 },
        );
        #[cfg(not(unix))]
        permissions.set_readonly(!writable);
        fs::set_permissions(self.file(), permissions).unwrap();
    }
}

impl StoreFixture for InFile {
    type Store = SqliteStore;

    fn new() -> Self {
        Self::named("presence.db")
    }

    fn store(&mut self) -> &mut SqliteStore {
        &mut self.store
    }

    fn change_manually(&mut self, change: ManualChange<'_>) {
        self.sql(&change.to_sql());
    }

    fn rows(&mut self) -> Vec<(NodeName, Row)> {
        rows(&mut self.shell())
    }

    fn refuse(&mut self, verb: Verb, connection: ConnectionId) {
        self.sql(&refusal(verb, connection));
    }
}

/// A store whose database holds one row, and a batch that would add another.
pub(super) fn with_a_row() -> (InFile, Batch) {
    let mut fixture = InFile::new();
    write(&mut fixture.store, &upserts([row("a", 1, None)]));
    (fixture, upserts([row("b", 2, None)]))
}

pub(super) fn fails(fixture: &mut InFile, batch: &Batch) -> StoreError {
    fixture.store.apply(&node("n"), batch, at(0)).unwrap_err()
}

#[test]
fn a_row_is_readable_with_sql() {
    let mut fixture = Memory::new();
    let mut full = row("café", 1, Some("123"));
    full.record.presence.info = Info::new(json!({"b": 1.50, "a": "\u{0}ü\"\\"})).unwrap();
    full.record.last_seen = at(1) + TimeDelta::microseconds(250_000);
    write(&mut fixture.0, &upserts([full, row("x", 2, None)]));
    let sql = "SELECT user_id || ' ' || info || ' ' || joined_at || ' ' || last_seen AS line
        FROM presences WHERE user_id IS NOT NULL";
    let expected =
        r#"123 {"a":"\u0000ü\"\\","b":1.5} 2023-11-14 22:13:20 2023-11-14 22:13:21.250000"#;
    assert_eq!(lines(&mut fixture.0.database.connection(Access::Read).unwrap(), sql), [expected]);
}

#[test]
fn a_database_that_another_process_holds_is_locked_and_then_written() {
    let (mut fixture, batch) = with_a_row();
    let mut other = fixture.shell();
    other.batch_execute("BEGIN EXCLUSIVE").unwrap();
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Locked));
    assert!(matches!(fixture.store.prune_rooms(), Err(StoreError::Locked)));
    other.batch_execute("COMMIT").unwrap();
    write(&mut fixture.store, &batch);
    assert_eq!(fixture.rows().len(), 2);
}

#[test]
fn a_full_database_fails_as_a_whole_and_is_written_when_there_is_room() {
    let (mut fixture, _) = with_a_row();
    let large = upserts((0..5000).map(|n| row("a room with a name", n, Some("a user"))));
    let limit = |fixture: &mut InFile, pages| {
        let sql = format!("PRAGMA max_page_count = {pages}");
        fixture.store.database.connection(Access::Write).unwrap().batch_execute(&sql).unwrap();
    };
    limit(&mut fixture, 1);
    let full = fails(&mut fixture, &large);
    assert!(matches!(full, StoreError::Full), "{full:?}");
    assert_eq!(fixture.rows().len(), 1);
    limit(&mut fixture, 1_000_000);
    write(&mut fixture.store, &large);
    assert_eq!(fixture.rows().len(), 5001);
}

#[test]
fn a_row_that_is_skipped_without_an_error_is_set_aside() {
    let (mut fixture, batch) = with_a_row();
    fixture.sql(
        "CREATE TRIGGER no_b BEFORE INSERT ON rooms WHEN NEW.channel_name = 'b'
         BEGIN SELECT RAISE(IGNORE); END",
    );
    let applied = fixture.store.apply(&node("n"), &batch, at(0)).unwrap();
    assert_eq!(applied.set_aside.len(), 1);
}

#[test]
fn a_file_without_write_permission_is_read_only_until_it_has_it_again() {
    let (mut fixture, batch) = with_a_row();
    fixture.writable(false);
    assert!(matches!(fails(&mut fixture, &batch), StoreError::ReadOnly));
    assert!(matches!(fixture.store.stop(&node("n")), Err(StoreError::ReadOnly)));
    assert_eq!(fixture.store.rooms(at(0)).unwrap().len(), 1, "reading goes on");
    fixture.writable(true);
    write(&mut fixture.store, &batch);
    assert_eq!(fixture.rows().len(), 2);
}

#[test]
fn a_deleted_file_is_created_again_and_reported_once() {
    let (mut fixture, batch) = with_a_row();
    fs::remove_file(fixture.file()).unwrap();
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone));
    write(&mut fixture.store, &batch);
    let rows = fixture.rows();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].1.room, "b", "only what was written since: {rows:?}");
    assert!(matches!(
        fixture.store.renew(&node("n"), at(0), LEASE).unwrap(),
        Renewal::Lapsed { .. }
    ));
}

#[test]
fn a_deleted_directory_is_unavailable_until_it_is_there_again() {
    let (mut fixture, batch) = with_a_row();
    fs::remove_dir_all(fixture.directory.path()).unwrap();
    for _ in 0..2 {
        assert!(matches!(fails(&mut fixture, &batch), StoreError::Unavailable { .. }));
    }
    fs::create_dir(fixture.directory.path()).unwrap();
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone));
    write(&mut fixture.store, &batch);
    assert_eq!(fixture.rows().len(), 1);
}

#[test]
fn another_file_in_its_place_is_noticed() {
    let (mut fixture, batch) = with_a_row();
    let mut backup = InFile::new();
    write(&mut backup.store, &upserts([row("old", 7, None)]));
    backup.shell().batch_execute("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let copy = fixture.directory.path().join("copy");
    fs::copy(backup.file(), &copy).unwrap();
    fs::rename(&copy, fixture.file()).unwrap();
    assert!(matches!(fails(&mut fixture, &batch), StoreError::Gone));
    let dead = fixture.store.start(&node("n"), at(0), LEASE).unwrap().dead;
    assert_eq!(dead.len(), 1, "what the backup held is cleared by starting");
    write(&mut fixture.store, &batch);
    assert_eq!(fixture.rows().len(), 1);
}

#[test]
fn a_file_that_is_not_a_database_is_reported_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    let text = "not a database, ".repeat(100);
    fs::write(&path, &text).unwrap();
    let url: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
    let refused = SqliteStore::open_with(&url, IMPATIENT).err().unwrap();
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_directory_or_a_missing_one_cannot_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["", "none/presence.db"] {
        let path = directory.path().join(name);
        let url: DatabaseUrl = format!("sqlite://{}", path.display()).parse().unwrap();
        let refused = SqliteStore::open_with(&url, IMPATIENT).err().unwrap();
        assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused:?}");
    }
}

#[test]
fn a_path_is_only_a_path() {
    for name in ["a?mode=memory", "a#b", "%41.db", "a b", "ü ☃", ":memory:", "file:x", "sqlite:y"]
    {
        let mut fixture = InFile::named(name);
        write(&mut fixture.store, &upserts([row("a", 1, None)]));
        let made = fs::read_dir(fixture.directory.path()).unwrap();
        let made: Vec<_> = made.map(|file| file.unwrap().file_name()).collect();
        assert!(made.iter().any(|file| file == name), "{name}: {made:?}");
        assert!(made.iter().all(|file| file.to_str().unwrap().starts_with(name)), "{made:?}");
    }
}

#[test]
fn many_may_open_and_migrate_a_new_file_at_once() {
    const THREADS: usize = 8;
    let directory = tempfile::tempdir().unwrap();
    let url: DatabaseUrl =
        format!("sqlite://{}", directory.path().join("new.db").display()).parse().unwrap();
    let barrier = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (url, barrier) = (url.clone(), Arc::clone(&barrier));
            thread::spawn(move || {
                barrier.wait();
                migrate(&url).unwrap()
            })
        })
        .collect();
    let applied: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(applied.iter().sum::<usize>(), 1, "{applied:?}");
    assert_eq!(migrate(&url).unwrap(), 0);
}

#[test]
fn the_file_is_written_ahead_and_keeps_its_keys() {
    let mut fixture = InFile::new();
    let mut conn = fixture.store.database.connection(Access::Read).unwrap();
    assert_eq!(lines(&mut conn, "SELECT journal_mode AS line FROM pragma_journal_mode"), ["wal"]);
    for (pragma, value) in [("synchronous", "1"), ("foreign_keys", "1"), ("busy_timeout", "20")] {
        let column = if pragma == "busy_timeout" { "timeout" } else { pragma };
        let sql = format!("SELECT CAST({column} AS TEXT) AS line FROM pragma_{pragma}");
        assert_eq!(lines(&mut conn, &sql), [value], "{pragma}");
    }
}
