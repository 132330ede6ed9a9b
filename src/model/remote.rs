//! Presences that other nodes hold, in the rooms that this node follows.
//!
//! Each presence is held by one node, that of its connection, which alone judges its silence and ends it.
//! The others show it in their rooms as they hear of it. A presence goes from one node to another when its
//! client comes back there; the node with the higher generation holds it.

use std::collections::{BTreeMap, HashMap, HashSet};

use ahash::RandomState;
use chrono::{DateTime, Utc};
use smallvec::SmallVec;

use super::{
    Activity, Cause, ConnectionId, Diff, Info, Left, LimitReached, Moment, NodeName, Presence,
    PresenceState, RoomName, Rooms, SeenPresence, SessionKey, Update, UserId,
    membership::Membership,
};

/// A presence as the nodes describe it to each other, on the bus and in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceRecord {
    /// The presence.
    pub presence: Presence,
    /// The last known sign of life of its connection.
    pub last_seen: DateTime<Utc>,
    /// The client session that it belongs to.
    pub session: Option<SessionKey>,
    /// The part of its info that a token fixes.
    pub fixed: Info,
    /// When its grace ends, if its connection was lost.
    pub fading: Option<DateTime<Utc>>,
    /// How often it moved from one node to another.
    pub generation: u32,
    /// The connection behind it, unless it is the one that founded it.
    pub current_connection: Option<ConnectionId>,
}

impl PresenceRecord {
    /// The record of a presence without a client session that has just joined.
    #[must_use]
    pub fn new(presence: Presence) -> Self {
        Self {
            last_seen: presence.joined_at,
            presence,
            session: None,
            fixed: Info::EMPTY,
            fading: None,
            generation: 0,
            current_connection: None,
        }
    }
}

/// A presence that another node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// The node that holds it.
    pub node: NodeName,
    /// The presence.
    pub record: PresenceRecord,
}

impl Remote {
    /// The connection behind it now.
    pub fn current_connection(&self) -> ConnectionId {
        self.record.current_connection.unwrap_or(self.record.presence.connection)
    }
}

/// What another node says of a presence in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RemoteChange {
    /// It is there.
    Present(Remote),
    /// It has left.
    Gone {
        /// The node that says so; it counts if that one holds it.
        node: NodeName,
        /// Which connection.
        connection: ConnectionId,
        /// Why.
        cause: Cause,
    },
}

/// The outcome of applying changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RemoteOutcome {
    /// The room's change, if there is one.
    pub diff: Option<Diff>,
    /// Presences that this node held until now, and another holds from now on.
    pub yielded: Vec<Yielded>,
}

/// A presence that another node has taken from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Yielded {
    /// Its id.
    pub presence: ConnectionId,
    /// The connection that was behind it here.
    pub connection: ConnectionId,
}

type ClientKey = (SessionKey, Option<UserId>);

/// A presence of another node, with the room's version when this node first saw it.
#[derive(Clone, Debug)]
struct RemoteMember {
    remote: Remote,
    joined: u64,
}

/// The presences that other nodes hold in one room.
#[derive(Debug, Default)]
pub(super) struct RemoteMembers {
    presences: HashMap<ConnectionId, RemoteMember, RandomState>,
    /// Those that may come back here, by client session.
    clients: HashMap<ClientKey, ConnectionId, RandomState>,
}

impl RemoteMembers {
    pub(super) fn len(&self) -> usize {
        self.presences.len()
    }

    fn client(remote: &Remote) -> Option<ClientKey> {
        Some((remote.record.session.clone()?, remote.record.presence.user.clone()))
    }

    fn put(&mut self, member: RemoteMember) -> Option<RemoteMember> {
        let connection = member.remote.record.presence.connection;
        let before = self.take(connection);
        if let Some(client) = Self::client(&member.remote) {
            self.clients.insert(client, connection);
        }
        self.presences.insert(connection, member);
        before
    }

    fn take(&mut self, connection: ConnectionId) -> Option<RemoteMember> {
        let member = self.presences.remove(&connection)?;
        if let Some(client) = Self::client(&member.remote)
            && self.clients.get(&client) == Some(&connection)
        {
            self.clients.remove(&client);
        }
        Some(member)
    }
}

/// The presences that other nodes hold, by room.
pub(super) type Remotes = HashMap<RoomName, RemoteMembers, RandomState>;

impl Rooms {
    /// Takes in what another node says of a room's presences; all of it is one change. `me` is this node.
    ///
    /// A presence may be named once in it.
    pub(crate) fn apply_remote(
        &mut self,
        room: &RoomName,
        changes: impl IntoIterator<Item = RemoteChange>,
        me: &NodeName,
    ) -> RemoteOutcome {
        self.apply(room, changes, me, false)
    }

