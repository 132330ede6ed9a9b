//! The laws of the model, on random histories. `PROPTEST_CASES=100000` takes longer and finds more.

mod both;
mod history;
mod naive;

use std::collections::{BTreeMap, BTreeSet};

use actix_presence::{
    Activity, Cause, ConnectionId, Diff, LimitReached, Limits, Moment, Presence, RoomName,
    RoomSummary, Rooms, SeenPresence, Snapshot, UserId,
};
use proptest::{prelude::*, test_runner::TestCaseResult};

use both::Both;
use history::{Step, Time, age, all_connections, all_rooms, all_users, history, limits, take};

fn config() -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    ProptestConfig { cases: config.cases.max(1_000), ..config }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_change_and_every_answer_is_that_of_a_naive_list(
        limits in limits(), steps in history(),
    ) {
        let mut both = Both::new(limits);
        both.answers_agree()?;
        for step in &steps {
            both.take(step)?;
            both.answers_agree()?;
        }
    }

    /// Law 1, from any version on.
    #[test]
    fn folding_the_diffs_over_any_snapshot_gives_the_current_one(steps in history()) {
        let mut folded: Vec<Snapshot> = Vec::new();
        walk(&steps, |rooms, diffs, _| {
            for diff in diffs {
                for old in folded.iter_mut().filter(|old| *old.room() == diff.room) {
                    old.apply(diff);
                    let once = old.clone();
                    old.apply(diff);
                    prop_assert_eq!(&*old, &once, "a diff the second time");
                }
            }
            let now: Vec<_> = all_rooms().iter().map(|room| rooms.snapshot(room)).collect();
            for old in &folded {
                let now = now.iter().find(|now| now.room() == old.room()).unwrap();
                // Nobody is told a version of a room that is empty.
                if old.is_empty() {
                    prop_assert!(now.is_empty() && old.version() <= now.version());
                } else {
                    prop_assert_eq!(old, now);
                }
            }
            // Somebody new takes a snapshot of a room that changed; sometimes somebody forgets one.
            folded.extend(now.into_iter().filter(|now| diffs.iter().any(|d| d.room == *now.room())));
            if folded.len() > 12 {
                folded.drain(..8);
            }
            Ok(())
        })?;
    }

    /// Law 2.
    #[test]
    fn each_change_raises_the_version_by_one_and_a_room_that_comes_back_goes_on_above(
        steps in history(),
    ) {
        let mut last: BTreeMap<RoomName, (u64, bool)> = BTreeMap::new();
        walk(&steps, |rooms, diffs, _| {
            for (index, diff) in diffs.iter().enumerate() {
                prop_assert!(diff.connections().next().is_some(), "an empty change: {:?}", diff);
                match last.get(&diff.room) {
                    Some((version, true)) => prop_assert_eq!(diff.version, version + 1),
                    Some((version, false)) => prop_assert!(diff.version > *version),
                    None => prop_assert!(diff.version > 0),
                }
                let more = diffs[index + 1..].iter().any(|next| next.room == diff.room);
                let lives = more || rooms.room(&diff.room).is_some();
                last.insert(diff.room.clone(), (diff.version, lives));
            }
            for (room, (version, lives)) in &last {
                match rooms.room(room) {
                    Some(state) => prop_assert_eq!((state.version(), true), (*version, *lives)),
                    None => prop_assert!(!lives && rooms.snapshot(room).version() >= *version),
                }
            }
            Ok(())
        })?;
    }

    /// Law 3.
    #[test]
    fn the_same_step_again_changes_nothing(limits in limits(), steps in history()) {
        let (mut rooms, mut time) = (Rooms::new(limits), Time::start());
        for step in &steps {
            time.take(step);
            if take(&mut rooms, step, time.now()).is_ok() {
                let versions = versions(&rooms);
                prop_assert_eq!(take(&mut rooms, step, time.now()), Ok(Vec::new()));
                prop_assert_eq!(self::versions(&rooms), versions);
            }
        }
    }

    #[test]
    fn a_refused_join_changes_nothing_at_all(limits in limits(), steps in history()) {
        let (mut rooms, mut time) = (Rooms::new(limits), Time::start());
        for step in &steps {
            time.take(step);
            let before = matches!(step, Step::Join { .. }).then(|| format!("{rooms:?}"));
            match take(&mut rooms, step, time.now()) {
                Err(LimitReached::TooManyRooms { limit }) => {
                    prop_assert_eq!(limit, limits.rooms_per_connection);
                }
                Err(LimitReached::RoomFull { limit }) => {
                    prop_assert_eq!(Some(limit), limits.room_size);
                }
                _ => continue,
            }
            prop_assert_eq!(before, Some(format!("{rooms:?}")));
        }
        for room in rooms.list(None, usize::MAX) {
            prop_assert!(room.occupancy.connections <= limits.room_size.unwrap_or(usize::MAX));
        }
        for connection in rooms.connections() {
            prop_assert!(rooms.rooms_of(connection).count() <= limits.rooms_per_connection);
        }
    }

    /// Law 4.
    #[test]
    fn a_touch_adds_nobody(steps in history(), silent in 0..6usize) {
        let silent = all_connections()[silent];
        walk(&steps, |rooms, _, now| {
            let gone = !rooms.connections().any(|connection| connection == silent);
            let before = (versions(rooms), rooms.connection_count());
            prop_assert_eq!(rooms.touch(silent, Activity::Frame, now), !gone);
            prop_assert_eq!((versions(rooms), rooms.connection_count()), before);
            prop_assert_eq!(rooms.rooms_of(silent).count() == 0, gone);
            Ok(())
        })?;
    }

    /// Law 5.
    #[test]
    fn prune_removes_exactly_who_was_silent_for_longer_and_names_each(
        steps in history(), age in age(),
    ) {
        let mut both = Both::new(Limits::default());
        for step in &steps {
            both.take(step)?;
        }
        // A clock that has stepped back counts as the latest it was.
        let now = both.naive.latest.max(both.time.now());
        let ages = both.naive.rows.iter().map(|row| (row, now.since(row.last_seen) > age));
        let (old, young): (Vec<_>, Vec<_>) = ages.partition(|(_, old)| *old);
        let name = |rows: Vec<(&naive::Row, bool)>| -> BTreeSet<_> {
            rows.iter().map(|(row, _)| (row.room.clone(), row.connection)).collect()
        };
        let (old, young) = (name(old), name(young));

        let diffs = both.rooms.prune(both.time.now(), age);
        let leaves = diffs.iter().flat_map(|d| d.leaves.iter().map(|l| (d.room.clone(), l)));
        let named: Vec<_> = leaves.map(|(room, l)| (room, l.presence.connection, l.cause)).collect();
        prop_assert_eq!(named.len(), old.len());
        prop_assert!(named.iter().all(|(_, _, cause)| *cause == Cause::Expired));
        let named: BTreeSet<_> = named.into_iter().map(|(room, who, _)| (room, who)).collect();
        prop_assert_eq!(named, old);
        let rooms: BTreeSet<_> = diffs.iter().map(|diff| &diff.room).collect();
        prop_assert_eq!(rooms.len(), diffs.len(), "one change per room");
        prop_assert_eq!(members(&both.rooms), young);
    }

    /// Law 6.
    #[test]
    fn the_indexes_by_room_connection_and_user_say_the_same(steps in history()) {
        walk(&steps, |rooms, _, _| {
            let by_room = members(rooms);
            let by_connection: BTreeSet<_> = rooms
                .connections()
                .flat_map(|who| rooms.rooms_of(who).map(move |room| (room.clone(), who)))
                .collect();
            prop_assert_eq!(&by_room, &by_connection);
            for room in rooms.list(None, usize::MAX) {
                let state = rooms.room(&room.room).unwrap();
                let mut users: Vec<_> = state.presences().filter_map(|p| p.user).collect();
                users.dedup();
                let online: Vec<_> = state.users().map(|member| member.id).collect();
                prop_assert_eq!(room.occupancy.users, users.len());
                prop_assert_eq!(online, users);
            }
            for user in all_users() {
                let of_user = |state: &Snapshot| {
                    state.presences().filter(|p| p.user.as_ref() == Some(&user)).count()
                };
                let states = all_rooms().into_iter().filter_map(|room| rooms.room(&room));
                let found: Vec<_> = states.map(|s| (s.room().clone(), of_user(s))).collect();
                let found: Vec<_> = found.into_iter().filter(|(_, count)| *count > 0).collect();
                prop_assert_eq!(rooms.where_is(&user), found);
            }
            Ok(())
        })?;
    }

    /// Law 7.
    #[test]
    fn who_receives_is_who_has_joined_and_not_left_at_every_version(steps in history()) {
        let mut routes: BTreeSet<(RoomName, ConnectionId)> = BTreeSet::new();
        walk(&steps, |rooms, diffs, _| {
            for diff in diffs {
                for leave in &diff.leaves {
                    let route = (diff.room.clone(), leave.presence.connection);
                    prop_assert!(routes.remove(&route), "left without a join: {:?}", route);
                }
                for update in &diff.updates {
                    let route = (diff.room.clone(), update.after.connection);
                    prop_assert!(routes.contains(&route), "updated without a join: {:?}", route);
                }
                for join in &diff.joins {
                    let route = (diff.room.clone(), join.connection);
                    prop_assert!(routes.insert(route.clone()), "joined twice: {:?}", route);
                }
            }
            prop_assert_eq!(&members(rooms), &routes);
            Ok(())
        })?;
    }

    #[test]
    fn a_user_comes_online_and_goes_offline_in_turns(steps in history()) {
        let mut online: BTreeSet<(RoomName, UserId)> = BTreeSet::new();
        walk(&steps, |rooms, diffs, _| {
            for diff in diffs {
                for gone in &diff.offline {
                    prop_assert!(online.remove(&(diff.room.clone(), gone.user.clone())));
                }
                for user in &diff.online {
                    prop_assert!(online.insert((diff.room.clone(), user.clone())));
                }
            }
            let users = all_rooms().into_iter().flat_map(|room| {
                let members: Vec<_> = rooms.room(&room).into_iter().flat_map(Snapshot::users).collect();
                members.into_iter().map(move |member| (room.clone(), member.id))
            });
            prop_assert_eq!(users.collect::<BTreeSet<_>>(), online.clone());
            Ok(())
        })?;
    }

    #[test]
    fn a_snapshot_stays_as_it_was_taken(steps in history()) {
        let mut taken: Vec<(Snapshot, Vec<Presence>)> = Vec::new();
        walk(&steps, |rooms, diffs, _| {
            for diff in diffs {
                let snapshot = rooms.snapshot(&diff.room);
                let presences = snapshot.presences().collect();
                taken.push((snapshot, presences));
            }
            Ok(())
        })?;
        for (snapshot, presences) in taken {
            prop_assert_eq!(snapshot.occupancy().connections, presences.len());
            prop_assert_eq!(snapshot.presences().collect::<Vec<_>>(), presences);
        }
    }

    #[test]
    fn pages_joined_are_the_whole(steps in history(), limit in 1..7usize) {
        let rooms = last(&steps);
        let mut listed = Vec::new();
        loop {
            let page = rooms.list(listed.last().map(|room: &RoomSummary| &room.room), limit);
            if page.is_empty() {
                break;
            }
            prop_assert!(page.len() <= limit);
            listed.extend(page);
        }
        prop_assert_eq!(&listed, &rooms.list(None, usize::MAX));

        for room in all_rooms() {
            let mut seen: Vec<SeenPresence> = Vec::new();
            loop {
                let page = rooms.presences(&room, seen.last().map(|seen| &seen.presence), limit);
                if page.is_empty() {
                    break;
                }
                prop_assert!(page.len() <= limit);
                seen.extend(page);
            }
            prop_assert_eq!(&seen, &rooms.presences(&room, None, usize::MAX));
        }
    }

    #[test]
    fn nothing_is_left_behind_when_all_have_gone(steps in history()) {
        let mut rooms = last(&steps);
        for connection in all_connections() {
            rooms.leave_all(connection, Cause::Shutdown);
        }
        // Not even in the indexes, which no query shows.
        let all = format!("{rooms:?}");
        for empty in ["rooms: {}", "connections: {}", "whereabouts: {}", "successors: {}"] {
            prop_assert!(all.contains(empty), "no `{}` in {}", empty, all);
        }
    }
}

