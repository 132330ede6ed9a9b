//! The rooms once more, as simple as can be: a list of rows, read from end to end for every answer.

use std::collections::{BTreeMap, BTreeSet};

use actix_presence::{
    Activity, Cause, ConnectionId, Diff, Info, Left, LimitReached, Limits, Member, Moment,
    Occupancy, Offline, Presence, PresenceState, RoomName, SeenPresence, Update, UserId,
};
use chrono::{DateTime, TimeDelta, Utc};

use crate::history::Step;

const MICROSECOND: TimeDelta = TimeDelta::microseconds(1);

/// One connection in one room.
#[derive(Clone, Debug)]
pub struct Row {
    pub room: RoomName,
    pub connection: ConnectionId,
    pub user: Option<UserId>,
    pub info: Info,
    pub joined_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub last_seen: Moment,
    pub activity: Activity,
}

/// A list of rows knows no versions: those of the model are checked for themselves.
pub const UNKNOWN: u64 = 0;

#[derive(Debug)]
pub struct Naive {
    pub rows: Vec<Row>,
    /// The last version of each room that ever had one.
    pub versions: BTreeMap<RoomName, u64>,
    limits: Limits,
    /// A clock that steps back is held here.
    pub latest: Moment,
}

impl Naive {
    pub fn new(limits: Limits) -> Self {
        let latest = Moment { monotonic: 0, wall: 0 };
        Self { rows: Vec::new(), versions: BTreeMap::new(), limits, latest }
    }

    /// Takes one step, and says for each room that it changed what is different. The diffs have no
    /// version.
    pub fn take(&mut self, step: &Step, now: Moment) -> Result<Vec<Diff>, LimitReached> {
        let before = self.rows.clone();
        let cause = self.change_rows(step, now)?;
        let rooms: BTreeSet<_> = before.iter().chain(&self.rows).map(|row| &row.room).collect();
        Ok(rooms
            .into_iter()
            .filter_map(|room| difference(room, &before, &self.rows, cause))
            .collect())
    }

    /// Returns why those go who go.
    fn change_rows(&mut self, step: &Step, now: Moment) -> Result<Cause, LimitReached> {
        match step.clone() {
            Step::Join { room, connection, user, info } => {
                if let Some(index) = self.index(&room, connection) {
                    self.heard_of(connection, Activity::Join, now);
                    if (&self.rows[index].user, &self.rows[index].info) != (&user, &info) {
                        self.rows[index].user = user;
                        self.update(index, info);
                    }
                    return Ok(Cause::Left);
                }
                let limit = self.limits.rooms_per_connection;
                if self.count(|row| row.connection == connection) >= limit {
                    return Err(LimitReached::TooManyRooms { limit });
                }
                if let Some(limit) = self.limits.room_size
                    && self.count(|row| row.room == room) >= limit
                {
                    return Err(LimitReached::RoomFull { limit });
                }
                self.heard_of(connection, Activity::Join, now);
                let joined_at = self.update_time(&room, &user, connection);
                let (updated_at, last_seen) = (joined_at, self.latest);
                let activity = Activity::Join;
                self.rows.push(Row {
                    room,
                    connection,
                    user,
                    info,
                    joined_at,
                    updated_at,
                    last_seen,
                    activity,
                });
                Ok(Cause::Left)
            }
            Step::Leave { room, connection, cause } => {
                self.rows.retain(|row| row.room != room || row.connection != connection);
                Ok(cause)
            }
            Step::LeaveAll { connection, cause } => {
                self.rows.retain(|row| row.connection != connection);
                Ok(cause)
            }
            Step::Touch { connection } => {
                self.heard_of(connection, Activity::Frame, now);
                Ok(Cause::Left)
            }
            Step::UpdateInfo { room, connection, info } => {
                if let Some(index) = self.index(&room, connection) {
                    self.hold(now);
                    if self.rows[index].info != info || !self.stands(index) {
                        self.update(index, info);
                    }
                }
                Ok(Cause::Left)
            }
            Step::UpdateUser { user, info } => {
                let rows = self.rows.iter().enumerate();
                let theirs = rows.filter(|(_, row)| row.user.as_ref() == Some(&user));
                let key = |row: &Row| (row.room.clone(), row.joined_at, row.connection);
                let mut indices: Vec<_> = theirs.map(|(index, row)| (key(row), index)).collect();
                indices.sort();
                for (_, index) in indices {
                    self.hold(now);
                    if self.rows[index].info != info {
                        self.update(index, info.clone());
                    }
                }
                Ok(Cause::Left)
            }
            Step::Prune { age } => {
                self.hold(now);
                let now = self.latest.monotonic;
                let age = age.as_micros() as u64;
                self.rows.retain(|row| now - row.last_seen.monotonic <= age);
                Ok(Cause::Expired)
            }
            Step::CloseRoom { room, cause } => {
                self.rows.retain(|row| row.room != room);
                Ok(cause)
            }
            // A kick is the leaves of the user's connections, one after the other.
            Step::Kick { .. } | Step::Pass { .. } => Ok(Cause::Left),
        }
    }

