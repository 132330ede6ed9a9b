//! The commands beside `serve`.

use std::{path::Path, process::Stdio, sync::Arc};

use serde_json::{Value, json};

use crate::harness::{Database, Server, failure, finish, presence, run, stderr, success, until};

fn url(directory: &Path) -> String {
    format!("sqlite://{}", directory.join("presence.db").display())
}

/// A migrated database with a node whose lease has run out, one that lives, and presences of both.
fn populated() -> (Arc<tempfile::TempDir>, String, Database) {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let url = url(directory.path());
    success(&["migrate", "--database", &url]);
    let mut database = Database::open(&directory.path().join("presence.db"));
    database.execute(
        "INSERT INTO nodes (id, started_at, lease_expires_at) VALUES
            ('dead', datetime('now', '-1 day'), datetime('now', '-1 hour')),
            ('alive', datetime('now', '-1 day'), datetime('now', '+1 hour'));
        INSERT INTO rooms (id, channel_name, created_at) VALUES
            (1, 'lobby', datetime('now')), (2, 'é b', datetime('now')), (3, 'empty', datetime('now'));
        INSERT INTO presences (room_id, channel_name, user_id, joined_at, last_seen, node_id) VALUES
            (1, 'a', 'ada', datetime('now', '-1 hour'), datetime('now', '-90 seconds'), 'dead'),
            (1, 'b', 'ada', datetime('now', '-1 hour'), datetime('now', '-30 seconds'), 'dead'),
            (1, 'c', NULL, datetime('now', '-1 hour'), datetime('now', '-90 seconds'), 'nobody'),
            (1, 'd', 'bob', datetime('now', '-1 hour'), datetime('now', '-90 seconds'), 'alive'),
            (2, 'e', NULL, datetime('now', '-1 hour'), datetime('now', '-1 hour'), 'dead')",
    );
    (directory, url, database)
}

fn left(database: &mut Database) -> Vec<String> {
    database.presences().into_iter().map(|row| row.channel_name).collect()
}

#[test]
fn prune_presences_removes_the_stale_that_no_live_node_owns() {
    let (_directory, url, mut database) = populated();
    assert_eq!(success(&["prune-presences", "--database", &url]), "3");
    assert_eq!(left(&mut database), ["b", "d"]);
    let again = success(&["prune-presences", "--database", &url, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), json!({"pruned": 0}));
    assert_eq!(success(&["prune-presences", "--database", &url, "--max-age", "10s"]), "1");
    assert_eq!(left(&mut database), ["d"], "alive, however old");
    assert_eq!(database.count("rooms"), 3, "rooms are another command's");
}

#[test]
fn the_age_of_prune_presences_is_a_duration_or_in_the_environment() {
    let (_directory, url, mut database) = populated();
    assert_eq!(success(&["prune-presences", "--database", &url, "--max-age", "2m"]), "1");
    let mut by_environment = presence(&["prune-presences"]);
    by_environment.env("PRESENCE_DATABASE", &url).env("PRESENCE_MAX_AGE", "60");
    let output = finish(by_environment.env("PRESENCE_JSON", "true"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), json!({"pruned": 2}));
    assert_eq!(success(&["prune-presences", "--database", &url, "--max-age", "500ms"]), "1");
    assert_eq!(left(&mut database), ["d"]);
}

#[test]
fn prune_rooms_removes_the_empty_ones() {
    let (_directory, url, mut database) = populated();
    assert_eq!(success(&["prune-rooms", "--database", &url]), "1");
    assert_eq!(database.count("rooms"), 2);
    assert_eq!(database.count("presences"), 5);
    let again = success(&["prune-rooms", "--json", "--database", &url]);
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap(), json!({"pruned": 0}));
}

