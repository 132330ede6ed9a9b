//! The values of this module as JSON, or whatever else serde writes: what is not derived where a type is defined.
//!
//! Names are those of the JSON dialect and of the HTTP API: a room and a connection are both a `channel_name`.

use std::collections::HashSet;

use ahash::RandomState;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{ConnectionId, Epoch, Info, Occupancy, Presence, RoomName, Snapshot, UserId};

/// Times as the HTTP API has them: RFC 3339 in UTC, with microseconds.
pub(super) mod time {
    use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
    }

    /// Reads any precision: presences have microseconds.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
        Ok(DateTime::deserialize(from)?.trunc_subsecs(6))
    }
}

/// A presence as JSON.
#[derive(Serialize, Deserialize)]
pub(super) struct PresenceFields {
    channel_name: ConnectionId,
    user: Option<UserId>,
    info: Info,
    #[serde(with = "time")]
    joined_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    updated_at: Option<Time>,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Time(#[serde(with = "time")] DateTime<Utc>);

impl From<Presence> for PresenceFields {
    fn from(presence: Presence) -> Self {
        let Presence { connection, user, info, joined_at, updated_at } = presence;
        let updated_at = Some(updated_at).filter(|at| *at != joined_at).map(Time);
        Self { channel_name: connection, user, info, joined_at, updated_at }
    }
}

impl From<PresenceFields> for Presence {
    fn from(fields: PresenceFields) -> Self {
        let PresenceFields { channel_name, user, info, joined_at, updated_at } = fields;
        let updated_at = updated_at.map_or(joined_at, |Time(at)| at);
        Self { connection: channel_name, user, info, joined_at, updated_at }
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            channel_name: &'a RoomName,
            epoch: Epoch,
            version: u64,
            presences: Presences<'a>,
            #[serde(skip_serializing_if = "Option::is_none")]
            occupancy: Option<Occupancy>,
        }
        struct Presences<'a>(&'a Snapshot);
        impl Serialize for Presences<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.presences())
            }
        }
        let (channel_name, epoch, version) = (self.room(), self.epoch(), self.version());
        let (presences, occupancy) = (Presences(self), self.counts());
        Fields { channel_name, epoch, version, presences, occupancy }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Snapshot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields {
            channel_name: RoomName,
            epoch: Epoch,
            version: u64,
            presences: Vec<Presence>,
            #[serde(default)]
            occupancy: Option<Occupancy>,
        }
        let Fields { channel_name, epoch, version, presences, occupancy } =
            Fields::deserialize(deserializer)?;
        let mut snapshot = Self::empty(channel_name, epoch, version);
        let mut connections = HashSet::with_hasher(RandomState::new());
        for presence in presences {
            // Counted twice it would never be gone.
            if !connections.insert(presence.connection) {
                return Err(D::Error::custom("a connection is in the room twice"));
            }
            snapshot.fold_in(&presence);
        }
        let Some(counts) = occupancy else { return Ok(snapshot) };
        let counting = snapshot.counting(counts);
        counting.ok_or_else(|| {
            D::Error::custom("counts that cannot be, or that stand beside presences")
        })
    }
}

#[cfg(test)]
#[path = "encoding_tests.rs"]
mod tests;
