//! Clients that go from node to node while the nodes do not hear each other.

use crate::{
    harness::{Server, Ws, until},
    nodes::{Cluster, listed, meet, witnesses},
};

const ADA: &str = "/ws/lobby?user=ada&session=tab&presence=none";

/// Waits until a node sees ada once, on the node `a`, and that her connection there is open.
async fn is_on_a(ada: &mut Ws, nodes: &[&Server]) {
    for node in nodes {
        until("she is there once", async || {
            let page = node.get("/api/rooms/lobby/presences").await.json();
            let list = page["presences"].as_array()?.clone();
            let mut hers = list.iter().filter(|one| one["user"] == "ada");
            let one = hers.next()?;
            let good = one["node"] == "a" && one["state"] == "live" && hers.next().is_none();
            good.then_some(())
        })
        .await;
    }
    ada.message("still here").await;
    assert_eq!(ada.next_of("message").await["payload"], "still here");
}

/// The last node is where the client is, whatever the others believe.
#[tokio::test]
async fn who_went_to_another_node_and_came_back_unheard_of_stays() {
    let mut cluster = Cluster::new(&["--grace", "60s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let _witnesses = witnesses([&a, &b]).await;
    let ada = a.ws(ADA).await;
    listed(&b, "ada", |one| one["node"] == "a").await;
    cluster.redis.stop();
    for node in [&a, &b] {
        until("the bus is down", async || (node.get("/readyz").await.status == 503).then_some(()))
            .await;
    }
    drop(ada);
    listed(&a, "ada", |one| one["state"] == "fading").await;
    let there = b.ws(ADA).await;
    listed(&b, "ada", |one| one["node"] == "b").await;
    drop(there);
    listed(&b, "ada", |one| one["node"] == "b" && one["state"] == "fading").await;
    let mut ada = a.ws(ADA).await;
    cluster.redis.start_again();
    meet(&[&a, &b]).await;
    is_on_a(&mut ada, &[&a, &b]).await;
}

/// The node that she left knew nothing of her when she came, so she has two presences for a while.
#[tokio::test]
async fn who_was_unknown_on_another_node_and_came_back_unheard_of_stays() {
    let mut cluster = Cluster::new(&["--grace", "60s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let _witnesses = witnesses([&a, &b]).await;
    cluster.redis.stop();
    for node in [&a, &b] {
        until("the bus is down", async || (node.get("/readyz").await.status == 503).then_some(()))
            .await;
    }
    let ada = a.ws(ADA).await;
    listed(&a, "ada", |one| one["node"] == "a").await;
    drop(ada);
    listed(&a, "ada", |one| one["state"] == "fading").await;
    let there = b.ws(ADA).await;
    listed(&b, "ada", |one| one["node"] == "b").await;
    drop(there);
    listed(&b, "ada", |one| one["state"] == "fading").await;
    let mut ada = a.ws(ADA).await;
    cluster.redis.start_again();
    meet(&[&a, &b]).await;
    is_on_a(&mut ada, &[&a, &b]).await;
}
