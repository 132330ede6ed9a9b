//! All rooms of a registry, and the operations on them.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use ahash::RandomState;
use hashlink::LinkedHashMap;

use super::{
    Activity, Cause, ConnectionId, Diff, Epoch, Info, Left, Moment, Presence, RoomName, Snapshot,
    Update, UserId,
    few::Few,
    membership::{LastActivity, LiveConnection, Membership},
    remote::Remotes,
    shrink::Shrink,
    time::{micros, utc},
};

/// How many of each a [`Rooms`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rooms that one connection may be in. Default 128.
    pub rooms_per_connection: usize,
    /// Connections that one room may hold. Default none.
    pub room_size: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rooms_per_connection: 128, room_size: None }
    }
}

/// A join that a limit forbids; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitReached {
    /// The room holds `limit` connections already. Retrying helps only after someone leaves.
    #[error("the room is full ({limit} connections)")]
    RoomFull {
        /// The limit.
        limit: usize,
    },
    /// The connection is in `limit` rooms already. It has to leave one first.
    #[error("the connection is in {limit} rooms already")]
    TooManyRooms {
        /// The limit.
        limit: usize,
    },
}

/// Rooms and who is in them: a plain value.
///
/// Every operation changes the value and returns what happened: the [`Diff`] of each room that
/// changed, nothing for a room that did not. An empty room is not kept; when it comes back, its
/// versions go on above the old ones.
///
/// A presence takes about 240 bytes besides its names and info (`cargo bench --bench memory` measures
/// it): names are shared, no map repeats a text.
///
/// A presence keeps the id of the connection that founded it. After a
/// [`take_over`](Self::take_over) another connection is behind it: sessions speak by their own
/// connection's id, rooms and diffs name the presence's, and the two are the same unless somebody took
/// over.
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
    /// The same rooms by name, for lists.
    pub(super) names: BTreeSet<RoomName>,
    /// By age: every touch moves to the back, so the silent are in front.
    pub(super) connections: LinkedHashMap<ConnectionId, LiveConnection, RandomState>,
    /// What other nodes hold.
    pub(super) remotes: Remotes,
    /// The rooms each user is in, sorted, with the number of connections in each.
    pub(super) whereabouts: HashMap<UserId, Few<(RoomName, usize)>, RandomState>,
    /// No room that went away had a higher version.
    pub(super) floor: u64,
    /// How many presences there are in all rooms.
    pub(super) presences: usize,
    /// How many of them other nodes hold.
    pub(super) remote_count: usize,
    /// The connections behind presences that others founded, by presence.
    pub(super) successors: HashMap<ConnectionId, Few<(RoomName, ConnectionId)>, RandomState>,
    /// How often presences went from one node to another, for those that did.
    pub(super) generations: HashMap<(RoomName, ConnectionId), u32, RandomState>,
    /// A clock that steps back is held here.
    pub(super) latest: Moment,
}

impl Default for Rooms {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Rooms {
    /// No rooms, in an epoch of their own.
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

    /// Gives back the space of a crowd that has gone.
    pub(crate) fn shrink(&mut self) {
        self.rooms.shrink();
        self.connections.shrink();
        self.whereabouts.shrink();
        self.generations.shrink();
        self.successors.shrink();
    }

    /// The connection enters the room; a sign of life.
    ///
    /// One that is in the room already stays what it is if user and info are the same, else its
    /// presence changes in one step. One whose presence there was [taken over](Self::take_over) does not
    /// enter: nothing happens.
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
            return Ok(self.change(connection, membership, user, info));
        }
        if self.is_held_by_another(room, connection) {
            return Ok(None);
        }
        self.check_limits(room, known.map_or(0, |known| known.memberships.len()))?;

