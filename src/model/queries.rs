//! What can be asked of the rooms; nothing here changes them.

use std::ops::Bound;

use chrono::{DateTime, Utc};

use super::{
    Activity, ConnectionId, Epoch, Occupancy, Presence, PresenceState, RoomName, RoomSummary,
    Rooms, SeenPresence, Snapshot, UserId, remote::RemoteMembers, snapshot::Place,
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

    /// The connections of this node that are somewhere as this user, each once.
    #[must_use]
    pub fn connections_of(&self, user: &UserId) -> Vec<ConnectionId> {
        let presences = self.presences_of(user);
        each_once(presences.filter_map(|(room, presence)| self.current_connection(room, presence)))
    }

    /// How many connections of other nodes are somewhere as this user, in the rooms that are followed.
    #[must_use]
    pub fn remotes_of(&self, user: &UserId) -> usize {
        let presences = self.presences_of(user);
        let remote = presences.filter(|(room, presence)| self.remote(room, *presence).is_some());
        each_once(remote.map(|(_, presence)| presence)).len()
    }

    fn presences_of<'a>(
        &'a self,
        user: &'a UserId,
    ) -> impl Iterator<Item = (&'a RoomName, ConnectionId)> {
        let rooms = self.whereabouts.get(user).map(|rooms| rooms.iter());
        let states = rooms.into_iter().flatten().filter_map(|(room, _)| self.room(room));
        states.flat_map(move |state| {
            state.connections_of(user).map(move |presence| (state.room(), presence))
        })
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

    /// The presence with this id in the room; those of this node as far as the model knows: live.
    #[must_use]
    pub fn presence(&self, room: &RoomName, presence: ConnectionId) -> Option<SeenPresence> {
        let Some((connection, known, membership)) = self.held(room, presence) else {
            return self.remote_seen(room, presence);
        };
        Some(SeenPresence {
            presence: self.describe(connection, membership),
            last_seen: known.last.utc(),
            activity: known.last.activity(),
            joined_version: membership.joined,
            state: PresenceState::Live,
            node: None,
        })
    }

    /// Whether this node holds the presence with this id in the room.
    #[must_use]
    pub fn holds(&self, room: &RoomName, presence: ConnectionId) -> bool {
        self.held(room, presence).is_some()
    }

    /// The connection behind a presence that this node holds: the one that founded it, or the last one
    /// that took it over.
    #[must_use]
    pub fn current_connection(
        &self,
        room: &RoomName,
        presence: ConnectionId,
    ) -> Option<ConnectionId> {
        self.held(room, presence).map(|(connection, ..)| connection)
    }

    /// The id of the presence that a connection of this node has in the room.
    #[must_use]
    pub fn presence_of(&self, room: &RoomName, connection: ConnectionId) -> Option<ConnectionId> {
        Some(self.connections.get(&connection)?.membership(room)?.presence(connection))
    }

    /// Whether the presence with this id is in the room and its founder is not behind it: another
    /// connection is, here or on another node.
    #[must_use]
    pub fn is_held_by_another(&self, room: &RoomName, presence: ConnectionId) -> bool {
        self.successor(room, presence).is_some() || self.remote(room, presence).is_some()
    }

    /// The connections of this node that are meant by an id that is shown or their own, each once.
    #[must_use]
    pub fn connections_known_as(&self, id: ConnectionId) -> Vec<ConnectionId> {
        let own = self.connections.get(&id).map(|_| id);
        let rooms = self.successors.get(&id).map(|rooms| rooms.iter());
        let successors = rooms.into_iter().flatten().map(|(_, connection)| *connection);
        each_once(own.into_iter().chain(successors))
    }

    /// Whether this node holds anybody in the room; O(1).
    #[must_use]
    pub fn holds_any(&self, room: &RoomName) -> bool {
        let all = self.occupancy(room).connections;
        all > self.remotes.get(room).map_or(0, RemoteMembers::len)
    }

    /// How often the presence went from one node to another, if this node holds it.
    #[must_use]
    pub fn generation(&self, room: &RoomName, presence: ConnectionId) -> Option<u32> {
        self.held(room, presence)?;
        match self.generations.is_empty() {
            true => Some(0),
            false => Some(self.generations.get(&(room.clone(), presence)).copied().unwrap_or(0)),
        }
    }

    /// When the connection was last heard of, if it is in some room.
    #[must_use]
    pub fn last_seen(&self, connection: ConnectionId) -> Option<DateTime<Utc>> {
        self.connections.get(&connection).map(|known| known.last.utc())
    }

    /// Whether the last that was heard of the connection is that it broke.
    #[must_use]
    pub fn has_ended(&self, connection: ConnectionId) -> bool {
        let known = self.connections.get(&connection);
        known.is_some_and(|known| known.last.activity() == Activity::Disconnect)
    }

    /// The rooms that the connection is in, in no order.
    pub fn rooms_of(&self, connection: ConnectionId) -> impl Iterator<Item = &RoomName> {
        self.memberships_of(connection).map(|(room, _)| room)
    }

    /// The rooms that the connection is in, in no order, with the id of its presence in each.
    pub fn memberships_of(
        &self,
        connection: ConnectionId,
    ) -> impl Iterator<Item = (&RoomName, ConnectionId)> {
        let memberships = self.connections.get(&connection).map(|known| known.memberships.iter());
        memberships
            .into_iter()
            .flatten()
            .map(move |membership| (&membership.room, membership.presence(connection)))
    }

    /// Every presence that this node holds, with its room.
    pub fn held_presences(&self) -> impl Iterator<Item = (&RoomName, ConnectionId)> {
        self.connections.keys().flat_map(|connection| self.memberships_of(*connection))
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

    /// How many of the presences this node holds; O(1).
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.presences - self.remote_count
    }
}

fn each_once(connections: impl Iterator<Item = ConnectionId>) -> Vec<ConnectionId> {
    let mut all: Vec<_> = connections.collect();
    all.sort_unstable();
    all.dedup();
    all
}
