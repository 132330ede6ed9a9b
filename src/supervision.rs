//! Whether the parts of a presence system still run: a part that ends although nobody stopped the system
//! ends the system, see [`PresenceHandle::closed`](crate::PresenceHandle::closed).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::model::micros;

/// A part of the presence system ended although nobody stopped it: it panicked, or its thread was ended.
/// Nothing brings it back; the process should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Crashed {
    /// The [`RoomRegistry`](crate::RoomRegistry): nobody can join, and nobody hears anything.
    #[error("the room registry ended unexpectedly")]
    Registry,
    /// The [`Pruner`](crate::Pruner): presences no longer expire.
    #[error("the pruner ended unexpectedly")]
    Pruner,
    /// The [`Writer`](crate::mirror::Writer): nothing is written to the database.
    #[error("the thread that writes to the database ended unexpectedly")]
    Writer,
    /// The thread that reads what other nodes have written.
    #[error("the thread that reads from the database ended unexpectedly")]
    Reader,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Running,
    /// Parts may end now.
    Stopping,
    Stopped,
    Crashed(Crashed),
}

/// Knows how a presence system ended. A clone is the same.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    state: watch::Sender<State>,
    answers: Arc<Answers>,
}

/// When the registry answered last.
#[derive(Debug)]
struct Answers {
    started: Instant,
    /// In microseconds after the start.
    last: AtomicU64,
}

impl Default for Supervisor {
    fn default() -> Self {
        let answers = Answers { started: Instant::now(), last: AtomicU64::new(0) };
        Self { state: watch::Sender::new(State::Running), answers: Arc::new(answers) }
    }
}

impl Supervisor {
    /// What a part keeps for as long as it runs.
    pub fn guard(&self, part: Crashed) -> Guard {
        Guard { state: self.state.clone(), part }
    }

    /// From now on parts end in order.
    pub fn stopping(&self) {
        self.change(State::Stopping);
    }

    /// The system has been shut down.
    pub fn stopped(&self) {
        self.change(State::Stopped);
    }

    /// A system that crashed stays so.
    fn change(&self, to: State) {
        self.state.send_if_modified(|state| {
            let ends = !matches!(state, State::Crashed(_));
            if ends {
                *state = to;
            }
            ends
        });
    }

    pub async fn closed(&self) -> Result<(), Crashed> {
        let ended = |state: &State| !matches!(state, State::Running | State::Stopping);
        match self.state.subscribe().wait_for(ended).await.as_deref() {
            Ok(State::Crashed(part)) => Err(*part),
            _ => Ok(()),
        }
    }

    pub fn crashed(&self) -> Option<Crashed> {
        match *self.state.borrow() {
            State::Crashed(part) => Some(part),
            _ => None,
        }
    }

    /// For how long the registry has not answered.
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

/// A part that is dropped with it while the system runs has crashed.
#[derive(Debug)]
pub(crate) struct Guard {
    state: watch::Sender<State>,
    part: Crashed,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.state.send_if_modified(|state| {
            let runs = matches!(state, State::Running);
            if runs {
                *state = State::Crashed(self.part);
            }
            runs
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix::test]
    async fn the_first_part_that_ends_while_the_system_runs_is_named() {
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
