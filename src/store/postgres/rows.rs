//! Rows as values. Anybody may have written them, so invalid ones are skipped: reading one fails with the column
//! whose value is invalid.

use chrono::NaiveDateTime;
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamp},
};

use crate::{
    log_limit::LogLimit,
    model::{
        ConnectionId, Epoch, NodeName, Occupancy, Presence, PresenceRecord, RoomName, SessionKey,
        StoredInfo, UserId,
    },
    store::{NodeRow, Row, transaction::to_count},
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

/// A presence with its room and the node that holds it.
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
    pub fn read(self) -> Result<(NodeName, Row), &'static str> {
        let connection = self.connection.parse::<ConnectionId>().map_err(|_| "channel_name")?;
        let user = self.user_id.map(UserId::new).transpose().map_err(|_| "user_id")?;
        let StoredInfo(info) = serde_json::from_str(&self.info).map_err(|_| "info")?;
        let fixed = serde_json::from_str(&self.fixed_info);
        let StoredInfo(fixed) = fixed.map_err(|_| "fixed_info")?;
        let joined_at = self.joined_at.and_utc();
        let updated_at = self.updated_at.map_or(joined_at, |at| at.and_utc());
        let session = self.session_key.map(SessionKey::new).transpose();
        let current = self.current_connection.map(|current| current.parse()).transpose();
        let record = PresenceRecord {
            presence: Presence { connection, user, info, joined_at, updated_at },
            last_seen: self.last_seen.and_utc(),
            session: session.map_err(|_| "session_key")?,
            fixed,
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
pub(super) struct StoredNode {
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
    pub fn read(self) -> Result<NodeRow, &'static str> {
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
pub(super) struct Counted {
    #[diesel(sql_type = Text)]
    pub channel_name: String,
    #[diesel(sql_type = BigInt)]
    pub connections: i64,
    #[diesel(sql_type = BigInt)]
    users: i64,
    /// How many of the connections have a user.
    #[diesel(sql_type = BigInt)]
    known: i64,
}

impl Counted {
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            connections: to_count(self.connections),
            users: to_count(self.users),
            anonymous: to_count(self.connections - self.known),
        }
    }

    pub fn room(&self) -> Result<RoomName, &'static str> {
        RoomName::new(&self.channel_name).map_err(|_| "channel_name")
    }
}

/// A connection and the node that holds it.
#[derive(QueryableByName)]
pub(super) struct Holder {
    #[diesel(sql_type = Text)]
    connection: String,
    #[diesel(sql_type = Text)]
    node_id: String,
}

impl Holder {
    pub fn read(self) -> Result<(ConnectionId, NodeName), &'static str> {
        let connection = self.connection.parse().map_err(|_| "channel_name")?;
        Ok((connection, NodeName::new(self.node_id).map_err(|_| "node_id")?))
    }
}

/// Where a presence is: its room and its id there.
#[derive(QueryableByName)]
pub(super) struct Place {
    #[diesel(sql_type = Text)]
    room: String,
    #[diesel(sql_type = Text)]
    connection: String,
}

impl Place {
    pub fn read(self) -> Result<(RoomName, ConnectionId), &'static str> {
        let connection = self.connection.parse().map_err(|_| "channel_name")?;
        Ok((RoomName::new(self.room).map_err(|_| "the room's channel_name")?, connection))
    }
}

/// The valid presences, each with the node that holds it.
pub(super) fn read_presences(rows: Vec<PresenceRow>) -> Vec<(NodeName, Row)> {
    valid("presences", rows.into_iter().map(PresenceRow::read))
}

/// The valid rows of a table; the others are logged together.
pub(super) fn valid<T>(
    table: &'static str,
    read: impl Iterator<Item = Result<T, &'static str>>,
) -> Vec<T> {
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
