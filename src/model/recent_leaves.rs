//! Who left lately, and why.

use std::time::Duration;

use ahash::RandomState;
use hashlink::LinkedHashMap;

use super::{ConnectionId, Moment, RoomName, collections::Shrink};

/// The ends of presences that are remembered at most.
const REMEMBERED: usize = 10_000;
/// What they may take, in bytes: names may be long.
const REMEMBERED_BYTES: usize = 8 * 1024 * 1024;
/// How long they are remembered.
const MEMORY: Duration = Duration::from_secs(600);

/// What is known of presences that ended in the last ten minutes: the latest 10,000 of them, or as many
/// as 8 MiB have space for.
#[derive(Debug)]
pub(crate) struct RecentLeaves<T> {
    ended: LinkedHashMap<(RoomName, ConnectionId), End<T>, RandomState>,
    bytes: usize,
}

#[derive(Debug)]
struct End<T> {
    at: Moment,
    what: T,
    bytes: usize,
}

impl<T> Default for RecentLeaves<T> {
    fn default() -> Self {
        Self { ended: LinkedHashMap::default(), bytes: 0 }
    }
}

impl<T> RecentLeaves<T> {
    /// Remembers an end, and forgets the oldest. `texts` is what it keeps on the heap besides the name of
    /// the room, in bytes.
    pub fn remember(
        &mut self,
        room: RoomName,
        connection: ConnectionId,
        what: T,
        texts: usize,
        now: Moment,
    ) {
        let place = size_of::<((RoomName, ConnectionId), End<T>)>();
        let bytes = place + room.as_str().len() + texts;
        self.bytes += bytes;
        let end = End { at: now, what, bytes };
        if let Some(before) = self.ended.insert((room, connection), end) {
            self.bytes -= before.bytes;
        }
        self.forget(now);
    }

    /// Forgets what is too old or too much.
    fn forget(&mut self, now: Moment) {
        while let Some((_, oldest)) = self.ended.front() {
            let fits = self.ended.len() <= REMEMBERED && self.bytes <= REMEMBERED_BYTES;
            if fits && now.since(oldest.at) <= MEMORY {
                break;
            }
            self.bytes -= oldest.bytes;
            self.ended.pop_front();
        }
    }

    /// Gives back the space of a crowd whose ends are forgotten.
    pub fn shrink(&mut self, now: Moment) {
        self.forget(now);
        self.ended.shrink();
    }

    /// The last end of this presence, if it is still remembered.
    pub fn find(&self, room: &RoomName, connection: ConnectionId, now: Moment) -> Option<&T> {
        let end = self.ended.get(&(room.clone(), connection))?;
        (now.since(end.at) <= MEMORY).then_some(&end.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment { monotonic: secs * 1_000_000, wall: 0 }
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::from_u128(n as u128)
    }

    #[test]
    fn an_end_is_remembered_for_ten_minutes_and_ten_thousand_ends() {
        let room = RoomName::new("lobby").unwrap();
        let mut recent_leaves = RecentLeaves::default();
        for n in 0..=REMEMBERED {
            recent_leaves.remember(room.clone(), id(n), n, 0, at(0));
        }
        assert_eq!(recent_leaves.find(&room, id(0), at(0)), None);
        assert_eq!(recent_leaves.find(&room, id(1), at(600)), Some(&1));
        assert_eq!(recent_leaves.find(&room, id(1), at(601)), None);
        recent_leaves.remember(room.clone(), id(0), 0, 0, at(601));
        assert_eq!(recent_leaves.ended.len(), 1);
        recent_leaves.shrink(at(1300));
        assert_eq!((recent_leaves.ended.len(), recent_leaves.bytes), (0, 0));
    }

    #[test]
    fn ends_with_long_names_are_remembered_as_far_as_their_bytes_go() {
        let room = RoomName::new("x".repeat(255)).unwrap();
        let mut recent_leaves = RecentLeaves::default();
        // The same one again takes nothing more.
        for n in [0, 0, 1] {
            recent_leaves.remember(room.clone(), id(n), n, REMEMBERED_BYTES / 2 - 1000, at(0));
        }
        assert_eq!(recent_leaves.ended.len(), 2);
        recent_leaves.remember(room.clone(), id(2), 2, 2000, at(0));
        assert_eq!(recent_leaves.find(&room, id(0), at(0)), None);
        assert_eq!(recent_leaves.find(&room, id(1), at(0)), Some(&1));
        assert!(recent_leaves.bytes <= REMEMBERED_BYTES);
    }
}
