//! When the writer gets the next batch, and who waits for it.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::dirty::Dirty;
use crate::{
    messages::FlushError,
    model::Epoch,
    store::{Committed, StoreError, reader::retry_pause},
};

/// The time between two commits that nobody waits for: a commit costs about as much for one row as for a
/// hundred, and a writer that takes each change by itself takes processor time from those who make them.
pub(crate) const COMMIT_INTERVAL: Duration = Duration::from_millis(50);

/// Whether it is time for a batch.
#[derive(Debug)]
pub(super) struct WriteSchedule {
    commit_interval: Duration,
    in_interval: bool,
    failures: u32,
    paused: bool,
}

impl WriteSchedule {
    pub fn new(commit_interval: Duration) -> Self {
        Self { commit_interval, in_interval: false, failures: 0, paused: false }
    }

    /// Whether a batch may begin; an urgent one does not wait for the end of the commit interval.
    pub fn allows(&self, urgent: bool) -> bool {
        !self.paused && (urgent || !self.in_interval)
    }

    /// Begins a commit interval after a commit, and returns its length. `None` if there is none, or one
    /// already.
    pub fn begin_interval(&mut self) -> Option<Duration> {
        let begins = !self.commit_interval.is_zero() && !self.in_interval;
        self.in_interval |= begins;
        begins.then_some(self.commit_interval)
    }

    /// Ends the commit interval.
    pub fn end_interval(&mut self) {
        self.in_interval = false;
    }

    /// Stops all batches until [`resume`](Self::resume).
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Stops all batches after a failure, and returns for how long.
    pub fn pause_after_failure(&mut self) -> Duration {
        self.paused = true;
        let pause = retry_pause(self.failures);
        self.failures += 1;
        pause
    }

    /// Allows batches again.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// The database works: the next failure is a first one.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// What to do after an answer of the writer.
#[derive(Debug)]
pub(crate) enum NextStep {
    /// Write the next batch.
    Write,
    /// Publish what was committed, and write the next batch.
    Publish(Committed),
    /// Write the next batch after this pause.
    RetryAfter(Duration),
    /// Renew the lease: other nodes have removed the rows of this one.
    Renew,
    /// Renew the lease after this pause, on another connection: a call hangs.
    RenewAfter(Duration),
    /// Go on in this incarnation, and bring the rows in line with memory.
    ContinueAs(Epoch),
    /// Write every row again, in this incarnation.
    BeginIncarnation(Epoch),
}

pub(super) type Flushed = oneshot::Receiver<Result<(), FlushError>>;

/// The [`Flush`](crate::Flush)es that wait for a commit.
#[derive(Debug, Default)]
pub(super) struct Waiters(Vec<Waiter>);

#[derive(Debug)]
struct Waiter {
    /// It waits for everything marked up to here.
    mark: u64,
    /// Whether a write has begun since: the database may have been lost unnoticed before.
    begun: bool,
    reply: oneshot::Sender<Result<(), FlushError>>,
}

impl Waiters {
    pub fn add(&mut self, mark: u64) -> Flushed {
        let (reply, receiver) = oneshot::channel();
        self.0.push(Waiter { mark, begun: false, reply });
        receiver
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A write begins.
    pub fn write_begins(&mut self) {
        self.0.iter_mut().for_each(|waiter| waiter.begun = true);
    }

    /// Answers the waiters whose marks are committed.
    pub fn answer(&mut self, dirty: &Dirty, any_refused: bool) {
        let done = |waiter: &mut Waiter| waiter.begun && dirty.is_clean(waiter.mark);
        for waiter in self.0.extract_if(.., done) {
            // The receiver may have been dropped.
            let _ =
                waiter.reply.send(if any_refused { Err(FlushError::RowsRefused) } else { Ok(()) });
        }
    }

    /// Answers all waiters with an error.
    pub fn fail(&mut self, error: &FlushError) {
        for waiter in self.0.drain(..) {
            let _ = waiter.reply.send(Err(error.clone()));
        }
    }

    /// Drops all waiters, whose receivers then fail.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// The error of the store as that of a flush.
pub(crate) fn flush_error(error: StoreError) -> FlushError {
    match error {
        StoreError::Stalled => FlushError::Stalled,
        error => FlushError::Database { reason: error.as_str(), source: Arc::new(error) },
    }
}
