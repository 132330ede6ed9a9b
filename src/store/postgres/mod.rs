//! The store on PostgreSQL, which several nodes share.

use std::{thread, time::Duration};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use diesel::{PgConnection, RunQueryDsl, r2d2::Pool, sql_types::Text};

mod bulk;
mod connect;
pub(super) mod error;
mod migrate;
mod nodes;
mod queries;
mod rows;
mod statement;
mod url;

pub use self::{
    connect::{LeaseClock, PostgresOptions},
    url::PostgresUrl,
};

pub(super) use self::migrate::migrate;
use self::{
    bulk::Sorted,
    connect::{Manager, Session},
    statement::statement,
};
use super::{
    Applied, Batch, Life, Renewal, RoomCounts, Started, Store, StoreError, error::Failure,
    transact::transact,
};
use crate::model::{Epoch, NodeName};

/// A [`Store`] and [`SharedStore`](super::SharedStore) on PostgreSQL.
///
/// One connection: a store has one user. A connection that fails is thrown away, and the next call
/// makes another one. It belongs to a session of the database as long as it lives, so a pooler in
/// between has to leave it that (`pool_mode = session`).
pub struct PostgresStore {
    pool: Pool<Manager>,
    options: PostgresOptions,
    life: Option<Life>,
}

/// How much a call may be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// What it is given.
    Few,
    /// All rows of a node, or of the database.
    All,
}

impl PostgresStore {
    /// Opens a database, and migrates it as needed. The database itself has to be there.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open(url: &PostgresUrl) -> Result<Self, StoreError> {
        Self::open_with(url, PostgresOptions::default())
    }

    /// Opens a database as [`open`](Self::open) does, with options.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open_with(url: &PostgresUrl, options: PostgresOptions) -> Result<Self, StoreError> {
        migrate(url, options)?;
        Ok(Self { pool: Manager::pool(url, options), options, life: None })
    }

    /// Runs a call, and gives up a connection that may have become useless.
    fn call<T>(
        &self,
        call: impl FnOnce(&mut PgConnection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut session = self.pool.get().map_err(StoreError::unavailable)?;
        let result = call(Session::conn(&mut session)?);
        // Another connection may lead to another server, one that can do it; and what this one has
        // prepared may be what is wrong.
        if let Err(Failure::Store(
            StoreError::Unavailable { .. }
            | StoreError::ReadOnly
            | StoreError::Corrupt { .. }
            | StoreError::Schema { .. },
        )) = &result
        {
            session.give_up();
        }
        result
    }

    /// Runs a transaction, and again if another one was in its way.
    fn attempt<T>(
        &self,
        scope: Scope,
        mut body: impl FnMut(&mut PgConnection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        const ATTEMPTS: u32 = 5;
        const PAUSE: Duration = Duration::from_millis(10);
        self.call(|conn| {
            let mut attempt = 1;
            loop {
                let done = transact(conn, |conn| {
                    self.limit(conn, scope)?;
                    body(conn)
                });
                match done {
                    Err(Failure::Conflict) if attempt < ATTEMPTS => thread::sleep(PAUSE * attempt),
                    done => return done,
                }
                tracing::debug!(attempt, "another transaction was in the way");
                attempt += 1;
            }
        })
    }

    fn transact<T>(
        &self,
        scope: Scope,
        body: impl FnMut(&mut PgConnection) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.attempt(scope, body).map_err(Failure::into_error)
    }

    /// Gives the statements of this transaction their time.
    fn limit(&self, conn: &mut PgConnection, scope: Scope) -> Result<(), Failure> {
        if scope == Scope::All {
            let millis = connect::millis(self.options.long_statement_timeout).to_string();
            statement("SELECT set_config('statement_timeout', $1, true)")
                .bind::<Text>(millis)
                .execute(conn)?;
        }
        Ok(())
    }

    /// The time that leases go by; none is the database's.
    fn clock(&self, now: DateTime<Utc>) -> Option<NaiveDateTime> {
        match self.options.clock {
            LeaseClock::Database => None,
            LeaseClock::Given => Some(now.naive_utc()),
        }
    }

    fn own(&self, node: &NodeName) -> Option<Epoch> {
        Life::fence(self.life.as_ref(), node).map(|(incarnation, _)| incarnation)
    }

    /// The life of the node, known from now on.
    fn life(&mut self, node: &NodeName, lease: Duration) -> Life {
        let life = Life::of(self.life.as_ref(), node, lease);
        self.life.insert(life).clone()
    }

    fn begin(&mut self) {
        if let Some(life) = &mut self.life {
            life.begin();
        }
    }
}

impl Store for PostgresStore {
    fn apply(
        &mut self,
        node: &NodeName,
        batch: &Batch,
        now: DateTime<Utc>,
    ) -> Result<Applied, StoreError> {
        let fence = Life::fence(self.life.as_ref(), node);
        let clock = self.clock(now);
        let sorted = Sorted::new(batch);
        let fenced = |conn: &mut PgConnection| match fence {
            Some((incarnation, lease)) => {
                nodes::fence(conn, node, incarnation, batch.number, clock, lease)
            }
            None => Ok(()),
        };
        let whole = self.attempt(Scope::Few, |conn| {
            fenced(conn)?;
            sorted.write(conn, node, now)
        });
        let Err(Failure::Row(_)) = whole else { return whole.map_err(Failure::into_error) };
        // Some row is refused: now each part is in a savepoint, to be undone by itself.
        self.transact(Scope::Few, |conn| {
            fenced(conn)?;
            sorted.write_piecemeal(conn, node, now)
        })
    }

    fn start(
        &mut self,
        node: &NodeName,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Started, StoreError> {
        let incarnation = self.life(node, lease).next();
        let clock = self.clock(now);
        let (inherited, stopped) = self.transact(Scope::All, |conn| {
            nodes::start(conn, node, incarnation, now, clock, lease)
        })?;
        self.begin();
        Ok(Started { incarnation, dead: Vec::new(), inherited, stopped })
    }

    fn renew(
        &mut self,
        node: &NodeName,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Renewal, StoreError> {
        let life = self.life(node, lease);
        let clock = self.clock(now);
        let renewal =
            self.transact(Scope::All, |conn| nodes::renew(conn, &life, now, clock, lease))?;
        if matches!(renewal, Renewal::Lapsed { .. }) {
            self.begin();
        }
        Ok(renewal)
    }

    fn stop(&mut self, node: &NodeName) -> Result<usize, StoreError> {
        let own = self.own(node);
        self.transact(Scope::All, |conn| nodes::stop(conn, node, own))
    }

    fn hand_over(
        &mut self,
        node: &NodeName,
        now: DateTime<Utc>,
        grace: Duration,
    ) -> Result<usize, StoreError> {
        let (own, clock) = (self.own(node), self.clock(now));
        self.transact(Scope::All, |conn| nodes::hand_over(conn, node, own, clock, grace))
    }

    fn prune_presences(
        &mut self,
        now: DateTime<Utc>,
        max_age: Duration,
    ) -> Result<usize, StoreError> {
        let age = TimeDelta::from_std(max_age).ok();
        let Some(oldest) = age.and_then(|age| now.checked_sub_signed(age)) else { return Ok(0) };
        let clock = self.clock(now);
        self.transact(Scope::All, |conn| nodes::prune_presences(conn, oldest.naive_utc(), clock))
    }

    fn prune_rooms(&mut self) -> Result<usize, StoreError> {
        self.transact(Scope::All, queries::prune_rooms)
    }

    fn rooms(&mut self) -> Result<Vec<RoomCounts>, StoreError> {
        self.transact(Scope::All, queries::rooms)
    }
}
