//! Messages to users and connections over `/api`, and who is removed by it.

use serde_json::{Value, json};

use crate::harness::{Answer, Server, until};

async fn ask(server: &Server, method: &str, path: &str, body: &str) -> Answer {
    server.ask(method, path).body(body).send().await
}

/// The id under which the only connection of a user in a room is shown.
async fn id_of(server: &Server, room: &str, user: Value) -> String {
    let page = server.json(&format!("/api/rooms/{room}/presences")).await;
    let list = page["presences"].as_array().unwrap().clone();
    let found = list.iter().find(|presence| presence["user"] == user).unwrap();
    found["channel_name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_message_goes_to_a_user_to_a_connection_or_to_all_but_one() {
    let server = Server::start(&[]);
    let mut tab = server.ws("/ws/lobby?user=ada&presence=none").await;
    let mut phone = server.ws("/ws/garden?user=ada&presence=none").await;
    let mut bob = server.ws("/ws/lobby?user=bob&presence=none").await;
    let mut channels = server.ws("/socket/websocket?vsn=2.0.0&user=ada").await;
    let post = async |path: &str, body: &str| {
        let answer = ask(&server, "POST", path, body).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    // The socket is in no room yet.
    assert_eq!(post("/api/users/ada/messages", "1").await, json!({"recipients": 2}));
    for name in ["zoo", "attic"] {
        channels.json(json!([name, name, name, "phx_join", {}])).await;
        channels.until(|frame| frame[2] == name && frame[3] == "presence_state").await;
    }
    assert_eq!(post("/api/users/ada/messages", "2").await, json!({"recipients": 3}));
    for ws in [&mut tab, &mut phone] {
        let heard = ws.next().await;
        assert_eq!(heard, json!({"type": "message", "payload": 1, "from": null}));
        assert_eq!(ws.next().await["payload"], 2);
    }
    let heard = channels.until(|frame| frame[3] == "message").await;
    assert_eq!((&heard[2], &heard[4]), (&json!("zoo"), &json!({"payload": 2, "from": null})));

    let ada = id_of(&server, "lobby", json!("ada")).await;
    let path = format!("/api/connections/{ada}/messages");
    assert_eq!(post(&path, "3").await, json!({"recipients": 1}));
    assert_eq!(tab.next().await["payload"], 3);
    let path = format!("/api/rooms/lobby/messages?except={ada}");
    assert_eq!(post(&path, "4").await, json!({"recipients": 1}));
    assert_eq!(bob.next().await["payload"], 4, "and nothing before");
    let nobody = format!("/api/connections/{}/messages", "0".repeat(32));
    assert_eq!(post(&nobody, "5").await, json!({"recipients": 0}));
    assert_eq!(post("/api/users/eve/messages", "5").await, json!({"recipients": 0}));
    assert_eq!(post("/api/rooms/lobby/messages", "6").await, json!({"recipients": 2}));
    assert_eq!(tab.next().await["payload"], 6, "and not what was for others");

    for (path, body, code) in [
        ("/api/rooms/lobby/messages?except=x", "1", "bad_connection"),
        ("/api/connections/x/messages", "1", "bad_connection"),
        ("/api/users/%00/messages", "1", "bad_user_id"),
        ("/api/users/ada/messages", "{", "bad_json"),
    ] {
        let answer = ask(&server, "POST", path, body).await;
        assert_eq!(answer.error(), (400, code.to_owned()), "{path}");
    }
    let answer = ask(&server, "DELETE", "/api/users/ada/messages", "").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
}

#[tokio::test]
async fn a_user_is_removed_from_a_room_or_everywhere_and_a_room_is_closed() {
    let server = Server::start(&["--grace", "60s"]);
    let mut channels = server.ws("/socket/websocket?vsn=2.0.0&user=ada").await;
    for name in ["lobby", "garden"] {
        channels.json(json!([name, name, name, "phx_join", {}])).await;
        channels.until(|frame| frame[2] == name && frame[3] == "presence_state").await;
    }
    let mut tab = server.ws("/ws/lobby?user=ada&presence=none").await;
    let fading = server.ws("/ws/lobby?user=ada&presence=none&session=key").await;
    let mut bob = server.ws("/ws/lobby?user=bob&presence=diff").await;
    bob.next_of("presence_state").await;
    drop(fading);
    until("one fades", async || {
        let page = server.json("/api/rooms/lobby/presences").await;
        let list = page["presences"].as_array().unwrap().clone();
        list.iter().any(|presence| presence["state"] == "fading").then_some(())
    })
    .await;
    let delete = async |path: &str| {
        let answer = ask(&server, "DELETE", path, "").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    assert_eq!(delete("/api/rooms/lobby/users/ada").await, json!({"connections": 3}));
    assert_eq!(tab.closed().await, (4001, "kicked".to_owned()));
    channels.until(|frame| frame[2] == "lobby" && frame[3] == "phx_close").await;
    let gone = bob.next_of("presence_diff").await;
    assert_eq!(gone["payload"]["leaves"][0]["cause"], "kicked");
    // Nobody is banned, and she is still in the other room.
    assert_eq!(delete("/api/rooms/lobby/users/ada").await, json!({"connections": 0}));
    let mut again = server.ws("/ws/lobby?user=ada&presence=none").await;
    assert_eq!(delete("/api/users/ada").await, json!({"connections": 2}));
    assert_eq!(again.closed().await, (4001, "kicked".to_owned()));
    channels.until(|frame| frame[2] == "garden" && frame[3] == "phx_close").await;
    assert_eq!(delete("/api/users/ada").await, json!({"connections": 0}));

    assert_eq!(delete("/api/rooms/lobby").await, json!({"connections": 1}));
    assert_eq!(bob.closed().await, (4004, "room_closed".to_owned()));
    assert_eq!(delete("/api/rooms/lobby").await, json!({"connections": 0}));
    for path in ["/api/rooms/%0A", "/api/rooms/%0A/users/ada", "/api/users/%0A"] {
        assert_eq!(ask(&server, "DELETE", path, "").await.error().0, 400, "{path}");
    }
    let answer = ask(&server, "POST", "/api/rooms/lobby", "").await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD, DELETE")));
}
