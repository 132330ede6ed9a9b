//! Updates of presences: whose info stands for a user is decided by the time of the last one.

use chrono::DateTime;

use super::{
    ConnectionId, Diff, Info, Moment, Presence, RoomName, Rooms, Update, UserId,
    membership::Membership, presence::utc,
};

impl Rooms {
    /// Replaces the info of the connection in the room. It stands for the user from then on: an update with the
    /// same info is a change where another presence stood.
    pub fn update_info(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
        info: Info,
        now: Moment,
    ) -> Option<Diff> {
        let mut diff = None;
        let presence = self.presence_of(room, connection)?;
        self.update_into(room, presence, &info, true, now, &mut diff);
        diff
    }

    /// Replaces the info of all presences of the user that this node owns: one diff for each room in which that
    /// is a change.
    pub fn update_user(&mut self, user: &UserId, info: &Info, now: Moment) -> Vec<Diff> {
        let mut diffs = Vec::new();
        for (room, _) in self.where_is(user) {
            let presences: Vec<_> =
                self.room(&room).into_iter().flat_map(|room| room.connections_of(user)).collect();
            let mut diff = None;
            for presence in presences {
                self.update_into(&room, presence, info, false, now, &mut diff);
            }
            diffs.extend(diff);
        }
        diffs
    }

    /// Replaces the info of a presence that this node owns; the same info only if it is `to_stand` for the user.
    fn update_into(
        &mut self,
        room: &RoomName,
        presence: ConnectionId,
        info: &Info,
        to_stand: bool,
        now: Moment,
        diff: &mut Option<Diff>,
    ) {
        let Some((connection, _, membership)) = self.held(room, presence) else { return };
        let before = self.describe(connection, membership);
        let now = self.hold(now);
        if before.info == *info && (!to_stand || self.stands(room, &before)) {
            return;
        }
        let time = self.update_time(room, before.user.as_ref(), presence, now);
        let after = Presence { info: info.clone(), updated_at: utc(time), ..before.clone() };
        self.exchange(room, Update { before, after }, diff);
    }

    /// Replaces the info of the connection in the room if it differs.
    pub(crate) fn replace_info(
        &mut self,
        room: &RoomName,
        connection: ConnectionId,
        info: &Info,
        now: Moment,
    ) -> Option<Diff> {
        let mut diff = None;
        let presence = self.presence_of(room, connection)?;
        self.update_into(room, presence, info, false, now, &mut diff);
        diff
    }

    /// Replaces user and info of a presence if they differ; its position by joining time stays.
    pub(super) fn change(
        &mut self,
        connection: ConnectionId,
        membership: Membership,
        user: Option<UserId>,
        info: Info,
        now: Moment,
    ) -> Option<Diff> {
        let before = self.describe(connection, &membership);
        let now = self.hold(now);
        if (&before.user, &before.info) == (&user, &info) {
            return None;
        }
        let presence = before.connection;
        let updated_at = utc(self.update_time(&membership.room, user.as_ref(), presence, now));
        let known = self.connections.get_mut(&connection)?;
        let remembered =
            known.memberships.iter_mut().find(|other| other.room == membership.room)?;
        remembered.user.clone_from(&user);
        let (connection, joined_at) = (before.connection, before.joined_at);
        let after = Presence { connection, user, info, joined_at, updated_at };
        let mut diff = None;
        self.exchange(&membership.room, Update { before, after }, &mut diff);
        diff
    }

    /// Whether the info of a presence stands for its user; that of an anonymous one has nobody to stand for.
    fn stands(&self, room: &RoomName, presence: &Presence) -> bool {
        let (state, user) = (self.rooms.get(room), presence.user.as_ref());
        let last =
            state.zip(user).and_then(|(state, user)| state.last_update(user, presence.connection));
        let own = (presence.updated_at.timestamp_micros(), presence.connection);
        last.is_none_or(|last| last < own)
    }

    /// The time of a join or an update, after those of all other presences of the user that are known: the info
    /// of the last one stands, although the clock may have been set back, or that of another node is ahead.
    pub(super) fn update_time(
        &self,
        room: &RoomName,
        user: Option<&UserId>,
        presence: ConnectionId,
        now: Moment,
    ) -> i64 {
        let state = self.rooms.get(room);
        let last = state.zip(user).and_then(|(state, user)| state.last_update(user, presence));
        let ahead = last.filter(|last| *last > (now.wall, presence));
        let after = ahead.and_then(|(time, _)| time.checked_add(1));
        // A row may have any time.
        let after = after.filter(|after| DateTime::from_timestamp_micros(*after).is_some());
        after.unwrap_or(now.wall)
    }
}
