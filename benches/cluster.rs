//! What several nodes cost, beside one: `cargo bench --bench cluster --features postgres,redis`.
//!
//! Starts a PostgreSQL and a Redis of its own, and the nodes in this process: what is measured is the
//! way through the two, not that through WebSockets and a proxy. PostgreSQL writes its log to the disk
//! at each commit, as it does unless told otherwise.

#[path = "../tests/common/postgres.rs"]
mod postgres;
#[path = "../tests/common/redis.rs"]
mod redis;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_presence::{testing::Heard, *};
use futures_util::{StreamExt, stream};
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};

use self::{postgres::Postgres, redis::Redis};

const JOINS: usize = 20_000;
/// Joins that wait for their answer at a time.
const JOINING: usize = 1_000;
const ROOMS: usize = 500;
const MESSAGES: u64 = 20_000;
/// Messages that are published and not yet with everybody.
const IN_FLIGHT: u64 = 100;
const MEMBERS: u64 = 10;
const TAKEOVERS: usize = 300;
/// Nothing takes longer, unless it is lost.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        return println!("run it by `cargo bench --bench cluster --features postgres,redis`");
    }
    let system = actix::System::new();
    let postgres = Postgres::with(&[]);
    let redis = Redis::start();
    system.block_on(async {
        let files = tempfile::tempdir().expect("a temporary directory");
        let sqlite = || format!("sqlite://{}/{}.db", files.path().display(), uuid());
        let servers = Servers { postgres: &postgres, redis: &redis };

        println!("cargo bench --bench cluster --features postgres,redis");
        head("joins a second, answered and committed", "", "");
        let rows = [
            ("one node, SQLite", joins(vec![start(&sqlite(), None, "a")]).await),
            ("one node, PostgreSQL", joins(vec![start(&servers.database(), None, "a")]).await),
            ("one of two, PostgreSQL and Redis", joins(servers.nodes().await).await),
        ];
        for (what, rate) in rows {
            println!("  {what:<40}{rate:>8.0}");
        }

        let here = reach(vec![start(&sqlite(), None, "a")]).await;
        let there = reach(servers.nodes().await).await;
        head("from a join to its answer, ms", "median", "p99");
        print_times("one node, SQLite", &here.0);
        print_times("one of two, PostgreSQL and Redis", &there.0);
        head("from a join to the frame at a member, ms", "median", "p99");
        print_times("on the same node, SQLite", &here.1);
        print_times("on the other node", &there.1);

        let here = messages(vec![start(&sqlite(), None, "a")]).await;
        let there = messages(servers.nodes().await).await;
        head(&format!("messages a second to {MEMBERS} members"), "", "lost");
        for (what, (rate, lost)) in [("on the same node", here), ("on the other node", there)] {
            println!("  {what:<40}{rate:>8.0}{lost:>9}");
        }

        let here = takeovers(vec![start(&sqlite(), None, "a")]).await;
        let there = takeovers(servers.nodes().await).await;
        head("until a session's old socket is told, ms", "median", "p99");
        print_times("taken over on the same node, SQLite", &here);
        print_times("taken over by the other node", &there);
    });
}

struct Servers<'a> {
    postgres: &'a Postgres,
    redis: &'a Redis,
}

