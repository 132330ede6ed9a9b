//! Queries, what their rows mean, and the removal of empty rooms.

use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime, Utc};
use diesel::{
    PgConnection, QueryableByName,
    pg::Pg,
    sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamp},
};

use super::{
    Extent, PostgresStore, identity, nodes,
    statement::{SchemaConnection, Statement, statement},
};
use crate::{
    log_limit::LogLimit,
    messages::Kick,
    model::{
        ClusterIdentity, ConnectionId, Epoch, NodeName, Occupancy, Presence, PresenceRecord,
        RoomName, RoomSummary, SessionKey, UserId,
    },
    store::{
        NodeRow, Pulse, Reaped, Result, RoomCounts, RoomRows, Row, SharedStore, StoreError,
        StoreOpener,
        transaction::{Failure, to_count},
    },
};

/// The columns of [`PresenceRow`].
macro_rules! held_columns {
    () => {
        "rooms.channel_name AS room, presences.channel_name AS connection, presences.user_id,
         presences.info, presences.joined_at, presences.last_seen, presences.node_id,
         presences.session_key, presences.fixed_info, presences.fading_until, presences.turn,
         presences.current_connection, presences.updated_at"
    };
}
pub(super) use held_columns;

/// Not that of the transaction, which may have waited.
const TIME: &str = "SELECT clock_timestamp() AT TIME ZONE 'UTC' AS time";

const NODES: &str = "
    SELECT id, incarnation, head, leaving,
        lease_expires_at < coalesce($1, now() AT TIME ZONE 'UTC') AS expired
    FROM @nodes ORDER BY id";

/// Presences with their rooms, of nodes that have a row: others do not count.
macro_rules! held {
    ($condition:literal) => {
        held!("@rooms", $condition)
    };
    ($rooms:literal, $condition:literal) => {
        concat!(
            "SELECT ",
            held_columns!(),
            " FROM ",
            $rooms,
            " JOIN @presences ON presences.room_id = rooms.id
            JOIN @nodes ON nodes.id = presences.node_id WHERE ",
            $condition
        )
    };
}

pub(super) const READ: &str = held!("rooms.channel_name = ANY ($1)");

pub(super) const FIND: &str =
    held!("rooms.channel_name = $1 AND presences.channel_name = ANY ($2)");

/// By room as well: a connection may be in many more rooms than are queried.
pub(super) const HELD: &str = held!(
    "(SELECT DISTINCT room, connection FROM unnest($1, $2) AS pairs (room, connection)) AS given
    JOIN @rooms ON rooms.channel_name = given.room",
    "presences.channel_name = given.connection"
);

/// Room by room, so that the cost is that of the page.
pub(super) const LIST: &str = "
    SELECT rooms.channel_name, counts.connections, counts.users, counts.known
    FROM @rooms CROSS JOIN LATERAL (
        SELECT count(*) AS connections, count(DISTINCT user_id) AS users, count(user_id) AS known
        FROM @presences JOIN @nodes ON nodes.id = presences.node_id
        WHERE presences.room_id = rooms.id) AS counts
    WHERE rooms.channel_name > $1 AND counts.connections > 0
    ORDER BY rooms.channel_name LIMIT $2";

pub(super) const WHERE_IS: &str = "
    SELECT rooms.channel_name, count(*) AS connections, 1::bigint AS users, count(*) AS known
    FROM @presences JOIN @rooms ON rooms.id = presences.room_id
    JOIN @nodes ON nodes.id = presences.node_id
    WHERE presences.user_id = $1 GROUP BY rooms.channel_name ORDER BY rooms.channel_name";

pub(super) const PLACES: &str = "
    SELECT rooms.channel_name AS room, presences.channel_name AS connection
    FROM @presences JOIN @rooms ON rooms.id = presences.room_id WHERE presences.node_id = $1";

macro_rules! holders {
    ($condition:literal) => {
        concat!(
            "SELECT presences.channel_name AS connection, min(presences.node_id) AS node_id
            FROM @presences JOIN @nodes ON nodes.id = presences.node_id WHERE ",
            $condition,
            " GROUP BY presences.channel_name ORDER BY presences.channel_name"
        )
    };
}

pub(super) const CONNECTION: &str =
    holders!("(presences.channel_name = $1 OR presences.current_connection = $1)");
pub(super) const CONNECTIONS_OF_USER: &str = holders!("presences.user_id = $1");

macro_rules! receivers {
    ($condition:literal) => {
        concat!(
            "SELECT coalesce(presences.current_connection, presences.channel_name) AS connection,
                min(presences.node_id) AS node_id
            FROM @presences JOIN @nodes ON nodes.id = presences.node_id
            WHERE presences.fading_until IS NULL AND ",
            $condition,
            " GROUP BY 1 ORDER BY 1"
        )
    };
}

