//! What this node knows of the connections that it holds: their rooms, and when they were last heard
//! of.
//!
//! A presence is shown under the id of the connection that founded it, and that id never changes: rooms,
//! rows and the wire use it. Liveness and membership belong to the connection behind the presence, which
//! is another one after its client has reconnected.

use std::collections::hash_map::Entry;

use chrono::{DateTime, Utc};

use super::{
    ConnectionId, Moment, Presence, RoomName, Rooms, Sign, UserId, collections::Few, time::utc,
    tree::Place,
};

/// A connection's presence in one room, as the connection remembers it: where it is to be found in the
/// room. Its info is there.
#[derive(Clone, Debug)]
pub(super) struct Stay {
    pub(super) room: RoomName,
    /// The connection that founded the presence, if it was another one: boxed, as few need the space.
    pub(super) founder: Option<Box<ConnectionId>>,
    pub(super) user: Option<UserId>,
    /// Microseconds since 1970.
    pub(super) joined_at: i64,
    /// The room's version when it joined.
    pub(super) joined: u64,
}

/// When and how a connection was last heard of; the kind of the sign shares a word with the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastSign {
    monotonic: u64,
    wall: i64,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) last: LastSign,
    pub(super) stays: Few<Stay>,
}

impl LastSign {
    const BITS: u32 = 3;

    pub(super) fn new(now: Moment, sign: Sign) -> Self {
        Self { monotonic: now.monotonic << Self::BITS | sign as u64, wall: now.wall }
    }

    /// Microseconds of the monotonic clock.
    pub(super) fn at(self) -> u64 {
        self.monotonic >> Self::BITS
    }

    /// The time on the wall.
    pub(super) fn utc(self) -> DateTime<Utc> {
        utc(self.wall)
    }

    pub(super) fn sign(self) -> Sign {
        let number = self.monotonic & ((1 << Self::BITS) - 1);
        Sign::ALL.into_iter().find(|sign| *sign as u64 == number).unwrap_or_default()
    }
}

impl Stay {
    /// The id under which it is shown, where this connection is behind it.
    pub(super) fn presence(&self, connection: ConnectionId) -> ConnectionId {
        self.founder.as_deref().copied().unwrap_or(connection)
    }

    pub(super) fn place(&self, connection: ConnectionId) -> Place {
        Place::new(self.user.clone(), self.joined_at, self.presence(connection))
    }
}

impl Connection {
    pub(super) fn stay(&self, room: &RoomName) -> Option<&Stay> {
        self.stays.iter().find(|stay| stay.room == *room)
    }
}

impl Rooms {
    /// The connection behind a presence that this node holds, with its stay.
    pub(super) fn held(
        &self,
        room: &RoomName,
        presence: ConnectionId,
    ) -> Option<(ConnectionId, &Connection, &Stay)> {
        let connection = self.successor(room, presence).unwrap_or(presence);
        let known = self.connections.get(&connection)?;
        let stay = known.stay(room)?;
        (stay.presence(connection) == presence).then_some((connection, known, stay))
    }

    /// The connection that took over a presence of another one, if any did.
    pub(super) fn successor(
        &self,
        room: &RoomName,
        presence: ConnectionId,
    ) -> Option<ConnectionId> {
        if self.successors.is_empty() {
            return None;
        }
        let rooms = self.successors.get(&presence)?;
        rooms.iter().find(|(name, _)| name == room).map(|(_, connection)| *connection)
    }

    /// Puts the stay of a presence to a connection, which was heard of now.
    pub(super) fn put_stay(
        &mut self,
        connection: ConnectionId,
        presence: ConnectionId,
        mut stay: Stay,
        now: Moment,
    ) {
        stay.founder = (presence != connection).then(|| Box::new(presence));
        if stay.founder.is_some() {
            let rooms = self.successors.entry(presence).or_default();
            rooms.push((stay.room.clone(), connection));
        }
        let last = LastSign::new(now, Sign::Join);
        match self.connections.to_back(&connection) {
            Some(known) => {
                known.last = last;
                known.stays.push(stay);
            }
            None => {
                let stays = Few::One(stay);
                self.connections.insert(connection, Connection { last, stays });
            }
        }
    }

    /// Takes a stay from its connection, and the connection with its last one.
    pub(super) fn take_stay(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
    ) -> Option<(Stay, LastSign)> {
        let known = self.connections.get_mut(&connection)?;
        let last = known.last;
        let index = known.stays.iter().position(|stay| stay.room == *room)?;
        let stay = known.stays.remove(index)?;
        if known.stays.is_empty() {
            self.connections.remove(&connection);
        }
        Some((stay, last))
    }

    /// The connection is no longer behind the presence of the stay.
    pub(super) fn forget_successor(&mut self, stay: &Stay) {
        let Some(founder) = stay.founder.as_deref() else { return };
        let Entry::Occupied(mut rooms) = self.successors.entry(*founder) else { return };
        let index = rooms.get().iter().position(|(name, _)| *name == stay.room);
        index.and_then(|index| rooms.get_mut().remove(index));
        if rooms.get().is_empty() {
            rooms.remove();
        }
    }

    /// The presence of a stay, with the info that is in the room.
    pub(super) fn describe(&self, connection: ConnectionId, stay: &Stay) -> Presence {
        let room = self.rooms.get(&stay.room);
        let info = room.and_then(|room| room.info(&stay.place(connection)));
        Presence {
            connection: stay.presence(connection),
            user: stay.user.clone(),
            info: info.cloned().unwrap_or_default(),
            joined_at: utc(stay.joined_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_fits_beside_its_time() {
        for sign in Sign::ALL {
            // Some three hundred years.
            for monotonic in [0, 1, 10_u64.pow(16)] {
                let last = LastSign::new(Moment { monotonic, wall: 0 }, sign);
                assert_eq!((last.at(), last.sign()), (monotonic, sign));
            }
        }
    }
}
