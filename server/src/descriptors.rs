//! File descriptors: how many the process may open, and how they are divided.

use std::num::NonZeroUsize;

use actix_presence::sockets::MAX_LINGERING_SOCKETS;

/// What the process opens besides the workers and the listeners: the standard streams, the database
/// with its lock, connections to PostgreSQL and Redis while one replaces another, the runtimes of the
/// main thread and the acceptor, and lookups of names. 22 are open at rest on SQLite.
const OWN: usize = 36;
/// What a worker opens for itself (epoll and what wakes it), and for sockets that are being closed.
const WORKER: usize = 4 + MAX_LINGERING_SOCKETS;
/// A worker that can serve fewer connections than this is of no use.
const LEAST: usize = 8;
/// No worker serves more, whatever the system allows.
const MOST: usize = 1_000_000;

/// How many connections a worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// What the process may open in all; `None` where the system has no such limit.
    pub descriptors: Option<usize>,
    pub workers: usize,
    /// Connections of a worker, at which no more are accepted.
    pub accepted: usize,
    /// Connections of a worker above which those that wait for their clients are closed.
    pub full: usize,
    /// WebSockets of a worker, above which handshakes are refused.
    pub websockets: usize,
    /// Connections of a worker that carry no WebSocket and wait for their clients.
    pub waiting: usize,
}

/// The process may not open as many files as it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "too few file descriptors: {allowed} are allowed (`ulimit -n`), and {workers} workers need at least \
     {needed}; allow more, or start fewer --workers"
)]
pub(super) struct TooFewDescriptors {
    allowed: usize,
    workers: usize,
    needed: usize,
}

impl Limits {
    /// Divides so many descriptors.
    pub fn new(
        descriptors: Option<usize>,
        workers: usize,
        listeners: usize,
    ) -> Result<Self, TooFewDescriptors> {
        let Some(allowed) = descriptors else {
            return Ok(Self::divide(None, workers, MOST, MOST));
        };
        let own = OWN + listeners + workers * WORKER;
        let accepted = allowed.saturating_sub(own) / workers;
        if accepted < LEAST {
            return Err(TooFewDescriptors { allowed, workers, needed: own + workers * LEAST });
        }
        Ok(Self::divide(descriptors, workers, accepted.min(MOST), allowed / 4 / workers))
    }

    fn divide(descriptors: Option<usize>, workers: usize, accepted: usize, waiting: usize) -> Self {
        // Room for those who come while others are being closed.
        let full = accepted - (accepted / 16).clamp(2, 64);
        // Room for health checks and the like, which WebSockets do not get.
        let websockets = full - (accepted / 16).clamp(4, 256);
        let waiting = waiting.clamp(4, full);
        Self { descriptors, workers, accepted, full, websockets, waiting }
    }

    /// How many WebSockets all workers take together.
    pub fn all_websockets(&self) -> usize {
        self.websockets * self.workers
    }
}

/// As many threads as actix-web starts unless told otherwise.
pub(super) fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, NonZeroUsize::get)
}

/// Raises the soft limit to the hard one, and answers what the process may open then.
#[cfg(unix)]
pub(super) fn raise() -> Option<usize> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            if limit.current != limit.maximum {
                tracing::warn!(%error, "the limit of file descriptors cannot be raised");
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
    fn descriptors_are_divided_so_that_accepting_never_meets_the_limit() {
        for (allowed, workers) in [(128, 2), (256, 8), (1024, 1), (20_000, 2), (1 << 30, 64)] {
            let limits = Limits::new(Some(allowed), workers, 1).unwrap();
            assert!(OWN + 1 + workers * (WORKER + limits.accepted) <= allowed, "{limits:?}");
            assert!(limits.websockets < limits.full && limits.full < limits.accepted, "{limits:?}");
            assert!(limits.waiting <= limits.full, "{limits:?}");
            assert!(limits.websockets > 0, "{limits:?}");
        }
        let limits = Limits::new(Some(20_000), 2, 1).unwrap();
        assert_eq!(limits.waiting, 2_500, "a quarter");
        assert!(limits.all_websockets() > 19_000);
    }

    #[test]
    fn too_few_are_an_error_that_says_how_many_are_needed() {
        let error = Limits::new(Some(64), 16, 1).unwrap_err();
        assert!(error.to_string().contains(&error.needed.to_string()));
        assert!(Limits::new(Some(error.needed - 1), 16, 1).is_err());
        assert!(Limits::new(Some(error.needed), 16, 1).is_ok());
        assert!(Limits::new(Some(0), 1, 1).is_err());
        assert!(Limits::new(None, 1024, 9).is_ok());
    }
}
