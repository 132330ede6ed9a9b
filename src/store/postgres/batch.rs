//! Batches as statements: the rows are arrays, one for each column.

use std::{cell::RefCell, time::Duration};

use chrono::{DateTime, NaiveDateTime, Utc};
use diesel::{
    PgConnection, QueryableByName,
    sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamp},
};

use super::{
    connection::limit_statements,
    statement::{SchemaConnection, statement},
    trial::Trial,
};
use crate::{
    model::{ConnectionId, NodeName, RoomName},
    store::{
        Applied, Batch, BatchEntry, Row, Seen, SetAside,
        transaction::{Failure, to_count, write_chunks},
    },
};

/// The largest number of rows in a statement when some are refused.
const MAX_SAVEPOINT_ROWS: usize = 1024;

/// Inserts only what is missing: an existing room is not locked, and no number is used up.
///
/// Every node inserts in the order of the names, so that two of them never wait for each other.
pub(super) const INSERT_ROOMS: &str = "
    INSERT INTO @rooms (channel_name, created_at)
    SELECT given.room, $1 FROM unnest($2) WITH ORDINALITY AS given (room, place)
    WHERE NOT EXISTS (SELECT FROM @rooms WHERE channel_name = given.room)
    ORDER BY given.place ON CONFLICT (channel_name) DO NOTHING";

/// The rooms are locked until the commit, so that none is removed as empty before its presences are
/// visible. A room that was removed since its insertion is not found, and its presences are missing in
/// the number of rows written.
pub(super) const UPSERT_PRESENCES: &str = "
    WITH room AS MATERIALIZED (
        SELECT id, channel_name FROM @rooms WHERE channel_name = ANY ($1)
        ORDER BY channel_name FOR KEY SHARE)
    INSERT INTO @presences
        (room_id, channel_name, user_id, info, joined_at, last_seen, session_key, fixed_info,
        fading_until, turn, current_connection, updated_at, node_id)
    SELECT room.id, given.connection, given.user_id, given.info, given.joined_at, given.last_seen,
        given.session_key, given.fixed_info, given.fading_until, given.turn,
        given.current_connection, given.updated_at, $2
    FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) WITH ORDINALITY AS given
        (room, connection, user_id, info, joined_at, last_seen, session_key, fixed_info,
        fading_until, turn, current_connection, updated_at, place)
    JOIN room ON room.channel_name = given.room
    ORDER BY given.place
    ON CONFLICT (room_id, channel_name) DO UPDATE SET
        user_id = excluded.user_id, info = excluded.info, joined_at = excluded.joined_at,
        last_seen = excluded.last_seen, session_key = excluded.session_key,
        fixed_info = excluded.fixed_info,
        fading_until = excluded.fading_until, turn = excluded.turn,
        current_connection = excluded.current_connection, updated_at = excluded.updated_at,
        node_id = excluded.node_id
    WHERE presences.node_id = excluded.node_id
        OR (presences.turn, presences.node_id) < (excluded.turn, excluded.node_id)";

/// The number of presences that are skipped because another node holds them.
pub(super) const COUNT_OUTRANKED: &str = "
    WITH writer AS (SELECT $1 AS node_id)
    SELECT count(*) AS count
    FROM unnest($2, $3, $4) AS given (room, connection, turn) CROSS JOIN writer
    JOIN @rooms ON rooms.channel_name = given.room
    JOIN @presences ON presences.room_id = rooms.id AND presences.channel_name = given.connection
    WHERE presences.node_id <> writer.node_id
        AND (presences.turn, presences.node_id) > (given.turn, writer.node_id)";

pub(super) const DELETE: &str = "
    WITH own AS MATERIALIZED (
        SELECT presences.id
        FROM unnest($1, $2) WITH ORDINALITY AS given (room, connection, place)
        JOIN @rooms ON rooms.channel_name = given.room
        JOIN @presences
            ON presences.room_id = rooms.id AND presences.channel_name = given.connection
        WHERE presences.node_id = $3
        ORDER BY given.place FOR UPDATE OF presences)
    DELETE FROM @presences USING own WHERE presences.id = own.id";

pub(super) const TOUCH: &str = "
    UPDATE @presences SET last_seen = given.at FROM unnest($1, $2) AS given (connection, at)
    WHERE presences.channel_name = given.connection AND presences.node_id = $3";

/// The connections that have fewer rows of this node than they should.
pub(super) const TOO_FEW: &str = "
    SELECT given.connection FROM unnest($1, $2) AS given (connection, rooms)
    WHERE given.rooms > (
        SELECT count(*) FROM @presences
        WHERE presences.channel_name = given.connection AND presences.node_id = $3)";

