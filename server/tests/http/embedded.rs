//! The routes in an app that has its own `/`, `/healthz`, `/metrics` and 404, and says itself who a
//! client is.

use std::time::Duration;

use actix_web::{HttpResponse, HttpServer, cookie::Cookie};
use futures_util::{SinkExt, StreamExt};
use presence_server::{
    Identity, IdentityHook, IdentityRefused, Token, configure_api, configure_health,
    configure_pages, configure_sockets,
};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use super::*;

async fn none() -> HttpResponse {
    HttpResponse::NotFound().body("none of mine")
}

/// An app with routes of its own, and ours before and behind them.
macro_rules! host {
    ($before:expr, $behind:expr) => {
        init_service(
            App::new()
                .default_service(web::to(none))
                .configure($before)
                .route("/", web::get().to(async || "mine"))
                .route("/healthz", web::get().to(async || "mine"))
                .route("/metrics", web::get().to(async || "mine"))
                .route("/api/orders", web::get().to(async || "mine"))
                .configure($behind),
        )
        .await
    };
}

fn nothing(_: &mut web::ServiceConfig) {}

#[actix::test]
async fn an_app_keeps_its_own_routes_and_its_404() {
    let presence = start();
    let state = ServerState::new(&presence, options());
    let scope = || {
        let state = state.clone();
        |cfg: &mut web::ServiceConfig| {
            cfg.service(web::scope("/realtime").configure(configure(state)));
        }
    };
    // What is mounted at the root has no address of the app, and takes none below `/api`.
    let parts = || {
        let state = state.clone();
        |cfg: &mut web::ServiceConfig| {
            cfg.configure(configure_sockets(state.clone())).configure(configure_api(state));
        }
    };
    for (app, prefix) in [
        (host!(scope(), nothing), "/realtime"),
        (host!(nothing, scope()), "/realtime"),
        (host!(parts(), nothing), ""),
        (host!(nothing, parts()), ""),
        // The app's own come first.
        (host!(nothing, configure(state.clone())), ""),
    ] {
        for mine in ["/", "/healthz", "/metrics", "/api/orders"] {
            let answer = send(&app, get(mine)).await;
            assert_eq!(answer.body, b"mine", "{mine} beside {prefix}");
        }
        for nobodys in ["/nope", "/api/nope", "/realtime/nope", "/realtime/api/nope"] {
            let answer = send(&app, get(nobodys)).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{nobodys} beside {prefix}");
            assert_eq!(answer.body, b"none of mine", "{nobodys} beside {prefix}");
        }
        let rooms = send(&app, get(&format!("{prefix}/api/rooms"))).await;
        assert_eq!(rooms.json(), json!({"rooms": [], "next": null}));
        let socket = send(&app, get(&format!("{prefix}/ws/lobby"))).await;
        assert_eq!(socket.refusal(), (400, "handshake".to_owned()));
    }
}

#[actix::test]
async fn each_part_mounts_its_own_addresses_and_nothing_else() {
    let presence = start();
    let state = ServerState::new(&presence, options());
    type Configure = Box<dyn FnOnce(&mut web::ServiceConfig)>;
    let parts: [(_, Configure); 4] = [
        ("sockets", Box::new(configure_sockets(state.clone()))),
        ("api", Box::new(configure_api(state.clone()))),
        ("pages", Box::new(configure_pages)),
        ("health", Box::new(configure_health(state.clone()))),
    ];
    for (part, configure) in parts {
        let app = App::new().default_service(web::to(none));
        let app = init_service(app.service(web::scope("/here").configure(configure))).await;
        for (of, path) in [
            ("sockets", "/ws/lobby"),
            ("sockets", "/socket/websocket"),
            ("api", "/api/rooms"),
            ("api", "/api/stats"),
            ("api", "/api/connections/x"),
            ("pages", ""),
            ("pages", "/"),
            ("pages", "/dashboard"),
            ("pages", "/assets/base.css"),
            ("health", "/healthz"),
            ("health", "/readyz"),
            ("health", "/metrics"),
        ] {
            let answer = send(&app, get(&format!("/here{path}"))).await;
            let is_there = answer.body != b"none of mine";
            assert_eq!(is_there, part == of, "{path} of {of}, with {part} alone");
        }
    }
}

#[actix::test]
async fn two_systems_in_one_app_have_each_its_own_state() {
    let (one, two) = (start(), start());
    let _ada = join(&one, "lobby", Some("ada")).await;
    let of = |presence| configure_api(ServerState::new(presence, options()));
    let app = init_service(
        App::new().service(web::scope("/two").configure(of(&two))).configure(of(&one)),
    )
    .await;
    let there = send(&app, get("/api/users/ada")).await;
    assert_eq!(there.json()["rooms"][0]["channel_name"], "lobby");
    assert_eq!(send(&app, get("/two/api/users/ada")).await.json()["rooms"], json!([]));
}

