//! Names of rooms, users and nodes: texts that are checked when they are made. A clone shares the text.

use std::{borrow::Borrow, fmt, str::FromStr};

use arcstr::ArcStr;
use serde::{Deserialize, Serialize};

/// The longest name of a room or a user, in characters.
pub const MAX_NAME_CHARS: usize = 255;

/// The longest name of a node, in characters.
pub const MAX_NODE_NAME_CHARS: usize = 64;

/// Why a text is not a valid name of a room or a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// The name is empty.
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
        /// The position of the first one, counted in characters from 0.
        position: usize,
    },
    /// The name is `.` or `..`: in the path of a URL these are not names.
    #[error("a name must not be `.` or `..`, which have a meaning in URLs")]
    Dots,
    /// The name is one that JavaScript clients cannot use as a key.
    #[error("a user id must not be the name of a property that every JavaScript object has")]
    Reserved,
    /// The name begins like the key of an anonymous member among Phoenix clients.
    #[error("a user id must not begin with `{ANONYMOUS_PREFIX}`")]
    Anonymous,
}

/// What the key of an anonymous member begins with among Phoenix clients; its connection id follows.
pub(crate) const ANONYMOUS_PREFIX: &str = "anonymous:";

/// Why a text is not a valid [`NodeName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidNodeName {
    /// The name is empty.
    #[error("a node's name needs at least one character")]
    Empty,
    /// The name has more than [`MAX_NODE_NAME_CHARS`] characters.
    #[error("a node's name has at most {MAX_NODE_NAME_CHARS} characters, this one has {chars}")]
    TooLong {
        /// How many characters it has.
        chars: usize,
    },
    /// The name has a space, a control character, or one that is not ASCII.
    #[error("a node's name must be visible ASCII: character {position} is not")]
    Character {
        /// The position of the first one, counted in characters from 0.
        position: usize,
    },
}

/// All property names of `Object.prototype`, and `prototype`.
const RESERVED_USER_IDS: [&str; 13] = [
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

fn check_name(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty);
    }
    // A character has at least one byte, so most names need not be counted.
    if name.len() > MAX_NAME_CHARS {
        let chars = name.chars().count();
        if chars > MAX_NAME_CHARS {
            return Err(InvalidName::TooLong { chars });
        }
    }
    match name.chars().position(char::is_control) {
        Some(position) => Err(InvalidName::Control { position }),
        None if matches!(name, "." | "..") => Err(InvalidName::Dots),
        None => Ok(()),
    }
}

fn check_user(id: &str) -> Result<(), InvalidName> {
    check_name(id)?;
    if id.starts_with(ANONYMOUS_PREFIX) {
        return Err(InvalidName::Anonymous);
    }
    if RESERVED_USER_IDS.contains(&id) { Err(InvalidName::Reserved) } else { Ok(()) }
}

fn check_node(name: &str) -> Result<(), InvalidNodeName> {
    if name.is_empty() {
        return Err(InvalidNodeName::Empty);
    }
    if let Some(position) = name.chars().position(|c| !c.is_ascii_graphic()) {
        return Err(InvalidNodeName::Character { position });
    }
    match name.len() {
        chars if chars > MAX_NODE_NAME_CHARS => Err(InvalidNodeName::TooLong { chars }),
        _ => Ok(()),
    }
}

/// A type for texts that the function `$check` accepts.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:ident, $error:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(ArcStr);

        impl $name {
            /// Checks a name.
            ///
            /// # Errors
            ///
            #[doc = concat!("[`", stringify!($error), "`] says which rule the text breaks, and where.")]
            pub fn new(name: impl AsRef<str>) -> Result<Self, $error> {
                let name = name.as_ref();
                $check(name)?;
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
            type Err = $error;
            fn from_str(name: &str) -> Result<Self, $error> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $error;
            fn try_from(name: String) -> Result<Self, $error> {
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
    /// Name of a room: 1 to 255 characters, without control characters, and not `.` or `..`.
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
    RoomName, check_name, InvalidName
}

name! {
    /// The app's own key of a user as text: 1 to 255 characters, without control characters, and not `.`
    /// or `..`.
    ///
    /// Names of properties that every JavaScript object has, such as `__proto__`, `constructor` or
    /// `toString`, are refused, and `prototype`: clients keep users as keys of an object, and such
    /// a user would break the member lists of all others. So are ids that begin with `anonymous:`, as the keys
    /// of anonymous members do there. A clone shares the text.
    ///
    /// ```
    /// use actix_presence::{InvalidName, UserId};
    ///
    /// assert!(UserId::new("ada").is_ok());
    /// assert_eq!(UserId::new("__proto__"), Err(InvalidName::Reserved));
    /// ```
    UserId, check_user, InvalidName
}

name! {
    /// Name of a node: 1 to 64 visible ASCII characters.
    ///
    /// ```
    /// use actix_presence::{InvalidNodeName, NodeName};
    ///
    /// assert_eq!(NodeName::new("eu-1")?.as_str(), "eu-1");
    /// assert_eq!(NodeName::new("eu 1"), Err(InvalidNodeName::Character { position: 2 }));
    /// # Ok::<(), InvalidNodeName>(())
    /// ```
    NodeName, check_node, InvalidNodeName
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
    fn a_name_that_a_url_cannot_carry_is_refused() {
        for name in [".", ".."] {
            assert_eq!(RoomName::new(name), Err(InvalidName::Dots));
            assert_eq!(UserId::new(name), Err(InvalidName::Dots));
        }
        for name in ["...", ".a", "a..", "./."] {
            assert!(RoomName::new(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_user_cannot_have_the_key_of_an_anonymous_member() {
        assert_eq!(UserId::new("anonymous:1"), Err(InvalidName::Anonymous));
        assert!(UserId::new("anonymous").is_ok());
        assert!(RoomName::new("anonymous:1").is_ok());
    }

    #[test]
    fn a_name_that_every_javascript_object_has_is_a_room_but_no_user() {
        for name in RESERVED_USER_IDS {
            assert_eq!(UserId::new(name), Err(InvalidName::Reserved), "{name}");
            assert!(RoomName::new(name).is_ok());
        }
        for name in ["tostring", "toString ", "__proto", "hasOwn"] {
            assert!(UserId::new(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_name_has_1_to_64_visible_ascii_characters() {
        assert_eq!(NodeName::new(""), Err(InvalidNodeName::Empty));
        assert!(NodeName::new("~".repeat(64)).is_ok());
        assert_eq!(NodeName::new("a".repeat(65)), Err(InvalidNodeName::TooLong { chars: 65 }));
        for (bad, position) in [("é", 0), ("a b", 1), ("ab\u{7f}", 2), ("ab\0", 2)] {
            assert_eq!(NodeName::new(bad), Err(InvalidNodeName::Character { position }), "{bad:?}");
        }
    }
}
