//! What this node has told the others of its batches.

use std::collections::{BTreeMap, HashMap, HashSet};

use ahash::RandomState;
use hashlink::LinkedHashMap;

use crate::{
    bus::{RoomChanges, RowChange},
    model::RoomName,
    store::{BatchEntry, Committed},
};

/// Rooms of which is remembered in which batch they were last.
const REMEMBERED: usize = 65_536;
/// Rooms that a beat names at most.
const IN_A_BEAT: usize = 4096;

/// The numbers that let others see whether they have missed something.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The last batch that had changes of a room, the latest last.
    last: LinkedHashMap<RoomName, u64, RandomState>,
    /// No room that was forgotten was in a later batch.
    floor: u64,
    /// The rooms of the batches since the last beat.
    since: BTreeMap<RoomName, u64>,
    said: u64,
    beats: u64,
    /// Whether something could not be told.
    pub missed: bool,
}

impl Outbox {
    /// The changes that a committed batch has made, room by room.
    pub fn changes(&mut self, committed: &Committed) -> Vec<RoomChanges> {
        let Committed { batch, causes, refused } = committed;
        let refused: HashSet<_> = refused
            .iter()
            .filter_map(|change| match change {
                BatchEntry::Upsert(room, connection) | BatchEntry::Delete(room, connection) => {
                    Some((room, *connection))
                }
                BatchEntry::Seen(_) => None,
            })
            .collect();
        let mut rooms: HashMap<&RoomName, Vec<RowChange>, RandomState> = HashMap::default();
        for row in &batch.upserts {
            if !refused.contains(&(&row.room, row.record.presence.connection)) {
                rooms.entry(&row.room).or_default().push(RowChange::Here(row.record.clone()));
            }
        }
        for ((room, connection), cause) in batch.deletes.iter().zip(causes) {
            if !refused.contains(&(room, *connection)) {
                let connection = *connection;
                rooms.entry(room).or_default().push(match *cause {
                    Some(cause) => RowChange::Gone { connection, cause },
                    None => RowChange::Yielded { connection },
                });
            }
        }
        let mut rooms: Vec<_> = rooms.into_iter().collect();
        rooms.sort_unstable_by_key(|(room, _)| *room);
        let number = batch.number;
        let changes = rooms.into_iter().map(|(room, changes)| {
            let previous = self.note(room, number);
            RoomChanges { room: room.clone(), number, previous, changes }
        });
        changes.collect()
    }

    /// Notes that the room is in the batch, and answers in which it was before.
    fn note(&mut self, room: &RoomName, number: u64) -> u64 {
        if self.since.len() < IN_A_BEAT || self.since.contains_key(room) {
            self.since.insert(room.clone(), number);
        }
        let previous = self.last.remove(room).unwrap_or(self.floor);
        self.last.insert(room.clone(), number);
        if self.last.len() > REMEMBERED
            && let Some((_, forgotten)) = self.last.pop_front()
        {
            self.floor = self.floor.max(forgotten);
        }
        previous
    }

    /// The number of the next beat, and the rooms of the batches since the last one.
    pub fn beat(&mut self) -> (u64, Vec<(RoomName, u64)>) {
        self.beats += 1;
        (self.beats, std::mem::take(&mut self.since).into_iter().collect())
    }

    /// The number of the next thing that is published to a room.
    pub fn next_said(&mut self) -> u64 {
        self.said += 1;
        self.said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_that_was_forgotten_is_said_to_have_been_in_a_later_batch_rather_than_none() {
        let room = |number: usize| RoomName::new(format!("room {number}")).unwrap();
        let mut outbox = Outbox::default();
        assert_eq!(outbox.note(&room(0), 1), 0);
        assert_eq!(outbox.note(&room(0), 2), 1);
        for number in 1..=REMEMBERED {
            outbox.note(&room(number), number as u64 + 2);
        }
        assert_eq!(outbox.last.len(), REMEMBERED);
        assert_eq!(outbox.note(&room(0), 100_000), 2, "the latest that was forgotten");
    }

    #[test]
    fn a_beat_names_the_rooms_since_the_last_one() {
        let room = RoomName::new("lobby").unwrap();
        let mut outbox = Outbox::default();
        outbox.note(&room, 4);
        outbox.note(&room, 5);
        assert_eq!(outbox.beat(), (1, vec![(room, 5)]));
        assert_eq!(outbox.beat(), (2, Vec::new()));
    }
}
