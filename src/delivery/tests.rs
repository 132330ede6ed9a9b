//! The routes of messages, the schedule of lists, and what clients make of lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    frames::{FullFrame, List, Sizes, well_below},
    published::{MessageBody, MessageFrames},
    schedule::{Broadcast, MAX_HELD_BYTES, MAX_NEWCOMER_VERSIONS, MESSAGE_OVERHEAD},
    *,
};
use crate::{
    messages::{Content, DEFAULT_BACKLOG_LIMIT, Dialect, Feed, ForwardMessage, Forwarded, Joined},
    model::{Diff, Info, Moment, Rights, UserId},
    testing::{Heard, Probe, Seen},
    wire::json,
};

/// What is done, by which connection, in which room.
type Step = (u8, u8, u8);

const DIALECTS: [Dialect; 4] =
    [Dialect::Raw, Dialect::Json(Feed::Diff), Dialect::Json(Feed::None), Dialect::Phoenix];

fn name(room: u8) -> RoomName {
    RoomName::new(format!("room {room}")).unwrap()
}

fn id(connection: u8) -> ConnectionId {
    ConnectionId::from_u128(connection.into())
}

fn received(session: &mut Seen<Heard>) -> Vec<RoomName> {
    let all = std::iter::from_fn(|| session.now());
    let rooms = all.filter_map(|one| match one {
        Heard::Frame(ForwardMessage { room, kind: Forwarded::Message, .. }) => Some(room),
        _ => None,
    });
    rooms.collect()
}

async fn run(steps: Vec<Step>) {
    let now = Moment { monotonic: 0, wall: 0 };
    let mut rooms = Rooms::default();
    let mut delivery = Delivery::new(usize::MAX);
    let (addresses, mut sessions): (Vec<_>, Vec<_>) = (0..4).map(|_| Probe::<Heard>::new()).unzip();
    let mut inside: BTreeSet<(u8, u8)> = BTreeSet::new();
    let mut expected = vec![Vec::new(); sessions.len()];
    for (what, who, room) in steps {
        let (connection, address) = (id(who), &addresses[usize::from(who)]);
        match what {
            0..4 => {
                let joined = rooms.join(&name(room), connection, None, Info::EMPTY, now).unwrap();
                if let Some(diff) = joined {
                    delivery.changed(&diff, rooms.room(&diff.room), 0);
                }
                let (forward, dialect) = (address.clone().recipient(), DIALECTS[usize::from(what)]);
                let recipients = Recipients {
                    forward,
                    disconnect: None,
                    dialect,
                    backlog_limit: DEFAULT_BACKLOG_LIMIT,
                    socket: None,
                };
                let state = rooms.snapshot(&name(room));
                let (snapshot, rights) = (state.clone(), Rights::ALL);
                let joined = Joined { presence: connection, snapshot, changed: true, rights };
                // Nobody waits for the answer.
                let reply = JoinReply { channel: tokio::sync::oneshot::channel().0, joined };
                let (counts_only, thread) = (false, None);
                let arrival = Arrival { connection, recipients, counts_only, thread, reply };
                delivery.enter(&state, arrival, 0);
                inside.insert((room, who));
            }
            4 | 5 => {
                if let Some(diff) = rooms.leave(&name(room), connection, Cause::Left) {
                    delivery.changed(&diff, rooms.room(&diff.room), 0);
                }
                inside.remove(&(room, who));
            }
            6 => {
                rooms.leave_all(connection, Cause::Disconnected);
                delivery.forget(connection);
                inside.retain(|(_, one)| *one != who);
            }
            _ => {
                let content = Content::Text("hello".into());
                let message = delivery.message(content, None, false);
                let (message, count) = message;
                let message = Publication { message, joined: None, except: None, only: None };
                delivery.publish(&rooms.snapshot(&name(room)), message, 0);
                assert!(delivery.take_failed().is_none());
                let members: Vec<_> = inside.iter().filter(|(one, _)| *one == room).collect();
                assert_eq!(count.count(std::time::Duration::ZERO).await, members.len());
                members.iter().for_each(|(_, who)| expected[usize::from(*who)].push(name(room)));
            }
        }
        // Several steps in one turn, now and then.
        if room > 0 {
            delivery.end_turn(&rooms, 0);
        }
    }
    for (address, (session, expected)) in addresses.iter().zip(sessions.iter_mut().zip(expected)) {
        // The mailbox is a queue.
        let (room, kind) = (name(9), Forwarded::State);
        address.send(ForwardMessage::new(room, kind, "")).await.unwrap();
        assert_eq!(received(session), expected);
    }
    for who in 0..4 {
        delivery.disconnect(id(who), Cause::Kicked);
    }
    assert!(delivery.is_empty() && delivery.routes.is_empty() && delivery.due.is_empty());
    assert!(delivery.dispatchers.is_idle());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn messages_reach_exactly_the_members_and_nothing_is_left_of_those_who_have_left(
        steps in proptest::collection::vec((0..9_u8, 0..4_u8, 0..3_u8), 0..60),
    ) {
        System::new().block_on(run(steps));
    }
}

