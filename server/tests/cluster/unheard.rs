//! Nodes that share a database and do not hear each other.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    harness::{Server, Ws, until_within},
    nodes::{Cluster, meet, node},
    redis::Redis,
};

const LEASE: [&str; 2] = ["--lease", "3s"];
/// A lease, and as much again twice for a machine that others use, too.
const WITHIN: Duration = Duration::from_secs(9);

/// Waits until a node names exactly these as not heard, and is ready all the same.
async fn does_not_hear(node: &Server, names: &[&str]) {
    until_within(WITHIN, &format!("{names:?} are not heard"), async || {
        let ready = node.get("/readyz").await;
        let named = unheard(&ready.json()) == names;
        named.then(|| assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ready"))))
    })
    .await;
}

/// The names of the nodes that one does not hear.
fn unheard(ready: &Value) -> Vec<&str> {
    ready["unheard"].as_array().unwrap().iter().map(|one| one["node"].as_str().unwrap()).collect()
}

/// The users in the lobby as a node sees them.
async fn users(node: &Server) -> Vec<String> {
    let page = node.get("/api/rooms/lobby/presences").await.json();
    let list = page["presences"].as_array().cloned().unwrap_or_default();
    let mut users: Vec<_> =
        list.iter().map(|one| one["user"].as_str().unwrap().to_owned()).collect();
    users.sort();
    users
}

async fn sees(node: &Server, wanted: &[&str]) {
    until_within(WITHIN, &format!("{wanted:?}"), async || {
        (users(node).await == wanted).then_some(())
    })
    .await;
}

async fn enter(node: &Server, user: &str) -> Ws {
    node.ws(&format!("/ws/lobby?user={user}&presence=none")).await
}

#[tokio::test]
async fn nodes_on_different_redis_agree_within_a_lease_and_name_each_other_while_all_are_ready() {
    let cluster = Cluster::new(&LEASE);
    let elsewhere = [Redis::start(), Redis::start()];
    let a = cluster.node("a");
    let c = node(&cluster.database, Some(&elsewhere[1].url()), "c", &LEASE);
    let b = node(&cluster.database, Some(&elsewhere[0].url()), "b", &LEASE);
    meet(&[&a, &b, &c]).await;
    does_not_hear(&a, &["b", "c"]).await;
    does_not_hear(&b, &["a", "c"]).await;
    a.logs("do all use the same Redis?");

    let [on_a, on_b, _on_c] =
        [enter(&a, "ada").await, enter(&b, "bob").await, enter(&c, "cyd").await];
    for node in [&a, &b, &c] {
        sees(node, &["ada", "bob", "cyd"]).await;
    }
    on_a.close(Some(1000)).await;
    for node in [&b, &c] {
        sees(node, &["bob", "cyd"]).await;
    }
    drop(on_b);
    let metrics = a.get("/metrics").await;
    assert!(metrics.body.contains("presence_nodes_unheard 2"), "{}", metrics.body);
    for (line, most) in [("a node is not heard on the bus", 2), ("the same Redis?", 2)] {
        let named = a.log().lines().filter(|one| one.contains(line)).count();
        assert!((1..=most).contains(&named), "{line}: once for each silence: {}", a.log());
    }
}

#[tokio::test]
async fn a_node_that_is_heard_again_is_named_no_longer() {
    let cluster = Cluster::new(&LEASE);
    let mut elsewhere = Redis::start();
    let a = cluster.node("a");
    let b = node(&cluster.database, Some(&elsewhere.url()), "b", &LEASE);
    does_not_hear(&a, &["b"]).await;
    drop(b);
    let b = cluster.node("b");
    meet(&[&a, &b]).await;
    does_not_hear(&a, &[]).await;
    elsewhere.stop();
    does_not_hear(&b, &[]).await;
}
