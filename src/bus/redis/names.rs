//! What the channels are called in Redis.

use super::Channel;

/// The names of channels, with what they begin with.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    /// The prefix as a part of a pattern.
    escaped: String,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        let mut escaped = String::new();
        for character in prefix.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
                escaped.push('\\');
            }
            escaped.push(character);
        }
        Self { prefix: prefix.to_owned(), escaped }
    }

    /// What a channel is called; for [`Channel::Rooms`] the pattern that all rooms match.
    pub fn of(&self, channel: &Channel) -> String {
        match channel {
            Channel::Nodes => format!("{}:nodes", self.prefix),
            Channel::Room(room) => format!("{}:room:{room}", self.prefix),
            Channel::Rooms => format!("{}:room:*", self.escaped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RoomName;

    #[test]
    fn only_the_prefix_of_a_pattern_is_escaped() {
        let room = Channel::Room(RoomName::new("a*").unwrap());
        let names = Names::new("a[1]*?\\");
        assert_eq!(names.of(&Channel::Nodes), "a[1]*?\\:nodes");
        assert_eq!(names.of(&room), "a[1]*?\\:room:a*");
        assert_eq!(names.of(&Channel::Rooms), "a\\[1\\]\\*\\?\\\\:room:*");
    }
}
