//! Messages to users and connections, and kicks from one room, on whichever nodes they are.

use serde_json::{Value, json};

use crate::{
    harness::{Server, Ws, until},
    nodes::{Cluster, listed},
};

async fn ask(node: &Server, method: &str, path: &str, body: &str) -> Value {
    let answer = node.ask(method, path).body(body).send().await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

/// Waits until the database knows so many presences.
async fn written(cluster: &Cluster, presences: usize) {
    until("the rows", async || (cluster.rows().len() == presences).then_some(())).await;
}

async fn payload(ws: &mut Ws) -> Value {
    ws.next_of("message").await["payload"].clone()
}

#[tokio::test]
async fn a_message_to_a_user_reaches_each_connection_on_all_nodes_once() {
    let cluster = Cluster::new(&[]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    // In rooms that only their nodes follow.
    let mut here = a.ws("/ws/lobby?user=ada&presence=none").await;
    let mut there = b.ws("/ws/garden?user=ada&presence=none").await;
    let mut too = b.ws("/ws/attic?user=ada&presence=none").await;
    let mut bob = b.ws("/ws/garden?user=bob&presence=none").await;
    written(&cluster, 4).await;
    for (n, node) in [&a, &b, &c].into_iter().enumerate() {
        let answer = ask(node, "POST", "/api/users/ada/messages", &n.to_string()).await;
        assert_eq!(answer, json!({"recipients": 3}), "{n}");
    }
    for ws in [&mut here, &mut there, &mut too] {
        // Nodes are in no order with each other.
        let mut heard =
            [payload(ws).await, payload(ws).await, payload(ws).await].map(|n| n.as_u64());
        heard.sort_unstable();
        assert_eq!(heard, [Some(0), Some(1), Some(2)]);
    }

    let bobs = listed_in(&b, "garden", "bob").await;
    for (n, node) in [&a, &b, &c].into_iter().enumerate() {
        let path = format!("/api/connections/{bobs}/messages");
        let answer = ask(node, "POST", &path, &format!("\"only bob {n}\"")).await;
        assert_eq!(answer, json!({"recipients": 1}));
        assert_eq!(payload(&mut bob).await, format!("only bob {n}"), "and nothing before");
    }
    let answer = ask(&a, "POST", &format!("/api/rooms/garden/messages?except={bobs}"), "9").await;
    assert_eq!(answer, json!({"recipients": 1}));
    assert_eq!(payload(&mut there).await, 9, "each came once");
    for (ws, node) in [(&mut here, &a), (&mut too, &b)] {
        let own =
            listed_in(node, if node.address() == a.address() { "lobby" } else { "attic" }, "ada")
                .await;
        ask(&c, "POST", &format!("/api/connections/{own}/messages"), "10").await;
        assert_eq!(payload(ws).await, 10, "each came once");
    }
}

async fn listed_in(node: &Server, room: &str, user: &str) -> String {
    let page = node.json(&format!("/api/rooms/{room}/presences")).await;
    let list = page["presences"].as_array().unwrap().clone();
    let found = list.iter().find(|presence| presence["user"] == user).unwrap();
    found["channel_name"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_kick_from_one_room_reaches_all_nodes_and_says_so() {
    let cluster = Cluster::new(&[]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut here = a.ws("/ws/lobby?user=ada&presence=none").await;
    let mut bob = a.ws("/ws/lobby?user=bob&presence=none").await;
    let mut channels = b.ws("/socket/websocket?vsn=2.0.0&user=ada").await;
    for name in ["lobby", "garden"] {
        channels.json(json!([name, name, name, "phx_join", {}])).await;
        channels.until(|frame| frame[2] == name && frame[3] == "presence_state").await;
    }
    written(&cluster, 4).await;
    // A node that follows neither room.
    let answer = ask(&c, "DELETE", "/api/rooms/lobby/users/ada", "").await;
    assert_eq!(answer, json!({"connections": 2}));
    assert_eq!(here.closed().await, (4001, "kicked".to_owned()));
    channels.until(|frame| frame[2] == "lobby" && frame[3] == "phx_close").await;
    until("she is out of the lobby only", async || {
        let found = c.json("/api/users/ada").await;
        (found["rooms"] == json!([{"channel_name": "garden", "connections": 1}])).then_some(())
    })
    .await;
    bob.message("still here").await;
    assert_eq!(payload(&mut bob).await, "still here");
    assert_eq!(ask(&a, "DELETE", "/api/users/ada", "").await, json!({"connections": 1}));
    channels.until(|frame| frame[2] == "garden" && frame[3] == "phx_close").await;
    listed(&c, "bob", |_| true).await;
    assert_eq!(ask(&b, "DELETE", "/api/rooms/lobby", "").await, json!({"connections": 1}));
    assert_eq!(bob.closed().await, (4004, "room_closed".to_owned()));
}
