//! The HTTP routes, in process.
#![cfg(feature = "server")]

use actix::prelude::*;
use actix_presence::{
    Cause, ConnectionId, Decision, Info, Join, LeaveAll, PresenceConfig, PresenceHandle, RoomName,
    UserId,
    server::{Metrics, Secret, ServerOptions, ServerState, configure},
    testing::{Heard, ManualClock, Probe, Seen},
};
use actix_web::{
    App,
    body::MessageBody,
    dev::{Service, ServiceResponse},
    http::{Method, StatusCode, header},
    test::{TestRequest, call_service, init_service, read_body},
    web,
};
use jsonwebtoken::{EncodingKey, Header, get_current_timestamp};
use serde_json::{Value, json};

/// A request made on this machine, for this machine.
fn request(method: Method, path: &str) -> TestRequest {
    let peer = "127.0.0.1:5000".parse().unwrap();
    TestRequest::with_uri(path).method(method).peer_addr(peer).insert_header(("host", "localhost"))
}

fn get(path: &str) -> TestRequest {
    request(Method::GET, path)
}

struct Answer {
    status: StatusCode,
    headers: header::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The status and the code of a refusal, which has a message, too.
    #[track_caller]
    fn refusal(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        (self.status.as_u16(), error["code"].as_str().unwrap().to_owned())
    }
}

async fn send<S, B, E>(app: &S, request: TestRequest) -> Answer
where
    S: Service<actix_http::Request, Response = ServiceResponse<B>, Error = E>,
    B: MessageBody,
    E: std::fmt::Debug,
{
    let response = call_service(app, request.to_request()).await;
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, body: read_body(response).await.to_vec() }
}

macro_rules! app {
    ($presence:expr, $options:expr) => {{
        let state = ServerState::new(&$presence, $options);
        init_service(App::new().configure(configure(state))).await
    }};
    ($presence:expr) => {
        app!($presence, ServerOptions::default())
    };
}

fn start() -> PresenceHandle {
    PresenceConfig::new("sqlite::memory:").node("here").start().unwrap()
}

fn options() -> ServerOptions {
    ServerOptions::default()
}

fn secret(text: &str) -> Secret {
    Secret::new(text).unwrap()
}

/// Somebody in a room, as long as this lives.
struct Member {
    id: ConnectionId,
    probe: Addr<Probe<Heard>>,
    seen: Seen<Heard>,
}

async fn join(presence: &PresenceHandle, room: &str, user: Option<&str>) -> Member {
    join_with(presence, room, user, json!({})).await
}

async fn join_with(
    presence: &PresenceHandle,
    room: &str,
    user: Option<&str>,
    info: Value,
) -> Member {
    let (probe, seen) = Probe::<Heard>::new();
    let id = ConnectionId::new();
    let room = RoomName::new(room).unwrap();
    let mut join = Join::anonymous(room, id, probe.clone().recipient())
        .disconnect(probe.clone().recipient())
        .info(Info::new(info).unwrap());
    join.user = user.map(|user| UserId::new(user).unwrap());
    presence.registry().send(join).await.unwrap().unwrap();
    Member { id, probe, seen }
}

fn token(claims: &Value, secret: &str) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(secret.as_bytes()))
        .unwrap()
}

