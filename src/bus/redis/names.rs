//! The names of channels in Redis.

use std::sync::Arc;

use crate::bus::{Channel, ClusterIdentity};

/// How the names of channels in Redis begin.
#[derive(Clone, Debug)]
pub(super) struct Prefix {
    prefix: String,
    /// That of a version that did not authenticate its envelopes.
    old: String,
}

impl Prefix {
    pub fn new(prefix: &str, old: &str) -> Self {
        Self { prefix: prefix.to_owned(), old: old.to_owned() }
    }

    /// The names of an identity.
    pub fn names(&self, identity: Arc<ClusterIdentity>) -> ChannelNames {
        let base = format!("{}:{}:", self.prefix, identity.channel());
        let (old, trial) = (format!("{}:nodes", self.old), format!("{base}room:"));
        ChannelNames { identity, base, old, trial }
    }
}

/// The names of channels in Redis.
#[derive(Clone, Debug)]
pub(super) struct ChannelNames {
    pub identity: Arc<ClusterIdentity>,
    /// What they begin with.
    base: String,
    old: String,
    trial: String,
}

impl ChannelNames {
    /// The name of a channel; for [`Channel::Rooms`] the pattern that all rooms match.
    pub fn of(&self, channel: &Channel) -> String {
        match channel {
            Channel::Rooms => {
                let mut pattern = String::new();
                for character in self.base.chars() {
                    if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
                        pattern.push('\\');
                    }
                    pattern.push(character);
                }
                pattern + &channel.name()
            }
            Channel::Nodes | Channel::Room(_) => format!("{}{}", self.base, channel.name()),
        }
    }

    /// The channel of the nodes of a version that did not authenticate its envelopes.
    pub fn old(&self) -> &str {
        &self.old
    }

    /// The [name](Channel::name) of a channel by its name in Redis.
    pub fn name_of<'a>(&self, channel: &'a str) -> &'a str {
        channel.strip_prefix(&self.base).unwrap_or_default()
    }

    /// The channel to which something without content is published to find out whether that is allowed. It
    /// is that of a room with an empty name, which there is not.
    pub fn trial(&self) -> &str {
        &self.trial
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RoomName;

    #[test]
    fn only_the_prefix_of_a_pattern_is_escaped() {
        let room = Channel::Room(RoomName::new("a*").unwrap());
        let identity = ClusterIdentity::new([1; 32], [0xab; 16]);
        let names = Prefix::new("a[1]*?\\", "b").names(Arc::new(identity));
        let value = "ab".repeat(16);
        assert_eq!(names.of(&Channel::Nodes), format!("a[1]*?\\:{value}:nodes"));
        assert_eq!(names.of(&room), format!("a[1]*?\\:{value}:room:a*"));
        assert_eq!(names.of(&Channel::Rooms), format!("a\\[1\\]\\*\\?\\\\:{value}:room:*"));
        for channel in [Channel::Nodes, room] {
            assert_eq!(names.name_of(&names.of(&channel)), channel.name());
        }
    }
}
