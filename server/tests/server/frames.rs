//! What clients say, and what becomes of it.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Server, Ws, until};

#[tokio::test]
async fn a_message_reaches_every_member_the_sender_too_and_says_who_it_is_from() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada").await;
    let mut bob = server.ws("/ws/lobby?user=bob&presence=diff").await;
    let mut lurker = server.ws("/ws/lobby?presence=none").await;
    let mut elsewhere = server.ws("/ws/other?presence=none").await;
    ada.sees(&["ada", "bob"], 1).await;

    let presences = server.json("/api/rooms/lobby/presences").await;
    let list = presences["presences"].as_array().unwrap();
    let of = |user: Value| {
        let found = list.iter().find(|presence| presence["user"] == user).unwrap();
        found["channel_name"].clone()
    };
    let payloads =
        [json!("hi"), json!(null), json!([1, 2.5, {"a": "é\u{0}"}]), json!({"b": 1, "a": [true]})];
    for payload in payloads {
        ada.message(payload.clone()).await;
        let from = json!({"id": "ada", "connection": of(json!("ada"))});
        let expected = json!({"type": "message", "payload": payload, "from": from});
        for member in [&mut ada, &mut bob, &mut lurker] {
            assert_eq!(member.next_of("message").await, expected);
        }
    }
    lurker.message("boo").await;
    let from = json!({"id": null, "connection": of(Value::Null)});
    assert_eq!(bob.next_of("message").await["from"], from);

    elsewhere.message("only here").await;
    assert_eq!(elsewhere.next().await["payload"], "only here");
}

#[tokio::test]
async fn a_message_to_the_others_does_not_come_back() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    let mut tab = server.ws("/ws/lobby?user=ada&presence=none").await;
    let mut bob = server.ws("/ws/lobby?user=bob&presence=none").await;
    ada.json(json!({"type": "message", "payload": "psst", "to": "others"})).await;
    ada.message("to all").await;
    for other in [&mut tab, &mut bob] {
        let first = other.next().await;
        assert_eq!((&first["payload"], &first["from"]["id"]), (&json!("psst"), &json!("ada")));
        assert_eq!(other.next().await["payload"], "to all");
    }
    assert_eq!(ada.next().await["payload"], "to all");
    ada.json(json!({"type": "message", "payload": 1, "to": "bob"})).await;
    let refused = ada.next().await;
    assert_eq!(
        (&refused["type"], &refused["payload"]["code"]),
        (&json!("error"), &json!("bad_frame"))
    );
}

#[tokio::test]
async fn a_payload_is_forwarded_as_it_was_written() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?presence=none").await;
    let payload = r#"{"z":1,"a":1.0,"n":12345678901234567890123,"z":2,"e":1e2}"#;
    ada.text(&format!(r#"{{"payload":{payload},"type":"message","more":1}}"#)).await;
    let Some(Ok(Message::Text(text))) = ada.frame().await else { panic!("no text") };
    assert!(text.contains(payload), "{text}");
}

#[tokio::test]
async fn an_update_replaces_the_senders_info() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&info=%7B%22a%22%3A1%2C%22b%22%3A2%7D").await;
    let info = async |ada: &mut Ws, wanted: Value| {
        ada.until(|frame| frame["payload"]["members"][0]["info"] == wanted).await;
    };
    info(&mut ada, json!({"a": 1, "b": 2})).await;
    ada.json(json!({"type": "update", "info": {"a": 3}})).await;
    info(&mut ada, json!({"a": 3})).await;
    ada.json(json!({"type": "update", "info": {}})).await;
    info(&mut ada, json!({})).await;

    // The info of the connection that joined or updated last is the user's.
    let mut tab = server.ws("/ws/lobby?user=ada&info=%7B%22tab%22%3A2%7D").await;
    info(&mut ada, json!({"tab": 2})).await;
    ada.json(json!({"type": "update", "info": {"old": true}})).await;
    info(&mut ada, json!({"old": true})).await;
    tab.json(json!({"type": "update", "info": {"tab": 3}})).await;
    info(&mut ada, json!({"tab": 3})).await;
    tab.close(Some(1000)).await;
    info(&mut ada, json!({"old": true})).await;
}

#[tokio::test]
async fn anything_else_is_an_error_and_the_socket_stays_open() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    let large = json!({"type": "update", "info": {"x": "y".repeat(5000)}}).to_string();
    for (frame, code) in [
        ("", "not_json"),
        ("hello", "not_json"),
        ("{", "not_json"),
        (r#"{"type":"message","payload":}"#, "not_json"),
        (r#" "heartbeat""#, "bad_frame"),
        (r#""Heartbeat""#, "bad_frame"),
        ("heartbeat", "not_json"),
        ("1", "bad_frame"),
        ("[]", "bad_frame"),
        ("{}", "bad_frame"),
        (r#"{"type":1}"#, "bad_frame"),
        (r#"{"type":"dance"}"#, "unknown_type"),
        (r#"{"type":"message"}"#, "bad_frame"),
        (r#"{"type":"update"}"#, "bad_frame"),
        (r#"{"type":"update","info":[]}"#, "bad_frame"),
        (large.as_str(), "info_too_large"),
    ] {
        ada.text(frame).await;
        let error = ada.next().await;
        assert_eq!(error["type"], "error", "{frame}");
        assert_eq!(error["payload"]["code"], code, "{frame}: {error}");
        assert!(error["payload"]["message"].as_str().is_some_and(|text| !text.is_empty()));
    }
    ada.message("still here").await;
    assert_eq!(ada.next().await["payload"], "still here");
}

#[tokio::test]
async fn a_heartbeat_is_not_answered_and_touches() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    ada.text("\"heartbeat\"").await;
    ada.message("after it").await;
    assert_eq!(ada.next().await["payload"], "after it", "nothing was said about the heartbeat");
    touches(&server, &mut ada, Message::text("\"heartbeat\"")).await;
}

#[tokio::test]
async fn a_ping_is_answered_and_touches_as_a_pong_and_an_error_do() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    ada.say(Message::Ping(vec![1, 2, 3].into())).await;
    let Some(Ok(Message::Pong(bytes))) = ada.frame().await else { panic!("no pong") };
    assert_eq!(&*bytes, [1, 2, 3]);
    for frame in [
        Message::Ping(Vec::new().into()),
        Message::Pong(Vec::new().into()),
        Message::text("nonsense"),
        Message::text(r#"{"type":"update","info":{}}"#),
    ] {
        touches(&server, &mut ada, frame).await;
    }
}

/// The frame moves `last_seen` on, and nothing but frames does.
async fn touches(server: &Server, ws: &mut Ws, frame: Message) {
    let seen = async || {
        let page = server.json("/api/rooms/lobby/presences").await;
        page["presences"][0]["last_seen"].as_str().unwrap().to_owned()
    };
    let before = seen().await;
    assert_eq!(seen().await, before);
    ws.say(frame).await;
    until("a touch", async || (seen().await > before).then_some(())).await;
}

#[tokio::test]
async fn a_user_in_several_rooms_is_told_only_of_each_room() {
    let server = Server::start(&[]);
    let mut one = server.ws("/ws/one?user=ada").await;
    let mut two = server.ws("/ws/two?user=ada").await;
    assert_eq!(one.next().await["payload"]["channel_name"], "one");
    assert_eq!(two.next().await["payload"]["channel_name"], "two");
    let _bob = server.ws("/ws/two?user=bob").await;
    two.sees(&["ada", "bob"], 0).await;
    one.message("quiet here").await;
    assert_eq!(one.next().await["payload"], "quiet here");
}
