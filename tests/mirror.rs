//! The database behind the actors: rows follow memory, outages cost freshness and nothing else.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use actix_presence::{
    store::{OwnerError, OwnerLock, SqlitePath, StoreError},
    *,
};
use chrono::NaiveDateTime;
use common::{Harness, Session, room, secs};
use diesel::{
    Connection as _, QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection,
    sql_query,
    sql_types::{Nullable, Text, Timestamp},
};
use proptest::{
    prelude::{Strategy, any},
    strategy::ValueTree,
    test_runner::TestRunner,
};
use tempfile::TempDir;

#[derive(QueryableByName, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    #[diesel(sql_type = Text)]
    room: String,
    #[diesel(sql_type = Text)]
    connection: String,
    #[diesel(sql_type = Nullable<Text>)]
    user_id: Option<String>,
    #[diesel(sql_type = Text)]
    info: String,
    #[diesel(sql_type = Timestamp)]
    joined_at: NaiveDateTime,
    #[diesel(sql_type = Timestamp)]
    last_seen: NaiveDateTime,
}

struct Database {
    _directory: TempDir,
    path: PathBuf,
}

impl Database {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("presence.db");
        Self { _directory: directory, path }
    }

    fn copy(&self) -> Self {
        let copy = Self::new();
        for name in ["presence.db", "presence.db-wal"] {
            let (from, to) = (self.path.with_file_name(name), copy.path.with_file_name(name));
            fs::copy(from, to).unwrap();
        }
        copy
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.path.display())
    }

    fn connect(&self) -> SqliteConnection {
        let mut connection = SqliteConnection::establish(self.path.to_str().unwrap()).unwrap();
        connection.batch_execute("PRAGMA busy_timeout = 10000; PRAGMA foreign_keys = ON").unwrap();
        connection
    }

    /// What somebody reads with SQL.
    fn rows(&self) -> BTreeSet<Row> {
        let rows = sql_query(
            "SELECT r.channel_name AS room, p.channel_name AS connection, p.user_id, p.info,
                    p.joined_at, p.last_seen
             FROM presences p JOIN rooms r ON r.id = p.room_id",
        );
        rows.load(&mut self.connect()).unwrap().into_iter().collect()
    }

    async fn start(&self) -> Harness {
        Harness::with(&self.url(), |config| config).await
    }
}

/// What memory says the rows should be.
async fn memory(t: &Harness) -> BTreeSet<Row> {
    let mut rows = BTreeSet::new();
    for summary in t.registry.send(ListRooms { after: None, limit: 1000 }).await.unwrap().unwrap() {
        let all = ListPresences { room: summary.room.clone(), after: None, limit: 1000 };
        for seen in t.registry.send(all).await.unwrap().unwrap().unwrap() {
            rows.insert(Row {
                room: summary.room.to_string(),
                connection: seen.presence.connection.to_string(),
                user_id: seen.presence.user.map(|user| user.to_string()),
                info: seen.presence.info.as_json().to_owned(),
                joined_at: seen.presence.joined_at.naive_utc(),
                last_seen: seen.last_seen.naive_utc(),
            });
        }
    }
    rows
}

async fn flush(t: &Harness) -> Result<(), FlushError> {
    t.registry.send(Flush).await.unwrap()
}

