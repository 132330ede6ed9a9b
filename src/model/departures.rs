//! Who left lately, and why.

use std::time::Duration;

use ahash::RandomState;
use hashlink::LinkedHashMap;

use super::{ConnectionId, Moment, RoomName};

/// The ends of presences that are remembered at most.
const REMEMBERED: usize = 10_000;
/// How long they are.
const MEMORY: Duration = Duration::from_secs(600);

/// What is known of presences that ended in the last ten minutes, the latest 10,000 of them.
#[derive(Debug)]
pub(crate) struct Departures<T> {
    ended: LinkedHashMap<(RoomName, ConnectionId), (Moment, T), RandomState>,
}

impl<T> Default for Departures<T> {
    fn default() -> Self {
        Self { ended: LinkedHashMap::default() }
    }
}

impl<T> Departures<T> {
    /// Remembers an end, and forgets the oldest.
    pub fn remember(&mut self, room: RoomName, connection: ConnectionId, what: T, now: Moment) {
        self.ended.insert((room, connection), (now, what));
        while let Some((_, (at, _))) = self.ended.front() {
            if self.ended.len() <= REMEMBERED && now.since(*at) <= MEMORY {
                break;
            }
            self.ended.pop_front();
        }
    }

    /// The last end of this presence, if it is still remembered.
    pub fn find(&self, room: &RoomName, connection: ConnectionId, now: Moment) -> Option<&T> {
        let (at, what) = self.ended.get(&(room.clone(), connection))?;
        (now.since(*at) <= MEMORY).then_some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_remembered_for_ten_minutes_and_ten_thousand_ends() {
        let room = RoomName::new("lobby").unwrap();
        let at = |secs: u64| Moment { monotonic: secs * 1_000_000, wall: 0 };
        let id = |n: usize| ConnectionId::from_u128(n as u128);
        let mut departures = Departures::default();
        for n in 0..=REMEMBERED {
            departures.remember(room.clone(), id(n), n, at(0));
        }
        assert_eq!(departures.find(&room, id(0), at(0)), None);
        assert_eq!(departures.find(&room, id(1), at(600)), Some(&1));
        assert_eq!(departures.find(&room, id(1), at(601)), None);
        departures.remember(room.clone(), id(0), 0, at(601));
        assert_eq!(departures.ended.len(), 1);
    }
}
