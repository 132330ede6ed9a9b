//! What those who run the server look at: its page, its health, its numbers.

use std::collections::BTreeMap;

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Server, until};

#[tokio::test]
async fn the_page_and_its_assets_have_a_policy_and_a_tag() {
    let server = Server::start(&[]);
    for (path, kind) in [
        ("/", "text/html"),
        ("/assets/index.js", "text/javascript"),
        ("/assets/index.css", "text/css"),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").unwrap().starts_with(kind));
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'self'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let tag = answer.header("etag").unwrap();
        let same = server.ask("GET", path).header("If-None-Match", tag).send().await;
        assert_eq!((same.status, same.body.as_str()), (304, ""));
        assert_eq!(server.ask("POST", path).send().await.error().0, 405);
    }
    // The page asks for nothing but what there is.
    let page = server.get("/").await.body;
    for attribute in ["src=\"", "href=\""] {
        for (_, rest) in page.match_indices(attribute).map(|(at, _)| page.split_at(at)) {
            let path = rest[attribute.len()..].split('"').next().unwrap();
            if path.starts_with("data:") || path.starts_with('#') {
                continue;
            }
            let path = format!("/{}", path.trim_start_matches("./").trim_start_matches('/'));
            assert_eq!(server.get(&path).await.status, 200, "{path}");
        }
    }
    assert!(!page.contains("<script>") && !page.contains(" style="), "the policy forbids these");
}

#[tokio::test]
async fn unknown_addresses_are_answered_as_json_and_those_of_the_api_need_its_key() {
    let server = Server::start(&["--api-key", "k"]);
    for path in ["/nope", "/ws", "/ws/a/b", "/assets/nope.js", "/api"] {
        let answer = server.ask("GET", path).header("Authorization", "Bearer k").send().await;
        assert_eq!(answer.error(), (404, "not_found".to_owned()), "{path}");
    }
    for (path, key, expected) in [
        ("/api/nope", "k", (404, "not_found".to_owned())),
        ("/api/rooms/a/nope", "k", (404, "not_found".to_owned())),
        ("/api/nope", "other", (401, "unauthorized".to_owned())),
    ] {
        let key = format!("Bearer {key}");
        let answer = server.ask("GET", path).header("Authorization", &key).send().await;
        assert_eq!(answer.error(), expected, "{path} {key}");
    }
}

#[tokio::test]
async fn health_and_readiness_are_told_as_json() {
    let server = Server::start(&[]);
    assert_eq!(server.json("/healthz").await, json!({"status": "ok"}));
    let ready = server.json("/readyz").await;
    assert_eq!(ready["status"], "ready");
    assert_eq!(ready["database"]["state"], "ok");
    assert_eq!(ready["bus"]["state"], "local");
}

/// Samples by name and labels; each must follow the type of its family.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind).is_none(), "{name} has two types");
        } else if !line.starts_with('#') {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            assert!(types.contains_key(name), "{line} has no type");
            assert!(samples.insert(key.to_owned(), value.parse().unwrap()).is_none(), "{key}");
        }
    }
    samples
}

#[tokio::test]
async fn the_metrics_count_what_happens() {
    let server = Server::start(&[]);
    let get = async || {
        let answer = server.get("/metrics").await;
        assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
        samples(&answer.body)
    };
    let before = get().await;
    for zero in ["presence_joins_total", "presence_connections", "presence_sockets_open"] {
        assert_eq!(before[zero], 0.0, "{zero}");
    }
    assert_eq!(before["presence_database_up"], 1.0);
    let mut ada = server.ws("/ws/lobby?user=ada").await;
    let bob = server.ws("/ws/lobby?user=bob").await;
    // A list for everybody: the first one of each came with its answer.
    ada.sees(&["ada", "bob"], 0).await;
    ada.message("hello").await;
    ada.next_of("message").await;
    bob.close(Some(1000)).await;
    let after = until("the numbers", async || {
        let now = get().await;
        let left = now["presence_leaves_total{cause=\"left\"}"] == 1.0;
        let all = left && now["presence_sockets_open"] == 1.0;
        (all && now["presence_rows_unwritten"] == 0.0).then_some(now)
    })
    .await;
    for (name, value) in [
        ("presence_joins_total", 2.0),
        ("presence_messages_total", 1.0),
        ("presence_deliveries_total", 2.0),
        ("presence_connections", 1.0),
        ("presence_presences", 1.0),
        ("presence_view_presences", 1.0),
        ("presence_view_rooms", 1.0),
        ("presence_view_users", 1.0),
        ("presence_database_lag_seconds", 0.0),
        ("presence_rows_refused_total", 0.0),
    ] {
        assert_eq!(after[name], value, "{name}");
    }
    assert!(after["presence_lists_sent_total"] >= 1.0);
    assert!(after["presence_rows_written_total"] >= 1.0);
}

#[tokio::test]
async fn closes_are_counted_by_what_happened_at_the_socket() {
    let server = Server::start(&[]);
    let counts = async || {
        let metrics = server.get("/metrics").await.body;
        let lines =
            metrics.lines().filter(|line| line.starts_with("presence_sockets_closed_total{"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    // Who goes without a word was not closed by the server.
    drop(server.ws("/ws/lobby?presence=none").await);
    until("it is gone", async || (server.connections() == 0).then_some(())).await;
    assert_eq!(counts().await, Vec::<String>::new());
    let mut binary = server.ws("/ws/lobby?presence=none").await;
    binary.say(Message::binary(&b"x"[..])).await;
    assert_eq!(binary.closed().await, (1003, "binary frames are not taken".to_owned()));
    let counted = ["presence_sockets_closed_total{reason=\"binary frames are not taken\"} 1"];
    assert_eq!(counts().await, counted);
}
