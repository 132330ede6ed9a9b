//! The signals of the process: those that stop the server, and those that must not end it.

use std::io;

pub(super) use platform::{StopSignals, survive_file_limit};

#[cfg(unix)]
mod platform {
    use std::{future::poll_fn, task::Poll};

    use actix_web::rt::signal::unix::{Signal, SignalKind, signal};
    use tokio::runtime;

    use super::io;

    /// Lets a write to a file that has reached its limit (`ulimit -f`) fail like one to a full disk, where
    /// SIGXFSZ would end the process. Rust does so for SIGPIPE.
    pub fn survive_file_limit() {
        let listen = async { signal(SignalKind::from_raw(libc::SIGXFSZ)) };
        // The handler stays until the process ends. Without it the signal says what is wrong.
        let runtime = runtime::Builder::new_current_thread().enable_io().build();
        let _ = runtime.map(|runtime| runtime.block_on(listen));
    }

    /// The signals that stop the server, one after the other: SIGTERM and SIGINT.
    pub struct StopSignals {
        stop: [Signal; 2],
        /// It comes from a terminal that closes, or from a rotation of logs, and would end the process.
        _hangup: Signal,
    }

    impl StopSignals {
        pub fn listen() -> io::Result<Self> {
            Ok(Self {
                stop: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?],
                _hangup: signal(SignalKind::hangup())?,
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
    /// Other systems have no such limit.
    pub fn survive_file_limit() {}

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
