//! What is taken for a batch, and when.

use std::time::Duration;

use actix::prelude::*;

use super::{
    COMMIT_INTERVAL, CloseStore, Mirror, PruneRoomRows, Renew, Write, Writer,
    dirty::{Dirty, Memory, Taken},
    schedule::WriteSchedule,
};
use crate::{
    messages::FlushError,
    model::{
        Cause, ConnectionId, Info, Moment, NodeName, Presence, PresenceRecord, RoomName, Rooms,
    },
    store::{Applied, Renewal, Row, reader::retry_pause},
    testing::MemoryDatabase,
};

const NOW: Moment = Moment { monotonic: 0, wall: 0 };

struct World {
    rooms: Rooms,
    dirty: Dirty,
    room: RoomName,
}

impl World {
    fn new() -> Self {
        let room = RoomName::new("lobby").unwrap();
        Self { rooms: Rooms::default(), dirty: Dirty::default(), room }
    }

    fn join(&mut self, id: u128) {
        let id = ConnectionId::from_u128(id);
        let diff = self.rooms.join(&self.room, id, None, Info::EMPTY, NOW).unwrap();
        self.dirty.mark(&diff.unwrap());
    }

    fn leave(&mut self, id: u128) {
        let id = ConnectionId::from_u128(id);
        self.dirty.mark(&self.rooms.leave(&self.room, id, Cause::Left).unwrap());
    }

    /// What the next batch writes and deletes.
    fn take(&mut self) -> (Vec<u128>, Vec<u128>, Taken) {
        let (batch, taken) = self.dirty.take(&Memory::alone(&self.rooms), 100);
        let number = |id: ConnectionId| u128::from_str_radix(&id.to_string(), 16).unwrap();
        let upserts = batch.upserts.iter().map(|row| number(row.record.presence.connection));
        let deletes = batch.deletes.iter().map(|(_, id)| number(*id));
        (upserts.collect(), deletes.collect(), taken)
    }
}

#[test]
fn a_join_and_its_leave_between_two_batches_cancel_out() {
    let mut world = World::new();
    world.join(1);
    world.join(2);
    world.leave(1);
    let (upserts, deletes, _) = world.take();
    assert_eq!((upserts, deletes), (vec![2], vec![]));
}

#[test]
fn a_leave_after_its_join_was_taken_is_a_delete_also_when_that_batch_failed() {
    for failed in [false, true] {
        let mut world = World::new();
        world.join(1);
        let (_, _, taken) = world.take();
        world.leave(1);
        if failed {
            world.dirty.put_back(taken, false);
        }
        let (upserts, deletes, _) = world.take();
        assert_eq!((upserts, deletes), (vec![], vec![1]), "failed: {failed}");
    }
}

#[test]
fn a_row_that_is_written_for_the_first_time_cannot_have_been_removed_by_others() {
    let mut world = World::new();
    world.join(1);
    world.join(2);
    world.dirty.mark_one(world.room.clone(), ConnectionId::from_u128(3));
    let (_, _, taken) = world.take();
    let first = taken.first_rows(&world.room);
    assert_eq!(first, [1, 2].map(ConnectionId::from_u128).into_iter().collect());
    assert!(taken.first_rows(&RoomName::new("another room").unwrap()).is_empty());
}

#[test]
fn what_is_marked_again_keeps_its_place_in_the_queue() {
    let mut world = World::new();
    world.join(1);
    let mark = world.dirty.newest();
    world.join(2);
    let id = ConnectionId::from_u128(1);
    let info = Info::new(serde_json::json!({"again": true})).unwrap();
    world.dirty.mark(&world.rooms.update_info(&world.room, id, info, NOW).unwrap());
    assert!(!world.dirty.is_clean(mark));
    let (batch, _) = world.dirty.take(&Memory::alone(&world.rooms), 1);
    assert_eq!(batch.upserts[0].record.presence.connection, id);
    assert!(world.dirty.is_clean(mark));
}

#[test]
fn ended_connections_are_not_marked_as_seen() {
    let mut world = World::new();
    for id in 1..4 {
        world.join(id);
        world.dirty.heard(ConnectionId::from_u128(id));
    }
    world.dirty.forget(ConnectionId::from_u128(1));
    world.dirty.sweep(1);
    world.dirty.forget(ConnectionId::from_u128(2));
    world.dirty.sweep(1);
    world.dirty.sweep(usize::MAX);
    let (batch, _) = world.dirty.take(&Memory::alone(&world.rooms), 100);
    let seen: Vec<_> = batch.seen.into_iter().map(|seen| seen.connection).collect();
    assert_eq!(seen, [ConnectionId::from_u128(3)]);
}

#[test]
fn seen_connections_take_turns_if_there_are_too_many() {
    let mut world = World::new();
    let ids: Vec<_> = (1..5).map(ConnectionId::from_u128).collect();
    (1..5).for_each(|id| world.join(id));
    world.take();
    let mut written = Vec::new();
    for _ in 0..4 {
        ids.iter().for_each(|id| world.dirty.heard(*id));
        world.dirty.sweep(2);
        let (batch, _) = world.dirty.take(&Memory::alone(&world.rooms), 100);
        assert_eq!(batch.seen.len(), 2);
        written.extend(batch.seen.into_iter().map(|seen| seen.connection));
    }
    assert_eq!(written, [&ids[..], &ids[..]].concat());
}

