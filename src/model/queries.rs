//! Queries on rooms; nothing here changes them.

use std::ops::Bound;

use chrono::{DateTime, Utc};

use super::{
    Activity, ConnectionId, Epoch, Occupancy, Presence, PresenceState, Remote, RoomName,
    RoomSummary, Rooms, SeenPresence, SessionKey, Snapshot, UserId,
    membership::Membership,
    remote::{RemoteMember, RemoteMembers},
    tree::Position,
};

impl Rooms {
    /// The incarnation within which the versions count.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The room, if it has members; O(1).
    #[must_use]
    pub fn room(&self, room: &RoomName) -> Option<&Snapshot> {
        self.rooms.get(room)
    }

    /// The room as it is now, which may be empty; O(1).
    #[must_use]
    pub fn snapshot(&self, room: &RoomName) -> Snapshot {
        match self.rooms.get(room) {
            Some(state) => state.clone(),
            None => Snapshot::empty(room.clone(), self.epoch, self.floor),
        }
    }

    /// The number of connections and users in the room; O(1).
    #[must_use]
    pub fn occupancy(&self, room: &RoomName) -> Occupancy {
        self.rooms.get(room).map_or_else(Occupancy::default, Snapshot::occupancy)
    }

    /// At most `limit` rooms ordered by name, after the one given.
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

    /// The connections of this node that are in some room as this user, each once.
    #[must_use]
    pub fn connections_of(&self, user: &UserId) -> Vec<ConnectionId> {
        let presences = self.presences_of(user);
        each_once(presences.filter_map(|(room, presence)| self.current_connection(room, presence)))
    }

    /// The room that a connection of this node has been in for longest, of those where it is this user, if one
    /// is given.
    pub(crate) fn oldest_room(
        &self,
        connection: ConnectionId,
        user: Option<&UserId>,
    ) -> Option<&RoomName> {
        let mut memberships = self.connections.get(&connection)?.memberships.iter();
        let is_meant = |user: &UserId, one: &Membership| one.user.as_ref() == Some(user);
        memberships.find(|one| user.is_none_or(|user| is_meant(user, one))).map(|one| &one.room)
    }

