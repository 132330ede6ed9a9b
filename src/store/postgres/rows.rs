//! Rows of the tables as values. Anybody may have written them, so invalid ones are skipped.

use chrono::NaiveDateTime;
use diesel::{
    QueryableByName,
    sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamp},
};

use crate::{
    log_limit::LogLimit,
    model::{
        ConnectionId, Epoch, NodeName, Presence, PresenceRecord, RoomName, SessionKey, UserId,
    },
    store::values::{NodeRow, Row},
};

/// The columns of [`Held`].
macro_rules! held_columns {
    () => {
        "rooms.channel_name AS room, presences.channel_name AS connection, presences.user_id,
         presences.info, presences.joined_at, presences.last_seen, presences.node_id,
         presences.session_key, presences.fixed_info, presences.fading_until, presences.turn,
         presences.current_connection"
    };
}
pub(super) use held_columns;

/// A presence with its room.
#[derive(QueryableByName)]
pub(super) struct Held {
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
}

impl Held {
    fn read(self) -> Result<(NodeName, Row), &'static str> {
        let connection = self.connection.parse::<ConnectionId>().map_err(|_| "channel_name")?;
        let user = self.user_id.map(UserId::new).transpose().map_err(|_| "user_id")?;
        let info = serde_json::from_str(&self.info).map_err(|_| "info")?;
        let joined_at = self.joined_at.and_utc();
        let session = self.session_key.map(SessionKey::new).transpose();
        let current = self.current_connection.map(|current| current.parse()).transpose();
        let record = PresenceRecord {
            presence: Presence { connection, user, info, joined_at },
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
pub(super) struct Node {
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

impl Node {
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
pub(super) struct Counted {
    #[diesel(sql_type = Text)]
    pub channel_name: String,
    #[diesel(sql_type = BigInt)]
    pub connections: i64,
    #[diesel(sql_type = BigInt)]
    pub users: i64,
    #[diesel(sql_type = BigInt)]
    pub known: i64,
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
    pub(super) fn read(self) -> Result<(ConnectionId, NodeName), &'static str> {
        let connection = self.connection.parse().map_err(|_| "channel_name")?;
        Ok((connection, NodeName::new(self.node_id).map_err(|_| "node_id")?))
    }
}

pub(super) fn presences(held: Vec<Held>) -> Vec<(NodeName, Row)> {
    all("presences", held.into_iter().map(Held::read))
}

pub(super) fn nodes(nodes: Vec<Node>) -> Vec<NodeRow> {
    all("nodes", nodes.into_iter().map(Node::read))
}

/// The valid rows; the others are logged together.
pub(super) fn all<T>(
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

/// A count in SQL, which is never negative.
pub(super) fn number(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}
