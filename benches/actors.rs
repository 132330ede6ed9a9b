//! What the actors do, message by message: `cargo bench --bench actors`.
//!
//! Each sample is one round trip of many messages, so the numbers are those of a busy registry:
//! joins with the mirror writing an SQLite file beside it, and committed at the end of the sample.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use actix::prelude::*;
use actix_presence::*;
use divan::{Bencher, counter::ItemsCount};

fn main() {
    divan::main();
}

/// A session that counts what it gets.
struct Counter(Arc<AtomicUsize>);

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<ForwardMessage> for Counter {
    type Result = ();
    fn handle(&mut self, _: ForwardMessage, _: &mut Context<Self>) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

struct Bench {
    system: actix::SystemRunner,
    presence: PresenceHandle,
    registry: Addr<RoomRegistry>,
    sessions: ArbiterHandle,
    heard: Arc<AtomicUsize>,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let system = actix::System::new();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let url = format!("sqlite://{}", directory.path().join("presence.db").display());
        let presence = system.block_on(async { PresenceConfig::new(url).start() });
        let presence = presence.expect("a fresh database");
        let registry = presence.registry();
        let sessions = system.block_on(async { Arbiter::new().handle() });
        Self { system, presence, registry, sessions, heard: Arc::default(), _directory: directory }
    }

    fn session(&self) -> Recipient<ForwardMessage> {
        let heard = self.heard.clone();
        Counter::start_in_arbiter(&self.sessions, move |ctx| {
            ctx.set_mailbox_capacity(256);
            Counter(heard)
        })
        .recipient()
    }

    fn join(&self, room: &RoomName, to: &Recipient<ForwardMessage>) -> ConnectionId {
        let id = ConnectionId::new();
        let user = UserId::new(id.to_string()).expect("a name");
        self.registry.do_send(Join::anonymous(room.clone(), id, to.clone()).user(user));
        id
    }

    fn flush(&self) {
        let flushed = self.system.block_on(self.registry.send(Flush));
        flushed.expect("a registry").expect("a database");
    }

    /// So many members of a room.
    fn fill(&self, room: &RoomName, members: usize) -> Vec<ConnectionId> {
        let ids = (0..members).map(|_| self.join(room, &self.session())).collect();
        self.flush();
        ids
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let presence = self.presence.clone();
        let end = async { presence.shutdown(std::time::Duration::from_secs(30)).await };
        self.system.block_on(end).expect("everything is written");
    }
}

fn lobby() -> RoomName {
    RoomName::new("lobby").expect("a name")
}

const BURST: usize = 30_000;

/// Joins into one room, committed.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn joins_into_one_room_with_the_mirror(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(BURST)).with_inputs(Bench::new).bench_local_refs(|bench| {
        let (room, to) = (lobby(), bench.session());
        for _ in 0..BURST {
            bench.join(&room, &to);
        }
        bench.flush();
    });
}

/// Joins into rooms of ten, committed.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn joins_into_rooms_of_ten_with_the_mirror(bencher: Bencher<'_, '_>) {
    let rooms: Vec<_> =
        (0..BURST / 10).map(|i| RoomName::new(format!("room {i}")).expect("a name")).collect();
    bencher.counter(ItemsCount::new(BURST)).with_inputs(Bench::new).bench_local_refs(|bench| {
        let to = bench.session();
        for i in 0..BURST {
            bench.join(&rooms[i % rooms.len()], &to);
        }
        bench.flush();
    });
}

/// Touches of the members of one room, by their actors' messages.
#[divan::bench(args = [1, 100, 10_000], sample_count = 10, sample_size = 1)]
fn touches(bencher: Bencher<'_, '_>, members: usize) {
    let bench = Bench::new();
    let ids = bench.fill(&lobby(), members);
    bencher.counter(ItemsCount::new(100_000_usize)).bench_local(|| {
        for i in 0..100_000 {
            bench.registry.do_send(Touch::new(ids[i % ids.len()]));
        }
        bench.system.block_on(bench.registry.send(GetStatus)).expect("a registry");
    });
}

/// One message to every member, until all have it: items are deliveries.
#[divan::bench(args = [1, 100, 10_000], sample_count = 20)]
fn fan_out(bencher: Bencher<'_, '_>, members: usize) {
    let bench = Bench::new();
    bench.fill(&lobby(), members);
    bencher.counter(ItemsCount::new(members)).bench_local(|| {
        let before = bench.heard.load(Ordering::Acquire);
        let publish = Publish::new(lobby(), "hello");
        let taken = bench.system.block_on(bench.registry.send(publish));
        assert_eq!(taken.expect("a registry"), Ok(members));
        while bench.heard.load(Ordering::Acquire) < before + members {
            std::thread::yield_now();
        }
    });
}
