//! What the operations of the model take: `cargo bench --bench model`.

use std::{cell::RefCell, fmt, hint::black_box, time::Duration};

use actix_presence::{
    Activity, Cause, ConnectionId, Info, Limits, Moment, RoomName, Rooms, UserId,
};
use divan::Bencher;
use serde_json::json;

fn main() {
    divan::main();
}

/// So many rooms with so many users in each, every user with one connection.
struct Town {
    rooms: usize,
    users: usize,
}

impl fmt::Display for Town {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.rooms, self.users)
    }
}

const TOWNS: [Town; 4] = [
    Town { rooms: 1, users: 1 },
    Town { rooms: 1, users: 100 },
    Town { rooms: 1, users: 10_000 },
    Town { rooms: 100_000, users: 1 },
];

impl Town {
    fn build(&self) -> Built {
        let mut built = Built {
            rooms: Rooms::new(Limits::default()),
            names: (0..self.rooms).map(room).collect(),
            connections: Vec::new(),
            info: Info::new(json!({"name": "Ada", "color": "#ff8800"})).unwrap(),
        };
        for index in 0..self.rooms * self.users {
            let connection = ConnectionId::new();
            let (room, user) = (&built.names[index % self.rooms], user("member", index));
            built.rooms.join(room, connection, Some(user), built.info.clone(), at(0)).unwrap();
            built.connections.push(connection);
        }
        built
    }
}

struct Built {
    rooms: Rooms,
    names: Vec<RoomName>,
    connections: Vec<ConnectionId>,
    info: Info,
}

fn room(index: usize) -> RoomName {
    RoomName::new(format!("room-{:06}", scatter(index, 1_000_000))).unwrap()
}

fn user(kind: &str, index: usize) -> UserId {
    UserId::new(format!("{:07}-{kind}", scatter(index, 10_000_000))).unwrap()
}

/// A number below `below`, a power of ten, that no other index has, out of order.
fn scatter(index: usize, below: usize) -> usize {
    index * 7_654_321 % below
}

fn at(millis: u64) -> Moment {
    Moment::new(Duration::from_millis(millis), chrono::DateTime::UNIX_EPOCH)
}

/// Counts round and round.
fn cycle(length: usize) -> impl FnMut() -> usize {
    let mut next = length;
    move || {
        next = if next + 1 >= length { 0 } else { next + 1 };
        next
    }
}

#[divan::bench(args = TOWNS, sample_size = 1_000)]
fn touch(bencher: Bencher, town: &Town) {
    let Built { mut rooms, connections, .. } = town.build();
    let (mut next, mut time) = (cycle(connections.len()), 0);
    bencher.bench_local(move || {
        time += 1;
        rooms.touch(black_box(connections[next()]), Activity::Frame, at(time))
    });
}

/// A further connection, of a user of its own, comes and goes.
#[divan::bench(args = TOWNS, sample_size = 1_000)]
fn join_and_leave(bencher: Bencher, town: &Town) {
    let Built { mut rooms, names, info, .. } = town.build();
    let guests: Vec<_> = (0..1_000).map(|i| (ConnectionId::new(), user("guest", i))).collect();
    let (mut next_guest, mut next_room) = (cycle(guests.len()), cycle(names.len()));
    bencher.bench_local(move || {
        let ((guest, user), room) = (&guests[next_guest()], &names[next_room()]);
        drop(black_box(rooms.join(room, *guest, Some(user.clone()), info.clone(), at(1))));
        drop(black_box(rooms.leave(room, *guest, Cause::Left)));
    });
}

/// The first connection of a room that is empty again afterwards.
#[divan::bench(sample_size = 1_000)]
fn join_and_leave_an_empty_room(bencher: Bencher) {
    let Built { mut rooms, info, .. } = Town { rooms: 1_000, users: 1 }.build();
    let (room, guest, user) = (room(1_000), ConnectionId::new(), user("guest", 0));
    bencher.bench_local(move || {
        drop(black_box(rooms.join(&room, guest, Some(user.clone()), info.clone(), at(1))));
        drop(black_box(rooms.leave(&room, guest, Cause::Left)));
    });
}

