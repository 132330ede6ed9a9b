//! What a socket is told before it carries a session.

use std::{any::Any, time::Duration};

use actix_web::rt::net::TcpStream;
use socket2::{SockRef, TcpKeepalive};

/// How long a peer may leave sent bytes unacknowledged, or its window closed.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// When an idle peer is asked whether it is there, and how often.
const IDLE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(10);

/// Has the operating system end a connection whose peer is gone or has stopped reading, within a
/// minute, and send small frames at once (`TCP_NODELAY`). For [`HttpServer::on_connect`](actix_web::HttpServer::on_connect).
///
/// A session whose client does not read is not run by actix-web while its write buffer is full, so
/// nothing in the session could free its file descriptor.
///
/// ```no_run
/// # use actix_web::{App, HttpServer};
/// HttpServer::new(App::new).on_connect(|io, _| actix_presence::limit_silence(io));
/// ```
pub fn limit_silence(io: &dyn Any) {
    let Some(stream) = io.downcast_ref::<TcpStream>() else { return };
    let socket = SockRef::from(stream);
    if let Err(error) = socket.set_tcp_nodelay(true) {
        tracing::debug!(%error, "small frames wait on a socket");
    }
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(PROBE);
    if let Err(error) = socket.set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "no keep-alive on a socket");
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)) {
        tracing::debug!(%error, "no TCP_USER_TIMEOUT on a socket");
    }
}
