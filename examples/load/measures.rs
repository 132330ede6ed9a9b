//! What is measured, and how.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::{
    crowd::{Behaviour, Client, Crowd},
    dialect::{Dialect, heartbeat, is_answer},
    flood::{self, Flood},
    fold::{Frames, Knowledge},
    process::{Busy, Meter, resident},
};

/// The longest that a server holds back who is there, and then some.
const TRAILING: Duration = Duration::from_millis(700);

/// What to do, and how much of it.
pub struct Plan {
    pub server: SocketAddr,
    pub dialect: Dialect,
    pub connections: usize,
    pub room_size: usize,
    pub spread: bool,
    pub in_flight: usize,
    pub storm: usize,
    pub seconds: Duration,
    pub settle: Duration,
    pub timeout: Duration,
    pub pid: Option<u32>,
    pub flood: Flood,
    pub prefix: String,
}

impl Plan {
    fn room(&self, id: usize) -> String {
        let rooms = self.connections.div_ceil(self.room_size);
        let room = if self.spread { id % rooms } else { id / self.room_size };
        format!("{}-{room}", self.prefix)
    }

    fn crowd(&self) -> io::Result<Crowd> {
        let path = |id| self.dialect.path(&self.room(id), id);
        Crowd::new(self.server, (0..self.connections).map(path).collect(), self.in_flight)
    }

    /// How long to wait for what the server holds back.
    fn trailing(&self) -> Duration {
        self.settle.min(TRAILING)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Connects everybody, and waits until each has been told who is there.
    fn join(&self, crowd: &mut Crowd) -> io::Result<Joining<'_>> {
        let mut joining = Joining::new(self);
        crowd.run(self.deadline(), &mut joining)?;
        Ok(joining)
    }

    fn report(&self, measure: &'static str, busy: Busy, failures: usize) -> Report {
        let (mut fields, [client, server]) = (Map::new(), busy.percents());
        fields.insert("measure".into(), measure.into());
        fields.insert("dialect".into(), self.dialect.name().into());
        fields.insert("connections".into(), self.connections.into());
        fields.insert("failures".into(), failures.into());
        fields.insert("client_cpu".into(), client.into());
        fields.insert("server_cpu".into(), server.into());
        Report { fields, failures }
    }
}

/// What came out.
pub struct Report {
    fields: Map<String, Value>,
    pub failures: usize,
}

impl Report {
    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }

    pub fn to_json(&self) -> Value {
        json!(self.fields)
    }
}

/// Everybody joins.
struct Joining<'a> {
    plan: &'a Plan,
    has_joined: Vec<bool>,
    opened: usize,
    joined: usize,
    /// When the last handshake was answered, and when the last one had joined.
    last: [Instant; 2],
}

impl<'a> Joining<'a> {
    fn new(plan: &'a Plan) -> Self {
        let has_joined = vec![false; plan.connections];
        Self { plan, has_joined, opened: 0, joined: 0, last: [Instant::now(); 2] }
    }

    fn missing(&self) -> usize {
        self.plan.connections - self.joined
    }

    fn joined(&mut self, id: usize) {
        if !std::mem::replace(&mut self.has_joined[id], true) {
            self.joined += 1;
            if self.missing() == 0 {
                self.last[1] = Instant::now();
            }
        }
    }
}

impl Behaviour for Joining<'_> {
    fn opened(&mut self, id: usize, client: &mut Client) {
        self.opened += 1;
        if self.opened == self.plan.connections {
            self.last[0] = Instant::now();
        }
        if let Some(join) = self.plan.dialect.join(&self.plan.room(id)) {
            client.send(&join);
        }
        if !self.plan.dialect.is_told() {
            self.joined(id);
        }
    }

    fn text(&mut self, id: usize, _: &mut Client, text: &[u8]) {
        if self.plan.dialect.is_state(text) {
            self.joined(id);
        }
    }

    fn done(&self, lost: usize) -> bool {
        self.joined + lost >= self.plan.connections
    }
}

/// Listens until its time is up.
struct Listening;

impl Behaviour for Listening {
    fn text(&mut self, _: usize, _: &mut Client, _: &[u8]) {}
    fn done(&self, _: usize) -> bool {
        false
    }
}

fn listen(crowd: &mut Crowd, time: Duration) -> io::Result<()> {
    crowd.run(Instant::now() + time, &mut Listening).map(drop)
}

/// How fast clients connect and join: from the first to connect to the last to be told who is there.
pub fn connect(plan: &Plan) -> io::Result<Report> {
    let mut crowd = plan.crowd()?;
    let (begun, meter) = (Instant::now(), Meter::start(plan.pid));
    let joining = plan.join(&mut crowd)?;
    let busy = meter.read();
    let [handshakes, joins] = joining.last.map(|last| (last - begun).as_secs_f64());
    // Of those who did not all come there is no rate.
    let all = joining.missing() == 0;
    let rate = |seconds: f64| all.then(|| (plan.connections as f64 / seconds).round());
    crowd.leave();
    Ok(plan
        .report("connect", busy, joining.missing())
        .with("room_size", plan.room_size)
        .with("handshakes_per_second", rate(handshakes))
        .with("joins_per_second", rate(joins))
        .with("per_server_second", busy.per_server_second(plan.connections as f64))
        .with("ms", millis(joins)))
}

