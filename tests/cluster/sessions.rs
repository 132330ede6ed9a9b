//! Client sessions that go from one node to another.

use std::time::Duration;

use serde_json::Value;

use crate::{
    harness::{Ws, arrival, ending, until},
    nodes::{Cluster, listed, only_hears_of_markers, witness},
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
    let mut witnesses = [witness(&c).await, witness(&a).await];
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
    let mut witnesses = [witness(&a).await, witness(&b).await];
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
