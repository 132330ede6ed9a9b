//! The largest rooms, found a piece at a time.

use std::{cmp::Reverse, time::Duration};

use actix_presence::model::{RoomName, RoomSummary};

/// Rooms looked at in one piece, and remembered: many more than are shown, so that there are others
/// when the largest are seen to have gone.
pub(super) const PIECE: usize = 1000;
/// Rooms that are shown.
const SHOWN: usize = 20;
/// Pieces are at least this far apart, however many ask.
const PAUSE: Duration = Duration::from_millis(500);

/// The largest rooms, as far as they were looked at.
///
/// Looking at all rooms each time would cost what there is, not what is shown; so each look takes the
/// next [`PIECE`] rooms by name, and starts again behind the last. Of at most so many rooms the answer
/// is exact. Of more, a count is as old as one round, which takes a look for each `PIECE` rooms.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    /// The largest first.
    known: Vec<RoomSummary>,
    /// Where the next piece begins.
    after: Option<RoomName>,
    looked: Option<Duration>,
    /// Rooms seen since the look at the first one, and in the last round that came to the end.
    seen: usize,
    all: Option<usize>,
}

impl Ranking {
    /// After which room to look now, if it is time to.
    pub fn due(&mut self, uptime: Duration) -> Option<Option<RoomName>> {
        if self.looked.is_some_and(|looked| uptime.saturating_sub(looked) < PAUSE) {
            return None;
        }
        self.looked = Some(uptime);
        Some(self.after.clone())
    }

    /// Takes the piece of the rooms that follows `after`.
    pub fn take(&mut self, after: Option<&RoomName>, piece: Vec<RoomSummary>) {
        let last = match piece.last() {
            Some(last) if piece.len() >= PIECE => Some(last.room.clone()),
            _ => None,
        };
        self.seen = piece.len() + if after.is_some() { self.seen } else { 0 };
        if last.is_none() {
            self.all = Some(self.seen);
        }
        // What was known of this stretch is replaced, so rooms that have gone are gone.
        self.known.retain(|known| {
            let before = after.is_some_and(|after| known.room <= *after);
            before || last.as_ref().is_some_and(|last| known.room > *last)
        });
        self.known.extend(piece);
        self.known.sort_by(|a, b| {
            let size = |summary: &RoomSummary| Reverse(summary.occupancy.connections);
            size(a).cmp(&size(b)).then_with(|| a.room.cmp(&b.room))
        });
        self.known.truncate(PIECE);
        self.after = last;
    }

    /// The largest first.
    pub fn largest(&self) -> &[RoomSummary] {
        &self.known[..self.known.len().min(SHOWN)]
    }

    /// How many rooms there are, of all nodes; `None` before every room was looked at.
    pub fn all(&self) -> Option<usize> {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_presence::model::Occupancy;

    fn rooms(sizes: impl IntoIterator<Item = (usize, usize)>) -> Vec<RoomSummary> {
        let summary = |(name, connections)| RoomSummary {
            room: RoomName::new(format!("{name:06}")).unwrap(),
            occupancy: Occupancy { connections, users: 0, anonymous: connections },
            version: 1,
        };
        sizes.into_iter().map(summary).collect()
    }

    /// One look at these rooms, as the registry would answer it.
    fn look(ranking: &mut Ranking, all: &[RoomSummary], at: u64) {
        let after = ranking.due(Duration::from_secs(at)).unwrap();
        let follows = |summary: &&RoomSummary| after.as_ref().is_none_or(|a| summary.room > *a);
        let piece = all.iter().filter(follows).take(PIECE).cloned().collect();
        ranking.take(after.as_ref(), piece);
    }

    fn sizes(ranking: &Ranking) -> Vec<usize> {
        ranking.largest().iter().map(|summary| summary.occupancy.connections).collect()
    }

    #[test]
    fn few_rooms_are_exact_at_once() {
        let mut ranking = Ranking::default();
        look(&mut ranking, &rooms([(1, 5), (2, 9), (3, 9)]), 0);
        assert_eq!(sizes(&ranking), [9, 9, 5]);
        assert_eq!(ranking.largest()[0].room, "000002");
        assert_eq!(ranking.all(), Some(3));
        look(&mut ranking, &rooms([(3, 1)]), 1);
        assert_eq!(sizes(&ranking), [1]);
        look(&mut ranking, &[], 2);
        assert!(ranking.largest().is_empty());
        assert_eq!(ranking.all(), Some(0));
    }

    #[test]
    fn many_rooms_take_a_round() {
        let all = rooms((0..2500).map(|n| (n, n + 1)));
        let mut ranking = Ranking::default();
        look(&mut ranking, &all, 0);
        assert_eq!((sizes(&ranking)[0], ranking.all()), (1000, None));
        look(&mut ranking, &all, 1);
        look(&mut ranking, &all, 2);
        assert_eq!(ranking.all(), Some(2500));
        assert_eq!(sizes(&ranking), (2481..=2500).rev().collect::<Vec<_>>());
        // The last piece is seen to be gone in the next round.
        let all = rooms((0..2000).map(|n| (n, n + 1)));
        for at in 3..6 {
            look(&mut ranking, &all, at);
        }
        assert_eq!(sizes(&ranking), (1981..=2000).rev().collect::<Vec<_>>());
        assert_eq!(ranking.all(), Some(2000));
    }

    #[test]
    fn many_who_ask_cost_no_more_than_one() {
        let mut ranking = Ranking::default();
        assert!(ranking.due(Duration::from_secs(1)).is_some());
        assert!(ranking.due(Duration::from_millis(1499)).is_none());
        assert!(ranking.due(Duration::from_millis(1500)).is_some());
    }
}
