//! Rooms in which somebody joins or leaves every 20 ms: how long a newcomer waits for its first list, and
//! the others until they hear of a change.
//!
//! A few listeners, evenly chosen, are decoded; of the others the frames are only counted. A newcomer
//! joins after the handshake (JSON), or with a socket that is open already (Phoenix), and leaves when as
//! many have joined after it as there are churners, and it has its list.

use std::{
    collections::{HashMap, VecDeque},
    io,
    time::{Duration, Instant},
};

use super::{
    crowd::{Behaviour, Client, Crowd},
    dialect::Dialect,
    fold::Frames,
    plan::{Plan, Report, Spread},
    process::Meter,
};

/// How far apart the changes are.
const APART: Duration = Duration::from_millis(20);
/// How many members come and go, in a large room: each stays for two seconds.
const MAX_CHURNERS: usize = 50;
/// How many listeners are decoded.
const SAMPLES: usize = 8;
/// How many sockets of Phoenix are open and have not joined: enough for a server that does not answer
/// handshakes for two seconds.
const OPEN_AHEAD: usize = 50;
/// How long the room rests after everybody has come: the lists of such a crowd may delay the next ones.
const REST: Duration = Duration::from_secs(2);
/// The longest wait for what the last changes cause. A server holds it back for a second at most, but may
/// have to wait for its core.
const LAST_LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether there is something to measure.
pub fn check(members: usize, dialect: Dialect) -> Result<(), String> {
    if members < 2 {
        return Err("a room of enter has at least 2 --members".to_owned());
    }
    match dialect {
        Dialect::Full | Dialect::Diff | Dialect::Phoenix => Ok(()),
        _ => Err(format!("there are no lists to wait for with {}", dialect.name())),
    }
}

/// How many come in this time, with those of Phoenix who are ready to.
pub fn newcomers(time: Duration) -> usize {
    (changes(time) as usize).div_ceil(2) + OPEN_AHEAD
}

fn changes(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / APART.as_millis()).unwrap_or(u32::MAX)
}

/// A join or a leave that not all samples have seen.
struct Change {
    client: usize,
    is_join: bool,
    sent: Instant,
    /// One bit for each sample.
    unseen: u32,
}

/// A room, while somebody joins or leaves.
struct Entering<'a> {
    plan: &'a Plan,
    room: String,
    /// The clients below this listen all the time.
    listeners: usize,
    /// Those of them that are decoded, in order.
    samples: Vec<usize>,
    frames: Frames,
    /// Who is going to leave, in this order.
    churners: VecDeque<usize>,
    /// Sockets of Phoenix that are open and have not joined.
    open: VecDeque<usize>,
    /// When those who have no list yet asked for it.
    waiting: HashMap<usize, Instant>,
    changes: Vec<Change>,
    is_over: bool,
    counts: Counts,
}

/// What is counted; times are in seconds.
#[derive(Default)]
struct Counts {
    lists: Vec<f64>,
    seen: Vec<f64>,
    /// Frames of all listeners.
    frames: usize,
    /// First lists without the newcomer.
    wrong: usize,
    /// Samples that did not hear of somebody before they had left again.
    cancelled: u32,
    /// Newcomers of Phoenix for whom there was no open socket.
    not_ready: usize,
}

impl<'a> Entering<'a> {
    fn new(plan: &'a Plan) -> Self {
        let listeners = plan.connections - (plan.connections / 2).min(MAX_CHURNERS);
        let samples = SAMPLES.min(listeners);
        Self {
            plan,
            room: plan.room(0),
            listeners,
            samples: (0..samples).map(|sample| sample * listeners / samples).collect(),
            frames: Frames::default(),
            churners: (listeners..plan.connections).collect(),
            open: VecDeque::new(),
            waiting: HashMap::new(),
            changes: Vec::new(),
            is_over: false,
            counts: Counts::default(),
        }
    }

    /// Opens a socket, which is to join with the handshake or later.
    fn add(&self, crowd: &mut Crowd) {
        crowd.add(&self.plan.dialect.path(&self.room, crowd.len()));
    }

    /// Somebody joins.
    fn join(&mut self, crowd: &mut Crowd) {
        self.add(crowd);
        let Some(join) = self.plan.dialect.join(&self.room) else { return };
        let ready = self.open.pop_front();
        let Some((id, client)) = ready.and_then(|id| Some((id, crowd.client(id)?))) else {
            self.counts.not_ready += 1;
            return;
        };
        self.joins(id, Instant::now());
        client.send(&join);
    }

    fn joins(&mut self, id: usize, now: Instant) {
        self.waiting.insert(id, now);
        self.churners.push_back(id);
        let unseen = (1 << self.samples.len()) - 1;
        self.changes.push(Change { client: id, is_join: true, sent: now, unseen });
    }

