//! Presences, users and rooms as they are reported, and the time as an argument: the model never reads a clock.

use std::{fmt, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    ConnectionId, Info, NodeName, RoomName, UserId,
    encoding::{PresenceFields, time},
};

/// A presence: one connection in one room.
///
/// As JSON it is an entry of the HTTP API's list of connections, where `updated_at` is left out if it is
/// `joined_at`:
///
/// ```
/// # use actix_presence::Presence;
/// let json = r#"{"channel_name":"01a225dbfb3b775db7d71f93ac2469df","user":"ada","info":{},"joined_at":"2026-11-29T05:51:43.419123Z"}"#;
/// let presence: Presence = serde_json::from_str(json)?;
/// assert_eq!(serde_json::to_string(&presence)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PresenceFields", into = "PresenceFields")]
pub struct Presence {
    /// The connection that created it.
    pub connection: ConnectionId,
    /// The user; `None` is anonymous.
    pub user: Option<UserId>,
    /// What the app attached to it.
    pub info: Info,
    /// When the connection joined the room.
    pub joined_at: DateTime<Utc>,
    /// When it joined, or its info or user was set last: of a user's presences in a room the info of the one with
    /// the latest time stands for the user, and of two with the same time that of the higher connection id.
    pub updated_at: DateTime<Utc>,
}

impl Presence {
    /// Whether only the times of the last update differ, if anything does.
    pub(crate) fn shows_the_same(&self, other: &Self) -> bool {
        let Self { connection, user, info, joined_at, updated_at: _ } = self;
        (connection, user, info, joined_at)
            == (&other.connection, &other.user, &other.info, &other.joined_at)
    }
}

/// Who sent a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// The user; `None` is anonymous.
    #[serde(rename = "id")]
    pub user: Option<UserId>,
    /// The id of its presence, under which snapshots and other clients know the connection.
    pub connection: ConnectionId,
}

/// A user in a room: all presences of one [`UserId`] there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The user.
    pub id: UserId,
    /// The info of the connection that joined or updated its info last: see [`Presence::updated_at`].
    pub info: Info,
    /// The number of the user's connections in the room, at least 1.
    pub connections: usize,
}

/// The number of connections and users in a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// All connections, with or without a user.
    pub connections: usize,
    /// Distinct users.
    pub users: usize,
    /// Connections without a user.
    pub anonymous: usize,
}

/// Why a presence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// The client left, or closed its connection in order.
    Left,
    /// The connection ended without a close frame.
    Disconnected,
    /// The connection was silent for longer than `max_age`, and was pruned.
    Expired,
    /// Another connection took its place.
    Replaced,
    /// It was removed by [`Kick`](crate::Kick).
    Kicked,
    /// The connection did not take what was sent to it in time.
    SlowConsumer,
    /// Its room was closed.
    RoomClosed,
    /// The node that owned it has died.
    NodeLost,
    /// The server has stopped.
    Shutdown,
}

impl Cause {
    /// All causes.
    pub const ALL: &[Self] = &[
        Self::Left,
        Self::Disconnected,
        Self::Expired,
        Self::Replaced,
        Self::Kicked,
        Self::SlowConsumer,
        Self::RoomClosed,
        Self::NodeLost,
        Self::Shutdown,
    ];

    /// The cause as it is written on the wire and in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Disconnected => "disconnected",
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Kicked => "kicked",
            Self::SlowConsumer => "slow_consumer",
            Self::RoomClosed => "room_closed",
            Self::NodeLost => "node_lost",
            Self::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kind of a connection's last activity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activity {
    /// It joined a room.
    Join,
    /// It sent a heartbeat.
    Heartbeat,
    /// It sent a message to a room.
    Message,
    /// It sent any other frame, such as a ping or a pong.
    #[default]
    Frame,
    /// The connection ended.
    Disconnect,
    /// Activity on the node that owns it; other nodes know the time, not the kind.
    Elsewhere,
}

impl Activity {
    /// All kinds.
    pub const ALL: &[Self] = &[
        Self::Join,
        Self::Heartbeat,
        Self::Message,
        Self::Frame,
        Self::Disconnect,
        Self::Elsewhere,
    ];
}

/// Whether the client of a presence is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PresenceState {
    /// It is connected.
    Live,
    /// Its connection has ended, and its client may come back.
    Fading {
        /// Until when.
        #[serde(with = "time")]
        until: DateTime<Utc>,
    },
}

impl PresenceState {
    /// The state as it is written in the API: `live` or `fading`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Fading { .. } => "fading",
        }
    }
}

/// A room in a list of rooms; as JSON an entry of the HTTP API's list, where the room is `channel_name` and the
/// occupancy's fields are its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomSummary {
    /// The name of the room.
    #[serde(rename = "channel_name")]
    pub room: RoomName,
    /// The number of its connections and users.
    #[serde(flatten)]
    pub occupancy: Occupancy,
    /// Its version.
    pub version: u64,
}

/// A presence in a list, with the last activity of its connection; as JSON the fields of the [`Presence`] are its
/// own, and `state` is `live`, or `fading` with `until`.
///
/// It has more fields than an entry of the HTTP API's list of connections (`activity`, `joined_version`, `until`), and
/// so cannot be read from one; a [`Presence`] can.
///
/// ```
/// # use actix_presence::{Presence, SeenPresence};
/// let entry = r#"{"channel_name":"01a225dbfb3b775db7d71f93ac2469df","user":"ada","info":{},"joined_at":"2026-11-29T05:51:43.419123Z","last_seen":"2026-11-29T05:51:43.419123Z","node":"a","state":"live"}"#;
/// assert!(serde_json::from_str::<Presence>(entry).is_ok());
/// assert!(serde_json::from_str::<SeenPresence>(entry).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenPresence {
    /// The presence.
    #[serde(flatten)]
    pub presence: Presence,
    /// The time of the last activity.
    #[serde(with = "time")]
    pub last_seen: DateTime<Utc>,
    /// The kind of the last activity.
    pub activity: Activity,
    /// The version of the room with which it joined.
    pub joined_version: u64,
    /// Whether its client is connected.
    #[serde(flatten)]
    pub state: PresenceState,
    /// The node that owns it, if that is another one.
    pub node: Option<NodeName>,
}

/// A point in time, read once per message: monotonic time for ages, wall time for people and rows.
///
/// Both in microseconds; 16 bytes. Ages stay right when the wall clock is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds of a clock that never steps back, since an arbitrary start.
    pub monotonic: u64,
    /// The wall clock: microseconds since 1970 in UTC.
    pub wall: i64,
}

impl Moment {
    /// Combines a monotonic time since an arbitrary start and a wall time.
    #[must_use]
    pub fn new(monotonic: Duration, wall: DateTime<Utc>) -> Self {
        Self { monotonic: micros(monotonic), wall: wall.timestamp_micros() }
    }

    /// The monotonic time since the clock's start.
    #[must_use]
    pub fn monotonic(self) -> Duration {
        Duration::from_micros(self.monotonic)
    }

    /// The wall time as a date.
    #[must_use]
    pub fn utc(self) -> DateTime<Utc> {
        utc(self.wall)
    }

    /// The time since `earlier`; zero if that is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.monotonic.saturating_sub(earlier.monotonic))
    }

    /// The later of both by the monotonic clock.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.monotonic > self.monotonic { other } else { self }
    }
}

pub(crate) fn utc(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// A duration in whole microseconds, saturating.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
