//! The mirror of the model in SQL, for restarts and for people who query it.
//!
//! Memory is authoritative: without the database presence goes on, and the rows get stale. Changes mark
//! presences dirty, the writer's thread takes them in batches, one at a time, and a batch that fails is put
//! back and retried.

mod dirty;
mod lease;
mod schedule;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

use std::{collections::HashSet, sync::Arc, time::Duration};

use ahash::RandomState;
use tokio::sync::oneshot;

pub use self::writer::{CloseStore, PruneRoomRows, Renew, Write, Writer};
pub(crate) use self::{
    dirty::Memory,
    schedule::{COMMIT_INTERVAL, NextStep, flush_error},
    trouble::Trouble,
    writer::WriterHandle,
};
use self::{
    dirty::{Dirty, Mark, RowKey, Taken},
    schedule::{Flushed, Waiters, WriteSchedule},
};
use crate::{
    counters::Counter,
    log_limit::LogLimit,
    model::{ConnectionId, Diff, Moment, RoomName, Rooms},
    store::{Applied, Batch, BatchEntry, Committed, Row, StoreError},
};

/// The largest number of presences in one transaction: enough to be fast, few enough to be short.
const MAX_BATCH_ROWS: usize = 4096;

/// The registry's side of the mirror: what has to be written, and when.
pub(crate) struct Mirror {
    dirty: Dirty,
    writer: WriterHandle,
    /// The number of the last batch.
    number: u64,
    /// The batch that is being written.
    in_flight: Option<InFlight>,
    /// Since when a renewal of the lease is under way.
    renewing: Option<Moment>,
    /// How long a call may be unanswered before the database counts as stalled.
    stall_timeout: Duration,
    waiters: Waiters,
    /// Whether the store is being closed.
    closed: bool,
    trouble: Option<Trouble>,
    schedule: WriteSchedule,
    lease_renewed: Option<Moment>,
    /// Presences whose row the database refuses as it is. They are tried again when they change, or are seen.
    refused: HashSet<RowKey, RandomState>,
    /// Presences that have ended and whose row the database does not delete. They are tried again with the next
    /// sweep: nothing changes them any more.
    undeleted: Vec<(RowKey, Mark)>,
    rows_written: Counter,
}

struct InFlight {
    taken: Taken,
    batch: Arc<Batch>,
    since: Moment,
}

impl Mirror {
    /// A mirror with this time between commits that nobody waits for. A call that is unanswered for longer than
    /// `stall_timeout` is trouble.
    pub fn new(writer: WriterHandle, commit_interval: Duration, stall_timeout: Duration) -> Self {
        Self {
            dirty: Dirty::default(),
            writer,
            number: 0,
            in_flight: None,
            renewing: None,
            stall_timeout,
            waiters: Waiters::default(),
            closed: false,
            trouble: None,
            schedule: WriteSchedule::new(commit_interval),
            lease_renewed: None,
            refused: HashSet::default(),
            undeleted: Vec::new(),
            rows_written: Counter::new("presence_rows_written_total"),
        }
    }

    pub fn writer(&self) -> &WriterHandle {
        &self.writer
    }

    /// Marks the presences of a change.
    pub fn mark(&mut self, diff: &Diff, rooms: &Rooms) {
        self.dirty.mark(diff);
        for left in &diff.leaves {
            if rooms.last_seen(left.connection).is_none() {
                self.dirty.forget(left.connection);
            }
        }
    }

    /// Marks a presence taken over from another node, with its row.
    pub fn adopt(&mut self, row: Row) {
        self.dirty.adopt(row);
    }

    /// Marks a presence that has changed in a way that is in no diff.
    pub fn mark_one(&mut self, room: RoomName, connection: ConnectionId) {
        self.dirty.mark_one(room, connection);
    }

