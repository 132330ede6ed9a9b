//! TCP sockets, configured, observed and shut down from outside of actix-web.
//!
//! actix-web does not run a connection whose client does not read, and none of its timers covers the
//! second request of a connection. This module works on the sockets themselves.

mod key;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::{
    any::Any,
    cell::RefCell,
    net::{Shutdown, TcpListener},
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest,
    dev::Extensions,
    rt::{self, net::TcpStream, task::JoinHandle},
};
use ahash::AHashMap;
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::time::{MissedTickBehavior, interval};

pub use self::key::{Progress, SocketKey};
use crate::log_limit::LogLimit;

/// How long a socket may stay open after its close frame was due.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may leave bytes unacknowledged, or its window closed.
#[cfg(any(target_os = "linux", target_os = "android"))]
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// When an idle peer is probed, and how often.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How many closed connections of a thread may have their last bytes sent at one time. Each needs a
/// descriptor.
pub const MAX_LINGERING_SOCKETS: usize = 4;
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Configures TCP for sessions: the operating system ends a connection whose peer is gone or has stopped
/// reading within a minute, and sends small frames at once (`TCP_NODELAY`). For [`HttpServer::on_connect`](actix_web::HttpServer::on_connect);
/// or, once for all connections, for the [`TcpListener`] that they come from, where they inherit it,
/// as they do on Linux.
///
/// actix-web does not run a session while its write buffer is full, so a session whose client does not
/// read cannot free its file descriptor by itself.
///
/// Of a connection with TLS it needs the [`TcpStream`] inside, since the kinds of TLS streams are those of other
/// crates: `io.downcast_ref::<TlsStream<TcpStream>>()`, then `get_ref().0` with rustls, or `get_ref()` with OpenSSL.
/// The TLS stream itself is left as it is, and the log says so. A configured listener needs none of that.
///
/// ```no_run
/// # use actix_web::{App, HttpServer};
/// HttpServer::new(App::new).on_connect(|io, _| actix_presence::configure_tcp(io));
/// ```
pub fn configure_tcp(io: &dyn Any) {
    let stream = io.downcast_ref::<TcpStream>().map(SockRef::from);
    let listener = || io.downcast_ref::<TcpListener>().map(SockRef::from);
    let Some(socket) = stream.or_else(listener) else { return warn_unknown(io) };
    if let Err(error) = socket.set_tcp_nodelay(true) {
        tracing::debug!(%error, "small frames wait on a socket");
    }
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    if let Err(error) = socket.set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "no keep-alive on a socket");
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = socket.set_tcp_user_timeout(Some(USER_TIMEOUT)) {
        tracing::debug!(%error, "no TCP_USER_TIMEOUT on a socket");
    }
}

/// Closes this connection's socket within ten seconds after its session was told to close, whatever its
/// client does, if it is one of the ready-made sessions, or an app's own that uses
/// [`Connection::watched`](crate::Connection::watched). The sockets of ready-made sessions also close as soon
/// as both close frames have passed, where actix-web waits a second for the client to close first. For
/// [`HttpServer::on_connect`](actix_web::HttpServer::on_connect), beside [`configure_tcp`].
///
/// Without it a client that was kicked, has expired or was too slow can keep its socket by reading a byte
/// now and then: actix-web does not run a session whose write buffer is full, and the operating system gives
/// up only on a client that reads nothing at all.
///
/// The descriptor is not duplicated: the socket is shut down by `shutdown(2)`, on its own thread, and
/// unsent bytes are then dropped.
///
/// A connection with TLS is watched if it is given the [`TcpStream`] inside, as [`configure_tcp`] is. The TLS stream
/// itself is not watched, and the log says so.
///
/// ```no_run
/// # use actix_web::{App, HttpServer};
/// use actix_presence::{configure_tcp, watch_socket};
///
/// HttpServer::new(App::new).on_connect(|io, extensions| {
///     configure_tcp(io);
///     watch_socket(io, extensions);
/// });
/// ```
pub fn watch_socket(io: &dyn Any, extensions: &mut Extensions) {
    let Some(stream) = io.downcast_ref::<TcpStream>() else { return warn_unknown(io) };
    if let Some(key) = SocketKey::of(stream) {
        with_watcher(Watcher::start);
        extensions.insert(Watched(key));
    }
}

/// Says that nothing is done for a connection, most likely one with TLS.
fn warn_unknown(io: &dyn Any) {
    static UNKNOWN: LogLimit = LogLimit::new();
    // There is nothing to be done for these.
    #[cfg(unix)]
    if io.is::<rt::net::UnixStream>() {
        return;
    }
    if let Some(suppressed) = UNKNOWN.pass() {
        tracing::warn!(
            suppressed,
            "the TCP socket of a connection is not configured or not watched: on_connect has to pass the TcpStream inside of the TLS stream"
        );
    }
}

/// The socket of the connection that the request came on, if it is [watched](watch_socket).
pub(crate) fn key_of(req: &HttpRequest) -> Option<SocketKey> {
    req.conn_data::<Watched>().map(|watched| watched.0)
}

/// The socket that [`watch_socket`] has put into these extensions.
#[must_use]
pub fn key_in(extensions: &Extensions) -> Option<SocketKey> {
    extensions.get::<Watched>().map(|watched| watched.0)
}

/// Dropped with the connection, just before its socket is closed; or later, if a request is kept.
struct Watched(SocketKey);

impl Drop for Watched {
    fn drop(&mut self) {
        with_watcher(|watcher| {
            if let Some(deadline) = watcher.deadlines.remove(&self.0) {
                self.0.with(|socket| watcher.close(socket, deadline));
            }
        });
    }
}

thread_local! {
    static WATCHER: RefCell<Watcher> = RefCell::default();
}

/// The sockets of a thread that have to be closed by a deadline.
#[derive(Default)]
struct Watcher {
    task: Option<JoinHandle<()>>,
    /// When each has to be closed. The entry is removed with its connection.
    deadlines: AHashMap<SocketKey, Instant>,
    /// Sockets whose connection has ended with unsent bytes, and until when these may be sent.
    lingering: Vec<(Instant, Socket)>,
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

/// Does nothing on a thread that is ending.
fn with_watcher(act: impl FnOnce(&mut Watcher)) {
    let _ = WATCHER.try_with(|watcher| act(&mut watcher.borrow_mut()));
}

impl Watcher {
    /// Starts the task that sweeps once a second, unless it runs.
    fn start(&mut self) {
        if self.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.task = Some(rt::spawn(async {
            let mut ticks = interval(SWEEP_INTERVAL);
            // Ticks that were missed while the process was paused are not made up for.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is immediate.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                with_watcher(|watcher| watcher.sweep(Instant::now()));
            }
        }));
    }

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

    /// The kernel sends unsent bytes after the descriptor is closed, for as long as the peer reads a byte now
    /// and then. A second descriptor keeps hold of the socket until the deadline, without delaying the FIN.
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
