//! One room at one version, and the diffs that lead to the next ones.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    Activity, Cause, ConnectionId, Epoch, Member, Occupancy, Presence, RoomName, UserId,
    encoding::time,
    presence::utc,
    tree::{Position, Shown, Tree},
};

/// A room at one version: its presences and their number.
///
/// Taking or cloning a snapshot copies a few pointers whatever the size of the room, because the
/// presences are in a persistent map. A snapshot never changes under its owner.
///
/// A snapshot and the diffs after it leave no gap: see [`apply`](Self::apply).
///
/// Who has no [`Rights::members`](super::Rights::members) gets one that shows no members, but counts them.
///
/// As JSON it has `channel_name`, `epoch`, `version` and `presences`, in the order of
/// [`presences`](Self::presences). One that shows no members has its counts in `occupancy`. For clients, who are
/// shown users, there is [`to_json`](Self::to_json).
#[derive(Clone, Debug)]
pub struct Snapshot {
    room: RoomName,
    epoch: Epoch,
    version: u64,
    users: usize,
    anonymous: usize,
    members: Tree,
    /// The counts, where no members are shown.
    counts: Option<Occupancy>,
}

impl Snapshot {
    /// The room without members.
    #[must_use]
    pub fn empty(room: RoomName, epoch: Epoch, version: u64) -> Self {
        let members = Tree::default();
        Self { room, epoch, version, users: 0, anonymous: 0, members, counts: None }
    }

    /// The name of the room.
    #[must_use]
    pub fn room(&self) -> &RoomName {
        &self.room
    }

