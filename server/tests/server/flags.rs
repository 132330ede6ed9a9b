//! The flags of `serve`, their environment variables, and what is refused.

use std::sync::Arc;

use serde_json::Value;

use crate::harness::{Server, failure, finish, presence, stderr, until};

#[test]
fn bad_values_are_refused_with_code_2_and_a_message_that_names_them() {
    for (flag, value) in [
        ("--max-age", "abc"),
        ("--max-age", "0"),
        ("--max-age", "-1s"),
        ("--max-age", "99999999999999999999s"),
        ("--lease", "0s"),
        ("--prune-interval", "soon"),
        ("--prune-rooms-interval", ""),
        ("--ping-interval", "0ms"),
        ("--bind", "nonsense"),
        ("--bind", "127.0.0.1:99999"),
        ("--node", ""),
        ("--node", "a b"),
        ("--workers", "0"),
        ("--workers", "many"),
        ("--max-frame-size", "0"),
        ("--max-connections", "-1"),
        ("--max-room-size", "0"),
        ("--max-rate", "1.5"),
        ("--log", "loud"),
        ("--secret", ""),
        ("--api-key", ""),
        ("--api-key", "a b"),
        ("--allow-origin", "chat.example"),
        ("--database", "nonsense"),
        ("--database", "sqlite://"),
        ("--database", "postgres://db:port/x"),
        ("--grace", "soon"),
        ("--grace", "-1s"),
        ("--drain", "soon"),
        ("--drain", "-1s"),
        // Nodes that hear each other have to share a database, too.
        ("--redis", "redis://localhost"),
    ] {
        // Should one be taken, the server must not stay.
        let args = ["serve", "--bind", "127.0.0.1:0", "--database", "sqlite::memory:"];
        let args: Vec<&str> = match flag {
            "--bind" => vec!["serve", "--database", "sqlite::memory:"],
            "--database" => vec!["serve", "--bind", "127.0.0.1:0"],
            _ => args.to_vec(),
        };
        let flag_and_value = format!("{flag}={value}");
        let said = failure(2, &[&args[..], &[&flag_and_value]].concat());
        let name = flag.trim_start_matches('-');
        let named = said.contains(name) || flag == "--database" && said.contains("sqlite://");
        assert!(named, "{flag_and_value}: {said}");
    }
    let seldom = ["serve", "--max-age", "1s", "--prune-interval", "2s"];
    let memory = ["--bind", "127.0.0.1:0", "--database", "sqlite::memory:"];
    assert!(failure(2, &[&seldom[..], &memory].concat()).contains("max-age"));
}

#[test]
fn bad_values_in_the_environment_are_refused_too() {
    for (name, value) in [
        ("PRESENCE_MAX_AGE", "abc"),
        ("PRESENCE_BIND", "nonsense"),
        ("PRESENCE_ALLOW_ANONYMOUS", "perhaps"),
        ("PRESENCE_MAX_RATE", "0"),
        ("PRESENCE_ALLOW_ORIGIN", "chat.example"),
        ("PRESENCE_API_KEY", "a key"),
        ("PRESENCE_NODE", "a node"),
        ("PRESENCE_DATABASE", "mysql://x"),
        ("PRESENCE_REDIS", "http://x"),
    ] {
        let output = finish(presence(&["serve"]).env(name, value));
        assert_eq!(output.status.code(), Some(2), "{name}");
        let said = stderr(&output);
        let line = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(line.contains(name), "{said}");
    }
    let output = finish(presence(&["serve"]).env("PRESENCE_SECRET", "\u{7}bell\u{7}\n\n"));
    assert_eq!(output.status.code(), Some(2), "an empty second secret");
    assert!(!stderr(&output).contains("bell"), "secrets are not repeated");
}

#[tokio::test]
async fn a_variable_loses_its_last_line_break_and_an_empty_one_is_none() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let path = directory.path().join("from-a-file.db");
    let url = format!("sqlite://{}\n", path.display());
    let mut command = presence(&["serve", "--bind", "127.0.0.1:0"]);
    command.env("PRESENCE_DATABASE", url).env("PRESENCE_API_KEY", "k3y\r\n");
    for name in [
        "REDIS",
        "NODE",
        "ALLOW_ORIGIN",
        "PING_INTERVAL",
        "MAX_RATE",
        "LOG",
        "ALLOW_ANONYMOUS",
        "SECRET",
    ] {
        command.env(format!("PRESENCE_{name}"), "");
    }
    let server = Server::spawn(directory, command);
    let rooms = server.ask("GET", "/api/rooms").header("Authorization", "Bearer k3y");
    assert_eq!(rooms.send().await.status, 200);
    assert!(path.exists());
    server.ws("/ws/lobby?user=ada").await.sees(&["ada"], 0).await;
}

