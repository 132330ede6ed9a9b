//! What nodes ask the database that they share.

use std::sync::Arc;

use chrono::{DateTime, NaiveDateTime, Utc};
use diesel::{
    PgConnection, QueryableByName,
    pg::Pg,
    sql_types::{Array, BigInt, Nullable, Text, Timestamp},
};

use super::{
    Extent, PostgresStore, identity, nodes,
    rows::{Counted, Holder, Place, PresenceRow, StoredNode, held_columns, read_presences, valid},
    statement::{Statement, statement},
};
use crate::{
    messages::Kick,
    model::{ClusterIdentity, ConnectionId, Epoch, NodeName, RoomName, RoomSummary, UserId},
    store::{
        NodeRow, Pulse, Reaped, Result, RoomRows, Row, SharedStore, StoreError, StoreOpener,
        transaction::{Failure, to_count},
    },
};

/// The time now: that of the transaction is when it began, and it may have waited.
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

const READ: &str = held!("rooms.channel_name = ANY ($1)");

const FIND: &str = held!("rooms.channel_name = $1 AND presences.channel_name = ANY ($2)");

/// Presences by room and connection: a connection may be in many more rooms than are queried.
const HELD: &str = held!(
    "(SELECT DISTINCT room, connection FROM unnest($1, $2) AS pairs (room, connection)) AS given
    JOIN @rooms ON rooms.channel_name = given.room",
    "presences.channel_name = given.connection"
);

/// A page of rooms. Counted room by room, so that the cost is that of the page.
const LIST: &str = "
    SELECT rooms.channel_name, counts.connections, counts.users, counts.known
    FROM @rooms CROSS JOIN LATERAL (
        SELECT count(*) AS connections, count(DISTINCT user_id) AS users, count(user_id) AS known
        FROM @presences JOIN @nodes ON nodes.id = presences.node_id
        WHERE presences.room_id = rooms.id) AS counts
    WHERE rooms.channel_name > $1 AND counts.connections > 0
    ORDER BY rooms.channel_name LIMIT $2";

const WHERE_IS: &str = "
    SELECT rooms.channel_name, count(*) AS connections, 1::bigint AS users, count(*) AS known
    FROM @presences JOIN @rooms ON rooms.id = presences.room_id
    JOIN @nodes ON nodes.id = presences.node_id
    WHERE presences.user_id = $1 GROUP BY rooms.channel_name ORDER BY rooms.channel_name";

const PLACES: &str = "
    SELECT rooms.channel_name AS room, presences.channel_name AS connection
    FROM @presences JOIN @rooms ON rooms.id = presences.room_id WHERE presences.node_id = $1";

/// Connections of presences, each with the node that holds it, or the first of several.
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

const CONNECTION: &str =
    holders!("(presences.channel_name = $1 OR presences.current_connection = $1)");
const CONNECTIONS_OF_USER: &str = holders!("presences.user_id = $1");

/// As `holders!`, but the current connections behind the presences, without those that fade.
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

const RECEIVER: &str =
    receivers!("(presences.channel_name = $1 OR presences.current_connection = $1)");
const RECEIVERS_OF_USER: &str = receivers!("presences.user_id = $1");

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
            nodes: valid("nodes", nodes.into_iter().map(StoredNode::read)),
            rows: read_presences(held),
        })
    }

    fn nodes(&mut self, now: DateTime<Utc>) -> Result<Vec<NodeRow>> {
        let nodes: Vec<StoredNode> = self.load(all_nodes(self.clock(now)))?;
        Ok(valid("nodes", nodes.into_iter().map(StoredNode::read)))
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
            summaries.extend(valid("rooms", read));
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
        Ok(valid("rooms", read))
    }

    fn connections(&mut self, kick: &Kick) -> Result<Vec<(ConnectionId, NodeName)>> {
        let query = match kick {
            Kick::Connection(connection) => {
                statement(CONNECTION).bind::<Text>(connection.to_string())
            }
            Kick::User(user) => statement(CONNECTIONS_OF_USER).bind::<Text>(user.as_str()),
        };
        let holders: Vec<Holder> = self.load(query)?;
        Ok(valid("presences", holders.into_iter().map(Holder::read)))
    }

    fn receivers(&mut self, of: &Kick) -> Result<Vec<(ConnectionId, NodeName)>> {
        let query = match of {
            Kick::Connection(connection) => {
                statement(RECEIVER).bind::<Text>(connection.to_string())
            }
            Kick::User(user) => statement(RECEIVERS_OF_USER).bind::<Text>(user.as_str()),
        };
        let holders: Vec<Holder> = self.load(query)?;
        Ok(valid("presences", holders.into_iter().map(Holder::read)))
    }

    fn places(&mut self, node: &NodeName) -> Result<Vec<(RoomName, ConnectionId)>> {
        let places: Vec<Place> = self.transact(Extent::All, |conn| {
            Ok(statement(PLACES).bind::<Text>(node.as_str()).load(conn)?)
        })?;
        Ok(valid("presences", places.into_iter().map(Place::read)))
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
