//! Client sessions: cases, and random histories beside a naive list.

use std::collections::BTreeSet;

use proptest::{prelude::*, sample::select, test_runner::TestCaseResult};
use serde_json::json;

use super::{
    Activity, Cause, ConnectionId, Diff, Entered, Entering, Info, LimitReached, Limits, Moment,
    NodeName, NotEntered, Resumed, RoomName, Rooms, SessionKey, Sessions, Snapshot, Superseded,
    UserId,
};

fn id(number: u8) -> ConnectionId {
    ConnectionId::from_u128(number.into())
}

fn at(secs: u64) -> Moment {
    let micros = secs * 1_000_000;
    Moment { monotonic: micros, wall: i64::try_from(micros).unwrap() }
}

fn room(number: u8) -> RoomName {
    RoomName::new(format!("room {number}")).unwrap()
}

/// A model with its sessions, as the registry has them.
struct World {
    rooms: Rooms,
    sessions: Sessions,
    me: NodeName,
    secs: u64,
}

impl World {
    fn new(limits: Limits) -> Self {
        let (rooms, sessions) = (Rooms::new(limits), Sessions::default());
        Self { rooms, sessions, me: NodeName::new("me").unwrap(), secs: 0 }
    }

    fn enter(&mut self, entering: Entering) -> Result<Entered, NotEntered> {
        self.sessions.enter(&mut self.rooms, entering, &self.me, at(self.secs))
    }

    /// What the registry does with a change.
    fn announced(&mut self, diffs: &[Diff]) {
        for diff in diffs {
            for left in &diff.leaves {
                self.sessions.forget(&diff.room, left.presence.connection);
            }
        }
    }
}

fn entering(connection: u8, number: u8) -> Entering {
    Entering {
        room: room(number),
        connection: id(connection),
        user: None,
        info: Info::EMPTY,
        fixed: Info::EMPTY,
        session: SessionKey::new("tab").ok(),
    }
}

#[test]
fn a_newer_connection_takes_over_the_presence_in_the_room_it_enters_and_in_no_other() {
    let mut world = World::new(Limits::default());
    for number in [0, 1] {
        assert_eq!(world.enter(entering(1, number)).unwrap().resumed, None);
    }
    for newer in [2, 3] {
        let entered = world.enter(entering(newer, 0)).unwrap();
        assert_eq!((entered.presence, entered.diff), (id(1), None));
        assert_eq!(entered.resumed, Some(Resumed::From(id(newer - 1))));
        assert_eq!(world.rooms.current_connection(&room(0), id(1)), Some(id(newer)));
        assert_eq!(world.rooms.current_connection(&room(1), id(1)), Some(id(1)));
        for late in 1..newer {
            let refused = world.enter(entering(late, 0)).unwrap_err();
            assert_eq!(refused, NotEntered::Superseded(Superseded));
        }
    }
    assert_eq!(world.rooms.last_seen(id(2)), None);
    assert_eq!(world.rooms.connections_known_as(id(1)), [id(1), id(3)]);
    assert_eq!(world.rooms.connections_known_as(id(3)), [id(3)]);
}

#[test]
fn a_connection_in_too_many_rooms_takes_over_no_presence() {
    let limits = Limits { rooms_per_connection: 1, room_size: None };
    let mut world = World::new(limits);
    for number in [0, 1] {
        world.enter(entering(number + 1, number)).unwrap();
    }
    let refused = world.enter(entering(2, 0)).unwrap_err();
    assert_eq!(refused, NotEntered::Limit(LimitReached::TooManyRooms { limit: 1 }));
    assert_eq!(world.rooms.current_connection(&room(0), id(1)), Some(id(1)));
}