#[divan::bench(args = TOWNS, sample_size = 1_000)]
fn snapshot_then_change_of_info(bencher: Bencher, town: &Town) {
    let Built { mut rooms, names, connections, info } = town.build();
    let infos = [info, Info::EMPTY];
    let (mut next, mut which) = (cycle(connections.len()), 0);
    bencher.bench_local(move || {
        let index = next();
        if index == 0 {
            which = 1 - which;
        }
        let room = &names[index % names.len()];
        let before = rooms.snapshot(room);
        // Members have the first info, so that round 1 brings the other one.
        drop(black_box(rooms.update_info(room, connections[index], infos[which].clone(), at(0))));
        drop(black_box(before));
    });
}

/// What a reader takes to look at the room: nothing is copied.
#[divan::bench(args = TOWNS, sample_size = 1_000)]
fn snapshot_taken(bencher: Bencher, town: &Town) {
    let Built { rooms, names, .. } = town.build();
    let mut next = cycle(names.len());
    bencher.bench_local(move || black_box(rooms.snapshot(&names[next()])));
}

/// What it takes to list everybody who is in it.
#[divan::bench(args = TOWNS)]
fn snapshot_walked(bencher: Bencher, town: &Town) {
    let Built { rooms, names, .. } = town.build();
    let snapshot = rooms.snapshot(&names[0]);
    bencher.bench_local(move || {
        black_box(&snapshot).users().map(|member| member.connections).sum::<usize>()
    });
}

/// What it takes to write everybody down, once for all who are to read it.
#[divan::bench(args = TOWNS)]
fn snapshot_as_json(bencher: Bencher, town: &Town) {
    let Built { rooms, names, .. } = town.build();
    let snapshot = rooms.snapshot(&names[0]);
    bencher.bench_local(move || black_box(&snapshot).to_json());
}

/// One of those who are in it, out of order.
#[divan::bench(args = TOWNS, sample_size = 1_000)]
fn entry_of_one_member(bencher: Bencher, town: &Town) {
    let Built { rooms, names, connections, .. } = town.build();
    let members: Vec<_> = (0..connections.len()).map(|i| user("member", i)).collect();
    let mut next = cycle(members.len());
    bencher.bench_local(move || {
        let index = next();
        let entry = rooms.room(&names[index % names.len()]).and_then(|it| it.user(&members[index]));
        assert!(entry.is_some());
        entry
    });
}

/// Of a million connections the oldest thousand go; they come back between two measurements. What
/// the changes take to be dropped is not measured.
#[divan::bench(args = [1, 1_000, 100_000], sample_count = 50, sample_size = 1)]
fn prune_1_000_of_1_000_000_in_rooms(bencher: Bencher, room_count: usize) {
    const GROUP: usize = 1_000;
    const GROUPS: usize = 1_000;
    // One group joins in each millisecond, so in each millisecond one group is too old.
    let age = Duration::from_micros(GROUPS as u64 * 1_000 - 500);

    let names: Vec<_> = (0..room_count).map(room).collect();
    let users: Vec<_> = (0..GROUPS * GROUP).map(|i| user("member", i)).collect();
    let connections: Vec<_> = users.iter().map(|_| ConnectionId::new()).collect();
    let rooms = RefCell::new(Rooms::new(Limits::default()));
    let join_group = |group: usize, time: u64| {
        let mut rooms = rooms.borrow_mut();
        for i in (group % GROUPS) * GROUP..(group % GROUPS + 1) * GROUP {
            let (room, user) = (&names[scatter(i, 1_000_000) % room_count], users[i].clone());
            rooms.join(room, connections[i], Some(user), Info::EMPTY, at(time)).unwrap();
        }
    };
    (0..GROUPS).for_each(|group| join_group(group, group as u64));

    let mut time = GROUPS - 1;
    bencher
        .with_inputs(|| {
            // Those whom the last measurement removed come back as the youngest.
            if time >= GROUPS {
                join_group(time, time as u64);
            }
            time += 1;
            assert_eq!(rooms.borrow().connection_count(), GROUPS * GROUP);
            at(time as u64)
        })
        .bench_local_values(|now| {
            let diffs = rooms.borrow_mut().prune(now, age);
            assert_eq!(diffs.iter().map(|diff| diff.leaves.len()).sum::<usize>(), GROUP);
            diffs
        });
}
