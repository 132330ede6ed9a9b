//! Ids of connections and incarnations: made by the library, cheap to copy.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identifies a connection: a WebSocket, or any actor that joins rooms.
///
/// Made by the library: 16 bytes, unique in the whole cluster, as text 32 hexadecimal digits. A
/// later id sorts after an earlier one of the same process (it is a UUID of version 7).
///
/// ```
/// use actix_presence::ConnectionId;
///
/// let me = ConnectionId::new();
/// assert_eq!(me.to_string().parse(), Ok(me));
/// assert!("not an id".parse::<ConnectionId>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(Uuid);

impl ConnectionId {
    /// Makes a new id.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a fresh id each time is no default value")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// A digest of the id and a text: 16 URL-safe characters, the same on every node.
    pub(crate) fn derive(self, text: &str) -> String {
        let hash = Uuid::new_v5(&self.0, text.as_bytes());
        URL_SAFE_NO_PAD.encode(&hash.as_bytes()[..12])
    }

    /// The two halves of the number.
    pub(super) fn halves(self) -> (u64, u64) {
        self.0.as_u64_pair()
    }

    /// The id with this number, for tests and for ids that were stored as numbers.
    #[must_use]
    pub const fn from_u128(id: u128) -> Self {
        Self(Uuid::from_u128(id))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(self.0.as_simple(), f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a [`ConnectionId`], which has 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a connection id is 32 hexadecimal digits")]
pub struct InvalidConnectionId;

impl FromStr for ConnectionId {
    type Err = InvalidConnectionId;
    fn from_str(text: &str) -> Result<Self, InvalidConnectionId> {
        let hex = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match Uuid::try_parse(text) {
            Ok(id) if hex => Ok(Self(id)),
            _ => Err(InvalidConnectionId),
        }
    }
}

impl<'de> Deserialize<'de> for ConnectionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for ConnectionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Identifies an incarnation of a registry, within which the version of a room only rises.
///
/// Random; as text 16 hexadecimal digits. Versions of different epochs cannot be compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// Makes a new epoch.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a fresh epoch each time is no default value")]
    pub fn new() -> Self {
        Self(Uuid::new_v4().as_u64_pair().0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an [`Epoch`], which has 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is 16 hexadecimal digits")]
pub struct InvalidEpoch;

impl FromStr for Epoch {
    type Err = InvalidEpoch;
    fn from_str(text: &str) -> Result<Self, InvalidEpoch> {
        let hex = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(epoch) if hex => Ok(Self(epoch)),
            _ => Err(InvalidEpoch),
        }
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Epoch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_id_reads_only_its_own_text() {
        let id = ConnectionId::new();
        let text = id.to_string();
        assert_eq!(text.parse(), Ok(id));
        for bad in [text.to_uppercase(), format!("{{{text}}}"), text[1..].to_owned(), String::new()]
        {
            assert_eq!(bad.parse::<ConnectionId>(), Err(InvalidConnectionId), "{bad}");
        }
    }
}
