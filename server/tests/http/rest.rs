//! The REST routes of `/api`.

use super::*;

#[actix::test]
async fn rooms_are_listed_by_name_in_pages() {
    let presence = start();
    let app = app!(presence);
    let mut members = Vec::new();
    for room in ["c", "a/b ?", "é", "a"] {
        members.push(join(&presence, room, Some("ada")).await);
    }
    members.push(join(&presence, "a", None).await);

    let (mut names, mut after) = (Vec::new(), String::new());
    for _ in 0..2 {
        let page = send(&app, get(&format!("/api/rooms?limit=2{after}"))).await.json();
        names.extend(page["rooms"].as_array().unwrap().clone());
        assert!(page["next"].is_string() == (names.len() == 2), "{page}");
        after = format!("&after={}", page["next"].as_str().unwrap_or_default());
    }
    assert_eq!(
        names[0],
        json!({"channel_name": "a", "connections": 2, "users": 1, "anonymous": 1, "version": 2})
    );
    let names: Vec<_> = names.iter().map(|room| room["channel_name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "a/b ?", "c", "é"]);
    let all = send(&app, get("/api/rooms")).await;
    assert_eq!(all.json()["rooms"].as_array().unwrap().len(), 4);
    assert_eq!(all.header("cache-control"), "no-store");
    assert_eq!(all.header("x-content-type-options"), "nosniff");
}

#[actix::test]
async fn a_room_is_shown_with_its_users_and_cached_by_tag() {
    let presence = start();
    let app = app!(presence);
    let _one = join_with(&presence, "café/7", Some("ada"), json!({"n": 1})).await;
    let two = join_with(&presence, "café/7", Some("ada"), json!({"n": 2})).await;
    let _lurker = join(&presence, "café/7", None).await;
    let path = "/api/rooms/caf%C3%A9%2F7";

    let first = send(&app, get(path)).await;
    let mut body = first.json();
    let epoch = body["epoch"].take();
    assert_eq!(
        body,
        json!({
            "channel_name": "café/7", "epoch": null, "version": 3, "connections": 3, "anonymous": 1,
            "users": [{"id": "ada", "info": {"n": 2}, "connections": 2}],
        })
    );
    let tag = first.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}-3\"", epoch.as_str().unwrap()));

    for known in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let answer = send(&app, get(path).insert_header(("if-none-match", known.clone()))).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
        assert_eq!(answer.header("etag"), tag);
    }
    let other = send(&app, get(path).insert_header(("if-none-match", "\"x\""))).await;
    assert_eq!(other.status, StatusCode::OK);

    presence.registry().send(LeaveAll::new(two.id)).await.unwrap();
    let changed = send(&app, get(path).insert_header(("if-none-match", tag))).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_eq!(changed.json()["users"], json!([{"id": "ada", "info": {"n": 1}, "connections": 1}]));
}

