//! Rooms: who may enter them, who is where, and how all of them end.

mod common;

use actix::prelude::*;
use actix_presence::*;
use common::{Harness, room, stuck::stuck_on, user};

#[actix::test]
async fn a_join_over_a_limit_is_refused_and_changes_nothing() {
    let mut t = Harness::with("sqlite::memory:", |c| c.room_size(1).rooms_per_connection(2)).await;
    let ada = t.enter("a", Some("ada")).await;
    let bob = t.session();
    let full = JoinError::Limit(LimitReached::RoomFull { limit: 1 });
    assert_eq!(t.join(&bob, "a", None).await.unwrap_err(), full);
    let admit = Admit { room: room("a"), user: None, info: Info::EMPTY, session: None };
    assert_eq!(t.registry.send(admit).await.unwrap(), Err(full));
    assert!(t.join(&ada, "a", Some("ada2")).await.is_ok(), "who is in may change its user");
    t.join(&ada, "b", None).await.unwrap();
    let many = JoinError::Limit(LimitReached::TooManyRooms { limit: 2 });
    assert_eq!(t.join(&ada, "c", None).await.unwrap_err(), many);
    assert_eq!(t.changes().await.len(), 3);
    assert_eq!(t.say("a", "hi").await, 1);
}

#[actix::test]
async fn the_authorize_hook_decides_and_its_panic_refuses_but_ends_nothing() {
    let t = Harness::with("sqlite::memory:", |config| {
        config.authorize(|room, user, info| match room.as_str() {
            "staff" if user.is_none() => Decision::deny("staff only"),
            "vip" if info.is_empty() => Decision::deny("say who you are"),
            "boom" => panic!("the app's own fault"),
            _ => Decision::Allow,
        })
    })
    .await;
    let denied = |result: Result<Joined, JoinError>| match result {
        Err(JoinError::Denied { reason }) => reason.into_owned(),
        other => panic!("not denied: {other:?}"),
    };
    let session = t.session();
    assert_eq!(denied(t.join(&session, "staff", None).await), "staff only");
    assert_eq!(denied(t.join(&session, "vip", Some("ada")).await), "say who you are");
    let unknown = t.join(&session, "boom", Some("ada")).await.unwrap_err();
    assert_eq!(unknown, JoinError::Undecided);
    assert!(t.join(&session, "staff", Some("ada")).await.unwrap().changed);
}

#[actix::test]
async fn who_is_where_is_told_by_user_by_room_and_in_pages() {
    let t = Harness::new().await;
    let ada = t.enter("b", Some("ada")).await;
    t.join(&ada, "a", Some("ada")).await.unwrap();
    t.enter("b", Some("ada")).await;
    t.enter("c", None).await;

    let rooms = t.registry.send(WhereIs { user: user("ada") }).await.unwrap().unwrap();
    assert_eq!(rooms, [(room("a"), 1), (room("b"), 2)]);
    let page =
        |after: Option<&str>| t.registry.send(ListRooms { after: after.map(room), limit: 2 });
    let names = |page: Vec<RoomSummary>| -> Vec<String> {
        page.into_iter().map(|summary| summary.room.to_string()).collect()
    };
    assert_eq!(names(page(None).await.unwrap().unwrap()), ["a", "b"]);
    assert_eq!(names(page(Some("b")).await.unwrap().unwrap()), ["c"]);
    let presences = |after| t.registry.send(ListPresences { room: room("b"), after, limit: 1 });
    let first = presences(None).await.unwrap().unwrap().unwrap().remove(0);
    assert_eq!((first.presence.connection, first.last_seen), (ada.id, t.clock.now()));
    let second = presences(Some(first.presence.clone())).await.unwrap().unwrap().unwrap().remove(0);
    assert_ne!(second.presence.connection, ada.id);
    assert_eq!(presences(Some(second.presence)).await.unwrap().unwrap(), Some(vec![]));
}

#[actix::test]
async fn a_shutdown_says_goodbye_to_everybody_and_lets_nobody_in_any_more() {
    let mut t = Harness::new().await;
    let mut ada = t.enter("lobby", Some("ada")).await;
    let bob = t.enter("lobby", Some("bob")).await;
    t.changes().await;
    t.registry.send(Shutdown).await.unwrap().unwrap();
    assert_eq!(ada.closed().await, Disconnect { code: 1001, cause: Cause::Shutdown });
    let change = t.change().await;
    assert_eq!((change.leaves().len(), change.cause()), (2, Some(Cause::Shutdown)));
    assert_eq!(t.join(&bob, "lobby", None).await.unwrap_err(), JoinError::ShuttingDown);
    assert!(t.registry.send(GetStatus).await.unwrap().closing);
}

#[actix::test]
async fn a_member_whose_actor_has_ended_leaves_as_the_others_do_once_a_stop_has_told_it_to_close() {
    let mut t = Harness::new().await;
    let arbiter = Arbiter::new();
    let (gone, _, _) = stuck_on::<ForwardMessage>(&arbiter);
    let id = ConnectionId::new();
    t.registry.send(Join::new(room("lobby"), id, gone.recipient())).await.unwrap().unwrap();
    let mut ada = t.enter("lobby", Some("ada")).await;
    t.changes().await;
    arbiter.stop();
    arbiter.join().unwrap();

    let stopping = t.registry.send(Shutdown);
    assert_eq!(ada.closed().await.cause, Cause::Shutdown);
    // All have been told. Ada stays a little, so this finds out who does not take it.
    t.say("lobby", "hello?").await;
    let change = t.change().await;
    assert_eq!(change.leaves()[0].presence.connection, id);
    assert_eq!(change.cause(), Some(Cause::Shutdown));
    stopping.await.unwrap().unwrap();
}