/// Everybody sends a heartbeat as soon as the one before is answered.
struct Beating {
    beat: Vec<u8>,
    answers: u64,
}

impl Behaviour for Beating {
    fn text(&mut self, _: usize, client: &mut Client, text: &[u8]) {
        if is_answer(text) {
            self.answers += 1;
            client.send(&self.beat);
        }
    }

    fn done(&self, lost: usize) -> bool {
        lost > 0
    }
}

/// How many heartbeats are answered.
pub fn heartbeats(plan: &Plan) -> io::Result<Report> {
    let mut crowd = plan.crowd()?;
    let missing = plan.join(&mut crowd)?.missing();
    listen(&mut crowd, plan.trailing())?;
    let mut beating = Beating { beat: heartbeat(), answers: 0 };
    let (begun, meter) = (Instant::now(), Meter::start(plan.pid));
    for id in 0..plan.connections {
        if let Some(client) = crowd.client(id) {
            client.send(&beating.beat);
        }
    }
    crowd.run(begun + plan.seconds, &mut beating)?;
    let (seconds, busy) = (begun.elapsed().as_secs_f64(), meter.read());
    let failures = missing.max(crowd.lost()) + usize::from(beating.answers == 0);
    let rate = (beating.answers as f64 / seconds).round();
    crowd.leave();
    Ok(plan
        .report("heartbeats", busy, failures)
        .with("heartbeats_per_second", rate)
        .with("per_server_second", busy.per_server_second(beating.answers as f64))
        .with("ms", millis(seconds)))
}

/// Everybody joins one room and learns who is there.
struct Storm<'a> {
    joining: Joining<'a>,
    frames: Frames,
    clients: Vec<Knowledge>,
    /// How many know everybody.
    complete: usize,
}

impl<'a> Storm<'a> {
    fn new(plan: &'a Plan) -> Self {
        let clients = vec![Knowledge::default(); plan.connections];
        Self { joining: Joining::new(plan), frames: Frames::default(), clients, complete: 0 }
    }

    /// The median and the largest of something about the clients.
    fn spread(&self, what: impl Fn(&Knowledge) -> usize) -> [usize; 2] {
        let mut all: Vec<_> = self.clients.iter().map(what).collect();
        all.sort_unstable();
        [0.5, 1.0].map(|part| quantile(&all, part).unwrap_or_default())
    }
}

impl Behaviour for Storm<'_> {
    fn opened(&mut self, id: usize, client: &mut Client) {
        self.joining.opened(id, client);
    }

    fn text(&mut self, id: usize, client: &mut Client, text: &[u8]) {
        self.joining.text(id, client, text);
        let all = self.joining.plan.connections;
        let knowledge = &mut self.clients[id];
        let before = knowledge.known() == all;
        if knowledge.fold(&mut self.frames, text) {
            let after = knowledge.known() == all;
            self.complete = self.complete + usize::from(after) - usize::from(before);
        }
    }

    fn done(&self, lost: usize) -> bool {
        // Who is lost has left the room, so nobody will know all.
        lost > 0 || self.complete == self.clients.len()
    }
}

/// How long until all who join one room at once know all, from the first to connect.
pub fn storm(plan: &Plan) -> io::Result<Report> {
    let plan = &Plan { in_flight: plan.connections, prefix: plan.prefix.clone(), ..*plan };
    let mut crowd = plan.crowd()?;
    let mut storm = Storm::new(plan);
    let (begun, meter) = (Instant::now(), Meter::start(plan.pid));
    crowd.run(plan.deadline(), &mut storm)?;
    let (seconds, busy) = (begun.elapsed().as_secs_f64(), meter.read());
    let [opened, joined] = storm.joining.last.map(|last| (last - begun).as_secs_f64());
    let unaware = plan.connections - storm.complete;
    // What comes now is more of what all know.
    let mut trailing = Trailing(storm);
    crowd.run(Instant::now() + plan.trailing(), &mut trailing)?;
    let Trailing(storm) = trailing;
    let [frames, bytes] = [storm.spread(|one| one.frames), storm.spread(|one| one.bytes)];
    let pairs: usize = storm.clients.iter().map(Knowledge::known).sum();
    crowd.leave();
    Ok(plan
        .report("storm", busy, unaware)
        .with("ms", millis(seconds))
        .with("handshakes_ms", millis(opened))
        .with("states_ms", millis(joined))
        .with("pairs", pairs)
        .with("frames_median", frames[0])
        .with("frames_max", frames[1])
        .with("bytes_median", bytes[0])
        .with("bytes_max", bytes[1]))
}

/// A storm until its time is up.
struct Trailing<'a>(Storm<'a>);

