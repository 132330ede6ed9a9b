//! Names and ids: checked at the door, cheap to copy or share.

use std::{borrow::Borrow, fmt, str::FromStr};

use arcstr::ArcStr;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest name of a room or a user, in characters.
pub const MAX_NAME_CHARS: usize = 255;

/// Why a text is no name of a room or a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// The name has no characters.
    #[error("a name needs at least one character")]
    Empty,
    /// The name has more than [`MAX_NAME_CHARS`] characters.
    #[error("a name has at most {MAX_NAME_CHARS} characters, this one has {chars}")]
    TooLong {
        /// How many characters it has.
        chars: usize,
    },
    /// The name has a control character.
    #[error("a name has no control characters, this one has one at character {position}")]
    Control {
        /// Where the first one is, counted in characters from 0.
        position: usize,
    },
    /// The name is one that JavaScript clients cannot use as a key.
    #[error("names of properties that every JavaScript object has are no user ids")]
    Reserved,
}

/// All property names of `Object.prototype`, and `prototype`.
const RESERVED: [&str; 13] = [
    "__defineGetter__",
    "__defineSetter__",
    "__lookupGetter__",
    "__lookupSetter__",
    "__proto__",
    "constructor",
    "hasOwnProperty",
    "isPrototypeOf",
    "propertyIsEnumerable",
    "prototype",
    "toLocaleString",
    "toString",
    "valueOf",
];

fn check(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty);
    }
    // A character has at least one byte, so most names need no count.
    if name.len() > MAX_NAME_CHARS {
        let chars = name.chars().count();
        if chars > MAX_NAME_CHARS {
            return Err(InvalidName::TooLong { chars });
        }
    }
    match name.chars().position(char::is_control) {
        Some(position) => Err(InvalidName::Control { position }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(ArcStr);

        impl $name {
            /// Checks the text and makes it a name.
            ///
            /// # Errors
            ///
            /// [`InvalidName`] says which rule the text breaks, and where.
            pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidName> {
                let name = name.as_ref();
                check(name)?;
                let extra: fn(&str) -> Result<(), InvalidName> = $check;
                extra(name)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }
    };
}

name! {
    /// Name of a room: 1 to 255 characters, without control characters.
    ///
    /// Spaces, slashes, colons and all of Unicode are fine; `Abc` and `abc` are two rooms. A clone
    /// shares the text.
    ///
    /// ```
    /// use actix_presence::{InvalidName, RoomName};
    ///
    /// let room = RoomName::new("café/table 7")?;
    /// assert_eq!(room.as_str(), "café/table 7");
    /// assert_eq!(RoomName::new("no\nlines"), Err(InvalidName::Control { position: 2 }));
    /// # Ok::<(), InvalidName>(())
    /// ```
    RoomName, |_| Ok(())
}

name! {
    /// The app's own key of a user as text: 1 to 255 characters, without control characters.
    ///
    /// Names of properties that every JavaScript object has, such as `__proto__`, `constructor` or
    /// `toString`, are refused, and `prototype`: clients keep users as keys of an object, and one such
    /// user would end the lists of all others. A clone shares the text.
    ///
    /// ```
    /// use actix_presence::{InvalidName, UserId};
    ///
    /// assert!(UserId::new("ada").is_ok());
    /// assert_eq!(UserId::new("__proto__"), Err(InvalidName::Reserved));
    /// ```
    UserId, |id| if RESERVED.contains(&id) { Err(InvalidName::Reserved) } else { Ok(()) }
}

/// One connection: a WebSocket, or any actor that takes part.
///
/// Made by the library, 16 bytes, unique in the whole cluster; as text 32 hexadecimal digits. A
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

    /// A short text that stands for the id and the given text: 16 characters, URL-safe, the same
    /// everywhere.
    pub(crate) fn derive(self, text: &str) -> String {
        let hash = Uuid::new_v5(&self.0, text.as_bytes());
        URL_SAFE_NO_PAD.encode(&hash.as_bytes()[..12])
    }

    /// The two halves of its number.
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

/// A text is no [`ConnectionId`]: those are 32 hexadecimal digits.
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

/// One incarnation of a registry, within which the versions of a room only rise.
///
/// Random, as text 16 hexadecimal digits. Versions of different epochs do not compare.
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

/// A text is no [`Epoch`]: those are 16 hexadecimal digits.
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
    fn a_name_has_1_to_255_characters_not_bytes() {
        assert_eq!(RoomName::new(""), Err(InvalidName::Empty));
        assert!(RoomName::new("é".repeat(255)).is_ok());
        let chars = 256;
        assert_eq!(RoomName::new("é".repeat(chars)), Err(InvalidName::TooLong { chars }));
    }

    #[test]
    fn a_control_character_is_refused_with_its_place() {
        for (name, position) in [("a\0", 1), ("room\n", 4), ("\u{85}", 0)] {
            assert_eq!(RoomName::new(name), Err(InvalidName::Control { position }));
        }
    }

    #[test]
    fn a_name_that_every_javascript_object_has_is_a_room_but_no_user() {
        for name in RESERVED {
            assert_eq!(UserId::new(name), Err(InvalidName::Reserved), "{name}");
            assert!(RoomName::new(name).is_ok());
        }
        for name in ["tostring", "toString ", "__proto", "hasOwn"] {
            assert!(UserId::new(name).is_ok(), "{name}");
        }
    }

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
