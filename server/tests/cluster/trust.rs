//! Whom nodes believe on the bus: those of their database, and only what each of these says now. And whether
//! Redis lets them.

use std::time::Duration;

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection,
    sql_query, sql_types::Text,
};
use serde_json::{Value, json};

use crate::{
    harness::{Server, until, until_within},
    nodes::{Cluster, listed, meet, node},
};

const LEASE: [&str; 2] = ["--lease", "3s"];
/// A lease, and as much again twice for a machine that others use, too.
const WITHIN: Duration = Duration::from_secs(9);

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

fn ask(cluster: &Cluster, sql: &str) -> String {
    let mut conn = PgConnection::establish(&cluster.database).unwrap();
    sql_query(format!("SELECT ({sql})::text AS line")).get_result::<Line>(&mut conn).unwrap().line
}

/// The name of a channel of the cluster in Redis.
fn channel(cluster: &Cluster, name: &str) -> String {
    let value = ask(cluster, "SELECT encode(channel, 'hex') FROM cluster");
    format!("presence:{value}:{name}")
}

fn publish(cluster: &Cluster, channel: &str, bytes: &[u8]) {
    let heard = cluster.redis.bulk(&[b"PUBLISH", channel.as_bytes(), bytes]);
    assert_ne!(heard, "0", "nobody is subscribed to {channel}");
}

