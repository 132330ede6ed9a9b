//! Which pages may use the server, where it listens, and what a refusal leaves behind.

use std::{net::TcpListener, sync::Arc};

use crate::harness::{Server, failure, presence, success};

const KEY: (&str, &str) = ("Authorization", "Bearer k3y");

#[tokio::test]
async fn pages_of_other_origins_are_refused_unless_they_are_named() {
    let server = Server::start(&["--allow-origin", "https://chat.example", "--api-key", "k3y"]);
    let own = format!("http://{}", server.address());
    for welcome in [own.as_str(), "https://chat.example"] {
        let mut ada = server.ws_with("/ws/lobby?user=ada", &[("Origin", welcome)]).await;
        ada.next_of("presence").await;
        let ask = server.ask("GET", "/api/rooms").header("Origin", welcome);
        let answer = ask.header(KEY.0, KEY.1).send().await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("access-control-allow-origin"), Some(welcome));
    }
    for foreign in ["https://evil.example", "http://chat.example", "null", "http://127.0.0.1:1"] {
        let refused = server.enter("/ws/lobby?user=ada").header("Origin", foreign).send().await;
        assert_eq!(refused.error(), (403, "foreign_origin".to_owned()), "{foreign}");
        let refused = server.ask("GET", "/api/rooms").header("Origin", foreign);
        let refused = refused.header(KEY.0, KEY.1).send().await;
        assert_eq!(refused.error(), (403, "foreign_origin".to_owned()), "{foreign}");
        let post = server.ask("POST", "/api/rooms/lobby/messages").body("1");
        let post = post.header(KEY.0, KEY.1).header("Origin", foreign);
        assert_eq!(post.send().await.status, 403, "{foreign}");
    }
    let preflight = server.ask("OPTIONS", "/api/rooms/lobby/messages");
    let preflight = preflight.header("Origin", "https://chat.example");
    let preflight = preflight.header("Access-Control-Request-Method", "POST");
    let preflight = preflight.header("Access-Control-Request-Headers", "content-type").send().await;
    assert!((200..300).contains(&preflight.status), "{preflight:?}");
    let allowed = preflight.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://chat.example"));
}

#[tokio::test]
async fn a_star_lets_any_page_open_sockets_and_none_use_the_api() {
    let server = Server::start(&["--allow-origin", "*"]);
    for origin in ["https://evil.example", "null", "file://"] {
        server.ws_with("/ws/lobby?user=ada", &[("Origin", origin)]).await.sees(&["ada"], 0).await;
        let refused = server.ask("GET", "/api/rooms/lobby").header("Origin", origin).send().await;
        assert_eq!(refused.error(), (403, "foreign_origin".to_owned()), "{origin}");
    }
}

#[tokio::test]
async fn subdomains_and_pages_without_a_host_can_be_named() {
    let flags = ["--allow-origin", "https://*.chat.example", "--allow-origin", "null,app://x"];
    let server = Server::start(&flags);
    for origin in ["https://a.b.chat.example", "null", "app://x"] {
        server.ws_with("/ws/lobby?user=ada", &[("Origin", origin)]).await.sees(&["ada"], 0).await;
    }
    for origin in ["https://chat.example", "file://", "app://y"] {
        let refused = server.enter("/ws/lobby").header("Origin", origin).send().await;
        assert_eq!(refused.error(), (403, "foreign_origin".to_owned()), "{origin}");
    }
}

#[test]
fn what_is_no_origin_is_refused_at_the_start_and_told_what_is_right() {
    for (wrong, right) in [
        ("http://localhost:5173/", "http://localhost:5173`"),
        ("localhost:5173", "https://chat.example"),
        ("https://chat.*", "https://*.chat.example"),
        ("wss://chat.example", "`https://`"),
    ] {
        let said = failure(2, &["serve", "--bind", "127.0.0.1:0", "--allow-origin", wrong]);
        assert!(said.contains("--allow-origin") && said.contains(right), "{said}");
    }
}

