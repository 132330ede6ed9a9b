//! Client sessions that go from one node to another.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    harness::{Ws, arrival, ending, success, until},
    nodes::{Cluster, listed, only_hears_of_markers, witness, witnesses},
};

const ADA: &str = "/ws/lobby?user=ada&session=tab&info=%7B%22n%22%3A1%7D&presence=none";

/// Who has been where before must be the same presence there.
fn same(before: &Value, after: &Value) {
    for field in ["channel_name", "joined_at", "info", "user"] {
        assert_eq!(before[field], after[field], "{field}");
    }
}

#[tokio::test]
async fn whoever_comes_back_on_another_node_is_the_same_presence_and_nobody_saw_anything() {
    let cluster = Cluster::new(&["--grace", "60s"]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut witnesses = witnesses([&c, &a]).await;
    let mut ada = a.ws(ADA).await;
    for witness in &mut witnesses {
        arrival(witness, "ada").await;
    }
    let before = listed(&c, "ada", |one| one["node"] == "a").await;
    for (node, name) in [(&a, "a"), (&b, "b"), (&b, "b"), (&c, "c"), (&a, "a"), (&b, "b")] {
        drop(ada);
        // Any node may be asked; all of them know that it is away.
        listed(&c, "ada", |one| one["state"] == "fading").await;
        ada = node.ws(ADA).await;
        for asked in [&a, &b, &c] {
            let live = |one: &Value| one["node"] == name && one["state"] == "live";
            same(&before, &listed(asked, "ada", live).await);
        }
    }
    for witness in &mut witnesses {
        only_hears_of_markers(witness, &[&a, &b, &c]).await;
    }
    ada.message("back").await;
    let heard = witnesses[0].next_of("message").await;
    assert_eq!(heard["from"]["connection"], before["channel_name"]);
    ada.close(None).await;
    for witness in &mut witnesses {
        assert_eq!(ending(witness, "ada").await, "left");
    }
}

#[tokio::test]
async fn a_newer_connection_on_another_node_closes_the_older_one_with_4002() {
    let cluster = Cluster::new(&["--grace", "60s"]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut witness = witness(&c).await;
    let mut old = a.ws(ADA).await;
    arrival(&mut witness, "ada").await;
    let before = listed(&b, "ada", |one| one["node"] == "a").await;
    for (node, name) in [(&b, "b"), (&a, "a"), (&c, "c")] {
        let new = node.ws(ADA).await;
        assert_eq!(old.closed().await, (4002, "replaced".to_owned()));
        old.ended().await;
        for asked in [&a, &b, &c] {
            same(&before, &listed(asked, "ada", |one| one["node"] == name).await);
        }
        old = new;
    }
    only_hears_of_markers(&mut witness, &[&a, &b, &c]).await;
    // Another user with the key is another.
    let _bob = b.ws("/ws/lobby?user=bob&session=tab&presence=none").await;
    arrival(&mut witness, "bob").await;
    old.message("still here").await;
    assert_eq!(old.next_of("message").await["payload"], "still here");
}

#[tokio::test]
async fn whoever_does_not_come_back_in_time_leaves_once_on_all_nodes() {
    let cluster = Cluster::new(&["--grace", "1s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut witnesses = witnesses([&a, &b]).await;
    for round in ["once", "again"] {
        let ada = a.ws(ADA).await;
        for witness in &mut witnesses {
            arrival(witness, "ada").await;
        }
        drop(ada);
        for witness in &mut witnesses {
            assert_eq!(ending(witness, "ada").await, "disconnected", "{round}");
            only_hears_of_markers(witness, &[&a, &b]).await;
        }
    }
    // Too late: it is a new presence.
    let _ada = b.ws(ADA).await;
    for witness in &mut witnesses {
        arrival(witness, "ada").await;
        only_hears_of_markers(witness, &[&a, &b]).await;
    }
}

#[tokio::test]
async fn one_of_two_connections_that_race_for_a_session_on_two_nodes_stays() {
    let cluster = Cluster::new(&["--grace", "60s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    for n in 0..10 {
        let path = format!("/ws/lobby?user=ada{n}&session=tab&presence=none");
        let (mut one, mut other): (Ws, Ws) = tokio::join!(a.ws(&path), b.ws(&path));
        let user = format!("ada{n}");
        let closed = tokio::time::timeout(Duration::from_secs(60), async {
            tokio::select! {
                closed = one.closed() => closed,
                closed = other.closed() => closed,
            }
        });
        assert_eq!(closed.await.expect("one of them is closed").0, 4002);
        for node in [&a, &b] {
            until("one presence, on one node", async || {
                let room = node.get("/api/rooms/lobby").await.json();
                let users = room["users"].as_array()?.clone();
                let ada = users.iter().find(|one| one["id"] == user.as_str())?;
                (ada["connections"] == 1).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn whoever_comes_back_on_another_node_keeps_the_info_but_for_what_the_token_fixes() {
    let cluster = Cluster::new(&["--grace", "60s", "--secret", "s3cret"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let path = |info: Value| {
        let info = info.to_string();
        let ada = ["token", "--user", "ada", "--session", "tab", "--secret", "s3cret", "--info"];
        let token = success(&[&ada[..], &[&info]].concat());
        format!("/ws/lobby?token={token}&presence=none")
    };
    let mut ws = a.ws(&path(json!({"role": "admin", "team": "red"}))).await;
    ws.json(json!({"type": "update", "info": {"status": "away"}})).await;
    let updated = json!({"role": "admin", "team": "red", "status": "away"});
    let before = listed(&b, "ada", |one| one["info"] == updated).await;
    drop(ws);
    listed(&b, "ada", |one| one["state"] == "fading").await;
    let mut open = Vec::new();
    for (node, name, claim, wanted) in [
        (&b, "b", json!({"role": "guest"}), json!({"role": "guest", "status": "away"})),
        (&a, "a", json!({"room": 1}), json!({"room": 1, "status": "away"})),
        (&b, "b", json!({}), json!({"status": "away"})),
    ] {
        // The one before is open still in the later rounds.
        open.push(node.ws(&path(claim)).await);
        for asked in [&a, &b] {
            let now = listed(asked, "ada", |one| one["node"] == name && one["info"] == wanted);
            assert_eq!(now.await["channel_name"], before["channel_name"]);
        }
    }
}

#[tokio::test]
async fn a_newer_connection_on_another_node_takes_the_place_in_the_rooms_that_it_joins_alone() {
    let cluster = Cluster::new(&["--grace", "60s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut old = a.ws("/socket/websocket?vsn=2.0.0&user=ada&session=tab").await;
    for (reference, room) in [("1", "lobby"), ("2", "cellar")] {
        old.json(json!([reference, reference, room, "phx_join", {}])).await;
        old.until(|frame| frame[1] == reference && frame[3] == "phx_reply").await;
    }
    let before = listed(&b, "ada", |one| one["node"] == "a").await;
    let mut new = b.ws("/ws/lobby?user=ada&session=tab&presence=none").await;
    old.until(|frame| *frame == json!(["1", "1", "lobby", "phx_close", {}])).await;
    for asked in [&a, &b] {
        same(&before, &listed(asked, "ada", |one| one["node"] == "b").await);
    }
    old.json(json!(["2", "3", "cellar", "shout", {"n": 1}])).await;
    old.until(|frame| *frame == json!([null, null, "cellar", "shout", {"n": 1}])).await;
    // It goes by the id that is shown, wherever its presences are.
    let path = format!("/api/connections/{}", before["channel_name"].as_str().unwrap());
    assert_eq!(a.ask("DELETE", &path).send().await.status, 204);
    assert_eq!(new.closed().await.0, 4001);
    old.until(|frame| *frame == json!(["2", "2", "cellar", "phx_close", {}])).await;
}