        let now = self.hold(now);
        let mut diff = None;
        let joined_at = now.utc();
        let presence = Presence { connection, user: user.clone(), info, joined_at };
        let joined = self.enter(room, presence, &mut diff);
        let membership =
            Membership { room: room.clone(), founder: None, user, joined_at: now.wall, joined };
        self.put_membership(connection, connection, membership, now);
        Ok(diff)
    }

    /// The connection takes the place of the one behind a presence that this node holds, in this room
    /// and no other: nothing changes for the room. A sign of life of the new one.
    ///
    /// Answers whom it replaces; nobody, and nothing happens, if the presence is not here, or the
    /// connection is in the room already.
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
        self.check_rooms_of(connection)?;
        let now = self.hold(now);
        let Some((membership, _)) = self.take_membership(room, before) else { return Ok(None) };
        self.forget_successor(&membership);
        self.put_membership(connection, presence, membership, now);
        Ok(Some(before))
    }

    /// The connection goes out of the room.
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

    /// The connection goes out of all its rooms: one change for each.
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

    /// A sign of life of the connection in all its rooms; O(1). `false` if it is in none, or has ended
    /// and only joining counts: a touch never brings anybody back.
    pub fn touch(&mut self, connection: ConnectionId, activity: Activity, now: Moment) -> bool {
        let now = self.hold(now);
        // What was on its way when it ended must not make it look alive.
        if self.has_ended(connection) && !matches!(activity, Activity::Join | Activity::Disconnect)
        {
            return false;
        }
        match self.connections.to_back(&connection) {
            Some(known) => {
                known.last = LastActivity::new(now, activity);
                true
            }
            None => false,
        }
    }

    /// Replaces the info of the connection in the room.
    pub fn update_info(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
        info: Info,
    ) -> Option<Diff> {
        let membership = self.connections.get(&connection)?.membership(room)?.clone();
        let user = membership.user.clone();
        self.change(connection, membership, user, info)
    }

    /// Everybody who was silent for longer than `age` goes: one change per room, which names all;
    /// O(those who go).
    pub fn prune(&mut self, now: Moment, age: Duration) -> Vec<Diff> {
        let (now, age) = (self.hold(now), micros(age));
        let mut diffs: Vec<Option<Diff>> = Vec::new();
        let mut places: HashMap<RoomName, usize, RandomState> = HashMap::default();
        while let Some((_, oldest)) = self.connections.front() {
            if now.monotonic.saturating_sub(oldest.last.at()) <= age {
                break;
            }
            let Some((connection, silent)) = self.connections.pop_front() else { break };
            for membership in silent.memberships.into_vec() {
                let place = *places.entry(membership.room.clone()).or_insert(diffs.len());
                if place == diffs.len() {
                    diffs.push(None);
                }
                self.end(connection, membership, silent.last, Cause::Expired, &mut diffs[place]);
            }
        }
        diffs.into_iter().flatten().collect()
    }

    /// Everybody of this node who is in the room goes.
    pub fn close_room(&mut self, room: &RoomName, cause: Cause) -> Option<Diff> {
        let presences: Vec<_> = self.rooms.get(room)?.connections().collect();
        self.leave_together(room, &presences, cause)
    }

    /// The presences end in the room, as far as this node holds them, in one change.
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

    /// Whether a connection that is in so many other rooms may join this one.
    fn check_limits(&self, room: &RoomName, others: usize) -> Result<(), LimitReached> {
        self.check_rooms(others)?;
        self.has_place(room)
    }

    /// Whether a connection may be in one room more.
    pub(super) fn check_rooms_of(&self, connection: ConnectionId) -> Result<(), LimitReached> {
        self.check_rooms(
            self.connections.get(&connection).map_or(0, |known| known.memberships.len()),
        )
    }

    fn check_rooms(&self, others: usize) -> Result<(), LimitReached> {
        let limit = self.limits.rooms_per_connection;
        match others < limit {
            true => Ok(()),
            false => Err(LimitReached::TooManyRooms { limit }),
        }
    }

    /// Whether the room takes another connection.
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

    /// Gives a presence another user or info, keeping its place in time.
    fn change(
        &mut self,
        connection: ConnectionId,
        membership: Membership,
        user: Option<UserId>,
        info: Info,
    ) -> Option<Diff> {
        let before = self.describe(connection, &membership);
        let known = self.connections.get_mut(&connection)?;
        let remembered =
            known.memberships.iter_mut().find(|other| other.room == membership.room)?;
        remembered.user.clone_from(&user);
        let (connection, joined_at) = (before.connection, before.joined_at);
        let after = Presence { connection, user, info, joined_at };
        let mut diff = None;
        self.exchange(&membership.room, Update { before, after }, &mut diff);
        diff
    }

    /// Ends a membership that its connection has forgotten already, adding to the change of its room.
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
        // Its info is in the room.
        let (info, joined_at) = (Info::EMPTY, utc(joined_at));
        let presence = Presence { connection: presence, user, info, joined_at };
        let left = Left { presence, connection, cause, last_seen, activity, joined_version };
        self.exit(&room, left, diff);
    }

    pub(super) fn hold(&mut self, now: Moment) -> Moment {
        self.latest = self.latest.max(now);
        self.latest
    }
}