#[test]
fn rooms_prints_every_room_with_the_connections_of_live_nodes() {
    let (_directory, url, mut database) = populated();
    database.execute("INSERT INTO rooms (channel_name, created_at) VALUES ('a' || char(27), '')");
    let text = success(&["rooms", "--database", &url]);
    let line = text.lines().find(|line| line.ends_with("lobby")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["1", "1", "0", "lobby"]);
    assert!(!text.contains('\u{1b}'), "a terminal obeys what it is shown");
    let printed: Value =
        serde_json::from_str(&success(&["rooms", "--json", "--database", &url])).unwrap();
    let lobby = json!({"channel_name": "lobby", "connections": 1, "users": 1, "anonymous": 0});
    assert!(printed["rooms"].as_array().unwrap().contains(&lobby), "{printed}");
    assert_eq!(printed["rooms"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_running_server_keeps_its_presences_and_is_seen_by_the_commands() {
    let server = Server::start(&[]);
    let url = server.database_url();
    let mut ada = server.ws("/ws/lobby?user=ada").await;
    let _lurker = server.ws("/ws/lobby").await;
    until("the rows", async || (server.database().count("presences") == 2).then_some(())).await;
    let rows = server.database().presences();
    assert_eq!(success(&["prune-presences", "--max-age", "1ms", "--database", &url]), "0");
    assert_eq!(success(&["prune-rooms", "--database", &url]), "0");
    assert_eq!(server.database().presences(), rows);
    let printed: Value =
        serde_json::from_str(&success(&["rooms", "--json", "--database", &url])).unwrap();
    let lobby = json!({"channel_name": "lobby", "connections": 2, "users": 1, "anonymous": 1});
    assert_eq!(printed["rooms"], json!([lobby]));
    ada.message("still here").await;
    ada.next_of("message").await;
}

#[tokio::test]
async fn what_a_killed_server_has_left_neither_counts_nor_stays_when_its_lease_is_over() {
    let server = Server::start(&["--lease", "1s"]);
    let url = server.database_url();
    let _ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    let _directory = server.kill();
    let left = json!([{"channel_name": "lobby", "connections": 0, "users": 0, "anonymous": 0}]);
    until("the dead do not count", async || {
        let printed = success(&["rooms", "--json", "--database", &url]);
        (serde_json::from_str::<Value>(&printed).unwrap()["rooms"] == left).then_some(())
    })
    .await;
    until("the lease runs out", async || {
        (success(&["prune-presences", "--max-age", "1ms", "--database", &url]) == "1").then_some(())
    })
    .await;
    assert_eq!(success(&["prune-rooms", "--database", &url]), "1");
}

#[test]
fn migrate_makes_the_tables_once_also_when_several_start_together() {
    let directory = tempfile::tempdir().unwrap();
    let url = url(directory.path());
    let run = || presence(&["migrate", "--database", &url]);
    let together: Vec<_> = (0..4).map(|_| run().stdout(Stdio::null()).spawn().unwrap()).collect();
    for mut child in together {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(success(&["migrate", "--database", &url]), "the database is up to date");
    assert_eq!(success(&["rooms", "--json", "--database", &url]), r#"{"rooms":[]}"#);
}

#[test]
fn the_path_of_a_database_is_taken_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["what?mode=ro", "a#b", "100%41", "a b"] {
        let path = directory.path().join(name);
        success(&["migrate", "--database", &format!("sqlite://{}", path.display())]);
        assert!(path.exists(), "{name}");
    }
}

#[test]
fn what_cannot_be_done_is_said_with_the_code_1_and_what_was_asked_wrongly_with_2() {
    let directory = tempfile::tempdir().unwrap();
    let none = url(directory.path());
    for command in ["prune-presences", "prune-rooms", "rooms"] {
        let said = failure(1, &[command, "--database", &none]);
        assert!(said.contains("presence.db"), "{said}");
        assert!(!directory.path().join("presence.db").exists(), "{command} makes no database");
        let said = failure(2, &[command, "--database", "sqlite::memory:"]);
        assert!(said.contains("--database"), "{said}");
        failure(2, &[command, "--dance"]);
    }
    let garbage = directory.path().join("garbage");
    std::fs::write(&garbage, "no database at all, ".repeat(1000)).unwrap();
    failure(1, &["rooms", "--database", &format!("sqlite://{}", garbage.display())]);
    failure(1, &["migrate", "--database", "sqlite:///nowhere/at/all.db"]);
    let said = failure(2, &["migrate", "--database", "postgres://ada:s3/cret@db/x"]);
    assert!(!said.contains("s3") && !said.contains("cret"), "{said}");

    let secret = ["--secret", "s"];
    for wrong in [
        &["--user", ""][..],
        &["--user", "__proto__"],
        &["--user", "a", "--info", "[]"],
        &["--user", "a", "--info", "{"],
        &["--user", "a", "--room", ""],
        &["--user", "a", "--expires-in", "0"],
        &["--user", "a", "--session", ""],
        &[],
    ] {
        failure(2, &[&["token"], &secret[..], wrong].concat());
    }
    failure(2, &["token", "--user", "ada"]);
    failure(2, &["dance"]);
    assert!(run(&["--version"]).status.success());
    for help in [&["--help"][..], &["serve", "--help"], &["token", "--help"]] {
        assert!(success(help).contains("Usage"));
    }
}
