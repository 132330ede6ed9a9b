//! What a session does with its connection, as an actor or as a task.

mod common;

use actix::prelude::*;
use actix_presence::{
    testing::{Probe, Seen},
    *,
};
use actix_web_actors::ws::{CloseCode, CloseReason};
use bytestring::ByteString;
use common::{Harness, room, secs, user};
use futures_util::StreamExt;

fn probe(registry: &Addr<RoomRegistry>) -> (Connection, Addr<Probe<Heard>>, Seen<Heard>) {
    let (session, heard) = Probe::new();
    (Connection::new(registry.clone()), session, heard)
}

fn text(heard: Option<Heard>) -> String {
    match heard {
        Some(Heard::Frame(frame)) => frame.payload.to_string(),
        other => panic!("no frame but {other:?}"),
    }
}

fn order(heard: Option<Heard>) -> Disconnect {
    match heard {
        Some(Heard::Close(order)) => order,
        other => panic!("no order to close but {other:?}"),
    }
}

#[actix::test]
async fn a_connection_enters_speaks_changes_its_info_and_leaves_one_room() {
    let t = Harness::with("sqlite::memory:", |config| {
        config.authorize(|room, _, _| match room.as_str() {
            "closed" => Decision::deny("closed"),
            _ => Decision::Allow,
        })
    })
    .await;
    let (me, session, mut heard) = probe(&t.registry);
    for name in ["a", "b"] {
        let join = me.join(room(name), session.clone()).user(user("ada"));
        assert!(me.enter(join).await.unwrap().changed);
    }
    let refused = me.enter(me.join(room("closed"), session.clone())).await;
    let denied = JoinError::Denied { reason: "closed".into() };
    assert!(matches!(refused, Err(PresenceError::Join(refused)) if refused == denied));

    let mut bob = t.enter("a", Some("bob")).await;
    let says = me.publish(Publish::new(room("a"), "hello"));
    assert_eq!(says.await.unwrap(), 2);
    assert_eq!(text(heard.next().await), "hello");
    let to_others = Publish::new(["a", "b"].map(room), "others").except(me.id());
    assert_eq!(me.publish(to_others).await.unwrap(), 1);
    assert_eq!(bob.frames().await, ["hello", "others"]);
    let elsewhere = me.publish(Publish::new(room("c"), "hello")).await;
    assert!(matches!(elsewhere, Err(PresenceError::Publish(PublishError::NotAMember))));

    let info = Info::new(serde_json::json!({"status": "away"})).unwrap();
    assert!(me.update_info(room("a"), info.clone()).await.unwrap());
    assert!(!me.update_info(room("a"), info.clone()).await.unwrap());
    assert!(!me.update_info(room("c"), info).await.unwrap());
    for expected in [true, false] {
        assert_eq!(me.leave_room(room("a")).await.unwrap(), expected);
    }
    assert_eq!((t.users("a").await, t.users("b").await), (vec!["bob".into()], vec!["ada".into()]));

    t.presence.shutdown(secs(5)).await.unwrap();
    let ended = me.enter(me.join(room("a"), session)).await;
    assert!(matches!(ended, Err(PresenceError::Ended)));
    assert!(matches!(me.leave_room(room("b")).await, Err(PresenceError::Ended)));
}

#[actix::test]
async fn a_registered_connection_is_told_of_a_shutdown_once_in_a_room_or_in_none() {
    let t = Harness::new().await;
    let (nowhere, session, mut alone) = probe(&t.registry);
    nowhere.register(session);
    let (member, session, mut inside) = probe(&t.registry);
    member.register(session.clone());
    member.enter(member.join(room("a"), session)).await.unwrap();
    let (gone, session, mut left) = probe(&t.registry);
    gone.register(session);
    drop(gone);
    let (kicked, session, mut out) = probe(&t.registry);
    kicked.register(session.clone());
    kicked.enter(kicked.join(room("a"), session)).await.unwrap();
    t.registry.send(Kick::Connection(kicked.id())).await.unwrap();
    assert_eq!(order(out.next().await).code, 4001);
    // The recipient that was registered counts for joins that name none.
    let (own, session, mut by_hand) = probe(&t.registry);
    own.register(session.clone());
    let (other, session, mut by_hand_too) = probe(&t.registry);
    other.register(session.clone());
    for me in [&own, &other] {
        let join = Join::new(room("a"), me.id(), session.clone().recipient());
        me.enter(join).await.unwrap();
    }
    t.registry.send(Kick::Connection(other.id())).await.unwrap();
    assert_eq!(order(by_hand_too.next().await).code, 4001);
    // Who has left all rooms may join again, and is told, too.
    let (pausing, session, mut paused) = probe(&t.registry);
    pausing.register(session.clone());
    pausing.enter(pausing.join(room("a"), session)).await.unwrap();
    pausing.leave(Cause::Left);
    let (back, session, mut again) = probe(&t.registry);
    back.register(session.clone());
    back.enter(back.join(room("a"), session)).await.unwrap();
    back.leave_room(room("a")).await.unwrap();

    // Sessions leave when they are told.
    let sessions = async {
        for heard in [&mut alone, &mut inside, &mut by_hand, &mut paused, &mut again] {
            let cause = Cause::Shutdown;
            assert_eq!(order(heard.next().await), Disconnect { code: 1001, cause });
        }
        drop((nowhere, member, own, pausing, back));
    };
    let (stopped, ()) = tokio::join!(t.presence.shutdown(secs(5)), sessions);
    stopped.unwrap();
    for heard in
        [&mut alone, &mut inside, &mut by_hand, &mut by_hand_too, &mut again, &mut left, &mut out]
    {
        assert!(heard.now().is_none());
    }
    let (late, session, mut heard) = probe(&t.registry);
    late.register(session);
    assert_eq!(order(heard.next().await).code, 1001);
}