pub(super) const RECEIVER: &str =
    receivers!("(presences.channel_name = $1 OR presences.current_connection = $1)");
pub(super) const RECEIVERS_OF_USER: &str = receivers!("presences.user_id = $1");

const COUNT_ROOMS: &str = "
    SELECT rooms.channel_name, count(presences.id) AS connections,
        count(DISTINCT presences.user_id) AS users, count(presences.user_id) AS known
    FROM @rooms LEFT JOIN (
        @presences JOIN @nodes ON nodes.id = presences.node_id
            AND nodes.lease_expires_at >= coalesce($1, now() AT TIME ZONE 'UTC')
    ) ON presences.room_id = rooms.id
    GROUP BY rooms.id, rooms.channel_name ORDER BY rooms.channel_name";

/// Rooms that somebody enters at this moment are skipped.
const EMPTY_ROOMS: &str = "
    SELECT id FROM @rooms
    WHERE NOT EXISTS (SELECT FROM @presences WHERE presences.room_id = rooms.id)
    ORDER BY channel_name FOR UPDATE SKIP LOCKED";

pub(super) const DELETE_EMPTY_ROOMS: &str = "
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
pub(super) fn prune_rooms(conn: &mut SchemaConnection<'_>) -> Result<usize, Failure> {
    let empty: Vec<RoomId> = statement(EMPTY_ROOMS).load(conn)?;
    if empty.is_empty() {
        return Ok(0);
    }
    let ids: Vec<i64> = empty.into_iter().map(|room| room.id).collect();
    Ok(statement(DELETE_EMPTY_ROOMS).bind::<Array<BigInt>>(ids).execute(conn)?)
}

