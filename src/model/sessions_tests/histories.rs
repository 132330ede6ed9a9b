//! Random histories of sessions, beside a naive list.

use std::collections::BTreeSet;

use proptest::{prelude::*, sample::select, test_runner::TestCaseResult};
use serde_json::json;

use super::{
    World, at, id,
    naive::{Naive, Row},
    room,
};
use crate::model::{
    Activity, Cause, Diff, Entering, Info, Limits, NotEntered, SessionKey, Snapshot, UserId,
};

const ROOMS: u8 = 3;

/// What may happen to sessions.
#[derive(Clone, Debug)]
pub enum Step {
    Enter(Entering),
    Leave { connection: u8, room: u8 },
    LeaveAll { connection: u8 },
    Touch { connection: u8 },
    Update { connection: u8, room: u8, info: Info },
    End { presence: u8, room: u8 },
    Prune { secs: u64 },
    Wait { secs: u64 },
}

impl World {
    fn take(&mut self, step: &Step) -> Result<Vec<Diff>, NotEntered> {
        let now = at(self.secs);
        let rooms = &mut self.rooms;
        let diffs: Vec<Diff> = match step.clone() {
            Step::Enter(entering) => Vec::from_iter(self.enter(entering)?.diff),
            Step::Leave { connection, room: number } => {
                Vec::from_iter(rooms.leave(&room(number), id(connection), Cause::Left))
            }
            Step::LeaveAll { connection } => rooms.leave_all(id(connection), Cause::Left),
            Step::Touch { connection } => {
                rooms.touch(id(connection), Activity::Frame, now);
                Vec::new()
            }
            Step::Update { connection, room: number, info } => {
                Vec::from_iter(rooms.update_info(&room(number), id(connection), info, now))
            }
            Step::End { presence, room: number } => {
                let ended = [id(presence)];
                Vec::from_iter(rooms.leave_together(&room(number), &ended, Cause::Disconnected))
            }
            Step::Prune { secs } => rooms.prune(now, std::time::Duration::from_secs(secs)),
            Step::Wait { secs } => {
                self.secs += secs;
                Vec::new()
            }
        };
        self.announced(&diffs);
        Ok(diffs)
    }

    fn is(&self, naive: &Naive) -> TestCaseResult {
        let mut found: Vec<Row> = Vec::new();
        for (name, presence) in self.rooms.held_presences() {
            let seen = self.rooms.presence(name, presence).unwrap().presence;
            let connection = self.rooms.current_connection(name, presence).unwrap();
            prop_assert_eq!(self.rooms.presence_of(name, connection), Some(presence));
            prop_assert_eq!(seen.connection, presence);
            prop_assert_eq!(self.rooms.is_held_by_another(name, presence), connection != presence);
            prop_assert!(self.rooms.connections_known_as(presence).contains(&connection));
            found.push(Row {
                room: name.clone(),
                presence,
                connection,
                key: self.sessions.key_of(name, presence).cloned(),
                user: seen.user,
                info: seen.info,
                fixed: self.sessions.fixed(name, presence),
            });
        }
        let mut expected = naive.rows.clone();
        for rows in [&mut found, &mut expected] {
            rows.sort_by(|a, b| (&a.room, a.presence).cmp(&(&b.room, b.presence)));
        }
        prop_assert_eq!(&found, &expected);
        // Law 6.
        for number in 0..ROOMS {
            let inside: BTreeSet<_> = self.rooms.snapshot(&room(number)).connections().collect();
            let rows = found.iter().filter(|row| row.room == room(number));
            prop_assert_eq!(inside, rows.map(|row| row.presence).collect::<BTreeSet<_>>());
        }
        let connections: BTreeSet<_> = self.rooms.connections().collect();
        let behind: BTreeSet<_> = found.iter().map(|row| row.connection).collect();
        prop_assert_eq!(connections, behind);
        let taken_over = found.iter().filter(|row| row.connection != row.presence).count();
        let known: usize = self.rooms.successors.values().map(|rooms| rooms.len()).sum();
        prop_assert_eq!(known, taken_over);
        Ok(())
    }
}

fn entering_any() -> impl Strategy<Value = Entering> {
    let key = select(vec![None, Some("tab"), Some("tab"), Some("other")]);
    let user = select(vec![None, Some("ada")]);
    let value = || select(vec![json!({}), json!({"a": 1}), json!({"b": 2})]);
    (0..6_u8, 0..ROOMS, key, user, value(), value()).prop_map(
        |(connection, number, key, user, info, fixed)| {
            let mut all = info.as_object().unwrap().clone();
            all.extend(fixed.as_object().unwrap().clone());
            Entering {
                room: room(number),
                connection: id(connection),
                user: user.map(|user| UserId::new(user).unwrap()),
                info: Info::from_map(&all).unwrap(),
                fixed: Info::new(fixed).unwrap(),
                session: key.map(|key| SessionKey::new(key).unwrap()),
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..6_u8, 0..ROOMS);
    prop_oneof![
        12 => entering_any().prop_map(Step::Enter),
        2 => place().prop_map(|(connection, room)| Step::Leave { connection, room }),
        1 => (0..6_u8).prop_map(|connection| Step::LeaveAll { connection }),
        3 => (0..6_u8).prop_map(|connection| Step::Touch { connection }),
        2 => (place(), 0..3).prop_map(|((connection, room), n)| {
            let info = Info::new(json!({ "c": n })).unwrap();
            Step::Update { connection, room, info }
        }),
        2 => place().prop_map(|(presence, room)| Step::End { presence, room }),
        2 => (0..5_u64).prop_map(|secs| Step::Prune { secs }),
        4 => (1..3_u64).prop_map(|secs| Step::Wait { secs }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn sessions_in_several_rooms_are_those_of_a_naive_list(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let (mut world, mut naive) = (World::new(Limits::default()), Naive::default());
        let mut folded: Vec<Snapshot> = (0..ROOMS).map(|n| world.rooms.snapshot(&room(n))).collect();
        let mut counted: Vec<_> = folded.iter().map(Snapshot::without_members).collect();
        for step in &steps {
            let taken = world.take(step);
            prop_assert_eq!(taken.is_ok(), naive.take(step, world.secs), "{:?}", step);
            world.is(&naive)?;
            // Law 1.
            for diff in taken.into_iter().flatten() {
                let old = folded.iter_mut().find(|old| *old.room() == diff.room).unwrap();
                old.apply(&diff);
                let now = world.rooms.snapshot(&diff.room);
                // The version of an empty room is never sent.
                prop_assert!(*old == now || old.is_empty() && now.is_empty());
                let counts = counted.iter_mut().find(|counts| *counts.room() == diff.room).unwrap();
                counts.apply(&diff);
                prop_assert_eq!(counts.occupancy(), now.occupancy());
            }
        }
        for connection in 0..6 {
            let diffs = world.rooms.leave_all(id(connection), Cause::Shutdown);
            world.announced(&diffs);
        }
        prop_assert!(world.sessions.is_empty() && world.rooms.successors.is_empty());
        prop_assert_eq!(world.rooms.presence_count(), 0);
    }
}
