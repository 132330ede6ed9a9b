//! Batches as statements: the rows of a chunk are one JSON parameter.

use std::{cell::RefCell, time::Duration};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use diesel::{
    QueryableByName, RunQueryDsl, SqliteConnection,
    deserialize::{self, FromSql, FromSqlRow},
    expression::AsExpression,
    serialize::{self, IsNull, Output, ToSql},
    sql_query,
    sql_types::{Text, Timestamp},
    sqlite::{Sqlite, SqliteValue},
};
use serde::{Serialize, Serializer};

use crate::{
    model::{ConnectionId, NodeName, PresenceRecord, RoomName},
    store::{
        Applied, Batch, BatchEntry, Row, Seen, SetAside, StoreError,
        transaction::{ByKind, Failure, write_chunks},
    },
};

/// The largest number of rows in a statement. More is not faster, and the JSON stays small.
const MAX_CHUNK_ROWS: usize = 2000;

/// Runs first: a row finds its room by name, so a room deleted by hand comes back.
const UPSERT_ROOMS: &str = "
    INSERT INTO rooms (channel_name, created_at)
    SELECT DISTINCT row.value ->> 0, ?2 FROM json_each(?1) AS row
    WHERE true ON CONFLICT (channel_name) DO NOTHING";

/// `CROSS JOIN` fixes the join order in SQLite.
const UPSERT_ROWS: &str = "
    INSERT INTO presences
        (room_id, channel_name, user_id, info, joined_at, last_seen, node_id)
    SELECT rooms.id, row.value ->> 1, row.value ->> 2, row.value ->> 3, row.value ->> 4,
        row.value ->> 5, ?2
    FROM json_each(?1) AS row CROSS JOIN rooms ON rooms.channel_name = row.value ->> 0
    WHERE true ON CONFLICT (room_id, channel_name) DO UPDATE SET
        user_id = excluded.user_id, info = excluded.info, joined_at = excluded.joined_at,
        last_seen = excluded.last_seen, node_id = excluded.node_id";

const DELETE_ROWS: &str = "
    DELETE FROM presences WHERE id IN (
        SELECT presences.id FROM json_each(?1) AS row
        CROSS JOIN rooms ON rooms.channel_name = row.value ->> 0
        CROSS JOIN presences
            ON presences.room_id = rooms.id AND presences.channel_name = row.value ->> 1)";

/// Finds the rows first: joined to the table directly, SQLite may scan the JSON for each of them.
const TOUCH_ROWS: &str = "
    WITH found AS MATERIALIZED (
        SELECT presences.id, row.value ->> 1 AS at FROM json_each(?1) AS row
        CROSS JOIN presences ON presences.channel_name = row.value ->> 0
        WHERE +presences.node_id = ?2)
    UPDATE presences SET last_seen = found.at FROM found WHERE presences.id = found.id";

/// The connections that have fewer rows than they should.
const TOO_FEW_ROWS: &str = "
    SELECT row.value ->> 0 AS connection FROM json_each(?1) AS row
    WHERE row.value ->> 2 > (
        SELECT count(*) FROM presences
        WHERE presences.channel_name = row.value ->> 0 AND +presences.node_id = ?2)";

/// Writes a batch in the open transaction.
pub(super) fn apply(
    conn: &mut SqliteConnection,
    node: &NodeName,
    batch: &Batch,
    now: DateTime<Utc>,
) -> Result<Applied, Failure> {
    const MAX: usize = MAX_CHUNK_ROWS;
    let mut set_aside = Vec::new();
    write_chunks(conn, &mut ByKind, &batch.deletes, MAX, delete, |(room, connection), reason| {
        set_aside.push(SetAside { change: BatchEntry::Delete(room.clone(), *connection), reason });
    })?;
    let upsert = |conn: &mut _, rows: &[_]| upsert(conn, node, rows, now);
    write_chunks(conn, &mut ByKind, &batch.upserts, MAX, upsert, |row, reason| {
        let change = BatchEntry::Upsert(row.room.clone(), row.record.presence.connection);
        set_aside.push(SetAside { change, reason });
    })?;
    let missing = RefCell::default();
    let write = |conn: &mut _, rows: &[_]| seen(conn, node, rows, &missing);
    write_chunks(conn, &mut ByKind, &batch.seen, MAX, write, |seen, reason| {
        set_aside.push(SetAside { change: BatchEntry::Seen(seen.connection), reason });
    })?;
    Ok(Applied { set_aside, missing: missing.into_inner() })
}

fn upsert(
    conn: &mut SqliteConnection,
    node: &NodeName,
    rows: &[Row],
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    let json = json(rows.iter().map(|row| {
        let Row { room, record: PresenceRecord { presence, last_seen, .. } } = row;
        let (joined_at, last_seen) = (Stamp(presence.joined_at), Stamp(*last_seen));
        // A string in the JSON, so that the column has the text of the info unchanged.
        let info = presence.info.as_json();
        (room, presence.connection, &presence.user, info, joined_at, last_seen)
    }))?;
    sql_query(UPSERT_ROOMS)
        .bind::<Text, _>(&json)
        .bind::<Timestamp, _>(Stamp(now))
        .execute(conn)?;
    let written = sql_query(UPSERT_ROWS).bind::<Text, _>(&json).bind::<Text, _>(node.as_str());
    // A trigger can skip a row without an error.
    match written.execute(conn)? {
        written if written < rows.len() => Err(Failure::Row("the database skipped it".to_owned())),
        _ => Ok(()),
    }
}

