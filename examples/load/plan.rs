//! What to measure, what came out, and the clients that join for it.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::{
    crowd::{Behaviour, Client, Crowd},
    dialect::Dialect,
    flood::Flood,
    process::Busy,
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
    pub until_list: bool,
    pub storm: usize,
    pub seconds: Duration,
    pub settle: Duration,
    pub timeout: Duration,
    pub pid: Option<u32>,
    pub flood: Flood,
    pub prefix: String,
}

impl Plan {
    pub fn room(&self, id: usize) -> String {
        let rooms = self.connections.div_ceil(self.room_size);
        let room = if self.spread { id % rooms } else { id / self.room_size };
        format!("{}-{room}", self.prefix)
    }

    pub fn crowd(&self) -> io::Result<Crowd> {
        let path = |id| self.dialect.path(&self.room(id), id);
        let paths = (0..self.connections).map(path).collect();
        Ok(Crowd::new(self.server, paths, self.in_flight)?.until_list(self.until_list))
    }

    /// How long to wait for what the server holds back.
    pub fn trailing(&self) -> Duration {
        self.settle.min(TRAILING)
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Connects everybody, and waits until each has been told who is there.
    pub fn join(&self, crowd: &mut Crowd) -> io::Result<Joining<'_>> {
        let mut joining = Joining::new(self);
        crowd.run(self.deadline(), &mut joining)?;
        Ok(joining)
    }

    pub fn report(&self, measure: &'static str, busy: Busy, failures: usize) -> Report {
        let (mut fields, [client, server]) = (Map::new(), busy.percents());
        fields.insert("measure".into(), measure.into());
        fields.insert("dialect".into(), self.dialect.name().into());
        fields.insert("connections".into(), self.connections.into());
        fields.insert("failures".into(), failures.into());
        fields.insert("client_cpu".into(), client.into());
        fields.insert("server_cpu".into(), server.into());
        fields.insert("server_ms".into(), server_ms(busy).into());
        let waited = busy.server_waited().map(|time| millis(time.as_secs_f64()));
        fields.insert("server_waited_ms".into(), waited.into());
        Report { fields, failures }
    }
}

/// What came out.
pub struct Report {
    fields: Map<String, Value>,
    pub failures: usize,
}

impl Report {
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }

    pub fn to_json(&self) -> Value {
        json!(self.fields)
    }
}

/// Everybody joins.
pub struct Joining<'a> {
    pub plan: &'a Plan,
    asked: Vec<Instant>,
    has_joined: Vec<bool>,
    opened: usize,
    /// How long those who have joined took, from their handshake to their first list, in seconds.
    took: Vec<f64>,
    /// When the last handshake was answered, and when the last one had joined.
    pub last: [Instant; 2],
}

impl<'a> Joining<'a> {
    pub fn new(plan: &'a Plan) -> Self {
        let now = Instant::now();
        Self {
            plan,
            asked: vec![now; plan.connections],
            has_joined: vec![false; plan.connections],
            opened: 0,
            took: Vec::with_capacity(plan.connections),
            last: [now; 2],
        }
    }

    pub fn missing(&self) -> usize {
        self.plan.connections - self.took.len()
    }

    /// How long those who have joined took, from their handshake to their first list.
    pub fn took(self) -> Spread {
        Spread::new(self.took)
    }

    fn joined(&mut self, id: usize, client: &mut Client) {
        if !std::mem::replace(&mut self.has_joined[id], true) {
            client.got_list();
            self.took.push((client.read_at() - self.asked[id]).as_secs_f64());
            if self.missing() == 0 {
                self.last[1] = Instant::now();
            }
        }
    }
}

impl Behaviour for Joining<'_> {
    fn asked(&mut self, id: usize, now: Instant) {
        self.asked[id] = now;
    }

    fn opened(&mut self, id: usize, client: &mut Client) {
        self.opened += 1;
        if self.opened == self.plan.connections {
            self.last[0] = Instant::now();
        }
        if let Some(join) = self.plan.dialect.join(&self.plan.room(id)) {
            client.send(&join);
        }
        if !self.plan.dialect.is_told() {
            self.joined(id, client);
        }
    }

    fn text(&mut self, id: usize, client: &mut Client, text: &[u8]) {
        if self.plan.dialect.is_state(text) {
            self.joined(id, client);
        }
    }

    fn done(&self, lost: usize) -> bool {
        self.took.len() + lost >= self.plan.connections
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

/// Reads, and does nothing else, for this time.
pub fn listen(crowd: &mut Crowd, time: Duration) -> io::Result<()> {
    crowd.run(Instant::now() + time, &mut Listening).map(drop)
}

/// Times in seconds, sorted.
pub struct Spread(Vec<f64>);

impl Spread {
    pub fn new(mut times: Vec<f64>) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        Self(times)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The milliseconds that this part of them took at most.
    pub fn ms(&self, part: f64) -> Option<f64> {
        quantile(&self.0, part).map(millis)
    }
}

/// The processor time of the server in milliseconds.
pub fn server_ms(busy: Busy) -> Option<f64> {
    busy.server().map(|time| millis(time.as_secs_f64()))
}

pub fn millis(seconds: f64) -> f64 {
    (seconds * 1e5).round() / 100.0
}

/// The value below which this part of the sorted values is.
pub fn quantile<T: Copy>(sorted: &[T], part: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * part).round() as usize).copied()
}
