//! A part that ends by itself ends the presence system, and that is told.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use actix_presence::{
    testing::{Heard, Probe},
    *,
};
use common::{room, secs};
use tokio::time::timeout;

/// How long it may take until a crash is told, on a busy machine.
const SOON: Duration = secs(10);

/// A system whose actors panic from a moment on.
fn doomed() -> (PresenceHandle, Arc<AtomicBool>) {
    let panics = Arc::<AtomicBool>::default();
    let (clock, doom) = (Clock::system(), panics.clone());
    let clock = Clock::from_fn(move || {
        assert!(!doom.load(SeqCst), "as the test says");
        clock.now()
    });
    let presence = PresenceConfig::new("sqlite::memory:").clock(clock).start().unwrap();
    (presence, panics)
}

#[actix::test]
async fn a_registry_that_panics_is_told_and_answers_nobody() {
    let (presence, panics) = doomed();
    assert_eq!(presence.crashed(), None);
    let waiting = presence.clone();
    let closed = actix::spawn(async move { waiting.closed().await });
    panics.store(true, SeqCst);
    assert!(presence.registry().send(GetStatus).await.is_err());
    let closed = timeout(SOON, closed).await.unwrap().unwrap();
    assert_eq!(closed, Err(Crashed::Registry));
    assert_eq!(presence.crashed(), Some(Crashed::Registry));
    // A shutdown that comes too late changes nothing about it.
    assert!(presence.clone().shutdown(secs(5)).await.is_err());
    assert_eq!(presence.closed().await, Err(Crashed::Registry));
}

#[actix::test]
async fn a_system_that_was_shut_down_is_closed_in_order() {
    let (presence, _) = doomed();
    let waiting = presence.clone();
    let closed = actix::spawn(async move { waiting.closed().await });
    presence.shutdown(secs(5)).await.unwrap();
    assert_eq!(timeout(SOON, closed).await.unwrap().unwrap(), Ok(()));
}

#[actix::test]
async fn sessions_are_told_to_close_whether_or_not_they_are_in_a_room() {
    let (presence, panics) = doomed();
    let connection = || Connection::new(presence.registry());
    let (member, nowhere, twice, actor) = (connection(), connection(), connection(), connection());
    let (outlet, mut member_heard) = member.outlet(16);
    member.enter(member.join(room("lobby"), outlet)).await.unwrap();
    let (_outlet, mut nowhere_heard) = nowhere.outlet(16);
    let (session, mut actor_heard) = Probe::<Heard>::new();
    actor.enter(actor.join(room("lobby"), session)).await.unwrap();
    // Registered, and in a room: it is told once.
    let (session, mut twice_heard) = Probe::<Heard>::new();
    twice.register(session.clone());
    twice.enter(twice.join(room("lobby"), session.clone())).await.unwrap();
    // From another thread, where no arbiter runs.
    let far = connection();
    let (stranger, mut far_heard) = Probe::<Heard>::new();
    let (id, forward, close) = (far.id(), stranger.clone().recipient(), stranger.recipient());
    let make = move || Join::new(room("lobby"), id, forward).disconnect(close);
    let join = std::thread::spawn(make).join().unwrap();
    far.enter(join).await.unwrap();

    panics.store(true, SeqCst);
    assert!(presence.registry().send(GetStatus).await.is_err());
    let told = |heard: Option<Heard>| match heard {
        Some(Heard::Close(order)) => order,
        other => panic!("no order to close: {other:?}"),
    };
    let orders = [
        told(timeout(SOON, member_heard.recv()).await.unwrap()),
        told(timeout(SOON, nowhere_heard.recv()).await.unwrap()),
        told(actor_heard.next().await),
        told(twice_heard.next().await),
        told(far_heard.next().await),
    ];
    for order in orders {
        assert_eq!((order.code, order.reason()), (1011, "internal error"));
    }
    assert_eq!(presence.closed().await, Err(Crashed::Registry));
    session.send(ForwardMessage::new(room("lobby"), Forwarded::Message, "the last")).await.unwrap();
    let last = twice_heard.next().await;
    assert!(matches!(last, Some(Heard::Frame(_))), "it is told once: {last:?}");
}