    /// The connections of other nodes that are in some room here as this user, each once, without those that
    /// fade.
    pub(crate) fn remote_connections_of(&self, user: &UserId) -> Vec<ConnectionId> {
        let remotes = self.presences_of(user).filter_map(|(room, one)| self.remote(room, one));
        let live = remotes.filter(|remote| remote.record.fading.is_none());
        each_once(live.map(Remote::current_connection))
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

    /// At most `limit` presences of the room in the order of [`Snapshot::presences`], after the one given.
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
                state.presences_after(&Position::from(after)).take(limit).filter_map(seen).collect()
            }
            None => state.presences().take(limit).filter_map(seen).collect(),
        }
    }

    /// The presence with this id in the room. One that this node owns is reported as live: fading
    /// is not known here.
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

    /// Whether this node owns the presence with this id in the room.
    #[must_use]
    pub fn holds(&self, room: &RoomName, presence: ConnectionId) -> bool {
        self.held(room, presence).is_some()
    }

    /// The current connection of a presence that this node owns: the one that created it, or the
    /// last one that took it over.
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

    /// Whether the presence with this id is in the room and its current connection is another one,
    /// here or on another node.
    #[must_use]
    pub fn is_held_by_another(&self, room: &RoomName, presence: ConnectionId) -> bool {
        self.successor(room, presence).is_some() || self.remote(room, presence).is_some()
    }

    /// The connections of this node that an id means, be it a connection's own or a presence's; each once.
    #[must_use]
    pub fn connections_known_as(&self, id: ConnectionId) -> Vec<ConnectionId> {
        let own = self.connections.get(&id).map(|_| id);
        let rooms = self.successors.get(&id).map(|rooms| rooms.iter());
        let successors = rooms.into_iter().flatten().map(|(_, connection)| *connection);
        each_once(own.into_iter().chain(successors))
    }

    /// Whether this node owns a presence in the room; O(1).
    #[must_use]
    pub fn holds_any(&self, room: &RoomName) -> bool {
        let all = self.occupancy(room).connections;
        all > self.remotes.get(room).map_or(0, RemoteMembers::len)
    }

    /// How often the presence moved between nodes, if this node owns it.
    #[must_use]
    pub fn generation(&self, room: &RoomName, presence: ConnectionId) -> Option<u32> {
        self.held(room, presence)?;
        if self.generations.is_empty() {
            return Some(0);
        }
        Some(self.generations.get(&(room.clone(), presence)).copied().unwrap_or(0))
    }

    /// The time of the connection's last activity, if it is in a room.
    #[must_use]
    pub fn last_seen(&self, connection: ConnectionId) -> Option<DateTime<Utc>> {
        self.connections.get(&connection).map(|known| known.last.utc())
    }

    /// Whether the last activity of the connection was its end.
    #[must_use]
    pub fn has_ended(&self, connection: ConnectionId) -> bool {
        let known = self.connections.get(&connection);
        known.is_some_and(|known| known.last.activity() == Activity::Disconnect)
    }

    /// The rooms of the connection, unordered.
    pub fn rooms_of(&self, connection: ConnectionId) -> impl Iterator<Item = &RoomName> {
        self.memberships_of(connection).map(|(room, _)| room)
    }

    /// The rooms of the connection, unordered, with the id of its presence in each.
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

    /// The presence of another node in the room.
    pub(crate) fn remote(&self, room: &RoomName, connection: ConnectionId) -> Option<&Remote> {
        self.member(room, connection).map(|member| &member.remote)
    }

    /// The presences of other nodes in the room.
    pub(crate) fn remotes_in(&self, room: &RoomName) -> impl Iterator<Item = &Remote> {
        let members = self.remotes.get(room).map(|members| members.presences.values());
        members.into_iter().flatten().map(|member| &member.remote)
    }

    /// The presence of another node in the room that belongs to this client session.
    pub(crate) fn remote_client(
        &self,
        room: &RoomName,
        session: &SessionKey,
        user: Option<&UserId>,
    ) -> Option<ConnectionId> {
        let members = self.remotes.get(room)?;
        members.clients.get(&(session.clone(), user.cloned())).copied()
    }

    /// The presence of another node in the room whose current connection this is; O(presences of other nodes
    /// there).
    pub(crate) fn remote_presence_of(
        &self,
        room: &RoomName,
        connection: ConnectionId,
    ) -> Option<ConnectionId> {
        let mut remotes = self.remotes_in(room);
        let remote = remotes.find(|remote| remote.current_connection() == connection)?;
        Some(remote.record.presence.connection)
    }

    pub(super) fn remote_seen(
        &self,
        room: &RoomName,
        connection: ConnectionId,
    ) -> Option<SeenPresence> {
        let RemoteMember { remote, joined } = self.member(room, connection)?;
        let state = match remote.record.fading {
            Some(until) => PresenceState::Fading { until },
            None => PresenceState::Live,
        };
        Some(SeenPresence {
            presence: remote.record.presence.clone(),
            last_seen: remote.record.last_seen,
            activity: Activity::Elsewhere,
            joined_version: *joined,
            state,
            node: Some(remote.node.clone()),
        })
    }

    /// All presences that this node owns, each with its room.
    pub fn held_presences(&self) -> impl Iterator<Item = (&RoomName, ConnectionId)> {
        self.connections.keys().flat_map(|connection| self.memberships_of(*connection))
    }

    /// All connections, the longest silent first.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.connections.keys().copied()
    }

    /// The number of rooms with members; O(1).
    #[must_use]
    pub fn room_count(&self) -> usize {
        self.rooms.len()
    }

    /// The number of connections that are in some room; O(1).
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// The users that are in some room, unordered.
    pub fn users(&self) -> impl Iterator<Item = &UserId> {
        self.whereabouts.keys()
    }

    /// Whether the user is in some room; O(1).
    #[must_use]
    pub fn is_somewhere(&self, user: &UserId) -> bool {
        self.whereabouts.contains_key(user)
    }

    /// The number of users that are in some room; O(1).
    #[must_use]
    pub fn user_count(&self) -> usize {
        self.whereabouts.len()
    }

    /// The number of presences: one for each room of each connection; O(1).
    #[must_use]
    pub fn presence_count(&self) -> usize {
        self.presences
    }

    /// The number of presences that this node owns; O(1).
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
