//! The nodes, their leases, and what they leave.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use diesel::{
    OptionalExtension, PgConnection, QueryableByName, RunQueryDsl,
    sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamp},
};

use super::{
    rows::{self, Held, held_columns},
    statement::statement,
};
use crate::{
    model::{Epoch, NodeName},
    store::{Burial, Life, Renewal, Row, StoreError, error::Failure},
};

/// Raises the head and extends the lease, never to an earlier end: what the node writes may be late.
const FENCE: &str = "
    UPDATE nodes SET head = greatest(head, $1),
        lease_expires_at = greatest(lease_expires_at,
            coalesce($2, now() AT TIME ZONE 'UTC') + $3 * interval '1 microsecond')
    WHERE id = $4 AND incarnation = $5";

const START: &str = "
    INSERT INTO nodes (started_at, lease_expires_at, id, incarnation)
    VALUES ($1, coalesce($2, now() AT TIME ZONE 'UTC') + $3 * interval '1 microsecond', $4, $5)
    ON CONFLICT (id) DO UPDATE SET started_at = excluded.started_at,
        lease_expires_at = excluded.lease_expires_at, incarnation = excluded.incarnation,
        head = 0, leaving = false";

/// One's own row, or none, or the one that a renewal made whose answer was lost.
const RENEW: &str = "
    UPDATE nodes SET
        lease_expires_at = coalesce($1, now() AT TIME ZONE 'UTC') + $2 * interval '1 microsecond'
    WHERE id = $3 AND incarnation = $4";

const COME_BACK: &str = "
    INSERT INTO nodes (started_at, lease_expires_at, id, incarnation)
    VALUES ($1, coalesce($2, now() AT TIME ZONE 'UTC') + $3 * interval '1 microsecond', $4, $5)
    ON CONFLICT (id) DO UPDATE SET lease_expires_at = excluded.lease_expires_at
    WHERE nodes.incarnation = excluded.incarnation";

const LEAVE: &str = "
    UPDATE nodes SET leaving = true,
        lease_expires_at = coalesce($1, now() AT TIME ZONE 'UTC') + $2 * interval '1 microsecond'
    WHERE id = $3";

/// The row is locked, and looked at again then: a lease that was extended meanwhile is not over. Who
/// finds it locked leaves it to the one who has it, who writes as the node, or buries it.
const DIG: &str = "
    DELETE FROM nodes WHERE id = (
        SELECT id FROM nodes
        WHERE id = $1 AND incarnation = $2
            AND lease_expires_at < coalesce($3, now() AT TIME ZONE 'UTC')
        FOR UPDATE SKIP LOCKED)
    RETURNING leaving";

pub(super) const INHERITED: &str = concat!(
    "SELECT ",
    held_columns!(),
    " FROM presences JOIN rooms ON rooms.id = presences.room_id WHERE presences.node_id = $1"
);

/// In the order in which everybody writes.
macro_rules! own {
    ($condition:literal) => {
        concat!(
            "WITH own AS MATERIALIZED (
                SELECT presences.id FROM presences JOIN rooms ON rooms.id = presences.room_id
                WHERE presences.node_id = $1",
            $condition,
            " ORDER BY rooms.channel_name, presences.channel_name FOR UPDATE OF presences)
            DELETE FROM presences USING own"
        )
    };
}

pub(super) const REMOVE: &str = concat!(own!(""), " WHERE presences.id = own.id");

pub(super) const REMOVE_PRESENT: &str =
    concat!(own!(" AND presences.fading_until IS NULL"), " WHERE presences.id = own.id");

pub(super) const TAKE: &str = concat!(
    own!(""),
    ", rooms WHERE presences.id = own.id AND rooms.id = presences.room_id RETURNING ",
    held_columns!()
);

const EXPIRED: &str = "
    SELECT id FROM nodes WHERE lease_expires_at < coalesce($1, now() AT TIME ZONE 'UTC')
    ORDER BY id FOR UPDATE";

