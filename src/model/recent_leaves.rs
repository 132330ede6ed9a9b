//! Which presences ended lately, and why.

use std::time::Duration;

use ahash::RandomState;
use hashlink::LinkedHashMap;

use super::{ConnectionId, Info, Left, Moment, NodeName, Presence, RoomName, collections::Shrink};

/// How many leaves are remembered at most.
const MAX_LEAVES: usize = 10_000;
/// How many bytes they may take: names may be long.
const MAX_LEAVE_BYTES: usize = 8 * 1024 * 1024;
/// How long they are remembered.
const MAX_AGE: Duration = Duration::from_secs(600);

/// The presences that ended in the last ten minutes: the latest 10,000 of them, or as many as 8 MiB have
/// space for.
#[derive(Debug, Default)]
pub(crate) struct RecentLeaves {
    leaves: LinkedHashMap<(RoomName, ConnectionId), RecentLeave, RandomState>,
    bytes: usize,
}

/// The end of a presence.
#[derive(Debug)]
pub(crate) struct RecentLeave {
    /// The presence without its info, which explains nothing and is the largest part.
    pub left: Left,
    /// The room's version after that.
    pub version: u64,
    /// The node that held it, if that was another one.
    pub node: Option<NodeName>,
    pub at: Moment,
}

impl RecentLeave {
    /// Its size with its key.
    fn bytes(&self, room: &RoomName) -> usize {
        let user = self.left.presence.user.as_ref().map_or(0, |user| user.as_str().len());
        size_of::<((RoomName, ConnectionId), Self)>() + room.as_str().len() + user
    }
}

impl RecentLeaves {
    pub fn remember(
        &mut self,
        room: &RoomName,
        left: &Left,
        version: u64,
        node: Option<NodeName>,
        now: Moment,
    ) {
        let Presence { connection, ref user, joined_at, updated_at, .. } = left.presence;
        let (user, info) = (user.clone(), Info::EMPTY);
        let presence = Presence { connection, user, info, joined_at, updated_at };
        let left = Left { presence, ..*left };
        let leave = RecentLeave { left, version, node, at: now };
        self.bytes += leave.bytes(room);
        if let Some(before) = self.leaves.insert((room.clone(), connection), leave) {
            self.bytes -= before.bytes(room);
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Moment) {
        while let Some((_, oldest)) = self.leaves.front() {
            let fits = self.leaves.len() <= MAX_LEAVES && self.bytes <= MAX_LEAVE_BYTES;
            if fits && now.since(oldest.at) <= MAX_AGE {
                break;
            }
            if let Some(((room, _), oldest)) = self.leaves.pop_front() {
                self.bytes -= oldest.bytes(&room);
            }
        }
    }

    /// Releases memory that is no longer needed.
    pub fn shrink(&mut self, now: Moment) {
        self.forget(now);
        self.leaves.shrink();
    }

    /// The last end of this presence, if it is still remembered.
    pub fn find(
        &self,
        room: &RoomName,
        presence: ConnectionId,
        now: Moment,
    ) -> Option<&RecentLeave> {
        let leave = self.leaves.get(&(room.clone(), presence))?;
        (now.since(leave.at) <= MAX_AGE).then_some(leave)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Activity, Cause, MAX_INFO_BYTES, UserId};

    fn at(secs: u64) -> Moment {
        Moment { monotonic: secs * 1_000_000, wall: 0 }
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::from_u128(n as u128)
    }

    fn left(n: usize) -> Left {
        let (connection, joined_at) = (id(n), at(0).utc());
        let (info, updated_at) = (Info::EMPTY, joined_at);
        let presence = Presence { connection, user: None, info, joined_at, updated_at };
        let (cause, activity) = (Cause::Left, Activity::Frame);
        Left { presence, connection, cause, last_seen: joined_at, activity, joined_version: 1 }
    }

    #[test]
    fn a_leave_is_remembered_for_ten_minutes_and_ten_thousand_leaves() {
        let room = RoomName::new("lobby").unwrap();
        let mut leaves = RecentLeaves::default();
        for n in 0..=MAX_LEAVES {
            leaves.remember(&room, &left(n), 1, None, at(0));
        }
        assert!(leaves.find(&room, id(0), at(0)).is_none());
        assert_eq!(leaves.find(&room, id(1), at(600)).unwrap().left, left(1));
        assert!(leaves.find(&room, id(1), at(601)).is_none());
        leaves.remember(&room, &left(0), 1, None, at(601));
        assert_eq!(leaves.leaves.len(), 1);
        leaves.shrink(at(1300));
        assert_eq!((leaves.leaves.len(), leaves.bytes), (0, 0));
    }

    #[test]
    fn bytes_include_long_names_but_no_infos_and_the_same_leave_once() {
        let room = RoomName::new("x".repeat(255)).unwrap();
        let mut leaves = RecentLeaves::default();
        let info = Info::new(serde_json::json!({"text": "x".repeat(MAX_INFO_BYTES - 20)})).unwrap();
        let mut ended = left(0);
        ended.presence.user = UserId::new("é".repeat(255)).ok();
        ended.presence.info = info;
        for _ in 0..2 {
            leaves.remember(&room, &ended, 1, None, at(0));
        }
        let one = leaves.leaves.values().next().unwrap();
        assert_eq!(one.left.presence.info, Info::EMPTY);
        assert_eq!(leaves.bytes, one.bytes(&room));
        assert!((765..1500).contains(&leaves.bytes), "{}", leaves.bytes);
        for n in 0..MAX_LEAVES {
            ended.presence.connection = id(n);
            leaves.remember(&room, &ended, 1, None, at(0));
        }
        assert!(
            (MAX_LEAVE_BYTES - 1500..=MAX_LEAVE_BYTES).contains(&leaves.bytes)
                && leaves.leaves.len() < MAX_LEAVES
        );
        assert!(leaves.find(&room, id(0), at(0)).is_none());
    }
}
