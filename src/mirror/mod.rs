//! The model mirrored into SQL, for restarts and for people who ask with SQL.
//!
//! Memory is the truth; a database that is away costs freshness, never presence. Changes mark
//! presences dirty, the writer's thread takes them in batches, one at a time, and what fails is put
//! back and tried again.

mod dirty;
mod memory;
mod pace;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use actix::{MailboxError, dev::RecipientRequest};
use ahash::RandomState;
use tokio::sync::oneshot;

pub use self::writer::{Goodbye, PruneRoomRows, Renew, Write, Writer};
use self::{
    dirty::{Dirty, Key, Taken},
    memory::State,
    pace::Pace,
};
pub(crate) use self::{memory::Memory, pace::REST, writer::WriterDesk};
use crate::store::{Applied, Batch, Change, Committed, Renewal, Row, StoreError};
use crate::{
    counters::Counter,
    log_limit::LogLimit,
    messages::FlushError,
    model::{ConnectionId, Diff, Epoch, Moment, RoomName, Rooms},
};

/// Presences in one transaction at most: enough to be quick, few enough to be short.
const BATCH: usize = 4096;

/// A write that takes longer than this, which is more than a lock is waited for, hangs.
const STALLED: Duration = Duration::from_secs(10);

/// What waits for a [`Flush`](crate::Flush).
struct Waiter {
    mark: u64,
    /// Whether a write has begun since it was asked: the database may have been lost unnoticed.
    begun: bool,
    reply: oneshot::Sender<Result<(), FlushError>>,
}

/// Why the database takes nothing, and since when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    pub reason: &'static str,
    pub since: Moment,
}

/// The registry's side of the mirror: what is to be written, and how it goes.
pub(crate) struct Mirror {
    dirty: Dirty,
    writer: WriterDesk,
    /// The number of the last batch.
    number: u64,
    /// What the writer is writing.
    in_flight: Option<InFlight>,
    /// Whether a renewal of the lease is under way.
    renewing: bool,
    waiters: Vec<Waiter>,
    /// Whether the store is being closed.
    closed: bool,
    trouble: Option<Trouble>,
    pace: Pace,
    lease_renewed: Option<Moment>,
    /// Presences whose row the database refuses as it is.
    refused: HashSet<Key, RandomState>,
    rows_written: Counter,
}

struct InFlight {
    taken: Taken,
    batch: Arc<Batch>,
    since: Moment,
}

/// What to do after an answer of the writer.
#[derive(Debug)]
pub(crate) enum Next {
    /// Ask for the next batch.
    Go,
    /// Make known what was committed, and ask for the next batch.
    Tell(Committed),
    /// Wait so long before that.
    Retry(Duration),
    /// Renew the lease: others have removed this node's rows.
    Renew,
    /// The node has a new incarnation, and writes everything again.
    Reborn(Epoch),
}

impl Mirror {
    /// A mirror that rests so long after a commit, or not at all.
    pub fn new(writer: WriterDesk, rest: Duration) -> Self {
        Self {
            dirty: Dirty::default(),
            writer,
            number: 0,
            in_flight: None,
            renewing: false,
            waiters: Vec::new(),
            closed: false,
            trouble: None,
            pace: Pace::new(rest),
            lease_renewed: None,
            refused: HashSet::default(),
            rows_written: Counter::new("presence_rows_written_total"),
        }
    }

    pub fn writer(&self) -> &WriterDesk {
        &self.writer
    }

    /// Marks what a change touched.
    pub fn mark(&mut self, diff: &Diff, rooms: &Rooms) {
        self.dirty.mark(diff);
        for left in &diff.leaves {
            if rooms.last_seen(left.connection).is_none() {
                self.dirty.forget(left.connection);
            }
        }
    }

    /// Gives back the space of a crowd that has gone.
    pub fn shrink(&mut self) {
        self.dirty.shrink();
    }

    /// Notes a sign of life.
    pub fn heard(&mut self, connection: ConnectionId) {
        self.dirty.heard(connection);
    }

    /// Has signs of life written, as many as one transaction takes: the lease vouches for those who
    /// stay, so what is written of them need not grow with them.
    pub fn sweep(&mut self) {
        self.dirty.sweep(BATCH);
    }

    /// Presences whose row is not yet what memory says.
    pub fn unwritten(&self) -> usize {
        let in_flight = self.in_flight.as_ref().map_or(0, |flight| flight.taken.presences.len());
        self.dirty.len() + in_flight + self.refused.len()
    }

    /// Rows of presences written or deleted so far, one for each sign of life.
    pub fn rows_written(&self) -> u64 {
        self.rows_written.count()
    }