#[actix::test]
async fn rooms_are_listed_by_name_in_pages_until_nothing_follows() {
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
async fn a_room_is_shown_with_its_users_and_not_again_while_nothing_changes() {
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
async fn a_user_is_found_in_all_its_rooms() {
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
async fn a_message_goes_to_the_members_as_it_was_written() {
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
async fn a_body_of_the_limit_is_taken_and_one_byte_more_is_not() {
    let presence = start();
    let app = app!(presence, ServerOptions { max_frame_size: 100, ..options() });
    let post = |bytes: usize| {
        let body = format!("\"{}\"", "x".repeat(bytes - 2));
        request(Method::POST, "/api/rooms/r/messages").set_payload(body)
    };
    assert_eq!(send(&app, post(100)).await.status, StatusCode::OK);
    assert_eq!(send(&app, post(101)).await.refusal(), (413, "too_large".to_owned()));
    // One that lies about its size is refused before it is read.
    let announced = post(10).insert_header((header::CONTENT_LENGTH, "99999999999"));
    assert_eq!(send(&app, announced).await.refusal(), (413, "too_large".to_owned()));
}

#[actix::test]
async fn a_connection_is_put_out_by_its_id() {
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
async fn what_cannot_be_understood_is_refused_with_its_reason() {
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
async fn unknown_addresses_and_wrong_methods_are_told_as_json() {
    let presence = start();
    let app = app!(presence);
    for path in
        ["/nope", "/ws", "/ws/a/b", "/api", "/api/nope", "/api/rooms/a/nope", "/assets/nope.js"]
    {
        let answer = send(&app, get(path)).await;
        assert_eq!(answer.refusal(), (404, "not_found".to_owned()), "{path}");
    }
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

#[actix::test]
async fn the_api_needs_its_key_and_without_one_this_machine() {
    let presence = start();
    let open = app!(presence);
    let outside = || TestRequest::get().uri("/api/rooms").insert_header(("host", "localhost"));
    let local = (403, "loopback_only".to_owned());
    let far = outside().peer_addr("10.0.0.1:5000".parse().unwrap());
    assert_eq!(send(&open, far).await.refusal(), local);
    assert_eq!(send(&open, outside()).await.refusal(), local);
    let proxied = get("/api/rooms").insert_header(("x-forwarded-for", "127.0.0.1"));
    assert_eq!(send(&open, proxied).await.refusal(), local);
    let rebound = get("/api/rooms").insert_header(("host", "evil.example"));
    assert_eq!(send(&open, rebound).await.refusal(), local);
    assert_eq!(send(&open, get("/api/rooms")).await.status, StatusCode::OK);

    let locked = app!(presence, ServerOptions { api_key: Some(secret("k3y")), ..options() });
    for given in [None, Some("Bearer k3"), Some("Bearer k3y2"), Some("Basic k3y"), Some("k3y")] {
        let request = given.into_iter().fold(get("/api/rooms"), |request, given| {
            request.insert_header((header::AUTHORIZATION, given))
        });
        let answer = send(&locked, request).await;
        assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()), "{given:?}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    let keyed = outside()
        .peer_addr("10.0.0.1:5000".parse().unwrap())
        .insert_header((header::AUTHORIZATION, "Bearer k3y"));
    assert_eq!(send(&locked, keyed).await.status, StatusCode::OK);
    assert_eq!(send(&locked, get("/healthz")).await.status, StatusCode::OK);
}

#[actix::test]
async fn a_foreign_page_is_refused_and_a_named_one_is_told_it_may() {
    let presence = start();
    let origins = vec!["https://chat.example".parse().unwrap()];
    let app = app!(presence, ServerOptions { allowed_origins: origins, ..options() });
    let from = |method, path: &str, origin: &'static str| {
        request(method, path).insert_header((header::ORIGIN, origin))
    };
    for origin in ["https://evil.example", "null", "https://localhost.evil.example"] {
        for (method, path) in [
            (Method::GET, "/ws/r"),
            (Method::GET, "/api/rooms"),
            (Method::POST, "/api/rooms/r/messages"),
            (Method::OPTIONS, "/api/rooms"),
        ] {
            let answer = send(&app, from(method, path, origin)).await;
            assert_eq!(answer.refusal(), (403, "foreign_origin".to_owned()), "{path} {origin}");
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
    }
    let page = "https://chat.example";
    let preflight = from(Method::OPTIONS, "/api/rooms/r/messages", page)
        .insert_header(("access-control-request-method", "POST"))
        .insert_header(("access-control-request-headers", "authorization, content-type"));
    let preflight = send(&app, preflight).await;
    assert_eq!(preflight.status, StatusCode::OK);
    assert_eq!(preflight.header("access-control-allow-origin"), page);
    for path in ["/api/rooms", "/api/rooms/nobody"] {
        let answer = send(&app, from(Method::GET, path, page)).await;
        assert_eq!(answer.header("access-control-allow-origin"), page, "{path}");
    }
    for origin in [page, "http://localhost"] {
        let answer = send(&app, from(Method::GET, "/ws/r", origin)).await;
        assert_eq!(answer.refusal(), (400, "handshake".to_owned()), "{origin}");
    }
}

#[actix::test]
async fn a_token_says_who_one_is_and_where_one_may_go() {
    let presence = start();
    let secrets = vec![secret("new"), secret("old")];
    let app = app!(presence, ServerOptions { secrets, believe_query: true, ..options() });
    let soon = get_current_timestamp() + 60;
    let good = json!({"sub": "ada", "exp": soon, "rooms": ["lobby", "team:*"], "sid": "x"});
    // A good one gets as far as the handshake, which is missing here.
    for (room, claims, key, refusal) in [
        ("lobby", good.clone(), "new", (400, "handshake")),
        ("team:red", good.clone(), "old", (400, "handshake")),
        ("kitchen", good.clone(), "new", (403, "room_not_allowed")),
        ("lobby", good, "other", (401, "bad_token")),
        ("lobby", json!({"exp": soon}), "new", (400, "handshake")),
        ("lobby", json!({"exp": soon - 3600}), "new", (401, "bad_token")),
        ("lobby", json!({"sub": "ada"}), "new", (401, "bad_token")),
        ("lobby", json!({"exp": soon, "sub": ""}), "new", (401, "bad_token")),
        ("lobby", json!({"exp": soon, "info": [1]}), "new", (401, "bad_token")),
        ("lobby", json!({"exp": soon, "info": {"a": "x".repeat(5000)}}), "new", (401, "bad_token")),
    ] {
        let token = token(&claims, key);
        let refusal = (refusal.0, refusal.1.to_owned());
        let query = get(&format!("/ws/{room}?token={token}"));
        assert_eq!(send(&app, query).await.refusal(), refusal, "{room} {claims}");
        let bearer =
            get(&format!("/ws/{room}")).insert_header(("authorization", format!("Bearer {token}")));
        assert_eq!(send(&app, bearer).await.refusal(), refusal, "{room} {claims}");
    }
    let needed = (401, "token_needed".to_owned());
    assert_eq!(send(&app, get("/ws/r")).await.refusal(), needed);
    assert_eq!(send(&app, get("/ws/r?user=ada")).await.refusal(), needed);
    let anonymous =
        ServerOptions { secrets: vec![secret("s")], allow_anonymous: true, ..options() };
    let app = app!(presence, anonymous);
    assert_eq!(send(&app, get("/ws/r")).await.refusal(), (400, "handshake".to_owned()));
    assert_eq!(send(&app, get("/ws/r?token=x")).await.refusal(), (401, "bad_token".to_owned()));
    let app = app!(presence);
    assert_eq!(send(&app, get("/ws/r?token=x")).await.refusal(), (401, "no_secret".to_owned()));
}

#[actix::test]
async fn the_query_is_believed_only_on_this_machine() {
    let presence = start();
    let app = app!(presence, ServerOptions { believe_query: true, ..options() });
    let bad = || get("/ws/r?user=__proto__");
    assert_eq!(send(&app, bad()).await.refusal(), (400, "bad_user_id".to_owned()));
    // Elsewhere nobody looks at it.
    let ignored = (400, "handshake".to_owned());
    let rebound = bad().insert_header(("host", "evil.example"));
    assert_eq!(send(&app, rebound).await.refusal(), ignored);
    let proxied = bad().insert_header(("x-forwarded-for", "10.0.0.1"));
    assert_eq!(send(&app, proxied).await.refusal(), ignored);
    assert_eq!(send(&app!(presence), bad()).await.refusal(), ignored);
}

#[actix::test]
async fn a_room_that_does_not_take_one_says_so_before_the_handshake() {
    let presence = PresenceConfig::new("sqlite::memory:")
        .room_size(1)
        .authorize(|room, _, _| match room.as_str() {
            "staff" => Decision::deny("staff only"),
            _ => Decision::Allow,
        })
        .start()
        .unwrap();
    let app = app!(presence);
    let _ada = join(&presence, "r", Some("ada")).await;
    assert_eq!(send(&app, get("/ws/r")).await.refusal(), (403, "room_full".to_owned()));
    assert_eq!(send(&app, get("/ws/staff")).await.refusal(), (403, "not_allowed".to_owned()));
    assert_eq!(send(&app, get("/ws/other")).await.refusal(), (400, "handshake".to_owned()));
    let full = app!(presence, ServerOptions { max_connections: Some(0), ..options() });
    let refusal = send(&full, get("/ws/other")).await.refusal();
    assert_eq!(refusal, (503, "too_many_connections".to_owned()));
}

#[actix::test]
async fn readiness_ends_with_the_registry_and_liveness_does_not() {
    let presence = start();
    let app = app!(presence);
    let ready = send(&app, get("/readyz")).await;
    assert_eq!(
        ready.json(),
        json!({
            "status": "ready", "database": {"state": "ok", "unwritten": 0}, "bus": {"state": "local"},
        })
    );
    presence.shutdown(std::time::Duration::from_secs(5)).await.unwrap();
    let closing = send(&app, get("/readyz")).await;
    assert_eq!(closing.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(closing.json()["status"], "closing");
    let refusal = send(&app, get("/api/rooms")).await.refusal();
    assert_eq!(refusal, (503, "shutting_down".to_owned()));
    assert_eq!(send(&app, get("/healthz")).await.json(), json!({"status": "ok"}));
}

#[actix::test]
async fn every_metric_says_what_it_is() {
    let presence = start();
    let metrics = Some(Metrics::install().unwrap());
    let app = app!(presence, ServerOptions { metrics, ..options() });
    let _ada = join(&presence, "r", Some("ada")).await;
    let answer = send(&app, get("/metrics")).await;
    assert!(answer.header("content-type").starts_with("text/plain"));
    let text = String::from_utf8(answer.body).unwrap();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{line}");
    }
    for name in ["joins_total", "leaves_total", "connections", "sockets_open", "database_up 1"] {
        assert!(text.contains(&format!("\npresence_{name}")), "{name}");
    }
    // Without a collector there is nothing to tell.
    let refusal = send(&app!(presence), get("/metrics")).await.refusal();
    assert_eq!(refusal, (404, "not_found".to_owned()));
}

#[actix::test]
async fn the_page_comes_with_its_rules_and_only_once() {
    let presence = start();
    let app = app!(presence);
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/dashboard", "text/html; charset=utf-8"),
        ("/assets/index.js", "text/javascript; charset=utf-8"),
        ("/assets/heartbeat.js", "text/javascript; charset=utf-8"),
        ("/assets/dashboard.js", "text/javascript; charset=utf-8"),
        ("/assets/base.css", "text/css; charset=utf-8"),
    ] {
        let page = send(&app, get(path)).await;
        assert_eq!(page.header("content-type"), content_type);
        let policy = page.header("content-security-policy");
        assert!(policy.starts_with("default-src 'self'; ") && !policy.contains("unsafe"));
        assert_eq!(page.header("x-content-type-options"), "nosniff");
        let tag = page.header("etag").to_owned();
        let again = send(&app, get(path).insert_header(("if-none-match", tag))).await;
        assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));
    }
}

#[actix::test]
async fn the_routes_can_be_mounted_in_a_scope_beside_others() {
    let presence = start();
    let _ada = join(&presence, "a/b", Some("ada")).await;
    let state = ServerState::new(&presence, options());
    let app = init_service(
        App::new()
            .service(web::scope("/presence").configure(configure(state)))
            .route("/mine", web::get().to(|| async { "mine" })),
    )
    .await;
    let room = send(&app, get("/presence/api/rooms/a%2Fb")).await;
    assert_eq!(room.json()["channel_name"], "a/b");
    let ws = send(&app, get("/presence/ws/a%2Fb")).await;
    assert_eq!(ws.refusal(), (400, "handshake".to_owned()));
    let none = send(&app, get("/presence/nope")).await;
    assert_eq!(none.refusal(), (404, "not_found".to_owned()));
    assert_eq!(send(&app, get("/mine")).await.body, b"mine");
    assert!(send(&app, get("/nope")).await.body.is_empty());
}

#[actix::test]
async fn whatever_a_page_asks_for_is_there_and_nothing_stands_inline() {
    let presence = start();
    let app = app!(presence);
    let mut paths: Vec<String> = vec!["/".into(), "/dashboard".into()];
    let mut at = 0;
    while let Some(path) = paths.get(at).cloned() {
        let answer = send(&app, get(&path)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let text = String::from_utf8(answer.body).unwrap();
        if at < 2 {
            for inline in ["<style", " style=", "<script>", " onclick="] {
                assert!(!text.contains(inline), "{path}: {inline}");
            }
        }
        // Assets by their address, and modules by their name beside the one that imports them.
        for quoted in text.split('"').skip(1).step_by(2) {
            let found = match quoted.strip_prefix("./") {
                Some(module) if path.ends_with(".js") => format!("/assets/{module}"),
                None if quoted.starts_with("/assets/") => quoted.to_owned(),
                _ => continue,
            };
            if !paths.contains(&found) {
                paths.push(found);
            }
        }
        at += 1;
    }
    assert!(paths.contains(&"/assets/heartbeat.js".to_owned()), "{paths:?}");
    assert_eq!(paths.len(), 16, "each asset is used: {paths:?}");
}

#[actix::test]
async fn the_feed_counts_what_is_and_what_was() {
    let clock = ManualClock::new();
    let config = PresenceConfig::new("sqlite::memory:").node("here").clock(clock.clock());
    let presence = config.start().unwrap();
    let app = app!(presence);
    let ada = join(&presence, "large", Some("ada")).await;
    let _others = [
        join(&presence, "large", Some("bob")).await,
        join(&presence, "large", None).await,
        join(&presence, "small", Some("bob")).await,
    ];
    let message = request(Method::POST, "/api/rooms/large/messages").set_payload("1");
    assert_eq!(send(&app, message).await.json(), json!({"recipients": 3}));
    let kick = request(Method::DELETE, &format!("/api/connections/{}", ada.id));
    assert_eq!(send(&app, kick).await.status, StatusCode::NO_CONTENT);
    presence.registry().send(actix_presence::Flush).await.unwrap().unwrap();
    clock.advance(std::time::Duration::from_millis(2500));

    let answer = send(&app, get("/api/stats")).await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let mut stats = answer.json();
    assert!(stats["epoch"].take().as_str().is_some_and(|epoch| epoch.len() == 16));
    // How many batches the rows took is the writer's business.
    assert!(stats["counters"]["rows_written"].take().as_u64().is_some_and(|rows| rows >= 3));
    let room = |name, connections, users, anonymous, version| {
        json!({
            "channel_name": name, "connections": connections, "users": users,
            "anonymous": anonymous, "version": version,
        })
    };
    assert_eq!(
        stats,
        json!({
            "node": "here", "epoch": null, "uptime_seconds": 2.5, "status": "ready",
            "database": {"state": "ok", "unwritten": 0}, "bus": {"state": "local"},
            "sockets": 0, "rooms": 2, "connections": 3, "presences": 3, "users": 1,
            "counters": {
                "joins": 4, "messages": 1, "deliveries": 3, "lists_sent": 0, "rows_written": null,
                "leaves": {
                    "left": 0, "disconnected": 0, "expired": 0, "replaced": 0, "kicked": 1,
                    "slow_consumer": 0, "room_closed": 0, "node_lost": 0, "shutdown": 0,
                },
            },
            "largest": {
                "rooms": [room("large", 2, 1, 1, 4), room("small", 1, 1, 0, 1)], "complete": true,
            },
        })
    );
}

#[actix::test]
async fn a_page_whose_name_was_made_to_lead_here_does_not_get_in() {
    let presence = start();
    let app = app!(presence, ServerOptions { believe_query: true, ..options() });
    let from = |host: &'static str, path: &str| {
        let request = get(path).insert_header((header::HOST, host));
        request.insert_header((header::ORIGIN, format!("http://{host}")))
    };
    for path in ["/ws/lobby", "/socket/websocket?vsn=2.0.0"] {
        let refusal = send(&app, from("evil.example:8080", path)).await.refusal();
        assert_eq!(refusal, (403, "foreign_origin".to_owned()));
        // A proxy that says so, and this machine's own page, come as far as the handshake.
        let forwarded = from("chat.example", path).insert_header(("x-forwarded-for", "10.0.0.1"));
        for welcome in [forwarded, from("localhost:8080", path)] {
            assert_eq!(send(&app, welcome).await.refusal(), (400, "handshake".to_owned()));
        }
    }
}

#[actix::test]
async fn the_feed_is_behind_the_guard_and_the_page_is_not() {
    let presence = start();
    let locked = app!(presence, ServerOptions { api_key: Some(secret("k3y")), ..options() });
    let refusal = send(&locked, get("/api/stats/live")).await.refusal();
    assert_eq!(refusal, (401, "unauthorized".to_owned()));
    let refusal = send(&locked, get("/api/stats")).await.refusal();
    assert_eq!(refusal, (401, "unauthorized".to_owned()));
    let keyed = get("/api/stats").insert_header((header::AUTHORIZATION, "Bearer k3y"));
    assert_eq!(send(&locked, keyed).await.status, StatusCode::OK);
    let open = app!(presence);
    let far = |path: &str| get(path).peer_addr("10.0.0.1:5000".parse().unwrap());
    let refusal = send(&open, far("/api/stats")).await.refusal();
    assert_eq!(refusal, (403, "loopback_only".to_owned()));
    // It has nothing to tell by itself, and asks for the key.
    for app in [&locked, &open] {
        assert_eq!(send(app, far("/dashboard")).await.status, StatusCode::OK);
    }
    presence.shutdown(std::time::Duration::from_secs(5)).await.unwrap();
    let refusal = send(&open, get("/api/stats")).await.refusal();
    assert_eq!(refusal, (503, "shutting_down".to_owned()));
}
