//! Random histories: few rooms, connections and users, so that they meet often.

use std::time::Duration;

use actix_presence::{
    Activity, Cause, ConnectionId, Diff, Info, LimitReached, Limits, Moment, RoomName, Rooms,
    UserId,
};
use chrono::DateTime;
use proptest::{prelude::*, sample::select};

/// What may happen to rooms.
#[derive(Clone, Debug)]
pub enum Step {
    Join { room: RoomName, connection: ConnectionId, user: Option<UserId>, info: Info },
    Leave { room: RoomName, connection: ConnectionId, cause: Cause },
    LeaveAll { connection: ConnectionId, cause: Cause },
    Touch { connection: ConnectionId },
    UpdateInfo { room: RoomName, connection: ConnectionId, info: Info },
    UpdateUser { user: UserId, info: Info },
    Prune { age: Duration },
    CloseRoom { room: RoomName, cause: Cause },
    Kick { user: UserId },
    Pass { monotonic: i64, wall: i64 },
}

/// At most so many steps make a history.
pub const LONGEST: usize = 200;

/// Every room that a history names, and one that it does not.
pub fn all_rooms() -> Vec<RoomName> {
    (0..4).map(nth_room).collect()
}

/// Every connection that a history names, and one that it does not.
pub fn all_connections() -> Vec<ConnectionId> {
    (0..6).map(nth_connection).collect()
}

/// Every user that a history names, and one that it does not.
pub fn all_users() -> Vec<UserId> {
    (0..4).map(nth_user).collect()
}

fn nth_room(n: usize) -> RoomName {
    RoomName::new(["attic", "bar", "cellar", "dungeon"][n]).unwrap()
}

fn nth_connection(n: usize) -> ConnectionId {
    ConnectionId::from_u128(n as u128)
}

fn nth_user(n: usize) -> UserId {
    UserId::new(["ada", "bob", "cyd", "dan"][n]).unwrap()
}

fn room() -> impl Strategy<Value = RoomName> {
    (0..3usize).prop_map(nth_room)
}

fn connection() -> impl Strategy<Value = ConnectionId> {
    (0..5usize).prop_map(nth_connection)
}

fn user() -> impl Strategy<Value = Option<UserId>> {
    (0..4usize).prop_map(|n| n.checked_sub(1).map(nth_user))
}

fn info() -> impl Strategy<Value = Info> {
    (0..3).prop_map(|n| match n {
        0 => Info::EMPTY,
        _ => Info::new(serde_json::json!({ "n": n })).unwrap(),
    })
}

fn cause() -> impl Strategy<Value = Cause> {
    use Cause::*;
    select(vec![Left, Disconnected, Replaced, Kicked, SlowConsumer, RoomClosed, NodeLost, Shutdown])
}

fn join() -> impl Strategy<Value = Step> {
    (room(), connection(), user(), info()).prop_map(|(room, connection, user, info)| Step::Join {
        room,
        connection,
        user,
        info,
    })
}

fn leave() -> impl Strategy<Value = Step> {
    (room(), connection(), cause()).prop_map(|(room, connection, cause)| Step::Leave {
        room,
        connection,
        cause,
    })
}

/// Ages and steps of time have the same grain, so that an age is often met exactly.
const GRAIN: i64 = 1_000_000;

pub fn age() -> impl Strategy<Value = Duration> {
    (0..6u64).prop_map(|grains| Duration::from_micros(grains * GRAIN as u64))
}

fn pass() -> impl Strategy<Value = Step> {
    let ahead = select(vec![0, 1, GRAIN, 2 * GRAIN, 3 * GRAIN, GRAIN - 1]);
    let either = select(vec![0, GRAIN, 3 * GRAIN, -1, -GRAIN, -7 * GRAIN]);
    let clocks = prop_oneof![
        4 => ahead.prop_map(|by| (by, by)),
        1 => (either.clone(), either),
    ];
    clocks.prop_map(|(monotonic, wall)| Step::Pass { monotonic, wall })
}

