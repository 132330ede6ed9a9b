//! What memory says of a presence, as it is to stand in the database.

use chrono::{DateTime, Utc};

use super::dirty::Key;
use crate::model::{ConnectionId, Info, Moment, RoomName, Rooms, SeenPresence, Sessions};
use crate::store::Row;

/// What the registry knows, while a batch is made of it.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    pub rooms: &'a Rooms,
    /// Where other nodes write to the database, too: they want to know of client sessions.
    pub sessions: Option<(&'a Sessions, Moment)>,
}

/// What became of a presence.
pub(super) enum State {
    Here(Row),
    Gone,
    /// Another node holds it now.
    Elsewhere,
}

impl<'a> Memory<'a> {
    /// What a node knows that has the database for itself.
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
        let (mut session, mut fixed, mut fading) = (None, Info::EMPTY, None);
        let (mut generation, mut current_connection) = (0, None);
        if let Some((sessions, now)) = self.sessions {
            session = sessions.key_of(room, *id).cloned();
            fixed = sessions.fixed(room, *id);
            let until = sessions.fading(*id, room);
            fading = until.map(|until| wall(until, now));
            generation = self.rooms.generation(room, *id).unwrap_or(0);
            current_connection = self.rooms.successor(room, *id);
        }
        let room = room.clone();
        State::Here(Row {
            room,
            presence,
            last_seen,
            session,
            fixed,
            fading,
            generation,
            current_connection,
        })
    }
}

/// A time of the monotonic clock on the wall.
fn wall(at: u64, now: Moment) -> DateTime<Utc> {
    now.utc() + Moment { monotonic: at, wall: 0 }.since(now)
}