#[actix::test]
async fn a_session_that_is_no_actor_hears_through_an_outlet() {
    let t = Harness::new().await;
    let me = Connection::new(t.registry.clone());
    let (outlet, mut heard) = me.outlet(16);
    let join = me.join(room("a"), outlet.clone()).dialect(Dialect::Json(Feed::Count));
    me.enter(join).await.unwrap();
    assert!(text(heard.recv().await).contains("presence_count"));
    me.enter(me.join(room("b"), outlet)).await.unwrap();
    t.say("b", "hello").await;
    assert_eq!(text(heard.next().await), "hello");
    t.registry.send(CloseRoom { room: room("a") }).await.unwrap();
    let Some(Heard::Frame(closed)) = heard.recv().await else { panic!("no word") };
    assert_eq!(closed.kind, Forwarded::Closed { cause: Cause::RoomClosed });
    t.say("b", "last").await;
    t.registry.send(Kick::Connection(me.id())).await.unwrap();
    assert_eq!(text(heard.recv().await), "last", "what was sent before comes first");
    assert_eq!(order(heard.recv().await), Disconnect { code: 4001, cause: Cause::Kicked });
    assert!(heard.recv().await.is_none());

    // In no room, and told of the shutdown all the same.
    let nowhere = Connection::new(t.registry.clone());
    let (_outlet, mut heard) = nowhere.outlet(16);
    let told = async {
        assert_eq!(order(heard.recv().await).code, 1001);
        drop(nowhere);
    };
    let (stopped, ()) = tokio::join!(t.presence.shutdown(secs(5)), told);
    stopped.unwrap();
}

#[actix::test]
async fn an_outlet_holds_no_more_frames_and_no_more_bytes_than_it_may() {
    let t = Harness::new().await;
    for (name, capacity, text, fits) in
        [("few", 8, "x".to_owned(), 8), ("large", 4096, "x".repeat(300_000), 3)]
    {
        let me = Connection::new(t.registry.clone());
        let (outlet, mut heard) = me.outlet(capacity);
        me.enter(me.join(room(name), outlet)).await.unwrap();
        let text = ByteString::from(text);
        for _ in 0..fits {
            assert_eq!(
                t.registry.send(Publish::new(room(name), text.clone())).await.unwrap(),
                Ok(1)
            );
        }
        common::dispatched().await;
        let explained = Explain { room: room(name), connection: me.id() };
        let there = t.registry.send(explained.clone()).await.unwrap().unwrap().unwrap();
        assert!(there.departed.is_none(), "{name}");
        t.registry.send(Publish::new(room(name), text.clone())).await.unwrap().unwrap();
        // Not what waits, which nobody reads any more: the order comes first.
        let mut last = heard.recv().await;
        while let Some(Heard::Frame(_)) = last {
            last = heard.recv().await;
        }
        assert_eq!(order(last), Disconnect { code: 4003, cause: Cause::SlowConsumer });
        assert!(heard.recv().await.is_none());
        let gone = t.registry.send(explained).await.unwrap().unwrap().unwrap();
        assert_eq!(gone.departed.unwrap().cause, Cause::SlowConsumer);
    }

    // That it is out of a room does not count: it stays in the others.
    let me = Connection::new(t.registry.clone());
    let (outlet, mut heard) = me.outlet(1);
    for name in ["kept", "closed"] {
        me.enter(me.join(room(name), outlet.clone())).await.unwrap();
    }
    t.say("kept", "the only one").await;
    t.presence.close_room(&room("closed")).await.unwrap();
    let frames = [heard.recv().await, heard.recv().await].map(|heard| match heard {
        Some(Heard::Frame(frame)) => frame.kind,
        other => panic!("no frame: {other:?}"),
    });
    assert_eq!(frames, [Forwarded::Message, Forwarded::Closed { cause: Cause::RoomClosed }]);
    assert_eq!(t.say("kept", "again").await, 1);

    // Bytes count until the frame is dropped, not until it is taken.
    let me = Connection::new(t.registry.clone());
    let (outlet, mut heard) = me.outlet(4096);
    me.enter(me.join(room("held"), outlet)).await.unwrap();
    let text = ByteString::from("x".repeat(300_000));
    let mut held = Vec::new();
    for _ in 0..20 {
        t.registry.send(Publish::new(room("held"), text.clone())).await.unwrap().unwrap();
        held.push(heard.recv().await.expect("it is in time"));
        if held.len() == 3 {
            held.clear();
        }
    }
}

