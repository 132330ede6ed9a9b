//! What the database is asked to do for connections that only stay: `cargo bench --bench rest`.
//!
//! Everybody sends a heartbeat each 30 s, with the options as they are unless told otherwise, but
//! all of it 15 times as fast. What was written is read from SQLite's write-ahead log.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_presence::*;
use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

const FASTER: u32 = 15;
const HEARTBEAT: Duration = Duration::from_secs(30 / FASTER as u64);
const MAX_AGE: Duration = Duration::from_secs(60 / FASTER as u64);
const LEASE: Duration = Duration::from_secs(15 / FASTER as u64);
const MINUTE: Duration = Duration::from_secs(60 / FASTER as u64);

/// Into so many pieces a round of heartbeats is cut.
const PIECES: usize = 40;

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        return println!("run it by `cargo bench --bench rest`");
    }
    println!("cargo bench --bench rest\n\na minute at rest, a heartbeat each 30 s");
    println!("{:>12}{:>14}{:>10}{:>10}", "connections", "transactions", "rows", "pages");
    let system = actix::System::new();
    for connections in [1_000, 10_000, 100_000] {
        system.block_on(rest(connections));
    }
}

struct Session;

impl Actor for Session {
    type Context = Context<Self>;
}

impl Handler<ForwardMessage> for Session {
    type Result = ();
    fn handle(&mut self, _: ForwardMessage, _: &mut Context<Self>) {}
}

async fn rest(connections: usize) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("presence.db");
    let config = PresenceConfig::new(format!("sqlite://{}", path.display()));
    let presence = config.max_age(MAX_AGE).lease(LEASE).start().expect("a fresh database");
    let registry = presence.registry();
    let to = Session.start().recipient();
    let ids: Vec<_> = (0..connections).map(|_| ConnectionId::new()).collect();
    for (n, id) in ids.iter().enumerate() {
        let room = RoomName::new(format!("room {}", n / 10)).expect("a name");
        registry.do_send(Join::new(room, *id, to.clone()));
    }
    registry.send(Flush).await.expect("a registry").expect("a database");

    let log = Log::begin(&path);
    stay(&registry, &ids, MINUTE).await;
    let before = log.read();
    let rows = written(&registry).await;
    let began = Instant::now();
    stay(&registry, &ids, MINUTE).await;
    let minutes = began.elapsed().as_secs_f64() / MINUTE.as_secs_f64();
    let (after, rows) = (log.read(), written(&registry).await - rows);
    let [transactions, pages, rows] =
        [after.0 - before.0, after.1 - before.1, rows].map(|n| (n as f64 / minutes).round());
    println!("{connections:>12}{transactions:>14}{rows:>10}{pages:>10}");
    drop(log);
    presence.shutdown(Duration::from_secs(30)).await.expect("everything is written");
}

/// Everybody sends heartbeats for so long.
async fn stay(registry: &Addr<RoomRegistry>, ids: &[ConnectionId], time: Duration) {
    let end = Instant::now() + time;
    let mut pieces = ids.chunks(ids.len() / PIECES).cycle();
    let mut tick = tokio::time::interval(HEARTBEAT / PIECES as u32);
    while Instant::now() < end {
        tick.tick().await;
        for id in pieces.next().into_iter().flatten() {
            registry.do_send(Touch::new(*id));
        }
    }
}

/// Rows of presences written so far.
async fn written(registry: &Addr<RoomRegistry>) -> u64 {
    registry.send(GetStatus).await.expect("a registry").counters.rows_written
}

/// The write-ahead log of a database, from an empty one on.
struct Log {
    _reader: SqliteConnection,
    path: PathBuf,
}

impl Log {
    fn begin(database: &Path) -> Self {
        let name = database.to_str().expect("a name");
        let mut reader = SqliteConnection::establish(name).expect("a database");
        // While somebody reads what it began with, it is not begun anew.
        let hold = "PRAGMA busy_timeout = 10000; PRAGMA wal_checkpoint(TRUNCATE);
                    BEGIN; SELECT count(*) FROM nodes;";
        reader.batch_execute(hold).expect("a database");
        Self { _reader: reader, path: format!("{name}-wal").into() }
    }

    /// How many transactions and pages are in it.
    fn read(&self) -> (u64, u64) {
        let log = fs::read(&self.path).expect("a write-ahead log");
        let Some((header, frames)) = log.split_at_checked(32) else { return (0, 0) };
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        let frames = frames.chunks_exact(24 + number(&header[8..12]) as usize);
        // The last frame of a transaction has the size of the database.
        let transactions = frames.clone().filter(|frame| number(&frame[4..8]) != 0).count();
        (transactions as u64, frames.len() as u64)
    }
}
