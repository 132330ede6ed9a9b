//! What nodes say of others that stop, die and come back, and how soon.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    harness::{Server, arrival, ending, until, until_within},
    nodes::{Cluster, listed, meet, witness},
    postgres::Postgres,
};

const LEFT: &str = "a node has left";
const DIED: &str = "a node has died";
const MET: &str = "met a node";
const BACK: &str = "a node has come back under its name";
const UNHEARD: &str = "a node is not heard on the bus";

/// How often a node has logged this of another.
fn said(node: &Server, what: &str, of: &str) -> usize {
    let field = format!("node={of}");
    let is_of = |line: &&str| line.split_whitespace().any(|word| word == field);
    node.log().lines().filter(|line| line.contains(what)).filter(is_of).count()
}

/// Asserts that a node has logged these of `a`, so often, and nothing else of its comings and goings.
fn has_said(node: &Server, expected: &[(&str, usize)]) {
    for what in [LEFT, DIED, MET, BACK] {
        let times = expected.iter().find(|(one, _)| *one == what).map_or(0, |(_, times)| *times);
        assert_eq!(said(node, what, "a"), times, "{what}:\n{}", node.log());
    }
}

async fn ready(node: &Server) -> Value {
    let ready = node.get("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.body);
    ready.json()
}

async fn until_said(node: &Server, what: &str) {
    until(what, async || (said(node, what, "a") > 0).then_some(())).await;
}

#[tokio::test]
async fn a_killed_node_is_named_before_its_lease_is_over_and_its_death_is_one_line_on_each() {
    let lease = Duration::from_secs(8);
    let cluster = Cluster::new(&["--lease", "8s"]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    // What it commits makes its lease a whole one.
    let _ada = a.ws("/ws/lobby?user=ada&presence=none").await;
    listed(&b, "ada", |_| true).await;
    let killed = Instant::now();
    a.kill();
    for node in [&b, &c] {
        let ready = until_within(lease, "it is named", async || {
            let ready = ready(node).await;
            (ready["unheard"] != json!([])).then_some(ready)
        })
        .await;
        assert!(killed.elapsed() < lease, "{:?}", killed.elapsed());
        assert_eq!((&ready["status"], &ready["bus"]["nodes"]), (&json!("ready"), &json!(3)));
        let [unheard] = ready["unheard"].as_array().unwrap().as_slice() else {
            panic!("{ready}");
        };
        assert_eq!(unheard["node"], "a");
        let seconds = unheard["seconds"].as_u64().unwrap();
        assert!((4..8).contains(&seconds), "{ready}");
        assert_eq!(unheard["reason"], format!("not heard for {seconds} s"));
        assert_eq!(said(node, UNHEARD, "a"), 1, "{}", node.log());
    }
    let metrics = b.get("/metrics").await.body;
    assert!(metrics.contains("presence_nodes_unheard 1"), "{metrics}");
    meet(&[&b, &c]).await;
    for node in [&b, &c] {
        until_said(node, DIED).await;
        assert_eq!(ready(node).await["unheard"], json!([]));
        has_said(node, &[(MET, 1), (DIED, 1)]);
        assert_eq!(said(node, UNHEARD, "a"), 1, "{}", node.log());
        assert!(!node.log().contains("the same Redis?"), "{}", node.log());
    }
}

#[tokio::test]
async fn a_node_that_stops_and_comes_back_is_one_line_for_each_on_the_others() {
    let cluster = Cluster::new(&["--lease", "3s", "--grace", "2s"]);
    let [mut a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let _ada = a.ws("/ws/lobby?user=ada&presence=none&session=tab").await;
    listed(&b, "ada", |_| true).await;
    a.signal("TERM");
    assert_eq!(a.wait().code(), Some(0), "{}", a.log());
    for node in [&b, &c] {
        until_said(node, LEFT).await;
    }
    // Nobody comes back: her row, and the node's, are removed by somebody.
    until("nothing is left of it", async || cluster.rows().is_empty().then_some(())).await;
    meet(&[&b, &c]).await;
    for node in [&b, &c] {
        has_said(node, &[(MET, 1), (LEFT, 1)]);
        assert_eq!(said(node, UNHEARD, "a"), 0, "{}", node.log());
    }
    let a = cluster.node("a");
    meet(&[&a, &b, &c]).await;
    for node in [&b, &c] {
        until(MET, async || (said(node, MET, "a") == 2).then_some(())).await;
        has_said(node, &[(MET, 2), (LEFT, 1)]);
    }
}

#[tokio::test]
async fn a_node_that_stops_and_is_there_again_at_once_has_left_and_come_back() {
    let cluster = Cluster::new(&["--grace", "60s"]);
    let [mut a, b] = cluster.nodes(["a", "b"]).await;
    let mut witness = witness(&b).await;
    let _ada = a.ws("/ws/lobby?user=ada&presence=none&session=tab").await;
    arrival(&mut witness, "ada").await;
    let ada_is = listed(&b, "ada", |_| true).await["channel_name"].clone();
    a.signal("TERM");
    assert_eq!(a.wait().code(), Some(0), "{}", a.log());
    let a = cluster.node("a");
    until_said(&b, BACK).await;
    let _ada = a.ws("/ws/lobby?user=ada&presence=none&session=tab").await;
    let live = |one: &Value| one["node"] == "a" && one["state"] == "live";
    assert_eq!(listed(&b, "ada", live).await["channel_name"], ada_is);
    has_said(&b, &[(MET, 1), (LEFT, 1), (BACK, 1)]);
    crate::nodes::only_hears_of_markers(&mut witness, &[&a, &b]).await;
}

#[tokio::test]
async fn who_has_no_session_key_ends_at_once_when_a_killed_node_is_there_again() {
    // Neither a lease nor a grace is over meanwhile.
    let cluster = Cluster::new(&["--grace", "90s", "--lease", "90s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut witness = witness(&b).await;
    let _keyless = a.ws("/ws/lobby?user=keyless&presence=none").await;
    let _keyed = a.ws("/ws/lobby?user=keyed&presence=none&session=tab").await;
    for user in ["keyless", "keyed"] {
        listed(&b, user, |_| true).await;
    }
    a.kill();
    let a = cluster.node("a");
    let page = a.get("/api/rooms/lobby/presences").await.json();
    let users = page["presences"].as_array().unwrap().iter();
    let users: Vec<_> = users.map(|one| one["user"].as_str().unwrap()).collect();
    assert!(!users.contains(&"keyless") && users.contains(&"keyed"), "{page}");
    assert_eq!(ending(&mut witness, "keyless").await, "node_lost");
    listed(&b, "keyed", |one| one["node"] == "a").await;
    until_said(&b, BACK).await;
    has_said(&b, &[(MET, 1), (DIED, 1), (BACK, 1)]);
}

#[tokio::test]
async fn nodes_whose_database_stands_still_beat_and_nobody_is_named_or_called_dead() {
    let lease = Duration::from_secs(6);
    let postgres = Postgres::start();
    let cluster = Cluster::on(&postgres, &["--lease", "6s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    postgres.pause();
    let end = Instant::now() + lease * 5 / 2;
    while Instant::now() < end {
        for node in [&a, &b] {
            let ready = node.get("/readyz").await.json();
            assert_eq!(ready["unheard"], json!([]), "{ready}\n{}", node.log());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Who does not beat is named without the database, too.
    a.signal("STOP");
    until_within(lease * 2, "it is named", async || {
        let ready = b.get("/readyz").await.json();
        (ready["unheard"][0]["node"] == "a").then_some(())
    })
    .await;
    a.signal("CONT");
    b.logs("heard on the bus again");
    postgres.resume();
    meet(&[&a, &b]).await;
    assert_eq!(said(&b, UNHEARD, "a"), 1, "{}", b.log());
    assert_eq!(said(&a, UNHEARD, "b"), 0, "who stood still: {}", a.log());
    for (node, other) in [(&a, "b"), (&b, "a")] {
        assert_eq!(said(node, DIED, other), 0, "{}", node.log());
        assert!(!node.log().contains("the same Redis?"), "{}", node.log());
    }
}

#[tokio::test]
async fn the_presences_that_nodes_count_as_their_own_add_up() {
    let cluster = Cluster::new(&[]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let _ada = a.ws("/ws/lobby?user=ada&presence=none").await;
    let _bob = a.ws("/ws/lobby?user=bob&presence=none").await;
    let _cyd = b.ws("/ws/lobby?user=cyd&presence=none").await;
    for (node, own) in [(&a, 2), (&b, 1)] {
        until("it sees all three and holds its own", async || {
            let metrics = node.get("/metrics").await.body;
            let has = |line: String| metrics.lines().any(|one| one == line);
            let own = has(format!("presence_presences {own}"))
                && has(format!("presence_connections {own}"));
            let view = has("presence_view_presences 3".into())
                && has("presence_view_users 3".into())
                && has("presence_view_rooms 1".into());
            (own && view).then_some(())
        })
        .await;
    }
}
