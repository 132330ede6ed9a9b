//! What is measured, and how.

use std::{io, time::Instant};

use super::{
    crowd::{Behaviour, Client},
    dialect::{heartbeat, is_answer},
    flood,
    fold::{Frames, Knowledge},
    plan::{Joining, Plan, Report, listen, millis, quantile, server_ms},
    process::{Meter, resident},
};

/// How fast clients connect and join: from the first to connect to the last to be told who is there.
pub fn connect(plan: &Plan) -> io::Result<Report> {
    let mut crowd = plan.crowd()?;
    let (begun, meter) = (Instant::now(), Meter::start(plan.pid));
    let joining = plan.join(&mut crowd)?;
    let busy = meter.read();
    // What the server holds back for the others is part of what a client costs.
    listen(&mut crowd, plan.trailing())?;
    let total = server_ms(meter.read());
    let [handshakes, joins] = joining.last.map(|last| (last - begun).as_secs_f64());
    // Of those who did not all come there is no rate.
    let all = joining.missing() == 0;
    let rate = |seconds: f64| all.then(|| (plan.connections as f64 / seconds).round());
    crowd.leave();
    let (missing, took) = (joining.missing(), joining.took());
    Ok(plan
        .report("connect", busy, missing)
        .with("room_size", plan.room_size)
        .with("handshakes_per_second", rate(handshakes))
        .with("joins_per_second", rate(joins))
        .with("per_server_second", busy.per_server_second(plan.connections as f64))
        .with("list_ms_median", took.ms(0.5))
        .with("list_ms_p99", took.ms(0.99))
        .with("server_ms", total)
        .with("server_us_each", total.map(|ms| per_client_us(ms, plan.connections)))
        .with("ms", millis(joins)))
}

fn per_client_us(ms: f64, clients: usize) -> f64 {
    (ms * 1e4 / clients as f64).round() / 10.0
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
    fn asked(&mut self, id: usize, now: Instant) {
        self.joining.asked(id, now);
    }

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
    let total = server_ms(meter.read());
    let Trailing(storm) = trailing;
    let [frames, bytes] = [storm.spread(|one| one.frames), storm.spread(|one| one.bytes)];
    let pairs: usize = storm.clients.iter().map(Knowledge::known).sum();
    crowd.leave();
    Ok(plan
        .report("storm", busy, unaware)
        .with("ms", millis(seconds))
        .with("handshakes_ms", millis(opened))
        .with("states_ms", millis(joined))
        .with("server_ms", total)
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
