//! Nodes that share a database and do not hear each other, and a bus on which something is said that no
//! node has said.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, sql_query, sql_types::Text};
use serde_json::{Value, json};

use crate::{
    harness::{Server, Ws, until, until_within},
    nodes::{Cluster, listed, meet, node},
    redis::Redis,
};

const LEASE: [&str; 2] = ["--lease", "3s"];
/// A lease, and as much again twice for a machine that others use, too.
const WITHIN: Duration = Duration::from_secs(9);

#[derive(QueryableByName)]
struct Incarnation {
    #[diesel(sql_type = Text)]
    incarnation: String,
}

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

/// Publishes something in the name of the node `a`.
fn forge(cluster: &Cluster, channel: &str, told: &Value) {
    let mut conn = PgConnection::establish(&cluster.database).unwrap();
    let row: Incarnation =
        sql_query("SELECT incarnation FROM nodes WHERE id = 'a'").get_result(&mut conn).unwrap();
    let envelope = json!({"v": 1, "node": "a", "incarnation": row.incarnation, "told": told});
    let envelope = envelope.to_string();
    let heard = cluster.redis.bulk(&[b"PUBLISH", channel.as_bytes(), envelope.as_bytes()]);
    assert_ne!(heard, "0", "nobody is subscribed to {channel}");
}

/// What `a` is said to have told of the lobby.
fn forge_changes(cluster: &Cluster, number: u64, changes: &Value) {
    let changes = json!({"room": "lobby", "number": number, "previous": 0, "changes": changes});
    forge(cluster, "presence:room:lobby", &json!({"changes": changes}));
}

/// Of a huge number each time.
fn forge_said(cluster: &Cluster, text: &str) {
    static NUMBER: AtomicU64 = AtomicU64::new(u64::MAX);
    let number = NUMBER.fetch_sub(1, Ordering::Relaxed);
    let content = json!({"json": text});
    let said = json!({"room": "lobby", "number": number, "content": content, "from": null, "except": null});
    forge(cluster, "presence:room:lobby", &json!({"said": said}));
}

#[tokio::test]
async fn two_nodes_on_two_redis_agree_within_a_lease_and_name_each_other_while_both_are_ready() {
    let cluster = Cluster::new(&LEASE);
    let elsewhere = Redis::start();
    let a = cluster.node("a");
    // Another number of one Redis is another bus, too.
    let c = node(&cluster.database, Some(&format!("{}/1", elsewhere.url())), "c", &LEASE);
    let b = node(&cluster.database, Some(&elsewhere.url()), "b", &LEASE);
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

#[tokio::test]
async fn what_nobody_has_said_does_not_last_for_a_lease() {
    let cluster = Cluster::new(&LEASE);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let witness = "witness";
    let mut listener = b.ws("/ws/lobby?user=witness&presence=diff").await;
    let mut ada = enter(&a, "ada").await;
    sees(&b, &["ada", witness]).await;
    let ada_is = listed(&b, "ada", |_| true).await["channel_name"].clone();

    let ghost =
        json!({"connection": "0".repeat(32), "user": "ghost", "joined_at": 0, "last_seen": 0});
    forge_changes(&cluster, u64::MAX, &json!([{"here": ghost}]));
    listener.until(|frame| frame.to_string().contains("ghost")).await;
    sees(&b, &["ada", witness]).await;

    forge_changes(
        &cluster,
        u64::MAX - 1,
        &json!([{"gone": {"connection": ada_is, "cause": "left"}}]),
    );
    forge_said(&cluster, "after the leave");
    listener.until(|frame| frame["payload"] == "after the leave").await;
    sees(&b, &["ada", witness]).await;

    // The node that is said to be dead is heard all the time, also after what bears a huge number.
    let incarnation = {
        let mut conn = PgConnection::establish(&cluster.database).unwrap();
        let row = sql_query("SELECT incarnation FROM nodes WHERE id = 'a'");
        row.get_result::<Incarnation>(&mut conn).unwrap().incarnation
    };
    let buried = json!({"node": "a", "incarnation": incarnation, "leaving": false});
    forge(&cluster, "presence:nodes", &json!({"buried": buried}));
    forge_said(&cluster, "forged");
    forge(&cluster, "presence:nodes", &json!({"beat": {"number": u64::MAX, "rooms": []}}));
    listener.until(|frame| frame["payload"] == "forged").await;
    ada.message("still here").await;
    listener
        .until(|frame| {
            assert_eq!(frame["payload"]["leaves"].as_array().map_or(0, Vec::len), 0, "{frame}");
            frame["payload"] == "still here"
        })
        .await;
    ada.close(Some(1000)).await;
    sees(&b, &[witness]).await;
    for node in [&a, &b] {
        until("ready", async || (node.get("/readyz").await.status == 200).then_some(())).await;
    }
}
