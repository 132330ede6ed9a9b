//! What a client names, and how deep it nests: bounded on every way in.

use std::fmt::Write;

use futures_util::future::join_all;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

use crate::harness::{Server, Ws};

const PHOENIX: &str = "/socket/websocket?vsn=2.0.0";

fn signed(claims: &Value) -> String {
    let key = EncodingKey::from_secret(b"s3cret");
    jsonwebtoken::encode(&Header::default(), claims, &key).unwrap()
}

fn in_an_hour() -> i64 {
    chrono::Utc::now().timestamp() + 3600
}

/// `{"a":{"a":…1}}`, so deep.
fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!({ "a": inner }))
}

fn percent_encoded(value: &Value) -> String {
    value.to_string().bytes().fold(String::new(), |mut text, byte| {
        write!(text, "%{byte:02x}").unwrap();
        text
    })
}

async fn phoenix(server: &Server, user: &str, room: &str) -> Ws {
    let mut ws = server.ws(&format!("{PHOENIX}&user={user}")).await;
    ws.json(json!(["1", "1", room, "phx_join", {}])).await;
    ws.until(|frame| frame[3] == "presence_state").await;
    ws
}

fn is_reply(frame: &Value, reference: &str, status: &str) -> bool {
    frame[1] == reference && frame[3] == "phx_reply" && frame[4]["status"] == status
}