struct Stage {
    rooms: Rooms,
    room: RoomName,
    schedule: ListSchedule,
    joined: u128,
}

impl Stage {
    /// A room with so many listeners that a few changes are no crowd.
    fn new() -> Self {
        let (rooms, room) = (Rooms::default(), RoomName::new("room").unwrap());
        let mut schedule = ListSchedule::new(rooms.snapshot(&room), usize::MAX);
        schedule.listeners = 100_000;
        Self { rooms, room, schedule, joined: 0 }
    }

    /// A new user joins at this time.
    fn join(&mut self, now: u64) -> (ConnectionId, Snapshot) {
        self.joined += 1;
        let id = ConnectionId::from_u128(self.joined);
        let user = Some(UserId::new(format!("user {}", self.joined)).unwrap());
        let moment = Moment { monotonic: now, wall: 0 };
        let diff = self.rooms.join(&self.room, id, user, Info::EMPTY, moment).unwrap().unwrap();
        let room = self.rooms.snapshot(&self.room);
        self.schedule.note(&diff, Some(&room), now);
        (id, room)
    }

    /// A list that costs so much.
    fn list(&mut self, cost: Duration, now: u64) -> Vec<Broadcast> {
        let room = self.rooms.snapshot(&self.room);
        let next = self.schedule.take(&room, 1, now);
        self.schedule.handed_out(DispatcherId::default(), cost, now);
        next
    }

    /// A member publishes so many bytes.
    fn publish(&mut self, sender: ConnectionId, bytes: usize, now: u64) {
        let room = self.rooms.snapshot(&self.room);
        let content = Content::Text("x".repeat(bytes).into());
        let deliveries = Counter::new("presence_deliveries_total");
        let (body, _) = MessageBody::new(content, None, false, deliveries);
        let message = LocalMessage {
            frames: Arc::new(MessageFrames::new(self.room.clone(), body)),
            sender: Some(sender),
            except: None,
            only: None,
            last_entry: u64::MAX,
            min_version: room.version(),
        };
        self.schedule.hold(message, sender, &room, now);
    }
}

#[test]
fn messages_wait_for_a_list_at_most_a_second_and_up_to_a_mebibyte() {
    let mut stage = Stage::new();
    stage.join(1);
    // So expensive that the next list is due in three seconds.
    assert_eq!(stage.list(Duration::from_secs(1), 1).len(), 1);
    let (sender, _) = stage.join(1000);
    assert_eq!(stage.schedule.next(1000), Some(3_000_001));
    stage.publish(sender, MAX_HELD_BYTES / 2, 1000);
    assert_eq!(stage.schedule.next(1000), Some(1_001_000));
    stage.publish(sender, MAX_HELD_BYTES / 2 - 2 * MESSAGE_OVERHEAD, 2000);
    assert_eq!(stage.schedule.next(2000), Some(1_001_000), "since the first of them");
    assert!(stage.list(Duration::ZERO, 2000).is_empty());
    stage.publish(sender, 1, 3000);
    assert_eq!(stage.schedule.next(3000), Some(3000));
    assert_eq!(stage.list(Duration::ZERO, 3000).len(), 4, "a list, then what has waited for it");
}

#[test]
fn a_newcomer_at_a_version_that_is_not_kept_gets_the_full_list_again() {
    let mut stage = Stage::new();
    let mut versions = Vec::new();
    for _ in 0..MAX_NEWCOMER_VERSIONS + 2 {
        let (_, room) = stage.join(1);
        stage.schedule.initial_list(&room, 1);
        versions.push(room.version());
    }
    stage.join(1);
    let next = stage.list(Duration::ZERO, 1);
    let [Broadcast::List(list)] = &next[..] else { panic!("one list") };
    let kept = |version: &u64| list.diff(*version).is_some();
    assert!(versions[..MAX_NEWCOMER_VERSIONS].iter().all(kept));
    assert!(!versions[MAX_NEWCOMER_VERSIONS..].iter().any(kept));
    assert!(kept(&0), "the earlier listeners");
}

/// What happens in one room: by whom, what, as whom, and whether a list is sent then.
type ListStep = (u128, u8, Option<u8>, bool);

fn step() -> impl Strategy<Value = ListStep> {
    (0..6_u128, 0..8_u8, proptest::option::of(0..3_u8), any::<bool>())
}

