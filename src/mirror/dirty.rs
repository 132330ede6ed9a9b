//! The changes that are not in the database yet.
//!
//! They are keyed by presence, so their number is bounded by the presences in memory and in the rows, a
//! join and its leave between two batches cancel out, and a batch that failed is simply put back.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

use ahash::RandomState;
use hashlink::{LinkedHashMap, linked_hash_map::Entry};

use super::memory::{Key, Memory, State};
use crate::{
    model::{Cause, ConnectionId, Diff, RoomName, Rooms, Shrink},
    store::{Batch, Row},
};

/// The mark of a presence whose row may differ from memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// When it was first marked, counted in marks.
    at: u64,
    /// Whether the database may have a row of it; otherwise a leave needs no delete.
    stored: bool,
    /// The cause of its leave, if it has left.
    cause: Option<Cause>,
}

/// The presences and signs of life to be written, oldest mark first.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    presences: LinkedHashMap<Key, Mark, RandomState>,
    /// Connections with a sign of life that no [`sweep`](Self::sweep) has taken, oldest first.
    heard: LinkedHashMap<ConnectionId, (), RandomState>,
    /// Those that a sweep has taken, with its mark.
    seen: LinkedHashMap<ConnectionId, u64, RandomState>,
    marks: u64,
    /// Rows of presences taken over from other nodes. Each is written before its presence may be deleted:
    /// only the node that holds the row may delete it, and publish that it is gone.
    adopted: HashMap<Key, Row, RandomState>,
}

/// What was taken for a batch, to be put back if the batch fails.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub presences: Vec<(Key, Mark)>,
    /// The causes of the leaves that are deleted, in the order of the batch; none for a presence that
    /// another node holds now.
    pub causes: Vec<Option<Cause>>,
    seen: Vec<(ConnectionId, u64)>,
}

impl Taken {
    /// The presences of a room that had no row before, so that nobody can have removed it.
    pub fn first_rows(&self, room: &RoomName) -> HashSet<ConnectionId, RandomState> {
        let first = self.presences.iter().filter(|((of, _), mark)| !mark.stored && of == room);
        first.map(|((_, connection), _)| *connection).collect()
    }
}

/// Inserts a key that is missing; an existing one keeps its mark and its place, which are its age.
fn put<K: Hash + Eq, V>(map: &mut LinkedHashMap<K, V, RandomState>, key: K, value: V) {
    if let Entry::Vacant(place) = map.entry(key) {
        place.insert(value);
    }
}

impl Dirty {
    /// Frees unused memory after a crowd has left.
    pub fn shrink(&mut self) {
        self.presences.shrink();
        self.heard.shrink();
        self.seen.shrink();
        self.adopted.shrink();
    }

    /// Marks the presences of a change.
    pub fn mark(&mut self, diff: &Diff) {
        self.marks += 1;
        let at = self.marks;
        for join in &diff.joins {
            let key = (diff.room.clone(), join.connection);
            match self.presences.get_mut(&key) {
                Some(mark) => mark.cause = None,
                None => {
                    self.presences.insert(key, Mark { at, stored: false, cause: None });
                }
            }
        }
        for update in &diff.updates {
            self.mark_stored(diff.room.clone(), update.after.connection, at);
        }
        for left in &diff.leaves {
            let key = (diff.room.clone(), left.presence.connection);
            match self.presences.get_mut(&key) {
                Some(mark) if !mark.stored => {
                    self.presences.remove(&key);
                }
                Some(mark) => mark.cause = Some(left.cause),
                None => {
                    let cause = Some(left.cause);
                    self.presences.insert(key, Mark { at, stored: true, cause });
                }
            }
        }
    }

    /// Marks a presence of which the database may have a row.
    pub fn mark_one(&mut self, room: RoomName, connection: ConnectionId) {
        self.marks += 1;
        self.mark_stored(room, connection, self.marks);
    }

    fn mark_stored(&mut self, room: RoomName, connection: ConnectionId, at: u64) {
        put(&mut self.presences, (room, connection), Mark { at, stored: true, cause: None });
    }

    /// Marks a presence that was another node's.
    pub fn adopt(&mut self, row: Row) {
        let (room, connection) = (row.room.clone(), row.record.presence.connection);
        self.mark_one(room.clone(), connection);
        self.adopted.insert((room, connection), row);
    }

    /// What was taken is committed.
    pub fn committed(&mut self, taken: &Taken) {
        if !self.adopted.is_empty() {
            for (key, _) in &taken.presences {
                self.adopted.remove(key);
            }
        }
    }

    /// Whether the database may have a row of this existing presence.
    pub fn is_stored(&self, key: &Key) -> bool {
        self.presences.get(key).is_none_or(|mark| mark.stored)
    }

    /// Marks all presences: the database has lost its rows.
    pub fn mark_all(&mut self, rooms: &Rooms) {
        self.marks += 1;
        let at = self.marks;
        for (room, presence) in rooms.held_presences() {
            self.mark_stored(room.clone(), presence, at);
        }
    }

