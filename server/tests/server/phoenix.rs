//! Phoenix Channels, frame by frame as text: what a client that compares every byte may rely on.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Server, Ws, success};

const SOCKET: &str = "/socket/websocket?vsn=2.0.0";

/// A state or a diff.
fn is_presence(frame: &Value) -> bool {
    frame[3].as_str().is_some_and(|event| event.starts_with("presence_"))
}

async fn channels(server: &Server, user: &str) -> Ws {
    server.ws(&format!("{SOCKET}&user={user}")).await
}

/// Joins, and answers the metas of the state.
async fn join(ws: &mut Ws, reference: &str, room: &str) -> Value {
    ws.json(json!([reference, reference, room, "phx_join", {}])).await;
    assert_eq!(ws.next().await, reply(reference, reference, room));
    let state = ws.until(|frame| frame[3] == "presence_state").await;
    assert_eq!((&state[0], &state[1], &state[2]), (&json!(reference), &Value::Null, &json!(room)));
    state[4].clone()
}

fn reply(
    join_ref: impl Into<Value>,
    reference: impl Into<Value>,
    topic: impl Into<Value>,
) -> Value {
    let payload = json!({"status": "ok", "response": {}});
    json!([join_ref.into(), reference.into(), topic.into(), "phx_reply", payload])
}

fn error(join_ref: Value, reference: &str, topic: &str, reason: &str) -> Value {
    let payload = json!({"status": "error", "response": {"reason": reason}});
    json!([join_ref, reference, topic, "phx_reply", payload])
}

/// Everything that comes until a heartbeat is answered.
async fn until_heartbeat(ws: &mut Ws) -> Vec<Value> {
    ws.json(json!([null, "until", "phoenix", "heartbeat", {}])).await;
    let mut frames = Vec::new();
    loop {
        let frame = ws.next().await;
        if frame == reply(Value::Null, "until", "phoenix") {
            return frames;
        }
        frames.push(frame);
    }
}