    /// Of those who have their list, the one who has been there longest leaves.
    fn leave(&mut self, crowd: &mut Crowd) {
        let next = self.churners.iter().position(|id| !self.waiting.contains_key(id));
        let Some(id) = next.and_then(|next| self.churners.remove(next)) else { return };
        let Some(client) = crowd.client(id) else { return };
        let mut unseen = (1 << self.samples.len()) - 1;
        // Whoever has not heard of the join need not hear of it any more, nor of the leave.
        if let Some(at) = self.changes.iter().position(|change| change.client == id) {
            let join = self.changes.swap_remove(at);
            self.counts.cancelled += join.unseen.count_ones();
            unseen &= !join.unseen;
        }
        if unseen != 0 {
            let sent = Instant::now();
            self.changes.push(Change { client: id, is_join: false, sent, unseen });
        }
        client.leave(&self.plan.dialect.leave(&self.room));
    }

    /// A newcomer has its first list.
    fn listed(&mut self, id: usize, read_at: Instant, text: &[u8]) {
        let Some(asked) = self.waiting.remove(&id) else { return };
        self.counts.lists.push((read_at - asked).as_secs_f64());
        self.counts.wrong += usize::from(!self.frames.read(text).shows_join(id));
    }

    /// A sample has a frame.
    fn hear(&mut self, sample: usize, read_at: Instant, text: &[u8]) {
        let (frame, bit) = (self.frames.read(text), 1 << sample);
        for change in self.changes.iter_mut().filter(|change| change.unseen & bit != 0) {
            let is_shown = match change.is_join {
                true => frame.shows_join(change.client),
                false => frame.shows_leave(change.client),
            };
            if is_shown {
                change.unseen &= !bit;
                self.counts.seen.push((read_at - change.sent).as_secs_f64());
            }
        }
        self.changes.retain(|change| change.unseen != 0);
    }
}

impl Behaviour for Entering<'_> {
    fn asked(&mut self, id: usize, now: Instant) {
        if self.plan.dialect != Dialect::Phoenix {
            self.joins(id, now);
        }
    }

    fn opened(&mut self, id: usize, _: &mut Client) {
        if self.plan.dialect == Dialect::Phoenix {
            self.open.push_back(id);
        }
    }

    fn text(&mut self, id: usize, client: &mut Client, text: &[u8]) {
        if id < self.listeners {
            self.counts.frames += 1;
            if let Ok(sample) = self.samples.binary_search(&id) {
                self.hear(sample, client.read_at(), text);
            }
        } else if self.plan.dialect.is_state(text) {
            self.listed(id, client.read_at(), text);
        }
    }

    fn done(&self, _: usize) -> bool {
        self.is_over && self.waiting.is_empty() && self.changes.is_empty()
    }
}

/// How long newcomers wait for their first list, and the others until they hear of a change.
pub fn enter(plan: &Plan) -> io::Result<Report> {
    let mut crowd = plan.crowd()?;
    let missing = plan.join(&mut crowd)?.missing();
    let mut entering = Entering::new(plan);
    if plan.dialect == Dialect::Phoenix {
        (0..OPEN_AHEAD).for_each(|_| entering.add(&mut crowd));
    }
    crowd.run(Instant::now() + REST, &mut entering)?;
    entering.counts = Counts::default();

    let (begun, meter) = (Instant::now(), Meter::start(plan.pid));
    let changes = changes(plan.seconds);
    for change in 0..changes {
        crowd.run(begun + APART * change, &mut entering)?;
        match change % 2 {
            0 => entering.join(&mut crowd),
            _ => entering.leave(&mut crowd),
        }
    }
    entering.is_over = true;
    crowd.run(Instant::now() + LAST_LIST_TIMEOUT.min(plan.timeout), &mut entering)?;
    let (seconds, busy) = (begun.elapsed().as_secs_f64(), meter.read());

    let Entering { counts, waiting, changes: unseen, listeners, .. } = entering;
    let failures =
        missing.max(crowd.lost()) + counts.wrong + waiting.len() + counts.not_ready + unseen.len();
    if counts.wrong > 0 {
        eprintln!("{} first lists did not contain the newcomer", counts.wrong);
    }
    crowd.leave();
    let frames = counts.frames as f64 / listeners as f64 / seconds;
    let [lists, seen] = [counts.lists, counts.seen].map(Spread::new);
    Ok(plan
        .report("enter", busy, failures)
        .with("changes", changes)
        .with("lists", lists.len())
        .with("lists_wrong", counts.wrong)
        .with("lists_missing", waiting.len())
        .with("list_ms_median", lists.ms(0.5))
        .with("list_ms_p99", lists.ms(0.99))
        .with("seen", seen.len())
        .with("seen_cancelled", counts.cancelled)
        .with("seen_ms_median", seen.ms(0.5))
        .with("seen_ms_p99", seen.ms(0.99))
        .with("frames_per_listener_second", (frames * 10.0).round() / 10.0))
}
