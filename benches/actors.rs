//! What the actors do, message by message: `cargo bench --bench actors`.
//!
//! Each sample is one round trip of many messages, so the numbers are those of a busy registry, with
//! the mirror writing an SQLite file beside it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use actix::prelude::*;
use actix_presence::*;
use divan::{Bencher, counter::ItemsCount};
use futures_util::{StreamExt, stream};

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

    fn flush(&self) {
        let flushed = self.system.block_on(self.registry.send(Flush));
        flushed.expect("a registry").expect("a database");
    }

    /// So many members of a room.
    fn fill(&self, room: &RoomName, members: usize) -> Vec<ConnectionId> {
        let joins: Vec<_> = (0..members).map(|_| join(room, &self.session())).collect();
        let ids = joins.iter().map(|join| join.connection).collect();
        joins.into_iter().for_each(|join| self.registry.do_send(join));
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

/// A user of its own joins the room.
fn join(room: &RoomName, to: &Recipient<ForwardMessage>) -> Join {
    let id = ConnectionId::new();
    let user = UserId::new(id.to_string()).expect("a name");
    Join::new(room.clone(), id, to.clone()).user(user)
}

fn lobby() -> RoomName {
    RoomName::new("lobby").expect("a name")
}

/// Joins of one sample: as many users, in rooms of so many.
const BURST: usize = 50_000;

/// Messages that wait for their answer at a time.
const IN_FLIGHT: usize = 1_000;

/// A system, and the joins that it is to answer.
fn crowd(room_size: usize) -> (Bench, Vec<Join>) {
    let bench = Bench::new();
    let (to, room) = (bench.session(), |n| RoomName::new(format!("room {n}")).expect("a name"));
    let rooms: Vec<_> = (0..BURST / room_size).map(room).collect();
    let joins = (0..BURST).map(|n| join(&rooms[n % rooms.len()], &to)).collect();
    (bench, joins)
}

/// Sends everything, and waits for all answers.
async fn ask<M>(registry: &Addr<RoomRegistry>, messages: impl IntoIterator<Item = M>)
where
    M: Message<Result: Send> + Send + 'static,
    RoomRegistry: Handler<M>,
{
    let answers = messages.into_iter().map(|message| registry.send(message));
    let answers = stream::iter(answers).buffer_unordered(IN_FLIGHT);
    answers.for_each(|answer| async { drop(answer.expect("a registry")) }).await;
}

/// Joins, until each is answered; the mirror writes beside them.
#[divan::bench(args = [BURST, 10], sample_count = 5, sample_size = 1)]
fn joins_answered(bencher: Bencher<'_, '_>, room_size: usize) {
    let bencher = bencher.counter(ItemsCount::new(BURST)).with_inputs(|| crowd(room_size));
    bencher.bench_local_refs(|(bench, joins)| {
        bench.system.block_on(ask(&bench.registry, joins.drain(..)));
    });
}

/// Joins, until the last row is committed.
#[divan::bench(args = [BURST, 10], sample_count = 5, sample_size = 1)]
fn joins_committed(bencher: Bencher<'_, '_>, room_size: usize) {
    let bencher = bencher.counter(ItemsCount::new(BURST)).with_inputs(|| crowd(room_size));
    bencher.bench_local_refs(|(bench, joins)| {
        joins.drain(..).for_each(|join| bench.registry.do_send(join));
        bench.flush();
    });
}

/// Everybody joins, then everybody leaves, until each is answered: items are joins and leaves.
#[divan::bench(args = [BURST, 10], sample_count = 5, sample_size = 1)]
fn joins_and_leaves_answered(bencher: Bencher<'_, '_>, room_size: usize) {
    let bencher = bencher.counter(ItemsCount::new(2 * BURST)).with_inputs(|| crowd(room_size));
    bencher.bench_local_refs(|(bench, joins)| {
        let all: Vec<_> = joins.iter().map(|join| LeaveAll::new(join.connection)).collect();
        bench.system.block_on(async {
            ask(&bench.registry, joins.drain(..)).await;
            ask(&bench.registry, all).await;
        });
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
