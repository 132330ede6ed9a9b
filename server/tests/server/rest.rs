//! `/api`: who is where, and what may be done about it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Server, Ws};

async fn ids(server: &Server, path: &str, list: &str) -> Vec<String> {
    let (mut ids, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.json(&format!("{path}?limit=3{after}")).await;
        let entries = page[list].as_array().unwrap();
        ids.extend(entries.iter().map(|entry| entry["channel_name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else {
            assert!(page["next"].is_null());
            return ids;
        };
        assert_eq!(entries.len(), 3);
        let url_safe = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
        assert!(next.bytes().all(url_safe), "{next}");
        after = format!("&after={next}");
    }
}

#[tokio::test]
async fn rooms_come_in_pages_each_once() {
    let server = Server::start(&[]);
    let names: BTreeSet<String> =
        (0..8).map(|n| format!("room é/{n}")).chain(["Abc".into(), "abc".into()]).collect();
    let mut sockets = Vec::new();
    for name in &names {
        let path = name.replace(' ', "%20").replace('é', "%C3%A9").replace('/', "%2F");
        let mut ws = server.ws(&format!("/ws/{path}?user=ada")).await;
        ws.next().await;
        sockets.push(ws);
    }
    let listed = ids(&server, "/api/rooms", "rooms").await;
    assert_eq!(listed, names.iter().cloned().collect::<Vec<_>>());
    let page = server.json("/api/rooms").await;
    let first = &page["rooms"][0];
    assert_eq!(
        *first,
        json!({"channel_name": "Abc", "connections": 1, "users": 1, "anonymous": 0,
            "version": first["version"]})
    );
    assert_eq!(page["next"], Value::Null);
    assert_eq!(server.json("/api/users/ada").await["rooms"].as_array().unwrap().len(), 10);
}

#[tokio::test]
async fn presences_come_in_pages_each_once_with_what_is_known_of_them() {
    let server = Server::start(&["--node", "here"]);
    let mut sockets: Vec<Ws> = Vec::new();
    for n in 0..10 {
        let who = if n % 3 == 0 { String::new() } else { format!("?user=u{}", n % 4) };
        let mut ws = server.ws(&format!("/ws/lobby{who}")).await;
        ws.next().await;
        sockets.push(ws);
    }
    let listed = ids(&server, "/api/rooms/lobby/presences", "presences").await;
    assert_eq!(listed.len(), 10);
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), 10);
    let page = server.json("/api/rooms/lobby/presences").await;
    for presence in page["presences"].as_array().unwrap() {
        assert!(presence["user"].is_null() || presence["user"].is_string());
        assert_eq!(presence["info"], json!({}));
        assert_eq!((&presence["node"], &presence["state"]), (&json!("here"), &json!("live")));
        for time in ["joined_at", "last_seen"] {
            let text = presence[time].as_str().unwrap();
            assert!(text.ends_with('Z'), "{text}");
            chrono::DateTime::parse_from_rfc3339(text).unwrap();
        }
    }
}

#[tokio::test]
async fn bad_cursors_and_limits_are_refused() {
    let server = Server::start(&[]);
    let _ada = server.ws("/ws/lobby").await;
    for path in ["/api/rooms", "/api/rooms/lobby/presences"] {
        for limit in ["0", "-1", "1001", "x", "", "1.5", "+1", "99999999999999999999"] {
            let answer = server.get(&format!("{path}?limit={limit}")).await;
            assert_eq!(answer.error(), (400, "bad_limit".to_owned()), "{limit}");
        }
        for after in ["", "!", "%ff", "AAAA"] {
            let answer = server.get(&format!("{path}?after={after}")).await;
            assert_eq!(answer.error().0, 400, "{path} {after}");
        }
        assert_eq!(server.get(&format!("{path}?limit=1000&unknown=1")).await.status, 200);
    }
}

#[tokio::test]
async fn a_room_has_a_tag_and_is_not_sent_again_while_it_is_the_same() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&info=%7B%22a%22%3A1%7D").await;
    let _tab = server.ws("/ws/lobby?user=ada").await;
    let _lurker = server.ws("/ws/lobby").await;
    ada.sees(&["ada"], 1).await;
    let answer = server.get("/api/rooms/lobby").await;
    let room = answer.json();
    assert_eq!(
        room,
        json!({"channel_name": "lobby", "epoch": room["epoch"], "version": room["version"],
            "connections": 3, "anonymous": 1,
            "users": [{"id": "ada", "info": {}, "connections": 2}]})
    );
    let epoch = room["epoch"].as_str().map_or_else(|| room["epoch"].to_string(), str::to_owned);
    let tag = answer.header("etag").unwrap().to_owned();
    assert_eq!(tag, format!("\"{epoch}-{}\"", room["version"]));

    let ask = async |tag: &str| {
        server.ask("GET", "/api/rooms/lobby").header("If-None-Match", tag).send().await
    };
    for known in [tag.clone(), format!("\"x\", {tag}"), format!("W/{tag}"), "*".to_owned()] {
        let same = ask(&known).await;
        assert_eq!((same.status, same.body.as_str()), (304, ""), "{known}");
        assert_eq!(same.header("etag"), Some(tag.as_str()));
    }
    assert_eq!(ask("\"x\"").await.status, 200);
    assert_eq!(ask("nonsense").await.status, 200);
    ada.json(json!({"type": "update", "info": {"b": 2}})).await;
    ada.until(|frame| frame["payload"]["version"] != room["version"]).await;
    let changed = ask(&tag).await;
    assert_eq!(changed.status, 200);
    assert_eq!(changed.json()["version"], room["version"].as_u64().unwrap() + 1);
    let head = server.ask("HEAD", "/api/rooms/lobby").send().await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_room_nobody_is_in_is_unknown() {
    let server = Server::start(&[]);
    for path in ["/api/rooms/lobby", "/api/rooms/lobby/presences"] {
        assert_eq!(server.get(path).await.error(), (404, "unknown_room".to_owned()));
    }
    for path in ["/api", "/api/nothing", "/nothing", "/api/rooms/a/b"] {
        assert_eq!(server.get(path).await.error().0, 404, "{path}");
    }
    assert_eq!(server.json("/api/users/ada").await, json!({"id": "ada", "rooms": []}));
}

