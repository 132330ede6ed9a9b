//! The changes that are not in the database yet, and the rows that they become.
//!
//! They are keyed by presence, so their number is bounded by the presences in memory and in the rows, a
//! join and its leave between two batches cancel out, and a batch that failed is simply put back.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

use ahash::RandomState;
use chrono::{DateTime, Utc};
use hashlink::{LinkedHashMap, linked_hash_map::Entry};

use crate::{
    model::{
        Cause, ConnectionId, Diff, Moment, PresenceRecord, RoomName, Rooms, SeenPresence, Sessions,
        Shrink,
    },
    store::{Batch, Row, Seen},
};

pub(super) type RowKey = (RoomName, ConnectionId);

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

/// The presences and times of last activity to be written, oldest mark first.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    presences: LinkedHashMap<RowKey, Mark, RandomState>,
    /// Connections seen since the last [`sweep`](Self::sweep) that took them, oldest first.
    heard: LinkedHashMap<ConnectionId, (), RandomState>,
    /// Those whose `last_seen` is to be written, with the mark of their sweep.
    seen: LinkedHashMap<ConnectionId, u64, RandomState>,
    marks: u64,
    /// Rows of presences taken over from other nodes. Each is written before its presence may be deleted:
    /// only the node that holds the row may delete it, and publish that it is gone.
    adopted: HashMap<RowKey, Row, RandomState>,
}

/// What was taken for a batch, to be put back if the batch fails.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub presences: Vec<(RowKey, Mark)>,
    /// The causes of the leaves that are deleted, in the order of the batch; none for a presence that
    /// another node holds now.
    pub causes: Vec<Option<Cause>>,
    pub seen: Vec<(ConnectionId, u64)>,
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

    /// Marks a presence whose row the database may have.
    pub fn mark_one(&mut self, room: RoomName, connection: ConnectionId) {
        self.marks += 1;
        self.mark_stored(room, connection, self.marks);
    }

    fn mark_stored(&mut self, room: RoomName, connection: ConnectionId, at: u64) {
        put(&mut self.presences, (room, connection), Mark { at, stored: true, cause: None });
    }

    /// Marks a presence taken over from another node.
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
    pub fn is_stored(&self, key: &RowKey) -> bool {
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

    /// Notes that a connection was seen; a later [`sweep`](Self::sweep) marks its `last_seen`.
    pub fn heard(&mut self, connection: ConnectionId) {
        put(&mut self.heard, connection, ());
    }

    /// Drops the `last_seen` of a connection that has ended.
    pub fn forget(&mut self, connection: ConnectionId) {
        self.heard.remove(&connection);
        self.seen.remove(&connection);
    }

    /// Marks `last_seen` of connections until `limit` of them are to be written.
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

    /// Takes at most `limit` of the oldest, in their current state.
    pub fn take(&mut self, memory: &Memory<'_>, limit: usize) -> (Batch, Taken) {
        let (mut batch, mut taken) = (Batch::default(), Taken::default());
        let rooms = memory.rooms;
        let mut still_dirty = Vec::new();
        while taken.presences.len() < limit {
            let Some((key, mark)) = self.presences.pop_front() else { break };
            match memory.state(&key) {
                RowState::Here(row) => batch.upserts.push(row),
                RowState::Gone if let Some(row) = self.adopted.get(&key) => {
                    batch.upserts.push(row.clone());
                    still_dirty.push((key.clone(), mark));
                }
                // A row of this node is deleted even if another node holds the presence now.
                RowState::Gone | RowState::Elsewhere => {
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
                match batch.seen[first..].iter_mut().find(|seen| seen.connection == presence) {
                    Some(seen) => seen.rooms += 1,
                    None => {
                        batch.seen.push(Seen { connection: presence, at: last_seen, rooms: 1 });
                    }
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

/// The state of the registry from which a batch is made.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    pub rooms: &'a Rooms,
    /// The client sessions, if the database is shared.
    pub sessions: Option<(&'a Sessions, Moment)>,
}

/// What the row of a presence should be.
enum RowState {
    Here(Row),
    Gone,
    /// Another node holds it now.
    Elsewhere,
}

impl<'a> Memory<'a> {
    /// That of a node without a shared database.
    #[cfg(test)]
    pub fn alone(rooms: &'a Rooms) -> Self {
        Self { rooms, sessions: None }
    }

    /// The row of a presence that this node holds.
    pub fn row(&self, room: &RoomName, presence: ConnectionId) -> Option<Row> {
        match self.state(&(room.clone(), presence)) {
            RowState::Here(row) => Some(row),
            RowState::Gone | RowState::Elsewhere => None,
        }
    }

    fn state(&self, (room, id): &RowKey) -> RowState {
        let Some(seen) = self.rooms.presence(room, *id) else { return RowState::Gone };
        let SeenPresence { presence, last_seen, node: None, .. } = seen else {
            return RowState::Elsewhere;
        };
        let mut record = PresenceRecord { last_seen, ..PresenceRecord::new(presence) };
        if let Some((sessions, now)) = self.sessions {
            record.session = sessions.key_of(room, *id).cloned();
            record.fixed = sessions.fixed(room, *id);
            record.fading = sessions.fading(*id, room).map(|until| wall(until, now));
            record.generation = self.rooms.generation(room, *id).unwrap_or(0);
            record.current_connection = self.rooms.successor(room, *id);
        }
        RowState::Here(Row { room: room.clone(), record })
    }
}

/// A time of the monotonic clock as wall time.
fn wall(at: u64, now: Moment) -> DateTime<Utc> {
    now.utc() + Moment { monotonic: at, wall: 0 }.since(now)
}
