//! TCP sockets, configured, observed and shut down from outside of actix-web.
//!
//! actix-web does not run a connection whose client does not read, and none of its timers covers the
//! second request of a connection. This module works on the sockets themselves.

mod key;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod watcher;

use std::{any::Any, net::TcpListener, time::Duration};

use actix_web::{HttpRequest, dev::Extensions, rt::net::TcpStream};
use socket2::{SockRef, TcpKeepalive};

pub(crate) use self::watcher::end_within;
pub use self::{
    key::{Progress, SocketKey},
    watcher::MAX_LINGERING_SOCKETS,
};

/// How long a socket may stay open after its close frame was due.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may leave bytes unacknowledged, or its window closed.
#[cfg(any(target_os = "linux", target_os = "android"))]
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// When an idle peer is probed, and how often.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Configures TCP for sessions: the operating system ends a connection whose peer is gone or has stopped
/// reading within a minute, and sends small frames at once (`TCP_NODELAY`). For [`HttpServer::on_connect`](actix_web::HttpServer::on_connect);
/// or, once for all connections, for the [`TcpListener`] that they come from, where they inherit it,
/// as they do on Linux.
///
/// actix-web does not run a session while its write buffer is full, so a session whose client does not
/// read cannot free its file descriptor by itself.
///
/// ```no_run
/// # use actix_web::{App, HttpServer};
/// HttpServer::new(App::new).on_connect(|io, _| actix_presence::configure_tcp(io));
/// ```
pub fn configure_tcp(io: &dyn Any) {
    let stream = io.downcast_ref::<TcpStream>().map(SockRef::from);
    let listener = || io.downcast_ref::<TcpListener>().map(SockRef::from);
    let Some(socket) = stream.or_else(listener) else { return };
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
/// client does, if it is one of the ready-made sessions; and as soon as both close frames have passed, where
/// actix-web waits a second for the client to close first. For
/// [`HttpServer::on_connect`](actix_web::HttpServer::on_connect), beside [`configure_tcp`].
///
/// Without it a client that was kicked, has expired or was too slow can keep its socket by reading a byte
/// now and then: actix-web does not run a session whose write buffer is full, and the operating system gives
/// up only on a client that reads nothing at all.
///
/// The descriptor is not duplicated: the socket is shut down by `shutdown(2)`, on its own thread, and
/// unsent bytes are then dropped. Only sockets that actix-web serves as a
/// [`TcpStream`] are watched; where the app does TLS itself, pass the stream inside of the TLS stream.
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
    let Some(stream) = io.downcast_ref::<TcpStream>() else { return };
    if let Some(key) = SocketKey::of(stream) {
        watcher::start();
        extensions.insert(Watched(key));
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

/// Dropped with the connection, just before its socket is closed; or later, if somebody keeps a request.
struct Watched(SocketKey);

impl Drop for Watched {
    fn drop(&mut self) {
        watcher::closing(self.0);
    }
}