/// Takes the steps one by one, and looks at the rooms after each.
fn walk(
    steps: &[Step],
    mut look: impl FnMut(&mut Rooms, &[Diff], Moment) -> TestCaseResult,
) -> TestCaseResult {
    let (mut rooms, mut time) = (Rooms::default(), Time::start());
    for step in steps {
        time.take(step);
        let diffs = take(&mut rooms, step, time.now()).expect("the default limits are far off");
        look(&mut rooms, &diffs, time.now())?;
    }
    Ok(())
}

/// The rooms after all the steps.
fn last(steps: &[Step]) -> Rooms {
    let (mut rooms, mut time) = (Rooms::default(), Time::start());
    for step in steps {
        time.take(step);
        take(&mut rooms, step, time.now()).expect("the default limits are far off");
    }
    rooms
}

fn versions(rooms: &Rooms) -> Vec<u64> {
    all_rooms().iter().map(|room| rooms.snapshot(room).version()).collect()
}

/// Who is where, asked room by room.
fn members(rooms: &Rooms) -> BTreeSet<(RoomName, ConnectionId)> {
    let states = rooms.list(None, usize::MAX).into_iter().map(|room| rooms.snapshot(&room.room));
    states
        .flat_map(|state| {
            let connections: Vec<_> = state.connections().collect();
            connections.into_iter().map(move |who| (state.room().clone(), who))
        })
        .collect()
}