    /// When the lease was renewed last, if it has been since the start.
    pub fn lease_renewed(&self) -> Option<Moment> {
        self.lease_renewed
    }

    /// Why the database takes nothing, if so: it says so, or it says nothing at all.
    pub fn trouble(&self, now: Moment) -> Option<Trouble> {
        self.trouble.or_else(|| {
            let since = self.in_flight.as_ref()?.since;
            let stalled = Trouble { reason: "stalled", since };
            (now.since(since) > STALLED).then_some(stalled)
        })
    }

    /// Answers who waits for a database that says nothing at all.
    pub fn give_up_waiting(&mut self, now: Moment) {
        if self.trouble.is_none()
            && let Some(Trouble { reason, .. }) = self.trouble(now)
        {
            tracing::error!("the database does not answer; presence goes on");
            for waiter in self.waiters.drain(..) {
                let _ = waiter.reply.send(Err(FlushError { reason }));
            }
        }
    }

    /// The renewal of the lease that is due, if none is under way.
    pub fn renew(&mut self, now: Moment) -> Option<RecipientRequest<Renew>> {
        if self.closed || std::mem::replace(&mut self.renewing, true) {
            return None;
        }
        Some(self.writer.renew.send(Renew { now: now.utc() }))
    }

    /// The next batch to write, if there is one, the writer is free and it is time.
    pub fn next(&mut self, memory: &Memory<'_>, now: Moment) -> Option<RecipientRequest<Write>> {
        let wanted = !self.dirty.is_empty() || !self.waiters.is_empty();
        let pressing = !self.waiters.is_empty() || self.dirty.fills(BATCH);
        if self.closed || self.in_flight.is_some() || !wanted || !self.pace.allows(pressing) {
            return None;
        }
        for waiter in &mut self.waiters {
            waiter.begun = true;
        }
        let (mut batch, taken) = self.dirty.take(memory, BATCH);
        self.number += 1;
        batch.number = self.number;
        for (key, _) in &taken.presences {
            self.refused.remove(key);
        }
        let batch = Arc::new(batch);
        self.in_flight = Some(InFlight { taken, batch: Arc::clone(&batch), since: now });
        Some(self.writer.write.send(Write { batch, now: now.utc() }))
    }

    /// Takes the writer's answer to the batch.
    pub fn written(
        &mut self,
        answer: Result<Result<Applied, StoreError>, MailboxError>,
        rooms: &Rooms,
        now: Moment,
    ) -> Next {
        let Some(InFlight { taken, batch, .. }) = self.in_flight.take() else { return Next::Go };
        // Otherwise the writer's thread has ended with the system.
        match answer.unwrap_or(Err(StoreError::Closed)) {
            Ok(applied) => {
                self.rows_written.add(taken.presences.len() + batch.seen.len());
                self.dirty.committed(&taken);
                let refused = self.set_aside(applied);
                self.succeeded(now);
                self.answer_waiters();
                Next::Tell(Committed { batch, causes: taken.causes, refused })
            }
            Err(error) => {
                self.dirty.put_back(taken, matches!(error, StoreError::Lapsed));
                self.failed(&error, rooms, now)
            }
        }
    }

    /// Takes the writer's answer to a renewal of the lease.
    pub fn renewed(
        &mut self,
        answer: Result<Renewal, StoreError>,
        rooms: &Rooms,
        now: Moment,
    ) -> Next {
        self.renewing = false;
        if answer.is_ok() {
            self.lease_renewed = Some(now);
            self.pace.wait_no_longer();
        }
        match answer {
            Ok(Renewal::Held) if self.dirty.is_empty() => self.succeeded(now),
            Ok(Renewal::Held) => {}
            Ok(Renewal::Lapsed { incarnation }) => {
                tracing::warn!("the lease of this node had run out: every row is written again");
                return Next::Reborn(incarnation);
            }
            Err(error) => return self.failed(&error, rooms, now),
        }
        Next::Go
    }

    /// Begins a new incarnation, with all rows to be written. Answers which of the presences that are
    /// here others may have seen end with the old one, by room.
    pub fn reborn(&mut self, rooms: &Rooms) -> BTreeMap<RoomName, Vec<ConnectionId>> {
        let mut seen: BTreeMap<RoomName, Vec<ConnectionId>> = BTreeMap::new();
        for (room, presence) in rooms.held_presences() {
            if self.dirty.is_stored(&(room.clone(), presence)) {
                seen.entry(room.clone()).or_default().push(presence);
            }
        }
        self.dirty.mark_all(rooms);
        seen
    }

