//! Who is there, as it is seen on other nodes.

use serde_json::{Value, json};

use crate::{
    harness::{Server, Ws, arrival, ending, leave_of, until},
    nodes::{Cluster, listed, only_hears_of_markers, witness},
};

/// Joins the lobby as a client of Phoenix.
async fn phoenix(node: &Server, user: &str) -> Ws {
    let mut ws = node.ws(&format!("/socket/websocket?vsn=2.0.0&user={user}")).await;
    ws.json(json!(["1", "1", "lobby", "phx_join", {}])).await;
    ws.until(|frame| frame[3] == "presence_state").await;
    ws
}

#[tokio::test]
async fn who_joins_on_one_node_is_seen_on_the_others_in_all_dialects_and_over_rest() {
    let cluster = Cluster::new(&[]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut full = b.ws("/ws/lobby?user=full").await;
    full.sees(&["full"], 0).await;
    let mut diff = b.ws("/ws/lobby?user=diff&presence=diff").await;
    diff.next_of("presence_state").await;
    let mut count = b.ws("/ws/lobby?user=count&presence=count").await;
    count.next_of("presence_count").await;
    let mut channels = phoenix(&b, "channels").await;

    let ada = a.ws("/ws/lobby?user=ada&info=%7B%22n%22%3A1%7D").await;
    let list = full.sees(&["ada", "channels", "count", "diff", "full"], 0).await;
    let entry = json!({"id": "ada", "info": {"n": 1}, "connections": 1});
    assert_eq!(list["payload"]["members"][0], entry);
    let joins = |frame: &Value| frame["payload"]["joins"].as_array().cloned().unwrap_or_default();
    diff.until(|frame| joins(frame).contains(&entry)).await;
    count.until(|frame| frame["payload"]["users"] == 5).await;
    let met = channels.until(|frame| frame[4]["joins"]["ada"].is_object()).await;
    assert_eq!(met[4]["joins"]["ada"]["metas"][0]["n"], 1);
    // Nobody is connected to this one.
    let seen = listed(&c, "ada", |_| true).await;
    for (field, value) in
        [("node", json!("a")), ("state", json!("live")), ("info", json!({"n": 1}))]
    {
        assert_eq!(seen[field], value);
    }
    let room = c.json("/api/rooms/lobby").await;
    assert_eq!((&room["connections"], &room["users"][0]), (&json!(5), &entry));
    assert_eq!(listed(&a, "ada", |_| true).await["node"], "a");
    assert_eq!(listed(&a, "full", |_| true).await["node"], "b");

    // Anonymous ones are counted.
    let lurker = a.ws("/ws/lobby?presence=none").await;
    for ws in [&mut full, &mut diff, &mut count] {
        ws.until(|frame| frame["payload"]["lurkers"] == 1).await;
    }
    lurker.close(None).await;
    ada.close(Some(1000)).await;
    full.sees(&["channels", "count", "diff", "full"], 0).await;
    assert_eq!(ending(&mut diff, "ada").await, "left");
    count.until(|frame| frame["payload"]["users"] == 4).await;
    let met = channels.until(|frame| frame[4]["leaves"]["ada"].is_object()).await;
    assert_eq!(met[4]["leaves"]["ada"]["metas"][0]["cause"], "left");
    until("it is gone from the third", async || {
        (c.get("/api/rooms/lobby").await.json()["connections"] == 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_new_info_is_seen_elsewhere_as_one_update() {
    let cluster = Cluster::new(&[]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut channels = phoenix(&b, "channels").await;
    let mut witness = witness(&b).await;
    let mut ada = a.ws("/ws/lobby?user=ada&presence=none").await;
    arrival(&mut witness, "ada").await;
    channels.until(|frame| frame[4]["joins"]["ada"].is_object()).await;
    let before = listed(&b, "ada", |_| true).await;

    ada.json(json!({"type": "update", "info": {"mood": "fine"}})).await;
    let update = witness.next_of("presence_diff").await;
    assert_eq!(
        (&update["payload"]["joins"], &update["payload"]["leaves"]),
        (&json!([{"id": "ada", "info": {"mood": "fine"}, "connections": 1}]), &json!([]))
    );
    let changed = channels.until(|frame| frame[4]["joins"]["ada"].is_object()).await;
    let [joined, left] = ["joins", "leaves"].map(|list| &changed[4][list]["ada"]["metas"][0]);
    assert_eq!((&joined["phx_ref_prev"], &joined["mood"]), (&left["phx_ref"], &json!("fine")));
    assert_eq!(left["cause"], Value::Null, "nobody has left");
    only_hears_of_markers(&mut witness, &[&a, &b]).await;
    let after = listed(&b, "ada", |_| true).await;
    assert_eq!(after["info"], json!({"mood": "fine"}));
    for field in ["channel_name", "joined_at", "node"] {
        assert_eq!(after[field], before[field]);
    }
}

#[tokio::test]
async fn users_and_rooms_of_all_nodes_are_found_on_each() {
    let cluster = Cluster::new(&[]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut sockets = Vec::new();
    for n in 0..10 {
        let node = if n % 2 == 0 { &a } else { &b };
        sockets.push(node.ws(&format!("/ws/room{n}?user=ada&presence=none")).await);
        sockets.push(node.ws(&format!("/ws/room{n}?presence=none")).await);
    }
    sockets.push(b.ws("/ws/room0?user=ada&presence=none").await);
    let ada: Vec<_> = (0..10)
        .map(|n| json!({"channel_name": format!("room{n}"), "connections": 1 + i32::from(n == 0)}))
        .collect();
    for node in [&a, &b, &c] {
        until("ada's rooms", async || {
            (node.json("/api/users/ada").await == json!({"id": "ada", "rooms": ada})).then_some(())
        })
        .await;
        until("all rooms, page by page", async || {
            let (mut names, mut after) = (Vec::new(), String::new());
            loop {
                let page = node.json(&format!("/api/rooms?limit=3{after}")).await;
                let rooms = page["rooms"].as_array().unwrap();
                assert!(rooms.len() <= 3);
                for room in rooms {
                    let connections = 2 + i32::from(room["channel_name"] == "room0");
                    if room["connections"] != connections || room["anonymous"] != 1 {
                        return None;
                    }
                    assert_eq!(room["users"], 1);
                    names.push(room["channel_name"].as_str().unwrap().to_owned());
                }
                let Some(next) = page["next"].as_str() else { break };
                after = format!("&after={next}");
            }
            (names == (0..10).map(|n| format!("room{n}")).collect::<Vec<_>>()).then_some(())
        })
        .await;
    }
    assert_eq!(c.json("/api/users/nobody").await["rooms"], json!([]));
    assert_eq!(c.get("/api/rooms/nowhere").await.status, 404);
}

#[tokio::test]
async fn a_presence_is_explained_on_another_node_also_when_it_is_gone() {
    let cluster = Cluster::new(&[]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let mut witness = witness(&b).await;
    let ada = a.ws("/ws/lobby?user=ada&presence=none").await;
    arrival(&mut witness, "ada").await;
    let channel = listed(&b, "ada", |_| true).await["channel_name"].clone();
    let path = format!("/api/rooms/lobby/presences/{}/explain", channel.as_str().unwrap());
    for node in [&a, &b] {
        let live = node.json(&path).await;
        let expected = json!({"room": "lobby", "channel_name": channel, "user": "ada",
            "state": "live", "node": "a", "left": null});
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&live[field], value, "{live}");
        }
        assert_eq!(live["removal"]["cause"], "expired");
    }
    ada.close(Some(1000)).await;
    let left = witness.until(|frame| leave_of(frame, "ada").is_some()).await;
    for node in [&a, &b] {
        let gone = node.json(&path).await;
        assert_eq!((&gone["state"], &gone["node"]), (&json!("gone"), &json!("a")), "{gone}");
        assert_eq!(gone["left"]["cause"], "left");
    }
    assert_eq!(b.json(&path).await["left"]["version"], left["payload"]["version"]);
}

#[tokio::test]
async fn who_is_put_out_over_rest_on_another_node_is_closed_with_4001() {
    let cluster = Cluster::new(&[]);
    let [a, b, c] = cluster.nodes(["a", "b", "c"]).await;
    let mut witness = witness(&b).await;
    for session in ["", "&session=tab"] {
        let mut ada = a.ws(&format!("/ws/lobby?user=ada&presence=none{session}")).await;
        arrival(&mut witness, "ada").await;
        let channel = listed(&c, "ada", |_| true).await["channel_name"].clone();
        let path = format!("/api/connections/{}", channel.as_str().unwrap());
        assert_eq!(c.ask("DELETE", &path).send().await.status, 204);
        assert_eq!(ada.closed().await, (4001, "kicked".to_owned()));
        assert_eq!(ending(&mut witness, "ada").await, "kicked");
        until("nobody knows it any more", async || {
            let again = c.ask("DELETE", &path).send().await;
            (again.status == 404).then(|| assert_eq!(again.error().1, "unknown_connection"))
        })
        .await;
    }
    let nobody = format!("/api/connections/{}", "0".repeat(32));
    assert_eq!(c.ask("DELETE", &nobody).send().await.status, 404);
}
