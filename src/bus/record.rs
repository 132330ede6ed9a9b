//! The encoding of a [`PresenceRecord`]: one object with all of its fields.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{ConnectionId, Info, Presence, PresenceRecord, SessionKey, UserId};

#[derive(Serialize, Deserialize)]
struct Fields {
    connection: ConnectionId,
    user: Option<UserId>,
    #[serde(default, skip_serializing_if = "Info::is_empty")]
    info: Info,
    #[serde(with = "chrono::serde::ts_microseconds")]
    joined_at: DateTime<Utc>,
    #[serde(with = "chrono::serde::ts_microseconds")]
    last_seen: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<SessionKey>,
    #[serde(default, skip_serializing_if = "Info::is_empty")]
    fixed: Info,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "chrono::serde::ts_microseconds_option"
    )]
    fading: Option<DateTime<Utc>>,
    #[serde(default, rename = "turn")]
    generation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current_connection: Option<ConnectionId>,
}

pub(super) fn serialize<S: Serializer>(record: &PresenceRecord, to: S) -> Result<S::Ok, S::Error> {
    let record = record.clone();
    let Presence { connection, user, info, joined_at } = record.presence;
    let PresenceRecord { last_seen, session, fixed, fading, .. } = record;
    let (generation, current_connection) = (record.generation, record.current_connection);
    let fields = Fields {
        connection,
        user,
        info,
        joined_at,
        last_seen,
        session,
        fixed,
        fading,
        generation,
        current_connection,
    };
    fields.serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PresenceRecord, D::Error> {
    let fields = Fields::deserialize(from)?;
    let Fields { connection, user, info, joined_at, last_seen, session, .. } = fields;
    Ok(PresenceRecord {
        presence: Presence { connection, user, info, joined_at },
        last_seen,
        session,
        fixed: fields.fixed,
        fading: fields.fading,
        generation: fields.generation,
        current_connection: fields.current_connection,
    })
}
