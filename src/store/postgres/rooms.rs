//! The rows of rooms: counting who is in each, and removing the empty ones.

use chrono::NaiveDateTime;
use diesel::{
    QueryableByName,
    sql_types::{Array, BigInt, Nullable, Timestamp},
};

use super::{
    rows::Counted,
    statement::{SchemaConnection, statement},
};
use crate::{
    model::Occupancy,
    store::{RoomCounts, transaction::Failure},
};

const COUNT_ROOMS: &str = "
    SELECT rooms.channel_name, count(presences.id) AS connections,
        count(DISTINCT presences.user_id) AS users, count(presences.user_id) AS known
    FROM @rooms LEFT JOIN (
        @presences JOIN @nodes ON nodes.id = presences.node_id
            AND nodes.lease_expires_at >= coalesce($1, now() AT TIME ZONE 'UTC')
    ) ON presences.room_id = rooms.id
    GROUP BY rooms.id, rooms.channel_name ORDER BY rooms.channel_name";

/// Empty rooms, without those that somebody enters at this moment.
const EMPTY_ROOMS: &str = "
    SELECT id FROM @rooms
    WHERE NOT EXISTS (SELECT FROM @presences WHERE presences.room_id = rooms.id)
    ORDER BY channel_name FOR UPDATE SKIP LOCKED";

const DELETE_EMPTY_ROOMS: &str = "
    DELETE FROM @rooms
    WHERE id = ANY ($1) AND NOT EXISTS (SELECT FROM @presences WHERE presences.room_id = rooms.id)";

#[derive(QueryableByName)]
struct RoomId {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

/// Removes rooms without presences.
///
/// The first statement locks the rooms, so that nobody enters them; the second one sees who entered since
/// the first one began. Deleting a room would delete its presences.
pub(super) fn prune(conn: &mut SchemaConnection<'_>) -> Result<usize, Failure> {
    let empty: Vec<RoomId> = statement(EMPTY_ROOMS).load(conn)?;
    if empty.is_empty() {
        return Ok(0);
    }
    let ids: Vec<i64> = empty.into_iter().map(|room| room.id).collect();
    Ok(statement(DELETE_EMPTY_ROOMS).bind::<Array<BigInt>>(ids).execute(conn)?)
}

/// Counts the presences of live nodes in each room.
pub(super) fn count(
    conn: &mut SchemaConnection<'_>,
    clock: Option<NaiveDateTime>,
) -> Result<Vec<RoomCounts>, Failure> {
    let counted: Vec<Counted> =
        statement(COUNT_ROOMS).bind::<Nullable<Timestamp>>(clock).load(conn)?;
    let counts = counted.into_iter().map(|room| {
        let Occupancy { connections, users, anonymous } = room.occupancy();
        RoomCounts { channel_name: room.channel_name, connections, users, anonymous }
    });
    Ok(counts.collect())
}