#[actix::test]
async fn pages_of_other_origins_are_judged_at_each_address_of_the_api() {
    let presence = start();
    let options = ServerOptions {
        api_key: Some(secret("k")),
        allowed_origins: vec!["https://a.example".parse().unwrap()],
        ..options()
    };
    let state = ServerState::new(&presence, options);
    let app = host!(configure_api(state), nothing);
    let preflight = request(Method::OPTIONS, "/api/rooms/r/messages")
        .insert_header((header::ORIGIN, "https://a.example"))
        .insert_header((header::ACCESS_CONTROL_REQUEST_METHOD, "POST"));
    let allowed = send(&app, preflight).await;
    assert_eq!(allowed.header("access-control-allow-origin"), "https://a.example");
    let foreign = get("/api/rooms").insert_header((header::ORIGIN, "https://b.example"));
    assert_eq!(send(&app, foreign).await.refusal(), (403, "foreign_origin".to_owned()));
    assert_eq!(send(&app, get("/api/rooms")).await.refusal(), (401, "unauthorized".to_owned()));
}

/// Each client is the user that its cookie names; `down` finds no database, and `slow` no end. `failed` and
/// `broken` are errors of actix-web.
fn cookies() -> IdentityHook {
    IdentityHook::new(|req| {
        let login = req.cookie("login").map(|cookie| cookie.value().to_owned());
        async move {
            match login.as_deref() {
                None => Err(IdentityRefused::unauthorized("log in first")),
                Some("down") => Err(IdentityRefused::unavailable("the database is away")),
                Some("slow") => std::future::pending().await,
                Some("panic") => panic!("the app's own fault"),
                Some("odd") => Err(IdentityRefused::new(StatusCode::OK, "no error at all")),
                Some("broken") => Err(actix_web::error::ErrorBadRequest("half a cookie"))?,
                Some("failed") => Err(actix_web::error::ErrorBadGateway("host=db password=x"))?,
                Some("guest") => Ok(Identity::anonymous().rooms(["lobby"])),
                Some(user) => {
                    let user = UserId::new(user)
                        .map_err(|_| IdentityRefused::forbidden("no such user"))?;
                    let info = Info::new(json!({"role": "agent"}))
                        .map_err(|_| IdentityRefused::forbidden("no such role"))?;
                    Ok(Identity::user(user).fixed_info(info).rooms(["lobby", "team:*"]))
                }
            }
        }
    })
}

fn with_cookies() -> ServerOptions {
    ServerOptions {
        identity: Some(cookies()),
        // All of these count for nothing beside a hook.
        secrets: vec![secret("s")],
        allow_anonymous: true,
        believe_query: true,
        ..options()
    }
}

#[actix::test]
async fn a_hook_says_who_opens_a_socket_or_refuses_with_its_own_status() {
    let presence = start();
    let app = app!(presence, with_cookies());
    let refusal = async |path: &str, login: Option<&str>| {
        let request = get(path);
        let request = match login {
            Some(login) => request.cookie(Cookie::new("login", login.to_owned())),
            None => request,
        };
        let answer = send(&app, request).await;
        let (status, code) = answer.refusal();
        (status, code, answer.json()["error"]["message"].as_str().unwrap().to_owned())
    };
    let refused =
        |status: u16, message: &str| (status, "identity_refused".to_owned(), message.to_owned());
    let token = Token::user(UserId::new("eve").unwrap()).sign(&secret("s")).unwrap();
    for path in ["/ws/lobby", "/ws/lobby?user=eve", &format!("/ws/lobby?token={token}")] {
        assert_eq!(refusal(path, None).await, refused(401, "log in first"), "{path}");
    }
    assert_eq!(refusal("/ws/lobby", Some("odd")).await, refused(403, "no error at all"));
    assert_eq!(refusal("/ws/lobby", Some("broken")).await, refused(400, "half a cookie"));
    assert_eq!(refusal("/ws/lobby", Some("toString")).await, refused(403, "no such user"));
    let (status, code, message) = refusal("/ws/lobby", Some("down")).await;
    assert_eq!((status, &*code, &*message), (503, "identity_unavailable", "the database is away"));
    // What has failed inside is not for the client.
    let (status, code, message) = refusal("/ws/lobby", Some("failed")).await;
    let fixed = "it cannot be found out now who you are";
    assert_eq!((status, &*code, &*message), (502, "identity_unavailable", fixed));
    let (status, code, message) = refusal("/ws/lobby", Some("panic")).await;
    assert_eq!((status, &*code, &*message), (500, "identity_unavailable", fixed));
    for (room, login, code) in [
        ("lobby", "guest", "handshake"),
        ("team:red", "guest", "room_not_allowed"),
        ("team:red", "ada", "handshake"),
        ("staff", "ada", "room_not_allowed"),
    ] {
        assert_eq!(refusal(&format!("/ws/{room}"), Some(login)).await.1, code, "{room} {login}");
    }
    // Phoenix clients know 403 only, but what is not their fault is not theirs here either.
    let phoenix = "/socket/websocket?vsn=2.0.0";
    assert_eq!(refusal(phoenix, None).await, refused(403, "log in first"));
    assert_eq!(refusal(phoenix, Some("down")).await.0, 503);
}

