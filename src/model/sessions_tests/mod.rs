//! Client sessions: cases here, random histories in a file of their own.

mod histories;
mod naive;

use super::{
    ConnectionId, Diff, Entered, Entering, Info, LimitReached, Limits, Moment, NodeName,
    NotEntered, Resumed, RoomName, Rooms, SessionKey, Sessions, Superseded, UserId,
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
