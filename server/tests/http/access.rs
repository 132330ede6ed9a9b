//! Access: the API key, origins, tokens, and identities from the query.

use super::*;

#[actix::test]
async fn the_api_requires_its_key_or_without_one_a_local_request() {
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

fn from(method: Method, path: &str, origin: &str) -> TestRequest {
    request(method, path).insert_header((header::ORIGIN, origin))
}

fn allowed(origins: &[&str]) -> ServerOptions {
    let allowed_origins = origins.iter().map(|origin| origin.parse().unwrap()).collect();
    ServerOptions { allowed_origins, ..options() }
}

fn keyed(options: ServerOptions) -> ServerOptions {
    ServerOptions { api_key: Some(secret("k3y")), ..options }
}

const KEY: (header::HeaderName, &str) = (header::AUTHORIZATION, "Bearer k3y");
const SOCKETS: [&str; 2] = ["/ws/r", "/socket/websocket?vsn=2.0.0"];
const API: [(Method, &str); 5] = [
    (Method::GET, "/api/rooms"),
    (Method::GET, "/api/stats/live"),
    (Method::POST, "/api/rooms/r/messages"),
    (Method::DELETE, "/api/connections/x"),
    (Method::OPTIONS, "/api/rooms"),
];

#[actix::test]
async fn a_page_of_an_origin_that_is_not_allowed_is_refused() {
    let presence = start();
    let app = app!(presence, keyed(allowed(&["https://chat.example"])));
    let refusal = (403, "foreign_origin".to_owned());
    for origin in ["https://evil.example", "null", "https://localhost.evil.example", "file://"] {
        for path in SOCKETS {
            assert_eq!(send(&app, from(Method::GET, path, origin)).await.refusal(), refusal);
        }
        for (method, path) in API {
            let answer = send(&app, from(method, path, origin).insert_header(KEY)).await;
            assert_eq!(answer.refusal(), refusal, "{path} {origin}");
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
    }
}

#[actix::test]
async fn a_page_of_an_allowed_origin_may_use_sockets_and_with_the_key_the_api() {
    let presence = start();
    let names = [
        "https://chat.example",
        "https://*.chat.example",
        "null",
        "file://",
        "capacitor://localhost",
    ];
    let app = app!(presence, keyed(allowed(&names)));
    let pages = [
        "https://chat.example",
        "https://a.b.chat.example",
        "null",
        "file://",
        "capacitor://localhost",
    ];
    for page in pages {
        for path in SOCKETS {
            let answer = send(&app, from(Method::GET, path, page)).await;
            assert_eq!(answer.refusal(), (400, "handshake".to_owned()), "{path} {page}");
        }
        let preflight = from(Method::OPTIONS, "/api/rooms/r/messages", page)
            .insert_header(("access-control-request-method", "POST"))
            .insert_header(("access-control-request-headers", "authorization, content-type"));
        let preflight = send(&app, preflight).await;
        assert_eq!(preflight.status, StatusCode::OK);
        assert_eq!(preflight.header("access-control-allow-origin"), page);
        for (path, status) in [("/api/rooms", 200), ("/api/rooms/nobody", 404)] {
            let answer = send(&app, from(Method::GET, path, page).insert_header(KEY)).await;
            assert_eq!(answer.status, status, "{path} {page}");
            assert_eq!(answer.header("access-control-allow-origin"), page, "{path}");
        }
        let answer = send(&app, from(Method::GET, "/api/rooms", page)).await;
        assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()));
    }
}

#[actix::test]
async fn without_a_key_no_page_of_another_origin_may_use_the_api() {
    let presence = start();
    let app = app!(presence, allowed(&["https://chat.example", "*"]));
    for (origin, code) in
        [("https://chat.example", "loopback_only"), ("https://evil.example", "foreign_origin")]
    {
        for (method, path) in API {
            let answer = send(&app, from(method, path, origin)).await;
            assert_eq!(answer.refusal(), (403, code.to_owned()), "{path} {origin}");
            assert_eq!(answer.header("access-control-allow-origin"), "");
        }
    }
    let own = send(&app, from(Method::GET, "/api/rooms", "http://localhost")).await;
    assert_eq!(own.status, StatusCode::OK);
}

