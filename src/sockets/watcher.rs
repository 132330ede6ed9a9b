//! The sockets of a thread that have to be gone by a certain time.

use std::{
    cell::RefCell,
    net::Shutdown,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use socket2::Socket;

use crate::log_limit::LogLimit;

use super::{SocketKey, every_second::EverySecond, progress::Progress};

/// How many closed connections of a thread may have their last bytes sent at one time. Each takes a
/// descriptor.
pub const LAST_BYTES: usize = 4;

thread_local! {
    static WATCHER: RefCell<Watcher> = RefCell::default();
}

struct Watcher {
    task: EverySecond,
    /// When each has to be gone. A connection that ends earlier takes its entry with it.
    deadlines: AHashMap<SocketKey, Instant>,
    /// Sockets whose connection has ended while bytes were unsent, until when they may be sent.
    last_bytes: Vec<(Instant, Socket)>,
}

impl Default for Watcher {
    fn default() -> Self {
        Self { task: EverySecond::new(), deadlines: AHashMap::new(), last_bytes: Vec::new() }
    }
}

/// Has the socket gone after so long at the latest (and a second more), whatever its peer does and
/// whatever runs on it. An earlier deadline stands; an earlier end of the connection needs nothing.
///
/// To be called on the socket's own thread, which is that of its session; elsewhere nothing happens.
pub(crate) fn end_within(key: SocketKey, patience: Duration) {
    if key.with(|_| ()).is_none() {
        return;
    }
    let deadline = Instant::now() + patience;
    with_watcher(|watcher| {
        let due = watcher.deadlines.entry(key).or_insert(deadline);
        *due = deadline.min(*due);
    });
}

/// Begins to watch the sockets of this thread.
pub(super) fn start() {
    with_watcher(|watcher| {
        watcher.task.run(|| with_watcher(|watcher| watcher.sweep(Instant::now())))
    });
}

/// The connection of the socket ends; its descriptor is about to be closed, if it is open still.
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

impl Watcher {
    fn sweep(&mut self, now: Instant) {
        self.deadlines.retain(|key, deadline| {
            let overdue = *deadline <= now;
            if overdue && key.end() {
                overdue_close();
            }
            !overdue
        });
        self.last_bytes.retain(|(deadline, socket)| {
            let unsent = Progress::of(socket).is_some_and(|progress| progress.unsent);
            if unsent && *deadline <= now {
                drop_unsent(socket);
            }
            unsent && *deadline > now
        });
    }

    /// The kernel sends what is unsent after the descriptor is closed, for as long as the peer takes
    /// a byte now and then. A second descriptor keeps hold of the socket until the deadline; the FIN
    /// does not wait for it.
    fn close(&mut self, socket: &Socket, deadline: Instant) {
        if !Progress::of(socket).is_some_and(|progress| progress.unsent) {
            return;
        }
        let second =
            if self.last_bytes.len() < LAST_BYTES { socket.try_clone().ok() } else { None };
        let Some(second) = second else { return drop_unsent(socket) };
        // Fails if it was shut down before.
        let _ = second.shutdown(Shutdown::Write);
        self.last_bytes.push((deadline, second));
    }
}

/// A client has not let its connection end by itself.
fn overdue_close() {
    static LINE: LogLimit = LogLimit::new();
    metrics::counter!("presence_connections_ended_total", "reason" => "overdue_close").increment(1);
    if let Some(suppressed) = LINE.pass() {
        tracing::info!(
            suppressed,
            "a connection was shut down, as it did not end after its close frame"
        );
    }
}

/// Drops what is unsent when the socket is closed.
fn drop_unsent(socket: &Socket) {
    if let Err(error) = socket.set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "unsent bytes of a closed socket are sent still");
    }
}
