//! TCP sockets, looked at and ended from outside of what actix-web runs on them.
//!
//! actix-web does not run a connection whose client does not read, and none of its timers covers the
//! second request of a connection. What is here needs nothing of either: it works on the socket.

mod every_second;
mod key;
mod progress;
mod silence;
#[cfg(all(test, target_os = "linux"))]
mod tests;
mod watcher;

use std::{any::Any, time::Duration};

use actix_web::{HttpRequest, dev::Extensions, rt::net::TcpStream};

pub(crate) use self::watcher::end_within;
pub use self::{
    every_second::EverySecond, key::SocketKey, progress::Progress, silence::limit_silence,
    watcher::LAST_BYTES,
};

/// How long a socket may stay after its close frame was due.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Has this connection's socket closed within ten seconds after its session was told to close,
/// whatever its client does, if it is one of the ready-made sessions. For [`HttpServer::on_connect`](actix_web::HttpServer::on_connect),
/// beside [`limit_silence`]. And has TCP end as soon as both close frames have passed; actix-web waits a
/// second for the client to end it first.
///
/// Without it a client that was kicked, has expired or was too slow, and that reads a byte now and
/// then, keeps its socket for as long as it pleases: actix-web does not run a session whose write
/// buffer is full, and the operating system gives up only on a client that reads nothing at all.
///
/// The descriptor is not duplicated: the socket is shut down by `shutdown(2)`, on its own thread, and
/// unsent bytes are then dropped. Only sockets that actix-web serves as a
/// [`TcpStream`] are watched; where the app does TLS itself, pass the
/// stream inside of the TLS stream.
///
/// ```no_run
/// # use actix_web::{App, HttpServer};
/// use actix_presence::{limit_silence, watch_socket};
///
/// HttpServer::new(App::new).on_connect(|io, extensions| {
///     limit_silence(io);
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

/// Dropped with the connection, just before its socket is closed; or later, if something has kept a
/// request.
struct Watched(SocketKey);

impl Drop for Watched {
    fn drop(&mut self) {
        watcher::closing(self.0);
    }
}