#[actix::test]
async fn a_wildcard_allows_sockets_and_with_the_key_the_api() {
    let presence = start();
    let app = app!(presence, keyed(allowed(&["*"])));
    for origin in ["https://evil.example", "null"] {
        for path in SOCKETS {
            let answer = send(&app, from(Method::GET, path, origin)).await;
            assert_eq!(answer.refusal(), (400, "handshake".to_owned()), "{path} {origin}");
        }
        for (method, path) in API {
            let answer = send(&app, from(method, path, origin)).await;
            assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()), "{path} {origin}");
        }
        let with_key = from(Method::GET, "/api/rooms", origin).insert_header(KEY);
        assert_eq!(send(&app, with_key).await.status, StatusCode::OK, "{origin}");
    }
}

#[actix::test]
async fn a_token_is_verified_and_limits_the_rooms() {
    let presence = start();
    let secrets = vec![secret("new"), secret("old")];
    let app = app!(presence, ServerOptions { secrets, believe_query: true, ..options() });
    let soon = get_current_timestamp() + 60;
    let good = json!({"sub": "ada", "exp": soon, "rooms": ["lobby", "team:*"], "sid": "x"});
    // With a valid token only the handshake is missing.
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
async fn the_query_is_trusted_only_in_local_requests() {
    let presence = start();
    let app = app!(presence, ServerOptions { believe_query: true, ..options() });
    let bad = || get("/ws/r?user=__proto__");
    assert_eq!(send(&app, bad()).await.refusal(), (400, "bad_user_id".to_owned()));
    // In other requests it is ignored.
    let ignored = (400, "handshake".to_owned());
    let rebound = bad().insert_header(("host", "evil.example"));
    assert_eq!(send(&app, rebound).await.refusal(), ignored);
    let proxied = bad().insert_header(("x-forwarded-for", "10.0.0.1"));
    assert_eq!(send(&app, proxied).await.refusal(), ignored);
    assert_eq!(send(&app!(presence), bad()).await.refusal(), ignored);
}

#[actix::test]
async fn a_refused_join_is_answered_before_the_handshake() {
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
async fn a_rebound_page_is_refused() {
    let presence = start();
    let from = |host: &'static str, method: Method, path: &str| {
        let request = from(method, path, &format!("http://{host}"));
        request.insert_header((header::HOST, host))
    };
    let foreign = (403, "foreign_origin".to_owned());
    let handshake = (400, "handshake".to_owned());
    for others in [&[][..], &["https://other.example"], &["https://*.other.example", "null"]] {
        let open = ServerOptions { believe_query: true, ..allowed(others) };
        let app = app!(presence, open.clone());
        for path in SOCKETS {
            let rebound = from("evil.example:8080", Method::GET, path);
            assert_eq!(send(&app, rebound).await.refusal(), foreign, "{others:?}");
            // For a proxied page and for this machine's own pages only the handshake is missing.
            let proxied = from("chat.example", Method::GET, path);
            let proxied = proxied.insert_header(("x-forwarded-for", "10.0.0.1"));
            assert_eq!(send(&app, proxied).await.refusal(), handshake);
            for own in ["localhost:8080", "app.localhost:8080", "[::1]:8080"] {
                let own = from(own, Method::GET, path);
                assert_eq!(send(&app, own).await.refusal(), handshake);
            }
        }
        for (method, path) in API {
            let rebound = from("evil.example:8080", method.clone(), path);
            assert_eq!(send(&app, rebound).await.refusal(), foreign, "{path} {others:?}");
            // A page can add such a header to its own requests.
            let forged = from("evil.example:8080", method, path);
            let forged = forged.insert_header(("x-forwarded-for", "127.0.0.1"));
            assert_eq!(send(&app, forged).await.status, StatusCode::FORBIDDEN, "{path}");
        }
    }
    let named = ServerOptions { believe_query: true, ..allowed(&["http://chat.example"]) };
    let app = app!(presence, named);
    for path in SOCKETS {
        assert_eq!(send(&app, from("chat.example", Method::GET, path)).await.refusal(), handshake);
    }
    let secrets = vec![secret("s")];
    let closed = ServerOptions { believe_query: true, secrets, allow_anonymous: true, ..options() };
    let app = app!(presence, closed);
    assert_eq!(send(&app, from("chat.example", Method::GET, "/ws/r")).await.refusal(), handshake);
}