/// A batch in the order in which every node writes: by room, then by connection.
pub(super) struct Sorted<'a> {
    upserts: Vec<&'a Row>,
    deletes: Vec<(&'a RoomName, ConnectionId)>,
    seen: &'a [Seen],
}

impl<'a> Sorted<'a> {
    pub(super) fn new(batch: &'a Batch) -> Self {
        let mut upserts: Vec<_> = batch.upserts.iter().collect();
        upserts.sort_by_key(|row| (&row.room, row.record.presence.connection));
        let mut deletes: Vec<_> =
            batch.deletes.iter().map(|(room, connection)| (room, *connection)).collect();
        deletes.sort();
        Self { upserts, deletes, seen: &batch.seen }
    }

    /// Writes the batch with one statement for each kind of change, in the open transaction.
    pub(super) fn write(
        &self,
        conn: &mut SchemaConnection<'_>,
        node: &NodeName,
        now: DateTime<Utc>,
    ) -> Result<Applied, Failure> {
        // Before the deletes, which lock rows that another node may wait for.
        insert_rooms(conn, &self.upserts, now)?;
        delete(conn, node, &self.deletes)?;
        upsert(conn, node, &self.upserts, now)?;
        let missing = seen(conn, node, self.seen)?;
        Ok(Applied { missing, ..Applied::default() })
    }

    /// Writes all that the database accepts, in the open transaction, and sets aside what it has not accepted
    /// within a time. Fails if it accepts nothing, and no row is certain to be the reason.
    pub(super) fn write_piecemeal(
        &self,
        conn: &mut SchemaConnection<'_>,
        node: &NodeName,
        now: DateTime<Utc>,
        time: Duration,
    ) -> Result<Applied, Failure> {
        const MAX: usize = MAX_SAVEPOINT_ROWS;
        // What somebody else has locked must not hold up all the rest.
        limit_statements(conn, time / 5, time / 20)?;
        let (conn, schema) = conn.parts();
        let mut trial = Trial::within(time);
        let (mut set_aside, missing) = (Vec::new(), RefCell::new(Vec::new()));
        let mut refused = |change, reason| set_aside.push(SetAside { change, reason });
        let write = |conn: &mut PgConnection, rows: &[_]| {
            delete(&mut SchemaConnection::new(conn, schema), node, rows)
        };
        write_chunks(conn, &mut trial, &self.deletes, MAX, write, |(room, connection), reason| {
            refused(BatchEntry::Delete(RoomName::clone(room), *connection), reason);
        })?;
        let write = |conn: &mut PgConnection, rows: &[_]| {
            let conn = &mut SchemaConnection::new(conn, schema);
            insert_rooms(conn, rows, now)?;
            upsert(conn, node, rows, now)
        };
        write_chunks(conn, &mut trial, &self.upserts, MAX, write, |row, reason| {
            refused(BatchEntry::Upsert(row.room.clone(), row.record.presence.connection), reason);
        })?;
        let write = |conn: &mut PgConnection, rows: &[_]| {
            let seen = seen(&mut SchemaConnection::new(conn, schema), node, rows)?;
            missing.borrow_mut().extend(seen);
            Ok(())
        };
        write_chunks(conn, &mut trial, self.seen, MAX, write, |seen, reason| {
            refused(BatchEntry::Seen(seen.connection), reason);
        })?;
        trial.end()?;
        Ok(Applied { set_aside, missing: missing.into_inner() })
    }
}

/// The names of the rooms of sorted rows, each once.
fn names<'a>(rows: &[&'a Row]) -> Vec<&'a str> {
    let mut names: Vec<_> = rows.iter().map(|row| row.room.as_str()).collect();
    names.dedup();
    names
}

fn insert_rooms(
    conn: &mut SchemaConnection<'_>,
    rows: &[&Row],
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    statement(INSERT_ROOMS)
        .bind::<Timestamp>(now.naive_utc())
        .bind::<Array<Text>>(names(rows))
        .execute(conn)?;
    Ok(())
}

fn upsert(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    rows: &[&Row],
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    // A room may have been removed as empty since its insertion. That cannot happen a second time:
    // existing rooms are locked now, and new ones are visible to nobody else.
    for again in [false, true] {
        if again {
            insert_rooms(conn, rows, now)?;
        }
        let written = write_presences(conn, node, rows)?;
        if written == rows.len() || written + outranked(conn, node, rows)? >= rows.len() {
            return Ok(());
        }
    }
    // A trigger can skip a row without an error.
    Err(Failure::Row("the database skipped it".to_owned()))
}