    fn apply(
        &mut self,
        room: &RoomName,
        changes: impl IntoIterator<Item = RemoteChange>,
        me: &NodeName,
        certain: bool,
    ) -> RemoteOutcome {
        let mut outcome = RemoteOutcome::default();
        let mut gone = Vec::new();
        for change in changes {
            match change {
                RemoteChange::Present(remote) => {
                    self.apply_presence(room, remote, me, certain, &mut outcome)
                }
                // Last, so that nobody is offline in between.
                RemoteChange::Gone { node, connection, cause } => {
                    gone.push((node, connection, cause))
                }
            }
        }
        for (node, connection, cause) in gone {
            let held = self.remote(room, connection).is_some_and(|remote| remote.node == node);
            if held {
                self.lose_one(room, connection, cause, &mut outcome.diff);
            }
        }
        outcome
    }

    /// What changes if these are in a room on the other nodes, and no one else is: by node, for
    /// [`apply_rows`](Self::apply_rows). `cause` says why those of a node have left that are not among them.
    pub(crate) fn changes_to(
        &self,
        room: &RoomName,
        everybody: Vec<Remote>,
        cause: impl Fn(&NodeName) -> Cause,
    ) -> BTreeMap<NodeName, Vec<RemoteChange>> {
        let mut nodes: BTreeMap<NodeName, Vec<RemoteChange>> = BTreeMap::new();
        let named: HashSet<ConnectionId, RandomState> =
            everybody.iter().map(|remote| remote.record.presence.connection).collect();
        for Remote { node, record } in self.remotes_in(room) {
            let connection = record.presence.connection;
            if !named.contains(&connection) {
                let gone =
                    RemoteChange::Gone { node: node.clone(), connection, cause: cause(node) };
                nodes.entry(node.clone()).or_default().push(gone);
            }
        }
        for remote in everybody {
            nodes.entry(remote.node.clone()).or_default().push(RemoteChange::Present(remote));
        }
        nodes
    }

    /// As [`apply_remote`](Self::apply_remote), of what is newer than all that was heard before, whoever said it.
    pub(crate) fn apply_rows(
        &mut self,
        room: &RoomName,
        changes: impl IntoIterator<Item = RemoteChange>,
        me: &NodeName,
    ) -> RemoteOutcome {
        self.apply(room, changes, me, true)
    }

    /// Takes in one presence; of what is known already, a `certain` word is newer whoever says it.
    fn apply_presence(
        &mut self,
        room: &RoomName,
        remote: Remote,
        me: &NodeName,
        certain: bool,
        outcome: &mut RemoteOutcome,
    ) {
        let presence = remote.record.presence.connection;
        let later = (remote.record.generation, &remote.node);
        let (before, joined) = if let Some(connection) = self.current_connection(room, presence) {
            // It was here: the node that took it last holds it.
            let generation = self.generation(room, presence).unwrap_or(0);
            if later <= (generation, me) {
                return;
            }
            let Some((membership, _)) = self.take_membership(room, connection) else { return };
            outcome.yielded.push(Yielded { presence, connection });
            self.forget_generation(room, presence);
            self.forget_successor(&membership);
            (self.describe(connection, &membership), membership.joined)
        } else if let Some(RemoteMember { remote: known, joined }) = self.member(room, presence) {
            if !certain
                && known.node != remote.node
                && later < (known.record.generation, &known.node)
            {
                return;
            }
            (known.record.presence.clone(), *joined)
        } else {
            let joined = self.enter(room, remote.record.presence.clone(), &mut outcome.diff);
            return self.put_remote(room, RemoteMember { remote, joined });
        };
        let after = remote.record.presence.clone();
        self.put_remote(room, RemoteMember { remote, joined });
        if before.joined_at == after.joined_at {
            return self.exchange(room, Update { before, after }, &mut outcome.diff);
        }
        // It has left and come again, which was not heard.
        let (cause, activity, last_seen) =
            (Cause::Disconnected, Activity::Elsewhere, after.joined_at);
        let connection = presence;
        let left = Left {
            presence: before,
            connection,
            cause,
            last_seen,
            activity,
            joined_version: joined,
        };
        // In this order nobody is offline in between.
        self.enter(room, after, &mut outcome.diff);
        self.exit(room, left, &mut outcome.diff);
    }

    /// All presences that the node holds have left: one change for each room.
    pub(crate) fn lose(&mut self, node: &NodeName, cause: Cause) -> Vec<Diff> {
        let mut rooms: Vec<_> = self.remotes.keys().cloned().collect();
        rooms.sort_unstable();
        let mut diffs = Vec::new();
        for room in rooms {
            let held = |remote: &&Remote| remote.node == *node;
            let lost: SmallVec<[ConnectionId; 8]> =
                self.remotes_in(&room).filter(held).map(|r| r.record.presence.connection).collect();
            let mut diff = None;
            for connection in lost {
                self.lose_one(&room, connection, cause, &mut diff);
            }
            diffs.extend(diff);
        }
        diffs
    }

