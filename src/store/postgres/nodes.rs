//! The nodes, their leases, and the presences of dead nodes.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use diesel::{
    OptionalExtension, QueryableByName,
    sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamp},
};

use super::{
    rows::{PresenceRow, held_columns, read_presences},
    statement::{SchemaConnection, statement},
};
use crate::{
    model::{Epoch, NodeName},
    store::{Fence, OwnIncarnations, Reaped, Renewal, Row, StoreError, transaction::Failure},
};

/// Raises the head and extends the lease, but never shortens it: the write may be late. A lower head is that of
/// an earlier state of the database.
const FENCE: &str = "
    UPDATE @nodes SET head = greatest(head, $1),
        lease_expires_at = greatest(lease_expires_at,
            coalesce($2, now() AT TIME ZONE 'UTC') + $3 * interval '1 microsecond')
    WHERE id = $4 AND incarnation = $5 AND head >= $6";

const START: &str = "
    INSERT INTO @nodes (started_at, lease_expires_at, id, incarnation)
    VALUES ($1, coalesce($2, now() AT TIME ZONE 'UTC') + $3 * interval '1 microsecond', $4, $5)
    ON CONFLICT (id) DO UPDATE SET started_at = excluded.started_at,
        lease_expires_at = excluded.lease_expires_at, incarnation = excluded.incarnation,
        head = 0, leaving = false";

/// Extends the lease of the own row, if it is not of an earlier state of the database.
const RENEW: &str = "
    UPDATE @nodes SET
        lease_expires_at = coalesce($1, now() AT TIME ZONE 'UTC') + $2 * interval '1 microsecond'
    WHERE id = $3 AND incarnation = $4 AND head >= $5";

/// Takes over the row of another store of this process, or that of an earlier state of the database. Late
/// writes in the incarnations before are refused from then on.
const CONTINUE: &str = "
    UPDATE @nodes SET incarnation = $1, leaving = false,
        lease_expires_at = coalesce($2, now() AT TIME ZONE 'UTC') + $3 * interval '1 microsecond'
    WHERE id = $4 AND incarnation = ANY ($5)";

/// Creates the row, or finds the one that was created by a renewal whose answer was lost, or takes over one
/// whose lease is over: in a database put back to a backup it is that of an earlier process.
const REJOIN: &str = "
    INSERT INTO @nodes (started_at, lease_expires_at, id, incarnation)
    VALUES ($1, coalesce($2, now() AT TIME ZONE 'UTC') + $3 * interval '1 microsecond', $4, $5)
    ON CONFLICT (id) DO UPDATE SET started_at = excluded.started_at,
        lease_expires_at = excluded.lease_expires_at, incarnation = excluded.incarnation,
        head = 0, leaving = false
    WHERE nodes.incarnation = excluded.incarnation
        OR nodes.lease_expires_at < coalesce($2, now() AT TIME ZONE 'UTC')";

const LEAVE: &str = "
    UPDATE @nodes SET leaving = true,
        lease_expires_at = coalesce($1, now() AT TIME ZONE 'UTC') + $2 * interval '1 microsecond'
    WHERE id = $3";

/// The row is checked again after it is locked: a lease that was extended meanwhile has not expired. A row
/// that is locked already is skipped: the node writes, or another one reaps it.
const REAP: &str = "
    DELETE FROM @nodes WHERE id = (
        SELECT id FROM @nodes
        WHERE id = $1 AND incarnation = $2
            AND lease_expires_at < coalesce($3, now() AT TIME ZONE 'UTC')
        FOR UPDATE SKIP LOCKED)
    RETURNING leaving";

pub(super) const INHERITED: &str = concat!(
    "SELECT ",
    held_columns!(),
    " FROM @presences JOIN @rooms ON rooms.id = presences.room_id WHERE presences.node_id = $1"
);

/// Deletes in the order in which every node writes.
macro_rules! own {
    ($condition:literal) => {
        concat!(
            "WITH own AS MATERIALIZED (
                SELECT presences.id FROM @presences JOIN @rooms ON rooms.id = presences.room_id
                WHERE presences.node_id = $1",
            $condition,
            " ORDER BY rooms.channel_name, presences.channel_name FOR UPDATE OF presences)
            DELETE FROM @presences USING own"
        )
    };
}

pub(super) const REMOVE: &str = concat!(own!(""), " WHERE presences.id = own.id");

