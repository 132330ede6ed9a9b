//! The values in an [`Envelope`](super::Envelope) as JSON, where that is not derived.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::{
    messages::{Content, UpdateUser},
    model::{ConnectionId, Presence, PresenceRecord, SessionKey, StoredInfo, UserId},
};

/// The encoding of a [`Content`]: its kind, with the text, the value, or the event's name and value in an array.
pub(super) mod content {
    use super::*;

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Fields<T, V> {
        Text(T),
        Json(V),
        Event(T, V),
    }

    pub fn serialize<S: Serializer>(content: &Content, to: S) -> Result<S::Ok, S::Error> {
        let fields: Fields<&str, &RawValue> = match content {
            Content::Text(text) => Fields::Text(text),
            Content::Json(value) => Fields::Json(value),
            Content::Event { event, payload } => Fields::Event(event, payload),
        };
        fields.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Content, D::Error> {
        let fields: Fields<String, Box<RawValue>> = Fields::deserialize(from)?;
        Ok(match fields {
            Fields::Text(text) => Content::Text(text.into()),
            Fields::Json(value) => Content::Json(value),
            Fields::Event(event, payload) => Content::Event { event: event.into(), payload },
        })
    }
}

/// The encoding of an [`UpdateUser`]: the user and the info in an array.
pub(super) mod update {
    use super::*;

    pub fn serialize<S: Serializer>(update: &UpdateUser, to: S) -> Result<S::Ok, S::Error> {
        (&update.user, StoredInfo(update.info.clone())).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<UpdateUser, D::Error> {
        let (user, StoredInfo(info)) = Deserialize::deserialize(from)?;
        Ok(UpdateUser { user, info })
    }
}

/// The encoding of a [`PresenceRecord`]: one object with all of its fields.
pub(super) mod record {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Fields {
        connection: ConnectionId,
        user: Option<UserId>,
        #[serde(default, skip_serializing_if = "StoredInfo::is_empty")]
        info: StoredInfo,
        #[serde(with = "chrono::serde::ts_microseconds")]
        joined_at: DateTime<Utc>,
        /// Left out where it is the time of the join, and by earlier versions.
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "chrono::serde::ts_microseconds_option"
        )]
        updated_at: Option<DateTime<Utc>>,
        #[serde(with = "chrono::serde::ts_microseconds")]
        last_seen: DateTime<Utc>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionKey>,
        #[serde(default, skip_serializing_if = "StoredInfo::is_empty")]
        fixed: StoredInfo,
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

    pub fn serialize<S: Serializer>(record: &PresenceRecord, to: S) -> Result<S::Ok, S::Error> {
        let PresenceRecord { presence, last_seen, session, fixed, fading, .. } = record.clone();
        let Presence { connection, user, info, joined_at, updated_at } = presence;
        let updated_at = Some(updated_at).filter(|at| *at != joined_at);
        let (generation, current_connection) = (record.generation, record.current_connection);
        Fields {
            connection,
            user,
            info: StoredInfo(info),
            joined_at,
            updated_at,
            last_seen,
            session,
            fixed: StoredInfo(fixed),
            fading,
            generation,
            current_connection,
        }
        .serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PresenceRecord, D::Error> {
        let fields = Fields::deserialize(from)?;
        let (generation, current_connection) = (fields.generation, fields.current_connection);
        let Fields { connection, user, joined_at, last_seen, session, fading, .. } = fields;
        let (StoredInfo(info), StoredInfo(fixed)) = (fields.info, fields.fixed);
        let updated_at = fields.updated_at.unwrap_or(joined_at);
        Ok(PresenceRecord {
            presence: Presence { connection, user, info, joined_at, updated_at },
            last_seen,
            session,
            fixed,
            fading,
            generation,
            current_connection,
        })
    }
}
