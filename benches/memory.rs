//! How many bytes a presence takes: `cargo bench --bench memory`.
//!
//! Counted are the bytes that are asked of the allocator and kept, without its own overhead. Names of
//! rooms and users and infos exist before the count starts: they are shared, not copied.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use actix_presence::{ConnectionId, Info, Limits, Moment, RoomName, Rooms, UserId};

const PRESENCES: usize = 100_000;

#[global_allocator]
static HEAP: Counting = Counting;
static KEPT: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: all is left to the system's allocator; only sizes are counted on the way.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        KEPT.fetch_add(layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        KEPT.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn main() {
    let user = |i| Some(UserId::new(format!("user-{i}")).unwrap());
    println!("bytes per presence, {PRESENCES} presences");
    report_all(1000);
    println!("besides names and info:");
    report("one room, a user each", 1, user);
    report("one room, anonymous", 1, |_| None);
    report("one room, 10 connections a user", 1, |i| user(i / 10));
    report("100000 rooms of one, a user each", PRESENCES, user);
    report("100000 rooms of one, anonymous", PRESENCES, |_| None);

    let names = heap_of(|| (0..PRESENCES).map(|i| user(i).unwrap()).collect::<Vec<_>>());
    println!("{:>6}  a name like user-12345, once", names / PRESENCES - size_of::<UserId>());
}

/// Everything: each presence has a user and an info of its own.
fn report_all(room_count: usize) {
    let now = Moment { monotonic: 0, wall: 0 };
    let bytes = heap_of(|| {
        let named = |i| RoomName::new(format!("room-{i}")).unwrap();
        let names: Vec<_> = (0..room_count).map(named).collect();
        let mut rooms = Rooms::new(Limits::default());
        for i in 0..PRESENCES {
            let user = UserId::new(format!("user-{i}")).unwrap();
            let info = Info::new(serde_json::json!({"name": "Ada"})).unwrap();
            let room = &names[i % room_count];
            rooms.join(room, ConnectionId::new(), Some(user), info, now).unwrap();
        }
        rooms
    });
    let bytes = bytes / PRESENCES;
    println!("{bytes:>6}  {room_count} rooms, a user and a small info each, with their texts");
}

fn report(town: &str, room_count: usize, user: impl Fn(usize) -> Option<UserId>) {
    let named = |i| RoomName::new(format!("room-{i}")).unwrap();
    let names: Vec<_> = (0..room_count).map(named).collect();
    let users: Vec<_> = (0..PRESENCES).map(user).collect();
    let now = Moment { monotonic: 0, wall: 0 };
    let bytes = heap_of(|| {
        let mut rooms = Rooms::new(Limits::default());
        for (i, user) in users.iter().enumerate() {
            let room = &names[i % room_count];
            rooms.join(room, ConnectionId::new(), user.clone(), Info::EMPTY, now).unwrap();
        }
        rooms
    });
    println!("{:>6}  {town}", bytes / PRESENCES);
}

/// The bytes on the heap that belong to the value.
fn heap_of<T>(make: impl FnOnce() -> T) -> usize {
    let before = KEPT.load(Relaxed);
    let value = make();
    let bytes = KEPT.load(Relaxed) - before;
    drop(value);
    bytes
}