#[tokio::test]
async fn a_rebound_page_is_refused_with_allowed_origins_too() {
    let server = Server::start(&["--allow-origin", "https://chat.example"]);
    let host = format!("evil.example:{}", server.address().port());
    let origin = format!("http://{host}");
    for path in ["/ws/lobby?user=eve", "/socket/websocket?vsn=2.0.0"] {
        let ask = server.enter(path).header("Host", &host).header("Origin", &origin);
        assert_eq!(ask.send().await.error(), (403, "foreign_origin".to_owned()), "{path}");
    }
    let post = server.ask("POST", "/api/rooms/lobby/messages").body("1").header("Host", &host);
    assert_eq!(post.header("Origin", &origin).send().await.status, 403);
    // Reading, a page sends no origin to what it takes for its own host.
    for path in ["/api/rooms", "/api/stats/live"] {
        let read = server.ask("GET", path).header("Host", &host).send().await;
        assert_eq!(read.error(), (403, "loopback_only".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn each_refusal_is_counted_and_logged_with_the_flag_to_look_at() {
    let flags = ["--secret", "s3cret", "--api-key", "k3y", "--max-connections", "1"];
    let server = Server::start(&flags);
    let token =
        |room: &str| success(&["token", "--user", "ada", "--room", room, "--secret", "s3cret"]);
    let (good, forged) = (token("lobby"), success(&["token", "--user", "ada", "--secret", "else"]));
    let _taken = server.ws(&format!("/ws/lobby?token={good}")).await;
    for (path, origin, reason, hint) in [
        ("/ws/lobby".to_owned(), Some("https://evil.example"), "foreign_origin", "--allow-origin"),
        ("/ws/lobby".to_owned(), None, "token_needed", "--allow-anonymous"),
        (format!("/ws/lobby?token={forged}"), None, "bad_token", "--secret"),
        (format!("/ws/other?token={good}"), None, "room_not_allowed", "--room"),
        (format!("/ws/lobby?token={good}"), None, "too_many_connections", "--max-connections"),
        (format!("/socket/websocket?token={good}"), None, "bad_version", "vsn=2.0.0"),
        ("/ws/%0A".to_owned(), None, "bad_room_name", "malformed"),
        ("/api/rooms".to_owned(), None, "unauthorized", "--api-key"),
    ] {
        for _ in 0..2 {
            let ask = origin
                .into_iter()
                .fold(server.enter(&path), |ask, origin| ask.header("Origin", origin));
            assert_eq!(ask.send().await.error().1, reason);
        }
        server.logs(&format!("reason=\"{reason}\""));
        let log = server.log();
        let lines: Vec<&str> =
            log.lines().filter(|line| line.contains(&format!("\"{reason}\""))).collect();
        assert_eq!(lines.len(), 1, "{log}");
        assert!(lines[0].contains(hint) && lines[0].contains("WARN"), "{log}");
        assert!(origin.is_none_or(|origin| lines[0].contains(origin)), "{log}");
        let metrics = server.get("/metrics").await.body;
        let counter = format!("presence_refusals_total{{reason=\"{reason}\"}} 2");
        assert!(metrics.contains(&counter), "{metrics}");
    }
    // What anybody tries does not hide the origin that is to be allowed.
    let mine = server.enter("/ws/lobby").header("Origin", "http://localhost:5173").send().await;
    assert_eq!(mine.error().1, "foreign_origin");
    server.logs("http://localhost:5173");
    let log = server.log();
    assert!(!log.contains(&good) && !log.contains(&forged), "{log}");
}

#[tokio::test]
async fn several_addresses_are_listened_on_with_one_port() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut command = presence(&["serve", "--database", "sqlite::memory:"]);
    command.env("PRESENCE_BIND", "127.0.0.1:0,127.0.0.2:0").current_dir(directory.path());
    let server = Server::spawn(directory, command);
    let second = format!("127.0.0.2:{}", server.address().port());
    server.logs(&format!("listening on http://{second}"));
    tokio::net::TcpStream::connect(&second).await.unwrap();
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[test]
fn an_address_that_was_asked_for_must_be_there() {
    let taken = TcpListener::bind("127.0.0.2:0").unwrap();
    let second = taken.local_addr().unwrap();
    let first = format!("127.0.0.1:{}", second.port());
    let second = second.to_string();
    let flags = ["serve", "--database", "sqlite::memory:", "--bind", &first, "--bind", &second];
    assert!(failure(1, &flags).contains(&second));
}

#[test]
fn the_default_is_both_loopbacks() {
    let help = success(&["serve", "--help"]);
    assert!(help.contains("[env: PRESENCE_BIND=] [default: 127.0.0.1:8080,[::1]:8080]"), "{help}");
}
