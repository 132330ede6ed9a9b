//! The signals of the process: those that stop the server, and those that must not end it.

use std::io;

pub(super) use platform::StopSignals;

#[cfg(unix)]
mod platform {
    use std::{future::poll_fn, task::Poll};

    use actix_web::rt::signal::unix::{Signal, SignalKind, signal};

    use super::io;

    /// The signals that stop the server, one after the other: SIGTERM and SIGINT.
    pub struct StopSignals {
        stop: [Signal; 2],
        /// Signals whose default action would end the process. SIGHUP comes from a terminal that closes, or
        /// from a rotation of logs. SIGXFSZ comes when a file has reached its limit (`ulimit -f`): the write
        /// then fails like one to a full disk. Rust ignores SIGPIPE already.
        _harmless: [Signal; 2],
    }

    impl StopSignals {
        pub fn listen() -> io::Result<Self> {
            let file_limit = SignalKind::from_raw(libc::SIGXFSZ);
            Ok(Self {
                stop: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?],
                _harmless: [signal(SignalKind::hangup())?, signal(file_limit)?],
            })
        }

        /// Waits for the next one.
        pub async fn next(&mut self) {
            poll_fn(|cx| {
                let ready = self.stop.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
                if ready { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }
}

#[cfg(not(unix))]
mod platform {
    use std::future::pending;

    use super::io;

    /// The signal that stops the server: Ctrl-C.
    pub struct StopSignals;

    impl StopSignals {
        pub fn listen() -> io::Result<Self> {
            Ok(Self)
        }

        /// Waits for the next one.
        pub async fn next(&mut self) {
            if actix_web::rt::signal::ctrl_c().await.is_err() {
                pending::<()>().await;
            }
        }
    }
}