/// A prune, a leave and a rejoin of one connection, in any order.
fn race() -> impl Strategy<Value = Vec<Step>> {
    (age(), room(), connection(), user(), info(), cause())
        .prop_map(|(age, room, connection, user, info, cause)| {
            let leave = Step::Leave { room: room.clone(), connection, cause };
            vec![Step::Prune { age }, leave, Step::Join { room, connection, user, info }]
        })
        .prop_shuffle()
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => join(),
        4 => leave(),
        1 => (connection(), cause())
            .prop_map(|(connection, cause)| Step::LeaveAll { connection, cause }),
        4 => connection().prop_map(|connection| Step::Touch { connection }),
        3 => (room(), connection(), info())
            .prop_map(|(room, connection, info)| Step::UpdateInfo { room, connection, info }),
        1 => (0..3usize, info())
            .prop_map(|(n, info)| Step::UpdateUser { user: nth_user(n), info }),
        2 => age().prop_map(|age| Step::Prune { age }),
        1 => (room(), cause()).prop_map(|(room, cause)| Step::CloseRoom { room, cause }),
        1 => (0..3usize).prop_map(|n| Step::Kick { user: nth_user(n) }),
        5 => pass(),
    ]
}

/// A history of up to [`LONGEST`] steps.
pub fn history() -> impl Strategy<Value = Vec<Step>> {
    let steps = prop_oneof![9 => step().prop_map(|step| vec![step]), 1 => race()];
    prop::collection::vec(steps, 0..=LONGEST).prop_map(|steps| {
        let mut steps: Vec<_> = steps.into_iter().flatten().collect();
        steps.truncate(LONGEST);
        steps
    })
}

/// Limits that a history reaches, and such as it does not.
pub fn limits() -> impl Strategy<Value = Limits> {
    let rooms = select(vec![Limits::default().rooms_per_connection, 2, 1, 0]);
    let size = select(vec![None, Some(3), Some(1), Some(0)]);
    let both = (rooms, size)
        .prop_map(|(rooms_per_connection, room_size)| Limits { rooms_per_connection, room_size });
    prop_oneof![3 => Just(Limits::default()), 2 => both]
}

/// A clock that a history sets.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    monotonic: i64,
    wall: i64,
}

impl Time {
    pub fn start() -> Self {
        Self { monotonic: 10 * GRAIN, wall: 0 }
    }

    pub fn now(self) -> Moment {
        let monotonic = Duration::from_micros(self.monotonic as u64);
        Moment::new(monotonic, DateTime::from_timestamp_micros(self.wall).unwrap())
    }

    /// Passes if the step is that time passes.
    pub fn take(&mut self, step: &Step) {
        if let Step::Pass { monotonic, wall } = step {
            self.monotonic = (self.monotonic + monotonic).max(0);
            self.wall += wall;
        }
    }
}

/// Takes one step with the model.
pub fn take(rooms: &mut Rooms, step: &Step, now: Moment) -> Result<Vec<Diff>, LimitReached> {
    Ok(match step.clone() {
        Step::Join { room, connection, user, info } => {
            Vec::from_iter(rooms.join(&room, connection, user, info, now)?)
        }
        Step::Leave { room, connection, cause } => {
            Vec::from_iter(rooms.leave(&room, connection, cause))
        }
        Step::LeaveAll { connection, cause } => rooms.leave_all(connection, cause),
        Step::Touch { connection } => {
            rooms.touch(connection, Activity::Frame, now);
            Vec::new()
        }
        Step::UpdateInfo { room, connection, info } => {
            Vec::from_iter(rooms.update_info(&room, connection, info, now))
        }
        Step::UpdateUser { user, info } => rooms.update_user(&user, &info, now),
        Step::Prune { age } => rooms.prune(now, age),
        Step::CloseRoom { room, cause } => Vec::from_iter(rooms.close_room(&room, cause)),
        Step::Kick { user } => {
            let connections = rooms.connections_of(&user);
            let all = connections.into_iter().flat_map(|c| rooms.leave_all(c, Cause::Kicked));
            all.collect()
        }
        Step::Pass { .. } => Vec::new(),
    })
}
