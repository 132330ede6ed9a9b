//! How a server ends, and starts again.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Database, Server, Ws, presence, until};

async fn crowd(server: &Server, size: usize) -> Vec<Ws> {
    let mut sockets = Vec::new();
    for n in 0..size {
        let who = if n % 4 == 0 { String::new() } else { format!("&user=u{n}") };
        sockets.push(server.ws(&format!("/ws/room{}?presence=none{who}", n % 7)).await);
    }
    let rows = i64::try_from(size).unwrap();
    until("all rows", async || (server.database().count("presences") == rows).then_some(())).await;
    sockets
}

#[tokio::test]
async fn after_a_kill_nobody_is_present_and_the_log_names_what_was_removed() {
    let server = Server::start(&["--node", "first"]);
    let mut sockets = crowd(&server, 5).await;
    let directory = server.kill();
    for socket in &mut sockets {
        socket.ended().await;
    }
    let path = directory.path().join("presence.db");
    assert_eq!(Database::open(&path).count("presences"), 5, "a killed server tidies nothing up");

    let server = Server::start_in(directory, &["--node", "second"]);
    server.logs("first");
    let log = server.log();
    let line = log.lines().find(|line| line.contains("dead node")).unwrap();
    assert!(line.contains("first") && line.contains("presences=5"), "{line}");
    let mut database = server.database();
    assert_eq!((database.count("presences"), database.count("nodes")), (0, 1));
    assert_eq!(server.json("/api/rooms").await, json!({"rooms": [], "next": null}));
    let mut ada = server.ws("/ws/room0?user=ada").await;
    ada.sees(&["ada"], 0).await;
}

async fn stops_in_order(signal: &str, size: usize) {
    let mut server = Server::start(&[]);
    let sockets = crowd(&server, size).await;
    let sent = Instant::now();
    server.signal(signal);
    let closed = join_all(sockets.into_iter().map(async |mut socket| {
        let closed = socket.closed().await;
        socket.ended().await;
        closed
    }));
    for (code, reason) in closed.await {
        assert_eq!((code, reason.as_str()), (1001, "shutdown"));
    }
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
    let mut database = server.database();
    assert_eq!((database.count("presences"), database.count("nodes")), (0, 0));
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[tokio::test]
async fn sigterm_closes_two_hundred_sockets_with_1001_writes_everything_and_exits_with_0() {
    stops_in_order("TERM", 200).await;
}

#[tokio::test]
async fn sigint_does_the_same() {
    stops_in_order("INT", 3).await;
}

#[tokio::test]
async fn a_hangup_of_the_terminal_does_nothing() {
    let mut server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada").await;
    ada.sees(&["ada"], 0).await;
    server.signal("HUP");
    ada.message("still here").await;
    assert_eq!(ada.next_of("message").await["payload"], "still here");
    assert!(server.has_ended().is_none());
    server.signal("TERM");
    assert_eq!(ada.closed().await.0, 1001);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_that_has_reached_its_limit_ends_nothing() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let url = format!("sqlite://{}", directory.path().join("presence.db").display());
    // In blocks of 1024 bytes.
    let mut command = Command::new("bash");
    command.args(["-c", "ulimit -f 200; exec \"$0\" \"$@\""]);
    let server = presence(&["serve", "--bind", "127.0.0.1:0", "--database", &url]);
    command.arg(server.get_program()).args(server.get_args());
    for (name, value) in server.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut server = Server::spawn(directory, command);
    let info = format!("%7B%22text%22:%22{}%22%7D", "x".repeat(3500));
    let mut members = Vec::new();
    for number in 0..60 {
        let query = format!("user=u{number}&presence=none&info={info}");
        members.push(server.ws(&format!("/ws/lobby?{query}")).await);
    }
    until("the failed writes are reported", async || {
        (server.get("/readyz").await.status == 503).then_some(())
    })
    .await;
    assert_eq!(server.json("/api/rooms/lobby").await["users"].as_array().unwrap().len(), 60);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[tokio::test]
async fn a_client_that_never_answers_does_not_keep_the_server() {
    let mut server = Server::start(&[]);
    let _idle_http = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let _deaf = server.raw("/ws/lobby?user=deaf").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    let sent = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
    assert_eq!(server.database().count("presences"), 0);
}

#[tokio::test]
async fn a_server_that_has_ended_leaves_its_port_and_its_file_to_the_next() {
    // An address that no other test takes a port of.
    let start = |directory: Arc<TempDir>, bind: &str| {
        let url = format!("sqlite://{}", directory.path().join("presence.db").display());
        let command = presence(&["serve", "--bind", bind, "--database", &url]);
        Server::spawn(directory, command)
    };
    let mut server = start(Arc::new(tempfile::tempdir().unwrap()), "127.0.0.7:0");
    let _socket = server.ws("/ws/lobby?user=ada").await;
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    let next = start(server.directory(), &server.address().to_string());
    next.ws("/ws/lobby?user=ada").await.sees(&["ada"], 0).await;
}

#[tokio::test]
async fn the_rows_of_rooms_nobody_is_in_go_when_their_interval_is_over() {
    let server = Server::start(&["--prune-rooms-interval", "200ms"]);
    let mut ada = server.ws("/ws/stays?user=ada").await;
    let bob = server.ws("/ws/goes?user=bob").await;
    until("both rooms", async || (server.database().count("rooms") == 2).then_some(())).await;
    bob.close(Some(1000)).await;
    until("one room", async || (server.database().count("rooms") == 1).then_some(())).await;
    assert_eq!(server.database().presences()[0].room, "stays");
    ada.message("still here").await;
    ada.next_of("message").await;
}
