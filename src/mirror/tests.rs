//! The end of the mirror.

use std::time::Duration;

use super::*;
use crate::{
    model::{Info, NodeName},
    store::{DatabaseUrl, SqliteStore},
};

const NOW: Moment = Moment { monotonic: 0, wall: 0 };

#[actix::test]
async fn once_it_is_closed_the_writer_is_asked_nothing_and_whoever_waits_is_told() {
    let store = Box::new(SqliteStore::open(&DatabaseUrl::SqliteMemory).unwrap());
    let writer = Writer::start(store, NodeName::new("n").unwrap(), Duration::from_secs(15));
    let mut mirror = Mirror::new(writer.into(), Duration::ZERO);
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