async fn counter(node: &Server, name: &str) -> u64 {
    let metrics = node.get("/metrics").await.body;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

async fn bus_state(node: &Server) -> (u16, Value) {
    let ready = node.get("/readyz").await;
    (ready.status, ready.json()["bus"]["state"].clone())
}

async fn is_down(node: &Server, state: &str) {
    until(&format!("the bus is down: {state}"), async || {
        (bus_state(node).await == (503, json!(state))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_no_node_has_said_there_and_then_changes_nothing() {
    let cluster = Cluster::new(&LEASE);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut listener = b.ws("/ws/lobby?user=witness&presence=diff").await;
    let mut ada = a.ws("/ws/lobby?user=ada&presence=none").await;
    let ada_is = listed(&b, "ada", |_| true).await["channel_name"].clone();
    listener.until(|frame| frame.to_string().contains("ada")).await;

    let lobby = channel(&cluster, "room:lobby");
    let mut wire = cluster.redis.listen_to(&lobby);
    ada.message("once").await;
    listener.until(|frame| frame["payload"] == "once").await;
    let seen = loop {
        let seen = wire.next();
        if String::from_utf8_lossy(&seen).contains("once") {
            break seen;
        }
    };
    // Again, and elsewhere.
    publish(&cluster, &lobby, &seen);
    publish(&cluster, &lobby, &seen);
    publish(&cluster, &channel(&cluster, "nodes"), &seen);
    // In the name of a, by somebody who knows all but the key.
    let incarnation = ask(&cluster, "SELECT incarnation FROM nodes WHERE id = 'a'");
    let ghost =
        json!({"connection": "0".repeat(32), "user": "ghost", "joined_at": 0, "last_seen": 0});
    let changes = json!([{"here": ghost}, {"gone": {"connection": ada_is, "cause": "left"}}]);
    let changes = json!({"room": "lobby", "number": 1000, "previous": 0, "changes": changes});
    let forged = [
        ("room:lobby", json!({"changes": changes})),
        ("room:lobby", json!({"close": {"room": "lobby"}})),
        ("nodes", json!({"kick": {"user": "ada"}})),
        ("nodes", json!({"buried": {"node": "a", "incarnation": incarnation, "leaving": false}})),
        ("nodes", json!({"beat": {"number": u64::MAX, "rooms": []}})),
        ("nodes", json!("stopping")),
    ];
    for (place, told) in &forged {
        let envelope = json!({
            "v": 2, "node": "a", "incarnation": incarnation, "number": 1_000_000, "told": told,
        });
        let bytes = [seen[..32].to_vec(), envelope.to_string().into_bytes()].concat();
        publish(&cluster, &channel(&cluster, place), &bytes);
    }
    ada.message("last").await;
    listener
        .until(|frame| {
            assert_eq!(frame["type"], "message", "{frame}");
            frame["payload"] == "last"
        })
        .await;
    assert_eq!(ada.next_of("message").await["payload"], "once");
    assert_eq!(ada.next_of("message").await["payload"], "last");
    until("all is counted", async || {
        let unverified = counter(&b, "presence_bus_unverified_total").await;
        (unverified == 1 + forged.len() as u64).then_some(())
    })
    .await;
    assert_eq!(counter(&b, "presence_bus_repeated_total").await, 2);
    b.logs("dropped what no node of this database has published on the bus: is Redis private?");
    for node in [&a, &b] {
        assert_eq!(bus_state(node).await, (200, json!("ok")));
    }
}

#[tokio::test]
async fn a_restored_database_is_another_system_on_the_bus() {
    let cluster = Cluster::new(&LEASE);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let before = channel(&cluster, "nodes");
    let mut ada = a.ws("/ws/lobby?user=ada&presence=none").await;
    listed(&b, "ada", |_| true).await;
    // As it is in a dump that was made on another server, and read into this database.
    let mut superuser =
        PgConnection::establish(&crate::postgres::Postgres::as_superuser(&cluster.database))
            .unwrap();
    superuser
        .batch_execute("UPDATE cluster SET system_identifier = system_identifier + 1")
        .unwrap();
    until_within(WITHIN, "nobody is in the old channel", async || {
        let subscribers = cluster.redis.command(&format!("PUBSUB NUMSUB {before}"));
        (subscribers == format!("{before} 0")).then_some(())
    })
    .await;
    assert_ne!(channel(&cluster, "nodes"), before);
    meet(&[&a, &b]).await;
    let mut bob = b.ws("/ws/lobby?user=bob&presence=none").await;
    listed(&a, "bob", |_| true).await;
    bob.message("hello").await;
    assert_eq!(ada.next_of("message").await["payload"], "hello");
    a.logs("the database has another identity on the bus");
}

#[tokio::test]
async fn nodes_of_an_earlier_version_are_named_once() {
    let cluster = Cluster::new(&LEASE);
    let plain = cluster.node("a");
    let numbered = node(&cluster.database, Some(&format!("{}/3", cluster.redis.url())), "b", &[]);
    for (node, channel) in [(&plain, "presence:nodes"), (&numbered, "presence:3:nodes")] {
        until("it listens", async || (bus_state(node).await.0 == 200).then_some(())).await;
        let told = br#"{"v":1,"node":"c","incarnation":"0000000000000007","told":"missed"}"#;
        (0..3).for_each(|_| publish(&cluster, channel, told));
        until("all is counted", async || {
            (counter(node, "presence_bus_old_nodes_total").await == 3).then_some(())
        })
        .await;
        let named = node.log().matches("nodes of an earlier version are on this Redis").count();
        assert_eq!(named, 1, "{}", node.log());
        assert_eq!(counter(node, "presence_bus_unverified_total").await, 0);
    }
    // Redis publishes to all of its databases, so the number in the URL means nothing.
    meet(&[&plain, &numbered]).await;
}

#[tokio::test]
async fn what_redis_refuses_is_named_with_its_present_cause_and_once_in_the_log() {
    let mut cluster = Cluster::new(&LEASE);
    let acl = "ACL SETUSER node on >s3cret allchannels +@all -publish";
    cluster.redis.command(acl);
    let url = cluster.redis.url().replace("//", "//node:s3cret@");
    let a = node(&cluster.database, Some(&url), "a", &LEASE);
    is_down(&a, "denied").await;
    assert_eq!(counter(&a, "presence_bus_up").await, 0);
    for (given, taken) in [
        ("+publish", "-publish"),
        ("+publish", "resetchannels"),
        ("allchannels", "resetpass"),
        (">s3cret", "off"),
    ] {
        cluster.redis.command(&format!("ACL SETUSER node {given}"));
        until("it is up", async || (bus_state(&a).await == (200, json!("ok"))).then_some(())).await;
        assert_eq!(counter(&a, "presence_bus_up").await, 1);
        cluster.redis.command(&format!("ACL SETUSER node {taken}"));
        if ["resetpass", "off"].contains(&taken) {
            // Redis lets those go on that are there already.
            cluster.redis.command("CLIENT KILL USER node");
        }
        is_down(&a, "denied").await;
        assert_eq!(counter(&a, "presence_bus_up").await, 0);
    }
    // Another cause while it is down.
    cluster.redis.stop();
    is_down(&a, "refused").await;
    cluster.redis.start_again();
    is_down(&a, "denied").await;
    let log = a.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("the bus is down")).collect();
    assert!((1..=2).contains(&lines.len()), "one a minute: {log}");
    assert!(lines[0].contains("denied") && lines[0].contains("NOPERM"), "{log}");
    assert!(!log.contains("s3cret"), "{log}");
    cluster.redis.command(acl);
    cluster.redis.command("ACL SETUSER node +publish");
    until("it is up", async || (bus_state(&a).await.0 == 200).then_some(())).await;
}

#[tokio::test]
async fn without_the_key_a_node_says_so_and_hears_as_soon_as_it_has_it() {
    let cluster = Cluster::new(&LEASE);
    let first = cluster.node("a");
    until("it is ready", async || (bus_state(&first).await.0 == 200).then_some(())).await;
    drop(first);
    let sql = |sql: &str| {
        PgConnection::establish(&cluster.database).unwrap().batch_execute(sql).unwrap();
    };
    sql("ALTER TABLE cluster RENAME TO hidden");
    let a = cluster.node("a");
    is_down(&a, "no_key").await;
    a.logs("cannot read the key of the bus from the database");
    sql("ALTER TABLE hidden RENAME TO cluster");
    meet(&[&a]).await;
}
