//! What is answered over HTTP while PostgreSQL is away.

use serde_json::json;

use crate::{
    harness::{Server, until},
    nodes::{Cluster, listed, meet},
    postgres::Postgres,
};

/// Asks for what only the database knows, while it is away, and says why there is no answer.
async fn unanswered(node: &Server, path: &str) -> String {
    let answer = node.get(path).await;
    assert_eq!(answer.error(), (503, "database_unavailable".to_owned()), "{path}");
    answer.json()["error"]["message"].as_str().unwrap().to_owned()
}

/// Removes a connection, and answers the status and the body.
async fn delete(node: &Server, connection: &str) -> (u16, String) {
    let path = format!("/api/connections/{connection}");
    let answer = node.ask("DELETE", &path).send().await;
    (answer.status, answer.body)
}

#[tokio::test]
async fn what_only_the_database_knows_is_503_without_it_and_a_kick_is_carried_out_all_the_same() {
    let postgres = Postgres::start();
    let cluster = Cluster::on(&postgres, &[]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut ada = a.ws("/ws/lobby?user=ada&presence=none").await;
    let mut bob = b.ws("/ws/lobby?user=bob&presence=none").await;
    let mut ids = Vec::new();
    for user in ["ada", "bob"] {
        let found = listed(&b, user, |_| true).await;
        ids.push(found["channel_name"].as_str().unwrap().to_owned());
    }
    let stranger = "00000000000000000000000000000007";
    assert_eq!(delete(&b, stranger).await.0, 404);
    until("the dashboard has seen all rooms", async || {
        (b.json("/api/stats").await["largest"]["all"] == 1).then_some(())
    })
    .await;

    postgres.stop();
    for path in ["/api/rooms", "/api/users/ada", "/api/rooms/cellar", "/api/rooms/cellar/presences"]
    {
        let message = unanswered(&b, path).await;
        assert!(message.contains("the database cannot be reached: "), "{path}: {message}");
    }
    let explain = format!("/api/rooms/cellar/presences/{stranger}/explain");
    unanswered(&b, &explain).await;
    assert_eq!(b.get("/readyz").await.json()["database"]["unanswered"], "unavailable");
    // What was read before is known, as the bus has kept it.
    let lobby = b.json("/api/rooms/lobby").await;
    assert_eq!(lobby["connections"], 2);
    let stats = until("the scan of the rooms is interrupted", async || {
        let stats = b.json("/api/stats").await;
        (!stats["largest"]["trouble"].is_null()).then_some(stats)
    })
    .await;
    assert_eq!((&stats["largest"]["all"], &stats["presences"]), (&json!(1), &json!(2)));
    assert_eq!(stats["largest"]["rooms"][0]["connections"], 2);
    let metrics = b.get("/metrics").await.body;
    let counter = "presence_queries_unanswered_total{reason=\"unavailable\"}";
    assert!(metrics.contains(counter), "{metrics}");
    b.logs("all rooms cannot be queried");

    // A message goes on, and is counted by the rooms that are known.
    let post = b.ask("POST", "/api/users/ada/messages").body("\"still here?\"").send().await;
    assert_eq!((post.status, post.json()), (200, json!({"recipients": 1})));
    assert_eq!(ada.next_of("message").await["payload"], "still here?");
    for (path, connections) in
        [("/api/users/zoe", 0), ("/api/rooms/cellar", 0), ("/api/rooms/cellar/users/zoe", 0)]
    {
        let removed = b.ask("DELETE", path).send().await;
        assert_eq!(removed.json(), json!({"connections": connections, "partial": true}), "{path}");
    }
    // Who is in this room is known.
    let removed = b.ask("DELETE", "/api/rooms/lobby/users/zoe").send().await;
    assert_eq!(removed.json(), json!({"connections": 0}));
    for connection in [stranger, &ids[0]] {
        let (status, body) = delete(&b, connection).await;
        assert_eq!((status, body.as_str()), (200, r#"{"connections":0,"partial":true}"#));
    }
    assert_eq!(ada.closed().await.0, 4001, "told on the bus");
    assert_eq!(delete(&b, &ids[1]).await.0, 204, "it is here");
    assert_eq!(bob.closed().await.0, 4001);

    postgres.start_again();
    meet(&[&a, &b]).await;
    until("the rooms are listed again", async || {
        let page = b.get("/api/rooms").await;
        (page.status == 200 && page.json()["rooms"] == json!([])).then_some(())
    })
    .await;
    assert_eq!(b.json("/api/users/ada").await["rooms"], json!([]));
    assert!(b.json("/readyz").await["database"]["unanswered"].is_null());
    assert_eq!(b.get("/api/rooms/cellar").await.error(), (404, "unknown_room".to_owned()));
}