fn delete(conn: &mut SqliteConnection, rows: &[(RoomName, ConnectionId)]) -> Result<(), Failure> {
    sql_query(DELETE_ROWS).bind::<Text, _>(json(rows)?).execute(conn)?;
    Ok(())
}

fn seen(
    conn: &mut SqliteConnection,
    node: &NodeName,
    rows: &[Seen],
    missing: &RefCell<Vec<ConnectionId>>,
) -> Result<(), Failure> {
    let text = json(rows.iter().map(|seen| (seen.connection, Stamp(seen.at), seen.rooms)))?;
    let touched = sql_query(TOUCH_ROWS).bind::<Text, _>(&text).bind::<Text, _>(node.as_str());
    if touched.execute(conn)? < rows.iter().map(|seen| seen.rooms).sum::<usize>() {
        let few = sql_query(TOO_FEW_ROWS).bind::<Text, _>(&text).bind::<Text, _>(node.as_str());
        let few: Vec<Connection> = few.load(conn)?;
        missing
            .borrow_mut()
            .extend(few.iter().filter_map(|few| few.connection.parse::<ConnectionId>().ok()));
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Connection {
    #[diesel(sql_type = Text)]
    connection: String,
}

fn json<T: Serialize>(rows: impl IntoIterator<Item = T>) -> Result<String, Failure> {
    let rows: Vec<T> = rows.into_iter().collect();
    serde_json::to_string(&rows).map_err(|error| StoreError::unavailable(error).into())
}

/// A time as it is stored: text in UTC, `YYYY-MM-DD HH:MM:SS`, with six digits of microseconds unless
/// they are 0.
///
/// The text sorts as the time does, so that SQL can compare and index it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, AsExpression, FromSqlRow)]
#[diesel(sql_type = Timestamp)]
pub(super) struct Stamp(pub DateTime<Utc>);

impl Stamp {
    /// The last time that sorts as text: later years have five digits.
    fn last() -> DateTime<Utc> {
        DateTime::from_timestamp(253_402_300_799, 0).unwrap_or_default()
    }

    /// The time `duration` later, or the last one.
    pub(super) fn after(time: DateTime<Utc>, duration: Duration) -> Self {
        let duration = TimeDelta::from_std(duration).ok();
        let later = duration.and_then(|duration| time.checked_add_signed(duration));
        Self(later.map_or_else(Self::last, |later| later.min(Self::last())))
    }

    fn text(self) -> String {
        let format = match self.0.timestamp_subsec_micros() {
            0 => "%F %T",
            _ => "%F %T%.6f",
        };
        self.0.format(format).to_string()
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl ToSql<Timestamp, Sqlite> for Stamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.text());
        Ok(IsNull::No)
    }
}

impl FromSql<Timestamp, Sqlite> for Stamp {
    fn from_sql(value: SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        let time = <NaiveDateTime as FromSql<Timestamp, Sqlite>>::from_sql(value)?;
        Ok(Self(time.and_utc()))
    }
}

#[cfg(test)]
mod tests {
    use diesel::Connection as _;
    use diesel_migrations::MigrationHarness;

    use super::*;
    use crate::store::sqlite::migrate::SQLITE_MIGRATIONS;

    #[test]
    fn no_statement_scans_the_table_or_the_batch_for_each_row() {
        #[derive(QueryableByName)]
        struct Step {
            #[diesel(sql_type = Text)]
            detail: String,
        }
        let mut conn = SqliteConnection::establish(":memory:").unwrap();
        conn.run_pending_migrations(SQLITE_MIGRATIONS).unwrap();
        for statement in [UPSERT_ROOMS, UPSERT_ROWS, DELETE_ROWS, TOUCH_ROWS, TOO_FEW_ROWS] {
            let plan = sql_query(format!("EXPLAIN QUERY PLAN {statement}"));
            let steps: Vec<Step> = plan.load(&mut conn).unwrap();
            let steps: Vec<_> = steps.into_iter().map(|step| step.detail).collect();
            for step in &steps {
                let lists = ["SCAN row ", "SCAN found"];
                let list = lists.iter().any(|list| step.starts_with(list));
                assert!(list || !step.starts_with("SCAN"), "{steps:#?}");
                // That would compare each row of the node with the whole batch.
                assert!(!step.contains("presences_node_id"), "{steps:#?}");
            }
        }
    }

    #[test]
    fn a_time_is_text_that_sorts_as_the_time_does() {
        let text = |micros| Stamp(DateTime::from_timestamp_micros(micros).unwrap()).text();
        assert_eq!(text(0), "1970-01-01 00:00:00");
        assert_eq!(text(1_500_000), "1970-01-01 00:00:01.500000");
        let times = [0, 1, 500_000, 999_999, 1_000_000, 1_000_001, 60_000_000];
        assert!(times.map(text).is_sorted());
    }

    #[test]
    fn a_time_that_is_too_late_is_the_last_one() {
        let text = |duration| Stamp::after(DateTime::UNIX_EPOCH, duration).text();
        assert_eq!(text(Duration::from_secs(15)), "1970-01-01 00:00:15");
        assert_eq!(text(Duration::from_secs(300_000_000_000)), "9999-12-31 23:59:59");
        assert_eq!(text(Duration::MAX), "9999-12-31 23:59:59");
    }
}
