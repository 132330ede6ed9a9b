//! Lists in pages: how many entries, and the cursor that asks for the next page.
//!
//! A cursor holds the key of the last entry, so it works whatever was added or removed meanwhile.

use actix_web::HttpRequest;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::DateTime;
use serde::Deserialize;

use crate::{request, response::ApiError};
use actix_presence::{ConnectionId, Info, Presence, RoomName, UserId};

const DEFAULT_PAGE_LEN: usize = 100;
const MAX_PAGE_LEN: usize = 1000;

#[derive(Deserialize)]
struct PageQuery {
    limit: Option<String>,
    after: Option<String>,
}

/// A page that a request asks for; `K` is the key of an entry.
pub(crate) struct PageRequest<K> {
    pub after: Option<K>,
    len: usize,
}

impl<K> PageRequest<K> {
    /// Reads `limit` and `after`, of which `decode` makes a key.
    pub fn of(
        req: &HttpRequest,
        decode: impl FnOnce(&str) -> Result<K, ApiError>,
    ) -> Result<Self, ApiError> {
        let query: PageQuery = request::query(req)?;
        let len = query.limit.as_deref().map_or(Ok(DEFAULT_PAGE_LEN), page_len)?;
        Ok(Self { len, after: query.after.as_deref().map(decode).transpose()? })
    }

    /// How many entries to read: one more than the page has tells whether another page follows.
    pub fn limit(&self) -> usize {
        self.len + 1
    }

    /// Cuts what was read down to the page, and makes the cursor of the next one.
    pub fn cut<T>(
        &self,
        entries: &mut Vec<T>,
        cursor: impl FnOnce(&T) -> String,
    ) -> Option<String> {
        let more = entries.len() > self.len;
        entries.truncate(self.len);
        entries.last().filter(|_| more).map(cursor)
    }
}

fn page_len(text: &str) -> Result<usize, ApiError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(len) if digits && (1..=MAX_PAGE_LEN).contains(&len) => Ok(len),
        _ => Err(ApiError::bad_request(
            "bad_limit",
            format!("`limit` must be a number from 1 to {MAX_PAGE_LEN}"),
        )),
    }
}

/// The cursor after a room.
pub(crate) fn room_cursor(room: &RoomName) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(room.as_str())
}

/// The room that a cursor comes after.
pub(crate) fn after_room(cursor: &str) -> Result<RoomName, ApiError> {
    decode(cursor).and_then(|name| RoomName::new(name).ok()).ok_or_else(bad_cursor)
}

/// The cursor after a presence.
pub(crate) fn presence_cursor(presence: &Presence) -> String {
    let Presence { connection, user, joined_at, .. } = presence;
    let user = user.as_ref().map_or("", UserId::as_str);
    let key = format!("{}.{connection}.{user}", joined_at.timestamp_micros());
    BASE64_URL_SAFE_NO_PAD.encode(key)
}

/// The presence that a cursor comes after, without its info.
pub(crate) fn after_presence(cursor: &str) -> Result<Presence, ApiError> {
    let read = || {
        let key = decode(cursor)?;
        let mut parts = key.splitn(3, '.');
        let joined_at = DateTime::from_timestamp_micros(parts.next()?.parse().ok()?)?;
        let connection: ConnectionId = parts.next()?.parse().ok()?;
        let user = match parts.next()? {
            "" => None,
            user => Some(UserId::new(user).ok()?),
        };
        // Lists are in the order of joining.
        let (info, updated_at) = (Info::EMPTY, joined_at);
        Some(Presence { connection, user, info, joined_at, updated_at })
    };
    read().ok_or_else(bad_cursor)
}

fn decode(cursor: &str) -> Option<String> {
    String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}

fn bad_cursor() -> ApiError {
    ApiError::bad_request("bad_cursor", "`after` must be the `next` of a page of this list")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_url_safe(cursor: &str) -> bool {
        cursor.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    }

    #[test]
    fn a_cursor_is_decoded_to_the_entry_it_was_made_of() {
        for name in ["lobby", "a/b?&=+ %", "é".repeat(255).as_str()] {
            let name = RoomName::new(name).unwrap();
            let cursor = room_cursor(&name);
            assert!(is_url_safe(&cursor));
            assert_eq!(after_room(&cursor).unwrap(), name);
        }
        for user in [None, Some("ada"), Some("a.b.c"), Some("..."), Some("é?")] {
            let made = Presence {
                connection: ConnectionId::new(),
                user: user.map(|user| UserId::new(user).unwrap()),
                info: Info::EMPTY,
                joined_at: DateTime::from_timestamp_micros(1_767_225_600_123_456).unwrap(),
                updated_at: DateTime::from_timestamp_micros(1_767_225_600_123_456).unwrap(),
            };
            let cursor = presence_cursor(&made);
            assert!(is_url_safe(&cursor));
            assert_eq!(after_presence(&cursor).unwrap(), made);
        }
    }

    #[test]
    fn a_malformed_cursor_is_refused() {
        let encode = |text: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(text);
        for bad in ["", "=", "bG9iYnk=", "a b", "é", &encode(b"\n"), &encode(b"\xff")] {
            assert!(after_room(bad).is_err(), "{bad}");
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
            assert!(after_presence(&encode(key.as_bytes())).is_err(), "{key}");
        }
    }
}
