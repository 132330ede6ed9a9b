//! A database that fails or hangs: since when, why, and what the mirror does next.

use super::{Mirror, NextStep, flush_error};
use crate::{
    messages::FlushError,
    model::{Moment, Rooms},
    store::StoreError,
};

/// Why the database cannot be written, and since when.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    /// In one word.
    pub reason: &'static str,
    /// In whole, with the message of the database.
    pub cause: String,
    pub since: Moment,
}

impl Mirror {
    /// Why the database cannot be written, if it fails or hangs.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Checks whether the database has left a call unanswered for too long, and then fails the waiting flushes.
    /// There is nothing to check where the writer gives up calls that hang: these have an answer.
    pub fn check_stall(&mut self, now: Moment) {
        if self.writer.gives_up() {
            return;
        }
        let in_flight = self.in_flight.as_ref().map(|flight| flight.since);
        let since = in_flight.into_iter().chain(self.renewing).min_by_key(|at| at.monotonic);
        let Some(since) = since.filter(|since| now.since(*since) > self.stall_timeout) else {
            return;
        };
        if self.trouble.is_none() {
            self.note_trouble(&StoreError::Stalled, since);
            self.waiters.fail(&FlushError::Stalled);
        }
    }

    /// Ends the trouble, if there was any.
    pub(super) fn succeeded(&mut self, now: Moment) {
        self.schedule.succeeded();
        if let Some(trouble) = self.trouble.take() {
            let after = now.since(trouble.since);
            tracing::info!(?after, "the database takes rows again");
        }
    }

    /// Counts a failure, fails the waiting flushes, and returns when and how to go on.
    pub(super) fn failed(&mut self, error: StoreError, rooms: &Rooms, now: Moment) -> NextStep {
        let reason = error.as_str();
        metrics::counter!("presence_database_failures_total", "reason" => reason).increment(1);
        let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
        self.note_trouble(&error, since);
        let next = match error {
            StoreError::Gone => {
                // Another database is open already, and it is empty.
                self.dirty.mark_all(rooms);
                NextStep::Write
            }
            StoreError::Lapsed => {
                self.schedule.pause();
                NextStep::Renew
            }
            // A new connection has to take over before anything is written.
            StoreError::Stalled => NextStep::RenewAfter(self.schedule.pause_after_failure()),
            _ => NextStep::RetryAfter(self.schedule.pause_after_failure()),
        };
        self.waiters.fail(&flush_error(error));
        next
    }

    /// Notes why the database cannot be written, and logs it if that is news.
    fn note_trouble(&mut self, error: &StoreError, since: Moment) {
        let reason = error.as_str();
        let cause = error.to_string();
        if self.trouble.as_ref().is_none_or(|trouble| trouble.reason != reason) {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "rows cannot be written; presence goes on");
        }
        self.trouble = Some(Trouble { reason, cause, since });
    }
}