#[tokio::test]
async fn every_flag_can_be_given_in_the_environment() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let env = [
        ("PRESENCE_NODE", "from-env"),
        ("PRESENCE_LEASE", "20s"),
        ("PRESENCE_MAX_AGE", "2m"),
        ("PRESENCE_PRUNE_INTERVAL", "500ms"),
        ("PRESENCE_PRUNE_ROOMS_INTERVAL", "90"),
        ("PRESENCE_PING_INTERVAL", "1m"),
        ("PRESENCE_SECRET", "one\ntwo\n"),
        ("PRESENCE_ALLOW_ANONYMOUS", "true"),
        ("PRESENCE_API_KEY", "k3y"),
        ("PRESENCE_ALLOW_ORIGIN", "https://a.example,https://b.example"),
        ("PRESENCE_MAX_FRAME_SIZE", "100"),
        ("PRESENCE_MAX_CONNECTIONS", "3"),
        ("PRESENCE_MAX_ROOM_SIZE", "2"),
        ("PRESENCE_MAX_RATE", "1000"),
        ("PRESENCE_LOG", "trace"),
    ];
    let server = Server::start_with(directory, &[], &env);
    assert_eq!(server.get("/api/rooms").await.error().0, 401);
    for origin in ["https://a.example", "https://b.example"] {
        let first = server.ws_with("/ws/lobby", &[("Origin", origin)]).await;
        first.close(None).await;
    }
    assert_eq!(server.enter("/ws/lobby?token=x").send().await.status, 401);
    let mut one = server.ws("/ws/lobby").await;
    let mut two = server.ws("/ws/lobby").await;
    one.sees(&[], 2).await;
    assert_eq!(server.enter("/ws/lobby").send().await.error().1, "room_full");
    let three = server.ws("/ws/other").await;
    assert_eq!(server.enter("/ws/other").send().await.error().1, "too_many_connections");
    let key = "Bearer k3y";
    let page = server.ask("GET", "/api/rooms/lobby/presences").header("Authorization", key);
    let page = page.send().await.json();
    assert_eq!(page["presences"][0]["node"], "from-env");
    drop(three);
    two.text(&"x".repeat(101)).await;
    assert_eq!(two.closed().await.0, 1009);
    assert!(server.log().contains("TRACE"));
}

#[tokio::test]
async fn without_a_command_it_serves_and_takes_the_flags_of_serve() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut command = presence(&["--bind", "127.0.0.1:0", "--node", "default"]);
    // The default database is in the working directory.
    command.current_dir(directory.path());
    let server = Server::spawn(directory, command);
    let _ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    assert_eq!(server.database().presences()[0].node_id, "default");
}

#[tokio::test]
async fn a_second_server_on_the_same_file_is_refused_and_the_first_goes_on() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    let url = server.database_url();
    let said = failure(1, &["serve", "--bind", "127.0.0.1:0", "--database", &url]);
    assert!(said.contains("another server uses this database"), "{said}");
    ada.message("unharmed").await;
    ada.next_of("message").await;
    assert_eq!(server.database().count("presences"), 1);
}

#[tokio::test]
async fn a_port_in_use_is_said_and_touches_no_database() {
    let server = Server::start(&[]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("presence.db");
    let url = format!("sqlite://{}", file.display());
    let address = server.address().to_string();
    let said = failure(1, &["serve", "--bind", &address, "--database", &url]);
    assert!(said.contains(&address), "{said}");
    assert!(!file.exists());
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_database_in_memory_serves_as_well() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut command = presence(&["serve", "--database", "sqlite::memory:"]);
    command.env("PRESENCE_BIND", "127.0.0.1:0").current_dir(directory.path());
    let server = Server::spawn(directory, command);
    server.ws("/ws/lobby?user=ada").await.sees(&["ada"], 0).await;
    assert_eq!(server.get("/readyz").await.status, 200);
    assert_eq!(server.directory().path().read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn a_node_that_is_named_again_takes_over() {
    let server = Server::start(&["--node", "left"]);
    let _ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    assert_eq!(server.database().presences()[0].node_id, "left");
    let server = Server::start_in(server.kill(), &["--node", "left"]);
    assert_eq!(server.database().count("presences"), 0);
    assert_eq!(server.database().count("nodes"), 1);
    assert_eq!(server.json("/api/rooms").await["rooms"], Value::Array(Vec::new()));
}
