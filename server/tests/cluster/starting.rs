//! How nodes start, and what they refuse.

use crate::{
    harness::{failure, until},
    nodes::{Cluster, meet, node, rows},
    postgres::Postgres,
};

#[tokio::test]
async fn ready_nodes_say_that_the_bus_is_up_and_how_many_they_are() {
    let cluster = Cluster::new(&["--lease", "4s"]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let ready = a.json("/readyz").await;
    assert_eq!(ready["status"], "ready");
    assert_eq!(ready["database"]["state"], "ok");
    let c = cluster.node("c");
    meet(&[&a, &b, &c]).await;
    c.kill();
    meet(&[&a, &b]).await;
}

#[test]
fn a_redis_without_a_database_that_can_be_shared_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", directory.path().join("presence.db").display());
    for database in ["sqlite::memory:", &sqlite] {
        let bind = ["serve", "--bind", "127.0.0.1:0", "--redis", "redis://127.0.0.1:1"];
        let said = failure(2, &[bind.as_slice(), &["--database", database]].concat());
        assert!(said.contains("Redis") && said.contains("postgres://"), "{said}");
    }
}

#[test]
fn a_redis_that_is_none_is_refused() {
    let database = Postgres::shared().fresh_database();
    for redis in ["nonsense", "http://127.0.0.1:1", "redis://"] {
        let said = failure(
            2,
            &["serve", "--bind", "127.0.0.1:0", "--database", &database, "--redis", redis],
        );
        assert!(said.contains("redis://"), "{said}");
    }
}

#[test]
fn without_its_database_a_node_does_not_start_and_says_why() {
    let database = "postgres://presence:s3cret@127.0.0.1:1/presence";
    let said = failure(1, &["serve", "--bind", "127.0.0.1:0", "--database", database]);
    assert!(said.contains("database"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

#[tokio::test]
async fn nodes_work_alone_while_there_is_no_redis_and_together_when_there_is() {
    let mut cluster = Cluster::new(&[]);
    cluster.redis.stop();
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    for node in [&a, &b] {
        until("it says that the bus is down", async || {
            let ready = node.get("/readyz").await;
            let bus = ready.json()["bus"]["state"].clone();
            assert_eq!((ready.status, &ready.json()["status"]), (503, &"degraded".into()));
            (bus == "refused").then_some(())
        })
        .await;
    }
    let mut ada = a.ws("/ws/lobby?user=ada").await;
    ada.sees(&["ada"], 0).await;
    let mut eve = a.ws("/ws/lobby?user=eve").await;
    ada.sees(&["ada", "eve"], 0).await;
    ada.message("hi").await;
    assert_eq!(eve.next_of("message").await["payload"], "hi");
    // What is in the database when it joins, it knows.
    until("the rows", async || (cluster.rows().len() == 2).then_some(())).await;
    let mut bob = b.ws("/ws/lobby?user=bob").await;
    bob.sees(&["ada", "bob", "eve"], 0).await;

    cluster.redis.start_again();
    meet(&[&a, &b]).await;
    for ws in [&mut ada, &mut eve] {
        ws.sees(&["ada", "bob", "eve"], 0).await;
    }
    ada.message("hello").await;
    assert_eq!(bob.next_of("message").await["payload"], "hello");
}

#[tokio::test]
async fn one_node_alone_on_postgres_needs_no_redis() {
    let database = Postgres::shared().fresh_database();
    let flags = ["--lease", "3s", "--grace", "60s"];
    let a = node(&database, None, "a", &flags);
    let ready = a.json("/readyz").await;
    assert_eq!((&ready["bus"]["state"], &ready["bus"]["nodes"]), (&"local".into(), &1.into()));
    let mut ada = a.ws("/ws/lobby?user=ada").await;
    let bob = a.ws("/ws/lobby?user=bob&session=tab").await;
    ada.sees(&["ada", "bob"], 0).await;
    until("the rows", async || (rows(&database).unwrap().len() == 2).then_some(())).await;
    drop(bob);
    let mut bob = a.ws("/ws/lobby?user=bob&session=tab").await;
    ada.message("hi").await;
    bob.next_of("message").await;
    let posted = a.ask("POST", "/api/rooms/lobby/messages").body("1").send().await;
    assert_eq!(posted.json()["recipients"], 2);

    a.kill();
    assert_eq!(rows(&database).unwrap().len(), 2, "a killed server tidies nothing up");
    let mut b = node(&database, None, "b", &flags);
    until("the rows of the dead one are gone", async || {
        rows(&database).unwrap().is_empty().then_some(())
    })
    .await;
    let mut cyd = b.ws("/ws/lobby?user=cyd").await;
    cyd.sees(&["cyd"], 0).await;
    b.signal("TERM");
    assert_eq!(cyd.closed().await.0, 1001);
    assert_eq!(b.wait().code(), Some(0), "{}", b.log());
    assert!(rows(&database).unwrap().is_empty());
}
