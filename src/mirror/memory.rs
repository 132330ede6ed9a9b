//! The rows of presences, from what the registry has in memory.

use chrono::{DateTime, Utc};

use crate::{
    model::{ConnectionId, Moment, PresenceRecord, RoomName, Rooms, SeenPresence, Sessions},
    store::Row,
};

pub(super) type Key = (RoomName, ConnectionId);

/// The memory of the registry, while a batch is made of it.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    pub rooms: &'a Rooms,
    /// The client sessions, if other nodes use the database, too.
    pub sessions: Option<(&'a Sessions, Moment)>,
}

/// The state of a presence.
pub(super) enum State {
    Here(Row),
    Gone,
    /// Another node holds it now.
    Elsewhere,
}

impl<'a> Memory<'a> {
    /// The memory of a node that has the database for itself.
    #[cfg(test)]
    pub fn alone(rooms: &'a Rooms) -> Self {
        Self { rooms, sessions: None }
    }

    /// The row of a presence that this node holds.
    pub fn row(&self, room: &RoomName, presence: ConnectionId) -> Option<Row> {
        match self.state(&(room.clone(), presence)) {
            State::Here(row) => Some(row),
            State::Gone | State::Elsewhere => None,
        }
    }

    pub(super) fn state(&self, (room, id): &Key) -> State {
        let Some(seen) = self.rooms.presence(room, *id) else { return State::Gone };
        let SeenPresence { presence, last_seen, node: None, .. } = seen else {
            return State::Elsewhere;
        };
        let mut record = PresenceRecord { last_seen, ..PresenceRecord::new(presence) };
        if let Some((sessions, now)) = self.sessions {
            record.session = sessions.key_of(room, *id).cloned();
            record.fixed = sessions.fixed(room, *id);
            record.fading = sessions.fading(*id, room).map(|until| wall(until, now));
            record.generation = self.rooms.generation(room, *id).unwrap_or(0);
            record.current_connection = self.rooms.successor(room, *id);
        }
        State::Here(Row { room: room.clone(), record })
    }
}

/// A time of the monotonic clock as wall time.
fn wall(at: u64, now: Moment) -> DateTime<Utc> {
    now.utc() + Moment { monotonic: at, wall: 0 }.since(now)
}
