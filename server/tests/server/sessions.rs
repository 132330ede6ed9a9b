//! Client sessions that survive reconnects: the key, the grace, and what the API says meanwhile.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Server, Ws, arrival, ending, leave_of, success, until};

async fn witness(server: &Server) -> Ws {
    server.ws("/ws/lobby?user=witness&presence=diff").await
}

/// The presence of a user, as the API lists it, once it is in this state.
async fn presence_of(server: &Server, user: &str, state: &str) -> Value {
    until("the presence", async || {
        let page = server.get("/api/rooms/lobby/presences").await.json();
        let list = page["presences"].as_array()?.clone();
        list.into_iter().find(|one| one["user"] == user && one["state"] == state)
    })
    .await
}

async fn explanation(server: &Server, channel: &Value) -> Value {
    let channel = channel.as_str().unwrap();
    server.json(&format!("/api/rooms/lobby/presences/{channel}/explain")).await
}

#[derive(Clone, Copy, Debug)]
enum End {
    Close(Option<u16>),
    Drop,
}

impl End {
    async fn of(self, ws: Ws) {
        match self {
            Self::Close(code) => ws.close(code).await,
            Self::Drop => drop(ws),
        }
    }
}

#[tokio::test]
async fn only_an_end_without_a_goodbye_of_a_connection_with_a_key_fades() {
    const GRACE: Duration = Duration::from_secs(2);
    let server = Server::start(&["--grace", "2s"]);
    let mut witness = witness(&server).await;
    for (end, cause) in [
        (End::Close(Some(1000)), "left"),
        (End::Close(None), "left"),
        (End::Close(Some(1001)), "disconnected"),
        (End::Close(Some(4321)), "disconnected"),
        (End::Drop, "disconnected"),
    ] {
        for key in ["", "&session=tab"] {
            let ws = server.ws(&format!("/ws/lobby?user=ada&presence=none{key}")).await;
            arrival(&mut witness, "ada").await;
            let ended = Instant::now();
            end.of(ws).await;
            let fades = cause == "disconnected" && !key.is_empty();
            if fades {
                presence_of(&server, "ada", "fading").await;
            }
            assert_eq!(ending(&mut witness, "ada").await, cause, "{end:?} {key}");
            let took = ended.elapsed();
            assert_eq!(took + Duration::from_millis(50) >= GRACE, fades, "{end:?} {key}: {took:?}");
        }
    }
}

#[tokio::test]
async fn whoever_comes_back_in_time_is_the_same_presence_and_nobody_saw_anything() {
    let server = Server::start(&["--grace", "60s"]);
    let mut witness = witness(&server).await;
    let path = "/ws/lobby?user=ada&session=tab&info=%7B%22n%22%3A1%7D";
    let mut ada = server.ws(path).await;
    arrival(&mut witness, "ada").await;
    let before = presence_of(&server, "ada", "live").await;
    let version = server.json("/api/rooms/lobby").await["version"].clone();
    for end in [End::Drop, End::Close(Some(1001)), End::Close(Some(4000)), End::Drop] {
        end.of(ada).await;
        presence_of(&server, "ada", "fading").await;
        ada = server.ws(path).await;
        ada.sees(&["ada", "witness"], 0).await;
        let after = presence_of(&server, "ada", "live").await;
        for field in ["channel_name", "joined_at", "info", "user"] {
            assert_eq!(after[field], before[field], "{field} after {end:?}");
        }
    }
    assert_eq!(server.json("/api/rooms/lobby").await["version"], version);
    ada.message("back").await;
    let heard = witness.until(|frame| frame["type"] == "message").await;
    assert_eq!(heard["from"]["connection"], before["channel_name"]);
    ada.close(None).await;
    let leave = witness.until(|frame| leave_of(frame, "ada").is_some()).await;
    assert_eq!(leave["payload"]["since"], version, "nothing between");
}

#[tokio::test]
async fn a_newer_connection_of_the_session_closes_the_older_one_with_4002() {
    let server = Server::start(&["--grace", "60s"]);
    let mut witness = witness(&server).await;
    let path = "/ws/lobby?user=ada&session=tab";
    let mut old = server.ws(path).await;
    arrival(&mut witness, "ada").await;
    let version = server.json("/api/rooms/lobby").await["version"].clone();
    for _ in 0..3 {
        let new = server.ws(path).await;
        assert_eq!(old.closed().await, (4002, "replaced".to_owned()));
        old.ended().await;
        old = new;
    }
    // Another user, another key and no key are others.
    let _others = [
        server.ws("/ws/lobby?user=bob&session=tab").await,
        server.ws("/ws/lobby?user=ada&session=other").await,
        server.ws("/ws/lobby?user=ada").await,
    ];
    old.until(|frame| frame["payload"]["members"][0]["connections"] == 3).await;
    assert_eq!(server.json("/api/rooms/lobby").await["version"], version.as_u64().unwrap() + 3);
}

