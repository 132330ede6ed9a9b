//! What was heard on the bus and not yet compared with the rows.

use std::collections::{HashMap, HashSet};

use ahash::RandomState;

use crate::{
    bus::{RoomChanges, RowChange},
    model::{ConnectionId, RoomName},
};

/// How many presences are compared at once.
const MAX_COMPARED: usize = 1024;
/// How many presences of one room are compared one by one; of more the whole room is read.
const MAX_OF_A_ROOM: usize = 1024;
/// How many presences may wait to be compared; beyond that whole rooms are read.
const MAX_UNVERIFIED: usize = 65_536;

type ConnectionSet = HashSet<ConnectionId, RandomState>;
type Suspects = HashSet<(RoomName, ConnectionId), RandomState>;

/// Presences of which something was heard on the bus since the rows were last compared.
#[derive(Debug, Default)]
pub(super) struct Unverified {
    /// By room; a room without a set is to be read as a whole.
    rooms: HashMap<RoomName, Option<ConnectionSet>, RandomState>,
    waiting: usize,
    /// Those that the comparison under way is still to ask about.
    asking: Vec<(RoomName, ConnectionId)>,
    under_way: bool,
    /// Those that were not as their rows in the last comparison, and in the one under way.
    suspects: Suspects,
    next_suspects: Suspects,
}

impl Unverified {
    /// Notes the presences that changes are about, whether they were applied or not.
    pub fn note(&mut self, changes: &RoomChanges) {
        for change in &changes.changes {
            let connection = match change {
                RowChange::Here(record) => record.presence.connection,
                RowChange::Yielded { connection } | RowChange::Gone { connection, .. } => {
                    *connection
                }
            };
            self.note_one(&changes.room, connection);
        }
    }

    pub fn note_one(&mut self, room: &RoomName, connection: ConnectionId) {
        let known = match self.rooms.get_mut(room) {
            Some(known) => known,
            None => {
                self.rooms.entry(room.clone()).or_insert_with(|| Some(ConnectionSet::default()))
            }
        };
        let Some(connections) = known else { return };
        self.waiting += usize::from(connections.insert(connection));
        if connections.len() > MAX_OF_A_ROOM || self.waiting > MAX_UNVERIFIED {
            self.waiting -= connections.len();
            *known = None;
        }
    }

    /// Whether something was heard of the presence since the comparison began.
    pub fn is_noted(&self, room: &RoomName, connection: ConnectionId) -> bool {
        match self.rooms.get(room) {
            Some(Some(connections)) => connections.contains(&connection),
            Some(None) => true,
            None => false,
        }
    }

    /// Begins to compare what was noted so far, unless that goes on since the last time. Answers the
    /// rooms to read as a whole.
    pub fn begin(&mut self) -> Vec<RoomName> {
        if self.under_way || !self.asking.is_empty() {
            return Vec::new();
        }
        self.waiting = 0;
        self.suspects = std::mem::take(&mut self.next_suspects);
        let mut whole = Vec::new();
        for (room, connections) in std::mem::take(&mut self.rooms) {
            match connections {
                Some(connections) => {
                    self.asking.extend(connections.into_iter().map(|one| (room.clone(), one)));
                }
                None => whole.push(room),
            }
        }
        // A hash map has an order of its own each time.
        self.asking.sort_unstable();
        whole.sort_unstable();
        whole
    }

    /// The next presences to ask the database about, if none are being asked about.
    pub fn next(&mut self) -> Option<Vec<(RoomName, ConnectionId)>> {
        if self.under_way || self.asking.is_empty() {
            return None;
        }
        self.under_way = true;
        let rest = self.asking.len().saturating_sub(MAX_COMPARED);
        Some(self.asking.split_off(rest))
    }

    /// A presence is not as its row. A change that is committed and still on its way looks like that,
    /// so it is compared once more; answers whether this was that second time.
    pub fn differs(&mut self, room: &RoomName, connection: ConnectionId) -> bool {
        let place = (room.clone(), connection);
        if self.suspects.remove(&place) {
            return true;
        }
        self.next_suspects.insert(place);
        self.note_one(room, connection);
        false
    }

    /// A presence could not be compared this time: what is suspected of it stays so.
    pub fn postpone(&mut self, room: &RoomName, connection: ConnectionId) {
        let place = (room.clone(), connection);
        if self.suspects.remove(&place) {
            self.next_suspects.insert(place);
        }
        self.note_one(room, connection);
    }

    /// The database has answered, or not.
    pub fn answered(&mut self) {
        self.under_way = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomName {
        RoomName::new(name).unwrap()
    }

    fn id(number: usize) -> ConnectionId {
        ConnectionId::from_u128(number as u128)
    }

    #[test]
    fn what_was_noted_is_asked_about_once_and_what_comes_meanwhile_the_next_time() {
        let mut unverified = Unverified::default();
        for connection in [1, 2, 1] {
            unverified.note_one(&room("a"), id(connection));
        }
        assert!(unverified.begin().is_empty());
        assert_eq!(unverified.next(), Some(vec![(room("a"), id(1)), (room("a"), id(2))]));
        assert_eq!(unverified.next(), None, "one question at a time");
        assert!(!unverified.is_noted(&room("a"), id(1)));
        unverified.note_one(&room("a"), id(1));
        assert!(unverified.is_noted(&room("a"), id(1)));
        assert!(unverified.begin().is_empty(), "the one before is not done");
        unverified.answered();
        assert_eq!(unverified.next(), None);
        assert!(unverified.begin().is_empty());
        assert_eq!(unverified.next(), Some(vec![(room("a"), id(1))]));
    }

    #[test]
    fn a_presence_that_differs_from_its_row_twice_in_a_row_is_contradicted() {
        let mut unverified = Unverified::default();
        let compare = |unverified: &mut Unverified| {
            assert!(unverified.begin().is_empty());
            unverified.answered();
            unverified.next().is_some_and(|asked| asked == [(room("a"), id(1))])
        };
        unverified.note_one(&room("a"), id(1));
        assert!(compare(&mut unverified));
        assert!(!unverified.differs(&room("a"), id(1)));
        unverified.answered();
        assert!(compare(&mut unverified), "once more, though nothing was heard");
        unverified.postpone(&room("a"), id(1));
        unverified.answered();
        assert!(compare(&mut unverified));
        assert!(unverified.differs(&room("a"), id(1)));
        unverified.answered();
        assert!(!compare(&mut unverified));

        // As the row says in between.
        for _ in 0..2 {
            unverified.note_one(&room("a"), id(1));
            assert!(compare(&mut unverified));
            assert!(!unverified.differs(&room("a"), id(1)));
            unverified.answered();
            assert!(compare(&mut unverified));
            unverified.answered();
        }
    }

    #[test]
    fn of_too_many_presences_whole_rooms_are_read() {
        let mut unverified = Unverified::default();
        for connection in 0..=MAX_OF_A_ROOM {
            unverified.note_one(&room("large"), id(connection));
        }
        for number in 0..=MAX_UNVERIFIED {
            unverified.note_one(&room(&format!("room {number}")), id(number));
        }
        assert!(unverified.is_noted(&room("large"), id(99_999)));
        let whole = unverified.begin();
        assert_eq!(whole, [room("large"), room(&format!("room {MAX_UNVERIFIED}"))]);
        let asked = std::iter::from_fn(|| {
            let asked = unverified.next();
            unverified.answered();
            asked
        });
        assert_eq!(asked.map(|asked| asked.len()).sum::<usize>(), MAX_UNVERIFIED);
    }
}