/// The frames until the answer to a heartbeat.
async fn until_heartbeat(ws: &mut Ws) -> Vec<Value> {
    ws.json(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
    let mut frames = Vec::new();
    loop {
        match ws.next().await {
            frame if is_reply(&frame, "beat", "ok") => return frames,
            frame => frames.push(frame),
        }
    }
}

#[tokio::test]
async fn a_client_that_tells_its_token_is_answered_and_nobody_else_gets_it() {
    let server = Server::start(&[]);
    let mut witness = server.ws("/ws/lobby?user=witness&presence=none").await;
    let mut bob = phoenix(&server, "bob", "lobby").await;
    let mut ada = phoenix(&server, "ada", "lobby").await;
    let token = json!({"access_token": "a secret"});
    for (number, (join_ref, topic, status)) in [
        (json!("1"), "lobby", "ok"),
        (Value::Null, "lobby", "ok"),
        (Value::Null, "phoenix", "ok"),
        (json!("1"), "elsewhere", "error"),
    ]
    .into_iter()
    .enumerate()
    {
        let reference = format!("t{number}");
        ada.json(json!([join_ref, reference, topic, "access_token", token])).await;
        let answer = ada.until(|frame| frame[1] == reference.as_str()).await;
        assert!(is_reply(&answer, &reference, status), "{answer}");
    }
    // Whatever it sends with it, and without wanting an answer.
    ada.json(json!(["1", null, "lobby", "access_token", "a secret"])).await;
    ada.json(json!(["0", "stale", "lobby", "access_token", token])).await;
    let frames = until_heartbeat(&mut ada).await;
    assert!(!frames.iter().any(|frame| frame[3] == "phx_reply"), "{frames:?}");
    ada.json(json!(["1", null, "lobby", "shout", {}])).await;
    bob.until(|frame| {
        assert!(!frame.to_string().contains("secret"), "{frame}");
        frame[3] == "shout"
    })
    .await;
    assert_eq!(witness.next_of("message").await["event"], "shout");
}

#[tokio::test]
async fn a_reference_or_event_of_more_than_255_bytes_is_refused_and_nothing_else_happens() {
    let server = Server::start(&[]);
    let mut ada = server.ws(&format!("{PHOENIX}&user=ada")).await;
    let (longest, long) = ("é".repeat(127) + "e", "é".repeat(128));
    for (join_ref, reference, topic, event) in [
        (&*long, "1", "lobby", "phx_join"),
        ("1", &*long, "lobby", "phx_join"),
        ("1", &*long, "phoenix", "heartbeat"),
        ("1", &*long, "lobby", "access_token"),
        ("1", "1", "lobby", &*long),
    ] {
        ada.json(json!([join_ref, reference, topic, event, {}])).await;
        let answer = ada.next().await;
        assert_eq!(answer[4]["status"], "error", "{answer}");
        assert_eq!(
            (&answer[0], &answer[1], &answer[2], &answer[3]),
            (&Value::Null, &Value::Null, &json!(topic), &json!("phx_reply"))
        );
        let reason = answer[4]["response"]["reason"].as_str().unwrap();
        assert!(reason.contains("at most 255 bytes"), "{reason}");
    }
    // A topic that no room has is not sent back at length.
    ada.json(json!(["1", "1", "é".repeat(511), "phx_join", {}])).await;
    let answer = ada.next().await;
    assert_eq!((&answer[2], &answer[4]["status"]), (&json!("phoenix"), &json!("error")));
    assert_eq!(server.get("/api/rooms/lobby").await.status, 404, "nobody has joined");
    ada.json(json!([longest, longest, "lobby", "phx_join", {}])).await;
    ada.until(|frame| is_reply(frame, &longest, "ok")).await;
    ada.json(json!([longest, "2", "lobby", longest, {}])).await;
    ada.until(|frame| frame[3] == longest.as_str()).await;
}

#[tokio::test]
async fn a_socket_in_128_rooms_with_the_longest_references_costs_less_than_a_megabyte() {
    const SOCKETS: usize = 20;
    let server = Server::start(&[]);
    let join = async |socket: usize| {
        let mut ws = server.ws(&format!("{PHOENIX}&user=ada{socket}")).await;
        let reference = "r".repeat(255);
        for room in 0..128 {
            let topic = format!("{socket} {room}");
            ws.json(json!([reference, reference, topic, "phx_join", {}])).await;
            ws.until(|frame| frame[2] == topic && frame[3] == "presence_state").await;
        }
        ws
    };
    // What the process sets up once is not a socket's.
    let _first = join(SOCKETS).await;
    let before = server.memory();
    let _sockets = join_all((0..SOCKETS).map(join)).await;
    let each = server.memory().saturating_sub(before) / SOCKETS as u64;
    println!("{each} KiB for each");
    assert!(each < 1024, "{each} KiB for each");
}

#[tokio::test]
async fn a_name_that_every_javascript_object_has_is_no_user_on_any_way_in() {
    let open = Server::start(&[]);
    let locked = Server::start(&["--secret", "s3cret"]);
    for name in ["toString", "valueOf", "hasOwnProperty", "__defineGetter__", "isPrototypeOf"] {
        let refused = open.enter(&format!("/ws/lobby?user={name}")).send().await;
        assert_eq!(refused.error(), (400, "bad_user_id".to_owned()), "{name}");
        let refused = open.get(&format!("/api/users/{name}")).await;
        assert_eq!(refused.error(), (400, "bad_user_id".to_owned()), "{name}");
        let refused = open.enter(&format!("{PHOENIX}&user={name}")).send().await;
        assert_eq!(refused.status, 403, "{name}");
        let token = signed(&json!({"sub": name, "exp": in_an_hour()}));
        let refused = locked.enter(&format!("/ws/lobby?token={token}")).send().await;
        assert_eq!(refused.error(), (401, "bad_token".to_owned()), "{name}");
    }
}

#[tokio::test]
async fn infos_and_payloads_are_nested_at_most_32_deep_on_every_way_in() {
    let open = Server::start(&[]);
    let locked = Server::start(&["--secret", "s3cret"]);
    let says_so = |message: &Value| {
        let message = message.as_str().unwrap();
        assert!(message.contains("nested at most 32 deep"), "{message}");
    };
    let mut json = open.ws("/ws/lobby?user=ada&presence=none").await;
    let mut channel = phoenix(&open, "bob", "lobby").await;
    for depth in [32, 33, 127, 200] {
        let (good, value) = (depth == 32, nested(depth));
        let url = format!("/ws/deep?user=eve&info={}", percent_encoded(&value));
        let token = signed(&json!({"sub": "eve", "exp": in_an_hour(), "info": value}));
        let token = format!("/ws/deep?token={token}");
        let posted = open.ask("POST", "/api/rooms/lobby/messages").body(value.to_string());
        let posted = posted.send().await;
        if good {
            assert_eq!(posted.status, 200);
            drop([open.ws(&url).await, locked.ws(&token).await]);
        } else {
            let entered = open.enter(&url).send().await;
            assert_eq!(entered.error(), (400, "bad_info".to_owned()));
            assert_eq!(locked.enter(&token).send().await.error(), (401, "bad_token".to_owned()));
            assert_eq!(posted.error(), (400, "too_deep".to_owned()));
            for refused in [entered, posted] {
                says_so(&refused.json()["error"]["message"]);
            }
        }

        for frame in
            [json!({"type": "message", "payload": value}), json!({"type": "update", "info": value})]
        {
            json.json(frame.clone()).await;
            json.message("next").await;
            let answer = json.until(|frame| frame["type"] == "error" || frame["payload"] == "next");
            let answer = answer.await;
            assert_eq!(answer["type"] == "error", !good, "{depth}");
            if !good {
                assert_eq!(answer["payload"]["code"], "bad_frame");
                says_so(&answer["payload"]["message"]);
                json.until(|frame| frame["payload"] == "next").await;
            }
        }

        let status = if good { "ok" } else { "error" };
        for (topic, event, payload) in
            [("lobby", "shout", value.clone()), ("info", "phx_join", json!({"info": value}))]
        {
            channel.json(json!(["1", event, topic, event, payload])).await;
            let answer = channel.until(|frame| frame[1] == event).await;
            assert_eq!(answer[4]["status"], status, "{depth}: {answer}");
            if !good {
                says_so(&answer[4]["response"]["reason"]);
            }
        }
    }
}

#[tokio::test]
async fn what_strict_parsers_cannot_read_is_refused_on_every_way_in() {
    let open = Server::start(&[]);
    let mut json = open.ws("/ws/lobby?user=ada&presence=none").await;
    let mut channel = phoenix(&open, "bob", "lobby").await;
    for (text, why) in [
        (r#"{"a":"\ud800"}"#, "surrogate"),
        (r#"{"\udc00":1}"#, "surrogate"),
        (r#"{"a":1e999}"#, "double"),
        (r#"{"a":[-1E999]}"#, "double"),
    ] {
        let posted = open.ask("POST", "/api/rooms/lobby/messages").body(text).send().await;
        assert_eq!(posted.error(), (400, "bad_json".to_owned()), "{text}");
        assert!(posted.body.contains(why), "{}", posted.body);
        for frame in [
            format!(r#"{{"type":"message","payload":{text}}}"#),
            format!(r#"{{"type":"update","info":{text}}}"#),
        ] {
            json.text(&frame).await;
            let error = json.next_of("error").await;
            assert_eq!(error["payload"]["code"], "bad_frame", "{text}");
            assert!(error["payload"]["message"].as_str().unwrap().contains(why), "{error}");
        }
        for (topic, event, payload) in [
            ("lobby", "shout", text.to_owned()),
            ("info", "phx_join", format!(r#"{{"info":{text}}}"#)),
        ] {
            channel.text(&format!(r#"["1","{event}","{topic}","{event}",{payload}]"#)).await;
            let answer = channel.until(|frame| frame[1] == event).await;
            assert_eq!(answer[4]["status"], "error", "{text}");
            assert!(answer[4]["response"]["reason"].as_str().unwrap().contains(why), "{answer}");
        }
    }
}

#[tokio::test]
async fn an_integer_of_an_info_comes_back_as_it_went_in_or_is_refused() {
    let server = Server::start(&[]);
    let locked = Server::start(&["--secret", "s3cret"]);
    let mut ada = server.ws("/ws/lobby?user=ada&presence=diff").await;
    ada.next_of("presence_state").await;
    for kept in ["18446744073709551615", "-9223372036854775808", "9007199254740993"] {
        ada.text(&format!(r#"{{"type":"update","info":{{"n":{kept}}}}}"#)).await;
        ada.next_of("presence_diff").await;
        let room = server.get("/api/rooms/lobby").await;
        assert!(room.body.contains(&format!(r#""n":{kept}"#)), "{}", room.body);
    }
    let large = r#"{"n":18446744073709551616}"#;
    ada.text(&format!(r#"{{"type":"update","info":{large}}}"#)).await;
    assert_eq!(ada.next_of("error").await["payload"]["code"], "bad_frame");
    let url = "/ws/lobby?user=eve&info=%7B%22n%22:18446744073709551616%7D";
    assert_eq!(server.enter(url).send().await.error(), (400, "bad_info".to_owned()));
    // A payload is passed on as it was written.
    ada.text(&format!(r#"{{"type":"message","payload":{large}}}"#)).await;
    ada.next_of("message").await;
    let token = signed(&json!({"sub": "eve", "exp": in_an_hour(), "info": {"n": 1e30}}));
    drop(locked.ws(&format!("/ws/lobby?token={token}")).await);
}
