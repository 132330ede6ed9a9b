//! One room at one version.

use super::{
    ConnectionId, Diff, Epoch, Info, Member, Occupancy, Presence, RoomName, UserId,
    time::utc,
    tree::{Place, Tree},
};

/// A room at one version: its presences and their number.
///
/// Taking or cloning a snapshot copies a few pointers whatever the size of the room, because the
/// presences are in a persistent map. A snapshot never changes under its owner.
///
/// A snapshot and the diffs after it leave no gap: see [`apply`](Self::apply).
#[derive(Clone, Debug)]
pub struct Snapshot {
    room: RoomName,
    epoch: Epoch,
    version: u64,
    users: usize,
    anonymous: usize,
    members: Tree,
}

impl Snapshot {
    /// The room without members.
    #[must_use]
    pub fn empty(room: RoomName, epoch: Epoch, version: u64) -> Self {
        let members = Tree::default();
        Self { room, epoch, version, users: 0, anonymous: 0, members }
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
        let connections = self.members.len();
        Occupancy { connections, users: self.users, anonymous: self.anonymous }
    }

    /// The number of connections without a user; O(1).
    #[must_use]
    pub fn anonymous_count(&self) -> usize {
        self.anonymous
    }

    /// Whether the room has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.len() == 0
    }

    /// The distinct users in the room, ordered by id.
    pub fn users(&self) -> impl Iterator<Item = Member> + '_ {
        let mut places = self.members.iter_from(|place| place.user.is_some()).peekable();
        std::iter::from_fn(move || {
            let (place, mut info) = places.next()?;
            let mut connections = 1;
            while let Some((_, newer)) = places.next_if(|(next, _)| next.user == place.user) {
                info = newer;
                connections += 1;
            }
            Some(Member { id: place.user.clone()?, info: info.clone(), connections })
        })
    }

    /// The user's entry, if the user is in the room; O(connections of the user).
    #[must_use]
    pub fn user(&self, user: &UserId) -> Option<Member> {
        let places = self.of(Some(user)).enumerate();
        let (index, (place, info)) = places.last()?;
        let (id, info) = (place.user.clone()?, info.clone());
        Some(Member { id, info, connections: index + 1 })
    }

    /// All presences of the room: first the anonymous, then by user; each group in order of
    /// joining.
    pub fn presences(&self) -> impl Iterator<Item = Presence> + '_ {
        self.members.iter().map(presence)
    }

    pub(crate) fn presences_after(&self, after: &Place) -> impl Iterator<Item = Presence> + '_ {
        self.members.iter_from(move |place| place > after).map(presence)
    }

    /// The connections in the room, in the order of [`presences`](Self::presences).
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.members.iter().map(|(place, _)| place.connection)
    }

    /// Applies a diff. Diffs have to be applied in the order of their versions; one that the
    /// snapshot contains already changes nothing.
    pub fn apply(&mut self, diff: &Diff) {
        if diff.version <= self.version {
            return;
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
        self.version = diff.version;
    }

    /// The presence at this place.
    pub(crate) fn presence(&self, place: &Place) -> Option<Presence> {
        self.members.get(place).map(presence)
    }

    /// The info of the presence at this place.
    pub(super) fn info(&self, place: &Place) -> Option<&Info> {
        self.members.get(place).map(|(_, info)| info)
    }

    pub(super) fn connections_of<'a>(
        &'a self,
        user: &'a UserId,
    ) -> impl Iterator<Item = ConnectionId> + 'a {
        self.of(Some(user)).map(|(place, _)| place.connection)
    }

    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Adds a presence; `online` if its user was not in the room before.
    pub(super) fn insert(&mut self, place: Place, info: Info, online: bool) {
        self.users += usize::from(online);
        self.anonymous += usize::from(place.user.is_none());
        self.members.insert(place, info);
    }

    /// Replaces the info of a presence.
    pub(super) fn set_info(&mut self, place: Place, info: Info) {
        self.members.insert(place, info);
    }

    /// Removes a presence and returns its info; `offline` if its user has no other presence in the
    /// room.
    pub(super) fn remove(&mut self, place: &Place, offline: bool) -> Option<Info> {
        self.users -= usize::from(offline);
        self.anonymous -= usize::from(place.user.is_none());
        self.members.remove(place)
    }

    fn fold_in(&mut self, presence: &Presence) {
        let place = Place::from(presence);
        let online = place.user.is_some() && !self.is_online(&place);
        self.insert(place, presence.info.clone(), online);
    }

    fn fold_out(&mut self, presence: &Presence) {
        let place = Place::from(presence);
        if self.members.get(&place).is_some() {
            self.remove(&place, false);
            self.users -= usize::from(place.user.is_some() && !self.is_online(&place));
        }
    }

    fn is_online(&self, place: &Place) -> bool {
        self.of(place.user.as_ref()).next().is_some()
    }

    fn of<'a>(&'a self, user: Option<&'a UserId>) -> impl Iterator<Item = (&'a Place, &'a Info)> {
        let first = Place::new(user.cloned(), i64::MIN, ConnectionId::from_u128(0));
        let places = self.members.iter_from(|place| *place >= first);
        places.take_while(move |(place, _)| place.user.as_ref() == user)
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.room == other.room
            && self.epoch == other.epoch
            && self.version == other.version
            && self.occupancy() == other.occupancy()
            && self.members == other.members
    }
}

impl Eq for Snapshot {}

fn presence((place, info): (&Place, &Info)) -> Presence {
    Presence {
        connection: place.connection,
        user: place.user.clone(),
        info: info.clone(),
        joined_at: utc(place.joined_at),
    }
}
