//! Every way in which a connection ends, as the others and as the client see it.

use std::time::Duration;

use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Server, Ws, arrival, ending, frame, leave_of, until};

async fn witness(server: &Server) -> Ws {
    server.ws("/ws/lobby?user=witness&presence=diff").await
}

async fn channel_of(server: &Server, user: &str) -> String {
    until("the presence", async || {
        let page = server.get("/api/rooms/lobby/presences").await;
        let list = page.json()["presences"].as_array()?.clone();
        let found = list.iter().find(|presence| presence["user"] == user)?;
        Some(found["channel_name"].as_str()?.to_owned())
    })
    .await
}

#[tokio::test]
async fn who_closes_with_1000_or_no_code_has_left_and_any_other_end_is_a_disconnect() {
    let server = Server::start(&[]);
    let mut witness = witness(&server).await;
    for (user, code, cause) in [
        ("normal", Some(1000), "left"),
        ("none", None, "left"),
        ("away", Some(1001), "disconnected"),
        ("own", Some(4321), "disconnected"),
    ] {
        let client = server.ws(&format!("/ws/lobby?user={user}&presence=none")).await;
        arrival(&mut witness, user).await;
        client.close(code).await;
        assert_eq!(ending(&mut witness, user).await, cause, "{user}");
    }
    let dropped = server.ws("/ws/lobby?user=dropped").await;
    arrival(&mut witness, "dropped").await;
    drop(dropped);
    assert_eq!(ending(&mut witness, "dropped").await, "disconnected");
}

#[tokio::test]
async fn a_close_frame_is_answered_with_the_same_code() {
    let server = Server::start(&[]);
    for code in [1000_u16, 1001, 4321] {
        let mut raw = server.raw("/ws/lobby?presence=none").await;
        raw.send(&frame(0x88, true, &code.to_be_bytes())).await;
        assert_eq!(raw.closed().await, code);
        assert!(raw.ended().await);
    }
}

#[tokio::test]
async fn the_silent_are_pruned_with_4000_and_who_gives_signs_of_life_stays() {
    let server = Server::start(&["--max-age", "1s", "--prune-interval", "200ms"]);
    let mut witness = witness(&server).await;
    let mut silent = server.ws("/ws/lobby?user=silent&presence=none").await;
    let mut beats = tokio::time::interval(Duration::from_millis(100));
    let leave = loop {
        tokio::select! {
            _ = beats.tick() => witness.text("\"heartbeat\"").await,
            frame = witness.next() => {
                if let Some(leave) = leave_of(&frame, "silent") {
                    break leave["cause"].clone();
                }
            }
        }
    };
    assert_eq!(leave, "expired");
    assert_eq!(silent.closed().await, (4000, "expired".to_owned()));
    silent.ended().await;

    // Twice its age later it is still there.
    let before = server.json("/api/rooms/lobby").await["version"].clone();
    for _ in 0..20 {
        beats.tick().await;
        witness.text("\"heartbeat\"").await;
    }
    let after = server.json("/api/rooms/lobby").await;
    assert_eq!((&after["version"], &after["users"][0]["id"]), (&before, &Value::from("witness")));
    // A new join is a new presence.
    let _again = server.ws("/ws/lobby?user=silent").await;
    witness.until(|frame| frame["payload"]["joins"][0]["id"] == "silent").await;
}

#[tokio::test]
async fn pings_of_the_server_keep_a_silent_client_present() {
    let server = Server::start(&[
        "--max-age",
        "1s",
        "--prune-interval",
        "100ms",
        "--ping-interval",
        "100ms",
    ]);
    let mut silent = server.ws("/ws/lobby?user=silent&presence=none").await;
    // The library answers while it reads.
    for _ in 0..30 {
        let Some(Ok(Message::Ping(_))) = silent.frame().await else { panic!("no ping") };
    }
    assert_eq!(server.json("/api/rooms/lobby").await["users"][0]["id"], "silent");
}

#[tokio::test]
async fn a_deleted_connection_leaves_all_and_is_closed_with_4001() {
    let server = Server::start(&[]);
    let mut witness = witness(&server).await;
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    arrival(&mut witness, "ada").await;
    let channel = channel_of(&server, "ada").await;
    let path = format!("/api/connections/{channel}");
    let deleted = server.ask("DELETE", &path).send().await;
    assert!((200..300).contains(&deleted.status), "{deleted:?}");
    assert_eq!(ada.closed().await, (4001, "kicked".to_owned()));
    assert_eq!(ending(&mut witness, "ada").await, "kicked");
    assert_eq!(server.ask("DELETE", &path).send().await.error().0, 404);
    let nobody = format!("/api/connections/{}", "0".repeat(32));
    assert_eq!(server.ask("DELETE", &nobody).send().await.error().0, 404);
    let refused = server.ask("DELETE", "/api/connections/nonsense").send().await.error();
    assert!(refused.0 == 400 || refused.0 == 404, "{refused:?}");
    assert_eq!(server.get(&path).await.error().0, 405);
}

#[tokio::test]
async fn a_kicked_client_that_does_not_answer_loses_its_connection() {
    let server = Server::start(&[]);
    let mut raw = server.raw("/ws/lobby?user=ada&presence=none").await;
    let channel = channel_of(&server, "ada").await;
    server.ask("DELETE", &format!("/api/connections/{channel}")).send().await;
    assert_eq!(raw.closed().await, 4001);
    assert!(raw.ended().await);
    until("its socket is gone", async || (server.connections() == 0).then_some(())).await;
}