impl Behaviour for Trailing<'_> {
    fn text(&mut self, id: usize, client: &mut Client, text: &[u8]) {
        self.0.text(id, client, text);
    }

    fn done(&self, _: usize) -> bool {
        false
    }
}

/// A message is on its way to everybody.
struct Hearing {
    begins: Vec<u8>,
    heard: usize,
    members: usize,
}

impl Behaviour for Hearing {
    fn text(&mut self, _: usize, _: &mut Client, text: &[u8]) {
        self.heard += usize::from(text.starts_with(&self.begins));
    }

    fn done(&self, lost: usize) -> bool {
        lost > 0 || self.heard == self.members
    }
}

/// How fast messages reach everybody in a room, when the next one follows as soon as all have one.
pub fn fanout(plan: &Plan) -> io::Result<Report> {
    let mut crowd = plan.crowd()?;
    let missing = plan.join(&mut crowd)?.missing();
    listen(&mut crowd, plan.trailing())?;
    let room = plan.room(0);
    let (message, begins) = (plan.dialect.message(&room), plan.dialect.message_begins(&room));
    let mut hearing =
        Hearing { begins: begins.into_bytes(), heard: 0, members: plan.connections - missing };
    let (begun, meter, mut latencies) = (Instant::now(), Meter::start(plan.pid), Vec::new());
    let mut failures = missing;
    while failures == 0 && begun.elapsed() < plan.seconds {
        let sent = Instant::now();
        hearing.heard = 0;
        if let Some(client) = crowd.client(latencies.len() % plan.connections) {
            client.send(&message);
        }
        crowd.run(plan.deadline(), &mut hearing)?;
        failures += hearing.members.abs_diff(hearing.heard).max(crowd.lost());
        latencies.push(sent.elapsed().as_secs_f64());
    }
    let (seconds, busy) = (begun.elapsed().as_secs_f64(), meter.read());
    latencies.sort_unstable_by(f64::total_cmp);
    let latency = |part| quantile(&latencies, part).map(millis);
    let deliveries = (latencies.len() * hearing.members) as f64;
    crowd.leave();
    Ok(plan
        .report("fanout", busy, failures)
        .with("messages", latencies.len())
        .with("deliveries_per_second", (deliveries / seconds).round())
        .with("per_server_second", busy.per_server_second(deliveries))
        .with("latency_ms_median", latency(0.5))
        .with("latency_ms_p99", latency(0.99)))
}

/// How long a heartbeat takes while somebody else floods the server.
pub fn neighbours(plan: &Plan) -> io::Result<Report> {
    let mut crowd = plan.crowd()?;
    let missing = plan.join(&mut crowd)?.missing();
    listen(&mut crowd, plan.trailing())?;
    let flooding = plan.flood.start(plan.server)?;
    let meter = Meter::start(plan.pid);
    let took = flood::heartbeats(&mut crowd, plan.connections, plan.seconds)?;
    let (busy, flooded) = (meter.read(), flooding.map(flood::Flooding::stop).transpose()?);
    let latency = |part| quantile(&took, part).map(millis);
    let failures = missing.max(crowd.lost());
    crowd.leave();
    Ok(plan
        .report("neighbours", busy, failures)
        .with("flood", plan.flood.name())
        .with("flood_bytes", flooded)
        .with("heartbeats", took.len())
        .with("latency_ms_median", latency(0.5))
        .with("latency_ms_p99", latency(0.99))
        .with("latency_ms_max", latency(1.0)))
}

/// How much memory idle clients take, and whether that of a storm, and of all, returns.
pub fn idle(plan: &Plan) -> io::Result<Report> {
    let pid = plan.pid.ok_or_else(|| io::Error::other("idle needs --pid"))?;
    let read = || resident(pid).ok_or_else(|| io::Error::other("the server's memory is unknown"));
    let meter = Meter::start(plan.pid);
    let before = read()?;
    let mut crowd = plan.crowd()?;
    let missing = plan.join(&mut crowd)?.missing();
    listen(&mut crowd, plan.settle)?;
    let joined = read()?;
    let mut failures = missing;
    if plan.storm > 0 {
        let prefix = format!("{}-storm", plan.prefix);
        let storm = Plan { connections: plan.storm, room_size: plan.storm, prefix, ..*plan };
        failures += self::storm(&storm)?.failures;
        listen(&mut crowd, plan.settle)?;
    }
    let after_storm = read()?;
    failures += crowd.lost();
    crowd.leave();
    std::thread::sleep(plan.settle);
    let grown = joined.saturating_sub(before) as f64;
    Ok(plan
        .report("idle", meter.read(), failures)
        .with("rss_before", before)
        .with("rss_joined", joined)
        .with("rss_after_storm", after_storm)
        .with("rss_after_all", read()?)
        .with("bytes_per_connection", (grown / plan.connections as f64).round()))
}

fn millis(seconds: f64) -> f64 {
    (seconds * 1e5).round() / 100.0
}

/// The value below which this part of the sorted values is.
fn quantile<T: Copy>(sorted: &[T], part: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part).round() as usize).copied()
}