    /// Marks presences of a room whose rows are missing, except those whose first row is being written,
    /// and those whose row the database refuses until they change.
    pub fn mark_missing(&mut self, room: &RoomName, mut missing: Vec<ConnectionId>) {
        if missing.is_empty() {
            return;
        }
        let first_rows = self.in_flight.as_ref().map(|flight| flight.taken.first_rows(room));
        let first_rows = first_rows.unwrap_or_default();
        missing.retain(|one| !first_rows.contains(one));
        for connection in missing {
            let key = (room.clone(), connection);
            if !self.refused.contains(&key) {
                self.dirty.mark_one(key.0, connection);
            }
        }
    }

    /// Frees unused memory after a crowd has left.
    pub fn shrink(&mut self) {
        self.dirty.shrink();
    }

    /// Notes that a connection was seen.
    pub fn heard(&mut self, connection: ConnectionId) {
        self.dirty.heard(connection);
    }

    /// Marks `last_seen` of connections to be written, as many as fit into one transaction: the lease covers
    /// all presences, so these writes need not grow with their number.
    pub fn sweep(&mut self) {
        self.retry_deletes();
        self.dirty.sweep(MAX_BATCH_ROWS);
    }

    /// Marks every newer `last_seen` to be written.
    pub fn sweep_all(&mut self) {
        self.retry_deletes();
        self.dirty.sweep(usize::MAX);
    }

    /// The number of presences whose row differs from memory.
    pub fn unwritten(&self) -> usize {
        let in_flight = self.in_flight.as_ref().map_or(0, |flight| flight.taken.presences.len());
        self.dirty.len() + in_flight + self.refused.len() + self.undeleted.len()
    }

    /// The number of rows written or deleted so far, including one for each `last_seen`.
    pub fn rows_written(&self) -> u64 {
        self.rows_written.count()
    }

    /// Begins to write the next batch, if there is one, the writer is free and it is time.
    pub fn next(
        &mut self,
        memory: &Memory<'_>,
        now: Moment,
    ) -> Option<impl Future<Output = Result<Applied, StoreError>> + use<>> {
        let is_flushed = self.waiters.is_empty();
        let urgent = !is_flushed || self.dirty.fills(MAX_BATCH_ROWS);
        let idle = self.dirty.is_empty() && is_flushed;
        if self.closed || self.in_flight.is_some() || idle || !self.schedule.allows(urgent) {
            return None;
        }
        self.waiters.write_begins();
        let (mut batch, taken) = self.dirty.take(memory, MAX_BATCH_ROWS);
        self.number += 1;
        batch.number = self.number;
        for (key, _) in &taken.presences {
            self.refused.remove(key);
        }
        let batch = Arc::new(batch);
        self.in_flight = Some(InFlight { taken, batch: Arc::clone(&batch), since: now });
        Some(self.writer.write(Write { batch, now: now.utc() }))
    }

    /// Handles the writer's answer to the batch.
    pub fn written(
        &mut self,
        answer: Result<Applied, StoreError>,
        rooms: &Rooms,
        now: Moment,
    ) -> NextStep {
        let Some(InFlight { taken, batch, .. }) = self.in_flight.take() else {
            return NextStep::Write;
        };
        match answer {
            Ok(applied) => {
                self.rows_written.add(taken.presences.len() + batch.seen.len());
                self.dirty.committed(&taken);
                self.mark_missing_rows(&applied.missing, &taken, rooms);
                self.retry_refused(&batch);
                let refused = self.set_aside(applied, &taken);
                self.succeeded(now);
                let any_refused = !self.refused.is_empty() || !self.undeleted.is_empty();
                self.waiters.answer(&self.dirty, any_refused);
                NextStep::Publish(Committed { batch, causes: taken.causes, refused })
            }
            Err(error) => {
                self.dirty.put_back(taken, matches!(error, StoreError::Lapsed));
                self.failed(error, rooms, now)
            }
        }
    }

    /// Marks the rows among these that should not be there.
    pub fn mark_surplus(&mut self, rows: Vec<RowKey>, rooms: &Rooms) {
        for (room, connection) in rows {
            if !rooms.holds(&room, connection) {
                self.dirty.mark_one(room, connection);
            }
        }
    }

