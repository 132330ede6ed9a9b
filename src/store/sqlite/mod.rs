//! The store on SQLite, and the lock of its file.

mod checkpoint;
mod connection;
#[cfg(test)]
mod file_tests;
mod files;
mod kinds;
mod migrate;
mod owner;
mod prepare;
mod statements;
#[cfg(test)]
mod tests;

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::{
    dsl::{count, exists, not},
    prelude::*,
    sql_types::{BigInt, Text},
    upsert::excluded,
};

use self::{
    connection::Database,
    statements::{Stamp, apply},
};
use super::{
    Applied, Batch, DatabaseUrl, DeadNode, Renewal, Result, RoomCounts, Started, Store,
    schema::{nodes, presences, rooms},
    transaction::{oldest, to_count},
};
use crate::model::{Epoch, NodeName};

pub use self::{
    connection::SqliteOptions,
    owner::{OwnerError, OwnerLock},
};

/// Migrates a database, creating it if there is none. Returns the number of migrations applied.
pub(super) fn migrate(url: &DatabaseUrl, options: SqliteOptions) -> Result<usize> {
    Database::open(url, options).map(|(_, migrations)| migrations)
}

/// A [`Store`] on a SQLite file, or in memory.
///
/// It has one connection, since a store has one user, and `:memory:` is a database per connection. Before
/// each call it checks whether the open files are still those at their paths.
pub struct SqliteStore {
    database: Database,
}

impl SqliteStore {
    /// Opens a database, creating and migrating it as needed.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError); a missing directory is not created.
    pub fn open(url: &DatabaseUrl) -> Result<Self> {
        Self::open_with(url, SqliteOptions::default())
    }

    /// Opens a database as [`open`](Self::open) does, with options.
    ///
    /// # Errors
    ///
    /// [`StoreError`](super::StoreError).
    pub fn open_with(url: &DatabaseUrl, options: SqliteOptions) -> Result<Self> {
        let (database, _) = Database::open(url, options)?;
        Ok(Self { database })
    }

    /// Keeps the lock until the store is dropped, and takes it again if its file is deleted.
    #[must_use]
    pub fn owned(mut self, lock: Option<OwnerLock>) -> Self {
        self.database.own(lock);
        self
    }
}

#[derive(Insertable)]
#[diesel(table_name = nodes)]
struct LeaseRow<'a> {
    id: &'a str,
    started_at: Stamp,
    lease_expires_at: Stamp,
}

impl<'a> LeaseRow<'a> {
    fn new(node: &'a NodeName, now: DateTime<Utc>, lease: Duration) -> Self {
        let end = Stamp::after(now, lease);
        Self { id: node.as_str(), started_at: Stamp(now), lease_expires_at: end }
    }
}

impl Store for SqliteStore {
    fn apply(&mut self, node: &NodeName, batch: &Batch, now: DateTime<Utc>) -> Result<Applied> {
        self.database.write(|conn| apply(conn, node, batch, now))
    }

    fn start(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Started> {
        self.database.write(|conn| {
            let dead = dead_nodes(conn)?;
            diesel::delete(presences::table).execute(conn)?;
            diesel::delete(nodes::table).execute(conn)?;
            let row = LeaseRow::new(node, now, lease);
            diesel::insert_into(nodes::table).values(row).execute(conn)?;
            Ok(Started { incarnation: Epoch::new(), dead, inherited: Vec::new(), stopped: false })
        })
    }

    fn renew(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Renewal> {
        self.database.write(|conn| {
            let end: Option<Stamp> = nodes::table
                .find(node.as_str())
                .select(nodes::lease_expires_at)
                .first(conn)
                .optional()?;
            diesel::insert_into(nodes::table)
                .values(LeaseRow::new(node, now, lease))
                .on_conflict(nodes::id)
                .do_update()
                .set(nodes::lease_expires_at.eq(excluded(nodes::lease_expires_at)))
                .execute(conn)?;
            let held = end.is_some_and(|Stamp(end)| end >= now);
            Ok(match held {
                true => Renewal::Held,
                false => Renewal::Lapsed { incarnation: Epoch::new() },
            })
        })
    }

    fn stop(&mut self, node: &NodeName) -> Result<usize> {
        self.database.write(|conn| {
            let own = presences::node_id.eq(node.as_str());
            let removed = diesel::delete(presences::table.filter(own)).execute(conn)?;
            diesel::delete(nodes::table.find(node.as_str())).execute(conn)?;
            Ok(removed)
        })
    }

    fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> Result<usize> {
        let Some(oldest) = oldest(now, max_age) else { return Ok(0) };
        let owner = nodes::table.filter(nodes::id.eq(presences::node_id));
        let lives = exists(owner.filter(nodes::lease_expires_at.ge(Stamp(now))));
        let stale = presences::last_seen.lt(Stamp(oldest)).and(not(lives));
        self.database
            .write(|conn| Ok(diesel::delete(presences::table.filter(stale)).execute(conn)?))
    }

    fn prune_rooms(&mut self) -> Result<usize> {
        let inside = presences::table.filter(presences::room_id.eq(rooms::id));
        self.database.write(|conn| {
            Ok(diesel::delete(rooms::table.filter(not(exists(inside)))).execute(conn)?)
        })
    }

    fn rooms(&mut self, now: DateTime<Utc>) -> Result<Vec<RoomCounts>> {
        let counts = (
            rooms::channel_name,
            count(presences::id.nullable()),
            count(presences::user_id.nullable()).aggregate_distinct(),
            count(presences::user_id.nullable()),
        );
        let lives = nodes::id.eq(presences::node_id).and(nodes::lease_expires_at.ge(Stamp(now)));
        let alive = presences::table.inner_join(nodes::table.on(lives));
        let rows: Vec<(String, i64, i64, i64)> = self.database.read(|conn| {
            Ok(rooms::table
                .left_join(alive)
                .group_by((rooms::id, rooms::channel_name))
                .order(rooms::channel_name)
                .select(counts)
                .load(conn)?)
        })?;
        let rooms = rows.into_iter().map(|(channel_name, connections, users, known)| RoomCounts {
            channel_name,
            connections: to_count(connections),
            users: to_count(users),
            anonymous: to_count(connections - known),
        });
        Ok(rooms.collect())
    }
}

/// Every node that has a row or presences.
fn dead_nodes(conn: &mut SqliteConnection) -> QueryResult<Vec<DeadNode>> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Text)]
        node: String,
        #[diesel(sql_type = BigInt)]
        presences: i64,
    }
    let found: Vec<Found> = diesel::sql_query(
        "SELECT node, sum(presences) AS presences FROM (
            SELECT id AS node, 0 AS presences FROM nodes
            UNION ALL SELECT node_id, count(*) FROM presences GROUP BY node_id
        ) GROUP BY node ORDER BY node",
    )
    .load(conn)?;
    let dead = found.into_iter();
    Ok(dead.map(|dead| DeadNode { node: dead.node, presences: to_count(dead.presences) }).collect())
}
