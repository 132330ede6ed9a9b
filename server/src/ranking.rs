//! The largest rooms, found by scanning all rooms batch by batch.

use std::{cmp::Reverse, time::Duration};

use actix_presence::{RoomName, RoomSummary};

/// Rooms scanned at a time, and remembered: many more than are shown, so that others take the place of
/// those that are found to be gone.
pub(crate) const BATCH_LEN: usize = 1000;
const SHOWN_ROOMS: usize = 20;
/// The shortest time between two batches, however many clients ask.
const BATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The largest rooms, as far as they have been scanned.
///
/// Scanning all rooms at once would cost as much as there are. So each batch takes the next
/// [`BATCH_LEN`] rooms by name, and the scan starts again after the last room. With at most that many
/// rooms the result is exact; with more, a count is as old as one whole scan.
#[derive(Debug, Default)]
pub(crate) struct TopRooms {
    /// Largest first.
    found: Vec<RoomSummary>,
    /// The room after which the next batch begins.
    after: Option<RoomName>,
    last_batch: Option<Duration>,
    /// Rooms counted in the current scan, and in the last complete one.
    counted: usize,
    all: Option<usize>,
    /// Why the last batch could not be read, if so.
    trouble: Option<String>,
}

impl TopRooms {
    /// Starts the next batch if one is due; returns the room after which it begins.
    pub fn next_batch(&mut self, uptime: Duration) -> Option<Option<RoomName>> {
        if self.last_batch.is_some_and(|last| uptime.saturating_sub(last) < BATCH_INTERVAL) {
            return None;
        }
        self.last_batch = Some(uptime);
        Some(self.after.clone())
    }

    /// Adds the batch of rooms that follows `after`.
    pub fn add(&mut self, after: Option<&RoomName>, batch: Vec<RoomSummary>) {
        self.trouble = None;
        let last = match batch.last() {
            Some(last) if batch.len() >= BATCH_LEN => Some(last.room.clone()),
            _ => None,
        };
        self.counted = batch.len() + if after.is_some() { self.counted } else { 0 };
        if last.is_none() {
            self.all = Some(self.counted);
        }
        // The batch replaces what was known of its range, so rooms that are gone disappear.
        self.found.retain(|found| {
            let before = after.is_some_and(|after| found.room <= *after);
            before || last.as_ref().is_some_and(|last| found.room > *last)
        });
        self.found.extend(batch);
        self.found.sort_by(|a, b| {
            let size = |summary: &RoomSummary| Reverse(summary.occupancy.connections);
            size(a).cmp(&size(b)).then_with(|| a.room.cmp(&b.room))
        });
        self.found.truncate(BATCH_LEN);
        self.after = last;
    }

    /// The batch cannot be read, and is due again: what was found stays.
    pub fn interrupted(&mut self, trouble: String) {
        self.trouble = Some(trouble);
    }

    /// Why the last batch could not be read, if so.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Largest first.
    pub fn largest(&self) -> &[RoomSummary] {
        &self.found[..self.found.len().min(SHOWN_ROOMS)]
    }

    /// How many rooms there are, of all nodes; `None` before the first complete scan.
    pub fn all(&self) -> Option<usize> {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_presence::Occupancy;

    fn rooms(sizes: impl IntoIterator<Item = (usize, usize)>) -> Vec<RoomSummary> {
        let summary = |(name, connections)| RoomSummary {
            room: RoomName::new(format!("{name:06}")).unwrap(),
            occupancy: Occupancy { connections, users: 0, anonymous: connections },
            version: 1,
        };
        sizes.into_iter().map(summary).collect()
    }

    /// One batch, as the registry would answer it.
    fn scan(top: &mut TopRooms, all: &[RoomSummary], at: u64) {
        let after = top.next_batch(Duration::from_secs(at)).unwrap();
        let follows = |summary: &&RoomSummary| after.as_ref().is_none_or(|a| summary.room > *a);
        let batch = all.iter().filter(follows).take(BATCH_LEN).cloned().collect();
        top.add(after.as_ref(), batch);
    }

    fn sizes(top: &TopRooms) -> Vec<usize> {
        top.largest().iter().map(|summary| summary.occupancy.connections).collect()
    }

    #[test]
    fn few_rooms_take_one_batch() {
        let mut top = TopRooms::default();
        scan(&mut top, &rooms([(1, 5), (2, 9), (3, 9)]), 0);
        assert_eq!(sizes(&top), [9, 9, 5]);
        assert_eq!(top.largest()[0].room, "000002");
        assert_eq!(top.all(), Some(3));
        scan(&mut top, &rooms([(3, 1)]), 1);
        assert_eq!(sizes(&top), [1]);
        scan(&mut top, &[], 2);
        assert!(top.largest().is_empty());
        assert_eq!(top.all(), Some(0));
    }

    #[test]
    fn many_rooms_take_several_batches() {
        let all = rooms((0..2500).map(|n| (n, n + 1)));
        let mut top = TopRooms::default();
        scan(&mut top, &all, 0);
        assert_eq!((sizes(&top)[0], top.all()), (1000, None));
        scan(&mut top, &all, 1);
        scan(&mut top, &all, 2);
        assert_eq!(top.all(), Some(2500));
        assert_eq!(sizes(&top), (2481..=2500).rev().collect::<Vec<_>>());
        // The next scan finds that the last rooms are gone.
        let all = rooms((0..2000).map(|n| (n, n + 1)));
        for at in 3..6 {
            scan(&mut top, &all, at);
        }
        assert_eq!(sizes(&top), (1981..=2000).rev().collect::<Vec<_>>());
        assert_eq!(top.all(), Some(2000));
    }

    #[test]
    fn a_batch_that_cannot_be_read_is_named_and_due_again() {
        let mut top = TopRooms::default();
        let all = rooms((0..1500).map(|n| (n, n + 1)));
        scan(&mut top, &all, 0);
        let after = top.next_batch(Duration::from_secs(1)).unwrap();
        top.interrupted("it is away".to_owned());
        assert_eq!((top.trouble(), sizes(&top)[0]), (Some("it is away"), 1000));
        assert_eq!(top.next_batch(Duration::from_secs(2)).unwrap(), after);
        scan(&mut top, &all, 3);
        assert_eq!((top.trouble(), top.all()), (None, Some(1500)));
    }

    #[test]
    fn many_clients_cost_no_more_than_one() {
        let mut top = TopRooms::default();
        assert!(top.next_batch(Duration::from_secs(1)).is_some());
        assert!(top.next_batch(Duration::from_millis(1499)).is_none());
        assert!(top.next_batch(Duration::from_millis(1500)).is_some());
    }
}
