//! All rooms of a node, and the operations that change them.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use ahash::RandomState;
use hashlink::LinkedHashMap;

use super::{
    Activity, Cause, ConnectionId, Diff, Epoch, Info, Left, Moment, Presence, RoomName, Snapshot,
    UserId,
    collections::{Few, Shrink},
    membership::{LastActivity, LiveConnection, Membership},
    presence::{micros, utc},
    remote::Remotes,
};

/// Limits of a [`Rooms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many rooms one connection may be in. Default 128.
    pub rooms_per_connection: usize,
    /// How many connections one room may hold. Default unlimited.
    pub room_size: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rooms_per_connection: 128, room_size: None }
    }
}

/// A join that a limit refuses. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitReached {
    /// The room holds `limit` connections already. Retrying helps only after someone leaves.
    #[error("the room is full ({limit} connections)")]
    RoomFull {
        /// The limit.
        limit: usize,
    },
    /// The connection is in `limit` rooms already and has to leave one first.
    #[error("the connection is in {limit} rooms already")]
    TooManyRooms {
        /// The limit.
        limit: usize,
    },
}

/// The rooms and their presences, as a plain value.
///
/// Every operation changes the value and returns what happened: one [`Diff`] for each room that
/// changed, none for a room that did not. An empty room is removed; when it is created again, its
/// versions continue above the old ones.
///
/// A presence takes about 240 bytes besides its names and info (`cargo bench --bench memory`):
/// names are shared, and no map stores a text twice.
///
/// A presence keeps the id of the connection that created it. After [`take_over`](Self::take_over) another
/// connection is its *current connection*: operations of a session name the connection's own id, rooms and
/// diffs name the id of the presence. The two are equal unless the presence was taken over.
///
/// ```
/// use actix_presence::{Cause, ConnectionId, Info, Moment, RoomName, Rooms, UserId};
///
/// let (lobby, ada) = (RoomName::new("lobby")?, UserId::new("ada")?);
/// let (now, tab) = (Moment { monotonic: 0, wall: 0 }, ConnectionId::new());
/// let mut rooms = Rooms::default();
///
/// let joined = rooms.join(&lobby, tab, Some(ada.clone()), Info::EMPTY, now)?.unwrap();
/// assert_eq!((joined.version, joined.online), (1, vec![ada]));
///
/// let left = rooms.leave(&lobby, tab, Cause::Left).unwrap();
/// assert_eq!(left.leaves[0].cause, Cause::Left);
/// assert!(rooms.leave(&lobby, tab, Cause::Left).is_none()); // the second time nothing happens
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Rooms {
    pub(super) epoch: Epoch,
    limits: Limits,
    pub(super) rooms: HashMap<RoomName, Snapshot, RandomState>,
    /// The same rooms ordered by name, for listing.
    pub(super) names: BTreeSet<RoomName>,
    /// Ordered by last activity: a touch moves to the back, so the longest silent are at the front.
    pub(super) connections: LinkedHashMap<ConnectionId, LiveConnection, RandomState>,
    /// Presences that other nodes own.
    pub(super) remotes: Remotes,
    /// The rooms of each user, sorted, with the number of the user's connections in each.
    pub(super) whereabouts: HashMap<UserId, Few<(RoomName, usize)>, RandomState>,
    /// At least as high as the version of any room that was removed.
    pub(super) floor: u64,
    /// Number of presences in all rooms.
    pub(super) presences: usize,
    /// Number of those that other nodes own.
    pub(super) remote_count: usize,
    /// The current connections of presences that were taken over, by presence.
    pub(super) successors: HashMap<ConnectionId, Few<(RoomName, ConnectionId)>, RandomState>,
    /// How often presences moved between nodes, for those that have moved.
    pub(super) generations: HashMap<(RoomName, ConnectionId), u32, RandomState>,
    /// The latest time seen; a clock that steps back is held here.
    pub(super) latest: Moment,
}