    /// Marks a presence that was another node's, as it is now.
    pub fn adopt(&mut self, row: Row) {
        self.dirty.adopt(row);
    }

    /// Marks one presence that has changed in a way that no diff tells.
    pub fn mark_one(&mut self, room: RoomName, connection: ConnectionId) {
        self.dirty.mark_one(room, connection);
    }

    /// Marks presences of a room that are to have a row and have none; but for those whose first row is
    /// just being written, and those whose row the database refuses until they change.
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

    /// Has all signs of life written.
    pub fn sweep_all(&mut self) {
        self.dirty.sweep(usize::MAX);
    }

    /// Waits until everything marked so far is committed, and asks the database even if nothing is.
    /// Tries at once, also after a failure.
    pub fn commit(&mut self) -> oneshot::Receiver<Result<(), FlushError>> {
        self.pace.wait_no_longer();
        self.wait()
    }

    /// Waits until the presences marked so far are committed, unless the database is in trouble.
    pub fn settled(&mut self) -> Option<oneshot::Receiver<Result<(), FlushError>>> {
        if self.trouble.is_some() || self.dirty.is_empty() && self.in_flight.is_none() {
            return None;
        }
        Some(self.wait())
    }

    fn wait(&mut self) -> oneshot::Receiver<Result<(), FlushError>> {
        let (reply, receiver) = oneshot::channel();
        if self.closed {
            // The receiver is told by the drop.
            return receiver;
        }
        self.waiters.push(Waiter { mark: self.dirty.newest(), begun: false, reply });
        receiver
    }

    /// Asks the writer for nothing more, as its store is about to be closed. Whatever changes after that
    /// is not written.
    pub fn close(&mut self) {
        self.closed = true;
        self.waiters.clear();
    }

    /// The store could not be closed.
    pub fn reopen(&mut self) {
        self.closed = false;
    }

    /// The time to wait after a failure is over.
    pub fn retry(&mut self) {
        self.pace.wait_no_longer();
    }

    /// Lets the database rest after a commit, unless it does already. Answers how long.
    pub fn rest(&mut self) -> Option<Duration> {
        self.pace.rest()
    }

    /// The rest is over.
    pub fn rested(&mut self) {
        self.pace.rested();
    }

    fn set_aside(&mut self, applied: Applied) -> Vec<Change> {
        for aside in &applied.set_aside {
            static REFUSED: LogLimit = LogLimit::new();
            if let Some(suppressed) = REFUSED.pass() {
                let reason = &aside.reason;
                tracing::error!(reason, suppressed, "the database refuses a row: set aside");
            }
            metrics::counter!("presence_rows_refused_total").increment(1);
            if let Change::Upsert(room, connection) | Change::Delete(room, connection) =
                &aside.change
            {
                self.refused.insert((room.clone(), *connection));
            }
        }
        applied.set_aside.into_iter().map(|aside| aside.change).collect()
    }

    fn answer_waiters(&mut self) {
        let refused = !self.refused.is_empty();
        let done = |waiter: &mut Waiter| waiter.begun && self.dirty.is_clean(waiter.mark);
        for waiter in self.waiters.extract_if(.., done) {
            let answer = match refused {
                true => Err(FlushError { reason: "rows_refused" }),
                false => Ok(()),
            };
            // Who asked may have gone.
            let _ = waiter.reply.send(answer);
        }
    }

    fn succeeded(&mut self, now: Moment) {
        self.pace.succeeded();
        if let Some(trouble) = self.trouble.take() {
            let after = now.since(trouble.since);
            tracing::info!(?after, "the database takes rows again");
        }
    }

    fn failed(&mut self, error: &StoreError, rooms: &Rooms, now: Moment) -> Next {
        let reason = error.as_str();
        metrics::counter!("presence_database_failures_total", "reason" => reason).increment(1);
        let since = self.trouble.map_or(now, |trouble| trouble.since);
        if self.trouble.is_none_or(|trouble| trouble.reason != reason) {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "rows cannot be written; presence goes on");
        }
        self.trouble = Some(Trouble { reason, since });
        for waiter in self.waiters.drain(..) {
            let _ = waiter.reply.send(Err(FlushError { reason }));
        }
        if matches!(error, StoreError::Gone) {
            // Another database is open already, with nothing in it.
            self.dirty.mark_all(rooms);
            return Next::Go;
        }
        if matches!(error, StoreError::Lapsed) {
            self.pace.wait();
            return Next::Renew;
        }
        Next::Retry(self.pace.wait_after_failure())
    }
}
