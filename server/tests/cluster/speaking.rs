//! What is said on one node, and heard on the others.

use serde_json::{Value, json};

use crate::{
    harness::{Server, Ws, until},
    nodes::{Cluster, listed, node},
};

/// The payloads of all messages until this one comes, which is not in them.
async fn heard_until(ws: &mut Ws, last: &str) -> Vec<Value> {
    let mut heard = Vec::new();
    loop {
        let message = ws.next_of("message").await["payload"].clone();
        if message == last {
            return heard;
        }
        heard.push(message);
    }
}

async fn post(node: &Server, payload: &Value) -> Value {
    let answer = node.ask("POST", "/api/rooms/lobby/messages").body(payload.to_string());
    let answer = answer.send().await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["recipients"].clone()
}

/// Waits until each of the nodes knows so many in the lobby.
async fn all_know(nodes: &[&Server], connections: usize) {
    for node in nodes {
        until("everybody is known", async || {
            let room = node.get("/api/rooms/lobby").await.json();
            (room["connections"] == connections).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_message_reaches_everybody_once_whatever_their_node_and_says_from_whom() {
    let cluster = Cluster::new(&[]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut ada = a.ws("/ws/lobby?user=ada&presence=none").await;
    let mut bob = b.ws("/ws/lobby?user=bob&presence=none").await;
    let mut lurker = b.ws("/ws/lobby?presence=none").await;
    let mut channels = c.ws("/socket/websocket?vsn=2.0.0&user=channels").await;
    channels.json(json!(["1", "1", "lobby", "phx_join", {}])).await;
    let _elsewhere = b.ws("/ws/cellar?user=bob&presence=none").await;
    all_know(&[&a, &b, &c], 4).await;

    let from = json!({"id": "ada",
        "connection": listed(&a, "ada", |_| true).await["channel_name"]});
    for n in 0..20 {
        ada.message(json!({"n": n})).await;
    }
    let expected: Vec<_> = (0..20).map(|n| json!({"n": n})).collect();
    for ws in [&mut ada, &mut bob, &mut lurker] {
        let first = ws.next_of("message").await;
        assert_eq!(first, json!({"type": "message", "payload": {"n": 0}, "from": from}));
    }
    let first = channels.until(|frame| frame[3] == "message").await;
    assert_eq!(first[4], json!({"payload": {"n": 0}, "from": from}));

    // Every node takes messages over REST, also the one that its sender is not connected to.
    for (n, node) in [&a, &b, &c].into_iter().enumerate() {
        assert_eq!(post(node, &json!(format!("post {n}"))).await, 4);
    }
    for ws in [&mut ada, &mut bob, &mut lurker] {
        // Nodes are not in order with each other.
        let mut ended = Vec::new();
        let mut spoken = Vec::new();
        while ended.len() < 3 || spoken.len() < expected.len() - 1 {
            let message = ws.next_of("message").await;
            match message["payload"].as_str() {
                Some(post) => {
                    assert_eq!(message["from"], Value::Null);
                    ended.push(post.to_owned());
                }
                None => spoken.push(message["payload"].clone()),
            }
        }
        ended.sort_unstable();
        assert_eq!(ended, ["post 0", "post 1", "post 2"]);
        assert_eq!(spoken, expected[1..]);
    }

    // What a client of Phoenix pushes comes to all, too.
    channels.json(json!(["1", null, "lobby", "shout", {"loud": true}])).await;
    let shout = ada.next_of("message").await;
    assert_eq!((&shout["event"], &shout["payload"]), (&json!("shout"), &json!({"loud": true})));
    assert_eq!(shout["from"]["id"], "channels");
    // Once, and in no order with what is said on another node.
    assert_eq!(lurker.next_of("message").await["payload"], json!({"loud": true}));
    bob.message("last").await;
    assert_eq!(heard_until(&mut lurker, "last").await, Vec::<Value>::new());
}

#[tokio::test]
async fn two_systems_do_not_hear_each_other_through_one_redis() {
    let one = Cluster::new(&[]);
    let other = Cluster::new(&[]);
    let redis = one.redis.url();
    let start = |cluster: &Cluster, name| node(&cluster.database, Some(&redis), name, &[]);
    let (a, b) = (start(&one, "a"), start(&one, "b"));
    // Of the same name as one of the others.
    let stranger = start(&other, "a");
    crate::nodes::meet(&[&a, &b]).await;
    crate::nodes::meet(&[&stranger]).await;
    let path = "/ws/lobby?user=ada&presence=none";
    let (mut ada, mut too) = (a.ws(path).await, b.ws(path).await);
    let mut alone = stranger.ws(path).await;
    all_know(&[&a, &b], 2).await;
    assert_eq!(post(&a, &json!("to one")).await, 2);
    assert_eq!(too.next_of("message").await["payload"], "to one");
    assert_eq!(post(&stranger, &json!("to the other")).await, 1);
    assert!(heard_until(&mut alone, "to the other").await.is_empty());
    ada.message("last").await;
    assert_eq!(heard_until(&mut ada, "last").await, [json!("to one")]);
    assert_eq!(stranger.json("/readyz").await["bus"]["nodes"], 1);
    for node in [&a, &b, &stranger] {
        let metrics = node.get("/metrics").await.body;
        assert!(metrics.contains("presence_bus_unverified_total 0"), "{metrics}");
    }
    assert!(!stranger.log().contains("met a node"), "{}", stranger.log());
}
