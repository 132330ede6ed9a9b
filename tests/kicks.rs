//! Kicks and closed rooms: who is removed, and what it is told.

mod common;

use actix_presence::{testing::Heard, *};
use common::{Harness, nodes::World, room, secs, user};

#[actix::test]
async fn a_kick_removes_a_connection_or_all_of_a_user_from_every_room() {
    let mut t = Harness::new().await;
    let mut tab = t.enter("a", Some("ada")).await;
    t.join(&tab, "b", Some("ada")).await.unwrap();
    let mut phone = t.enter("a", Some("ada")).await;
    let mut bob = t.enter("a", Some("bob")).await;
    t.changes().await;

    assert_eq!(t.registry.send(Kick::User(user("ada"))).await.unwrap().connections, 2);
    assert_eq!(t.registry.send(Kick::User(user("ada"))).await.unwrap().connections, 0);
    assert_eq!(t.users("a").await, ["bob"]);
    let kicked = Disconnect { code: 4001, cause: Cause::Kicked };
    assert_eq!([tab.closed().await, phone.closed().await], [kicked; 2]);
    assert_eq!(t.changes().await.len(), 3);

    assert_eq!(t.registry.send(Kick::Connection(bob.id)).await.unwrap().connections, 1);
    assert_eq!(bob.closed().await, kicked);
    let nobody = Kick::Connection(ConnectionId::new());
    assert_eq!(t.registry.send(nobody).await.unwrap(), Kicked::default());
}

#[actix::test]
async fn a_kick_from_one_room_says_so_and_closes_who_is_in_no_other() {
    let mut t = Harness::with("sqlite::memory:", |config| config.grace(secs(10))).await;
    let mut here = t.enter("a", Some("ada")).await;
    let mut elsewhere_too = t.enter("a", Some("ada")).await;
    t.join(&elsewhere_too, "b", Some("ada")).await.unwrap();
    let away = t.session();
    let join = away.joining("a", Some("ada")).session(SessionKey::new("tab").unwrap());
    t.registry.send(join).await.unwrap().unwrap();
    t.registry.send(LeaveAll::because(away.id, Cause::Disconnected)).await.unwrap();
    let bob = t.enter("a", Some("bob")).await;
    t.changes().await;

    let kick = |name: &str, whom| t.registry.send(KickFrom { room: room(name), whom });
    let kicked = kick("a", Kick::User(user("ada"))).await.unwrap();
    assert_eq!((kicked.connections, kicked.partial), (3, false));
    assert_eq!(here.closed().await, Disconnect { code: 4001, cause: Cause::Kicked });
    let heard = elsewhere_too.heard().await;
    let [Heard::Frame(closed)] = &heard[..] else { panic!("one message: {heard:?}") };
    let out = Forwarded::Closed { cause: Cause::Kicked };
    assert_eq!((closed.kind, closed.room.as_str()), (out, "a"));
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!((change.leaves().len(), change.cause()), (3, Some(Cause::Kicked)));
    assert_eq!(t.users("b").await, ["ada"]);

    let kick = |name: &str, whom| t.registry.send(KickFrom { room: room(name), whom });
    for (name, whom, expected) in [
        ("a", Kick::User(user("ada")), 0),
        ("nowhere", Kick::User(user("ada")), 0),
        ("b", Kick::Connection(bob.id), 0),
        ("a", Kick::Connection(bob.id), 1),
    ] {
        assert_eq!(kick(name, whom.clone()).await.unwrap().connections, expected, "{whom:?}");
    }
    // Nobody is banned.
    t.join(&elsewhere_too, "a", Some("ada")).await.unwrap();
}

#[actix::test]
async fn closing_a_room_is_one_change_and_closes_those_who_are_nowhere_else() {
    let mut t = Harness::new().await;
    let mut only_here = t.enter("a", Some("ada")).await;
    let mut elsewhere_too = t.enter("a", Some("bob")).await;
    t.join(&elsewhere_too, "b", Some("bob")).await.unwrap();
    t.changes().await;

    assert_eq!(t.registry.send(CloseRoom { room: room("a") }).await.unwrap().connections, 2);
    assert_eq!(only_here.closed().await, Disconnect { code: 4004, cause: Cause::RoomClosed });
    let heard = elsewhere_too.heard().await;
    let [Heard::Frame(closed)] = &heard[..] else { panic!("one message: {heard:?}") };
    let room_closed = Forwarded::Closed { cause: Cause::RoomClosed };
    assert_eq!((closed.kind, closed.room.as_str()), (room_closed, "a"));
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!((change.leaves().len(), change.bulk_change()), (2, true));
    t.join(&only_here, "a", None).await.unwrap();
    assert!(t.change().await.version > change.version, "versions go on above the old ones");
}

