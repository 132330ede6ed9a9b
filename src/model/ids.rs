//! Ids that the library makes: of connections, and of the incarnations of registries.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use uuid::{ContextV7, Timestamp, Uuid};

/// Identifies a connection: a WebSocket, or any actor that joins rooms.
///
/// Made by the library: 16 bytes, unique in the whole cluster, as text 32 hexadecimal digits. A
/// later id sorts after an earlier one of the same process (it is a UUID of version 7); and, where nodes
/// share a database, after an earlier one of another node, as exactly as they can compare their clocks.
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

/// By how many microseconds the clock that makes ids is corrected. There is one for the process, since its ids
/// ascend whatever systems run in it.
static ID_CORRECTION: AtomicI64 = AtomicI64::new(0);
/// Has ids of the same instant ascend.
static ID_ORDER: Mutex<ContextV7> = Mutex::new(ContextV7::new());

impl ConnectionId {
    /// Makes a new id.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a fresh id each time is no default value")]
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let correction = ID_CORRECTION.load(Relaxed);
        let by = Duration::from_micros(correction.unsigned_abs());
        let time = match correction {
            0.. => now.saturating_add(by),
            _ => now.saturating_sub(by),
        };
        let order = ID_ORDER.lock().unwrap_or_else(PoisonError::into_inner);
        Self(Uuid::new_v7(Timestamp::from_unix(&*order, time.as_secs(), time.subsec_nanos())))
    }

    /// Makes ids from now on as if the clock of this machine were so many microseconds later: nodes compare
    /// their ids, so these have to be made by one clock. Ids of this process ascend whatever is set. A
    /// correction within the `uncertainty` of the one before is ignored.
    pub(crate) fn set_correction(micros: i64, uncertainty: u64) {
        if ID_CORRECTION.load(Relaxed).abs_diff(micros) > uncertainty {
            ID_CORRECTION.store(micros, Relaxed);
        }
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

/// The text is not a [`ConnectionId`], which has 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a connection id is 32 hexadecimal digits")]
pub struct InvalidConnectionId;

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

/// The text is not an [`Epoch`], which has 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is 16 hexadecimal digits")]
pub struct InvalidEpoch;

/// The text form of an id: so many lowercase hexadecimal digits, also in JSON.
macro_rules! hex_text {
    ($id:ident, $digits:literal, $error:ident, $parse:expr, $show:expr) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $show(self.0, f)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $id {
            type Err = $error;
            fn from_str(text: &str) -> Result<Self, $error> {
                let is_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                match $parse(text) {
                    Ok(id) if text.len() == $digits && text.bytes().all(is_hex) => Ok(Self(id)),
                    _ => Err($error),
                }
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

hex_text!(ConnectionId, 32, InvalidConnectionId, Uuid::try_parse, |id: Uuid, f: &mut _| {
    fmt::LowerHex::fmt(id.as_simple(), f)
});
hex_text!(
    Epoch,
    16,
    InvalidEpoch,
    |text| u64::from_str_radix(text, 16),
    |epoch, f: &mut fmt::Formatter<'_>| write!(f, "{epoch:016x}")
);

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
