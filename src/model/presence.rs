//! Who is where: the values that leave the model.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ConnectionId, Info, NodeName, RoomName, UserId};

/// One connection in one room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Which connection.
    pub connection: ConnectionId,
    /// Whose it is; `None` is anonymous.
    pub user: Option<UserId>,
    /// What the app attached.
    pub info: Info,
    /// When it joined this room.
    pub joined_at: DateTime<Utc>,
}

/// A user in a room: all presences of one [`UserId`] there taken together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Which user.
    pub id: UserId,
    /// The info of the connection that joined last.
    pub info: Info,
    /// How many connections the user has in the room, at least 1.
    pub connections: usize,
}

/// How many are in a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Occupancy {
    /// Connections, known and anonymous.
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
    /// It said goodbye.
    Left,
    /// Its connection ended without a word.
    Disconnected,
    /// It was silent for longer than `max_age`, and pruned.
    Expired,
    /// Another connection took its place.
    Replaced,
    /// Somebody with the right to put it out did.
    Kicked,
    /// It did not take what it was sent.
    SlowConsumer,
    /// Its room was closed.
    RoomClosed,
    /// The node that held its connection is gone.
    NodeLost,
    /// The server stopped.
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

    /// The cause as it stands on the wire and in the API.
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

/// What the last sign of life of a connection was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activity {
    /// It joined a room.
    Join,
    /// It sent a heartbeat.
    Heartbeat,
    /// It sent a message to a room.
    Message,
    /// It sent any other frame, a ping or a pong.
    #[default]
    Frame,
    /// Its connection broke: the last that was heard of it.
    Disconnect,
    /// Its own node heard of it; the others know when, but not how.
    Elsewhere,
}

impl Activity {
    /// All activities.
    pub const ALL: &[Self] = &[
        Self::Join,
        Self::Heartbeat,
        Self::Message,
        Self::Frame,
        Self::Disconnect,
        Self::Elsewhere,
    ];
}

/// Whether the client of a presence is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresenceState {
    /// It is connected.
    Live,
    /// Its connection broke, and it has until then to come back.
    Fading {
        /// The end of its grace.
        until: DateTime<Utc>,
    },
}

impl PresenceState {
    /// The state as it stands in the API: `live` or `fading`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Fading { .. } => "fading",
        }
    }
}

/// A room in a list of rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomSummary {
    /// Which room.
    pub room: RoomName,
    /// How many are in it.
    pub occupancy: Occupancy,
    /// Its version.
    pub version: u64,
}

/// A presence in a list, with the last sign of life of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenPresence {
    /// The presence.
    pub presence: Presence,
    /// When its connection was last heard of.
    pub last_seen: DateTime<Utc>,
    /// How it was heard of then.
    pub activity: Activity,
    /// The room's version when it joined.
    pub joined_version: u64,
    /// Whether its client is there.
    pub state: PresenceState,
    /// The node that holds it, if that is another one.
    pub node: Option<NodeName>,
}