    /// The incarnation of the registry within which [`version`](Self::version) counts.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The version, which rises by one with every change of the room.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The number of connections and users in the room; O(1).
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let Self { users, anonymous, .. } = *self;
        let connections = self.members.len();
        self.counts.unwrap_or(Occupancy { connections, users, anonymous })
    }

    /// The number of connections without a user; O(1).
    #[must_use]
    pub fn anonymous_count(&self) -> usize {
        self.occupancy().anonymous
    }

    /// Whether the room has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.occupancy().connections == 0
    }

    /// The room as somebody sees it who may not see its [members](super::Rights::members): the counts alone.
    #[must_use]
    pub(crate) fn without_members(&self) -> Self {
        let counts = Some(self.occupancy());
        Self { counts, ..Self::empty(self.room.clone(), self.epoch, self.version) }
    }

    /// The counts, where no members are shown.
    pub(super) fn counts(&self) -> Option<Occupancy> {
        self.counts
    }

    /// The room that this shows nobody of, with counts; `None` if it shows somebody, or if they cannot be.
    pub(super) fn counting(self, counts: Occupancy) -> Option<Self> {
        let of_users = counts.connections.checked_sub(counts.anonymous)?;
        let can_be = (of_users.min(1)..=of_users).contains(&counts.users);
        (self.members.len() == 0 && can_be).then_some(Self { counts: Some(counts), ..self })
    }

    /// The distinct users in the room, ordered by id.
    pub fn users(&self) -> impl Iterator<Item = Member> + '_ {
        let mut positions = self.members.iter_from(|position| position.user.is_some()).peekable();
        std::iter::from_fn(move || {
            let mut newest = positions.next()?;
            let mut connections = 1;
            while let Some(other) = positions.next_if(|(next, _)| next.user == newest.0.user) {
                newest = later(newest, other);
                connections += 1;
            }
            let (position, shown) = newest;
            Some(Member { id: position.user.clone()?, info: shown.info.clone(), connections })
        })
    }

    /// The user's entry, if the user is in the room; O(connections of the user).
    #[must_use]
    pub fn user(&self, user: &UserId) -> Option<Member> {
        let (position, shown) = self.of(Some(user)).reduce(later)?;
        let (id, info) = (position.user.clone()?, shown.info.clone());
        Some(Member { id, info, connections: self.of(Some(user)).count() })
    }

    /// All presences of the room: first the anonymous, then by user; each group in order of joining.
    pub fn presences(&self) -> impl Iterator<Item = Presence> + '_ {
        self.members.iter().map(presence)
    }

    pub(crate) fn presences_after(&self, after: &Position) -> impl Iterator<Item = Presence> + '_ {
        self.members.iter_from(move |position| position > after).map(presence)
    }

    /// The connections in the room, in the order of [`presences`](Self::presences).
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.members.iter().map(|(position, _)| position.connection)
    }

    /// Applies a diff. Diffs have to be applied in the order of their versions; one that the
    /// snapshot contains already changes nothing. A snapshot that shows no members goes on showing none, and
    /// counts those who come and go.
    pub fn apply(&mut self, diff: &Diff) {
        if diff.version <= self.version {
            return;
        }
        self.version = diff.version;
        if let Some(counts) = &mut self.counts {
            return counts.apply(diff);
        }
        for leave in &diff.leaves {
            self.fold_out(&leave.presence);
        }
        for update in &diff.updates {
            self.fold_out(&update.before);
            self.fold_in(&update.after);
        }
        for join in &diff.joins {
            self.fold_in(join);
        }
    }

    /// When the user's presences other than this one were last updated, in microseconds since 1970, with the
    /// one that was updated last.
    pub(super) fn last_update(
        &self,
        user: &UserId,
        except: ConnectionId,
    ) -> Option<(i64, ConnectionId)> {
        let others = self.of(Some(user)).filter(|(one, _)| one.connection != except);
        others.map(|(one, shown)| (shown.updated_at, one.connection)).max()
    }

    pub(crate) fn presence(&self, position: &Position) -> Option<Presence> {
        self.members.get(position).map(presence)
    }

    pub(super) fn shown(&self, position: &Position) -> Option<&Shown> {
        self.members.get(position).map(|(_, shown)| shown)
    }

    pub(crate) fn connections_of<'a>(
        &'a self,
        user: &'a UserId,
    ) -> impl Iterator<Item = ConnectionId> + 'a {
        self.of(Some(user)).map(|(position, _)| position.connection)
    }

    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Adds a presence; `online` if its user was not in the room before.
    pub(super) fn insert(&mut self, presence: &Presence, online: bool) {
        self.users += usize::from(online);
        self.anonymous += usize::from(presence.user.is_none());
        self.update(presence);
    }

    pub(super) fn update(&mut self, presence: &Presence) {
        self.members.insert(presence.into(), presence.into());
    }

    /// Removes a presence and returns what it showed; `offline` if its user has no other presence in the room.
    pub(super) fn remove(&mut self, position: &Position, offline: bool) -> Option<Shown> {
        self.users -= usize::from(offline);
        self.anonymous -= usize::from(position.user.is_none());
        self.members.remove(position)
    }

    pub(super) fn fold_in(&mut self, presence: &Presence) {
        let position = Position::from(presence);
        let online = position.user.is_some() && !self.is_online(&position);
        self.insert(presence, online);
    }

    fn fold_out(&mut self, presence: &Presence) {
        let position = Position::from(presence);
        if self.members.get(&position).is_some() {
            self.remove(&position, false);
            self.users -= usize::from(position.user.is_some() && !self.is_online(&position));
        }
    }

    fn is_online(&self, position: &Position) -> bool {
        self.of(position.user.as_ref()).next().is_some()
    }

    fn of<'a>(
        &'a self,
        user: Option<&'a UserId>,
    ) -> impl Iterator<Item = (&'a Position, &'a Shown)> {
        let first = Position::new(user.cloned(), i64::MIN, ConnectionId::from_u128(0));
        let positions = self.members.iter_from(|position| *position >= first);
        positions.take_while(move |(position, _)| position.user.as_ref() == user)
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.room == other.room
            && self.epoch == other.epoch
            && self.version == other.version
            && self.counts == other.counts
            && self.occupancy() == other.occupancy()
            && self.members == other.members
    }
}

impl Eq for Snapshot {}

impl Occupancy {
    /// Counts who comes and goes with a diff. One that is not of the room may make the counts wrong, and no more.
    fn apply(&mut self, diff: &Diff) {
        let (joins, updates) = (diff.joins.iter(), diff.updates.iter());
        let before = diff.leaves.iter().map(|leave| &leave.presence);
        let before = before.chain(updates.clone().map(|update| &update.before));
        let after = joins.chain(updates.map(|update| &update.after));
        let anonymous = |presence: &&Presence| presence.user.is_none();
        let change = |count: &mut usize, more: usize, fewer: usize| {
            *count = count.saturating_add(more).saturating_sub(fewer);
        };
        let (came, went) = (after.filter(anonymous).count(), before.filter(anonymous).count());
        change(&mut self.anonymous, came, went);
        change(&mut self.connections, diff.joins.len(), diff.leaves.len());
        change(&mut self.users, diff.online.len(), diff.offline.len());
    }
}

