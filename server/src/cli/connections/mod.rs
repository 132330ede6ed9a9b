//! Plain TCP connections: none waits for its client forever, and together they never use up the
//! descriptors that WebSockets and health checks need.
//!
//! [`track`] enters each connection into the table of its worker, and the middleware
//! [`track_request`](middleware::track_request) keeps its phase up to date. Once a second the table ends
//! connections that have waited too long, by `shutdown(2)`: actix-web does not poll a connection whose
//! client does not read, and has no timeout for a second head, a body or a response.

pub(super) mod connection;
pub(super) mod middleware;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use actix_web::{
    dev::{Extensions, ServiceRequest},
    rt::{self, task::JoinHandle},
};
use hashlink::LinkedHashMap;
use metrics::{counter, gauge};
use tokio::time::{MissedTickBehavior, interval};

use self::connection::{Connection, EndReason, Phase};
use super::descriptors::DescriptorLimits;
use actix_presence::{
    log_limit::LogLimit,
    sockets::{self, SocketKey},
};

/// The connections of the process.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// For how many seconds a connection may wait before it is ended because too many wait, unless
/// descriptors run out.
const CROWDED_GRACE: u32 = 2;

thread_local! {
    static TABLE: RefCell<Option<Table>> = const { RefCell::new(None) };
}

/// The connections of one worker's thread.
struct Table {
    limits: DescriptorLimits,
    /// For how many seconds a connection may be idle.
    max_idle: u32,
    sweeper: Option<JoinHandle<()>>,
    /// Seconds.
    clock: u32,
    last_number: u64,
    /// All connections, WebSockets included.
    open: usize,
    websockets: usize,
    /// Connections that wait for their clients.
    waiting: usize,
    /// Connections that are shut down, but not dropped yet.
    ended: usize,
    /// Whether [`shed`] has been spawned.
    shedding: bool,
    /// Connections that are not WebSockets, the one whose phase changed last at the back.
    plain: LinkedHashMap<u64, Rc<Connection>, ahash::RandomState>,
}

/// Initialises the gauges of the connections.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) fn init_gauges(limits: &DescriptorLimits) {
    gauge!("presence_connections_open").set(0.0);
    if let Some(descriptors) = limits.descriptors {
        gauge!("presence_descriptors_limit").set(descriptors as f64);
        gauge!("presence_sockets_limit").set(limits.all_websockets() as f64);
    }
}

/// The number of open TCP connections, WebSockets included.
pub(super) fn open() -> usize {
    OPEN.load(Relaxed)
}

/// Enters a new connection into the table of this thread. For `HttpServer::on_connect`, after
/// [`watch_socket`](sockets::watch_socket).
pub(super) fn track(limits: &DescriptorLimits, keep_alive: Duration, extensions: &mut Extensions) {
    let Some(key) = sockets::key_in(extensions) else { return };
    let _ = TABLE.try_with(|table| {
        let mut table = table.borrow_mut();
        let table = table.get_or_insert_with(|| Table::new(*limits, keep_alive));
        table.start_sweeper();
        extensions.insert(Tracked(table.add(key)));
    });
}

/// The connection of a request, if it is tracked.
fn connection(req: &ServiceRequest) -> Option<Rc<Connection>> {
    req.conn_data::<Tracked>().map(|tracked| tracked.0.clone())
}

/// In the extensions of a connection, and dropped with it.
struct Tracked(Rc<Connection>);

impl Drop for Tracked {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Relaxed);
        gauge!("presence_connections_open").decrement(1.0);
        with_table(|table| table.remove(&self.0));
    }
}

/// Does nothing on a thread that is ending.
fn with_table(act: impl FnOnce(&mut Table)) {
    let _ = TABLE.try_with(|table| table.borrow_mut().as_mut().map(act));
}

/// Ends the connections that have waited longest while there are too many.
async fn shed() {
    with_table(|table| {
        table.shedding = false;
        table.shed();
    });
}

async fn sweep_every_second() {
    let mut ticks = interval(Duration::from_secs(1));
    // After a pause of the process, do not catch up: clients could not send meanwhile.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        with_table(Table::sweep);
    }
}

impl Table {
    fn new(limits: DescriptorLimits, keep_alive: Duration) -> Self {
        Self {
            limits,
            max_idle: connection::max_idle(keep_alive),
            sweeper: None,
            clock: 0,
            last_number: 0,
            open: 0,
            websockets: 0,
            waiting: 0,
            ended: 0,
            shedding: false,
            plain: LinkedHashMap::default(),
        }
    }

    /// Spawns the sweeper, also if the runtime of the last one has ended.
    fn start_sweeper(&mut self) {
        if self.sweeper.as_ref().is_none_or(JoinHandle::is_finished) {
            self.sweeper = Some(rt::spawn(sweep_every_second()));
        }
    }

    fn add(&mut self, key: SocketKey) -> Rc<Connection> {
        OPEN.fetch_add(1, Relaxed);
        gauge!("presence_connections_open").increment(1.0);
        self.open += 1;
        self.waiting += 1;
        self.last_number += 1;
        let connection = Rc::new(Connection::new(key, self.last_number, self.clock));
        self.plain.insert(connection.number, connection.clone());
        // Not now: connections that were accepted together may have sent their requests, which actix-web
        // has not read yet.
        if !self.shedding && self.too_many().is_some() {
            self.shedding = true;
            rt::spawn(shed());
        }
        connection
    }