pub(super) const REMOVE_PRESENT: &str =
    concat!(own!(" AND presences.fading_until IS NULL"), " WHERE presences.id = own.id");

pub(super) const TAKE: &str = concat!(
    own!(""),
    ", @rooms WHERE presences.id = own.id AND rooms.id = presences.room_id RETURNING ",
    held_columns!()
);

const EXPIRED: &str = "
    SELECT id FROM @nodes WHERE lease_expires_at < coalesce($1, now() AT TIME ZONE 'UTC')
    ORDER BY id FOR UPDATE";

/// Deletes presences of nodes whose lease has expired or which have none.
pub(super) const PRUNE: &str = "
    DELETE FROM @presences
    WHERE last_seen < $1 AND (node_id = ANY ($2)
        OR NOT EXISTS (SELECT FROM @nodes WHERE nodes.id = presences.node_id))
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

/// Checks that the row of the node is as it should be, and notes the batch in it.
pub(super) fn fence(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    fence: Fence,
    number: u64,
    clock: Option<NaiveDateTime>,
) -> Result<(), Failure> {
    let found = statement(FENCE)
        .bind::<BigInt>(big(number))
        .bind::<Nullable<Timestamp>>(clock)
        .bind::<BigInt>(micros(fence.lease))
        .bind::<Text>(node.as_str())
        .bind::<Text>(fence.incarnation.to_string())
        .bind::<BigInt>(big(fence.head))
        .execute(conn)?;
    if found == 0 { Err(StoreError::Lapsed.into()) } else { Ok(()) }
}