fn presence((position, shown): (&Position, &Shown)) -> Presence {
    Presence {
        connection: position.connection,
        user: position.user.clone(),
        info: shown.info.clone(),
        joined_at: utc(position.joined_at),
        updated_at: utc(shown.updated_at),
    }
}

/// The presence that was updated last.
fn later<'a>(
    one: (&'a Position, &'a Shown),
    other: (&'a Position, &'a Shown),
) -> (&'a Position, &'a Shown) {
    let key = |(position, shown): (&Position, &Shown)| (shown.updated_at, position.connection);
    if key(other) > key(one) { other } else { one }
}

/// One change of one room, never empty: the connections that joined, left or changed, and the users
/// that came online or went offline with them.
///
/// A connection has exactly one join and one leave per membership, and a user alternates between
/// online and offline, so no observer has to count connections.
///
/// As JSON it has the fields below, the room as `channel_name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// The name of the room.
    #[serde(rename = "channel_name")]
    pub room: RoomName,
    /// The version of the room after the change: one above the version before.
    pub version: u64,
    /// Presences that were added.
    pub joins: Vec<Presence>,
    /// Presences that were removed, each with its cause.
    pub leaves: Vec<Left>,
    /// Presences whose user or info has changed.
    pub updates: Vec<Update>,
    /// Users whose first connection in the room was added.
    pub online: Vec<UserId>,
    /// Users whose last connection in the room was removed.
    pub offline: Vec<Offline>,
}

/// A presence that has ended; as JSON the fields of the [`Presence`] are its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The presence as it was.
    #[serde(flatten)]
    pub presence: Presence,
    /// Its current connection: differs from [`Presence::connection`] if the presence was [taken
    /// over](super::Rooms::take_over) on this node.
    pub connection: ConnectionId,
    /// Why it ended.
    pub cause: Cause,
    /// The time of its connection's last activity.
    #[serde(with = "time")]
    pub last_seen: DateTime<Utc>,
    /// The kind of that activity.
    pub activity: Activity,
    /// The version of the room with which it joined.
    pub joined_version: u64,
}

/// A presence whose user or info has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The presence as it was.
    pub before: Presence,
    /// The presence as it is now.
    pub after: Presence,
}

/// A user whose last connection in a room was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offline {
    /// The user.
    pub user: UserId,
    /// Why the last presence ended; [`Cause::Left`] if its connection stays as another user.
    pub cause: Cause,
}

impl Diff {
    pub(super) fn new(room: RoomName, version: u64) -> Self {
        Self {
            room,
            version,
            joins: Vec::new(),
            leaves: Vec::new(),
            updates: Vec::new(),
            online: Vec::new(),
            offline: Vec::new(),
        }
    }

    /// Whether the change is one of many presences at once: a prune, or the end of a room, a node
    /// or the registry, even if it removed only one.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        let at_once = |cause| {
            matches!(cause, Cause::Expired | Cause::RoomClosed | Cause::NodeLost | Cause::Shutdown)
        };
        self.joins.len() + self.leaves.len() + self.updates.len() > 1
            || self.leaves.iter().any(|leave| at_once(leave.cause))
    }

    /// The presence that joined; `None` in a bulk change.
    #[must_use]
    pub fn added(&self) -> Option<&Presence> {
        self.joins.first().filter(|_| !self.is_bulk())
    }

    /// The presence that left; `None` in a bulk change.
    #[must_use]
    pub fn removed(&self) -> Option<&Presence> {
        self.leaves.first().map(|leave| &leave.presence).filter(|_| !self.is_bulk())
    }

    /// All connections that the change is about.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        let joined = self.joins.iter().map(|presence| presence.connection);
        let left = self.leaves.iter().map(|leave| leave.presence.connection);
        let updated = self.updates.iter().map(|update| update.after.connection);
        joined.chain(left).chain(updated)
    }

    /// All users whose entry in the member list may have changed, some of them twice.
    pub(crate) fn users(&self) -> impl Iterator<Item = &UserId> + '_ {
        let joined = self.joins.iter().map(|presence| &presence.user);
        let left = self.leaves.iter().map(|leave| &leave.presence.user);
        let updated = self.updates.iter().flat_map(|u| [&u.before.user, &u.after.user]);
        joined.chain(left).chain(updated).flatten()
    }
}
