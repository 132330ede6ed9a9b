//! Which socket: a descriptor together with the identity of the socket behind it.

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

/// The kernel's number of a socket, which is never given twice.
#[cfg(target_os = "linux")]
type Identity = u64;
/// Its own address and its peer's, which no other open socket has.
#[cfg(not(target_os = "linux"))]
type Identity = (std::net::SocketAddr, std::net::SocketAddr);

/// A TCP socket of this thread, as a plain value. It does not keep the socket open, and once the
/// socket is closed it means nothing, even if its descriptor is taken by another one.
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

    /// Shuts the socket down at once, without waiting for the peer; what is unsent is dropped when the
    /// socket is closed, which its owner does when it notices. `false` if it is closed already.
    pub fn end(self) -> bool {
        let shut = |socket: &Socket| {
            // Otherwise the kernel would go on sending after the descriptor is closed.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.shutdown(Shutdown::Both)
        };
        match self.with(shut) {
            None => false,
            Some(Ok(())) => true,
            // The peer has gone meanwhile.
            Some(Err(error)) if error.kind() == io::ErrorKind::NotConnected => true,
            Some(Err(error)) => {
                tracing::debug!(%error, "a socket cannot be shut down");
                true
            }
        }
    }

    /// Has nothing more read from the socket; what is to be written is written still. For actix-web this
    /// is the end of its connection: after a response to a request whose body has not ended, such as a
    /// WebSocket's, it otherwise waits a second for the peer to close first, and only then closes.
    pub fn end_reading(self) {
        self.with(|socket| {
            if let Err(error) = socket.shutdown(Shutdown::Read)
                && error.kind() != io::ErrorKind::NotConnected
            {
                tracing::debug!(%error, "a socket cannot be shut down for reading");
            }
        });
    }

    /// Does something with the socket, if it is open still.
    ///
    /// Only on the thread that the socket belongs to: elsewhere it could be closed, and its descriptor
    /// be taken by another one, between the look at its identity and what follows.
    pub(super) fn with<T>(self, act: impl FnOnce(&Socket) -> T) -> Option<T> {
        if thread::current().id() != self.thread {
            return None;
        }
        // SAFETY: The connections of this thread are closed by this thread alone, so while this function
        // runs the descriptor keeps its meaning. If the connection was closed before, the number may
        // stand for nothing or for something else of this process; it is then only asked for its
        // identity, which fails or differs, and dropped.
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
