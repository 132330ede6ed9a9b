//! File descriptors: how many the process may open, and how they are divided among the workers.

use std::num::NonZeroUsize;

use actix_presence::sockets::MAX_LINGERING_SOCKETS;

/// What the process opens besides workers and listeners: the standard streams, the database with its
/// lock, connections to PostgreSQL and Redis while one replaces another, the runtimes of the main thread
/// and the acceptor, and DNS look-ups. With SQLite 22 are open in an idle process.
const PROCESS_DESCRIPTORS: usize = 36;
/// What a worker opens for itself (epoll and its waker), and for sockets that are being closed.
const WORKER_DESCRIPTORS: usize = 4 + MAX_LINGERING_SOCKETS;
/// A worker that can serve fewer connections than this is useless.
const MIN_CONNECTIONS: usize = 8;
/// No worker serves more connections, whatever the system allows.
const MAX_CONNECTIONS: usize = 1_000_000;

/// How many connections a worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DescriptorLimits {
    /// What the whole process may open; `None` where the system has no such limit.
    pub descriptors: Option<usize>,
    pub workers: usize,
    /// Connections of a worker at which it accepts no more.
    pub accepted: usize,
    /// Connections of a worker above which those that wait for their clients are closed.
    pub full: usize,
    /// WebSockets of a worker at which handshakes are refused.
    pub websockets: usize,
    /// Connections of a worker that wait for their clients without being WebSockets, above which the
    /// oldest are closed.
    pub waiting: usize,
}

/// The process may open fewer files than it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "too few file descriptors: {allowed} are allowed, but {workers} workers need at least {needed}; raise \
     the limit (`ulimit -n`), or start fewer --workers"
)]
pub(super) struct TooFewDescriptors {
    allowed: usize,
    workers: usize,
    needed: usize,
}

impl DescriptorLimits {
    /// Divides the descriptors.
    pub fn new(
        descriptors: Option<usize>,
        workers: usize,
        listeners: usize,
    ) -> Result<Self, TooFewDescriptors> {
        let Some(allowed) = descriptors else {
            return Ok(Self::divide(None, workers, MAX_CONNECTIONS, MAX_CONNECTIONS));
        };
        let own = PROCESS_DESCRIPTORS + listeners + workers * WORKER_DESCRIPTORS;
        let accepted = allowed.saturating_sub(own) / workers;
        if accepted < MIN_CONNECTIONS {
            return Err(TooFewDescriptors {
                allowed,
                workers,
                needed: own + workers * MIN_CONNECTIONS,
            });
        }
        Ok(Self::divide(descriptors, workers, accepted.min(MAX_CONNECTIONS), allowed / 4 / workers))
    }

    fn divide(descriptors: Option<usize>, workers: usize, accepted: usize, waiting: usize) -> Self {
        // Leaves room for new connections while others are being closed.
        let full = accepted - (accepted / 16).clamp(2, 64);
        // Leaves room for health checks and other plain HTTP.
        let websockets = full - (accepted / 16).clamp(4, 256);
        let waiting = waiting.clamp(4, full);
        Self { descriptors, workers, accepted, full, websockets, waiting }
    }

    /// The WebSockets of all workers together.
    pub fn all_websockets(&self) -> usize {
        self.websockets * self.workers
    }
}

/// As many workers as actix-web starts by default.
pub(super) fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, NonZeroUsize::get)
}

/// Raises the soft limit to the hard one, and returns what the process may open now.
#[cfg(unix)]
pub(super) fn raise() -> Option<usize> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            if limit.current != limit.maximum {
                tracing::warn!(%error, "cannot raise the limit of file descriptors");
            }
            limit.current
        }
    };
    allowed.map(|allowed| usize::try_from(allowed).unwrap_or(usize::MAX))
}

#[cfg(not(unix))]
pub(super) fn raise() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_divided_so_that_accepting_never_reaches_the_limit() {
        for (allowed, workers) in [(128, 2), (256, 8), (1024, 1), (20_000, 2), (1 << 30, 64)] {
            let limits = DescriptorLimits::new(Some(allowed), workers, 1).unwrap();
            assert!(
                PROCESS_DESCRIPTORS + 1 + workers * (WORKER_DESCRIPTORS + limits.accepted)
                    <= allowed,
                "{limits:?}"
            );
            assert!(limits.websockets < limits.full && limits.full < limits.accepted, "{limits:?}");
            assert!(limits.waiting <= limits.full, "{limits:?}");
            assert!(limits.websockets > 0, "{limits:?}");
        }
        let limits = DescriptorLimits::new(Some(20_000), 2, 1).unwrap();
        assert_eq!(limits.waiting, 2_500, "a quarter");
        assert!(limits.all_websockets() > 19_000);
    }

    #[test]
    fn too_few_descriptors_are_an_error_with_the_number_needed() {
        let error = DescriptorLimits::new(Some(64), 16, 1).unwrap_err();
        assert!(error.to_string().contains(&error.needed.to_string()));
        assert!(DescriptorLimits::new(Some(error.needed - 1), 16, 1).is_err());
        assert!(DescriptorLimits::new(Some(error.needed), 16, 1).is_ok());
        assert!(DescriptorLimits::new(Some(0), 1, 1).is_err());
        assert!(DescriptorLimits::new(None, 1024, 9).is_ok());
    }
}