#[tokio::test]
async fn a_message_is_posted_to_the_members_as_it_is() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/caf%C3%A9?user=ada&presence=none").await;
    let mut lurker = server.ws("/ws/caf%C3%A9?presence=diff").await;
    lurker.next().await;
    let post = async |room: &str, body: &str| {
        server.ask("POST", &format!("/api/rooms/{room}/messages")).body(body).send().await
    };
    for body in [r#"{"text":"hello"}"#, "null", "[1,2]", "\"a\"", "1e3"] {
        let answer = post("caf%C3%A9", body).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"recipients": 2})));
        let payload: Value = serde_json::from_str(body).unwrap();
        let expected = json!({"type": "message", "payload": payload, "from": null});
        assert_eq!(ada.next().await, expected);
        assert_eq!(lurker.next_of("message").await, expected);
    }
    assert_eq!(post("empty", "1").await.json(), json!({"recipients": 0}));
    for bad in ["", "{", "hello", "1 2", "\u{0}"] {
        assert_eq!(post("caf%C3%A9", bad).await.error(), (400, "bad_json".to_owned()), "{bad}");
    }
    let big = format!("\"{}\"", "x".repeat(65_535));
    assert_eq!(post("caf%C3%A9", &big).await.error(), (413, "too_large".to_owned()));
    assert_eq!(post("%0A", "1").await.error(), (400, "bad_room_name".to_owned()));
    let got = server.get("/api/rooms/lobby/messages").await;
    assert_eq!((got.error().0, got.header("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn a_user_is_in_all_rooms_of_all_connections() {
    let server = Server::start(&[]);
    let mut sockets = Vec::new();
    for room in ["b", "a", "b"] {
        let mut ws = server.ws(&format!("/ws/{room}?user=a%2Fd%C3%A9")).await;
        ws.next().await;
        sockets.push(ws);
    }
    let user = server.json("/api/users/a%2Fd%C3%A9").await;
    let mut rooms = user["rooms"].as_array().unwrap().clone();
    rooms.sort_by_key(|room| room["channel_name"].to_string());
    assert_eq!(user["id"], "a/dé");
    let of = |name: &str, n: u64| json!({"channel_name": name, "connections": n});
    assert_eq!(rooms, [of("a", 1), of("b", 2)]);
    for bad in ["%0A", "%ff", "__proto__", ""] {
        let refused = server.get(&format!("/api/users/{bad}")).await;
        assert_eq!(refused.error(), (400, "bad_user_id".to_owned()), "{bad}");
    }
}

#[tokio::test]
async fn with_a_key_the_api_answers_its_bearer_only() {
    let server = Server::start(&["--api-key", "k3y"]);
    for path in ["/api/rooms", "/api/rooms/lobby", "/api/users/ada", "/api/nothing"] {
        let refused = server.get(path).await;
        assert_eq!(refused.error(), (401, "unauthorized".to_owned()), "{path}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        for wrong in ["Bearer k3", "Bearer k3yy", "Basic k3y", "k3y", "Bearer"] {
            let refused = server.ask("GET", path).header("Authorization", wrong).send().await;
            assert_eq!(refused.status, 401, "{wrong}");
        }
    }
    let keyed = server.ask("GET", "/api/rooms").header("Authorization", "Bearer k3y");
    // With the key it may come from anywhere.
    let keyed = keyed.header("X-Forwarded-For", "203.0.113.9").header("Host", "chat.example");
    assert_eq!(keyed.send().await.json(), json!({"rooms": [], "next": null}));
    let kick = server.ask("DELETE", &format!("/api/connections/{}", "0".repeat(32)));
    assert_eq!(kick.send().await.status, 401);
    for open in ["/", "/healthz", "/readyz"] {
        assert_eq!(server.get(open).await.status, 200, "{open}");
    }
}

#[tokio::test]
async fn without_a_key_the_api_answers_this_machine_only() {
    let server = Server::start(&[]);
    assert_eq!(server.get("/api/rooms").await.status, 200);
    for (name, value) in [
        ("X-Forwarded-For", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1"),
        ("X-Real-IP", "::1"),
        ("Via", "1.1 proxy"),
        ("Host", "rebound.example"),
    ] {
        let refused = server.ask("GET", "/api/rooms").header(name, value).send().await;
        assert_eq!(refused.error(), (403, "loopback_only".to_owned()), "{name}");
        let refused = server.ask("POST", "/api/rooms/lobby/messages").header(name, value).body("1");
        assert_eq!(refused.send().await.status, 403, "{name}");
    }
}