    fn remove(&mut self, connection: &Connection) {
        self.open -= 1;
        if connection.websocket.get() {
            self.websockets -= 1;
        }
        self.plain.remove(&connection.number);
        let phase = connection.phase.get();
        self.waiting -= usize::from(phase.waits());
        self.ended -= usize::from(phase == Phase::Ended);
    }

    fn enter(&mut self, connection: &Connection, phase: Phase) {
        let before = connection.phase.get();
        if before == Phase::Ended {
            return;
        }
        connection.phase.set(phase);
        self.waiting += usize::from(phase.waits());
        self.waiting -= usize::from(before.waits());
    }

    /// A request begins, with or without a body.
    fn begin(&mut self, connection: &Connection, body: bool) {
        connection.begin(self.clock);
        self.plain.to_back(&connection.number);
        if body {
            connection.body_open.set(true);
        } else {
            connection.read_to_end();
        }
        self.enter(connection, Phase::Service);
    }

    /// A handshake begins; `false` if there are too many WebSockets.
    fn begin_websocket(&mut self, connection: &Connection) -> bool {
        if self.websockets >= self.limits.websockets {
            return false;
        }
        self.websockets += 1;
        connection.begin(self.clock);
        connection.websocket.set(true);
        self.enter(connection, Phase::Service);
        true
    }

    fn waits_for_body(&mut self, connection: &Connection) {
        if connection.phase.get() == Phase::Service {
            connection.progress.set(self.clock);
            self.enter(connection, Phase::Body);
        }
    }

    fn body_received(&mut self, connection: &Connection) {
        if connection.phase.get() == Phase::Body {
            self.enter(connection, Phase::Service);
        }
    }

    /// The handshake is done.
    fn upgraded(&mut self, connection: &Connection) {
        self.enter(connection, Phase::WebSocket);
        self.plain.remove(&connection.number);
    }

    /// A response begins.
    fn responds(&mut self, connection: &Connection, streams: bool) {
        if connection.websocket.replace(false) {
            self.websockets -= 1;
        }
        connection.since.set(self.clock);
        connection.progress.set(self.clock);
        self.plain.to_back(&connection.number);
        self.enter(connection, if streams { Phase::Stream } else { Phase::Response });
    }

    /// The whole response has been passed to actix-web.
    fn responded(&mut self, connection: &Connection) {
        connection.since.set(self.clock);
        connection.progress.set(self.clock);
        self.plain.to_back(&connection.number);
        let unread = connection.body_open.get();
        self.enter(connection, if unread { Phase::UnreadBody } else { Phase::Head });
    }

    fn sweep(&mut self) {
        self.clock = self.clock.wrapping_add(1);
        let overdue = |connection: &Rc<Connection>| {
            let why =
                connection.overdue(self.clock, self.max_idle, || connection.key.progress())?;
            Some((connection.clone(), why))
        };
        let overdue: Vec<_> = self.plain.values().filter_map(overdue).collect();
        for (connection, why) in overdue {
            self.end(&connection, why);
        }
        self.shed();
    }

    /// Whether there are so many connections that even new ones must be ended.
    fn is_full(&self) -> bool {
        self.open - self.ended > self.limits.full
    }

    fn shed(&mut self) {
        while let Some(oldest) = self.too_many() {
            self.end(&oldest, EndReason::Crowded);
        }
    }

    /// The connection to end because there are too many.
    fn too_many(&self) -> Option<Rc<Connection>> {
        let full = self.is_full();
        if !full && self.waiting <= self.limits.waiting {
            return None;
        }
        let find = |found: fn(Phase) -> bool| {
            self.plain.values().find(|connection| found(connection.phase.get()))
        };
        let waits = find(Phase::waits);
        if full {
            return waits.or_else(|| find(|phase| phase == Phase::Stream)).cloned();
        }
        // New clients have not had the time to send anything.
        waits.filter(|oldest| self.clock.wrapping_sub(oldest.since.get()) >= CROWDED_GRACE).cloned()
    }

    fn end(&mut self, connection: &Connection, why: EndReason) {
        self.enter(connection, Phase::Ended);
        self.plain.remove(&connection.number);
        self.ended += 1;
        connection.key.end();
        counter!("presence_connections_ended_total", "reason" => why.as_str()).increment(1);
        self.log(why);
    }

    fn log(&self, why: EndReason) {
        static HALF: LogLimit = LogLimit::new();
        static UNREAD: LogLimit = LogLimit::new();
        static CROWDED: LogLimit = LogLimit::new();
        let (limit, text) = match why {
            EndReason::HalfRequest => (&HALF, "closed a connection whose request did not end"),
            EndReason::UnreadResponse => {
                (&UNREAD, "closed a connection that did not read its response")
            }
            EndReason::Crowded => (
                &CROWDED,
                "closed the oldest of too many connections that wait for their clients (`ulimit -n`)",
            ),
        };
        if let Some(suppressed) = limit.pass() {
            tracing::warn!(suppressed, open = self.open, waiting = self.waiting, "{text}");
        }
    }
}
