//! The sockets of a thread that have to be closed by a deadline.

use std::{
    cell::RefCell,
    net::Shutdown,
    time::{Duration, Instant},
};

use actix_web::rt::{self, task::JoinHandle};
use ahash::AHashMap;
use socket2::Socket;
use tokio::time::{MissedTickBehavior, interval};

use crate::log_limit::LogLimit;

use super::key::{Progress, SocketKey};

/// How many closed connections of a thread may have their last bytes sent at one time. Each needs a
/// descriptor.
pub const MAX_LINGERING_SOCKETS: usize = 4;
/// How often deadlines are checked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

thread_local! {
    static WATCHER: RefCell<Watcher> = RefCell::default();
}

struct Watcher {
    task: PeriodicTask,
    /// When each has to be closed. The entry is removed with its connection.
    deadlines: AHashMap<SocketKey, Instant>,
    /// Sockets whose connection has ended with unsent bytes, and until when these may be sent.
    lingering: Vec<(Instant, Socket)>,
}

impl Default for Watcher {
    fn default() -> Self {
        Self { task: PeriodicTask::new(), deadlines: AHashMap::new(), lingering: Vec::new() }
    }
}

/// Shuts the socket down after the timeout (and up to a second more), whatever its peer does, unless it is
/// closed by then. An earlier deadline stands.
///
/// To be called on the socket's own thread; elsewhere nothing happens.
pub(crate) fn end_within(key: SocketKey, timeout: Duration) {
    if key.with(|_| ()).is_none() {
        return;
    }
    let deadline = Instant::now() + timeout;
    with_watcher(|watcher| {
        let due = watcher.deadlines.entry(key).or_insert(deadline);
        *due = deadline.min(*due);
    });
}

/// Starts the watcher of this thread.
pub(super) fn start() {
    with_watcher(|watcher| {
        watcher.task.run(|| with_watcher(|watcher| watcher.sweep(Instant::now())))
    });
}

/// Notes that the connection of the socket has ended, and its descriptor is about to be closed.
pub(super) fn closing(key: SocketKey) {
    with_watcher(|watcher| {
        if watcher.deadlines.is_empty() {
            return;
        }
        if let Some(deadline) = watcher.deadlines.remove(&key) {
            key.with(|socket| watcher.close(socket, deadline));
        }
    });
}

/// Does nothing on a thread that is ending.
fn with_watcher(act: impl FnOnce(&mut Watcher)) {
    let _ = WATCHER.try_with(|watcher| act(&mut watcher.borrow_mut()));
}

/// A task of a thread that runs once a second.
struct PeriodicTask(Option<JoinHandle<()>>);

impl PeriodicTask {
    const fn new() -> Self {
        Self(None)
    }

    /// Starts the task unless it runs. To be called on a thread that has an actix runtime.
    fn run(&mut self, sweep: fn()) {
        if self.0.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.0 = Some(rt::spawn(async move {
            let mut ticks = interval(SWEEP_INTERVAL);
            // Ticks that were missed while the process was paused are not made up for.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is immediate.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                sweep();
            }
        }));
    }
}

impl Watcher {
    fn sweep(&mut self, now: Instant) {
        self.deadlines.retain(|key, deadline| {
            let overdue = *deadline <= now;
            if overdue && key.end() {
                record_overdue_close();
            }
            !overdue
        });
        self.lingering.retain(|(deadline, socket)| {
            let unsent = Progress::of(socket).is_some_and(|progress| progress.unsent);
            if unsent && *deadline <= now {
                drop_unsent(socket);
            }
            unsent && *deadline > now
        });
    }

    /// The kernel sends unsent bytes after the descriptor is closed, for as long as the peer reads a byte
    /// now and then. A second descriptor keeps hold of the socket until the deadline, without delaying
    /// the FIN.
    fn close(&mut self, socket: &Socket, deadline: Instant) {
        if !Progress::of(socket).is_some_and(|progress| progress.unsent) {
            return;
        }
        let second = if self.lingering.len() < MAX_LINGERING_SOCKETS {
            socket.try_clone().ok()
        } else {
            None
        };
        let Some(second) = second else { return drop_unsent(socket) };
        // Fails if it was shut down already.
        let _ = second.shutdown(Shutdown::Write);
        self.lingering.push((deadline, second));
    }
}

fn record_overdue_close() {
    static LINE: LogLimit = LogLimit::new();
    metrics::counter!("presence_connections_ended_total", "reason" => "overdue_close").increment(1);
    if let Some(suppressed) = LINE.pass() {
        tracing::info!(
            suppressed,
            "a connection was shut down, as it did not end after its close frame"
        );
    }
}

/// Has unsent bytes dropped when the socket is closed.
fn drop_unsent(socket: &Socket) {
    if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "unsent bytes of a closed socket are sent still");
    }
}