#[actix::test]
async fn rows_after_a_flush_are_what_memory_says_whatever_happened_before() {
    let database = Database::new();
    let t = database.start().await;
    let sessions: Vec<Session> = (0..8).map(|_| t.session()).collect();
    let mut runner = TestRunner::deterministic();
    let step = (0..10_u8, 0..8_usize, 0..3_usize, any::<bool>());
    for round in 0..60 {
        for _ in 0..20 {
            let (what, who, place, named) = step.new_tree(&mut runner).unwrap().current();
            let (session, name) = (&sessions[who], ["a", "b", "c"][place]);
            match what {
                0..4 => {
                    let who = named.then(|| ["ada", "bob"][who % 2]);
                    t.join(session, name, who).await.unwrap();
                }
                4 => {
                    t.leave(session, name).await;
                }
                5 => {
                    t.registry.send(LeaveAll::new(session.id)).await.unwrap();
                }
                6 => {
                    let info = Info::new(serde_json::json!({"round": round})).unwrap();
                    let (room, connection) = (room(name), session.id);
                    t.registry.send(UpdateInfo { room, connection, info }).await.unwrap();
                }
                7 => t.registry.send(Touch::new(session.id)).await.unwrap(),
                8 => t.clock.advance(secs(15)),
                _ => {
                    t.prune().await;
                }
            }
        }
        flush(&t).await.unwrap();
        assert_eq!(database.rows(), memory(&t).await, "round {round}");
        assert_eq!(t.registry.send(GetStatus).await.unwrap().unwritten, 0);
    }
}

#[actix::test]
async fn everybody_on_the_rows_of_a_process_that_died_is_gone_at_the_next_start() {
    let database = Database::new();
    let t = database.start().await;
    t.enter("lobby", Some("ada")).await;
    t.enter("lobby", None).await;
    flush(&t).await.unwrap();
    assert_eq!(database.rows().len(), 2);
    // What a process leaves on the disk that is killed now.
    let database = database.copy();

    let t = database.start().await;
    assert!(database.rows().is_empty());
    assert!(t.snapshot("lobby").await.is_none());
    t.enter("lobby", Some("ada")).await;
    flush(&t).await.unwrap();
    assert_eq!(database.rows().len(), 1, "a user who comes back has one row");
}

#[actix::test]
async fn a_shutdown_leaves_no_presences_and_no_lease() {
    let database = Database::new();
    let t = database.start().await;
    t.enter("lobby", Some("ada")).await;
    flush(&t).await.unwrap();
    t.presence.clone().shutdown(secs(10)).await.unwrap();
    assert!(database.rows().is_empty());
    let left = sql_query("DELETE FROM nodes").execute(&mut database.connect()).unwrap();
    assert_eq!(left, 0);
}

#[actix::test]
async fn a_start_waits_for_the_lock_and_touches_nothing_before() {
    let database = Database::new();
    let path = SqlitePath::new(database.path.to_str().unwrap()).unwrap();
    let owner = Mutex::new(Some(OwnerLock::take(&path).unwrap()));
    let timeout = Duration::from_millis(50);
    let refused = PresenceConfig::new(database.url()).wait_for_lock(timeout).start();
    let Err(StartError::Owner(OwnerError::Taken { waited, .. })) = refused else {
        panic!("not refused: {refused:?}")
    };
    assert_eq!(waited, timeout);
    assert!(!database.path.exists(), "the database was touched");

    // The first line says that the lock is waited for.
    let release = move || {
        drop(owner.lock().unwrap().take());
        std::io::sink()
    };
    let subscriber = tracing_subscriber::fmt().with_writer(release).finish();
    let start = || PresenceConfig::new(database.url()).wait_for_lock(secs(60)).start();
    let presence = tracing::subscriber::with_default(subscriber, start).unwrap();
    presence.shutdown(secs(10)).await.unwrap();
}

#[actix::test]
async fn one_file_serves_one_server() {
    let database = Database::new();
    let t = database.start().await;
    let second = PresenceConfig::new(database.url()).start();
    let Err(StartError::Owner(error @ OwnerError::Taken { .. })) = second else {
        panic!("not refused: {second:?}")
    };
    assert!(error.to_string().contains("presence.db"), "{error}");
    let handle = t.presence.clone();
    drop(handle);
    assert!(PresenceConfig::new(database.url()).start().is_err(), "it is the actors who own it");
    let _another_handle = t.presence.clone();
    t.presence.shutdown(secs(10)).await.unwrap();
    PresenceConfig::new(database.url()).start().unwrap();
}