fn take(rooms: &mut Rooms, room: &RoomName, step: &ListStep, at: u64) -> Vec<Diff> {
    let (connection, what, who, _) = *step;
    let connection = ConnectionId::from_u128(connection);
    let user = who.map(|n| UserId::new(format!("user {n}")).unwrap());
    let info = Info::new(json!({"n": what % 2})).unwrap();
    let now = Moment { monotonic: at, wall: at as i64 };
    match what {
        0..4 => rooms.join(room, connection, user, info, now).unwrap().into_iter().collect(),
        4 => rooms.update_info(room, connection, info, now).into_iter().collect(),
        5 => rooms.prune(now, std::time::Duration::from_micros(20)),
        _ => rooms.leave(room, connection, Cause::Left).into_iter().collect(),
    }
}

fn value(frame: &str) -> Value {
    serde_json::from_str(frame).unwrap()
}

/// Applies a diff as a JSON client does.
fn fold_json(state: &mut Value, diff: &Value) {
    assert_eq!(state["version"], diff["since"]);
    let members = state["members"].as_array().unwrap().clone();
    let id = |member: &Value| member["id"].as_str().unwrap().to_owned();
    let mut members: BTreeMap<_, _> = members.into_iter().map(|m| (id(&m), m)).collect();
    for join in diff["joins"].as_array().unwrap() {
        members.insert(id(join), join.clone());
    }
    for leave in diff["leaves"].as_array().unwrap() {
        assert!(members.remove(&id(leave)).is_some(), "a member leaves");
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

fn meta(meta: &Value) -> String {
    meta["phx_ref"].as_str().unwrap().to_owned()
}

/// Applies a diff as `presence.js` does: joins first, then leaves.
fn fold_phoenix(state: &mut Metas, diff: &Value) {
    for (key, joined) in metas(&diff["joins"]) {
        state.entry(key).or_default().extend(joined);
    }
    for (key, left) in metas(&diff["leaves"]) {
        let metas = state.get_mut(&key).expect("a member leaves");
        metas.retain(|meta| !left.contains(meta));
        if metas.is_empty() {
            state.remove(&key);
        }
    }
}

struct Client {
    version: u64,
    json: Value,
    phoenix: Metas,
}

impl Client {
    fn new(room: &Snapshot) -> Self {
        let list = List::full(room.clone(), &Sizes::new(usize::MAX));
        let json = value(&list.encode(FullFrame::State).unwrap())["payload"].clone();
        let phoenix = metas(&value(&list.encode(FullFrame::Phoenix).unwrap())[4]);
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
    fn a_newcomer_between_two_lists_can_apply_each_diff_that_it_is_sent(
        steps in proptest::collection::vec((step(), any::<bool>()), 0..80),
    ) {
        let room = RoomName::new("room").unwrap();
        let mut rooms = Rooms::default();
        let mut schedule = ListSchedule::new(rooms.snapshot(&room), usize::MAX);
        // The listener from the beginning, and later ones.
        let mut clients = vec![Client::new(&rooms.snapshot(&room))];
        for (at, (step, has_newcomer)) in (1..).zip(&steps) {
            let now = at * 2_000_000;
            for diff in take(&mut rooms, &room, step, at) {
                schedule.note(&diff, Some(&rooms.snapshot(&room)), now);
            }
            let state = rooms.snapshot(&room);
            if *has_newcomer {
                schedule.listeners += 2;
                schedule.initial_list(&state, 1);
                clients.push(Client::new(&state));
            }
            if !step.3 {
                continue;
            }
            for broadcast in schedule.take(&state, 1, now) {
                let Broadcast::List(list) = broadcast else { unreachable!("no messages") };
                clients.iter_mut().for_each(|client| client.take(&list));
            }
            schedule.handed_out(DispatcherId::default(), Duration::ZERO, now);
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
fn a_list_that_was_too_large_is_sent_again_well_below_the_limit() {
    let room = RoomName::new("room").unwrap();
    let mut rooms = Rooms::default();
    let now = Moment { monotonic: 0, wall: 0 };
    let id = ConnectionId::from_u128;
    let join = |rooms: &mut Rooms, n: u128| {
        let user = UserId::new(format!("user {n:04}")).unwrap();
        rooms.join(&room, id(n), Some(user), Info::EMPTY, now).unwrap();
        rooms.snapshot(&room)
    };
    let size = |room: &Snapshot| json::presence_state_within(usize::MAX, room).unwrap().len();
    for n in 0..100 {
        join(&mut rooms, n);
    }
    let sizes = Sizes::new(size(&rooms.snapshot(&room)));
    let fits = |room: Snapshot| List::full(room, &sizes).encode(FullFrame::State).is_some();
    assert!(fits(rooms.snapshot(&room)));
    assert!(!fits(join(&mut rooms, 100)));
    let mut left = 101;
    for n in 0..100 {
        rooms.leave(&room, id(n), Cause::Left).unwrap();
        let state = rooms.snapshot(&room);
        left -= 1;
        let is_small = size(&state) <= well_below(sizes.limit);
        assert_eq!(fits(state), is_small, "{left} are left");
        if is_small {
            break;
        }
    }
    assert!((85..91).contains(&left), "{left}");
}
