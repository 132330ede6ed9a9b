//! What can be asked of the rooms; nothing here changes them.

use std::ops::Bound;

use chrono::{DateTime, Utc};

use super::{
    ConnectionId, Epoch, Occupancy, Presence, PresenceState, RoomName, RoomSummary, Rooms,
    SeenPresence, Snapshot, UserId, remote::Strangers, snapshot::Place,
};

impl Rooms {
    /// The incarnation in which the versions count.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The room with everybody in it, if anybody is; O(1).
    #[must_use]
    pub fn room(&self, room: &RoomName) -> Option<&Snapshot> {
        self.rooms.get(room)
    }

    /// The room as it is now, be it empty; O(1).
    #[must_use]
    pub fn snapshot(&self, room: &RoomName) -> Snapshot {
        match self.rooms.get(room) {
            Some(state) => state.clone(),
            None => Snapshot::empty(room.clone(), self.epoch, self.floor),
        }
    }

    /// How many are in the room; O(1).
    #[must_use]
    pub fn occupancy(&self, room: &RoomName) -> Occupancy {
        self.rooms.get(room).map_or_else(Occupancy::default, Snapshot::occupancy)
    }

    /// At most `limit` rooms in the order of their names, after the one named.
    #[must_use]
    pub fn list(&self, after: Option<&RoomName>, limit: usize) -> Vec<RoomSummary> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.names
            .range::<RoomName, _>((start, Bound::Unbounded))
            .take(limit)
            .filter_map(|name| self.room(name))
            .map(|state| RoomSummary {
                room: state.room().clone(),
                occupancy: state.occupancy(),
                version: state.version(),
            })
            .collect()
    }

    /// The rooms the user is in, by name, with the number of connections in each.
    #[must_use]
    pub fn where_is(&self, user: &UserId) -> Vec<(RoomName, usize)> {
        self.whereabouts.get(user).map_or_else(Vec::new, |rooms| rooms.to_vec())
    }

    /// The connections that are somewhere as this user, each once.
    #[must_use]
    pub fn connections_of(&self, user: &UserId) -> Vec<ConnectionId> {
        let rooms = self.whereabouts.get(user).map(|rooms| rooms.iter());
        let rooms = rooms.into_iter().flatten();
        let mut all: Vec<_> = rooms
            .filter_map(|(room, _)| self.room(room))
            .flat_map(|state| state.connections_of(user))
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// At most `limit` presences of the room in the order of [`Snapshot::presences`], after the one
    /// given.
    #[must_use]
    pub fn presences(
        &self,
        room: &RoomName,
        after: Option<&Presence>,
        limit: usize,
    ) -> Vec<SeenPresence> {
        let Some(state) = self.room(room) else { return Vec::new() };
        let seen = |presence: Presence| self.presence(room, presence.connection);
        match after {
            Some(after) => {
                state.presences_after(&Place::from(after)).take(limit).filter_map(seen).collect()
            }
            None => state.presences().take(limit).filter_map(seen).collect(),
        }
    }

    /// The presence of the connection in the room; those of this node as far as the model knows: live.
    #[must_use]
    pub fn presence(&self, room: &RoomName, connection: ConnectionId) -> Option<SeenPresence> {
        let known = self.connections.get(&connection);
        let Some((known, stay)) = known.and_then(|known| Some((known, known.stay(room)?))) else {
            return self.remote_seen(room, connection);
        };
        Some(SeenPresence {
            presence: self.presence_of(connection, stay),
            last_seen: known.last.utc(),
            sign: known.last.sign(),
            joined_version: stay.joined,
            state: PresenceState::Live,
            node: None,
        })
    }

    /// Whether this node holds a presence of the connection in the room.
    #[must_use]
    pub fn holds(&self, room: &RoomName, connection: ConnectionId) -> bool {
        self.stay(room, connection).is_some()
    }

    /// Whether this node holds anybody in the room; O(1).
    #[must_use]
    pub fn holds_any(&self, room: &RoomName) -> bool {
        let all = self.occupancy(room).connections;
        all > self.remotes.get(room).map_or(0, Strangers::len)
    }

    /// How often the presence went from one node to another, if this node holds it.
    #[must_use]
    pub fn turn(&self, room: &RoomName, connection: ConnectionId) -> Option<u32> {
        self.stay(room, connection)?;
        match self.turns.is_empty() {
            true => Some(0),
            false => Some(self.turns.get(&(room.clone(), connection)).copied().unwrap_or(0)),
        }
    }

    /// When the connection was last heard of, if it is in some room.
    #[must_use]
    pub fn last_seen(&self, connection: ConnectionId) -> Option<DateTime<Utc>> {
        self.connections.get(&connection).map(|known| known.last.utc())
    }

    /// The rooms that the connection is in, in no order.
    pub fn rooms_of(&self, connection: ConnectionId) -> impl Iterator<Item = &RoomName> {
        let stays = self.connections.get(&connection).map(|known| known.stays.iter());
        stays.into_iter().flatten().map(|stay| &stay.room)
    }

    /// Every connection, the longest silent first.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.connections.keys().copied()
    }

    /// How many rooms have somebody in them; O(1).
    #[must_use]
    pub fn room_count(&self) -> usize {
        self.rooms.len()
    }

    /// How many connections are in some room; O(1).
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// How many users are in some room; O(1).
    #[must_use]
    pub fn user_count(&self) -> usize {
        self.whereabouts.len()
    }

    /// How many presences there are, which is one for each room of each connection; O(1).
    #[must_use]
    pub fn presence_count(&self) -> usize {
        self.presences
    }
}
