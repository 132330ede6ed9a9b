//! Presences that other nodes hold, in the rooms that this node follows.
//!
//! Each presence is held by the node of its connection, which alone expires it; the other nodes learn of it by
//! the bus or from the database. A presence moves to another node when its client reconnects there; the node
//! with the higher generation holds it.

use std::collections::{BTreeMap, HashMap, HashSet};

use ahash::RandomState;
use chrono::{DateTime, Utc};
use smallvec::SmallVec;

use super::{
    Activity, Cause, ConnectionId, Diff, Info, Left, LimitReached, Moment, NodeName, Presence,
    RoomName, Rooms, SessionKey, Update, UserId, membership::Membership,
};

/// A presence as the nodes describe it to each other, on the bus and in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceRecord {
    /// The presence.
    pub presence: Presence,
    /// The last known activity of its connection.
    pub last_seen: DateTime<Utc>,
    /// The client session that it belongs to.
    pub session: Option<SessionKey>,
    /// The part of its info that a token fixes.
    pub fixed: Info,
    /// When its grace ends, if its connection was lost.
    pub fading: Option<DateTime<Utc>>,
    /// How often it moved from one node to another.
    pub generation: u32,
    /// Its current connection, unless that is the one that created it.
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
    pub node: NodeName,
    pub record: PresenceRecord,
}

impl Remote {
    pub fn current_connection(&self) -> ConnectionId {
        self.record.current_connection.unwrap_or(self.record.presence.connection)
    }
}

/// A presence in a room as another node reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RemoteChange {
    /// It is in the room.
    Present(Remote),
    /// It has left.
    Gone {
        /// The node that reports it; ignored unless that one holds it.
        node: NodeName,
        connection: ConnectionId,
        cause: Cause,
    },
}

/// The outcome of applying changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RemoteOutcome {
    pub diff: Option<Diff>,
    /// Presences that this node held, and another node holds now.
    pub yielded: Vec<Yielded>,
}

/// A presence that another node has taken from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Yielded {
    pub presence: ConnectionId,
    /// Its connection on this node.
    pub connection: ConnectionId,
}

type ClientKey = (SessionKey, Option<UserId>);

/// A presence of another node, with the room's version when this node first saw it.
#[derive(Clone, Debug)]
pub(super) struct RemoteMember {
    pub(super) remote: Remote,
    pub(super) joined: u64,
}

/// The presences that other nodes hold in one room.
#[derive(Debug, Default)]
pub(super) struct RemoteMembers {
    pub(super) presences: HashMap<ConnectionId, RemoteMember, RandomState>,
    /// Those with a client session, which may be resumed here.
    pub(super) clients: HashMap<ClientKey, ConnectionId, RandomState>,
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
    /// Applies what another node reports of a room's presences, each at most once, as one change. `me` is this
    /// node.
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
                // Last, so that no user is offline in between.
                RemoteChange::Gone { node, connection, cause } => {
                    gone.push((node, connection, cause))
                }
            }
        }
        for (node, connection, cause) in gone {
            if self.remote(room, connection).is_some_and(|remote| remote.node == node) {
                self.lose_one(room, connection, cause, &mut outcome.diff);
            }
        }
        outcome
    }

    /// The changes that make these the presences of other nodes in a room: by node, for
    /// [`apply_rows`](Self::apply_rows). `cause` tells why the missing ones of a node have left.
    pub(crate) fn changes_to(
        &self,
        room: &RoomName,
        presences: Vec<Remote>,
        cause: impl Fn(&NodeName) -> Cause,
    ) -> BTreeMap<NodeName, Vec<RemoteChange>> {
        let mut nodes: BTreeMap<NodeName, Vec<RemoteChange>> = BTreeMap::new();
        let named: HashSet<ConnectionId, RandomState> =
            presences.iter().map(|remote| remote.record.presence.connection).collect();
        for Remote { node, record } in self.remotes_in(room) {
            let connection = record.presence.connection;
            if !named.contains(&connection) {
                let gone =
                    RemoteChange::Gone { node: node.clone(), connection, cause: cause(node) };
                nodes.entry(node.clone()).or_default().push(gone);
            }
        }
        for remote in presences {
            nodes.entry(remote.node.clone()).or_default().push(RemoteChange::Present(remote));
        }
        nodes
    }

    /// As [`apply_remote`](Self::apply_remote), for rows, which are newer than everything that was received.
    pub(crate) fn apply_rows(
        &mut self,
        room: &RoomName,
        changes: impl IntoIterator<Item = RemoteChange>,
        me: &NodeName,
    ) -> RemoteOutcome {
        self.apply(room, changes, me, true)
    }

    /// Applies one presence; a `certain` report is newer than what is known, from whichever node.
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
            // Held here: the node that took it last holds it.
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
        // It has left and rejoined, and the leave was missed.
        let left = Left {
            presence: before,
            connection: presence,
            cause: Cause::Disconnected,
            last_seen: after.joined_at,
            activity: Activity::Elsewhere,
            joined_version: joined,
        };
        // In this order no user is offline in between.
        self.enter(room, after, &mut outcome.diff);
        self.exit(room, left, &mut outcome.diff);
    }

    /// Removes all presences of a node: one change for each room.
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

    /// Moves a presence of another node, or of an earlier incarnation of this one, to this node, `me`, with
    /// this connection as its current one. The room does not change; counts as activity. Returns `false`, and
    /// nothing happens, if there is no such presence or the connection is in the room already.
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
            // A presence that it created was within its limit then.
            self.check_rooms(self.connections.get(&connection))?;
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

    /// Forgets the presences of other nodes in a room that is no longer followed, which is not a change.
    pub(crate) fn unfollow(&mut self, room: &RoomName) {
        let connections: Vec<_> =
            self.remotes_in(room).map(|remote| remote.record.presence.connection).collect();
        let mut ignored = None;
        for connection in connections {
            self.lose_one(room, connection, Cause::Disconnected, &mut ignored);
        }
    }

    pub(super) fn member(
        &self,
        room: &RoomName,
        connection: ConnectionId,
    ) -> Option<&RemoteMember> {
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