#[actix::test]
async fn a_hook_that_does_not_answer_delays_its_own_client_only_and_not_for_ever() {
    let presence = start();
    let app = app!(presence, with_cookies());
    // Time that nobody needs passes at once.
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    let timed = async |request| (send(&app, request).await, begin.elapsed());
    let slow = timed(get("/ws/lobby").cookie(Cookie::new("login", "slow")));
    let other = timed(get("/ws/lobby"));
    let ((slow, slow_took), (other, other_took)) = futures_util::future::join(slow, other).await;
    assert!(other_took < Duration::from_secs(1), "{other_took:?}");
    let bound = Duration::from_secs(10)..=Duration::from_secs(11);
    assert!(bound.contains(&slow_took), "{slow_took:?}");
    assert_eq!(other.refusal(), (401, "identity_refused".to_owned()));
    assert_eq!(slow.refusal(), (503, "identity_unavailable".to_owned()));
}

#[actix::test]
async fn a_bounded_number_of_handshakes_waits_for_the_hook() {
    let presence = start();
    let app = app!(presence, with_cookies());
    let slow = || send(&app, get("/ws/lobby").cookie(Cookie::new("login", "slow")));
    let mut waiting: Vec<_> = (0..4096).map(|_| Box::pin(slow())).collect();
    for handshake in &mut waiting {
        assert!(futures_util::poll!(handshake).is_pending());
    }
    assert_eq!(slow().await.refusal(), (503, "identity_unavailable".to_owned()));
    drop(waiting);
    assert_eq!(send(&app, get("/ws/lobby")).await.refusal(), (401, "identity_refused".to_owned()));
}

#[actix::test]
async fn a_socket_under_a_prefix_is_the_user_of_its_cookie() {
    let presence = start();
    let state = ServerState::new(&presence, with_cookies());
    let server = HttpServer::new(move || {
        App::new()
            .route("/", web::get().to(async || "mine"))
            .service(web::scope("/realtime").configure(configure(state.clone())))
    });
    let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
    let address = server.addrs()[0];
    let server = server.run();
    let handle = server.handle();
    actix::spawn(server);
    let open = |path: &str, login: &'static str| {
        let url = format!("ws://{address}/realtime{path}");
        let mut request = url.into_client_request().unwrap();
        let cookie = format!("login={login}").parse().unwrap();
        request.headers_mut().insert("cookie", cookie);
        connect_async(request)
    };

    let (mut ada, _) = open("/ws/lobby?user=eve&info={%22a%22:1}", "ada").await.unwrap();
    let list: Value = match ada.next().await.unwrap().unwrap() {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    };
    let member = json!({"id": "ada", "info": {"role": "agent"}, "connections": 1});
    assert_eq!(list["payload"]["members"], json!([member]));
    // The role is the app's, and the rest her own.
    let update = r#"{"type":"update","info":{"role":"boss","status":"away"}}"#;
    ada.send(Message::text(update)).await.unwrap();
    let list = loop {
        let frame = ada.next().await.unwrap().unwrap();
        let frame: Value = serde_json::from_str(frame.to_text().unwrap()).unwrap();
        if frame["payload"]["members"][0]["info"]["status"] == "away" {
            break frame;
        }
    };
    assert_eq!(list["payload"]["members"][0]["info"]["role"], "agent");
    // A Phoenix client of hers in the same process.
    let (mut phoenix, _) = open("/socket/websocket?vsn=2.0.0", "ada").await.unwrap();
    for (room, status) in [("team:red", "ok"), ("staff", "error")] {
        let join = json!(["1", "1", room, "phx_join", {}]).to_string();
        phoenix.send(Message::text(join)).await.unwrap();
        let reply = loop {
            let frame = phoenix.next().await.unwrap().unwrap();
            let frame: Value = serde_json::from_str(frame.to_text().unwrap()).unwrap();
            if frame[3] == "phx_reply" {
                break frame;
            }
        };
        assert_eq!(reply[4]["status"], status, "{room}: {reply}");
    }
    match open("/ws/staff", "ada").await {
        Err(Error::Http(refused)) => assert_eq!(refused.status(), 403),
        other => panic!("{other:?}"),
    }
    presence.shutdown(Duration::from_secs(5)).await.unwrap();
    handle.stop(false).await;
}

#[actix::test]
async fn a_token_that_the_app_signs_is_accepted() {
    let presence = start();
    let app = app!(presence, ServerOptions { secrets: vec![secret("s")], ..options() });
    let token = Token::user(UserId::new("ada").unwrap()).rooms(["team:*"]);
    let token = token.expires_in(Duration::from_secs(60)).sign(&secret("s")).unwrap();
    for (room, code) in [("team:red", "handshake"), ("lobby", "room_not_allowed")] {
        let answer = send(&app, get(&format!("/ws/{room}?token={token}"))).await;
        assert_eq!(answer.refusal().1, code, "{room}");
    }
    let other = Token::anonymous().sign(&secret("other")).unwrap();
    let answer = send(&app, get(&format!("/ws/lobby?token={other}"))).await;
    assert_eq!(answer.refusal(), (401, "bad_token".to_owned()));
}