    fn heard_of(&mut self, connection: ConnectionId, activity: Activity, now: Moment) {
        self.hold(now);
        for row in &mut self.rows {
            if row.connection == connection {
                (row.last_seen, row.activity) = (self.latest, activity);
            }
        }
    }

    fn update(&mut self, index: usize, info: Info) {
        let Row { room, user, connection, .. } = &self.rows[index];
        let time = self.update_time(room, user, *connection);
        (self.rows[index].info, self.rows[index].updated_at) = (info, time);
    }

    /// The rows of the user in the room, but for that of this connection.
    fn others<'a>(
        &'a self,
        room: &'a RoomName,
        user: &'a Option<UserId>,
        connection: ConnectionId,
    ) -> impl Iterator<Item = &'a Row> {
        let rows = self.rows.iter().filter(move |row| row.room == *room && row.user == *user);
        rows.filter(move |row| row.user.is_some() && row.connection != connection)
    }

    /// Whether no other row of its user in the room was updated later.
    fn stands(&self, index: usize) -> bool {
        let row = &self.rows[index];
        let mut others = self.others(&row.room, &row.user, row.connection);
        others.all(|other| other.key() < row.key())
    }

    /// Now, or right after the row of the user that was updated last, if that comes later.
    fn update_time(
        &self,
        room: &RoomName,
        user: &Option<UserId>,
        connection: ConnectionId,
    ) -> DateTime<Utc> {
        let now = self.latest.utc();
        let last = self.others(room, user, connection).map(Row::key).max();
        let ahead = last.filter(|last| *last > (now, connection));
        ahead.map_or(now, |(time, _)| time + MICROSECOND)
    }

    fn hold(&mut self, now: Moment) {
        if now.monotonic > self.latest.monotonic {
            self.latest = now;
        }
    }

    fn count(&self, which: impl Fn(&Row) -> bool) -> usize {
        self.rows.iter().filter(|row| which(row)).count()
    }

    fn index(&self, room: &RoomName, connection: ConnectionId) -> Option<usize> {
        self.rows.iter().position(|row| row.room == *room && row.connection == connection)
    }

    pub fn row(&self, room: &RoomName, connection: ConnectionId) -> Option<&Row> {
        Some(&self.rows[self.index(room, connection)?])
    }

    /// The rows of the room: the anonymous first, then by user, each in order of joining.
    pub fn rows_of(&self, room: &RoomName) -> Vec<&Row> {
        let mut rows: Vec<_> = self.rows.iter().filter(|row| row.room == *room).collect();
        rows.sort_by_key(|row| (&row.user, row.joined_at, row.connection));
        rows
    }

    pub fn rooms(&self) -> BTreeSet<&RoomName> {
        self.rows.iter().map(|row| &row.room).collect()
    }

    pub fn connections(&self) -> BTreeSet<ConnectionId> {
        self.rows.iter().map(|row| row.connection).collect()
    }

    pub fn rooms_of(&self, connection: ConnectionId) -> BTreeSet<&RoomName> {
        self.rows.iter().filter(|row| row.connection == connection).map(|row| &row.room).collect()
    }

    pub fn connections_of(&self, user: &UserId) -> Vec<ConnectionId> {
        let rows = self.rows.iter().filter(|row| row.user.as_ref() == Some(user));
        Vec::from_iter(rows.map(|row| row.connection).collect::<BTreeSet<_>>())
    }

    pub fn where_is(&self, user: &UserId) -> Vec<(RoomName, usize)> {
        let count = |room: &RoomName| {
            self.count(|row| row.room == *room && row.user.as_ref() == Some(user))
        };
        let all = self.rooms().into_iter().map(|room| (room.clone(), count(room)));
        all.filter(|(_, connections)| *connections > 0).collect()
    }

    pub fn member(&self, room: &RoomName, user: &UserId) -> Option<Member> {
        let rows = self.rows_of(room).into_iter().filter(|row| row.user.as_ref() == Some(user));
        let newest = rows.clone().max_by_key(|row| row.key())?;
        Some(Member { id: user.clone(), info: newest.info.clone(), connections: rows.count() })
    }

    pub fn members(&self, room: &RoomName) -> Vec<Member> {
        let users = users(room, &self.rows);
        users.iter().filter_map(|user| self.member(room, user)).collect()
    }

    pub fn occupancy(&self, room: &RoomName) -> Occupancy {
        Occupancy {
            connections: self.count(|row| row.room == *room),
            users: users(room, &self.rows).len(),
            anonymous: self.count(|row| row.room == *room && row.user.is_none()),
        }
    }
}

