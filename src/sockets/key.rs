//! A socket as a plain value: a descriptor together with the identity of the socket behind it; and what the
//! kernel knows of its bytes.

#[cfg(unix)]
use std::os::fd::{AsRawFd, BorrowedFd as Borrowed, RawFd as Raw};
#[cfg(windows)]
use std::os::windows::io::{AsRawSocket, BorrowedSocket as Borrowed, RawSocket as Raw};
use std::{
    io,
    net::Shutdown,
    thread::{self, ThreadId},
    time::Duration,
};

use actix_web::rt::net::TcpStream;
use socket2::{SockRef, Socket};

/// The kernel's cookie of a socket, which is never reused.
#[cfg(target_os = "linux")]
type Identity = u64;
/// The two addresses of a connection, which no other open socket has.
#[cfg(not(target_os = "linux"))]
type Identity = (std::net::SocketAddr, std::net::SocketAddr);

/// A TCP socket of this thread, as a plain value. It does not keep the socket open, and refers to nothing
/// once that is closed, even if its descriptor is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    pub(super) descriptor: Raw,
    identity: Identity,
    thread: ThreadId,
}

impl SocketKey {
    pub(super) fn of(stream: &TcpStream) -> Option<Self> {
        let identity = identity(&SockRef::from(stream)).ok()?;
        #[cfg(unix)]
        let descriptor = stream.as_raw_fd();
        #[cfg(windows)]
        let descriptor = stream.as_raw_socket();
        Some(Self { descriptor, identity, thread: thread::current().id() })
    }

    /// Shuts the socket down at once, without waiting for the peer. Unsent bytes are dropped when its owner
    /// notices and closes it. `false` if it is closed already.
    pub fn end(self) -> bool {
        let shut = |socket: &Socket| {
            // Otherwise the kernel would send the rest after the descriptor is closed.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.shutdown(Shutdown::Both)
        };
        match self.with(shut) {
            None => false,
            Some(Ok(())) => true,
            // The peer has disconnected meanwhile.
            Some(Err(error)) if error.kind() == io::ErrorKind::NotConnected => true,
            Some(Err(error)) => {
                tracing::debug!(%error, "a socket cannot be shut down");
                true
            }
        }
    }

    /// Shuts the socket down for reading; it can still be written. For actix-web this ends the connection:
    /// after a response to a request whose body has not ended, such as a WebSocket's, it otherwise waits a
    /// second for the peer to close first.
    pub fn end_reading(self) {
        self.with(|socket| {
            if let Err(error) = socket.shutdown(Shutdown::Read)
                && error.kind() != io::ErrorKind::NotConnected
            {
                tracing::debug!(%error, "a socket cannot be shut down for reading");
            }
        });
    }

    /// What the kernel knows of its bytes; `None` if it is closed, or the system does not tell.
    #[must_use]
    pub fn progress(self) -> Option<Progress> {
        self.with(Progress::of).flatten()
    }

    /// Calls a function with the socket, if it is still open.
    ///
    /// Only on the thread that the socket belongs to: elsewhere it could be closed, and its descriptor
    /// reused, after its identity was checked.
    pub(super) fn with<T>(self, act: impl FnOnce(&Socket) -> T) -> Option<T> {
        if thread::current().id() != self.thread {
            return None;
        }
        // SAFETY: Only this thread closes its connections, so the descriptor stays valid while this function
        // runs. If the connection was closed before, the number may be unused or reused; then only its
        // identity is read, which fails or differs.
        let borrowed = unsafe { Borrowed::borrow_raw(self.descriptor) };
        let socket = SockRef::from(&borrowed);
        identity(&socket).is_ok_and(|identity| identity == self.identity).then(|| act(&socket))
    }
}

#[cfg(target_os = "linux")]
fn identity(socket: &Socket) -> io::Result<Identity> {
    socket.cookie()
}

#[cfg(not(target_os = "linux"))]
fn identity(socket: &Socket) -> io::Result<Identity> {
    let address = |address: socket2::SockAddr| address.as_socket().ok_or(io::ErrorKind::Other);
    Ok((address(socket.local_addr()?)?, address(socket.peer_addr()?)?))
}

/// What the kernel knows of a connection's bytes, in both directions.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes received from the peer since the connection began.
    pub received: u64,
    /// How long ago the peer has sent something.
    pub silence: Duration,
    /// Bytes that the peer has acknowledged since the connection began.
    pub acknowledged: u64,
    /// Whether bytes wait to be sent or acknowledged.
    pub unsent: bool,
}

impl Progress {
    #[cfg(all(target_os = "linux", any(target_env = "gnu", target_env = "musl")))]
    pub(super) fn of(socket: &Socket) -> Option<Self> {
        use std::os::fd::AsRawFd;

        // States of a socket that has sent its FIN, or is about to (`include/net/tcp_states.h` of Linux).
        const FIN_WAIT1: u8 = 4;
        const LAST_ACK: u8 = 9;
        const CLOSING: u8 = 11;
        // SAFETY: All zeros are a valid value of these integers.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::tcp_info>();
        let mut len = libc::socklen_t::try_from(size).ok()?;
        let into = (&raw mut info).cast();
        // SAFETY: `into` points to `len` writable bytes, and the kernel writes no more. What an older kernel
        // does not write stays zero.
        let failed = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                into,
                &raw mut len,
            )
        };
        // A pending FIN counts as unacknowledged, too.
        let fin = u32::from(matches!(info.tcpi_state, FIN_WAIT1 | LAST_ACK | CLOSING));
        (failed == 0).then(|| Self {
            received: info.tcpi_bytes_received,
            silence: Duration::from_millis(info.tcpi_last_data_recv.into()),
            acknowledged: info.tcpi_bytes_acked,
            unsent: info.tcpi_notsent_bytes > 0 || info.tcpi_unacked > fin,
        })
    }

    #[cfg(not(all(target_os = "linux", any(target_env = "gnu", target_env = "musl"))))]
    pub(super) fn of(_: &Socket) -> Option<Self> {
        None
    }
}
