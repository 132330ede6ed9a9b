//! What grows with what, as tables to be quoted: `cargo bench --bench growth`.
//!
//! Time is given as the median and the least of several runs. What is to be flat is shown beside a
//! look into a plain `HashMap` with as many keys, which has to wait for memory as well.

use std::{
    collections::HashMap,
    fs,
    hint::black_box,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_presence::*;

const SIZES: [usize; 3] = [10_000, 100_000, 1_000_000];
const ROOM: usize = 10;
const RUNS: usize = 15;
/// Operations in one run.
const MANY: usize = 20_000;

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        return println!("run it by `cargo bench --bench growth`");
    }
    println!("ns for each operation: median (least) of {RUNS} runs of {MANY}; rooms of {ROOM}\n");
    println!("| presences | touch | count | a `HashMap`, to compare |\n|--:|--:|--:|--:|");
    SIZES.into_iter().for_each(flat);

    println!("\nµs for a prune: median (least) of {RUNS} runs; rooms of {ROOM}\n");
    println!("| expired | of 100,000 | of 1,000,000 |\n|--:|--:|--:|");
    let mut crowds = [100_000, 1_000_000].map(Crowd::gather);
    for expired in [100, 1_000, 10_000] {
        let [few, many] = crowds.each_mut().map(|crowd| crowd.prune(expired));
        println!("| {expired} | {few} | {many} |");
    }
    drop(crowds);

    println!("\nµs of the registry's thread for a broadcast: median (least) of {RUNS} runs\n");
    println!("| members | sessions on 1 thread | on 2 threads | on 4 threads |\n|--:|--:|--:|--:|");
    for members in [10, 1_000, 10_000] {
        let [one, two, four] = [1, 2, 4].map(|threads| broadcasts(members, threads));
        println!("| {members} | {one} | {two} | {four} |");
    }
}

/// The median and the least of runs, which count so many things each.
fn report(mut runs: Vec<Duration>, things: f64) -> String {
    runs.sort_unstable();
    let each = |run: Duration| run.as_secs_f64() / things;
    format!("{:.1} ({:.1})", each(runs[runs.len() / 2]), each(runs[0]))
}

/// The time of each of the runs.
fn timed(mut run: impl FnMut()) -> Vec<Duration> {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..RUNS).map(time).collect()
}

fn flat(presences: usize) {
    let mut crowd = Crowd::gather(presences);
    let numbers: HashMap<_, _> = crowd.connections.iter().zip(0_usize..).collect();
    // The same for all, out of order.
    let mut next = 0;
    let mut index = || {
        next = scatter(next, presences);
        next
    };

    let compare = timed(|| {
        (0..MANY).for_each(|_| {
            black_box(numbers[&crowd.connections[index()]]);
        })
    });
    let rooms = &crowd.rooms;
    let count = timed(|| {
        (0..MANY).for_each(|_| {
            black_box(rooms.occupancy(&crowd.names[index() / ROOM]));
        })
    });
    let touch = timed(|| {
        (0..MANY).for_each(|_| {
            crowd.time += 1;
            let (connection, now) = (crowd.connections[index()], at(crowd.time));
            black_box(crowd.rooms.touch(connection, Activity::Frame, now));
        })
    });
    let nanos = MANY as f64 * 1e-9;
    let [touch, count, compare] = [touch, count, compare].map(|runs| report(runs, nanos));
    println!("| {presences} | {touch} | {count} | {compare} |");
}

/// Another place for each, far from the one before.
fn scatter(index: usize, length: usize) -> usize {
    (index + 7_654_321) % length
}

fn at(micros: u64) -> Moment {
    Moment { monotonic: micros, wall: 0 }
}

/// Rooms of ten, in which everybody was last heard of at a time of their own, out of order.
struct Crowd {
    rooms: Rooms,
    names: Vec<RoomName>,
    users: Vec<UserId>,
    connections: Vec<ConnectionId>,
    /// Who was heard of when: by age, the oldest first.
    heard: std::collections::VecDeque<usize>,
    time: u64,
}

