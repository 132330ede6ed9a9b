//! The connections of this node with their memberships, and what all operations on rooms consist of: adding,
//! updating and removing one presence.
//!
//! A presence keeps the id of the connection that created it: rooms, rows and the wire use it. Liveness and
//! membership belong to its current connection, which is another one after its client has reconnected.

use std::collections::hash_map::Entry;

use chrono::{DateTime, Utc};

use super::{
    Activity, Cause, ConnectionId, Diff, Left, Moment, Offline, Presence, RoomName, Rooms,
    Snapshot, Update, UserId,
    collections::Few,
    presence::utc,
    tree::{Position, Shown},
};

/// A connection's presence in one room, without the info, which is kept in the room.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    pub(super) room: RoomName,
    /// The connection that created the presence, if it was another one: boxed, as few need the space.
    pub(super) founder: Option<Box<ConnectionId>>,
    pub(super) user: Option<UserId>,
    /// Microseconds since 1970.
    pub(super) joined_at: i64,
    /// The room's version when it joined.
    pub(super) joined: u64,
}

/// Time and kind of a connection's last activity; the kind is packed into the monotonic time.
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

    pub(super) fn at(self) -> u64 {
        self.monotonic >> Self::BITS
    }

    pub(super) fn utc(self) -> DateTime<Utc> {
        utc(self.wall)
    }

    pub(super) fn activity(self) -> Activity {
        let number = self.monotonic & ((1 << Self::BITS) - 1);
        Activity::ALL.iter().copied().find(|one| *one as u64 == number).unwrap_or_default()
    }
}

impl Membership {
    /// The id of the presence, given its current connection.
    pub(super) fn presence(&self, connection: ConnectionId) -> ConnectionId {
        self.founder.as_deref().copied().unwrap_or(connection)
    }

    pub(super) fn place(&self, connection: ConnectionId) -> Position {
        Position::new(self.user.clone(), self.joined_at, self.presence(connection))
    }
}

impl LiveConnection {
    pub(super) fn membership(&self, room: &RoomName) -> Option<&Membership> {
        self.memberships.iter().find(|membership| membership.room == *room)
    }
}

impl Rooms {
    /// The current connection of a presence that this node holds, with its membership.
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

    /// The connection that took over the presence, if one did.
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

    /// Adds the membership of a presence to a connection, and counts as its activity.
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

    /// Removes a membership from its connection, and the connection with its last one.
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
        let shown = room.and_then(|room| room.shown(&membership.place(connection)));
        let updated_at = shown.map_or(membership.joined_at, |shown| shown.updated_at);
        Presence {
            connection: membership.presence(connection),
            user: membership.user.clone(),
            info: shown.map(|shown| shown.info.clone()).unwrap_or_default(),
            joined_at: utc(membership.joined_at),
            updated_at: utc(updated_at),
        }
    }
}

impl Rooms {
    /// Adds a presence, and notes that in the diff of its room. Returns the version of the room then.
    pub(super) fn enter(
        &mut self,
        room: &RoomName,
        presence: Presence,
        diff: &mut Option<Diff>,
    ) -> u64 {
        let online = presence.user.as_ref().is_some_and(|user| self.add_whereabouts(room, user));
        let (epoch, floor) = (self.epoch, self.floor);
        let state = match self.rooms.entry(room.clone()) {
            Entry::Occupied(state) => state.into_mut(),
            Entry::Vacant(new) => {
                self.names.insert(room.clone());
                new.insert(Snapshot::empty(room.clone(), epoch, floor))
            }
        };
        state.insert(&presence, online);
        self.presences += 1;
        let diff = diff.get_or_insert_with(|| Diff::new(room.clone(), state.next_version()));
        diff.online.extend(presence.user.clone().filter(|_| online));
        diff.joins.push(presence);
        diff.version
    }

    /// Removes a presence, and notes that in the diff of its room; what it showed is taken from the room.
    pub(super) fn exit(&mut self, room: &RoomName, mut left: Left, diff: &mut Option<Diff>) {
        let presence = &mut left.presence;
        let offline =
            presence.user.as_ref().is_some_and(|user| self.remove_whereabouts(room, user));
        let Some(state) = self.rooms.get_mut(room) else { return };
        if let Some(Shown { info, updated_at }) = state.remove(&(&*presence).into(), offline) {
            (presence.info, presence.updated_at) = (info, utc(updated_at));
        }
        self.presences -= 1;
        let diff = diff.get_or_insert_with(|| Diff::new(room.clone(), state.next_version()));
        if state.is_empty() {
            self.floor = self.floor.max(state.version());
            self.rooms.remove(room);
            self.names.remove(room);
        }
        let (user, cause) = (presence.user.clone().filter(|_| offline), left.cause);
        diff.offline.extend(user.map(|user| Offline { user, cause }));
        diff.leaves.push(left);
    }

    /// Replaces user or info of a presence, and notes that in the diff of its room.
    pub(super) fn exchange(&mut self, room: &RoomName, update: Update, diff: &mut Option<Diff>) {
        let Update { before, after } = &update;
        if before == after {
            return;
        }
        let same = before.user == after.user;
        let offline =
            !same && before.user.as_ref().is_some_and(|user| self.remove_whereabouts(room, user));
        let online =
            !same && after.user.as_ref().is_some_and(|user| self.add_whereabouts(room, user));
        let Some(state) = self.rooms.get_mut(room) else { return };
        let diff = diff.get_or_insert_with(|| Diff::new(room.clone(), state.next_version()));
        if same {
            state.update(after);
        } else {
            state.remove(&before.into(), offline);
            state.insert(after, online);
        }
        diff.online.extend(after.user.clone().filter(|_| online));
        let left = before.user.clone().filter(|_| offline);
        diff.offline.extend(left.map(|user| Offline { user, cause: Cause::Left }));
        diff.updates.push(update);
    }

    /// Counts one more connection of the user in the room; `true` if it is the first.
    fn add_whereabouts(&mut self, room: &RoomName, user: &UserId) -> bool {
        let rooms = self.whereabouts.entry(user.clone()).or_default();
        match rooms.binary_search_by(|(known, _)| known.cmp(room)) {
            Ok(index) => {
                rooms[index].1 += 1;
                false
            }
            Err(index) => {
                rooms.insert(index, (room.clone(), 1));
                true
            }
        }
    }

    /// Counts one connection of the user in the room less; `true` if it was the last.
    fn remove_whereabouts(&mut self, room: &RoomName, user: &UserId) -> bool {
        let Entry::Occupied(mut rooms) = self.whereabouts.entry(user.clone()) else { return false };
        let Ok(index) = rooms.get().binary_search_by(|(known, _)| known.cmp(room)) else {
            return false;
        };
        let count = &mut rooms.get_mut()[index].1;
        *count -= 1;
        if *count > 0 {
            return false;
        }
        rooms.get_mut().remove(index);
        if rooms.get().is_empty() {
            rooms.remove();
        }
        true
    }

    /// Keeps the presence on this node though another node claims it with this generation. Returns whether the
    /// claim would have won.
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

    pub(super) fn forget_generation(&mut self, room: &RoomName, connection: ConnectionId) {
        if !self.generations.is_empty() {
            self.generations.remove(&(room.clone(), connection));
        }
    }

    /// Two changes, as if presences of this node had left with [`Cause::NodeLost`] and rejoined, which is what
    /// the other nodes saw. Members and their order stay.
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
            let (last_seen, activity) = (last.utc(), last.activity());
            let cause = Cause::NodeLost;
            let one = Left { presence, connection, cause, last_seen, activity, joined_version };
            left.leaves.push(one);
        }
        Some([left, back])
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
