//! Nodes that stop, and nodes that die.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::{
    harness::{Server, Ws, arrival, ending, leave_of, until},
    nodes::{Cluster, listed, only_hears_of_markers, witness, witnesses},
};

/// A client in the lobby, with a session key if `session` is one.
async fn client(node: &Server, user: &str, session: &str) -> Ws {
    node.ws(&format!("/ws/lobby?user={user}&presence=none{session}")).await
}

const KEY: &str = "&session=tab";

/// A client of Phoenix in the lobby, with a session key.
async fn channels(node: &Server, user: &str) -> Ws {
    let mut ws = node.ws(&format!("/socket/websocket?vsn=2.0.0&user={user}{KEY}")).await;
    ws.json(json!(["1", "1", "lobby", "phx_join", {}])).await;
    ws.until(|frame| frame[3] == "presence_state").await;
    ws
}

/// Waits until a witness has seen all these go, and answers in which order and why. Nobody else may
/// go before.
async fn endings(witness: &mut Ws, users: &[&str]) -> Vec<(String, String)> {
    let mut ended = Vec::new();
    while ended.len() < users.len() {
        let frame = witness.until(|frame| frame["type"] == "presence_diff").await;
        for leave in frame["payload"]["leaves"].as_array().unwrap() {
            let [user, cause] = ["id", "cause"].map(|key| leave[key].as_str().unwrap().to_owned());
            if !user.starts_with("marker") {
                assert!(users.contains(&user.as_str()), "{user} has left: {cause}");
                ended.push((user, cause));
            }
        }
    }
    ended
}

#[tokio::test]
async fn clients_of_a_node_that_stops_come_back_elsewhere_or_leave_once() {
    let cluster = Cluster::new(&["--grace", "12s", "--lease", "5s"]);
    let [mut a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut witness = witness(&c).await;
    let mut back = client(&a, "back", KEY).await;
    arrival(&mut witness, "back").await;
    let mut lost = client(&a, "lost", KEY).await;
    arrival(&mut witness, "lost").await;
    let mut plain = client(&a, "plain", "").await;
    arrival(&mut witness, "plain").await;
    let mut channels = channels(&a, "channels").await;
    arrival(&mut witness, "channels").await;
    let before = listed(&b, "back", |_| true).await;

    a.signal("TERM");
    for ws in [&mut back, &mut lost, &mut plain, &mut channels] {
        assert_eq!(ws.closed().await, (1012, "shutdown".to_owned()));
        ws.ended().await;
    }
    let _back = client(&b, "back", KEY).await;
    let _channels = self::channels(&c, "channels").await;
    let told = endings(&mut witness, &["plain"]).await;
    assert_eq!(told[0].1, "shutdown");
    assert_eq!(a.wait().code(), Some(0), "{}", a.log());
    let now = listed(&c, "back", |one| one["node"] == "b" && one["state"] == "live").await;
    assert_eq!(now["channel_name"], before["channel_name"]);
    let told = endings(&mut witness, &["lost"]).await;
    assert_eq!(told[0].1, "shutdown");
    only_hears_of_markers(&mut witness, &[&b, &c]).await;
    until("its rows are gone", async || {
        cluster.rows().iter().all(|row| row.node != "a").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_last_node_that_stops_sends_its_clients_away() {
    let cluster = Cluster::new(&["--grace", "10s"]);
    let [mut a] = cluster.nodes(["a"]).await;
    let mut sockets = [client(&a, "ada", KEY).await, client(&a, "bob", "").await];
    until("both rows", async || (cluster.rows().len() == 2).then_some(())).await;
    let sent = Instant::now();
    a.signal("TERM");
    for ws in &mut sockets {
        assert_eq!(ws.closed().await, (1001, "shutdown".to_owned()));
    }
    assert_eq!(a.wait().code(), Some(0), "{}", a.log());
    assert!(sent.elapsed() < Duration::from_secs(10), "{:?}", sent.elapsed());
    assert_eq!(cluster.rows(), []);
}

#[tokio::test]
async fn a_node_of_the_same_name_takes_over_what_a_killed_one_had() {
    // Nobody takes it for dead meanwhile.
    let cluster = Cluster::new(&["--grace", "12s", "--lease", "60s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut witness = witness(&b).await;
    let mut clients = Vec::new();
    for (user, session) in [("back", KEY), ("away", KEY), ("lost", KEY), ("plain", "")] {
        clients.push(client(&a, user, session).await);
        arrival(&mut witness, user).await;
    }
    let before = listed(&b, "back", |_| true).await;
    a.kill();
    for ws in &mut clients {
        ws.ended().await;
    }
    let a = cluster.node("a");
    let _back = client(&a, "back", KEY).await;
    let _away = client(&b, "away", KEY).await;
    for (user, name) in [("back", "a"), ("away", "b")] {
        listed(&b, user, |one| one["node"] == name && one["state"] == "live").await;
    }
    let now = listed(&b, "back", |_| true).await;
    assert_eq!(now["channel_name"], before["channel_name"]);
    let mut told = endings(&mut witness, &["lost", "plain"]).await;
    told.sort_unstable();
    let lost = |user: &str| (user.to_owned(), "node_lost".to_owned());
    assert_eq!(told, ["lost", "plain"].map(lost));
    only_hears_of_markers(&mut witness, &[&a, &b]).await;
    until("the rows", async || (cluster.rows().len() == 3).then_some(())).await;
}

#[tokio::test]
async fn the_presences_of_a_killed_node_end_on_all_others_when_its_lease_is_over() {
    let cluster = Cluster::new(&["--lease", "4s"]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut witnesses = witnesses([&b, &c]).await;
    let _ada = client(&a, "ada", "").await;
    let _bob = client(&b, "bob", "").await;
    for witness in &mut witnesses {
        witness.until(|frame| frame["payload"]["joins"].to_string().contains("bob")).await;
    }
    listed(&c, "ada", |_| true).await;
    a.kill();
    for witness in &mut witnesses {
        assert_eq!(ending(witness, "ada").await, "node_lost");
        only_hears_of_markers(witness, &[&b, &c]).await;
    }
    let gone = witnesses[0].until(|frame| leave_of(frame, "bob").is_some());
    let bob_stays = tokio::time::timeout(Duration::ZERO, gone).await;
    assert!(bob_stays.is_err());
    crate::nodes::meet(&[&b, &c]).await;
    assert!(cluster.rows().iter().all(|row| row.node != "a"));
}
