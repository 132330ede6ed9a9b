//! Notices parts of a presence system that crash; a crash ends the system, see
//! [`PresenceHandle::closed`](crate::PresenceHandle::closed).

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use actix::{Actor, Addr, SyncArbiter, SyncContext};
use tokio::sync::watch;

use crate::model::micros;

/// A part of the presence system has crashed: it panicked, or its thread was ended. It is not restarted;
/// the process should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Crashed {
    /// The [`RoomRegistry`](crate::RoomRegistry): no joins, no messages.
    #[error("the room registry ended unexpectedly")]
    Registry,
    /// The [`Pruner`](crate::Pruner): presences no longer expire.
    #[error("the pruner ended unexpectedly")]
    Pruner,
    /// The writer: nothing is written to the database.
    #[error("the thread that writes to the database ended unexpectedly")]
    Writer,
    /// The thread that reads what other nodes have written.
    #[error("the thread that reads from the database ended unexpectedly")]
    Reader,
}

#[derive(Clone, Copy, Debug)]
enum SystemState {
    Running,
    /// Parts may end without having crashed.
    Stopping,
    Stopped,
    Crashed(Crashed),
}

/// The state of a presence system. A clone has the same state.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    state: watch::Sender<SystemState>,
    answers: Arc<Answers>,
}

/// The last answer of the registry.
#[derive(Debug)]
struct Answers {
    started: Instant,
    /// In microseconds after the start.
    last: AtomicU64,
}

impl Default for Supervisor {
    fn default() -> Self {
        let answers = Answers { started: Instant::now(), last: AtomicU64::new(0) };
        Self { state: watch::Sender::new(SystemState::Running), answers: Arc::new(answers) }
    }
}

impl Supervisor {
    /// A guard that a part holds for as long as it runs.
    pub fn guard(&self, part: Crashed) -> Guard {
        Guard { state: self.state.clone(), part, release: Release::default() }
    }

    /// The system shuts down: parts may end.
    pub fn stopping(&self) {
        self.change(SystemState::Stopping);
    }

    /// The system has shut down.
    pub fn stopped(&self) {
        self.change(SystemState::Stopped);
    }

    /// Changes the state, unless the system has crashed.
    fn change(&self, to: SystemState) {
        self.state.send_if_modified(|state| {
            let ends = !matches!(state, SystemState::Crashed(_));
            if ends {
                *state = to;
            }
            ends
        });
    }

    pub async fn closed(&self) -> Result<(), Crashed> {
        let ended =
            |state: &SystemState| !matches!(state, SystemState::Running | SystemState::Stopping);
        match self.state.subscribe().wait_for(ended).await.as_deref() {
            Ok(SystemState::Crashed(part)) => Err(*part),
            _ => Ok(()),
        }
    }

    pub fn crashed(&self) -> Option<Crashed> {
        match *self.state.borrow() {
            SystemState::Crashed(part) => Some(part),
            _ => None,
        }
    }

    /// How long the registry has not answered.
    pub fn silence(&self) -> Duration {
        let last = Duration::from_micros(self.answers.last.load(Relaxed));
        self.answers.started.elapsed().saturating_sub(last)
    }

    /// The registry has answered.
    pub fn answered(&self) {
        let Answers { started, last } = &*self.answers;
        last.store(micros(started.elapsed()), Relaxed);
    }
}

/// If it is dropped while the system runs, its part has crashed.
#[derive(Debug)]
pub(crate) struct Guard {
    state: watch::Sender<SystemState>,
    part: Crashed,
    release: Release,
}

/// Lets the part of a [`Guard`] end without having crashed: another one has taken over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Release(Arc<AtomicBool>);

impl Release {
    pub fn release(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Guard {
    /// Whether the system shuts down, and the part has not crashed.
    pub fn is_stopping(&self) -> bool {
        matches!(*self.state.borrow(), SystemState::Stopping | SystemState::Stopped)
    }

    /// What releases this guard.
    pub fn release(&self) -> Release {
        self.release.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.release.0.load(Relaxed) {
            return;
        }
        self.state.send_if_modified(|state| {
            let runs = matches!(state, SystemState::Running);
            if runs {
                *state = SystemState::Crashed(self.part);
            }
            runs
        });
    }
}

/// Fails if the system allows no further thread: libraries that start one would panic.
pub(crate) fn check_threads() -> io::Result<()> {
    let _ = thread::Builder::new().spawn(|| ())?.join();
    Ok(())
}

/// Starts an actor that blocks, on a thread of its own.
pub(crate) fn start_sync<A>(factory: impl Fn() -> A + Send + Sync + 'static) -> io::Result<Addr<A>>
where
    A: Actor<Context = SyncContext<A>>,
{
    check_threads()?;
    // Somebody else may have taken the last thread since.
    catch_unwind(AssertUnwindSafe(|| SyncArbiter::start(1, factory)))
        .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn the_first_part_that_crashes_is_reported() {
        let supervisor = Supervisor::default();
        let [registry, writer] = [Crashed::Registry, Crashed::Writer].map(|p| supervisor.guard(p));
        drop(writer);
        drop(registry);
        supervisor.stopping();
        supervisor.stopped();
        assert_eq!(supervisor.closed().await, Err(Crashed::Writer));
        assert_eq!(supervisor.crashed(), Some(Crashed::Writer));
    }

    #[actix::test]
    async fn parts_that_end_in_a_shutdown_have_not_crashed() {
        let supervisor = Supervisor::default();
        let guard = supervisor.guard(Crashed::Registry);
        supervisor.stopping();
        drop(guard);
        assert_eq!(supervisor.crashed(), None);
        supervisor.stopped();
        assert_eq!(supervisor.closed().await, Ok(()));
    }
}