impl Crowd {
    fn gather(presences: usize) -> Self {
        let name = |i| RoomName::new(format!("room-{i}")).expect("a name");
        let user = |i| UserId::new(format!("{i}-member")).expect("a name");
        let mut crowd = Self {
            rooms: Rooms::new(Limits::default()),
            names: (0..presences / ROOM).map(name).collect(),
            users: (0..presences).map(user).collect(),
            connections: (0..presences).map(|_| ConnectionId::new()).collect(),
            heard: Default::default(),
            time: 0,
        };
        (0..presences).for_each(|index| crowd.join(index));
        crowd.heard.clear();
        let mut index = 0;
        for _ in 0..presences {
            index = scatter(index, presences);
            crowd.time += 1;
            crowd.rooms.touch(crowd.connections[index], Activity::Frame, at(crowd.time));
            crowd.heard.push_back(index);
        }
        crowd
    }

    fn join(&mut self, index: usize) {
        self.time += 1;
        let (room, user) = (&self.names[index / ROOM], self.users[index].clone());
        let (connection, now) = (self.connections[index], at(self.time));
        self.rooms.join(room, connection, Some(user), Info::EMPTY, now).expect("no limit");
        self.heard.push_back(index);
    }

    /// So many are removed; they come back before the next run.
    fn prune(&mut self, expired: usize) -> String {
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            // One was heard of in each microsecond.
            let (now, age) =
                (at(self.time), Duration::from_micros((self.heard.len() - expired) as u64 - 1));
            let start = Instant::now();
            let diffs = self.rooms.prune(now, age);
            runs.push(start.elapsed());
            assert_eq!(diffs.iter().map(|diff| diff.leaves.len()).sum::<usize>(), expired);
            drop(diffs);
            for _ in 0..expired {
                let index = self.heard.pop_front().expect("as many as expired");
                self.join(index);
            }
        }
        report(runs, 1e-6)
    }
}

/// A session that counts what it gets.
struct Session {
    me: Connection,
    room: RoomName,
    heard: Arc<AtomicUsize>,
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        self.me.registry().do_send(self.me.join(self.room.clone(), ctx.address()));
    }
}

impl Handler<ForwardMessage> for Session {
    type Result = ();
    fn handle(&mut self, _: ForwardMessage, _: &mut Context<Self>) {
        self.heard.fetch_add(1, Ordering::Release);
    }
}

impl Handler<Disconnect> for Session {
    type Result = ();
    fn handle(&mut self, _: Disconnect, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

/// The processor time of the registry's thread for each broadcast to a room, whose sessions are on so
/// many other threads.
fn broadcasts(members: usize, threads: usize) -> String {
    const BURST: usize = 100;

    let system = System::new();
    let thread = Arc::new(Mutex::new(PathBuf::new()));
    let heard = Arc::new(AtomicUsize::new(0));
    let room = RoomName::new("lobby").expect("a name");
    system.block_on(async {
        // The hook is asked on the registry's thread.
        let found = thread.clone();
        let look = move |_: &RoomName, _: Option<&UserId>, _: &Info| {
            *found.lock().expect("no panic") =
                fs::canonicalize("/proc/thread-self").expect("Linux");
            Decision::Allow
        };
        let config = PresenceConfig::new("sqlite::memory:").authorize(look);
        let presence = config.start().expect("a database in memory");
        let registry = presence.registry();
        let arbiters: Vec<_> = (0..threads).map(|_| Arbiter::new()).collect();
        for index in 0..members {
            let me = Connection::new(registry.clone());
            let session = Session { me, room: room.clone(), heard: heard.clone() };
            Session::start_in_arbiter(&arbiters[index % threads].handle(), |_| session);
        }
        until(async || {
            let occupancy = registry.send(GetOccupancy { room: room.clone() }).await;
            occupancy.expect("a registry").expect("a single node").connections == members
        })
        .await;
        registry.send(Flush).await.expect("a registry").expect("a database");

        let schedstat = thread.lock().expect("no panic").join("schedstat");
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let before = on_processor(&schedstat);
            for _ in 0..BURST {
                // Answered when all threads have handed it out.
                let taken = registry.send(Publish::new(room.clone(), "hello")).await;
                assert_eq!(taken.expect("a registry"), Ok(members));
            }
            runs.push(on_processor(&schedstat) - before);
        }
        for arbiter in arbiters {
            arbiter.stop();
            arbiter.join().expect("no panic");
        }
        presence.shutdown(Duration::from_secs(10)).await.expect("everything is written");
        report(runs, BURST as f64 * 1e-6)
    })
}

/// How long a thread that waits now was on a processor.
fn on_processor(schedstat: &PathBuf) -> Duration {
    let stat = fs::read_to_string(schedstat).expect("Linux");
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("a number"))
}

async fn until(mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not come");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