    /// This node, `me`, holds the presence from now on, if another did until now, or an earlier life of
    /// this one, with this connection behind it, which is not in the room yet: nothing changes for the
    /// room. A sign of life. Answers whether it does.
    ///
    /// # Errors
    ///
    /// [`LimitReached::TooManyRooms`]; then nothing has changed.
    pub(crate) fn adopt(
        &mut self,
        room: &RoomName,
        presence: ConnectionId,
        connection: ConnectionId,
        me: &NodeName,
        now: Moment,
    ) -> Result<bool, LimitReached> {
        if self.member(room, presence).is_none() || self.presence_of(room, connection).is_some() {
            return Ok(false);
        }
        if connection != presence {
            // What a connection has founded itself was within its limit then.
            self.check_rooms_of(connection)?;
        }
        let Some(member) = self.take_remote(room, presence) else { return Ok(false) };
        let now = self.hold(now);
        let Presence { user, joined_at, .. } = member.remote.record.presence;
        let (room, joined_at) = (room.clone(), joined_at.timestamp_micros());
        let generation =
            member.remote.record.generation.saturating_add(u32::from(member.remote.node != *me));
        if generation > 0 {
            self.generations.insert((room.clone(), presence), generation);
        }
        let membership = Membership { room, founder: None, user, joined_at, joined: member.joined };
        self.put_membership(connection, presence, membership, now);
        Ok(true)
    }

    /// This node goes on to hold the presence, though another has taken it with this generation. Answers
    /// whether it would have lost it.
    pub(crate) fn outbid(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
        generation: u32,
    ) -> bool {
        let lost = self.generation(room, connection).is_some_and(|own| own <= generation);
        if lost {
            self.generations.insert((room.clone(), connection), generation.saturating_add(1));
        }
        lost
    }

    /// This node does not hold the presence any more.
    pub(super) fn forget_generation(&mut self, room: &RoomName, connection: ConnectionId) {
        if !self.generations.is_empty() {
            self.generations.remove(&(room.clone(), connection));
        }
    }

    /// Forgets the presences of other nodes in a room that is not followed any more, which is no change. Those
    /// that this node holds stay.
    pub(crate) fn unfollow(&mut self, room: &RoomName) {
        let connections: Vec<_> =
            self.remotes_in(room).map(|remote| remote.record.presence.connection).collect();
        let mut unheard = None;
        for connection in connections {
            self.lose_one(room, connection, Cause::Disconnected, &mut unheard);
        }
    }

    /// Two changes, as if presences of this node had left with the node and come again, which is what the
    /// others saw. Members and their places stay as they are.
    pub(crate) fn reregister(
        &mut self,
        room: &RoomName,
        presences: &[ConnectionId],
    ) -> Option<[Diff; 2]> {
        let state = self.rooms.get_mut(room)?;
        let versions = [state.next_version(), state.next_version()];
        let [mut left, mut back] = versions.map(|version| Diff::new(room.clone(), version));
        for &presence in presences {
            let Some(connection) = self.current_connection(room, presence) else { continue };
            let Some(known) = self.connections.get_mut(&connection) else { continue };
            let last = known.last;
            let Some(membership) =
                known.memberships.iter_mut().find(|membership| membership.room == *room)
            else {
                continue;
            };
            let joined_version = std::mem::replace(&mut membership.joined, back.version);
            let membership = membership.clone();
            let presence = self.describe(connection, &membership);
            back.joins.push(presence.clone());
            let (cause, last_seen, activity) = (Cause::NodeLost, last.utc(), last.activity());
            left.leaves.push(Left {
                presence,
                connection,
                cause,
                last_seen,
                activity,
                joined_version,
            });
        }
        Some([left, back])
    }

    /// The presence of another node in the room.
    pub(crate) fn remote(&self, room: &RoomName, connection: ConnectionId) -> Option<&Remote> {
        self.member(room, connection).map(|member| &member.remote)
    }

    /// Every presence of other nodes in the room.
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

    /// The presence of another node in the room that this connection is behind, though it founded another.
    /// O(the presences of other nodes there).
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

    fn member(&self, room: &RoomName, connection: ConnectionId) -> Option<&RemoteMember> {
        self.remotes.get(room)?.presences.get(&connection)
    }

    fn put_remote(&mut self, room: &RoomName, member: RemoteMember) {
        let before = match self.remotes.get_mut(room) {
            Some(members) => members.put(member),
            None => self.remotes.entry(room.clone()).or_default().put(member),
        };
        self.remote_count += usize::from(before.is_none());
    }

    fn take_remote(&mut self, room: &RoomName, connection: ConnectionId) -> Option<RemoteMember> {
        let members = self.remotes.get_mut(room)?;
        let member = members.take(connection);
        self.remote_count -= usize::from(member.is_some());
        if members.presences.is_empty() {
            self.remotes.remove(room);
        }
        member
    }

    fn lose_one(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
        cause: Cause,
        diff: &mut Option<Diff>,
    ) {
        let Some(RemoteMember { remote, joined }) = self.take_remote(room, connection) else {
            return;
        };
        let PresenceRecord { presence, last_seen, .. } = remote.record;
        let (activity, joined_version) = (Activity::Elsewhere, joined);
        let left = Left { presence, connection, cause, last_seen, activity, joined_version };
        self.exit(room, left, diff);
    }
}