/// The number of a batch.
fn big(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Writes the row of the node. Returns the presences of an earlier incarnation, and whether that one had
/// shut down.
pub(super) fn start(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    incarnation: Epoch,
    now: DateTime<Utc>,
    clock: Option<NaiveDateTime>,
    lease: Duration,
) -> Result<(Vec<Row>, bool), Failure> {
    lock_starts_and_prunes(conn)?;
    let before: Option<Leaving> = statement("SELECT leaving FROM @nodes WHERE id = $1 FOR UPDATE")
        .bind::<Text>(node.as_str())
        .get_result(conn)
        .optional()?;
    insert(START, conn, node, incarnation, now, clock, lease)?;
    let held: Vec<PresenceRow> = statement(INHERITED).bind::<Text>(node.as_str()).load(conn)?;
    let inherited = read_presences(held).into_iter().map(|(_, row)| row).collect();
    Ok((inherited, before.is_some_and(|before| before.leaving)))
}

fn insert(
    sql: &'static str,
    conn: &mut SchemaConnection<'_>,
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

/// Serialises starts and prunes: what a start inherits must not be pruned at the same time.
fn lock_starts_and_prunes(conn: &mut SchemaConnection<'_>) -> Result<(), Failure> {
    statement("SELECT pg_advisory_xact_lock(hashtext('actix-presence: start or prune'))")
        .execute(conn)?;
    Ok(())
}

/// Extends the lease, goes on in a new incarnation, or creates the row again. `before_long` is called before
/// what may take long.
pub(super) fn renew(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    incarnations: &OwnIncarnations,
    now: DateTime<Utc>,
    clock: Option<NaiveDateTime>,
    lease: Duration,
    before_long: impl FnOnce(&mut SchemaConnection<'_>) -> Result<(), Failure>,
) -> Result<Renewal, Failure> {
    let OwnIncarnations { current, next, own, head } = incarnations;
    if let Some(current) = current {
        let held = statement(RENEW)
            .bind::<Nullable<Timestamp>>(clock)
            .bind::<BigInt>(micros(lease))
            .bind::<Text>(node.as_str())
            .bind::<Text>(current.to_string())
            .bind::<BigInt>(big(*head))
            .execute(conn)?;
        if held > 0 {
            return Ok(Renewal::Held);
        }
    }
    let continued = statement(CONTINUE)
        .bind::<Text>(next.continued.to_string())
        .bind::<Nullable<Timestamp>>(clock)
        .bind::<BigInt>(micros(lease))
        .bind::<Text>(node.as_str())
        .bind::<Array<Text>>(own.iter().map(Epoch::to_string).collect::<Vec<_>>())
        .execute(conn)?;
    if continued > 0 {
        return Ok(Renewal::Continued { incarnation: next.continued });
    }
    if insert(REJOIN, conn, node, next.life, now, clock, lease)? == 0 {
        return Err(StoreError::NameTaken.into());
    }
    // Without a row it had no presences, and those of an earlier process have ended; all that this one has
    // are written again.
    before_long(conn)?;
    remove(REMOVE, conn, node)?;
    Ok(Renewal::Lapsed { incarnation: next.life })
}

fn remove(
    sql: &'static str,
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
) -> Result<usize, Failure> {
    Ok(statement(sql).bind::<Text>(node.as_str()).execute(conn)?)
}

/// Whether the row of the node belongs to another process: to none of its `own` incarnations, if it has any.
/// The row is locked.
fn has_been_taken(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    own: &[Epoch],
) -> Result<bool, Failure> {
    let found: Option<Id> =
        statement("SELECT incarnation AS id FROM @nodes WHERE id = $1 FOR UPDATE")
            .bind::<Text>(node.as_str())
            .get_result(conn)
            .optional()?;
    let is_own = |found: Id| own.iter().any(|own| own.to_string() == found.id);
    Ok(!own.is_empty() && found.is_some_and(|found| !is_own(found)))
}

/// Removes the node and its presences, unless they belong to another incarnation.
pub(super) fn stop(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    own: &[Epoch],
) -> Result<usize, Failure> {
    if has_been_taken(conn, node, own)? {
        return Ok(0);
    }
    let removed = remove(REMOVE, conn, node)?;
    remove("DELETE FROM @nodes WHERE id = $1", conn, node)?;
    Ok(removed)
}

/// Removes the presences that are not fading, and marks the node as leaving.
pub(super) fn hand_over(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    own: &[Epoch],
    clock: Option<NaiveDateTime>,
    grace: Duration,
) -> Result<usize, Failure> {
    if has_been_taken(conn, node, own)? {
        return Ok(0);
    }
    statement(LEAVE)
        .bind::<Nullable<Timestamp>>(clock)
        .bind::<BigInt>(micros(grace))
        .bind::<Text>(node.as_str())
        .execute(conn)?;
    remove(REMOVE_PRESENT, conn, node)
}

/// Removes a node whose lease has expired, and returns its presences.
pub(super) fn reap(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    incarnation: Epoch,
    clock: Option<NaiveDateTime>,
) -> Result<Reaped, Failure> {
    let dead: Option<Leaving> = statement(REAP)
        .bind::<Text>(node.as_str())
        .bind::<Text>(incarnation.to_string())
        .bind::<Nullable<Timestamp>>(clock)
        .get_result(conn)
        .optional()?;
    let Some(Leaving { leaving }) = dead else {
        let row = statement("SELECT id FROM @nodes WHERE id = $1").bind::<Text>(node.as_str());
        let row: Option<Id> = row.get_result(conn).optional()?;
        return Ok(if row.is_some() { Reaped::Alive } else { Reaped::Gone });
    };
    let held: Vec<PresenceRow> = statement(TAKE).bind::<Text>(node.as_str()).load(conn)?;
    let rows = read_presences(held).into_iter().map(|(_, row)| row).collect();
    Ok(Reaped::Removed { rows, leaving })
}

/// Removes stale presences of nodes whose lease has expired, and the rows of those nodes.
pub(super) fn prune_presences(
    conn: &mut SchemaConnection<'_>,
    oldest: NaiveDateTime,
    clock: Option<NaiveDateTime>,
) -> Result<usize, Failure> {
    lock_starts_and_prunes(conn)?;
    // Locked, so that none of them writes before it can know.
    let expired: Vec<Id> = statement(EXPIRED).bind::<Nullable<Timestamp>>(clock).load(conn)?;
    let expired: Vec<String> = expired.into_iter().map(|node| node.id).collect();
    let pruned: Vec<Id> =
        statement(PRUNE).bind::<Timestamp>(oldest).bind::<Array<Text>>(expired).load(conn)?;
    let removed = pruned.len();
    // A node that was only slow writes its rows again only if it finds that its lease has lapsed.
    let mut pruned_nodes: Vec<String> = pruned.into_iter().map(|node| node.id).collect();
    pruned_nodes.sort();
    pruned_nodes.dedup();
    statement("DELETE FROM @nodes WHERE id = ANY ($1)")
        .bind::<Array<Text>>(pruned_nodes)
        .execute(conn)?;
    Ok(removed)
}