#[test]
fn what_was_put_back_is_older_than_later_marks() {
    let mut world = World::new();
    world.join(1);
    let mark = world.dirty.newest();
    let (_, _, taken) = world.take();
    world.join(2);
    assert!(world.dirty.is_clean(mark));
    world.dirty.put_back(taken, false);
    assert!(!world.dirty.is_clean(mark));
    let (batch, _) = world.dirty.take(&Memory::alone(&world.rooms), 1);
    assert_eq!(batch.upserts[0].record.presence.connection, ConnectionId::from_u128(1));
    assert!(world.dirty.is_clean(mark));
}

#[test]
fn a_taken_over_presence_that_has_left_is_dirty_until_its_row_is_deleted() {
    let mut world = World::new();
    let gone = Presence {
        connection: ConnectionId::from_u128(1),
        user: None,
        info: Info::EMPTY,
        joined_at: NOW.utc(),
        updated_at: NOW.utc(),
    };
    let (room, record) = (world.room.clone(), PresenceRecord::new(gone));
    world.dirty.adopt(Row { room, record });
    let mark = world.dirty.newest();
    // More than fit into a batch.
    (2..5).for_each(|id| world.join(id));
    let (batch, taken) = world.dirty.take(&Memory::alone(&world.rooms), 2);
    assert_eq!((batch.upserts.len(), batch.deletes.len()), (2, 0));
    world.dirty.committed(&taken);
    assert!(!world.dirty.is_clean(mark), "its row is still to be deleted");
    let (batch, taken) = world.dirty.take(&Memory::alone(&world.rooms), 2);
    assert_eq!((batch.upserts.len(), batch.deletes.len()), (1, 1));
    world.dirty.committed(&taken);
    assert!(world.dirty.is_clean(mark));
}

#[test]
fn an_urgent_batch_waits_for_the_database_but_not_for_the_commit_interval() {
    let mut schedule = WriteSchedule::new(COMMIT_INTERVAL);
    assert!(schedule.allows(false));
    assert_eq!(schedule.begin_interval(), Some(COMMIT_INTERVAL));
    assert_eq!(schedule.begin_interval(), None, "one at a time");
    assert!(!schedule.allows(false) && schedule.allows(true));
    schedule.end_interval();
    assert!(schedule.allows(false));
    let first = schedule.pause_after_failure();
    assert_eq!(first, retry_pause(0));
    assert_eq!(schedule.pause_after_failure(), 2 * first);
    assert!(!schedule.allows(true));
    schedule.resume();
    assert!(schedule.allows(false));
    assert_eq!(WriteSchedule::new(Duration::ZERO).begin_interval(), None);
}

#[actix::test]
async fn once_it_is_closed_nothing_is_sent_to_the_writer_and_waiting_flushes_fail() {
    let store = Box::new(MemoryDatabase::new().store());
    let writer =
        Writer::new(store, NodeName::new("n").unwrap(), Duration::from_secs(15)).run().unwrap();
    let mut mirror = Mirror::new(writer.into(), Duration::ZERO, Duration::from_secs(5));
    let mut rooms = Rooms::default();
    let room = RoomName::new("lobby").unwrap();
    let joined = rooms.join(&room, ConnectionId::from_u128(1), None, Info::EMPTY, NOW);
    mirror.mark(&joined.unwrap().unwrap(), &rooms);
    let waits = mirror.commit();
    mirror.close();
    assert!(waits.await.is_err());
    // A client that has come back on another node, a timer, or a flush that comes too late.
    mirror.mark_one(room, ConnectionId::from_u128(1));
    assert!(mirror.next(&Memory::alone(&rooms), NOW).is_none());
    assert!(mirror.renew(NOW).is_none());
    assert!(mirror.commit().await.is_err());
    mirror.reopen();
    assert!(mirror.next(&Memory::alone(&rooms), NOW).is_some());
    assert!(mirror.renew(NOW).is_some());
}

/// A writer that answers nothing.
struct Silent;

impl Actor for Silent {
    type Context = Context<Self>;
}

macro_rules! silent {
    ($($message:ty),*) => {$(
        impl Handler<$message> for Silent {
            type Result = ResponseFuture<<$message as Message>::Result>;

            fn handle(&mut self, _: $message, _: &mut Context<Self>) -> Self::Result {
                Box::pin(std::future::pending())
            }
        }
    )*};
}
silent!(Write, Renew, PruneRoomRows, CloseStore);

#[actix::test]
async fn a_database_that_does_not_answer_is_in_trouble_after_a_while_and_flushes_are_told() {
    let stall_timeout = Duration::from_secs(5);
    let at = |seconds| Moment::new(Duration::from_secs(seconds), NOW.utc());
    for renewing in [false, true] {
        let mut mirror = Mirror::new(Silent.start().into(), Duration::ZERO, stall_timeout);
        let rooms = Rooms::default();
        let waits = mirror.commit();
        if renewing {
            assert!(mirror.renew(at(0)).is_some());
        } else {
            assert!(mirror.next(&Memory::alone(&rooms), at(0)).is_some());
        }
        mirror.check_stall(at(5));
        assert!(mirror.trouble().is_none());
        mirror.check_stall(at(6));
        let trouble = mirror.trouble().unwrap();
        assert_eq!((trouble.reason, trouble.since), ("stalled", at(0)));
        assert!(matches!(waits.await.unwrap(), Err(FlushError::Stalled)));
        // It has answered after all.
        let _ = mirror.renewed(Ok(Renewal::Held), &rooms, at(9));
        let _ = mirror.written(Ok(Applied::default()), &rooms, at(9));
        assert!(mirror.trouble().is_none());
    }
}