impl Row {
    /// What orders the rows of a user by their last update.
    fn key(&self) -> (DateTime<Utc>, ConnectionId) {
        (self.updated_at, self.connection)
    }

    pub fn presence(&self) -> Presence {
        let (user, info) = (self.user.clone(), self.info.clone());
        let (joined_at, updated_at) = (self.joined_at, self.updated_at);
        Presence { connection: self.connection, user, info, joined_at, updated_at }
    }

    pub fn seen(&self) -> SeenPresence {
        SeenPresence {
            node: None,
            presence: self.presence(),
            last_seen: self.last_seen.utc(),
            activity: self.activity,
            joined_version: UNKNOWN,
            state: PresenceState::Live,
        }
    }

    fn left(&self, cause: Cause) -> Left {
        let SeenPresence { presence, last_seen, activity, joined_version, .. } = self.seen();
        Left { presence, connection: self.connection, cause, last_seen, activity, joined_version }
    }
}

fn users(room: &RoomName, rows: &[Row]) -> BTreeSet<UserId> {
    rows.iter().filter(|row| row.room == *room).filter_map(|row| row.user.clone()).collect()
}

/// What is different in the room, if anything is.
fn difference(room: &RoomName, before: &[Row], after: &[Row], cause: Cause) -> Option<Diff> {
    let presences = |rows: &[Row]| -> BTreeMap<ConnectionId, Presence> {
        let rows = rows.iter().filter(|row| row.room == *room);
        rows.map(|row| (row.connection, row.presence())).collect()
    };
    let (old, new) = (presences(before), presences(after));
    let gone = |row: &&Row| row.room == *room && !new.contains_key(&row.connection);
    let (old_users, new_users) = (users(room, before), users(room, after));
    let joins = new.values().filter(|p| !old.contains_key(&p.connection));
    let both = old.values().filter_map(|p| Some((p, new.get(&p.connection)?)));
    let updates = both.filter(|(before, after)| before != after);
    let diff = Diff {
        room: room.clone(),
        version: 0,
        joins: joins.cloned().collect(),
        leaves: before.iter().filter(gone).map(|row| row.left(cause)).collect(),
        updates: updates
            .map(|(before, after)| Update { before: before.clone(), after: after.clone() })
            .collect(),
        online: new_users.difference(&old_users).cloned().collect(),
        offline: old_users
            .difference(&new_users)
            .map(|user| Offline { user: user.clone(), cause })
            .collect(),
    };
    let changed = !(diff.joins.is_empty() && diff.leaves.is_empty() && diff.updates.is_empty());
    changed.then_some(diff)
}

/// The same diffs in one order, for where the model promises none.
pub fn in_order(mut diffs: Vec<Diff>) -> Vec<Diff> {
    for diff in &mut diffs {
        diff.joins.sort_by_key(|join| join.connection);
        diff.leaves.sort_by_key(|leave| leave.presence.connection);
        diff.leaves.iter_mut().for_each(|leave| leave.joined_version = UNKNOWN);
        diff.updates.sort_by_key(|update| update.after.connection);
        diff.online.sort();
        diff.offline.sort_by(|a, b| a.user.cmp(&b.user));
    }
    diffs.sort_by(|a, b| a.room.cmp(&b.room));
    diffs
}
