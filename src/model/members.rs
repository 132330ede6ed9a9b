//! Adding, updating and removing one presence: what all operations on rooms consist of.

use std::collections::hash_map::Entry;

use super::{Diff, Left, Offline, Presence, RoomName, Rooms, Snapshot, Update, UserId};

impl Rooms {
    /// Adds a presence, and notes that in the diff of its room. Returns the version of the room
    /// then.
    pub(super) fn enter(
        &mut self,
        room: &RoomName,
        presence: Presence,
        diff: &mut Option<Diff>,
    ) -> u64 {
        let online = presence.user.as_ref().is_some_and(|user| self.arrives(room, user));
        let (epoch, floor) = (self.epoch, self.floor);
        let state = match self.rooms.entry(room.clone()) {
            Entry::Occupied(state) => state.into_mut(),
            Entry::Vacant(new) => {
                self.names.insert(room.clone());
                new.insert(Snapshot::empty(room.clone(), epoch, floor))
            }
        };
        state.insert((&presence).into(), presence.info.clone(), online);
        self.presences += 1;
        let diff = diff.get_or_insert_with(|| Diff::new(room.clone(), state.next_version()));
        diff.online.extend(presence.user.clone().filter(|_| online));
        diff.joins.push(presence);
        diff.version
    }

    /// Removes a presence, and notes that in the diff of its room; its info is taken from the room.
    pub(super) fn exit(&mut self, room: &RoomName, mut left: Left, diff: &mut Option<Diff>) {
        let presence = &mut left.presence;
        let offline = presence.user.as_ref().is_some_and(|user| self.departs(room, user));
        let Some(state) = self.rooms.get_mut(room) else { return };
        presence.info = state.remove(&(&*presence).into(), offline).unwrap_or_default();
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
        let leaves = before.user.as_ref().filter(|_| !same);
        let offline = leaves.is_some_and(|user| self.departs(room, user));
        let comes = after.user.as_ref().filter(|_| !same);
        let online = comes.is_some_and(|user| self.arrives(room, user));
        let Some(state) = self.rooms.get_mut(room) else { return };
        let diff = diff.get_or_insert_with(|| Diff::new(room.clone(), state.next_version()));
        if same {
            state.set_info(after.into(), after.info.clone());
        } else {
            state.remove(&before.into(), offline);
            state.insert(after.into(), after.info.clone(), online);
        }
        diff.online.extend(after.user.clone().filter(|_| online));
        let gone = before.user.clone().filter(|_| offline);
        diff.offline.extend(gone.map(|user| Offline { user, cause: super::Cause::Left }));
        diff.updates.push(update);
    }

    /// Counts one more connection of the user in the room; `true` if it is the first.
    fn arrives(&mut self, room: &RoomName, user: &UserId) -> bool {
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
    fn departs(&mut self, room: &RoomName, user: &UserId) -> bool {
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
}
