//! Whether a store still waits for its database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Result, StoreError};
use crate::model::micros;

/// How often it is looked whether a call is overdue.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The state of the call that a store is in: how long its database has not answered, and may not.
///
/// A clone shows the same store. The store sets it on its own thread; others look at it, to give up a call
/// that hangs. A call in which one statement is answered after the other does not hang, however long it
/// takes.
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::store::Pulse;
///
/// let pulse = Pulse::default();
/// let seen_by_others = pulse.clone();
/// let call = pulse.begin(Duration::from_secs(5));
/// pulse.answered();
/// assert!(!seen_by_others.is_overdue());
/// drop(call);
/// ```
#[derive(Clone, Debug)]
pub struct Pulse(Arc<State>);

#[derive(Debug)]
struct State {
    base: Instant,
    /// When the answer that is waited for is overdue, in microseconds after the base; 0 without a call.
    deadline: AtomicU64,
    /// How long the database may take for an answer, in microseconds.
    limit: AtomicU64,
}

/// A call of a store, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Waiting(Pulse);

impl Default for Pulse {
    fn default() -> Self {
        let (deadline, limit) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(State { base: Instant::now(), deadline, limit }))
    }
}

impl Pulse {
    /// Begins a call in which the database may take so long for each answer.
    pub fn begin(&self, limit: Duration) -> Waiting {
        self.allow(limit);
        Waiting(self.clone())
    }

    /// Allows the database so long for each further answer of the call.
    pub fn allow(&self, limit: Duration) {
        self.0.limit.store(micros(limit), Relaxed);
        self.wait();
    }

    /// The database has answered. Does nothing outside a call.
    pub fn answered(&self) {
        if self.is_waiting() {
            self.wait();
        }
    }

    /// Whether both are of one store.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the store is in a call.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.0.deadline.load(Relaxed) != 0
    }

    /// Whether the store is in a call, and the database has not answered for too long.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        let deadline = self.0.deadline.load(Relaxed);
        deadline != 0 && self.now() > deadline
    }

    /// Runs a call on a thread of its own, and gives it up if it is overdue: the thread is left to itself.
    ///
    /// # Errors
    ///
    /// That of the call, or [`StoreError::Stalled`].
    pub(crate) fn watch<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, answer) = mpsc::channel();
        // Nobody waits for the answer of a call that was given up.
        let call = move || drop(done.send(call()));
        let thread = thread::Builder::new().name("presence-store".to_owned()).spawn(call);
        thread.map_err(StoreError::unavailable)?;
        loop {
            match answer.recv_timeout(CHECK_INTERVAL) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(StoreError::Panicked),
                Err(RecvTimeoutError::Timeout) if self.is_overdue() => {
                    return Err(StoreError::Stalled);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn wait(&self) {
        let deadline = self.now().saturating_add(self.0.limit.load(Relaxed)).max(1);
        self.0.deadline.store(deadline, Relaxed);
    }

    fn now(&self) -> u64 {
        micros(self.0.base.elapsed())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Self(Pulse(state)) = self;
        state.deadline.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_without_answers_is_overdue() {
        let pulse = Pulse::default();
        pulse.answered();
        assert!(!pulse.is_waiting() && !pulse.is_overdue());
        let call = pulse.begin(Duration::MAX);
        assert!(pulse.is_waiting() && !pulse.is_overdue());
        pulse.allow(Duration::ZERO);
        while !pulse.is_overdue() {}
        drop(call);
        assert!(!pulse.is_waiting() && !pulse.is_overdue());
    }

    #[test]
    fn a_call_that_is_overdue_is_given_up_and_another_is_answered() {
        let pulse = Pulse::default();
        let waiting = pulse.begin(Duration::from_millis(1));
        let (end, ended) = mpsc::channel::<()>();
        let given_up = pulse.watch(move || {
            let _ = ended.recv();
            Ok(())
        });
        assert!(matches!(given_up, Err(StoreError::Stalled)));
        drop((waiting, end));
        assert_eq!(pulse.watch(|| Ok(3)).unwrap(), 3);
        let panicked: Result<()> = pulse.watch(|| panic!("as the test says"));
        assert!(matches!(panicked, Err(StoreError::Panicked)));
    }
}
