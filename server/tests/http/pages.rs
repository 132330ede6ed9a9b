//! Pages, readiness, metrics and stats.

use super::*;

#[actix::test]
async fn readiness_ends_with_the_registry_and_liveness_does_not() {
    let presence = start();
    let app = app!(presence);
    let ready = send(&app, get("/readyz")).await;
    assert_eq!(
        ready.json(),
        json!({
            "status": "ready", "database": {"state": "ok", "unwritten": 0}, "bus": {"state": "local", "nodes": 1}, "unheard": [],
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
async fn every_metric_has_a_help_text() {
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
    // Without a collector there is no such route.
    let refusal = send(&app!(presence), get("/metrics")).await.refusal();
    assert_eq!(refusal, (404, "not_found".to_owned()));
}

#[actix::test]
async fn pages_have_a_content_security_policy_and_are_cached_by_tag() {
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
async fn the_routes_can_be_mounted_in_a_scope() {
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
    assert!(send(&app, get("/presence/nope")).await.body.is_empty());
    assert_eq!(send(&app, get("/mine")).await.body, b"mine");
    assert!(send(&app, get("/nope")).await.body.is_empty());
}

/// The addresses that a text names in quotes, relative to where it is.
fn addresses(text: &str, base: &url::Url) -> Vec<url::Url> {
    let quoted = text.split('"').skip(1).step_by(2);
    let relative = quoted.filter_map(|quoted| {
        let is_script = base.path().ends_with(".js");
        let is_address = match is_script {
            true => quoted.starts_with("./") && quoted.ends_with(".js"),
            // Attributes of a page that lead somewhere.
            false => {
                quoted.starts_with("./") || quoted.starts_with("assets/") || LINKS.contains(&quoted)
            }
        };
        is_address.then(|| base.join(quoted).unwrap())
    });
    relative.collect()
}

const LINKS: [&str; 4] = ["dashboard", "metrics", "healthz", "readyz"];

#[actix::test]
async fn every_asset_exists_and_is_used_under_any_prefix_and_nothing_is_inline() {
    let presence = start();
    let metrics = Some(Metrics::install().unwrap());
    let state = ServerState::new(&presence, ServerOptions { metrics, ..options() });
    let mounts = [
        ("", ""),
        ("/realtime", "/realtime"),
        ("/deep/down", "/deep/down"),
        ("/{tenant}", "/acme"),
    ];
    for (scope, prefix) in mounts {
        let app = match scope {
            "" => App::new().configure(configure(state.clone())),
            scope => App::new().service(web::scope(scope).configure(configure(state.clone()))),
        };
        let app = init_service(app).await;
        if !prefix.is_empty() {
            // A relative address is relative to the last slash.
            let answer = send(&app, get(&format!("{prefix}?a=1"))).await;
            assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
            let from = url::Url::parse(&format!("http://localhost{prefix}?a=1")).unwrap();
            let to = from.join(answer.header("location")).unwrap();
            assert_eq!(to.as_str(), format!("http://localhost{prefix}/?a=1"));
        }
        let start = url::Url::parse(&format!("http://localhost{prefix}/")).unwrap();
        let mut urls = vec![start];
        let mut at = 0;
        while let Some(url) = urls.get(at).cloned() {
            let answer = send(&app, get(url.path())).await;
            assert_eq!(answer.status, StatusCode::OK, "{url}");
            if answer.header("content-type").starts_with("text/html") {
                let text = String::from_utf8(answer.body.clone()).unwrap();
                for inline in ["<style", " style=", "<script>", " onclick="] {
                    assert!(!text.contains(inline), "{url}: {inline}");
                }
                assert!(!text.contains("=\"/"), "{url} has an absolute address");
            }
            for found in addresses(&String::from_utf8(answer.body).unwrap(), &url) {
                if !urls.contains(&found) {
                    urls.push(found);
                }
            }
            at += 1;
        }
        let assets = urls.iter().filter(|url| url.path().contains("/assets/")).count();
        assert_eq!(assets, 14, "each asset is used: {urls:?}");
        assert_eq!(urls.len(), assets + 2 + 3, "two pages, health and metrics: {urls:?}");
    }
}

#[actix::test]
async fn stats_have_the_current_numbers_and_the_totals() {
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
    // How often a row is written depends on the batches.
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
            "database": {"state": "ok", "unwritten": 0}, "bus": {"state": "local", "nodes": 1}, "unheard": [],
            "sockets": 0, "rooms": 2, "connections": 3, "presences": 3, "users": 1,
            "counters": {
                "joins": 4, "messages": 1, "deliveries": 3, "lists_sent": 0, "rows_written": null,
                "leaves": {
                    "left": 0, "disconnected": 0, "expired": 0, "replaced": 0, "kicked": 1,
                    "slow_consumer": 0, "room_closed": 0, "node_lost": 0, "shutdown": 0,
                },
            },
            "largest": {
                "rooms": [room("large", 2, 1, 1, 4), room("small", 1, 1, 0, 1)], "complete": true, "all": 2,
            },
        })
    );
}

#[actix::test]
async fn stats_require_the_credentials_of_the_api_and_the_dashboard_does_not() {
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
    // The page itself contains nothing, and asks for the key.
    for app in [&locked, &open] {
        assert_eq!(send(app, far("/dashboard")).await.status, StatusCode::OK);
    }
    presence.shutdown(std::time::Duration::from_secs(5)).await.unwrap();
    let refusal = send(&open, get("/api/stats")).await.refusal();
    assert_eq!(refusal, (503, "shutting_down".to_owned()));
}