#[test]
fn a_client_is_found_by_room_and_in_all_its_rooms() {
    let mut sessions = Sessions::default();
    let [a, b] = [0, 1].map(room);
    let key = |key| SessionKey::new(key).unwrap();
    let ada = UserId::new("ada").ok();
    assert!(sessions.bind(&a, id(1), key("tab"), ada.clone(), Info::EMPTY));
    assert!(!sessions.bind(&a, id(1), key("tab"), ada.clone(), Info::EMPTY), "twice");
    for (room, presence, key, user) in [
        (&b, 2, key("tab"), ada.clone()),
        (&a, 3, key("tab"), None),
        (&a, 4, key("other"), ada.clone()),
    ] {
        assert!(sessions.bind(room, id(presence), key, user, Info::EMPTY));
    }
    let tab = key("tab");
    assert_eq!(sessions.presence_in(&a, &tab, ada.as_ref()), Some(id(1)));
    assert_eq!(sessions.presence_in(&a, &tab, None), Some(id(3)));
    let all: Vec<_> = sessions.presences_of(&tab, ada.as_ref()).collect();
    assert_eq!(all, [(&a, id(1)), (&b, id(2))]);
    sessions.forget(&a, id(1));
    assert_eq!(sessions.presence_in(&a, &tab, ada.as_ref()), None);
    for (room, presence) in [(&b, 2), (&a, 3), (&a, 4)] {
        sessions.forget(room, id(presence));
    }
    assert!(sessions.is_empty());
}

#[test]
fn a_presence_that_changes_its_user_is_found_by_the_new_user_only() {
    let mut sessions = Sessions::default();
    let room = room(0);
    let tab = SessionKey::new("tab").unwrap();
    let ada = UserId::new("ada").ok();
    sessions.bind(&room, id(1), tab.clone(), None, Info::EMPTY);
    sessions.bind(&room, id(2), tab.clone(), ada.clone(), Info::EMPTY);
    sessions.bind(&room, id(1), tab.clone(), ada.clone(), Info::EMPTY);
    assert_eq!(sessions.presence_in(&room, &tab, None), None);
    assert_eq!(sessions.presence_in(&room, &tab, ada.as_ref()), Some(id(1)), "the latest");
    sessions.forget(&room, id(2));
    assert_eq!(sessions.presence_in(&room, &tab, ada.as_ref()), Some(id(1)));
    sessions.forget(&room, id(1));
    assert!(sessions.is_empty());
}

#[test]
fn no_debug_output_shows_a_key() {
    let mut sessions = Sessions::default();
    let (room, key) = (room(0), SessionKey::new("secret of a tab").unwrap());
    sessions.bind(&room, id(1), key.clone(), None, Info::EMPTY);
    assert_eq!(format!("{key:?}"), "SessionKey(..)");
    assert!(!format!("{sessions:#?}").contains("secret"));
}

#[test]
fn fading_presences_end_in_order_unless_their_client_is_back() {
    let mut sessions = Sessions::default();
    let [a, b] = [0, 1].map(room);
    let grace = std::time::Duration::from_secs(10);
    sessions.fade(id(1), a.clone(), at(0), grace);
    sessions.fade(id(1), b.clone(), at(1), grace);
    assert_eq!(sessions.fading(id(1), &b), Some(11_000_000));
    sessions.unfade(id(1), &a);
    assert_eq!(sessions.take_faded(at(10)), None);
    assert_eq!(sessions.take_faded(at(11)), Some((id(1), b)));
    assert!(sessions.is_empty());
}

/// What may happen to sessions.
#[derive(Clone, Debug)]
enum Step {
    Enter(Entering),
    Leave { connection: u8, room: u8 },
    LeaveAll { connection: u8 },
    Touch { connection: u8 },
    Update { connection: u8, room: u8, info: Info },
    End { presence: u8, room: u8 },
    Prune { secs: u64 },
    Wait { secs: u64 },
}

/// A presence, with its current connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    room: RoomName,
    presence: ConnectionId,
    connection: ConnectionId,
    key: Option<SessionKey>,
    user: Option<UserId>,
    info: Info,
    fixed: Info,
}

/// The same as a list of rows.
#[derive(Default)]
struct Naive {
    rows: Vec<Row>,
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

    fn take(&mut self, step: &Step, secs: u64) -> bool {
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

const ROOMS: u8 = 3;

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