fn write_presences(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    rows: &[&Row],
) -> Result<usize, Failure> {
    fn column<'a, T>(rows: &[&'a Row], value: impl Fn(&'a Row) -> T) -> Vec<T> {
        rows.iter().map(|row| value(row)).collect()
    }
    let ids: Vec<_> = rows.iter().map(|row| row.record.presence.connection.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let users = column(rows, |row| row.record.presence.user.as_ref().map(|user| user.as_str()));
    let sessions = column(rows, |row| row.record.session.as_ref().map(|session| session.as_str()));
    let fading = column(rows, |row| row.record.fading.map(|until| until.naive_utc()));
    let current =
        column(rows, |row| row.record.current_connection.map(|current| current.to_string()));
    let written = statement(UPSERT_PRESENCES)
        .bind::<Array<Text>>(names(rows))
        .bind::<Text>(node.as_str())
        .bind::<Array<Text>>(column(rows, |row| row.room.as_str()))
        .bind::<Array<Text>>(ids)
        .bind::<Array<Nullable<Text>>>(users)
        .bind::<Array<Text>>(column(rows, |row| row.record.presence.info.as_json()))
        .bind::<Array<Timestamp>>(column(rows, |row| row.record.presence.joined_at.naive_utc()))
        .bind::<Array<Timestamp>>(column(rows, |row| row.record.last_seen.naive_utc()))
        .bind::<Array<Nullable<Text>>>(sessions)
        .bind::<Array<Text>>(column(rows, |row| row.record.fixed.as_json()))
        .bind::<Array<Nullable<Timestamp>>>(fading)
        .bind::<Array<Integer>>(column(rows, turn))
        .bind::<Array<Nullable<Text>>>(current)
        .bind::<Array<Timestamp>>(column(rows, |row| row.record.presence.updated_at.naive_utc()))
        .execute(conn)?;
    Ok(written)
}

fn outranked(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    rows: &[&Row],
) -> Result<usize, Failure> {
    let ids: Vec<_> = rows.iter().map(|row| row.record.presence.connection.to_string()).collect();
    let OutrankedCount { count } = statement(COUNT_OUTRANKED)
        .bind::<Text>(node.as_str())
        .bind::<Array<Text>>(rows.iter().map(|row| row.room.as_str()).collect::<Vec<_>>())
        .bind::<Array<Text>>(ids)
        .bind::<Array<Integer>>(rows.iter().map(|row| turn(row)).collect::<Vec<_>>())
        .get_result(conn)?;
    Ok(to_count(count))
}

#[derive(QueryableByName)]
struct OutrankedCount {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

fn turn(row: &Row) -> i32 {
    i32::try_from(row.record.generation).unwrap_or(i32::MAX)
}

fn delete(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    rows: &[(&RoomName, ConnectionId)],
) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let (rooms, ids): (Vec<_>, Vec<_>) =
        rows.iter().map(|(room, connection)| (room.as_str(), connection.to_string())).unzip();
    statement(DELETE)
        .bind::<Array<Text>>(rooms)
        .bind::<Array<Text>>(ids)
        .bind::<Text>(node.as_str())
        .execute(conn)?;
    Ok(())
}

/// Returns the connections that have fewer rows than they should.
fn seen(
    conn: &mut SchemaConnection<'_>,
    node: &NodeName,
    rows: &[Seen],
) -> Result<Vec<ConnectionId>, Failure> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<_> = rows.iter().map(|seen| seen.connection.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let times: Vec<NaiveDateTime> = rows.iter().map(|seen| seen.at.naive_utc()).collect();
    let touched = statement(TOUCH)
        .bind::<Array<Text>>(ids.clone())
        .bind::<Array<Timestamp>>(times)
        .bind::<Text>(node.as_str())
        .execute(conn)?;
    if touched >= rows.iter().map(|seen| seen.rooms).sum::<usize>() {
        return Ok(Vec::new());
    }
    let rooms = rows.iter().map(|seen| i64::try_from(seen.rooms).unwrap_or(i64::MAX));
    let few: Vec<FewRows> = statement(TOO_FEW)
        .bind::<Array<Text>>(ids)
        .bind::<Array<BigInt>>(rooms.collect::<Vec<_>>())
        .bind::<Text>(node.as_str())
        .load(conn)?;
    Ok(few.iter().filter_map(|few| few.connection.parse().ok()).collect())
}

#[derive(QueryableByName)]
struct FewRows {
    #[diesel(sql_type = Text)]
    connection: String,
}
