//! The model beside the naive list.

use std::collections::BTreeSet;

use actix_presence::{Cause, Epoch, Limits, RoomName, Rooms, SeenPresence};
use proptest::{prelude::*, test_runner::TestCaseResult};

use crate::{
    history::{Step, Time, all_connections, all_rooms, all_users, take},
    naive::{Naive, UNKNOWN, in_order},
};

/// The model and the naive list, which take the same steps.
pub struct Both {
    pub rooms: Rooms,
    pub naive: Naive,
    pub time: Time,
    epoch: Epoch,
}

impl Both {
    pub fn new(limits: Limits) -> Self {
        let rooms = Rooms::new(limits);
        let epoch = rooms.epoch();
        Self { rooms, naive: Naive::new(limits), time: Time::start(), epoch }
    }

    /// Takes the step with both; what they say happened must be the same.
    pub fn take(&mut self, step: &Step) -> TestCaseResult {
        if let Step::Kick { user } = step {
            let connections = self.rooms.connections_of(user);
            prop_assert_eq!(&connections, &self.naive.connections_of(user));
            for connection in connections {
                self.take(&Step::LeaveAll { connection, cause: Cause::Kicked })?;
            }
            return Ok(());
        }
        self.time.take(step);
        let now = self.time.now();
        let lived: BTreeSet<_> = self.naive.rooms().into_iter().cloned().collect();
        let expected = self.naive.take(step, now);
        let mut found = take(&mut self.rooms, step, now);
        for diff in found.iter_mut().flatten() {
            let last = self.naive.versions.get(&diff.room).copied().unwrap_or(0);
            if lived.contains(&diff.room) {
                prop_assert_eq!(diff.version, last + 1);
            } else {
                prop_assert!(diff.version > last);
            }
            self.naive.versions.insert(diff.room.clone(), std::mem::take(&mut diff.version));
        }
        prop_assert_eq!(found.map(in_order), expected.map(in_order), "{:?}", step);
        Ok(())
    }

    /// Asks both everything.
    pub fn answers_agree(&self) -> TestCaseResult {
        let Self { rooms, naive, .. } = self;
        let listed = rooms.list(None, usize::MAX);
        prop_assert!(listed.iter().map(|summary| &summary.room).eq(naive.rooms()));
        for summary in listed {
            prop_assert_eq!(summary.occupancy, naive.occupancy(&summary.room));
            prop_assert_eq!(summary.version, naive.versions[&summary.room]);
        }
        prop_assert_eq!(rooms.room_count(), naive.rooms().len());
        prop_assert_eq!(rooms.epoch(), self.epoch);
        for room in &all_rooms() {
            self.answers_on_a_room_agree(room)?;
        }
        for user in &all_users() {
            prop_assert_eq!(rooms.where_is(user), naive.where_is(user));
            prop_assert_eq!(rooms.connections_of(user), naive.connections_of(user));
        }
        for connection in all_connections() {
            let found: Vec<_> = rooms.rooms_of(connection).collect();
            prop_assert_eq!(found.len(), naive.rooms_of(connection).len());
            prop_assert_eq!(BTreeSet::from_iter(found), naive.rooms_of(connection));
        }
        let connections: Vec<_> = rooms.connections().collect();
        let seen =
            |who| naive.rows.iter().find(|row| row.connection == who).map(|row| row.last_seen);
        prop_assert!(connections.iter().map(|who| seen(*who).unwrap().monotonic).is_sorted());
        prop_assert_eq!(rooms.connection_count(), connections.len());
        prop_assert_eq!(connections.len(), naive.connections().len());
        prop_assert_eq!(BTreeSet::from_iter(connections), naive.connections());
        Ok(())
    }

    fn answers_on_a_room_agree(&self, room: &RoomName) -> TestCaseResult {
        let Self { rooms, naive, .. } = self;
        let rows = naive.rows_of(room);
        let snapshot = rooms.snapshot(room);
        prop_assert_eq!(rooms.room(room).is_some(), !rows.is_empty());
        if let Some(state) = rooms.room(room) {
            prop_assert_eq!(state, &snapshot);
            prop_assert_eq!(snapshot.version(), naive.versions[room]);
        }
        prop_assert_eq!((snapshot.room(), snapshot.epoch()), (room, self.epoch));
        prop_assert_eq!(snapshot.is_empty(), rows.is_empty());
        prop_assert_eq!(rooms.occupancy(room), naive.occupancy(room));
        prop_assert_eq!(snapshot.occupancy(), naive.occupancy(room));
        prop_assert_eq!(snapshot.anonymous_count(), naive.occupancy(room).anonymous);
        prop_assert_eq!(snapshot.users().collect::<Vec<_>>(), naive.members(room));
        for user in &all_users() {
            prop_assert_eq!(snapshot.user(user), naive.member(room, user));
        }
        prop_assert!(snapshot.presences().eq(rows.iter().map(|row| row.presence())));
        prop_assert!(snapshot.connections().eq(rows.iter().map(|row| row.connection)));
        let seen: Vec<_> = rows.iter().map(|row| row.seen()).collect();
        let unversioned = |seen| SeenPresence { joined_version: UNKNOWN, ..seen };
        let found = rooms.presences(room, None, usize::MAX);
        prop_assert_eq!(found.into_iter().map(unversioned).collect::<Vec<_>>(), seen);
        for connection in all_connections() {
            let expected = naive.row(room, connection).map(|row| row.seen());
            prop_assert_eq!(rooms.presence(room, connection).map(unversioned), expected);
        }
        Ok(())
    }
}
