//! The database follows memory, also after it was read-only, gone or locked; presence goes on meanwhile.

use std::{fs, path::Path};

use serde_json::Value;

use crate::harness::{Database, Server, Ws, until};

/// A row, or a presence as the API tells it: room, connection, user, info, second of joining, node.
type Line = (String, String, Option<String>, Value, String, String);

/// Every presence as the API tells it.
async fn told(server: &Server) -> Vec<Line> {
    let mut lines = Vec::new();
    for room in server.json("/api/rooms?limit=1000").await["rooms"].as_array().unwrap() {
        let name = room["channel_name"].as_str().unwrap();
        let path = format!("/api/rooms/{name}/presences?limit=1000");
        for presence in server.json(&path).await["presences"].as_array().unwrap() {
            let text = |key: &str| presence[key].as_str().map(str::to_owned);
            lines.push((
                name.to_owned(),
                text("channel_name").unwrap(),
                text("user"),
                presence["info"].clone(),
                text("joined_at").unwrap()[..19].replace('T', " "),
                text("node").unwrap(),
            ));
        }
    }
    lines.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    lines
}

fn rows(path: &Path) -> Option<Vec<Line>> {
    if !path.exists() {
        return None;
    }
    let rows = Database::open(path).try_presences().ok()?;
    let line = |row: crate::harness::PresenceRow| {
        let info = serde_json::from_str(&row.info).unwrap();
        (row.room, row.channel_name, row.user_id, info, row.joined_at, row.node_id)
    };
    Some(rows.into_iter().map(line).collect())
}

/// Waits until the rows are what the API tells, and there are so many.
async fn converges(server: &Server, presences: usize) {
    until("the rows are what memory says", async || {
        let told = told(server).await;
        assert_eq!(told.len(), presences);
        (rows(&server.database_path())? == told).then_some(())
    })
    .await;
    until("readiness", async || (server.get("/readyz").await.status == 200).then_some(())).await;
}

/// Waits until the server says that the database is in this trouble.
async fn unready(server: &Server, state: &str) {
    until(state, async || {
        let answer = server.get("/readyz").await;
        let ready = answer.json();
        (answer.status == 503 && ready["database"]["state"] == state).then(|| {
            assert_eq!(ready["status"], "degraded");
            assert!(ready["database"]["unwritten"].as_u64().unwrap() > 0);
        })
    })
    .await;
    assert_eq!(server.get("/healthz").await.status, 200);
}

/// Two rooms, and somebody in each.
async fn settled(server: &Server) -> (Ws, Ws) {
    let ada = server.ws("/ws/lobby?user=ada&info=%7B%22a%22%3A%22%C3%A9%22%7D").await;
    let lurker = server.ws("/ws/other").await;
    until("both", async || (told(server).await.len() == 2).then_some(())).await;
    converges(server, 2).await;
    (ada, lurker)
}

/// Somebody comes, is seen, talks and stays; somebody else comes and goes.
async fn presence_goes_on(server: &Server, ada: &mut Ws) -> Ws {
    let mut bob = server.ws("/ws/lobby?user=bob").await;
    ada.sees(&["ada", "bob"], 0).await;
    let eve = server.ws("/ws/lobby?user=eve").await;
    ada.sees(&["ada", "bob", "eve"], 0).await;
    eve.close(Some(1000)).await;
    ada.sees(&["ada", "bob"], 0).await;
    bob.json(serde_json::json!({"type": "update", "info": {"b": 1}})).await;
    bob.message("hello").await;
    assert_eq!(ada.next_of("message").await["payload"], "hello");
    bob
}

fn read_only(path: &Path, is: bool) {
    let mut permissions = fs::metadata(path).unwrap().permissions();
    permissions.set_readonly(is);
    fs::set_permissions(path, permissions).unwrap();
}

#[tokio::test]
async fn the_rows_are_what_the_api_tells() {
    let server = Server::start(&["--node", "here"]);
    let (mut ada, lurker) = settled(&server).await;
    let _bob = presence_goes_on(&server, &mut ada).await;
    converges(&server, 3).await;
    lurker.close(None).await;
    until("who left is gone", async || (told(&server).await.len() == 2).then_some(())).await;
    converges(&server, 2).await;
}

#[tokio::test]
async fn a_read_only_file_is_said_and_made_up_for() {
    let server = Server::start(&[]);
    let (mut ada, _lurker) = settled(&server).await;
    let path = server.database_path();
    read_only(&path, true);
    let _bob = presence_goes_on(&server, &mut ada).await;
    unready(&server, "read_only").await;
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("presence_database_up 0"), "{metrics}");
    read_only(&path, false);
    converges(&server, 3).await;
    server.logs("the database takes rows again");
}

#[tokio::test]
async fn a_deleted_file_comes_back_with_all_rows() {
    let server = Server::start(&[]);
    let (mut ada, _lurker) = settled(&server).await;
    for suffix in ["", "-wal", "-shm"] {
        let mut path = server.database_path().into_os_string();
        path.push(suffix);
        let _ = fs::remove_file(path);
    }
    let _bob = presence_goes_on(&server, &mut ada).await;
    converges(&server, 3).await;
    assert_eq!(server.database().count("nodes"), 1);
}

#[tokio::test]
async fn a_file_deleted_while_nothing_happens_comes_back_too() {
    let server = Server::start(&["--lease", "3s"]);
    let (_ada, _lurker) = settled(&server).await;
    fs::remove_file(server.database_path()).unwrap();
    converges(&server, 2).await;
}

#[tokio::test]
async fn a_locked_database_is_said_and_made_up_for() {
    let server = Server::start(&[]);
    let (mut ada, _lurker) = settled(&server).await;
    let mut other = server.database();
    other.execute("BEGIN EXCLUSIVE");
    let _bob = presence_goes_on(&server, &mut ada).await;
    unready(&server, "locked").await;
    other.execute("COMMIT");
    converges(&server, 3).await;
}

#[tokio::test]
async fn rows_deleted_by_hand_come_back_when_their_presence_changes() {
    let server = Server::start(&[]);
    let (mut ada, mut lurker) = settled(&server).await;
    server.database().execute("DELETE FROM presences; DELETE FROM rooms");
    for ws in [&mut ada, &mut lurker] {
        ws.json(serde_json::json!({"type": "update", "info": {"changed": true}})).await;
    }
    converges(&server, 2).await;
}

#[tokio::test]
async fn a_server_stops_in_time_although_the_database_is_locked() {
    let mut server = Server::start(&[]);
    let (mut ada, _lurker) = settled(&server).await;
    let mut other = server.database();
    other.execute("BEGIN EXCLUSIVE");
    let sent = std::time::Instant::now();
    server.signal("TERM");
    assert_eq!(ada.closed().await.0, 1001);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(sent.elapsed() < std::time::Duration::from_secs(10), "{:?}", sent.elapsed());
    other.execute("COMMIT");
    // What could not be written the next start removes.
    let server = Server::start_in(server.directory(), &[]);
    assert_eq!(server.database().count("presences"), 0);
}
