//! Names of nodes.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest name of a node, in characters.
pub const MAX_NODE_NAME_CHARS: usize = 64;

/// Name of a node: 1 to 64 visible ASCII characters.
///
/// ```
/// use actix_presence::{InvalidNodeName, NodeName};
///
/// assert_eq!(NodeName::new("eu-1")?.as_str(), "eu-1");
/// assert_eq!(NodeName::new("eu 1"), Err(InvalidNodeName::Character { position: 2 }));
/// # Ok::<(), InvalidNodeName>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct NodeName(Arc<str>);

/// Why a text is no [`NodeName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidNodeName {
    /// The name has no characters.
    #[error("a node's name needs at least one character")]
    Empty,
    /// The name has more than [`MAX_NODE_NAME_CHARS`] characters.
    #[error("a node's name has at most {MAX_NODE_NAME_CHARS} characters, this one has {chars}")]
    TooLong {
        /// How many characters it has.
        chars: usize,
    },
    /// The name has a space, a control character, or one that is not ASCII.
    #[error("a node's name is visible ASCII, character {position} of this one is not")]
    Character {
        /// Where the first one is, counted in characters from 0.
        position: usize,
    },
}

impl NodeName {
    /// Checks the text and makes it a name.
    ///
    /// # Errors
    ///
    /// [`InvalidNodeName`] says which rule the text breaks.
    pub fn new(name: impl AsRef<str>) -> Result<Self, InvalidNodeName> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(InvalidNodeName::Empty);
        }
        if let Some(position) = name.chars().position(|c| !c.is_ascii_graphic()) {
            return Err(InvalidNodeName::Character { position });
        }
        match name.len() {
            chars if chars > MAX_NODE_NAME_CHARS => Err(InvalidNodeName::TooLong { chars }),
            _ => Ok(Self(name.into())),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidNodeName;
    fn try_from(name: String) -> Result<Self, InvalidNodeName> {
        Self::new(name)
    }
}

impl FromStr for NodeName {
    type Err = InvalidNodeName;
    fn from_str(name: &str) -> Result<Self, InvalidNodeName> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