    /// Marks the presences of connections of which rows are missing.
    fn mark_missing_rows(&mut self, missing: &[ConnectionId], taken: &Taken, rooms: &Rooms) {
        if missing.is_empty() {
            return;
        }
        let missing: HashSet<_, RandomState> = missing.iter().collect();
        let seen = taken.seen.iter().flat_map(|(connection, _)| rooms.memberships_of(*connection));
        for (room, presence) in seen.filter(|(_, presence)| missing.contains(presence)) {
            self.dirty.mark_one(room.clone(), presence);
        }
    }

    /// Marks the refused presences of connections that have been seen.
    fn retry_refused(&mut self, batch: &Batch) {
        if self.refused.is_empty() {
            return;
        }
        let seen: HashSet<_, RandomState> = batch.seen.iter().map(|seen| seen.connection).collect();
        for (room, connection) in self.refused.extract_if(|(_, one)| seen.contains(one)) {
            self.dirty.mark_one(room, connection);
        }
    }

    /// Has everything marked so far written; the result arrives when it is committed. Asks the database even
    /// if nothing is marked, and at once even after a failure.
    pub fn commit(&mut self) -> Flushed {
        self.schedule.resume();
        self.wait()
    }

    /// When the presences marked so far are committed; `None` if they are, or the database is in trouble.
    pub fn settled(&mut self) -> Option<Flushed> {
        if self.trouble.is_some() || self.dirty.is_empty() && self.in_flight.is_none() {
            return None;
        }
        Some(self.wait())
    }

    fn wait(&mut self) -> Flushed {
        if self.closed {
            // The receiver fails, since its sender is dropped.
            return oneshot::channel().1;
        }
        self.waiters.add(self.dirty.newest())
    }

    /// Sends nothing more to the writer, whose store is about to be closed. Later changes are not written.
    pub fn close(&mut self) {
        self.closed = true;
        self.waiters.clear();
    }

    /// The store could not be closed.
    pub fn reopen(&mut self) {
        self.closed = false;
    }

    /// The pause after a failure is over.
    pub fn retry(&mut self) {
        self.schedule.resume();
    }

    /// Begins a commit interval, unless one is under way. Returns its length.
    pub fn begin_interval(&mut self) -> Option<Duration> {
        self.schedule.begin_interval()
    }

    /// The commit interval is over.
    pub fn end_interval(&mut self) {
        self.schedule.end_interval();
    }

    /// Marks again the ended presences whose rows the database did not delete.
    fn retry_deletes(&mut self) {
        let presences = std::mem::take(&mut self.undeleted);
        self.dirty.put_back(Taken { presences, ..Taken::default() }, false);
    }

    /// Remembers the rows that the database refuses, to be tried again later, and returns them.
    fn set_aside(&mut self, applied: Applied, taken: &Taken) -> Vec<BatchEntry> {
        let mut undeleted: HashSet<RowKey, RandomState> = HashSet::default();
        for aside in &applied.set_aside {
            static REFUSED: LogLimit = LogLimit::new();
            if let Some(suppressed) = REFUSED.pass() {
                let reason = &aside.reason;
                tracing::error!(reason, suppressed, "the database rejects a row: set aside");
            }
            metrics::counter!("presence_rows_refused_total").increment(1);
            match &aside.change {
                BatchEntry::Upsert(room, connection) => {
                    self.refused.insert((room.clone(), *connection));
                }
                BatchEntry::Delete(room, connection) => {
                    undeleted.insert((room.clone(), *connection));
                }
                BatchEntry::Seen(_) => {}
            }
        }
        let presences = taken.presences.iter().filter(|(key, _)| undeleted.contains(key));
        self.undeleted.extend(presences.cloned());
        applied.set_aside.into_iter().map(|aside| aside.change).collect()
    }
}
