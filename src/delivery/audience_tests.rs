//! What an audience keeps for a list is bounded.

use std::time::Duration;

use super::*;
use crate::{
    counters::Counter,
    messages::Content,
    model::{Info, Moment, RoomName, Rooms, UserId},
};

struct Stage {
    rooms: Rooms,
    room: RoomName,
    audience: Audience,
    joined: u128,
}

impl Stage {
    /// A room with so many listeners that no few changes are a crowd.
    fn new() -> Self {
        let (rooms, room) = (Rooms::default(), RoomName::new("room").unwrap());
        let mut audience = Audience::new(rooms.snapshot(&room), usize::MAX);
        audience.listeners = 100_000;
        Self { rooms, room, audience, joined: 0 }
    }

    /// Somebody comes, at this time.
    fn join(&mut self, now: u64) -> (ConnectionId, Snapshot) {
        self.joined += 1;
        let id = ConnectionId::from_u128(self.joined);
        let user = Some(UserId::new(format!("user {}", self.joined)).unwrap());
        let moment = Moment { monotonic: now, wall: 0 };
        let diff = self.rooms.join(&self.room, id, user, Info::EMPTY, moment).unwrap().unwrap();
        let room = self.rooms.snapshot(&self.room);
        self.audience.note(&diff, Some(&room), now);
        (id, room)
    }

    /// A list that costs so much.
    fn list(&mut self, cost: Duration, now: u64) -> Vec<Next> {
        let room = self.rooms.snapshot(&self.room);
        let next = self.audience.take(&room, 1, now);
        self.audience.returned(Desk::default(), cost, now);
        next
    }

    /// The newest member says so many bytes.
    fn say(&mut self, sender: ConnectionId, bytes: usize, now: u64) {
        let room = self.rooms.snapshot(&self.room);
        let content = Content::Text("x".repeat(bytes).into());
        let tally = Counter::new("presence_deliveries_total");
        let (message, _) = Published::new(self.room.clone(), content, None, tally);
        let (message, after) = (Arc::new(message), room.version());
        let said = Said { message, sender: Some(sender), except: None, entries: u64::MAX, after };
        self.audience.wait(said, sender, &room, now);
    }
}

#[test]
fn messages_wait_for_a_list_no_longer_than_a_second_and_only_up_to_a_mebibyte() {
    let mut stage = Stage::new();
    stage.join(1);
    // So that the next list would come in three seconds.
    assert_eq!(stage.list(Duration::from_secs(1), 1).len(), 1);
    let (sender, _) = stage.join(1000);
    assert_eq!(stage.audience.next(1000), Some(3_000_001));
    stage.say(sender, MAX_WAITING / 2, 1000);
    assert_eq!(stage.audience.next(1000), Some(1_001_000));
    stage.say(sender, MAX_WAITING / 2 - 2 * MESSAGE_OVERHEAD, 2000);
    assert_eq!(stage.audience.next(2000), Some(1_001_000), "since the first of them");
    assert!(stage.list(Duration::ZERO, 2000).is_empty());
    stage.say(sender, 1, 3000);
    assert_eq!(stage.audience.next(3000), Some(3000));
    assert_eq!(stage.list(Duration::ZERO, 3000).len(), 4, "a list, then what has waited for it");
}

#[test]
fn whoever_comes_at_a_version_that_is_not_kept_gets_the_whole_list_again() {
    let mut stage = Stage::new();
    let mut versions = Vec::new();
    for _ in 0..MAX_BASES + 2 {
        let (_, room) = stage.join(1);
        stage.audience.greet(&room, 1);
        versions.push(room.version());
    }
    stage.join(1);
    let next = stage.list(Duration::ZERO, 1);
    let [Next::List(list)] = &next[..] else { panic!("one list") };
    let kept = |version: &u64| list.diff(*version).is_some();
    assert!(versions[..MAX_BASES].iter().all(kept));
    assert!(!versions[MAX_BASES..].iter().any(kept));
    assert!(kept(&0), "who was there before");
}
