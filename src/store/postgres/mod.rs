//! The store on PostgreSQL, which several nodes share.

mod batch;
mod connection;
mod identity;
mod migrate;
mod nodes;
mod opening;
mod queries;
mod rights;
mod rooms;
mod rows;
mod schema_name;
mod statement;
mod trial;

use std::{thread, time::Duration};

use chrono::{DateTime, NaiveDateTime, Utc};
use diesel::PgConnection;

use self::{
    batch::Sorted,
    connection::{connect, diagnose, limit_statements},
    statement::{SchemaConnection, statement},
};
use super::{
    Applied, Batch, NodeLease, PostgresUrl, Pulse, Renewal, Result, RoomCounts, Started, Store,
    StoreError,
    transaction::{Failure, oldest},
};
use crate::model::NodeName;

pub(super) use self::opening::migrate;
pub use self::{
    connection::{LeaseClock, PostgresOptions},
    schema_name::{InvalidSchemaName, SchemaName},
};

/// A [`Store`] and [`SharedStore`](super::SharedStore) on PostgreSQL.
///
/// It has one connection, since a store has one user. A connection that fails is closed, and the next call
/// opens another one. It is bound to a session of the database, so a pooler in between has to work per
/// session (`pool_mode = session`).
///
/// The connection is not from a pool: a pool retries in the background and makes the caller wait for what
/// otherwise fails at once.
pub struct PostgresStore {
    url: PostgresUrl,
    options: PostgresOptions,
    conn: Option<PgConnection>,
    lease: NodeLease,
    pulse: Pulse,
}

/// The limits of a transaction that may take long.
#[derive(Clone, Copy)]
struct LongLimits {
    statements: Duration,
    locks: Duration,
    answers: Duration,
}

impl LongLimits {
    /// Sets the limits in the open transaction.
    fn allow(&self, conn: &mut SchemaConnection<'_>, pulse: &Pulse) -> Result<(), Failure> {
        limit_statements(conn, self.statements, self.locks)?;
        pulse.allow(self.statements + self.answers);
        Ok(())
    }
}

/// How many rows a transaction may affect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// Those that it is given.
    Given,
    /// All rows of a node, or of the database.
    All,
}