/// Of the nodes whose lease is over, and of those that have none.
pub(super) const PRUNE: &str = "
    DELETE FROM presences
    WHERE last_seen < $1 AND (node_id = ANY ($2)
        OR NOT EXISTS (SELECT FROM nodes WHERE nodes.id = presences.node_id))
    RETURNING node_id AS id";

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(QueryableByName)]
struct Leaving {
    #[diesel(sql_type = Bool)]
    leaving: bool,
}

/// A lease in microseconds: up to a century, so that it can be added to a time.
fn micros(lease: Duration) -> i64 {
    const CENTURY: i64 = 100 * 365 * 24 * 3600 * 1_000_000;
    i64::try_from(lease.as_micros()).unwrap_or(CENTURY).min(CENTURY)
}

/// Makes sure that the node is there and writes this batch.
pub(super) fn fence(
    conn: &mut PgConnection,
    node: &NodeName,
    incarnation: Epoch,
    head: u64,
    clock: Option<NaiveDateTime>,
    lease: Duration,
) -> Result<(), Failure> {
    let found = statement(FENCE)
        .bind::<BigInt>(i64::try_from(head).unwrap_or(i64::MAX))
        .bind::<Nullable<Timestamp>>(clock)
        .bind::<BigInt>(micros(lease))
        .bind::<Text>(node.as_str())
        .bind::<Text>(incarnation.to_string())
        .execute(conn)?;
    if found == 0 { Err(StoreError::Lapsed.into()) } else { Ok(()) }
}

/// Makes the node's row, and answers what it had, and whether it had stopped in order.
pub(super) fn start(
    conn: &mut PgConnection,
    node: &NodeName,
    incarnation: Epoch,
    now: DateTime<Utc>,
    clock: Option<NaiveDateTime>,
    lease: Duration,
) -> Result<(Vec<Row>, bool), Failure> {
    alone(conn)?;
    let before: Option<Leaving> = statement("SELECT leaving FROM nodes WHERE id = $1 FOR UPDATE")
        .bind::<Text>(node.as_str())
        .get_result(conn)
        .optional()?;
    insert(START, conn, node, incarnation, now, clock, lease)?;
    let held: Vec<Held> = statement(INHERITED).bind::<Text>(node.as_str()).load(conn)?;
    let inherited = rows::presences(held).into_iter().map(|(_, row)| row).collect();
    Ok((inherited, before.is_some_and(|before| before.leaving)))
}

fn insert(
    sql: &'static str,
    conn: &mut PgConnection,
    node: &NodeName,
    incarnation: Epoch,
    now: DateTime<Utc>,
    clock: Option<NaiveDateTime>,
    lease: Duration,
) -> Result<usize, Failure> {
    let inserted = statement(sql)
        .bind::<Timestamp>(now.naive_utc())
        .bind::<Nullable<Timestamp>>(clock)
        .bind::<BigInt>(micros(lease))
        .bind::<Text>(node.as_str())
        .bind::<Text>(incarnation.to_string())
        .execute(conn)?;
    Ok(inserted)
}

/// Keeps starts and prunes apart: what a start has found as its own must not be pruned as nobody's.
fn alone(conn: &mut PgConnection) -> Result<(), Failure> {
    statement("SELECT pg_advisory_xact_lock(hashtext('actix-presence: start or prune'))")
        .execute(conn)?;
    Ok(())
}

/// Extends the lease, or makes the row anew.
pub(super) fn renew(
    conn: &mut PgConnection,
    life: &Life,
    now: DateTime<Utc>,
    clock: Option<NaiveDateTime>,
    lease: Duration,
) -> Result<Renewal, Failure> {
    let (node, incarnation) = (life.node(), life.next());
    if let Some(own) = life.incarnation() {
        let held = statement(RENEW)
            .bind::<Nullable<Timestamp>>(clock)
            .bind::<BigInt>(micros(lease))
            .bind::<Text>(node.as_str())
            .bind::<Text>(own.to_string())
            .execute(conn)?;
        if held > 0 {
            return Ok(Renewal::Held);
        }
    }
    if insert(COME_BACK, conn, node, incarnation, now, clock, lease)? == 0 {
        return Err(StoreError::NameTaken.into());
    }
    // Without a row it had no presences; whatever there is, is written again.
    remove(REMOVE, conn, node)?;
    Ok(Renewal::Lapsed { incarnation })
}