#[actix::test]
async fn whoever_drops_the_stream_is_sent_nothing_and_leaves() {
    let mut t = Harness::new().await;
    let me = Connection::new(t.registry.clone());
    let (outlet, heard) = me.outlet(16);
    me.enter(me.join(room("a"), outlet).user(user("ada"))).await.unwrap();
    t.changes().await;
    drop(heard);
    common::dispatched().await;
    assert_eq!(t.say("a", "hello").await, 0);
    assert_eq!(t.change().await.cause(), Some(Cause::Disconnected));
}

#[test]
fn where_no_arbiter_runs_an_outlet_has_ended_and_nothing_panics() {
    let system = System::new();
    let registry = system.block_on(async {
        let presence = PresenceConfig::new("sqlite::memory:").start().unwrap();
        presence.registry()
    });
    let on_no_arbiter = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let me = Connection::new(registry);
            let (outlet, mut heard) = me.outlet(16);
            assert!(heard.recv().await.is_none());
            assert!(me.enter(me.join(room("a"), outlet)).await.is_ok());
        });
    });
    on_no_arbiter.join().unwrap();
}

#[actix::test]
async fn a_join_that_a_full_mailbox_has_not_taken_does_not_follow_the_end_of_its_connection() {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    // The registry waits there.
    let t = Harness::with("sqlite::memory:", |config| {
        config.authorize(move |room, _, _| {
            if *room == *"gate" {
                _ = gate.lock().unwrap().recv();
            }
            Decision::Allow
        })
    })
    .await;
    let (me, session, _heard) = probe(&t.registry);
    t.registry.do_send(me.join(room("gate"), session.clone()));
    (0..5000).for_each(|_| t.registry.do_send(GetStatus));
    let (other, _, _) = probe(&t.registry);
    let mut joining = Box::pin(other.enter(other.join(room("lobby"), session)));
    assert!(futures_util::poll!(&mut joining).is_pending());
    drop(other);
    open.send(()).unwrap();
    let refused = joining.await.unwrap_err();
    assert!(matches!(refused, PresenceError::Join(JoinError::Withdrawn)), "{refused:?}");
    assert!(t.snapshot("lobby").await.is_none());
}

#[actix::test]
async fn dropping_a_connection_leaves_every_room_with_the_cause_it_was_given() {
    let mut t = Harness::new().await;
    let code = |code: u16| Some(CloseReason::from(CloseCode::from(code)));
    for (closed, cause) in [
        (None, Cause::Disconnected),
        (Some(None), Cause::Left),
        (Some(code(1000)), Cause::Left),
        (Some(code(1001)), Cause::Disconnected),
        (Some(code(4123)), Cause::Disconnected),
    ] {
        let mut me = Connection::new(t.registry.clone());
        let (addr, _heard) = Probe::<Heard>::new();
        for name in ["a", "b"] {
            t.registry.send(me.join(room(name), addr.clone())).await.unwrap().unwrap();
        }
        t.changes().await;
        if let Some(reason) = closed {
            me.closed_by_client(reason.as_ref());
        }
        drop(me);
        let changes = t.changes().await;
        assert_eq!(changes.len(), 2);
        assert!(changes.iter().all(|change| change.cause() == Some(cause)));
    }
}

#[actix::test]
async fn who_has_left_when_its_turn_comes_is_told_of_the_shutdown_too() {
    let t = Harness::new().await;
    let mut members = Vec::new();
    // They are told in several batches.
    for _ in 0..200 {
        let me = Connection::new(t.registry.clone());
        let (outlet, heard) = me.outlet(16);
        me.enter(me.join(room("a"), outlet)).await.unwrap();
        members.push((me, heard));
    }
    let stopping = actix::spawn(t.presence.shutdown(secs(5)));
    assert!(matches!(members[0].1.recv().await, Some(Heard::Close(_))));
    let (last, heard) = members.last_mut().unwrap();
    assert!(last.leave_room(room("a")).await.unwrap());
    let told = tokio::time::timeout(secs(10), heard.recv()).await.expect("it is told");
    assert_eq!(order(told), Disconnect { code: 1001, cause: Cause::Shutdown });
    drop(members);
    stopping.await.unwrap().unwrap();
}

#[actix::test]
async fn a_shutdown_without_time_tells_everybody_what_it_is() {
    let t = Harness::new().await;
    let [member, nowhere] = [(); 2].map(|()| Connection::new(t.registry.clone()));
    let (outlet, mut member_heard) = member.outlet(16);
    member.enter(member.join(room("a"), outlet)).await.unwrap();
    let (_outlet, mut nowhere_heard) = nowhere.outlet(16);
    t.registry.send(GetStatus).await.unwrap();
    assert!(t.presence.shutdown(secs(0)).await.is_err());
    for heard in [&mut member_heard, &mut nowhere_heard] {
        let told = tokio::time::timeout(secs(10), heard.recv()).await.expect("it is told");
        assert_eq!(order(told), Disconnect { code: 1001, cause: Cause::Shutdown });
    }
}