impl PostgresStore {
    /// Opens a database, and migrates it as needed. The database itself has to exist.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open(url: &PostgresUrl) -> Result<Self> {
        Self::open_with(url, PostgresOptions::default())
    }

    /// Opens a database as [`open`](Self::open) does, with options.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open_with(url: &PostgresUrl, options: PostgresOptions) -> Result<Self> {
        migrate(url, &options)?;
        Ok(Self::unconnected(url.clone(), options, NodeLease::default()))
    }

    /// A further store on the same database, for the same process.
    pub(crate) fn another(&self) -> Self {
        Self::unconnected(self.url.clone(), self.options.clone(), self.lease.successor())
    }

    /// A store that connects when it is first called.
    fn unconnected(url: PostgresUrl, options: PostgresOptions, lease: NodeLease) -> Self {
        Self { url, options, conn: None, lease, pulse: Pulse::default() }
    }

    /// Runs a call that can be repeated: if the connection was cut, which an idle one is unnoticed, it is run
    /// once more on a new one.
    fn call<T>(
        &mut self,
        call: impl FnMut(&mut SchemaConnection<'_>, &Pulse) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.call_again(true, call)
    }

    /// Runs a call, again or not, and closes a connection that may have become useless.
    fn call_again<T>(
        &mut self,
        again: bool,
        mut call: impl FnMut(&mut SchemaConnection<'_>, &Pulse) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let _waiting = self.pulse.begin(self.options.answer_timeout);
        let mut was_cut = !again;
        loop {
            // Taken out, so that a panic closes it.
            let mut conn = match self.conn.take() {
                Some(conn) => conn,
                None => connect(&self.url, &self.options, &self.pulse)?,
            };
            let mut tables = SchemaConnection::new(&mut conn, self.options.schema.as_ref());
            let result = call(&mut tables, &self.pulse);
            let result = match result.map_err(Failure::classified::<PgConnection>) {
                Err(Failure::Unknown(error)) => Err(diagnose(&mut tables, error)),
                result => result,
            };
            match &result {
                // Another connection may lead to another server, which may be written.
                Err(Failure::Store(StoreError::Unavailable { .. } | StoreError::ReadOnly)) => {
                    if !std::mem::replace(&mut was_cut, true) {
                        tracing::debug!("a connection to the database was cut: asking again");
                        self.pulse.allow(self.options.answer_timeout);
                        continue;
                    }
                }
                // What was prepared on this one may be the problem.
                Err(Failure::Store(StoreError::Schema { .. })) => {}
                _ => self.conn = Some(conn),
            }
            return result;
        }
    }

    /// Runs a transaction, and again if another one was in the way or if its connection was cut.
    fn attempt<T>(
        &mut self,
        extent: Extent,
        body: impl FnMut(&mut SchemaConnection<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.attempt_again(true, extent, body)
    }

    /// As [`transact`](Self::transact), but whose second answer would not be that of the first: it is not run
    /// again if its connection was cut. So an idle one is asked for something else before.
    fn transact_once<T>(
        &mut self,
        body: impl FnMut(&mut SchemaConnection<'_>) -> Result<T, Failure>,
    ) -> Result<T> {
        let wake = self.call(|conn, _| Ok(statement("SELECT").execute(conn)?));
        let done = wake.and_then(|_| self.attempt_again(false, Extent::All, body));
        done.map_err(Failure::into_error::<PgConnection>)
    }

    fn attempt_again<T>(
        &mut self,
        again: bool,
        extent: Extent,
        mut body: impl FnMut(&mut SchemaConnection<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        const ATTEMPTS: u32 = 5;
        const CONFLICT_PAUSE: Duration = Duration::from_millis(10);
        let long = (extent == Extent::All).then(|| self.long());
        self.call_again(again, |conn, pulse| {
            let mut attempt = 1;
            loop {
                let done = conn.transact(|conn| {
                    long.iter().try_for_each(|long| long.allow(conn, pulse))?;
                    body(conn)
                });
                match done {
                    Err(Failure::Conflict) if attempt < ATTEMPTS => {
                        thread::sleep(CONFLICT_PAUSE * attempt)
                    }
                    done => return done,
                }
                tracing::debug!(attempt, "another transaction was in the way");
                attempt += 1;
            }
        })
    }

    /// The limits of what may take long.
    fn long(&self) -> LongLimits {
        let &PostgresOptions { long_statement_timeout, lock_timeout, answer_timeout, .. } =
            &self.options;
        LongLimits {
            statements: long_statement_timeout,
            locks: lock_timeout,
            answers: answer_timeout,
        }
    }

    fn transact<T>(
        &mut self,
        extent: Extent,
        body: impl FnMut(&mut SchemaConnection<'_>) -> Result<T, Failure>,
    ) -> Result<T> {
        self.attempt(extent, body).map_err(Failure::into_error::<PgConnection>)
    }

    /// The time by which leases are judged; none is the database's.
    fn clock(&self, now: DateTime<Utc>) -> Option<NaiveDateTime> {
        match self.options.clock {
            LeaseClock::Database => None,
            LeaseClock::Given => Some(now.naive_utc()),
        }
    }
}

impl Store for PostgresStore {
    fn apply(&mut self, node: &NodeName, batch: &Batch, now: DateTime<Utc>) -> Result<Applied> {
        let fence = self.lease.fence(node)?;
        let clock = self.clock(now);
        let sorted = Sorted::new(batch);
        let fenced = |conn: &mut SchemaConnection<'_>| match fence {
            Some(fence) => nodes::fence(conn, node, fence, batch.number, clock),
            None => Ok(()),
        };
        let whole = self.attempt(Extent::Given, |conn| {
            fenced(conn)?;
            sorted.write(conn, node, now)
        });
        let applied = match whole {
            // A row may be the reason: now each part is in a savepoint, to be rolled back by itself.
            Err(Failure::Row(_) | Failure::Unknown(_)) => {
                let time = self.options.answer_timeout;
                self.transact(Extent::Given, |conn| {
                    fenced(conn)?;
                    sorted.write_piecemeal(conn, node, now, time)
                })
            }
            whole => whole.map_err(Failure::into_error::<PgConnection>),
        }?;
        self.lease.committed(batch.number);
        Ok(applied)
    }

    fn start(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Started> {
        let incarnation = self.lease.set(node, lease).next.life;
        let clock = self.clock(now);
        let (inherited, stopped) =
            self.transact_once(|conn| nodes::start(conn, node, incarnation, now, clock, lease))?;
        self.lease.begin(incarnation);
        Ok(Started { incarnation, dead: Vec::new(), inherited, stopped })
    }

    fn renew(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Renewal> {
        let incarnations = self.lease.set(node, lease);
        let (clock, long, pulse) = (self.clock(now), self.long(), self.pulse.clone());
        let renewal = self.transact(Extent::Given, |conn| {
            let before_long = |conn: &mut SchemaConnection<'_>| long.allow(conn, &pulse);
            nodes::renew(conn, node, &incarnations, now, clock, lease, before_long)
        })?;
        if let Renewal::Continued { incarnation } | Renewal::Lapsed { incarnation } = renewal {
            self.lease.begin(incarnation);
        }
        Ok(renewal)
    }

    fn stop(&mut self, node: &NodeName) -> Result<usize> {
        let own = self.lease.own_of(node);
        self.transact(Extent::All, |conn| nodes::stop(conn, node, &own))
    }

    fn hand_over(&mut self, node: &NodeName, now: DateTime<Utc>, grace: Duration) -> Result<usize> {
        let (own, clock) = (self.lease.own_of(node), self.clock(now));
        self.transact(Extent::All, |conn| nodes::hand_over(conn, node, &own, clock, grace))
    }

    fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> Result<usize> {
        let Some(oldest) = oldest(now, max_age) else { return Ok(0) };
        let clock = self.clock(now);
        self.transact(Extent::All, |conn| nodes::prune_presences(conn, oldest.naive_utc(), clock))
    }

    fn prune_rooms(&mut self) -> Result<usize> {
        self.transact(Extent::All, rooms::prune)
    }

    fn rooms(&mut self, now: DateTime<Utc>) -> Result<Vec<RoomCounts>> {
        let clock = self.clock(now);
        self.transact(Extent::All, |conn| rooms::count(conn, clock))
    }
}