fn remove(sql: &'static str, conn: &mut PgConnection, node: &NodeName) -> Result<usize, Failure> {
    Ok(statement(sql).bind::<Text>(node.as_str()).execute(conn)?)
}

/// Whether the node's row is another life's. A row that is not is locked.
fn is_anothers(
    conn: &mut PgConnection,
    node: &NodeName,
    own: Option<Epoch>,
) -> Result<bool, Failure> {
    let found: Option<Id> =
        statement("SELECT incarnation AS id FROM nodes WHERE id = $1 FOR UPDATE")
            .bind::<Text>(node.as_str())
            .get_result(conn)
            .optional()?;
    Ok(own.is_some_and(|own| found.is_some_and(|found| found.id != own.to_string())))
}

/// Removes the node and its presences, unless they are another life's.
pub(super) fn stop(
    conn: &mut PgConnection,
    node: &NodeName,
    own: Option<Epoch>,
) -> Result<usize, Failure> {
    if is_anothers(conn, node, own)? {
        return Ok(0);
    }
    let removed = remove(REMOVE, conn, node)?;
    remove("DELETE FROM nodes WHERE id = $1", conn, node)?;
    Ok(removed)
}

/// Removes the presences that do not fade, and says that the node is leaving.
pub(super) fn hand_over(
    conn: &mut PgConnection,
    node: &NodeName,
    own: Option<Epoch>,
    clock: Option<NaiveDateTime>,
    grace: Duration,
) -> Result<usize, Failure> {
    if is_anothers(conn, node, own)? {
        return Ok(0);
    }
    statement(LEAVE)
        .bind::<Nullable<Timestamp>>(clock)
        .bind::<BigInt>(micros(grace))
        .bind::<Text>(node.as_str())
        .execute(conn)?;
    remove(REMOVE_PRESENT, conn, node)
}

/// Removes a node whose lease is over, and answers what it had.
pub(super) fn bury(
    conn: &mut PgConnection,
    node: &NodeName,
    incarnation: Epoch,
    clock: Option<NaiveDateTime>,
) -> Result<Burial, Failure> {
    let dead: Option<Leaving> = statement(DIG)
        .bind::<Text>(node.as_str())
        .bind::<Text>(incarnation.to_string())
        .bind::<Nullable<Timestamp>>(clock)
        .get_result(conn)
        .optional()?;
    let Some(Leaving { leaving }) = dead else {
        let row = statement("SELECT id FROM nodes WHERE id = $1").bind::<Text>(node.as_str());
        let row: Option<Id> = row.get_result(conn).optional()?;
        return Ok(if row.is_some() { Burial::Alive } else { Burial::Gone });
    };
    let held: Vec<Held> = statement(TAKE).bind::<Text>(node.as_str()).load(conn)?;
    let rows = rows::presences(held).into_iter().map(|(_, row)| row).collect();
    Ok(Burial::Buried { rows, leaving })
}

/// Removes stale presences of nodes whose lease is over, and those nodes that had some.
pub(super) fn prune_presences(
    conn: &mut PgConnection,
    oldest: NaiveDateTime,
    clock: Option<NaiveDateTime>,
) -> Result<usize, Failure> {
    alone(conn)?;
    // Locked, so that none of them goes on before it can know.
    let expired: Vec<Id> = statement(EXPIRED).bind::<Nullable<Timestamp>>(clock).load(conn)?;
    let expired: Vec<String> = expired.into_iter().map(|node| node.id).collect();
    let pruned: Vec<Id> =
        statement(PRUNE).bind::<Timestamp>(oldest).bind::<Array<Text>>(expired).load(conn)?;
    let removed = pruned.len();
    // A node that was only slow would not write again what it believes to be there, unless it finds
    // that it has lapsed.
    let mut robbed: Vec<String> = pruned.into_iter().map(|node| node.id).collect();
    robbed.sort();
    robbed.dedup();
    statement("DELETE FROM nodes WHERE id = ANY ($1)").bind::<Array<Text>>(robbed).execute(conn)?;
    Ok(removed)
}