#[actix::test]
async fn a_read_only_database_costs_freshness_and_the_rows_converge_when_it_is_back() {
    let database = Database::new();
    let mut t = database.start().await;
    let ada = t.enter("lobby", Some("ada")).await;
    flush(&t).await.unwrap();

    set_readonly(&database.path, true);
    t.enter("lobby", Some("bob")).await;
    t.leave(&ada, "lobby").await;
    let error = flush(&t).await.unwrap_err();
    assert_eq!(error.reason(), "read_only", "a flush never lies");
    assert!(error.to_string().contains(&StoreError::ReadOnly.to_string()), "{error}");
    assert_eq!(t.users("lobby").await, ["bob"], "presence goes on");
    assert_eq!(t.changes().await.len(), 3);
    let status = t.registry.send(GetStatus).await.unwrap();
    assert_eq!(status.database, Some("read_only"));
    assert!(status.unwritten >= 2);

    set_readonly(&database.path, false);
    flush(&t).await.unwrap();
    assert_eq!(database.rows(), memory(&t).await);
    assert_eq!(t.registry.send(GetStatus).await.unwrap().database, None);
}

fn set_readonly(path: &Path, readonly: bool) {
    let mut permissions = fs::metadata(path).unwrap().permissions();
    permissions.set_readonly(readonly);
    fs::set_permissions(path, permissions).unwrap();
}

#[actix::test]
async fn a_database_that_was_deleted_is_made_anew_with_every_row() {
    let database = Database::new();
    let t = database.start().await;
    t.enter("lobby", Some("ada")).await;
    t.enter("cellar", None).await;
    flush(&t).await.unwrap();
    for name in ["presence.db", "presence.db-wal", "presence.db-shm"] {
        fs::remove_file(database.path.with_file_name(name)).unwrap();
    }
    // Nothing is marked, and still the flush does not claim what is no more.
    assert_eq!(flush(&t).await.unwrap_err().reason(), "gone");
    flush(&t).await.unwrap();
    assert_eq!(database.rows(), memory(&t).await);
    assert_eq!(database.rows().len(), 2);
}

#[actix::test]
async fn rows_deleted_by_hand_are_no_change_and_come_back_with_the_presence() {
    let database = Database::new();
    let mut t = database.start().await;
    let ada = t.enter("lobby", Some("ada")).await;
    flush(&t).await.unwrap();
    t.changes().await;
    sql_query("DELETE FROM rooms").execute(&mut database.connect()).unwrap();
    assert!(t.changes().await.is_empty(), "memory is the truth");
    assert_eq!(t.users("lobby").await, ["ada"]);

    t.join(&ada, "lobby", Some("bob")).await.unwrap();
    flush(&t).await.unwrap();
    assert_eq!(database.rows(), memory(&t).await);
}

#[actix::test]
async fn rows_deleted_by_hand_come_back_with_a_sign_of_life() {
    let database = Database::new();
    let t = database.start().await;
    let ada = t.enter("lobby", Some("ada")).await;
    t.join(&ada, "cellar", Some("ada")).await.unwrap();
    t.enter("lobby", Some("bob")).await;
    flush(&t).await.unwrap();
    sql_query("DELETE FROM rooms WHERE channel_name = 'lobby'")
        .execute(&mut database.connect())
        .unwrap();
    t.registry.send(Touch::new(ada.id)).await.unwrap();
    // The first finds out, the second has it mended.
    flush(&t).await.unwrap();
    flush(&t).await.unwrap();
    let hers: Vec<_> = database.rows().into_iter().map(|row| (row.room, row.user_id)).collect();
    let row = |room: &str| (room.to_owned(), Some("ada".to_owned()));
    assert_eq!(hers, [row("cellar"), row("lobby")], "and nobody else's");
}