impl Servers<'_> {
    fn database(&self) -> String {
        self.postgres.fresh_database()
    }

    /// Two nodes that know each other, on nothing that others have used.
    async fn nodes(&self) -> Vec<PresenceHandle> {
        self.redis.command("FLUSHALL");
        let (database, redis) = (self.database(), self.redis.url());
        let nodes = vec![start(&database, Some(&redis), "a"), start(&database, Some(&redis), "b")];
        for node in &nodes {
            let met = async {
                while node.registry().send(GetStatus).await.expect("a registry").nodes < 2 {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(PATIENCE, met).await.expect("nodes that meet");
        }
        nodes
    }
}

fn uuid() -> String {
    ConnectionId::new().to_string()
}

fn start(database: &str, redis: Option<&str>, node: &str) -> PresenceHandle {
    let config = PresenceConfig::new(database).node(node).grace(Duration::from_secs(10));
    let config = redis.into_iter().fold(config, PresenceConfig::redis);
    config.start().expect("a node")
}

async fn end(nodes: Vec<PresenceHandle>) {
    for node in nodes {
        node.shutdown(PATIENCE).await.expect("everything is written");
    }
}

fn room(name: impl std::fmt::Display) -> RoomName {
    RoomName::new(name.to_string()).expect("a name")
}

fn user(name: impl std::fmt::Display) -> UserId {
    UserId::new(name.to_string()).expect("a name")
}

async fn enter(node: &PresenceHandle, join: Join) {
    let joined = timeout(PATIENCE, node.registry().send(join)).await;
    joined.expect("an answer").expect("a registry").expect("a place");
}

/// Joins on the first node into rooms of ten, each of a user of its own, until the rows are committed.
async fn joins(nodes: Vec<PresenceHandle>) -> f64 {
    let registry = nodes[0].registry();
    let (to, _heard) = Tap::start();
    let joining = |n: usize| {
        let id = ConnectionId::new();
        let join = Join::new(room(n % (JOINS / 10)), id, to.clone().recipient());
        let answer = registry.send(join.user(user(id)));
        async { answer.await.expect("a registry").expect("a place") }
    };
    let started = Instant::now();
    stream::iter((0..JOINS).map(joining)).buffer_unordered(JOINING).for_each(|_| async {}).await;
    registry.send(Flush).await.expect("a registry").expect("a database");
    let took = started.elapsed();
    end(nodes).await;
    JOINS as f64 / took.as_secs_f64()
}

/// How long it takes from a join on the first node until it is answered, and until a member on the
/// last one has the frame that tells of it. One at a time, in rooms that both nodes know.
async fn reach(nodes: Vec<PresenceHandle>) -> (Vec<Duration>, Vec<Duration>) {
    let (first, last) = (&nodes[0], &nodes[nodes.len() - 1]);
    let (member, mut heard) = Tap::start();
    for n in 0..ROOMS {
        let recipient = || member.clone().recipient();
        enter(first, Join::new(room(n), ConnectionId::new(), recipient())).await;
        let listener = Join::new(room(n), ConnectionId::new(), recipient());
        enter(last, listener.dialect(Dialect::Json(Feed::Diff))).await;
    }
    for node in &nodes {
        node.registry().send(Flush).await.expect("a registry").expect("a database");
    }
    // A room's frames are at least 54 ms apart, so that many changes make few frames.
    sleep(Duration::from_millis(500)).await;
    while heard.try_recv().is_ok() {}

    let (mut answers, mut frames) = (Vec::new(), Vec::new());
    for n in 0..ROOMS {
        let name = uuid();
        let join = Join::new(room(n), ConnectionId::new(), member.clone().recipient());
        let started = Instant::now();
        let answer = first.registry().send(join.user(user(&name)));
        let answered = async {
            answer.await.expect("a registry").expect("a place");
            started.elapsed()
        };
        let told = async {
            loop {
                match heard.recv().await {
                    Some((at, Heard::Frame(frame))) if frame.payload.contains(&name) => return at,
                    Some(_) => {}
                    None => unreachable!("the tap is held"),
                }
            }
        };
        let both = async { tokio::join!(answered, told) };
        let (answered, told) = timeout(PATIENCE, both).await.expect("a frame");
        answers.push(answered);
        frames.push(told - started);
    }
    end(nodes).await;
    (answers, frames)
}

/// Messages published on the first node, as fast as the members on the last one get them; and how many
/// did not come.
async fn messages(nodes: Vec<PresenceHandle>) -> (f64, u64) {
    let (first, last) = (nodes[0].registry(), &nodes[nodes.len() - 1]);
    let got = Arc::new(Got::default());
    let sessions = Arbiter::new().handle();
    for _ in 0..MEMBERS {
        let got = got.clone();
        let member = Counter::start_in_arbiter(&sessions, |ctx| {
            ctx.set_mailbox_capacity(256);
            Counter(got)
        });
        enter(last, Join::new(room("room"), ConnectionId::new(), member.recipient())).await;
    }
    let started = Instant::now();
    let mut lost = 0;
    for sent in 1..=MESSAGES {
        first.do_send(Publish::new(room("room"), "hello"));
        let due = sent.saturating_sub(IN_FLIGHT) * MEMBERS;
        if timeout(PATIENCE, got.wait_for(due.saturating_sub(lost))).await.is_err() {
            lost = due - got.count.load(Ordering::Acquire);
        }
    }
    let all = MESSAGES * MEMBERS;
    let _ = timeout(PATIENCE, got.wait_for(all - lost)).await;
    let took = started.elapsed();
    let count = got.count.load(Ordering::Acquire);
    end(nodes).await;
    sessions.stop();
    ((count / MEMBERS) as f64 / took.as_secs_f64(), all - count)
}

/// How long it takes from a join on the last node until the socket of the same session on the first is
/// told to close.
async fn takeovers(nodes: Vec<PresenceHandle>) -> Vec<Duration> {
    let (first, last) = (&nodes[0], &nodes[nodes.len() - 1]);
    let mut times = Vec::new();
    for n in 0..TAKEOVERS {
        let (old, mut heard) = Tap::start();
        let (new, _) = Tap::start();
        let key = SessionKey::new(uuid()).expect("a key");
        let join = |to: &Addr<Tap>| {
            Join::new(room(n % 10), ConnectionId::new(), to.clone().recipient())
                .user(user(n))
                .session(key.clone())
                .disconnect(to.clone().recipient())
        };
        enter(first, join(&old)).await;
        let started = Instant::now();
        enter(last, join(&new)).await;
        let told = async {
            while let Some((at, heard)) = heard.recv().await {
                if matches!(heard, Heard::Close(_)) {
                    return at;
                }
            }
            unreachable!("the tap is held")
        };
        times.push(timeout(PATIENCE, told).await.expect("an order to close") - started);
    }
    end(nodes).await;
    times
}

fn head(what: &str, first: &str, second: &str) {
    println!("\n{}", format!("{what:<42}{first:>8}{second:>9}").trim_end());
}

fn print_times(what: &str, times: &[Duration]) {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    let [median, p99] = [at(50), at(99)].map(|time| time.as_secs_f64() * 1e3);
    println!("  {what:<40}{median:>8.2}{p99:>9.2}");
}

/// A session that notes when it is sent what.
struct Tap(mpsc::UnboundedSender<(Instant, Heard)>);

impl Tap {
    fn start() -> (Addr<Self>, mpsc::UnboundedReceiver<(Instant, Heard)>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let tap = Self::create(|ctx| {
            ctx.set_mailbox_capacity(4096);
            Self(sender)
        });
        (tap, receiver)
    }

    fn note(&self, heard: Heard) {
        // Who has measured does not listen any more.
        let _ = self.0.send((Instant::now(), heard));
    }
}

impl Actor for Tap {
    type Context = Context<Self>;
}

impl Handler<ForwardMessage> for Tap {
    type Result = ();
    fn handle(&mut self, msg: ForwardMessage, _: &mut Context<Self>) {
        self.note(Heard::Frame(msg));
    }
}

impl Handler<Disconnect> for Tap {
    type Result = ();
    fn handle(&mut self, msg: Disconnect, _: &mut Context<Self>) {
        self.note(Heard::Close(msg));
    }
}

/// What all members together have got.
#[derive(Default)]
struct Got {
    count: AtomicU64,
    changed: Notify,
}

impl Got {
    async fn wait_for(&self, count: u64) {
        // The permit of a notification that came first is kept, and there is one who waits.
        while self.count.load(Ordering::Acquire) < count {
            self.changed.notified().await;
        }
    }
}

/// A session that counts what it gets.
struct Counter(Arc<Got>);

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<ForwardMessage> for Counter {
    type Result = ();
    fn handle(&mut self, _: ForwardMessage, _: &mut Context<Self>) {
        self.0.count.fetch_add(1, Ordering::Release);
        self.0.changed.notify_one();
    }
}
