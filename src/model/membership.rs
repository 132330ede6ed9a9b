//! What this node knows of the connections that it holds: their rooms, and when they were last heard
//! of.
//!
//! A presence is shown under the id of the connection that founded it, and that id never changes: rooms,
//! rows and the wire use it. Liveness and membership belong to the connection behind the presence, which
//! is another one after its client has reconnected.

use std::collections::hash_map::Entry;

use chrono::{DateTime, Utc};

use super::{
    Activity, ConnectionId, Moment, Presence, RoomName, Rooms, UserId, collections::Few, time::utc,
    tree::Place,
};

/// A connection's presence in one room, as kept with the connection: enough to find it in the room, which has
/// its info.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    pub(super) room: RoomName,
    /// The connection that founded the presence, if it was another one: boxed, as few need the space.
    pub(super) founder: Option<Box<ConnectionId>>,
    pub(super) user: Option<UserId>,
    /// Microseconds since 1970.
    pub(super) joined_at: i64,
    /// The room's version when it joined.
    pub(super) joined: u64,
}

/// When and how a connection was last heard of; the kind of activity shares a word with the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastActivity {
    monotonic: u64,
    wall: i64,
}

#[derive(Debug)]
pub(super) struct LiveConnection {
    pub(super) last: LastActivity,
    pub(super) memberships: Few<Membership>,
}

impl LastActivity {
    const BITS: u32 = 3;

    pub(super) fn new(now: Moment, activity: Activity) -> Self {
        Self { monotonic: now.monotonic << Self::BITS | activity as u64, wall: now.wall }
    }

    /// Microseconds of the monotonic clock.
    pub(super) fn at(self) -> u64 {
        self.monotonic >> Self::BITS
    }

    /// The time on the wall.
    pub(super) fn utc(self) -> DateTime<Utc> {
        utc(self.wall)
    }

    pub(super) fn activity(self) -> Activity {
        let number = self.monotonic & ((1 << Self::BITS) - 1);
        Activity::ALL.iter().copied().find(|one| *one as u64 == number).unwrap_or_default()
    }
}

impl Membership {
    /// The id under which it is shown, where this connection is behind it.
    pub(super) fn presence(&self, connection: ConnectionId) -> ConnectionId {
        self.founder.as_deref().copied().unwrap_or(connection)
    }

    pub(super) fn place(&self, connection: ConnectionId) -> Place {
        Place::new(self.user.clone(), self.joined_at, self.presence(connection))
    }
}

impl LiveConnection {
    pub(super) fn membership(&self, room: &RoomName) -> Option<&Membership> {
        self.memberships.iter().find(|membership| membership.room == *room)
    }
}

impl Rooms {
    /// The connection behind a presence that this node holds, with its membership.
    pub(super) fn held(
        &self,
        room: &RoomName,
        presence: ConnectionId,
    ) -> Option<(ConnectionId, &LiveConnection, &Membership)> {
        let connection = self.successor(room, presence).unwrap_or(presence);
        let known = self.connections.get(&connection)?;
        let membership = known.membership(room)?;
        (membership.presence(connection) == presence).then_some((connection, known, membership))
    }

    /// The connection that took over a presence of another one, if any did.
    pub(crate) fn successor(
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

    /// Gives the membership of a presence to a connection, which was heard of now.
    pub(super) fn put_membership(
        &mut self,
        connection: ConnectionId,
        presence: ConnectionId,
        mut membership: Membership,
        now: Moment,
    ) {
        membership.founder = (presence != connection).then(|| Box::new(presence));
        if membership.founder.is_some() {
            let rooms = self.successors.entry(presence).or_default();
            rooms.push((membership.room.clone(), connection));
        }
        let last = LastActivity::new(now, Activity::Join);
        match self.connections.to_back(&connection) {
            Some(known) => {
                known.last = last;
                known.memberships.push(membership);
            }
            None => {
                let memberships = Few::One(membership);
                self.connections.insert(connection, LiveConnection { last, memberships });
            }
        }
    }

    /// Takes a membership from its connection; with its last one the connection goes.
    pub(super) fn take_membership(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
    ) -> Option<(Membership, LastActivity)> {
        let known = self.connections.get_mut(&connection)?;
        let last = known.last;
        let index = known.memberships.iter().position(|membership| membership.room == *room)?;
        let membership = known.memberships.remove(index)?;
        if known.memberships.is_empty() {
            self.connections.remove(&connection);
        }
        Some((membership, last))
    }

    /// The connection is no longer behind the presence of the membership.
    pub(super) fn forget_successor(&mut self, membership: &Membership) {
        let Some(founder) = membership.founder.as_deref() else { return };
        let Entry::Occupied(mut rooms) = self.successors.entry(*founder) else { return };
        let index = rooms.get().iter().position(|(name, _)| *name == membership.room);
        index.and_then(|index| rooms.get_mut().remove(index));
        if rooms.get().is_empty() {
            rooms.remove();
        }
    }

    /// The presence of a membership, with the info that is in the room.
    pub(super) fn describe(&self, connection: ConnectionId, membership: &Membership) -> Presence {
        let room = self.rooms.get(&membership.room);
        let info = room.and_then(|room| room.info(&membership.place(connection)));
        Presence {
            connection: membership.presence(connection),
            user: membership.user.clone(),
            info: info.cloned().unwrap_or_default(),
            joined_at: utc(membership.joined_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_activity_fits_beside_its_time() {
        for &activity in Activity::ALL {
            // Some three hundred years.
            for monotonic in [0, 1, 10_u64.pow(16)] {
                let last = LastActivity::new(Moment { monotonic, wall: 0 }, activity);
                assert_eq!((last.at(), last.activity()), (monotonic, activity));
            }
        }
    }
}