#[actix::test]
async fn a_phoenix_member_is_told_when_its_room_closes_and_it_stays_in_others() {
    let t = Harness::new().await;
    let mut ada = t.session();
    for name in ["a", "b"] {
        let join = ada.joining(name, Some("ada")).dialect(Dialect::Phoenix);
        t.registry.send(join).await.unwrap().unwrap();
    }
    ada.heard().await;
    t.registry.send(CloseRoom { room: room("a") }).await.unwrap();
    let heard = ada.heard().await;
    let [Heard::Frame(closed)] = &heard[..] else { panic!("one message: {heard:?}") };
    let room_closed = Forwarded::Closed { cause: Cause::RoomClosed };
    assert_eq!((closed.kind, closed.room.as_str()), (room_closed, "a"));
    t.registry.send(CloseRoom { room: room("b") }).await.unwrap();
    assert_eq!(ada.closed().await, Disconnect { code: 4004, cause: Cause::RoomClosed });
}

#[actix::test]
async fn a_member_of_several_rooms_is_told_when_one_is_closed_in_every_dialect() {
    let dialects = [
        Dialect::Raw,
        Dialect::Json(Feed::None),
        Dialect::Json(Feed::Diff),
        Dialect::Json(Feed::Full),
        Dialect::Phoenix,
    ];
    for dialect in dialects {
        let t = Harness::new().await;
        let mut ada = t.session();
        for name in ["a", "b"] {
            let join = ada.joining(name, None).dialect(dialect);
            t.registry.send(join).await.unwrap().unwrap();
        }
        ada.heard().await;
        t.registry.send(CloseRoom { room: room("a") }).await.unwrap();
        let heard = ada.heard().await;
        let [Heard::Frame(closed)] = &heard[..] else {
            panic!("one message for {dialect:?}: {heard:?}")
        };
        let room_closed = Forwarded::Closed { cause: Cause::RoomClosed };
        assert_eq!((closed.kind, closed.room.as_str()), (room_closed, "a"));
        assert_eq!(closed.payload, "");
        t.leave(&ada, "b").await;
        assert!(ada.heard().await.is_empty(), "it has left by itself");
    }
}

#[actix::test]
async fn a_session_in_several_rooms_hears_why_it_is_out_of_one_in_every_dialect() {
    let t = Harness::new().await;
    for dialect in
        [Dialect::Raw, Dialect::Json(Feed::Full), Dialect::Json(Feed::None), Dialect::Phoenix]
    {
        let mut ada = t.session();
        for cause in [Cause::Kicked, Cause::RoomClosed, Cause::Expired] {
            for name in ["a", "b"] {
                let join = ada.joining(name, Some("ada")).dialect(dialect);
                t.registry.send(join).await.unwrap().unwrap();
            }
            ada.heard().await;
            let leave = Leave { cause, ..Leave::new(room("a"), ada.id) };
            assert!(t.registry.send(leave).await.unwrap());
            let heard = ada.heard().await;
            let closed = heard.iter().find_map(|one| match one {
                Heard::Frame(frame) if frame.room == "a" => Some(frame.kind),
                _ => None,
            });
            assert_eq!(closed, Some(Forwarded::Closed { cause }), "{dialect:?}");
        }
    }
}

#[actix::test]
async fn a_join_that_waits_for_the_hook_of_another_node_is_found_in_a_room_that_nobody_follows() {
    let world = World::new().await;
    let start = |name, config| world.start(name, world.database.store(), config);
    let a = start("a", PresenceConfig::default());
    let hook = |_| std::future::pending();
    let b = start("b", PresenceConfig::default().authorize_async(hook));
    let met = async {
        for node in [&a, &b] {
            let know = |status: &Status| status.nodes == 2 && status.bus == BusState::Up;
            while !know(&node.status().await.unwrap()) {}
        }
    };
    tokio::time::timeout(secs(10), met).await.expect("they know each other");
    let [me, other] = [(); 2].map(|()| Connection::new(b.registry()));
    let (outlet, _heard) = me.outlet(16);
    let (other_outlet, _other_heard) = other.outlet(16);
    let join = other.join(room("gate 0"), other_outlet).user(user("bob"));
    let others = actix::spawn(other.enter(join));
    for number in 0..3 {
        let room = room(&format!("gate {number}"));
        let join = me.join(room.clone(), outlet.clone()).user(user("ada"));
        let joining = actix::spawn(me.enter(join));
        b.status().await.unwrap();
        let kicked = match number {
            0 => a.kick_from(&room, Kick::User(user("ada"))).await,
            1 => a.kick_from(&room, Kick::Connection(me.id())).await,
            _ => a.close_room(&room).await,
        };
        assert_eq!(kicked.unwrap(), Kicked::default(), "joins elsewhere are not counted");
        let refused = tokio::time::timeout(secs(10), joining).await.expect("it is told");
        let expected = if number < 2 { Cause::Kicked } else { Cause::RoomClosed };
        let expected = JoinError::Denied { reason: expected.as_str().into() };
        match refused.unwrap().unwrap_err() {
            PresenceError::Join(refused) => assert_eq!(refused, expected),
            other => panic!("not refused: {other}"),
        }
    }
    assert!(!others.is_finished(), "the join of somebody else waits on");
}
