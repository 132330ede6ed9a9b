//! The connections of one worker's thread.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use actix_web::{
    dev::{Extensions, ServiceRequest},
    rt,
};
use hashlink::LinkedHashMap;
use metrics::counter;

use super::connection::{Connection, Phase, Reason};
use crate::descriptors::Limits;
use actix_presence::{
    log_limit::LogLimit,
    sockets::{self, PeriodicTask},
};

/// How many connections the process has.
pub(super) static OPEN: AtomicUsize = AtomicUsize::new(0);

/// For so many seconds a connection may wait while others wait, too, unless descriptors run out.
const NEW: u32 = 2;

thread_local! {
    static TABLE: RefCell<Option<Table>> = const { RefCell::new(None) };
}

pub(super) struct Table {
    limits: Limits,
    task: PeriodicTask,
    /// Seconds.
    clock: u32,
    next: u64,
    /// All connections, WebSockets too.
    open: usize,
    websockets: usize,
    /// Connections that wait for their clients.
    waiting: usize,
    /// Connections that were shut down, and are not yet dropped.
    ended: usize,
    /// Whether [`shed`] is about to run.
    shedding: bool,
    /// Those that carry no WebSocket, in the order in which something last happened on them.
    plain: LinkedHashMap<u64, Rc<Connection>, ahash::RandomState>,
}

/// Takes a new connection into the table of this thread. For `HttpServer::on_connect`, after
/// [`watch_socket`](sockets::watch_socket).
pub(crate) fn opened(limits: &Limits, extensions: &mut Extensions) {
    let Some(key) = sockets::key_in(extensions) else { return };
    let _ = TABLE.try_with(|table| {
        let mut table = table.borrow_mut();
        let table = table.get_or_insert_with(|| Table::new(*limits));
        table.task.run(|| with_table(Table::sweep));
        extensions.insert(Open(table.add(key)));
    });
}

/// The connection of a request, unless it was not taken into the table.
pub(super) fn connection(req: &ServiceRequest) -> Option<Rc<Connection>> {
    req.conn_data::<Open>().map(|open| open.0.clone())
}

/// In the extensions of a connection, and dropped with it.
struct Open(Rc<Connection>);

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Relaxed);
        with_table(|table| table.remove(&self.0));
    }
}

/// Does nothing on a thread that is ending.
pub(super) fn with_table(act: impl FnOnce(&mut Table)) {
    let _ = TABLE.try_with(|table| table.borrow_mut().as_mut().map(act));
}

/// Ends the oldest of those that wait while there are too many.
async fn shed() {
    with_table(|table| {
        table.shedding = false;
        table.shed();
    });
}

impl Table {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            task: PeriodicTask::new(),
            clock: 0,
            next: 0,
            open: 0,
            websockets: 0,
            waiting: 0,
            ended: 0,
            shedding: false,
            plain: LinkedHashMap::default(),
        }
    }

    fn add(&mut self, key: sockets::SocketKey) -> Rc<Connection> {
        OPEN.fetch_add(1, Relaxed);
        self.open += 1;
        self.waiting += 1;
        self.next += 1;
        let connection = Rc::new(Connection::new(key, self.next, self.clock));
        self.plain.insert(connection.number, connection.clone());
        // Not at once: connections that were accepted together may have sent their requests already,
        // and actix-web has read nothing yet.
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

    /// A request begins, whose body is still to come or not.
    pub fn begin(&mut self, connection: &Connection, body: bool) {
        connection.begin(self.clock);
        self.plain.to_back(&connection.number);
        if body {
            connection.body_open.set(true);
        } else {
            connection.read_to_end();
        }
        self.enter(connection, Phase::Service);
    }

    /// A handshake begins; `false` if there is no place for one more WebSocket.
    pub fn begin_websocket(&mut self, connection: &Connection) -> bool {
        if self.websockets >= self.limits.websockets {
            return false;
        }
        self.websockets += 1;
        connection.begin(self.clock);
        connection.websocket.set(true);
        self.enter(connection, Phase::Service);
        true
    }

    pub fn waits_for_body(&mut self, connection: &Connection) {
        if connection.phase.get() == Phase::Service {
            connection.progress.set(self.clock);
            self.enter(connection, Phase::Body);
        }
    }

    pub fn body_came(&mut self, connection: &Connection) {
        if connection.phase.get() == Phase::Body {
            self.enter(connection, Phase::Service);
        }
    }

    /// The handshake is done.
    pub fn upgraded(&mut self, connection: &Connection) {
        self.enter(connection, Phase::WebSocket);
        self.plain.remove(&connection.number);
    }

    /// A response begins.
    pub fn responds(&mut self, connection: &Connection, streams: bool) {
        if connection.websocket.replace(false) {
            self.websockets -= 1;
        }
        connection.since.set(self.clock);
        connection.progress.set(self.clock);
        self.plain.to_back(&connection.number);
        self.enter(connection, if streams { Phase::Stream } else { Phase::Response });
    }

    /// The response has been handed to actix-web to its end.
    pub fn responded(&mut self, connection: &Connection) {
        connection.since.set(self.clock);
        connection.progress.set(self.clock);
        self.plain.to_back(&connection.number);
        let unread = connection.body_open.get();
        self.enter(connection, if unread { Phase::UnreadBody } else { Phase::Head });
    }

    fn sweep(&mut self) {
        self.clock = self.clock.wrapping_add(1);
        let overdue = |connection: &Rc<Connection>| {
            let why = connection.overdue(self.clock, || connection.key.progress())?;
            Some((connection.clone(), why))
        };
        let overdue: Vec<_> = self.plain.values().filter_map(overdue).collect();
        for (connection, why) in overdue {
            self.end(&connection, why);
        }
        self.shed();
    }

    /// Whether there are so many connections that even new ones that wait have to go.
    fn is_full(&self) -> bool {
        self.open - self.ended > self.limits.full
    }

    fn shed(&mut self) {
        while let Some(oldest) = self.too_many() {
            self.end(&oldest, Reason::Crowded);
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
        // Newcomers have not had the time to say anything.
        waits.filter(|oldest| self.clock.wrapping_sub(oldest.since.get()) >= NEW).cloned()
    }

    fn end(&mut self, connection: &Connection, why: Reason) {
        self.enter(connection, Phase::Ended);
        self.plain.remove(&connection.number);
        self.ended += 1;
        connection.key.end();
        counter!("presence_connections_ended_total", "reason" => why.as_str()).increment(1);
        self.log(why);
    }

    fn log(&self, why: Reason) {
        static HALF: LogLimit = LogLimit::new();
        static UNREAD: LogLimit = LogLimit::new();
        static CROWDED: LogLimit = LogLimit::new();
        let (limit, text) = match why {
            Reason::HalfRequest => (&HALF, "a connection was closed whose request did not end"),
            Reason::UnreadResponse => (&UNREAD, "a connection was closed that read no response"),
            Reason::Crowded => (
                &CROWDED,
                "too many connections wait for their clients; the oldest are closed (`ulimit -n`)",
            ),
        };
        if let Some(suppressed) = limit.pass() {
            tracing::warn!(suppressed, open = self.open, waiting = self.waiting, "{text}");
        }
    }
}