#[tokio::test]
async fn without_a_grace_a_dropped_session_leaves_at_once() {
    let server = Server::start(&["--grace", "0"]);
    let mut witness = witness(&server).await;
    let ada = server.ws("/ws/lobby?user=ada&session=tab").await;
    arrival(&mut witness, "ada").await;
    drop(ada);
    assert_eq!(ending(&mut witness, "ada").await, "disconnected");
    let mut ada = server.ws("/ws/lobby?user=ada&session=tab").await;
    arrival(&mut witness, "ada").await;
    let version = server.json("/api/rooms/lobby").await["version"].clone();
    // A connection that is open still is replaced all the same.
    let _new = server.ws("/ws/lobby?user=ada&session=tab").await;
    assert_eq!(ada.closed().await.0, 4002);
    assert_eq!(server.json("/api/rooms/lobby").await["version"], version);
}

#[tokio::test]
async fn a_presence_is_explained_while_it_lives_while_it_fades_and_when_it_is_gone() {
    let server = Server::start(&["--grace", "1s", "--node", "here"]);
    let _witness = witness(&server).await;
    let mut ada = server.ws("/ws/lobby?user=ada&session=tab&presence=none").await;
    let channel = presence_of(&server, "ada", "live").await["channel_name"].clone();
    let live = explanation(&server, &channel).await;
    let expected = json!({"room": "lobby", "channel_name": channel, "user": "ada",
        "state": "live", "last_sign": "join", "node": "here", "left": null});
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&live[field], value, "{live}");
    }
    assert_eq!(live["removal"]["cause"], "expired");
    assert!(live["text"].as_str().unwrap().contains("is live"), "{live}");

    ada.text("\"heartbeat\"").await;
    until("the sign", async || {
        (explanation(&server, &channel).await["last_sign"] == "heartbeat").then_some(())
    })
    .await;
    ada.message("hi").await;
    ada.next().await;
    assert_eq!(explanation(&server, &channel).await["last_sign"], "message");

    drop(ada);
    let fading = until("it fades", async || {
        let now = explanation(&server, &channel).await;
        (now["state"] == "fading").then_some(now)
    })
    .await;
    assert_eq!(fading["removal"]["cause"], "disconnected");
    assert_eq!((&fading["last_sign"], &fading["left"]), (&json!("disconnect"), &Value::Null));
    let gone = until("it is gone", async || {
        let now = explanation(&server, &channel).await;
        (now["state"] == "gone").then_some(now)
    })
    .await;
    assert_eq!((&gone["left"]["cause"], &gone["removal"]), (&json!("disconnected"), &Value::Null));
    assert!(gone["left"]["at"].as_str() >= fading["removal"]["at"].as_str(), "{gone}");
    assert_eq!(gone["left"]["version"], server.json("/api/rooms/lobby").await["version"]);
    let nobody = format!("/api/rooms/lobby/presences/{}/explain", "0".repeat(32));
    assert_eq!(server.get(&nobody).await.error().0, 404);
}

#[tokio::test]
async fn a_token_carries_the_key() {
    let server = Server::start(&["--grace", "60s", "--secret", "s3cret"]);
    let token = success(&["token", "--user", "ada", "--session", "tab", "--secret", "s3cret"]);
    let mut old = server.ws(&format!("/ws/lobby?token={token}")).await;
    old.sees(&["ada"], 0).await;
    let mut new = server.ws(&format!("/ws/lobby?token={token}")).await;
    assert_eq!(old.closed().await.0, 4002);
    let list = new.sees(&["ada"], 0).await;
    assert_eq!(list["payload"]["members"][0]["connections"], 1);
    // The token's key counts, whatever the query says.
    let _newer = server.ws(&format!("/ws/lobby?token={token}&session=other")).await;
    assert_eq!(new.closed().await.0, 4002);
}

#[tokio::test]
async fn a_key_must_be_one() {
    let server = Server::start(&[]);
    let long = "x".repeat(256);
    for key in ["", "%00", long.as_str()] {
        let refused = server.enter(&format!("/ws/lobby?session={key}")).send().await.error();
        assert_eq!(refused, (400, "bad_session".to_owned()), "{key}");
    }
}

#[tokio::test]
async fn sockets_of_one_key_in_several_rooms_live_side_by_side() {
    let server = Server::start(&[]);
    let path = |room: &str| format!("/ws/{room}?user=ada&session=tab&presence=none");
    let (mut lobby, _cellar) = (server.ws(&path("lobby")).await, server.ws(&path("cellar")).await);
    until("both rooms", async || {
        let ada = server.get("/api/users/ada").await.json();
        (ada["rooms"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let _again = server.ws(&path("lobby")).await;
    assert_eq!(lobby.closed().await.0, 4002, "a new one in the same room replaces the older");
    let ada = server.json("/api/users/ada").await;
    assert_eq!(
        ada["rooms"],
        json!([
            {"channel_name": "cellar", "connections": 1},
            {"channel_name": "lobby", "connections": 1},
        ])
    );
}