pub(super) fn rooms(
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

impl PostgresStore {
    /// Runs one query.
    fn load<T>(&mut self, query: Statement<'_>) -> Result<Vec<T>>
    where
        T: QueryableByName<Pg> + 'static,
    {
        let found = self.call(|conn, _| Ok(query.load(conn)?));
        found.map_err(Failure::into_error::<PgConnection>)
    }
}

impl SharedStore for PostgresStore {
    fn time(&mut self, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
        if let Some(given) = self.clock(now) {
            return Ok(given.and_utc());
        }
        let time: Vec<Time> = self.load(statement(TIME))?;
        let time =
            time.first().ok_or_else(|| StoreError::unavailable("it did not say the time"))?;
        Ok(time.time.and_utc())
    }

    fn identity(&mut self) -> Result<ClusterIdentity> {
        self.transact(Extent::Given, identity::identity)
    }

    fn read(&mut self, rooms: &[RoomName], now: DateTime<Utc>) -> Result<RoomRows> {
        let rooms: Vec<&str> = rooms.iter().map(RoomName::as_str).collect();
        let clock = self.clock(now);
        let found = self.call(|conn, _| {
            conn.read_snapshot(|conn| {
                let nodes: Vec<StoredNode> = all_nodes(clock).load(conn)?;
                let held: Vec<PresenceRow> = match rooms.is_empty() {
                    true => Vec::new(),
                    false => statement(READ).bind::<Array<Text>>(&rooms).load(conn)?,
                };
                Ok((nodes, held))
            })
        });
        let (nodes, held) = found.map_err(Failure::into_error::<PgConnection>)?;
        Ok(RoomRows {
            nodes: all("nodes", nodes.into_iter().map(StoredNode::read)),
            rows: read_presences(held),
        })
    }

    fn nodes(&mut self, now: DateTime<Utc>) -> Result<Vec<NodeRow>> {
        let nodes: Vec<StoredNode> = self.load(all_nodes(self.clock(now)))?;
        Ok(all("nodes", nodes.into_iter().map(StoredNode::read)))
    }

    fn reap(&mut self, node: &NodeName, incarnation: Epoch, now: DateTime<Utc>) -> Result<Reaped> {
        let clock = self.clock(now);
        self.transact_once(|conn| nodes::reap(conn, node, incarnation, clock))
    }

    fn find(
        &mut self,
        room: &RoomName,
        connections: &[ConnectionId],
    ) -> Result<Vec<(NodeName, Row)>> {
        let ids: Vec<String> = connections.iter().map(ConnectionId::to_string).collect();
        let query = statement(FIND).bind::<Text>(room.as_str()).bind::<Array<Text>>(ids);
        Ok(read_presences(self.load(query)?))
    }

    fn held(&mut self, presences: &[(RoomName, ConnectionId)]) -> Result<Vec<(NodeName, Row)>> {
        let rooms: Vec<&str> = presences.iter().map(|(room, _)| room.as_str()).collect();
        let ids: Vec<String> = presences.iter().map(|(_, one)| one.to_string()).collect();
        let query = statement(HELD).bind::<Array<Text>>(rooms).bind::<Array<Text>>(ids);
        Ok(read_presences(self.load(query)?))
    }

    fn list(&mut self, after: Option<&RoomName>, limit: usize) -> Result<Vec<RoomSummary>> {
        let mut after = after.map_or(String::new(), RoomName::to_string);
        let mut summaries = Vec::new();
        // Invalid names are skipped, and must not shorten the page.
        while summaries.len() < limit {
            let missing = limit - summaries.len();
            let query = statement(LIST)
                .bind::<Text>(after)
                .bind::<BigInt>(i64::try_from(missing).unwrap_or(i64::MAX));
            let page: Vec<Counted> = self.load(query)?;
            let Some(last) = page.last() else { break };
            let is_last = page.len() < missing;
            after = last.channel_name.clone();
            let read = page.iter().map(|counted| {
                let (room, occupancy) = (counted.room()?, counted.occupancy());
                Ok(RoomSummary { room, occupancy, version: 0 })
            });
            summaries.extend(all("rooms", read));
            if is_last {
                break;
            }
        }
        Ok(summaries)
    }

    fn where_is(&mut self, user: &UserId) -> Result<Vec<(RoomName, usize)>> {
        let counted: Vec<Counted> = self.load(statement(WHERE_IS).bind::<Text>(user.as_str()))?;
        let read =
            counted.iter().map(|counted| Ok((counted.room()?, to_count(counted.connections))));
        Ok(all("rooms", read))
    }

    fn connections(&mut self, kick: &Kick) -> Result<Vec<(ConnectionId, NodeName)>> {
        let query = match kick {
            Kick::Connection(connection) => {
                statement(CONNECTION).bind::<Text>(connection.to_string())
            }
            Kick::User(user) => statement(CONNECTIONS_OF_USER).bind::<Text>(user.as_str()),
        };
        let holders: Vec<Holder> = self.load(query)?;
        Ok(all("presences", holders.into_iter().map(Holder::read)))
    }

    fn receivers(&mut self, of: &Kick) -> Result<Vec<(ConnectionId, NodeName)>> {
        let query = match of {
            Kick::Connection(connection) => {
                statement(RECEIVER).bind::<Text>(connection.to_string())
            }
            Kick::User(user) => statement(RECEIVERS_OF_USER).bind::<Text>(user.as_str()),
        };
        let holders: Vec<Holder> = self.load(query)?;
        Ok(all("presences", holders.into_iter().map(Holder::read)))
    }

    fn places(&mut self, node: &NodeName) -> Result<Vec<(RoomName, ConnectionId)>> {
        let places: Vec<Place> = self.transact(Extent::All, |conn| {
            Ok(statement(PLACES).bind::<Text>(node.as_str()).load(conn)?)
        })?;
        Ok(all("presences", places.into_iter().map(Place::read)))
    }

    fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    fn opener(&self) -> Option<StoreOpener> {
        let (url, options) = (self.url.clone(), self.options.clone());
        let lease = self.lease.successor();
        let open = move || Self::unconnected(url.clone(), options.clone(), lease.successor());
        Some(Arc::new(move || Box::new(open())))
    }
}

fn all_nodes<'a>(clock: Option<NaiveDateTime>) -> Statement<'a> {
    statement(NODES).bind::<Nullable<Timestamp>>(clock)
}

#[derive(QueryableByName)]
struct Time {
    #[diesel(sql_type = Timestamp)]
    time: NaiveDateTime,
}

// --- rows as values: anybody may have written them, so invalid ones are skipped -----------------

/// A presence with its room.
#[derive(QueryableByName)]
pub(super) struct PresenceRow {
    #[diesel(sql_type = Text)]
    room: String,
    #[diesel(sql_type = Text)]
    connection: String,
    #[diesel(sql_type = Nullable<Text>)]
    user_id: Option<String>,
    #[diesel(sql_type = Text)]
    info: String,
    #[diesel(sql_type = Timestamp)]
    joined_at: NaiveDateTime,
    #[diesel(sql_type = Timestamp)]
    last_seen: NaiveDateTime,
    #[diesel(sql_type = Text)]
    node_id: String,
    #[diesel(sql_type = Nullable<Text>)]
    session_key: Option<String>,
    #[diesel(sql_type = Text)]
    fixed_info: String,
    #[diesel(sql_type = Nullable<Timestamp>)]
    fading_until: Option<NaiveDateTime>,
    #[diesel(sql_type = Integer)]
    turn: i32,
    #[diesel(sql_type = Nullable<Text>)]
    current_connection: Option<String>,
    #[diesel(sql_type = Nullable<Timestamp>)]
    updated_at: Option<NaiveDateTime>,
}

impl PresenceRow {
    fn read(self) -> Result<(NodeName, Row), &'static str> {
        let connection = self.connection.parse::<ConnectionId>().map_err(|_| "channel_name")?;
        let user = self.user_id.map(UserId::new).transpose().map_err(|_| "user_id")?;
        let info = serde_json::from_str(&self.info).map_err(|_| "info")?;
        let joined_at = self.joined_at.and_utc();
        let updated_at = self.updated_at.map_or(joined_at, |at| at.and_utc());
        let session = self.session_key.map(SessionKey::new).transpose();
        let current = self.current_connection.map(|current| current.parse()).transpose();
        let record = PresenceRecord {
            presence: Presence { connection, user, info, joined_at, updated_at },
            last_seen: self.last_seen.and_utc(),
            session: session.map_err(|_| "session_key")?,
            fixed: serde_json::from_str(&self.fixed_info).map_err(|_| "fixed_info")?,
            fading: self.fading_until.map(|until| until.and_utc()),
            generation: self.turn.try_into().map_err(|_| "turn")?,
            current_connection: current.map_err(|_| "current_connection")?,
        };
        let room = RoomName::new(self.room).map_err(|_| "the room's channel_name")?;
        let row = Row { room, record };
        Ok((NodeName::new(self.node_id).map_err(|_| "node_id")?, row))
    }
}

/// A row of `nodes`, and whether its lease has expired.
#[derive(QueryableByName)]
struct StoredNode {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Text)]
    incarnation: String,
    #[diesel(sql_type = BigInt)]
    head: i64,
    #[diesel(sql_type = Bool)]
    expired: bool,
    #[diesel(sql_type = Bool)]
    leaving: bool,
}

