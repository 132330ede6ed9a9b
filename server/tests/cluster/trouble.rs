//! A database that misbehaves under nodes that work: nobody is seen to leave or to join who does not.

use std::time::Duration;

use diesel::{Connection, PgConnection, connection::SimpleConnection};
use serde_json::Value;

use crate::{
    harness::{Server, Ws, until_within},
    nodes::{Cluster, meet, node, witness},
    postgres::Postgres,
};

/// With this lease a call is given up after 2 s; three times that, and the way of what follows.
const LEASE: [&str; 2] = ["--lease", "6s"];
const WITHIN: Duration = Duration::from_secs(12);

fn sql(cluster: &Cluster, sql: &str) {
    PgConnection::establish(&cluster.database).unwrap().batch_execute(sql).unwrap();
}

/// Ends all idle connections to the database, as a failover or a firewall does.
fn cut(cluster: &Cluster) {
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sql(cluster, others);
}

/// The users of the rows in the database, without those who only watch.
fn stored(cluster: &Cluster) -> Vec<String> {
    let users = cluster.rows().into_iter().filter_map(|row| row.user);
    let mut users: Vec<_> = users.filter(|user| !user.starts_with("witness")).collect();
    users.sort();
    users
}

fn is_witness(user: &Value) -> bool {
    user.as_str().is_some_and(|user| user.starts_with("witness"))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

async fn has_rows(cluster: &Cluster, wanted: &[&str]) {
    until_within(WITHIN, &format!("the rows are {wanted:?}"), async || {
        (stored(cluster) == wanted).then_some(())
    })
    .await;
}

async fn database(node: &Server) -> (u16, Value) {
    let ready = node.get("/readyz").await;
    (ready.status, ready.json()["database"].clone())
}

async fn join(node: &Server, user: &str) -> Ws {
    node.ws(&format!("/ws/lobby?user={user}&presence=none")).await
}

/// Who has joined and who has left since the last time, until this user joins; each as often as it was told.
async fn changes_until(witness: &mut Ws, last: &str) -> (Vec<String>, Vec<String>) {
    let (mut joins, mut leaves) = (Vec::new(), Vec::new());
    while !joins.iter().any(|id| id == last) {
        let diff = witness.next_of("presence_diff").await;
        for (list, ids) in [("joins", &mut joins), ("leaves", &mut leaves)] {
            let list = diff["payload"][list].as_array().unwrap();
            ids.extend(list.iter().map(|one| one["id"].as_str().unwrap().to_owned()));
        }
    }
    joins.sort();
    (joins, leaves)
}

#[tokio::test]
async fn connections_that_hang_are_replaced_and_nobody_sees_an_end() {
    let postgres = Postgres::start();
    let cluster = Cluster::on(&postgres, &LEASE);
    let start = |name: &str| {
        let mine = format!("{}?application_name=presence-{name}", cluster.database);
        node(&mine, Some(&cluster.redis.url()), name, &LEASE)
    };
    let [a, b] = [start("a"), start("b")];
    meet(&[&a, &b]).await;
    let mut on_b = witness(&b).await;
    let _ada = join(&a, "ada").await;
    let eve = join(&a, "eve").await;
    assert_eq!(changes_until(&mut on_b, "eve").await, (names(&["ada", "eve"]), vec![]));
    has_rows(&cluster, &["ada", "eve"]).await;

    assert!(postgres.pause_backends("presence-a") >= 2);
    drop(eve);
    let _bob = join(&a, "bob").await;
    until_within(WITHIN, "a connection is given up", async || {
        let metrics = a.get("/metrics").await.body;
        (!metrics.contains("presence_database_hung_total 0")).then_some(())
    })
    .await;
    has_rows(&cluster, &["ada", "bob"]).await;
    until_within(WITHIN, "it is ready again", async || (database(&a).await.0 == 200).then_some(()))
        .await;
    // The first question may find out that its connection hangs as well.
    until_within(WITHIN, "questions are answered", async || {
        let answer = a.get("/api/users/bob").await;
        assert!(matches!(answer.status, 200 | 503), "{}", answer.body);
        (answer.status == 200).then(|| {
            assert_eq!(answer.json()["rooms"][0]["channel_name"], "lobby");
        })
    })
    .await;

    // What was given up is carried out late or not at all, and changes nothing.
    postgres.resume();
    let _zoe = join(&a, "zoe").await;
    let seen = changes_until(&mut on_b, "zoe").await;
    assert_eq!(seen, (names(&["bob", "zoe"]), names(&["eve"])));
    has_rows(&cluster, &["ada", "bob", "zoe"]).await;
    assert_eq!(b.get("/readyz").await.json()["bus"]["nodes"], 2);
    let log = b.log();
    assert!(!log.contains("died") && !log.contains("come back"), "{log}");
}

/// A database that is well after all must not be told of, nor make anybody vanish.
#[tokio::test]
async fn connections_that_were_cut_while_idle_are_made_anew_unnoticed() {
    let postgres = Postgres::start();
    let cluster = Cluster::on(&postgres, &LEASE);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let _ada = join(&a, "ada").await;
    has_rows(&cluster, &["ada"]).await;
    cut(&cluster);
    let where_is = b.get("/api/users/ada").await.json();
    assert_eq!(where_is["rooms"][0]["channel_name"], "lobby");
    cut(&cluster);
    assert_eq!(b.get("/api/rooms").await.json()["rooms"][0]["channel_name"], "lobby");
    cut(&cluster);
    let mut bob = b.ws("/ws/lobby?user=bob&presence=diff").await;
    let state = bob.next_of("presence_state").await;
    let members = state["payload"]["members"].as_array().unwrap();
    assert!(members.iter().any(|one| one["id"] == "ada"), "{state}");
    let presences = b.get("/api/rooms/lobby/presences").await.json();
    let hers = presences["presences"].as_array().unwrap().iter().find(|one| one["user"] == "ada");
    let path = format!("/api/connections/{}", hers.unwrap()["channel_name"].as_str().unwrap());
    cut(&cluster);
    assert_eq!(b.ask("DELETE", &path).send().await.status, 204);
    has_rows(&cluster, &["bob"]).await;
    // Once, and everything is written without a word; above a call may have been cut twice.
    let before = failures(&a).await;
    cut(&cluster);
    let _anna = join(&a, "anna").await;
    has_rows(&cluster, &["anna", "bob"]).await;
    assert_eq!((database(&a).await.0, failures(&a).await), (200, before));
}

/// How often the database has failed, by the metrics.
async fn failures(node: &Server) -> Vec<String> {
    let metrics = node.get("/metrics").await.body;
    let is_failure = |line: &&str| line.starts_with("presence_database_failures_total{");
    metrics.lines().filter(is_failure).map(str::to_owned).collect()
}

#[tokio::test]
async fn rows_that_somebody_deletes_come_back_with_the_next_sign_of_life() {
    let cluster = Cluster::new(&["--lease", "6s", "--max-age", "4s", "--prune-interval", "1s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut ada = join(&a, "ada").await;
    let _anna = join(&a, "anna").await;
    has_rows(&cluster, &["ada", "anna"]).await;
    sql(&cluster, "DELETE FROM presences");
    // Who asks for the room on the other node is told what the rows say.
    let mut bob = b.ws("/ws/lobby?user=bob&presence=diff").await;
    bob.next_of("presence_state").await;
    until_within(WITHIN, "ada's row is back", async || {
        ada.text("\"heartbeat\"").await;
        stored(&cluster).contains(&"ada".to_owned()).then_some(())
    })
    .await;
    bob.until(|frame| {
        let joins = frame["payload"]["joins"].as_array().cloned().unwrap_or_default();
        joins.iter().any(|one| one["id"] == "ada")
    })
    .await;
}

/// Of this node there is the row of an earlier process, and of its presences those of then.
#[tokio::test]
async fn a_database_that_is_put_back_to_a_backup_becomes_as_memory_again() {
    let cluster = Cluster::new(&LEASE);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut on_b = witness(&b).await;
    let _ada = join(&a, "ada").await;
    assert_eq!(changes_until(&mut on_b, "ada").await.0, names(&["ada"]));
    for earlier_process in [true, false] {
        has_rows(&cluster, &["ada"]).await;
        if earlier_process {
            let incarnation = "UPDATE nodes SET incarnation = repeat('7', 16), head = 900,
                lease_expires_at = '2024-01-01' WHERE id = 'a'";
            sql(&cluster, incarnation);
        } else {
            sql(&cluster, "UPDATE nodes SET head = 0 WHERE id = 'a'");
        }
        sql(
            &cluster,
            "UPDATE presences SET channel_name = repeat('5', 32), user_id = 'yesterday'
             WHERE user_id = 'ada'",
        );
        has_rows(&cluster, &["ada"]).await;
    }
    for node in [&a, &b] {
        until_within(WITHIN, "both nodes show who is there", async || {
            let page = node.get("/api/rooms/lobby/presences").await.json();
            let users = page["presences"].as_array()?.iter().map(|one| one["user"].clone());
            let mut users: Vec<_> = users.filter(|user| !is_witness(user)).collect();
            (users.pop()? == "ada" && users.is_empty() && database(node).await.0 == 200)
                .then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_room_that_cannot_be_read_holds_up_no_other() {
    let cluster = Cluster::new(&LEASE);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let _cursed = a.ws("/ws/cursed?user=ada&presence=none").await;
    let _ada = join(&a, "ada").await;
    has_rows(&cluster, &["ada", "ada"]).await;
    sql(
        &cluster,
        "CREATE FUNCTION readable(room text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN
            IF room = ''cursed'' THEN RAISE ''kann Block 3 nicht lesen''; END IF; RETURN true; END';
         CREATE POLICY readable ON rooms USING (readable(channel_name));
         ALTER TABLE rooms ENABLE ROW LEVEL SECURITY; ALTER TABLE rooms FORCE ROW LEVEL SECURITY",
    );
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(b.ws("/ws/cursed?user=bob&presence=none").await);
        let mut bob = b.ws("/ws/lobby?user=bob&presence=diff").await;
        let state = bob.next_of("presence_state").await;
        let members = state["payload"]["members"].as_array().unwrap();
        assert!(members.iter().any(|one| one["id"] == "ada"), "at once: {state}");
    }
}
