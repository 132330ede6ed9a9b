//! Messages to a room: who gets them and in which form, and what becomes of members that do not take them.

mod common;

use actix::prelude::*;
use actix_presence::{
    testing::{Heard, Probe},
    *,
};
use common::{
    Harness, room,
    stuck::{stuck, stuck_on},
};
use serde_json::{Value, json};

#[actix::test]
async fn a_message_reaches_exactly_the_members_each_in_its_dialect() {
    let t = Harness::new().await;
    let mut raw = t.enter("lobby", Some("raw")).await;
    let mut json = t.session();
    let join = json.joining("lobby", Some("json")).dialect(Dialect::Json(Feed::None));
    t.registry.send(join).await.unwrap().unwrap();
    let mut left = t.enter("lobby", Some("left")).await;
    let mut elsewhere = t.enter("elsewhere", None).await;
    t.leave(&left, "lobby").await;

    let payload = serde_json::value::to_raw_value(&json!({"text": "hi"})).unwrap();
    let publish = Publish::json(room("lobby"), payload).sent_by(json.id);
    assert_eq!(t.registry.send(publish).await.unwrap(), Ok(2));
    assert_eq!(raw.frames().await, [r#"{"text":"hi"}"#]);
    let framed: Value = serde_json::from_str(&json.frames().await[0]).unwrap();
    assert_eq!(
        framed,
        json!({"type": "message", "payload": {"text": "hi"},
            "from": {"id": "json", "connection": json.id.to_string()}})
    );
    assert!(left.heard().await.is_empty() && elsewhere.heard().await.is_empty());
}

#[actix::test]
async fn only_a_member_may_send_in_its_own_name_and_the_sender_can_be_left_out() {
    let t = Harness::new().await;
    let mut ada = t.enter("lobby", Some("ada")).await;
    let stranger = t.enter("elsewhere", Some("eve")).await;
    let publish = || Publish::new(room("lobby"), "hi");
    assert_eq!(
        t.registry.send(publish().sent_by(stranger.id)).await.unwrap(),
        Err(PublishError::NotAMember)
    );
    assert_eq!(t.registry.send(publish().except(ada.id)).await.unwrap(), Ok(0));
    assert!(ada.heard().await.is_empty());
}

#[actix::test]
async fn messages_reach_each_dialect_in_its_own_words() {
    let t = Harness::new().await;
    let mut raw = t.enter("lobby", Some("raw")).await;
    let (mut json, mut phoenix) = (t.session(), t.session());
    let join = json.joining("lobby", Some("json")).dialect(Dialect::Json(Feed::None));
    t.registry.send(join).await.unwrap().unwrap();
    let join = phoenix.joining("lobby", Some("ada")).dialect(Dialect::Phoenix);
    t.registry.send(join).await.unwrap().unwrap();
    phoenix.heard().await;

    let value = || serde_json::value::to_raw_value(&serde_json::json!({"x": 1})).unwrap();
    let from = json.id;
    for publish in [
        Publish::new(room("lobby"), "plain"),
        Publish::json(room("lobby"), value()).sent_by(from),
        Publish::event(room("lobby"), "shout", value()).sent_by(from),
    ] {
        assert_eq!(t.registry.send(publish).await.unwrap(), Ok(3));
    }
    assert_eq!(raw.frames().await, ["plain", r#"{"x":1}"#, r#"{"x":1}"#]);
    let sender = format!(r#"{{"id":"json","connection":"{from}"}}"#);
    assert_eq!(
        json.frames().await,
        [
            "plain".to_owned(),
            format!(r#"{{"type":"message","payload":{{"x":1}},"from":{sender}}}"#),
            format!(r#"{{"type":"message","event":"shout","payload":{{"x":1}},"from":{sender}}}"#),
        ]
    );
    assert_eq!(
        phoenix.frames().await,
        [
            r#"[null,null,"lobby","message",{"payload":"plain","from":null}]"#.to_owned(),
            format!(r#"[null,null,"lobby","message",{{"payload":{{"x":1}},"from":{sender}}}]"#),
            r#"[null,null,"lobby","shout",{"x":1}]"#.to_owned(),
        ]
    );
}

#[actix::test]
async fn an_event_that_clients_would_take_for_the_servers_own_is_refused() {
    let t = Harness::new().await;
    let mut session = t.enter("lobby", None).await;
    let value = || serde_json::json!({"joins": {}, "leaves": {}});
    for event in ["phx_close", "phx_error", "presence_state", "presence_diff"] {
        let publish = Publish::event(room("lobby"), event, value());
        assert_eq!(t.registry.send(publish).await.unwrap(), Err(PublishError::ReservedEvent));
    }
    let publish = Publish::event(room("lobby"), "presence", value());
    assert_eq!(t.registry.send(publish).await.unwrap(), Ok(1));
    assert_eq!(session.frames().await.len(), 1);
}

#[actix::test]
async fn a_member_that_takes_nothing_is_removed_with_4003_and_the_others_get_everything() {
    let mut t = Harness::new().await;
    let (slow, seen, let_go) = stuck::<ForwardMessage>();
    let (closer, mut closed) = Probe::<Heard>::new();
    let id = ConnectionId::new();
    let join = Join::new(room("lobby"), id, slow.recipient()).disconnect(closer.recipient());
    t.registry.send(join).await.unwrap().unwrap();
    let mut healthy = t.enter("lobby", Some("healthy")).await;
    t.changes().await;

    let mut said = 0;
    while t.snapshot("lobby").await.unwrap().anonymous_count() == 1 {
        said += 1;
        assert!(said < 1000, "a bounded number of messages");
        t.say("lobby", "flood").await;
    }
    assert_eq!(healthy.frames().await.len(), said);
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!(change.cause(), Some(Cause::SlowConsumer));
    let Some(Heard::Close(close)) = closed.next().await else { panic!("an order to close") };
    assert_eq!(close, Disconnect { code: 4003, cause: Cause::SlowConsumer });
    drop((let_go, seen));
}

#[actix::test]
async fn a_member_whose_actor_has_stopped_is_found_out_and_leaves() {
    let mut t = Harness::new().await;
    let arbiter = Arbiter::new();
    let (gone, _, _) = stuck_on::<ForwardMessage>(&arbiter);
    let id = ConnectionId::new();
    let join = Join::new(room("lobby"), id, gone.clone().recipient());
    t.registry.send(join).await.unwrap().unwrap();
    t.changes().await;
    arbiter.stop();
    arbiter.join().unwrap();

    t.say("lobby", "hello?").await;
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!(
        (change.cause(), change.removed().unwrap().connection),
        (Some(Cause::Disconnected), id)
    );
}