impl StoredNode {
    fn read(self) -> Result<NodeRow, &'static str> {
        Ok(NodeRow {
            node: NodeName::new(self.id).map_err(|_| "id")?,
            incarnation: self.incarnation.parse::<Epoch>().map_err(|_| "incarnation")?,
            head: self.head.try_into().map_err(|_| "head")?,
            expired: self.expired,
            leaving: self.leaving,
        })
    }
}

/// A room with its number of connections, of all users or of one.
#[derive(QueryableByName)]
struct Counted {
    #[diesel(sql_type = Text)]
    channel_name: String,
    #[diesel(sql_type = BigInt)]
    connections: i64,
    #[diesel(sql_type = BigInt)]
    users: i64,
    #[diesel(sql_type = BigInt)]
    known: i64,
}

impl Counted {
    fn occupancy(&self) -> Occupancy {
        Occupancy {
            connections: to_count(self.connections),
            users: to_count(self.users),
            anonymous: to_count(self.connections - self.known),
        }
    }

    fn room(&self) -> Result<RoomName, &'static str> {
        RoomName::new(&self.channel_name).map_err(|_| "channel_name")
    }
}

/// A connection and the node that holds it.
#[derive(QueryableByName)]
struct Holder {
    #[diesel(sql_type = Text)]
    connection: String,
    #[diesel(sql_type = Text)]
    node_id: String,
}

impl Holder {
    fn read(self) -> Result<(ConnectionId, NodeName), &'static str> {
        let connection = self.connection.parse().map_err(|_| "channel_name")?;
        Ok((connection, NodeName::new(self.node_id).map_err(|_| "node_id")?))
    }
}

/// The place of a presence.
#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = Text)]
    room: String,
    #[diesel(sql_type = Text)]
    connection: String,
}

impl Place {
    fn read(self) -> Result<(RoomName, ConnectionId), &'static str> {
        let connection = self.connection.parse().map_err(|_| "channel_name")?;
        Ok((RoomName::new(self.room).map_err(|_| "the room's channel_name")?, connection))
    }
}

pub(super) fn read_presences(rows: Vec<PresenceRow>) -> Vec<(NodeName, Row)> {
    all("presences", rows.into_iter().map(PresenceRow::read))
}

/// The valid rows; the others are logged together.
fn all<T>(table: &'static str, read: impl Iterator<Item = Result<T, &'static str>>) -> Vec<T> {
    let (mut skipped, mut column) = (0, "");
    let read = read.filter_map(|read| {
        read.inspect_err(|bad| {
            skipped += 1;
            column = bad;
        })
        .ok()
    });
    let values = read.collect();
    static SKIPPED: LogLimit = LogLimit::new();
    if skipped > 0
        && let Some(suppressed) = SKIPPED.pass()
    {
        tracing::warn!(table, column, skipped, suppressed, "skipped invalid rows of `{table}`");
    }
    values
}