#[actix::test]
async fn a_refused_row_is_tried_again_with_a_sign_of_life() {
    let database = Database::new();
    let t = database.start().await;
    let eve = t.enter("lobby", Some("eve")).await;
    flush(&t).await.unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE OF info ON presences
                  BEGIN SELECT RAISE(ABORT, 'not now'); END";
    database.connect().batch_execute(refuse).unwrap();
    let info = Info::new(serde_json::json!({"mood": "fine"})).unwrap();
    let update = UpdateInfo { room: room("lobby"), connection: eve.id, info };
    assert!(t.registry.send(update).await.unwrap());
    assert_eq!(flush(&t).await.unwrap_err().reason(), "rows_refused");
    database.connect().batch_execute("DROP TRIGGER refuse").unwrap();
    t.registry.send(Touch::new(eve.id)).await.unwrap();
    let _ = flush(&t).await;
    flush(&t).await.unwrap();
    assert_eq!(database.rows(), memory(&t).await);
}

#[actix::test]
async fn a_row_that_the_database_does_not_delete_is_tried_again() {
    let database = Database::new();
    let t = database.start().await;
    let eve = t.enter("lobby", Some("eve")).await;
    let ada = t.enter("lobby", Some("ada")).await;
    flush(&t).await.unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE DELETE ON presences WHEN OLD.user_id = 'eve'
                  BEGIN SELECT RAISE(ABORT, 'not now'); END";
    database.connect().batch_execute(refuse).unwrap();
    t.leave(&eve, "lobby").await;
    t.leave(&ada, "lobby").await;
    assert_eq!(flush(&t).await.unwrap_err().reason(), "rows_refused");
    assert_eq!(database.rows().len(), 1);
    database.connect().batch_execute("DROP TRIGGER refuse").unwrap();
    flush(&t).await.unwrap();
    assert_eq!(database.rows().len(), 0);
}

#[actix::test]
async fn a_row_that_the_database_refuses_keeps_no_other_out_and_a_flush_says_so() {
    let database = Database::new();
    let t = database.start().await;
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON presences WHEN NEW.user_id = 'eve'
                  BEGIN SELECT RAISE(ABORT, 'not eve'); END";
    database.connect().batch_execute(refuse).unwrap();
    let eve = t.enter("lobby", Some("eve")).await;
    t.enter("lobby", Some("ada")).await;
    assert_eq!(flush(&t).await.unwrap_err().reason(), "rows_refused");
    let users: Vec<_> = database.rows().into_iter().map(|row| row.user_id).collect();
    assert_eq!(users, [Some("ada".to_owned())]);
    assert_eq!(t.users("lobby").await, ["ada", "eve"]);

    t.leave(&eve, "lobby").await;
    flush(&t).await.unwrap();
    assert_eq!(database.rows(), memory(&t).await);
}

#[actix::test]
async fn signs_of_life_reach_the_rows_in_bulk() {
    let database = Database::new();
    let t = database.start().await;
    let ada = t.enter("lobby", Some("ada")).await;
    flush(&t).await.unwrap();
    t.clock.advance(secs(30));
    t.registry.send(Touch::new(ada.id)).await.unwrap();
    flush(&t).await.unwrap();
    let row = database.rows().pop_first().unwrap();
    assert_eq!(row.last_seen - row.joined_at, chrono::TimeDelta::seconds(30));
}

#[actix::test]
async fn a_database_that_is_none_is_refused_at_the_start() {
    let database = Database::new();
    fs::write(&database.path, "This is no database, but it is long enough to look at.".repeat(99))
        .unwrap();
    let start = PresenceConfig::new(database.url()).start();
    assert!(matches!(start, Err(StartError::Store(StoreError::Corrupt { .. }))), "{start:?}");
    let missing = PresenceConfig::new("sqlite:///no/such/directory/presence.db").start();
    assert!(missing.is_err());
    for bad in ["mysql://x", "sqlite://", "postgres://somebody:sec/ret@host/x"] {
        let error = PresenceConfig::new(bad).start().unwrap_err();
        assert!(matches!(error, StartError::Url(_)), "{error:?}");
        assert!(!error.to_string().contains("sec"), "{error}");
    }
}
