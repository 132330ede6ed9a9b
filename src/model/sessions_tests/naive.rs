//! The same sessions as a list of rows, which is slow and obvious.

use std::collections::BTreeSet;

use super::{histories::Step, id, room};
use crate::model::{ConnectionId, Entering, Info, RoomName, SessionKey, UserId};

/// A presence, with its current connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub room: RoomName,
    pub presence: ConnectionId,
    pub connection: ConnectionId,
    pub key: Option<SessionKey>,
    pub user: Option<UserId>,
    pub info: Info,
    pub fixed: Info,
}

/// The same as a list of rows.
#[derive(Default)]
pub struct Naive {
    pub rows: Vec<Row>,
    seen: Vec<(ConnectionId, u64)>,
    /// Presences that share a client with a later one, as a change of users makes them.
    shadowed: BTreeSet<(RoomName, ConnectionId)>,
}

impl Naive {
    fn enter(&mut self, entering: &Entering) -> bool {
        let Entering { room, connection, user, info, fixed, session } = entering.clone();
        let same_client = |row: &&mut Row| {
            row.room == room && session.is_some() && row.key == session && row.user == user
        };
        if let Some(own) =
            self.rows.iter_mut().find(|row| row.room == room && row.connection == connection)
        {
            let before = (own.key.clone(), own.user.clone());
            (own.user, own.info, own.key) = (user, info, own.key.clone().or(session));
            if own.key.is_some() {
                own.fixed = fixed;
            }
            let (presence, now) = (own.presence, (own.key.clone(), own.user.clone()));
            if before != now && now.0.is_some() {
                self.shadowed.remove(&(room.clone(), presence));
                let others = self
                    .rows
                    .iter()
                    .filter(|row| row.room == room && (&row.key, &row.user) == (&now.0, &now.1));
                let others = others.filter(|row| row.presence != presence);
                self.shadowed.extend(others.map(|row| (room.clone(), row.presence)));
            }
            return true;
        }
        let shadowed = &self.shadowed;
        let found = self.rows.iter_mut().filter(same_client);
        let found =
            found.filter(|row| !shadowed.contains(&(row.room.clone(), row.presence))).last();
        if let Some(row) = found {
            if connection < row.connection {
                return false;
            }
            let mut map = row.info.to_map();
            if row.fixed != fixed {
                map.retain(|key, _| !row.fixed.to_map().contains_key(key));
                map.extend(fixed.to_map());
            }
            row.info = Info::from_map(&map).unwrap();
            (row.connection, row.fixed) = (connection, fixed);
            return true;
        }
        if self.rows.iter().any(|row| row.room == room && row.presence == connection) {
            return false;
        }
        let (key, presence) = (session, connection);
        let fixed = if key.is_some() { fixed } else { Info::EMPTY };
        self.rows.push(Row { room, presence, connection, key, user, info, fixed });
        true
    }

    fn touch(&mut self, connection: ConnectionId, secs: u64) {
        self.seen.retain(|(one, _)| *one != connection);
        if self.rows.iter().any(|row| row.connection == connection) {
            self.seen.push((connection, secs));
        }
    }

    pub fn take(&mut self, step: &Step, secs: u64) -> bool {
        match step.clone() {
            Step::Enter(entering) => {
                let entered = self.enter(&entering);
                if entered {
                    self.touch(entering.connection, secs);
                }
                return entered;
            }
            Step::Leave { connection, room: number } => {
                self.rows.retain(|row| row.connection != id(connection) || row.room != room(number))
            }
            Step::LeaveAll { connection } => {
                self.rows.retain(|row| row.connection != id(connection));
            }
            Step::Touch { connection } => self.touch(id(connection), secs),
            Step::Update { connection, room: number, info } => {
                let is_it =
                    |row: &&mut Row| row.connection == id(connection) && row.room == room(number);
                if let Some(row) = self.rows.iter_mut().find(is_it) {
                    row.info = info;
                }
            }
            Step::End { presence, room: number } => {
                self.rows.retain(|row| row.presence != id(presence) || row.room != room(number));
            }
            Step::Prune { secs: age } => {
                let old = |connection| {
                    let seen = self.seen.iter().find(|(one, _)| *one == connection);
                    seen.is_some_and(|(_, seen)| secs - seen > age)
                };
                self.rows.retain(|row| !old(row.connection));
            }
            Step::Wait { .. } => {}
        }
        let here = |place: &(RoomName, ConnectionId)| {
            self.rows.iter().any(|row| (&row.room, row.presence) == (&place.0, place.1))
        };
        self.shadowed.retain(here);
        true
    }
}