    /// Notes a sign of life; its row follows with a later [`sweep`](Self::sweep).
    pub fn heard(&mut self, connection: ConnectionId) {
        put(&mut self.heard, connection, ());
    }

    /// Drops the signs of life of a connection that has ended.
    pub fn forget(&mut self, connection: ConnectionId) {
        self.heard.remove(&connection);
        self.seen.remove(&connection);
    }

    /// Has signs of life written, until there are `limit` of them to write.
    pub fn sweep(&mut self, limit: usize) {
        self.marks += 1;
        while self.seen.len() < limit
            && let Some((connection, ())) = self.heard.pop_front()
        {
            put(&mut self.seen, connection, self.marks);
        }
    }

    /// The newest mark.
    pub fn newest(&self) -> u64 {
        self.marks
    }

    /// Whether everything marked up to `mark` has been taken.
    pub fn is_clean(&self, mark: u64) -> bool {
        self.presences.front().is_none_or(|(_, front)| front.at > mark)
            && self.seen.front().is_none_or(|(_, at)| *at > mark)
    }

    /// The number of marked presences.
    pub fn len(&self) -> usize {
        self.presences.len()
    }

    /// Whether there is enough for a batch of this size.
    pub fn fills(&self, limit: usize) -> bool {
        self.presences.len() + self.seen.len() >= limit
    }

    pub fn is_empty(&self) -> bool {
        self.presences.is_empty() && self.seen.is_empty()
    }

    /// Takes at most `limit` of the oldest, as memory has them now.
    pub fn take(&mut self, memory: &Memory<'_>, limit: usize) -> (Batch, Taken) {
        let (mut batch, mut taken) = (Batch::default(), Taken::default());
        let rooms = memory.rooms;
        let mut still_dirty = Vec::new();
        while taken.presences.len() < limit {
            let Some((key, mark)) = self.presences.pop_front() else { break };
            match memory.state(&key) {
                State::Here(row) => batch.upserts.push(row),
                State::Gone if let Some(row) = self.adopted.get(&key) => {
                    batch.upserts.push(row.clone());
                    still_dirty.push((key.clone(), mark));
                }
                // A row of this node is deleted even if another node holds the presence now.
                State::Gone | State::Elsewhere => {
                    batch.deletes.push(key.clone());
                    taken.causes.push(mark.cause);
                }
            }
            taken.presences.push((key, mark));
        }
        // In front, as the oldest: a flush waits for all marks up to its own.
        for (key, mark) in still_dirty.into_iter().rev() {
            self.presences.insert_front(key, mark);
        }
        while taken.presences.len() + taken.seen.len() < limit {
            let Some((connection, at)) = self.seen.pop_front() else { break };
            let Some(last_seen) = rooms.last_seen(connection) else { continue };
            // Rows have the ids of presences, which stay when another connection takes a presence over.
            let first = batch.seen.len();
            for (_, presence) in rooms.memberships_of(connection) {
                if batch.seen[first..].iter().all(|(one, _)| *one != presence) {
                    batch.seen.push((presence, last_seen));
                }
            }
            taken.seen.push((connection, at));
        }
        (batch, taken)
    }

