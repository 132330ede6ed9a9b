//! Options that every socket is given before it carries a session.

use std::{any::Any, net::TcpListener, time::Duration};

use actix_web::rt::net::TcpStream;
use socket2::{SockRef, TcpKeepalive};

/// How long a peer may leave sent bytes unacknowledged, or its window closed.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// When an idle peer is asked whether it is there, and how often.
const IDLE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(10);

/// Has the operating system end a connection whose peer is gone or has stopped reading, within a
/// minute, and send small frames at once (`TCP_NODELAY`). For [`HttpServer::on_connect`](actix_web::HttpServer::on_connect);
/// or, once for all connections, for the [`TcpListener`] that they come from, where they inherit it,
/// as they do on Linux.
///
/// A session whose client does not read is not run by actix-web while its write buffer is full, so
/// nothing in the session could free its file descriptor.
///
/// ```no_run
/// # use actix_web::{App, HttpServer};
/// HttpServer::new(App::new).on_connect(|io, _| actix_presence::limit_silence(io));
/// ```
pub fn limit_silence(io: &dyn Any) {
    let stream = io.downcast_ref::<TcpStream>().map(SockRef::from);
    let listener = || io.downcast_ref::<TcpListener>().map(SockRef::from);
    let Some(socket) = stream.or_else(listener) else { return };
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_connection_inherits_from_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        limit_silence(&listener);
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }
}
