//! Batches as statements: the rows of a chunk go to SQLite as one JSON parameter.

use chrono::{DateTime, Utc};
use diesel::{
    RunQueryDsl, SqliteConnection, sql_query,
    sql_types::{Text, Timestamp},
};
use serde::Serialize;

use super::{
    Applied, Batch, Change, Row, SetAside, StoreError, chunks::each_chunk, error::Failure,
    stamp::Stamp,
};
use crate::model::{ConnectionId, NodeName, RoomName};

/// How many rows a statement takes at most. More makes nothing faster; the JSON stays small.
const CHUNK: usize = 2000;

/// Room names first: a row finds its room by name, so a room deleted by hand comes back.
const UPSERT_ROOMS: &str = "
    INSERT INTO rooms (channel_name, created_at)
    SELECT DISTINCT row.value ->> 0, ?2 FROM json_each(?1) AS row
    WHERE true ON CONFLICT (channel_name) DO NOTHING";

/// `CROSS JOIN` is SQLite's way to say in which order to join.
const UPSERT_PRESENCES: &str = "
    INSERT INTO presences
        (room_id, channel_name, user_id, info, joined_at, last_seen, node_id)
    SELECT rooms.id, row.value ->> 1, row.value ->> 2, row.value ->> 3, row.value ->> 4,
        row.value ->> 5, ?2
    FROM json_each(?1) AS row CROSS JOIN rooms ON rooms.channel_name = row.value ->> 0
    WHERE true ON CONFLICT (room_id, channel_name) DO UPDATE SET
        user_id = excluded.user_id, info = excluded.info, joined_at = excluded.joined_at,
        last_seen = excluded.last_seen, node_id = excluded.node_id";

const DELETE: &str = "
    DELETE FROM presences WHERE id IN (
        SELECT presences.id FROM json_each(?1) AS row
        CROSS JOIN rooms ON rooms.channel_name = row.value ->> 0
        CROSS JOIN presences
            ON presences.room_id = rooms.id AND presences.channel_name = row.value ->> 1)";

/// The rows are found first: joined to the table as it is, SQLite may walk the JSON for each of them.
const SEEN: &str = "
    WITH found AS MATERIALIZED (
        SELECT presences.id, row.value ->> 1 AS at FROM json_each(?1) AS row
        CROSS JOIN presences ON presences.channel_name = row.value ->> 0
        WHERE +presences.node_id = ?2)
    UPDATE presences SET last_seen = found.at FROM found WHERE presences.id = found.id";

/// Writes a batch, in the transaction that is open.
pub(super) fn apply(
    conn: &mut SqliteConnection,
    node: &NodeName,
    batch: &Batch,
    now: DateTime<Utc>,
) -> Result<Applied, Failure> {
    let mut set_aside = Vec::new();
    each_chunk(conn, &batch.deletes, CHUNK, delete, |(room, connection), reason| {
        set_aside.push(SetAside { change: Change::Delete(room.clone(), *connection), reason });
    })?;
    let upsert = |conn: &mut _, rows: &[_]| upsert(conn, node, rows, now);
    each_chunk(conn, &batch.upserts, CHUNK, upsert, |row, reason| {
        let change = Change::Upsert(row.room.clone(), row.presence.connection);
        set_aside.push(SetAside { change, reason });
    })?;
    let seen = |conn: &mut _, rows: &[_]| seen(conn, node, rows);
    each_chunk(conn, &batch.seen, CHUNK, seen, |(connection, _), reason| {
        set_aside.push(SetAside { change: Change::Seen(*connection), reason });
    })?;
    Ok(Applied { set_aside })
}

fn upsert(
    conn: &mut SqliteConnection,
    node: &NodeName,
    rows: &[Row],
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    let json = json(rows.iter().map(|row| {
        let Row { room, presence, last_seen, .. } = row;
        let (joined_at, last_seen) = (Stamp(presence.joined_at), Stamp(*last_seen));
        // Info goes as text in the text, so that the column holds it byte by byte.
        let info = presence.info.as_json();
        (room, presence.connection, &presence.user, info, joined_at, last_seen)
    }))?;
    sql_query(UPSERT_ROOMS)
        .bind::<Text, _>(&json)
        .bind::<Timestamp, _>(Stamp(now))
        .execute(conn)?;
    let written = sql_query(UPSERT_PRESENCES).bind::<Text, _>(&json).bind::<Text, _>(node.as_str());
    // A trigger can keep a row out without an error.
    match written.execute(conn)? {
        written if written < rows.len() => Err(Failure::Row("the database left it out".to_owned())),
        _ => Ok(()),
    }
}

fn delete(conn: &mut SqliteConnection, rows: &[(RoomName, ConnectionId)]) -> Result<(), Failure> {
    sql_query(DELETE).bind::<Text, _>(json(rows)?).execute(conn)?;
    Ok(())
}

fn seen(
    conn: &mut SqliteConnection,
    node: &NodeName,
    rows: &[(ConnectionId, DateTime<Utc>)],
) -> Result<(), Failure> {
    let json = json(rows.iter().map(|(connection, at)| (connection, Stamp(*at))))?;
    sql_query(SEEN).bind::<Text, _>(json).bind::<Text, _>(node.as_str()).execute(conn)?;
    Ok(())
}

fn json<T: Serialize>(rows: impl IntoIterator<Item = T>) -> Result<String, Failure> {
    let rows: Vec<T> = rows.into_iter().collect();
    serde_json::to_string(&rows).map_err(|error| StoreError::unavailable(error).into())
}

#[cfg(test)]
mod tests {
    use diesel::{Connection, QueryableByName};
    use diesel_migrations::MigrationHarness;

    use super::*;
    use crate::store::migrate::MIGRATIONS;

    #[test]
    fn no_statement_walks_the_table_or_the_batch_for_each_row() {
        #[derive(QueryableByName)]
        struct Step {
            #[diesel(sql_type = Text)]
            detail: String,
        }
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        conn.run_pending_migrations(MIGRATIONS).unwrap();
        for statement in [UPSERT_ROOMS, UPSERT_PRESENCES, DELETE, SEEN] {
            let plan = sql_query(format!("EXPLAIN QUERY PLAN {statement}"));
            let steps: Vec<Step> = plan.load(&mut conn).unwrap();
            let steps: Vec<_> = steps.into_iter().map(|step| step.detail).collect();
            for step in &steps {
                let lists = ["SCAN row ", "SCAN found"];
                let list = lists.iter().any(|list| step.starts_with(list));
                assert!(list || !step.starts_with("SCAN"), "{steps:#?}");
                // All rows of a node, each compared with the whole batch.
                assert!(!step.contains("presences_node_id"), "{steps:#?}");
            }
        }
    }
}
