//! What the kernel knows of a connection's bytes.

use std::time::Duration;

use socket2::Socket;

/// States of a socket that has sent its FIN, or is about to (`include/net/tcp_states.h` of Linux).
#[cfg(all(target_os = "linux", any(target_env = "gnu", target_env = "musl")))]
const FIN_WAIT1: u8 = 4;
#[cfg(all(target_os = "linux", any(target_env = "gnu", target_env = "musl")))]
const LAST_ACK: u8 = 9;
#[cfg(all(target_os = "linux", any(target_env = "gnu", target_env = "musl")))]
const CLOSING: u8 = 11;

/// How far the bytes of a connection have come, in both directions.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes received from the peer since the connection began.
    pub received: u64,
    /// For how long the peer has sent nothing.
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

        // SAFETY: Numbers, of which zero is one.
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::tcp_info>();
        let mut len = libc::socklen_t::try_from(size).ok()?;
        let into = (&raw mut info).cast();
        // SAFETY: `into` points to `len` writable bytes, and the kernel writes no more of them. What an
        // older kernel does not write stays zero.
        let failed = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                into,
                &raw mut len,
            )
        };
        // A FIN that is on its way counts as one that is not acknowledged.
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

impl super::SocketKey {
    /// How far its bytes have come; `None` if it is closed, or the system does not say.
    #[must_use]
    pub fn progress(self) -> Option<Progress> {
        self.with(Progress::of).flatten()
    }
}