    /// Puts back what a failed batch had taken, in front. Unless it is certain that nothing was written,
    /// the database may have its rows.
    pub fn put_back(&mut self, taken: Taken, nothing_written: bool) {
        for (key, mut mark) in taken.presences.into_iter().rev() {
            mark.stored |= !nothing_written;
            if let Some(newer) = self.presences.get(&key) {
                mark = Mark { at: mark.at, stored: mark.stored || newer.stored, ..*newer };
            }
            self.presences.insert_front(key, mark);
        }
        for (connection, at) in taken.seen.into_iter().rev() {
            self.seen.insert_front(connection, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Info, Moment, Presence, PresenceRecord};

    const NOW: Moment = Moment { monotonic: 0, wall: 0 };

    struct World {
        rooms: Rooms,
        dirty: Dirty,
        room: RoomName,
    }

    impl World {
        fn new() -> Self {
            let room = RoomName::new("lobby").unwrap();
            Self { rooms: Rooms::default(), dirty: Dirty::default(), room }
        }

        fn join(&mut self, id: u128) {
            let id = ConnectionId::from_u128(id);
            let diff = self.rooms.join(&self.room, id, None, Info::EMPTY, NOW).unwrap();
            self.dirty.mark(&diff.unwrap());
        }

        fn leave(&mut self, id: u128) {
            let id = ConnectionId::from_u128(id);
            self.dirty.mark(&self.rooms.leave(&self.room, id, Cause::Left).unwrap());
        }

        /// What the next batch writes and deletes.
        fn take(&mut self) -> (Vec<u128>, Vec<u128>, Taken) {
            let (batch, taken) = self.dirty.take(&Memory::alone(&self.rooms), 100);
            let number = |id: ConnectionId| u128::from_str_radix(&id.to_string(), 16).unwrap();
            let upserts = batch.upserts.iter().map(|row| number(row.record.presence.connection));
            let deletes = batch.deletes.iter().map(|(_, id)| number(*id));
            (upserts.collect(), deletes.collect(), taken)
        }
    }

    #[test]
    fn a_join_and_its_leave_between_two_batches_cancel_out() {
        let mut world = World::new();
        world.join(1);
        world.join(2);
        world.leave(1);
        let (upserts, deletes, _) = world.take();
        assert_eq!((upserts, deletes), (vec![2], vec![]));
    }

    #[test]
    fn a_leave_after_its_join_was_taken_is_a_delete_also_when_that_batch_failed() {
        for failed in [false, true] {
            let mut world = World::new();
            world.join(1);
            let (_, _, taken) = world.take();
            world.leave(1);
            if failed {
                world.dirty.put_back(taken, false);
            }
            let (upserts, deletes, _) = world.take();
            assert_eq!((upserts, deletes), (vec![], vec![1]), "failed: {failed}");
        }
    }

    #[test]
    fn a_row_that_is_written_for_the_first_time_cannot_have_been_removed_by_others() {
        let mut world = World::new();
        world.join(1);
        world.join(2);
        world.dirty.mark_one(world.room.clone(), ConnectionId::from_u128(3));
        let (_, _, taken) = world.take();
        let first = taken.first_rows(&world.room);
        assert_eq!(first, [1, 2].map(ConnectionId::from_u128).into_iter().collect());
        assert!(taken.first_rows(&RoomName::new("another room").unwrap()).is_empty());
    }

    #[test]
    fn what_is_marked_again_keeps_its_place_in_the_queue() {
        let mut world = World::new();
        world.join(1);
        let mark = world.dirty.newest();
        world.join(2);
        let id = ConnectionId::from_u128(1);
        let info = Info::new(serde_json::json!({"again": true})).unwrap();
        world.dirty.mark(&world.rooms.update_info(&world.room, id, info).unwrap());
        assert!(!world.dirty.is_clean(mark));
        let (batch, _) = world.dirty.take(&Memory::alone(&world.rooms), 1);
        assert_eq!(batch.upserts[0].record.presence.connection, id);
        assert!(world.dirty.is_clean(mark));
    }

    #[test]
    fn signs_of_life_of_ended_connections_are_dropped() {
        let mut world = World::new();
        for id in 1..4 {
            world.join(id);
            world.dirty.heard(ConnectionId::from_u128(id));
        }
        world.dirty.forget(ConnectionId::from_u128(1));
        world.dirty.sweep(1);
        world.dirty.forget(ConnectionId::from_u128(2));
        world.dirty.sweep(1);
        assert!(world.dirty.heard.is_empty());
        let seen: Vec<_> = world.dirty.seen.keys().copied().collect();
        assert_eq!(seen, [ConnectionId::from_u128(3)]);
    }

    #[test]
    fn signs_of_life_take_turns_where_there_are_too_many() {
        let mut world = World::new();
        let ids: Vec<_> = (1..5).map(ConnectionId::from_u128).collect();
        (1..5).for_each(|id| world.join(id));
        world.take();
        let mut written = Vec::new();
        for _ in 0..4 {
            ids.iter().for_each(|id| world.dirty.heard(*id));
            world.dirty.sweep(2);
            let (batch, _) = world.dirty.take(&Memory::alone(&world.rooms), 100);
            assert_eq!(batch.seen.len(), 2);
            written.extend(batch.seen.into_iter().map(|(connection, _)| connection));
        }
        assert_eq!(written, [&ids[..], &ids[..]].concat());
    }

    #[test]
    fn what_was_put_back_is_older_than_later_marks() {
        let mut world = World::new();
        world.join(1);
        let mark = world.dirty.newest();
        let (_, _, taken) = world.take();
        world.join(2);
        assert!(world.dirty.is_clean(mark));
        world.dirty.put_back(taken, false);
        assert!(!world.dirty.is_clean(mark));
        let (batch, _) = world.dirty.take(&Memory::alone(&world.rooms), 1);
        assert_eq!(batch.upserts[0].record.presence.connection, ConnectionId::from_u128(1));
        assert!(world.dirty.is_clean(mark));
    }

    #[test]
    fn a_taken_over_presence_that_has_left_is_dirty_until_its_row_is_deleted() {
        let mut world = World::new();
        let gone = Presence {
            connection: ConnectionId::from_u128(1),
            user: None,
            info: Info::EMPTY,
            joined_at: NOW.utc(),
        };
        let (room, record) = (world.room.clone(), PresenceRecord::new(gone));
        world.dirty.adopt(Row { room, record });
        let mark = world.dirty.newest();
        // More than fit into a batch.
        (2..5).for_each(|id| world.join(id));
        let (batch, taken) = world.dirty.take(&Memory::alone(&world.rooms), 2);
        assert_eq!((batch.upserts.len(), batch.deletes.len()), (2, 0));
        world.dirty.committed(&taken);
        assert!(!world.dirty.is_clean(mark), "its row is still to be deleted");
        let (batch, taken) = world.dirty.take(&Memory::alone(&world.rooms), 2);
        assert_eq!((batch.upserts.len(), batch.deletes.len()), (1, 1));
        world.dirty.committed(&taken);
        assert!(world.dirty.is_clean(mark));
    }
}