impl Default for Rooms {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Rooms {
    /// No rooms, in a new epoch.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            epoch: Epoch::new(),
            limits,
            rooms: HashMap::default(),
            names: BTreeSet::new(),
            connections: LinkedHashMap::with_hasher(RandomState::new()),
            remotes: Remotes::default(),
            whereabouts: HashMap::default(),
            successors: HashMap::default(),
            generations: HashMap::default(),
            floor: 0,
            presences: 0,
            remote_count: 0,
            latest: Moment { monotonic: 0, wall: 0 },
        }
    }

    /// Releases memory that was needed for more presences than there are now.
    pub(crate) fn shrink(&mut self) {
        self.rooms.shrink();
        self.connections.shrink();
        self.whereabouts.shrink();
        self.generations.shrink();
        self.successors.shrink();
    }

    /// Adds the connection to the room; counts as activity.
    ///
    /// For a connection that is a member already nothing changes if user and info are equal,
    /// otherwise its presence is updated in place. A connection whose presence in the room was
    /// [taken over](Self::take_over) is not added: nothing happens.
    ///
    /// # Errors
    ///
    /// [`LimitReached`]; then nothing has changed.
    pub fn join(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
        user: Option<UserId>,
        info: Info,
        now: Moment,
    ) -> Result<Option<Diff>, LimitReached> {
        let known = self.connections.get(&connection);
        if let Some(membership) = known.and_then(|known| known.membership(room)).cloned() {
            self.touch(connection, Activity::Join, now);
            return Ok(self.change(connection, membership, user, info, now));
        }
        if self.is_held_by_another(room, connection) {
            return Ok(None);
        }
        self.check_rooms(known)?;
        self.has_place(room)?;
        let now = self.hold(now);
        let mut diff = None;
        let time = self.update_time(room, user.as_ref(), connection, now);
        let (joined_at, updated_at) = (utc(time), utc(time));
        let presence = Presence { connection, user: user.clone(), info, joined_at, updated_at };
        let joined = self.enter(room, presence, &mut diff);
        let membership =
            Membership { room: room.clone(), founder: None, user, joined_at: time, joined };
        self.put_membership(connection, connection, membership, now);
        Ok(diff)
    }

    /// Makes the connection the current one of a presence that this node owns, in this room only.
    /// The room does not change; counts as activity of the new connection.
    ///
    /// Returns the connection that was current before; `None`, and nothing happens, if this node
    /// does not own the presence or the connection is a member already.
    ///
    /// # Errors
    ///
    /// [`LimitReached::TooManyRooms`]; then nothing has changed.
    pub fn take_over(
        &mut self,
        room: &RoomName,
        presence: ConnectionId,
        connection: ConnectionId,
        now: Moment,
    ) -> Result<Option<ConnectionId>, LimitReached> {
        if self.presence_of(room, connection).is_some() {
            return Ok(None);
        }
        let Some(before) = self.current_connection(room, presence) else { return Ok(None) };
        self.check_rooms(self.connections.get(&connection))?;
        let now = self.hold(now);
        let Some((membership, _)) = self.take_membership(room, before) else { return Ok(None) };
        self.forget_successor(&membership);
        self.put_membership(connection, presence, membership, now);
        Ok(Some(before))
    }

    /// Removes the connection from the room.
    pub fn leave(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
        cause: Cause,
    ) -> Option<Diff> {
        let (membership, last) = self.take_membership(room, connection)?;
        let mut diff = None;
        self.end(connection, membership, last, cause, &mut diff);
        diff
    }

    /// Removes the connection from all its rooms: one diff for each.
    pub fn leave_all(&mut self, connection: ConnectionId, cause: Cause) -> Vec<Diff> {
        let Some(known) = self.connections.remove(&connection) else { return Vec::new() };
        let mut diffs = Vec::with_capacity(known.memberships.len());
        for membership in known.memberships.into_vec() {
            let mut diff = None;
            self.end(connection, membership, known.last, cause, &mut diff);
            diffs.extend(diff);
        }
        diffs
    }

    /// Records activity of the connection in all its rooms; O(1). Returns `false` if it is in no
    /// room, or has ended: a touch never brings a connection back.
    pub fn touch(&mut self, connection: ConnectionId, activity: Activity, now: Moment) -> bool {
        let now = self.hold(now);
        // Frames that were in flight when the connection ended must not make it look alive.
        if self.has_ended(connection) && !matches!(activity, Activity::Join | Activity::Disconnect)
        {
            return false;
        }
        let known = self.connections.to_back(&connection);
        known.map(|known| known.last = LastActivity::new(now, activity)).is_some()
    }

    /// Removes every connection that has been silent for longer than `age`: one diff for each room
    /// names all that left it. O(number removed).
    pub fn prune(&mut self, now: Moment, age: Duration) -> Vec<Diff> {
        let (now, age) = (self.hold(now), micros(age));
        let mut diffs: Vec<Option<Diff>> = Vec::new();
        let mut indices: HashMap<RoomName, usize, RandomState> = HashMap::default();
        while let Some((_, oldest)) = self.connections.front() {
            if now.monotonic.saturating_sub(oldest.last.at()) <= age {
                break;
            }
            let Some((connection, silent)) = self.connections.pop_front() else { break };
            for membership in silent.memberships.into_vec() {
                let index = *indices.entry(membership.room.clone()).or_insert(diffs.len());
                if index == diffs.len() {
                    diffs.push(None);
                }
                self.end(connection, membership, silent.last, Cause::Expired, &mut diffs[index]);
            }
        }
        diffs.into_iter().flatten().collect()
    }

    /// Removes every presence of the room that this node owns.
    pub fn close_room(&mut self, room: &RoomName, cause: Cause) -> Option<Diff> {
        let presences: Vec<_> = self.rooms.get(room)?.connections().collect();
        self.leave_together(room, &presences, cause)
    }

    /// Removes those of the presences that this node owns from the room, in one diff.
    pub fn leave_together(
        &mut self,
        room: &RoomName,
        presences: &[ConnectionId],
        cause: Cause,
    ) -> Option<Diff> {
        let mut diff = None;
        for &presence in presences {
            let Some(connection) = self.current_connection(room, presence) else { continue };
            if let Some((membership, last)) = self.take_membership(room, connection) {
                self.end(connection, membership, last, cause, &mut diff);
            }
        }
        diff
    }

    /// Checks that a connection may join one more room.
    pub(super) fn check_rooms(&self, known: Option<&LiveConnection>) -> Result<(), LimitReached> {
        let limit = self.limits.rooms_per_connection;
        let is_within = known.map_or(0, |known| known.memberships.len()) < limit;
        if is_within { Ok(()) } else { Err(LimitReached::TooManyRooms { limit }) }
    }

    /// Checks that the room has space for one more connection.
    ///
    /// # Errors
    ///
    /// [`LimitReached::RoomFull`].
    pub fn has_place(&self, room: &RoomName) -> Result<(), LimitReached> {
        match self.limits.room_size {
            Some(limit) if self.occupancy(room).connections >= limit => {
                Err(LimitReached::RoomFull { limit })
            }
            _ => Ok(()),
        }
    }

    /// Ends a membership that was removed from its connection already, and adds that to the room's diff.
    fn end(
        &mut self,
        connection: ConnectionId,
        membership: Membership,
        last: LastActivity,
        cause: Cause,
        diff: &mut Option<Diff>,
    ) {
        let presence = membership.presence(connection);
        self.forget_generation(&membership.room, presence);
        self.forget_successor(&membership);
        let Membership { room, user, joined_at, joined: joined_version, .. } = membership;
        let (last_seen, activity) = (last.utc(), last.activity());
        // The room has the info.
        let (info, joined_at) = (Info::EMPTY, utc(joined_at));
        let (connection_id, updated_at) = (presence, joined_at);
        let presence = Presence { connection: connection_id, user, info, joined_at, updated_at };
        let left = Left { presence, connection, cause, last_seen, activity, joined_version };
        self.exit(&room, left, diff);
    }

    pub(super) fn hold(&mut self, now: Moment) -> Moment {
        self.latest = self.latest.max(now);
        self.latest
    }
}
