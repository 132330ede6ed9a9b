//! Where a page of a list ends: the text that asks for the next one.
//!
//! A cursor holds the key of the last entry, so that it works whatever came and went meanwhile.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::DateTime;

use crate::error::ApiError;
use actix_presence::model::{ConnectionId, Info, Presence, RoomName, UserId};

/// The cursor after a room.
pub(super) fn after_room(room: &RoomName) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(room.as_str())
}

/// The room that a cursor comes after.
pub(super) fn room(cursor: &str) -> Result<RoomName, ApiError> {
    decode(cursor).and_then(|name| RoomName::new(name).ok()).ok_or_else(bad_cursor)
}

/// The cursor after a presence.
pub(super) fn after_presence(presence: &Presence) -> String {
    let Presence { connection, user, joined_at, .. } = presence;
    let user = user.as_ref().map_or("", UserId::as_str);
    let key = format!("{}.{connection}.{user}", joined_at.timestamp_micros());
    BASE64_URL_SAFE_NO_PAD.encode(key)
}

/// The presence that a cursor comes after, without its info.
pub(super) fn presence(cursor: &str) -> Result<Presence, ApiError> {
    let read = || {
        let key = decode(cursor)?;
        let mut parts = key.splitn(3, '.');
        let joined_at = DateTime::from_timestamp_micros(parts.next()?.parse().ok()?)?;
        let connection: ConnectionId = parts.next()?.parse().ok()?;
        let user = match parts.next()? {
            "" => None,
            user => Some(UserId::new(user).ok()?),
        };
        Some(Presence { connection, user, info: Info::EMPTY, joined_at })
    };
    read().ok_or_else(bad_cursor)
}

fn decode(cursor: &str) -> Option<String> {
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}

fn bad_cursor() -> ApiError {
    ApiError::bad_request("bad_cursor", "`after` is not the `next` of a page of this list")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_url_safe(cursor: &str) -> bool {
        cursor.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    }

    #[test]
    fn a_cursor_comes_back_as_the_entry_it_was_made_of() {
        for name in ["lobby", "a/b?&=+ %", "é".repeat(255).as_str()] {
            let name = RoomName::new(name).unwrap();
            let cursor = after_room(&name);
            assert!(is_url_safe(&cursor));
            assert_eq!(room(&cursor).unwrap(), name);
        }
        for user in [None, Some("ada"), Some("a.b.c"), Some("."), Some("é?")] {
            let made = Presence {
                connection: ConnectionId::new(),
                user: user.map(|user| UserId::new(user).unwrap()),
                info: Info::EMPTY,
                joined_at: DateTime::from_timestamp_micros(1_767_225_600_123_456).unwrap(),
            };
            let cursor = after_presence(&made);
            assert!(is_url_safe(&cursor));
            assert_eq!(presence(&cursor).unwrap(), made);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let encode = |text: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(text);
        for bad in ["", "=", "bG9iYnk=", "a b", "é", &encode(b"\n"), &encode(b"\xff")] {
            assert!(room(bad).is_err(), "{bad}");
        }
        let id = ConnectionId::from_u128(7);
        for key in [
            format!("{}.{id}.ada", i64::MAX),
            format!("x.{id}.ada"),
            format!("1.{id}.__proto__"),
            format!("1.{id}"),
            "1.7.ada".to_owned(),
            "1".to_owned(),
        ] {
            assert!(presence(&encode(key.as_bytes())).is_err(), "{key}");
        }
    }
}
