//! Lists and what clients make of them.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    super::{
        audience::{Audience, Next},
        couriers::Desk,
    },
    *,
};
use crate::model::{ConnectionId, Info, Moment, Rooms};

/// What happens in one room: by whom, what, as whom, and whether a list goes out then.
type Step = (u128, u8, Option<u8>, bool);

fn step() -> impl Strategy<Value = Step> {
    (0..6_u128, 0..8_u8, proptest::option::of(0..3_u8), any::<bool>())
}

fn take(rooms: &mut Rooms, room: &RoomName, step: &Step, at: u64) -> Vec<Diff> {
    let (connection, what, who, _) = *step;
    let connection = ConnectionId::from_u128(connection);
    let user = who.map(|n| UserId::new(format!("user {n}")).unwrap());
    let info = Info::new(json!({"n": what % 2})).unwrap();
    let now = Moment { monotonic: at, wall: at as i64 };
    match what {
        0..4 => rooms.join(room, connection, user, info, now).unwrap().into_iter().collect(),
        4 => rooms.update_info(room, connection, info).into_iter().collect(),
        5 => rooms.prune(now, std::time::Duration::from_micros(20)),
        _ => rooms.leave(room, connection, Cause::Left).into_iter().collect(),
    }
}

fn value(frame: &str) -> Value {
    serde_json::from_str(frame).unwrap()
}

/// What a client of the JSON dialect makes of a diff.
fn fold_json(state: &mut Value, diff: &Value) {
    assert_eq!(state["version"], diff["since"]);
    let members = state["members"].as_array().unwrap().clone();
    let id = |member: &Value| member["id"].as_str().unwrap().to_owned();
    let mut members: BTreeMap<_, _> = members.into_iter().map(|m| (id(&m), m)).collect();
    for join in diff["joins"].as_array().unwrap() {
        members.insert(id(join), join.clone());
    }
    for leave in diff["leaves"].as_array().unwrap() {
        assert!(members.remove(&id(leave)).is_some(), "who leaves was there");
    }
    state["members"] = members.into_values().collect();
    state["lurkers"] = diff["lurkers"].clone();
    state["version"] = diff["version"].clone();
}

type Metas = BTreeMap<String, BTreeSet<String>>;

fn metas(state: &Value) -> Metas {
    let texts = |metas: &Value| metas["metas"].as_array().unwrap().iter().map(meta).collect();
    let keys: &Map<String, Value> = state.as_object().unwrap();
    keys.iter().map(|(key, metas)| (key.clone(), texts(metas))).collect()
}

/// A meta as clients tell it from others.
fn meta(meta: &Value) -> String {
    meta["phx_ref"].as_str().unwrap().to_owned()
}

/// What `presence.js` makes of a diff: joins first, then leaves.
fn fold_phoenix(state: &mut Metas, diff: &Value) {
    for (key, joined) in metas(&diff["joins"]) {
        state.entry(key).or_default().extend(joined);
    }
    for (key, left) in metas(&diff["leaves"]) {
        let metas = state.get_mut(&key).expect("who leaves was there");
        metas.retain(|meta| !left.contains(meta));
        if metas.is_empty() {
            state.remove(&key);
        }
    }
}

/// A client of each dialect, with what it has made of the room.
struct Client {
    version: u64,
    json: Value,
    phoenix: Metas,
}

impl Client {
    /// One that has just come.
    fn new(room: &Snapshot) -> Self {
        let list = List::whole(room.clone(), &Sizes::new(usize::MAX));
        let json = value(&list.encode(Whole::State).unwrap())["payload"].clone();
        let phoenix = metas(&value(&list.encode(Whole::Phoenix).unwrap())[4]);
        Self { version: room.version(), json, phoenix }
    }

    fn take(&mut self, list: &List) {
        if self.version >= list.version() {
            return;
        }
        let (diff, phoenix) = (list.diff(self.version), list.phoenix_diff(self.version));
        fold_json(&mut self.json, &value(&diff.unwrap())["payload"]);
        fold_phoenix(&mut self.phoenix, &value(&phoenix.unwrap())[4]);
        self.version = list.version();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn whoever_comes_between_two_lists_knows_the_room_at_each_version_that_it_is_told(
        steps in proptest::collection::vec((step(), any::<bool>()), 0..80),
    ) {
        let room = RoomName::new("room").unwrap();
        let mut rooms = Rooms::default();
        let mut audience = Audience::new(rooms.snapshot(&room), usize::MAX);
        // Who listens from the beginning, and then others.
        let mut clients = vec![Client::new(&rooms.snapshot(&room))];
        for (at, (step, somebody_comes)) in (1..).zip(&steps) {
            let now = at * 2_000_000;
            for diff in take(&mut rooms, &room, step, at) {
                audience.note(&diff, Some(&rooms.snapshot(&room)), now);
            }
            let state = rooms.snapshot(&room);
            if *somebody_comes {
                audience.listeners += 2;
                audience.greet(&state, 1);
                clients.push(Client::new(&state));
            }
            if !step.3 {
                continue;
            }
            for next in audience.take(&state, 1, now) {
                let Next::List(list) = next else { unreachable!("nothing is said") };
                clients.iter_mut().for_each(|client| client.take(&list));
            }
            audience.returned(Desk::default(), Duration::ZERO, now);
            let expected = Client::new(&state);
            for client in &clients {
                prop_assert_eq!(client.version, state.version());
                prop_assert_eq!(&client.json, &expected.json);
                prop_assert_eq!(&client.phoenix, &expected.phoenix);
            }
        }
    }
}

#[test]
fn a_list_that_was_too_large_comes_back_when_it_is_well_below_the_limit() {
    let room = RoomName::new("room").unwrap();
    let mut rooms = Rooms::default();
    let now = Moment { monotonic: 0, wall: 0 };
    let id = ConnectionId::from_u128;
    let join = |rooms: &mut Rooms, n: u128| {
        let user = UserId::new(format!("user {n:04}")).unwrap();
        rooms.join(&room, id(n), Some(user), Info::EMPTY, now).unwrap();
        rooms.snapshot(&room)
    };
    let whole = |room: &Snapshot| json::presence_state(room).len();
    for n in 0..100 {
        join(&mut rooms, n);
    }
    let sizes = Sizes::new(whole(&rooms.snapshot(&room)));
    let fits = |room: Snapshot| List::whole(room, &sizes).encode(Whole::State).is_some();
    assert!(fits(rooms.snapshot(&room)));
    assert!(!fits(join(&mut rooms, 100)));
    let mut left = 101;
    for n in 0..100 {
        rooms.leave(&room, id(n), Cause::Left).unwrap();
        let state = rooms.snapshot(&room);
        left -= 1;
        let is_small = whole(&state) <= well_below(sizes.limit);
        assert_eq!(fits(state), is_small, "{left} are left");
        if is_small {
            break;
        }
    }
    assert!((85..91).contains(&left), "{left}");
}