#[tokio::test]
async fn references_come_back_as_they_are_and_frames_are_compact() {
    let server = Server::start(&[]);
    let mut ada = channels(&server, "ada").await;
    ada.text(r#" [ "007" , "é\u0000\"" , "lobby" , "phx_join" , { } , 1 , {"more":2} ] "#).await;
    let Some(Ok(Message::Text(text))) = ada.frame().await else { panic!("no answer") };
    let expected = r#"["007","é\u0000\"","lobby","phx_reply",{"response":{},"status":"ok"}]"#;
    assert_eq!(text.as_str(), expected);
    let Some(Ok(Message::Text(text))) = ada.frame().await else { panic!("no state") };
    assert!(
        text.starts_with(r#"["007",null,"lobby","presence_state",{"ada":{"metas":[{"#),
        "{text}"
    );

    ada.json(json!([null, "12", "phoenix", "heartbeat", {}])).await;
    assert_eq!(ada.next().await, reply(Value::Null, "12", "phoenix"));
    ada.json(json!(["007", "8", "lobby", "shout", {"a": 1.50, "b": [null]}])).await;
    let both = [ada.next().await, ada.next().await];
    assert!(both.contains(&json!([null, null, "lobby", "shout", {"a": 1.5, "b": [null]}])));
    assert!(both.contains(&reply("007", "8", "lobby")));

    // Who says no join_ref means the current one; who says an older one is not heard.
    ada.json(json!([null, "9", "lobby", "shout", {}])).await;
    let both = until_heartbeat(&mut ada).await;
    assert!(both.len() == 2 && both.contains(&reply("007", "9", "lobby")), "{both:?}");
    for event in ["shout", "phx_leave", "presence_diff"] {
        ada.json(json!(["006", "10", "lobby", event, {}])).await;
    }
    assert_eq!(until_heartbeat(&mut ada).await, Vec::<Value>::new());
    // What asks for no answer gets none.
    ada.json(json!(["007", null, "lobby", "shout", {}])).await;
    assert_eq!(until_heartbeat(&mut ada).await, [json!([null, null, "lobby", "shout", {}])]);
}

#[tokio::test]
async fn a_join_without_a_join_ref_goes_by_its_ref() {
    let server = Server::start(&[]);
    let mut ada = channels(&server, "ada").await;
    ada.json(json!([null, "5", "lobby", "phx_join", {}])).await;
    assert_eq!(ada.next().await, reply("5", "5", "lobby"));
    assert_eq!(ada.next().await[0], "5");
    ada.json(json!([null, "6", "lobby", "phx_leave", {}])).await;
    assert_eq!(ada.next().await, reply("5", "6", "lobby"));
    assert_eq!(ada.next().await, json!(["5", "5", "lobby", "phx_close", {}]));
}

#[tokio::test]
async fn a_leave_is_answered_and_then_closed_and_one_of_no_room_is_ok() {
    let server = Server::start(&[]);
    let mut ada = channels(&server, "ada").await;
    join(&mut ada, "3", "lobby").await;
    ada.json(json!(["3", "9", "lobby", "phx_leave", {}])).await;
    assert_eq!(ada.next().await, reply("3", "9", "lobby"));
    assert_eq!(ada.next().await, json!(["3", "3", "lobby", "phx_close", {}]));
    assert_eq!(server.get("/api/rooms/lobby").await.status, 404);
    ada.json(json!(["3", "10", "lobby", "phx_leave", {}])).await;
    assert_eq!(ada.next().await, reply("3", "10", "lobby"));
    ada.json(json!(["3", "11", "lobby", "shout", {}])).await;
    assert_eq!(ada.next().await, error(Value::Null, "11", "lobby", "unmatched topic"));
}

#[tokio::test]
async fn a_second_join_closes_the_first_and_nobody_else_hears_of_it() {
    let server = Server::start(&[]);
    let mut witness = channels(&server, "witness").await;
    join(&mut witness, "1", "lobby").await;
    let mut ada = channels(&server, "ada").await;
    let before = join(&mut ada, "1", "lobby").await;
    witness.until(|frame| frame[4]["joins"]["ada"].is_object()).await;
    ada.json(json!(["2", "2", "lobby", "phx_join", {}])).await;
    assert_eq!(ada.next().await, reply("2", "2", "lobby"));
    assert_eq!(ada.next().await, json!(["1", "1", "lobby", "phx_close", {}]));
    let state = ada.next().await;
    assert_eq!(state, json!(["2", null, "lobby", "presence_state", before]));
    assert_eq!(until_heartbeat(&mut witness).await, Vec::<Value>::new());

    // With another info it is an update, in one diff.
    ada.json(json!(["3", "3", "lobby", "phx_join", {"info": {"n": 1}}])).await;
    let diff = witness.until(is_presence).await;
    let [joined, left] = ["joins", "leaves"].map(|list| &diff[4][list]["ada"]["metas"]);
    assert_eq!(left, &before["ada"]["metas"]);
    assert_eq!((&joined[0]["n"], joined.as_array().unwrap().len()), (&json!(1), 1));
    assert_eq!(joined[0]["phx_ref_prev"], left[0]["phx_ref"]);
    assert_eq!(joined[0]["online_at"], left[0]["online_at"]);
    assert_eq!(diff[4]["v"], diff[4]["since"].as_u64().unwrap() + 1);
    assert!(diff[4]["epoch"].is_string() || diff[4]["epoch"].is_number());
    assert_eq!((&diff[0], &diff[1], &diff[2]), (&Value::Null, &Value::Null, &json!("lobby")));
    ada.json(json!(["2", "4", "lobby", "phx_leave", {}])).await;
    assert!(until_heartbeat(&mut ada).await.iter().all(|frame| frame[1] != "4"), "it is stale");
}

#[tokio::test]
async fn the_answer_to_a_join_comes_before_anything_of_the_room() {
    let server = Server::start(&[]);
    let mut talker = channels(&server, "talker").await;
    join(&mut talker, "1", "lobby").await;
    for n in 0..20 {
        let mut ada = channels(&server, &format!("ada{n}")).await;
        for _ in 0..5 {
            talker.json(json!(["1", null, "lobby", "shout", {}])).await;
        }
        ada.json(json!(["7", "7", "lobby", "phx_join", {}])).await;
        for _ in 0..5 {
            talker.json(json!(["1", null, "lobby", "shout", {}])).await;
        }
        assert_eq!(ada.next().await, reply("7", "7", "lobby"));
        let first = ada.until(is_presence).await;
        assert_eq!(first[3], "presence_state", "no diff before the state");
    }
}

#[tokio::test]
async fn what_is_no_room_and_what_is_reserved_is_refused() {
    let server = Server::start(&[]);
    let mut ada = channels(&server, "ada").await;
    let long = "x".repeat(256);
    for topic in ["", "phoenix", long.as_str(), "a\nb"] {
        ada.json(json!(["1", "1", topic, "phx_join", {}])).await;
        assert_eq!(ada.next().await, error(Value::Null, "1", topic, "unmatched topic"));
    }
    join(&mut ada, "2", "lobby").await;
    for event in ["phx_close", "phx_error", "phx_reply", "presence_state", "presence_diff"] {
        ada.json(json!(["2", "3", "lobby", event, {"joins": {}, "leaves": {}}])).await;
        assert_eq!(ada.next().await, error(json!("2"), "3", "lobby", "reserved event"));
    }
    for (event, payload, reason) in [
        ("shout", json!([]), "the payload is no object"),
        ("phx_join", json!({"info": 1}), "info is no object"),
        ("phx_join", json!(null), "the payload is no object"),
        ("phx_join", json!({"info": {"x": "y".repeat(5000)}}), "info is too large"),
    ] {
        let join_ref = if event == "phx_join" { "4" } else { "2" };
        ada.json(json!([join_ref, "4", "lobby", event, payload])).await;
        assert_eq!(ada.next().await, error(json!(join_ref), "4", "lobby", reason));
    }
    ada.json(json!(["2", "5", "lobby", "shout", {}])).await;
    ada.until(|frame| *frame == reply("2", "5", "lobby")).await;
}

#[tokio::test]
async fn more_than_128_rooms_are_too_many() {
    let server = Server::start(&[]);
    let mut ada = channels(&server, "ada").await;
    for n in 0..128 {
        ada.json(json!([n.to_string(), n.to_string(), format!("room {n}"), "phx_join", {}])).await;
    }
    ada.until(|frame| *frame == reply("127", "127", "room 127")).await;
    ada.json(json!(["128", "128", "room 128", "phx_join", {}])).await;
    let answer = ada.until(|frame| frame[1] == "128").await;
    assert_eq!(answer, error(json!("128"), "128", "room 128", "too many channels joined"));
    // Who leaves one may join another.
    ada.json(json!(["0", "129", "room 0", "phx_leave", {}])).await;
    ada.json(json!(["130", "130", "room 128", "phx_join", {}])).await;
    ada.until(|frame| *frame == reply("130", "130", "room 128")).await;
    assert_eq!(server.json("/api/users/ada").await["rooms"].as_array().unwrap().len(), 128);
}

#[tokio::test]
async fn what_is_no_frame_ends_the_socket_with_the_fitting_code() {
    let server = Server::start(&["--max-frame-size", "1000"]);
    for text in [
        "",
        "hello",
        "\"heartbeat\"",
        "{}",
        "[]",
        r#"["1","1","lobby","phx_join"]"#,
        r#"[1,"1","lobby","phx_join",{}]"#,
        r#"["1",1,"lobby","phx_join",{}]"#,
        r#"["1","1",null,"phx_join",{}]"#,
        r#"["1","1","lobby",7,{}]"#,
        r#"["1","1","lobby","phx_join",{}"#,
    ] {
        let mut ada = channels(&server, "ada").await;
        ada.text(text).await;
        assert_eq!(ada.closed().await.0, 1007, "{text}");
    }
    let mut ada = channels(&server, "ada").await;
    ada.say(Message::binary(vec![0, 1, 1, 1, 1])).await;
    assert_eq!(ada.closed().await.0, 1003);
    let mut ada = channels(&server, "ada").await;
    ada.json(json!(["1", "1", "lobby", "shout", {"x": "y".repeat(1000)}])).await;
    assert_eq!(ada.closed().await.0, 1009);
}

#[tokio::test]
async fn who_is_put_out_is_told_so_on_every_topic_and_closed_with_1000() {
    let server = Server::start(&[]);
    let mut ada = channels(&server, "ada").await;
    join(&mut ada, "1", "one").await;
    join(&mut ada, "2", "two").await;
    let page = server.json("/api/rooms/one/presences").await;
    let channel = page["presences"][0]["channel_name"].as_str().unwrap().to_owned();
    server.ask("DELETE", &format!("/api/connections/{channel}")).send().await;
    let mut closed = Vec::new();
    while closed.len() < 2 {
        closed.push(ada.until(|frame| frame[3] == "phx_close").await);
    }
    closed.sort_by_key(|frame| frame[0].to_string());
    assert_eq!(closed[0], json!(["1", "1", "one", "phx_close", {}]));
    assert_eq!(closed[1], json!(["2", "2", "two", "phx_close", {}]));
    assert_eq!(ada.closed().await, (1000, "kicked".to_owned()));
}

#[tokio::test]
async fn everything_that_is_refused_before_the_upgrade_is_403() {
    let server = Server::start(&["--secret", "s3cret"]);
    let good = success(&["token", "--user", "ada", "--room", "a*", "--secret", "s3cret"]);
    let origin = [("Origin", "https://evil.example")];
    for (path, headers) in [
        (format!("/socket/websocket?token={good}"), &[][..]),
        (format!("/socket/websocket?token={good}&vsn=1.0.0"), &[]),
        (format!("{SOCKET}&token={good}x"), &[]),
        (SOCKET.to_owned(), &[]),
        (format!("{SOCKET}&token={good}"), &origin),
    ] {
        let mut ask = server.enter(&path);
        for (name, value) in headers {
            ask = ask.header(name, value);
        }
        assert_eq!(ask.send().await.error().0, 403, "{path}");
    }
    let plain = server.get(&format!("{SOCKET}&token={good}")).await;
    assert_eq!(plain.status, 400, "no upgrade");
    let mut ada = server.ws(&format!("{SOCKET}&token={good}")).await;
    ada.json(json!(["1", "1", "b", "phx_join", {}])).await;
    assert_eq!(ada.next().await, error(json!("1"), "1", "b", "unauthorized"));
    join(&mut ada, "2", "abc").await;
}

#[tokio::test]
async fn a_socket_without_a_channel_is_told_too_when_the_server_stops() {
    let server = Server::start(&[]);
    let mut ws = channels(&server, "ada").await;
    ws.text(r#"[null,"1","phoenix","heartbeat",{}]"#).await;
    ws.next().await;
    let mut left = channels(&server, "bob").await;
    join(&mut left, "1", "lobby").await;
    left.json(json!(["1", "2", "lobby", "phx_leave", {}])).await;
    assert_eq!(left.next().await, reply("1", "2", "lobby"));
    assert_eq!(left.next().await, json!(["1", "1", "lobby", "phx_close", {}]));
    server.signal("TERM");
    assert_eq!(ws.closed().await, (1001, "shutdown".to_owned()));
    assert_eq!(left.closed().await, (1001, "shutdown".to_owned()));
}