#[actix::test]
async fn presences_are_listed_in_pages_with_their_times_and_their_node() {
    let clock = ManualClock::new();
    let config = PresenceConfig::new("sqlite::memory:").node("here").clock(clock.clock());
    let presence = config.start().unwrap();
    let app = app!(presence);
    let bob = join_with(&presence, "r", Some("bob"), json!({"a": [1]})).await;
    let mut others = Vec::new();
    for user in [None, Some("ada"), None, Some("bob")] {
        clock.advance(std::time::Duration::from_millis(1));
        others.push(join(&presence, "r", user).await);
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = send(&app, get(&format!("/api/rooms/r/presences?limit=1{after}"))).await.json();
        seen.extend(page["presences"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    let users: Vec<_> = seen.iter().map(|presence| presence["user"].as_str()).collect();
    assert_eq!(users, [None, None, Some("ada"), Some("bob"), Some("bob")]);
    assert_eq!(
        seen[3],
        json!({
            "channel_name": bob.id.to_string(), "user": "bob", "info": {"a": [1]},
            "joined_at": "2026-01-01T00:00:00.000000Z", "last_seen": "2026-01-01T00:00:00.000000Z",
            "node": "here", "state": "live",
        })
    );
    let none = send(&app, get("/api/rooms/nobody/presences")).await;
    assert_eq!(none.refusal(), (404, "unknown_room".to_owned()));
}

#[actix::test]
async fn a_user_is_found_in_all_rooms() {
    let presence = start();
    let app = app!(presence);
    let _members = [
        join(&presence, "b", Some("ada lovelace")).await,
        join(&presence, "a", Some("ada lovelace")).await,
        join(&presence, "a", Some("ada lovelace")).await,
    ];
    let answer = send(&app, get("/api/users/ada%20lovelace")).await;
    assert_eq!(
        answer.json(),
        json!({"id": "ada lovelace", "rooms": [
            {"channel_name": "a", "connections": 2}, {"channel_name": "b", "connections": 1},
        ]})
    );
    assert_eq!(send(&app, get("/api/users/bob")).await.json(), json!({"id": "bob", "rooms": []}));
}

#[actix::test]
async fn a_message_is_delivered_byte_for_byte() {
    let presence = start();
    let app = app!(presence);
    let mut ada = join(&presence, "r", Some("ada")).await;
    let post = |room: &str, body: &'static str| {
        request(Method::POST, &format!("/api/rooms/{room}/messages")).set_payload(body)
    };
    let answer = send(&app, post("r", r#"{"a":1.0,"a":2}"#)).await;
    assert_eq!(answer.json(), json!({"recipients": 1}));
    match ada.seen.next().await {
        Some(Heard::Frame(frame)) => assert_eq!(frame.payload, r#"{"a":1.0,"a":2}"#),
        other => panic!("{other:?}"),
    }
    assert_eq!(send(&app, post("empty", "null")).await.json(), json!({"recipients": 0}));
    for bad in ["", "{", "1 2", "'a'", "\u{fffd}", "[1,]"] {
        assert_eq!(send(&app, post("r", bad)).await.refusal(), (400, "bad_json".to_owned()));
    }
    assert!(ada.probe.connected());
}

#[actix::test]
async fn a_body_over_the_limit_is_refused() {
    let presence = start();
    let app = app!(presence, ServerOptions { max_frame_size: 100, ..options() });
    let post = |bytes: usize| {
        let body = format!("\"{}\"", "x".repeat(bytes - 2));
        request(Method::POST, "/api/rooms/r/messages").set_payload(body)
    };
    assert_eq!(send(&app, post(100)).await.status, StatusCode::OK);
    assert_eq!(send(&app, post(101)).await.refusal(), (413, "too_large".to_owned()));
    // An announced size over the limit is refused before the body is read.
    let announced = post(10).insert_header((header::CONTENT_LENGTH, "99999999999"));
    assert_eq!(send(&app, announced).await.refusal(), (413, "too_large".to_owned()));
}

#[actix::test]
async fn a_compressed_body_is_refused_as_such() {
    let presence = start();
    let app = app!(presence, options());
    let post = |encoding| {
        let request = request(Method::POST, "/api/rooms/r/messages").set_payload("1");
        request.insert_header((header::CONTENT_ENCODING, encoding))
    };
    assert_eq!(send(&app, post("gzip")).await.refusal(), (415, "unsupported_encoding".to_owned()));
    assert_eq!(send(&app, post("Identity")).await.status, StatusCode::OK);
}

#[actix::test]
async fn a_connection_is_kicked_by_its_id() {
    let presence = start();
    let app = app!(presence);
    let mut ada = join(&presence, "r", Some("ada")).await;
    let kick = |id: &str| request(Method::DELETE, &format!("/api/connections/{id}"));
    let answer = send(&app, kick(&ada.id.to_string())).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
    match ada.seen.next().await {
        Some(Heard::Close(close)) => assert_eq!((close.code, close.cause), (4001, Cause::Kicked)),
        other => panic!("{other:?}"),
    }
    let again = send(&app, kick(&ada.id.to_string())).await;
    assert_eq!(again.refusal(), (404, "unknown_connection".to_owned()));
    for bad in ["x", "%ff", ""] {
        assert_eq!(send(&app, kick(bad)).await.refusal(), (400, "bad_connection".to_owned()));
    }
}

#[actix::test]
async fn malformed_requests_are_refused_with_the_reason() {
    let presence = start();
    let app = app!(presence, ServerOptions { believe_query: true, ..options() });
    let too_long = format!("/api/rooms/{}", "x".repeat(256));
    for (path, code) in [
        ("/api/rooms?limit=0", "bad_limit"),
        ("/api/rooms?limit=1001", "bad_limit"),
        ("/api/rooms?limit=%2B1", "bad_limit"),
        ("/api/rooms?limit=ten", "bad_limit"),
        ("/api/rooms?limit=", "bad_limit"),
        ("/api/rooms?limit=99999999999999999999", "bad_limit"),
        ("/api/rooms?limit=1&limit=2", "bad_query"),
        ("/api/rooms?limit=%", "bad_query"),
        ("/api/rooms?after=!", "bad_cursor"),
        ("/api/rooms?after=", "bad_cursor"),
        ("/api/rooms/r/presences?after=YQ", "bad_cursor"),
        ("/api/rooms/%", "bad_room_name"),
        ("/api/rooms/%ff", "bad_room_name"),
        ("/api/rooms/%00", "bad_room_name"),
        ("/api/rooms/", "bad_room_name"),
        (&too_long, "bad_room_name"),
        ("/api/rooms//presences", "bad_room_name"),
        ("/api/users/__proto__", "bad_user_id"),
        ("/api/users/", "bad_user_id"),
        ("/ws/", "bad_room_name"),
        ("/ws/%C3", "bad_room_name"),
        ("/ws/r?presence=all", "bad_presence"),
        ("/ws/r?user=%ff", "bad_query"),
        ("/ws/r?user=", "bad_user_id"),
        ("/ws/r?user=prototype", "bad_user_id"),
        ("/ws/r?info=%7B", "bad_info"),
        ("/ws/r?info=%5B%5D", "bad_info"),
        ("/ws/r?user=ada", "handshake"),
        ("/ws/a%2Fb?presence=diff&session=x", "handshake"),
    ] {
        let answer = send(&app, get(path)).await;
        assert_eq!(answer.refusal(), (400, code.to_owned()), "{path}");
    }
}

#[actix::test]
async fn wrong_methods_are_answered_as_json_and_unknown_addresses_by_the_app() {
    let presence = start();
    let app = app!(presence);
    // Other addresses are the app's; the server's own answer is tested with the binary.
    for path in ["/nope", "/ws", "/ws/a/b", "/api", "/api/nope", "/api/rooms/a/nope"] {
        let answer = send(&app, get(path)).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_FOUND, 0), "{path}");
    }
    let asset = send(&app, get("/assets/nope.js")).await;
    assert_eq!(asset.refusal(), (404, "not_found".to_owned()));
    for (method, path, allow) in [
        (Method::POST, "/", "GET, HEAD"),
        (Method::POST, "/healthz", "GET, HEAD"),
        (Method::DELETE, "/api/rooms", "GET, HEAD"),
        (Method::POST, "/api/stats", "GET, HEAD"),
        (Method::POST, "/api/stats/live", "GET"),
        (Method::POST, "/dashboard", "GET, HEAD"),
        (Method::GET, "/api/rooms/r/messages", "POST"),
        (Method::GET, "/api/connections/x", "DELETE"),
        (Method::POST, "/ws/r", "GET"),
    ] {
        let answer = send(&app, request(method, path)).await;
        assert_eq!(answer.refusal(), (405, "method_not_allowed".to_owned()), "{path}");
        assert_eq!(answer.header("allow"), allow);
    }
    for path in ["/", "/dashboard", "/healthz", "/readyz", "/api/rooms", "/api/stats"] {
        let answer = send(&app, request(Method::HEAD, path)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
    }
}
