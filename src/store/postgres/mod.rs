//! The store on PostgreSQL, which several nodes share.

mod batch;
mod connection;
mod identity;
mod nodes;
mod queries;

use std::{thread, time::Duration};

use chrono::{DateTime, NaiveDateTime, Utc};
use diesel::{PgConnection, RunQueryDsl, sql_types::Text};

use self::{
    batch::Sorted,
    connection::{connect, millis, statement},
};
use super::{
    Applied, Batch, NodeLease, PostgresUrl, Renewal, Result, RoomCounts, Started, Store,
    StoreError,
    transaction::{Failure, oldest, transact},
};
use crate::model::NodeName;

pub(super) use self::connection::migrate;
pub use self::connection::{LeaseClock, PostgresOptions};

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
        migrate(url, options)?;
        Ok(Self { url: url.clone(), options, conn: None, lease: NodeLease::default() })
    }

    /// Runs a call, and closes a connection that may have become useless.
    fn call<T>(
        &mut self,
        call: impl FnOnce(&mut PgConnection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // Taken out, so that a panic closes it.
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => connect(&self.url, self.options)?,
        };
        let result = call(&mut conn).map_err(Failure::classified::<PgConnection>);
        // Another connection may lead to another server, which can do it; and what was prepared on this
        // one may be the problem.
        let useless = matches!(
            &result,
            Err(Failure::Store(
                StoreError::Unavailable { .. }
                    | StoreError::ReadOnly
                    | StoreError::Corrupt { .. }
                    | StoreError::Schema { .. },
            ))
        );
        self.conn = (!useless).then_some(conn);
        result
    }

    /// Runs a transaction, and again if another one was in the way.
    fn attempt<T>(
        &mut self,
        extent: Extent,
        mut body: impl FnMut(&mut PgConnection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        const ATTEMPTS: u32 = 5;
        const CONFLICT_PAUSE: Duration = Duration::from_millis(10);
        let timeout = (extent == Extent::All).then_some(self.options.long_statement_timeout);
        self.call(|conn| {
            let mut attempt = 1;
            loop {
                let done = transact(conn, |conn| {
                    if let Some(timeout) = timeout {
                        statement("SELECT set_config('statement_timeout', $1, true)")
                            .bind::<Text>(millis(timeout).to_string())
                            .execute(conn)?;
                    }
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

    fn transact<T>(
        &mut self,
        extent: Extent,
        body: impl FnMut(&mut PgConnection) -> Result<T, Failure>,
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
        let fence = self.lease.fence(node);
        let clock = self.clock(now);
        let sorted = Sorted::new(batch);
        let fenced = |conn: &mut PgConnection| match fence {
            Some((incarnation, lease)) => {
                nodes::fence(conn, node, incarnation, batch.number, clock, lease)
            }
            None => Ok(()),
        };
        let whole = self.attempt(Extent::Given, |conn| {
            fenced(conn)?;
            sorted.write(conn, node, now)
        });
        let Err(Failure::Row(_)) = whole else {
            return whole.map_err(Failure::into_error::<PgConnection>);
        };
        // A row is refused: now each part is in a savepoint, to be rolled back by itself.
        self.transact(Extent::Given, |conn| {
            fenced(conn)?;
            sorted.write_piecemeal(conn, node, now)
        })
    }

    fn start(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Started> {
        let incarnation = self.lease.set(node, lease).next;
        let clock = self.clock(now);
        let (inherited, stopped) = self.transact(Extent::All, |conn| {
            nodes::start(conn, node, incarnation, now, clock, lease)
        })?;
        self.lease.begin();
        Ok(Started { incarnation, dead: Vec::new(), inherited, stopped })
    }

    fn renew(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Renewal> {
        let incarnations = self.lease.set(node, lease);
        let clock = self.clock(now);
        let renewal = self.transact(Extent::All, |conn| {
            nodes::renew(conn, node, incarnations, now, clock, lease)
        })?;
        if matches!(renewal, Renewal::Lapsed { .. }) {
            self.lease.begin();
        }
        Ok(renewal)
    }

    fn stop(&mut self, node: &NodeName) -> Result<usize> {
        let own = self.lease.incarnation(node);
        self.transact(Extent::All, |conn| nodes::stop(conn, node, own))
    }

    fn hand_over(&mut self, node: &NodeName, now: DateTime<Utc>, grace: Duration) -> Result<usize> {
        let (own, clock) = (self.lease.incarnation(node), self.clock(now));
        self.transact(Extent::All, |conn| nodes::hand_over(conn, node, own, clock, grace))
    }

    fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> Result<usize> {
        let Some(oldest) = oldest(now, max_age) else { return Ok(0) };
        let clock = self.clock(now);
        self.transact(Extent::All, |conn| nodes::prune_presences(conn, oldest.naive_utc(), clock))
    }

    fn prune_rooms(&mut self) -> Result<usize> {
        self.transact(Extent::All, queries::prune_rooms)
    }

    fn rooms(&mut self) -> Result<Vec<RoomCounts>> {
        self.transact(Extent::All, queries::rooms)
    }
}
