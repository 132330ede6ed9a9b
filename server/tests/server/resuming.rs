//! Sessions that are resumed: what they keep, how far their key reaches, and their places.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use tokio::net::TcpSocket;

use crate::harness::{Server, Ws, success, until};

const SECRET: &str = "s3cret";

/// A token of Ada's for a session.
fn token(info: &Value, more: &[&str]) -> String {
    let info = info.to_string();
    let ada = ["token", "--secret", SECRET, "--user", "ada", "--session", "tab", "--info", &info];
    success(&[&ada, more].concat())
}

/// The presence of a user in a room, once it is as wanted.
async fn presence(server: &Server, room: &str, user: &str, state: &str) -> Value {
    let path = format!("/api/rooms/{room}/presences");
    until("the presence", async || {
        let page = server.get(&path).await.json();
        let list = page["presences"].as_array()?.clone();
        list.into_iter().find(|one| one["user"] == user && one["state"] == state)
    })
    .await
}

async fn info(server: &Server, user: &str) -> Value {
    presence(server, "lobby", user, "live").await["info"].clone()
}

async fn join(ws: &mut Ws, reference: &str, room: &str, params: Value) {
    ws.json(json!([reference, reference, room, "phx_join", params])).await;
    let answer = ws.until(|frame| frame[1] == reference && frame[3] == "phx_reply").await;
    assert_eq!(answer[4]["status"], "ok", "{answer}");
}

#[tokio::test]
async fn a_session_key_reaches_no_further_than_its_token() {
    let server = Server::start(&["--grace", "60s", "--secret", SECRET]);
    let (all, one) = (token(&json!({}), &[]), token(&json!({}), &["--room", "pub"]));
    let mut old = server.ws(&format!("/socket/websocket?vsn=2.0.0&token={all}")).await;
    for (reference, room) in [("1", "pub"), ("2", "secret")] {
        join(&mut old, reference, room, json!({})).await;
    }
    let before = presence(&server, "pub", "ada", "live").await;
    let refused = server.enter(&format!("/ws/secret?token={one}")).send().await;
    assert_eq!(refused.error(), (403, "room_not_allowed".to_owned()));

    let mut new = server.ws(&format!("/ws/pub?token={one}")).await;
    old.until(|frame| *frame == json!(["1", "1", "pub", "phx_close", {}])).await;
    for room in ["pub", "secret"] {
        let after = presence(&server, room, "ada", "live").await;
        assert_eq!(after["channel_name"], before["channel_name"], "{room}");
    }
    old.json(json!(["2", "3", "secret", "shout", {"n": 1}])).await;
    old.until(|frame| *frame == json!([null, null, "secret", "shout", {"n": 1}])).await;
    new.message("from the new one").await;
    let heard = new.next_of("message").await;
    assert_eq!(heard["from"]["connection"], before["channel_name"]);

    // It closes when it has no room left.
    let mut newer = server.ws(&format!("/ws/secret?token={all}")).await;
    newer.sees(&["ada"], 0).await;
    old.until(|frame| *frame == json!(["2", "2", "secret", "phx_close", {}])).await;
    assert_eq!(old.closed().await.1, "replaced");
    presence(&server, "secret", "ada", "live").await;
    // A kick by the id that is shown puts out both who are behind it.
    let path = format!("/api/connections/{}", before["channel_name"].as_str().unwrap());
    assert_eq!(server.ask("DELETE", &path).send().await.status, 204);
    assert_eq!((new.closed().await.0, newer.closed().await.0), (4001, 4001));
    assert_eq!(server.ask("DELETE", &path).send().await.status, 404);
}

#[tokio::test]
async fn an_update_outlives_a_break_whatever_the_url_and_the_join_say() {
    let server = Server::start(&["--grace", "60s"]);
    let mut witness = server.ws("/ws/lobby?user=witness&presence=diff").await;
    let (online, away) = (json!({"status": "online"}), json!({"status": "away"}));
    for query in ["user=ada&info=%7B%22status%22%3A%22online%22%7D", "user=bob"] {
        let path = format!("/ws/lobby?{query}&session=tab&presence=none");
        let user = &query[5..8];
        let mut ws = server.ws(&path).await;
        ws.json(json!({"type": "update", "info": away})).await;
        until("the update", async || (info(&server, user).await == away).then_some(())).await;
        drop(ws);
        presence(&server, "lobby", user, "fading").await;
        let _fading = server.ws(&path).await;
        assert_eq!(info(&server, user).await, away, "{query}");
        let _open = server.ws(&path).await;
        assert_eq!(info(&server, user).await, away, "{query}");
    }
    let path = "/socket/websocket?vsn=2.0.0&user=eve&session=tab";
    let mut eve = server.ws(path).await;
    join(&mut eve, "1", "lobby", json!({"info": online})).await;
    join(&mut eve, "2", "lobby", json!({"info": away})).await;
    assert_eq!(info(&server, "eve").await, away, "a second join on the same socket is an update");
    drop(eve);
    presence(&server, "lobby", "eve", "fading").await;
    let version = server.json("/api/rooms/lobby").await["version"].clone();
    let mut eve = server.ws(path).await;
    join(&mut eve, "1", "lobby", json!({"info": online})).await;
    assert_eq!(info(&server, "eve").await, away);
    assert_eq!(server.json("/api/rooms/lobby").await["version"], version);
    witness.message("marker").await;
    witness.next_of("message").await;
}

#[tokio::test]
async fn keys_of_the_new_token_replace_those_of_the_old_one() {
    let server = Server::start(&["--grace", "60s", "--secret", SECRET]);
    let path = |info| format!("/ws/lobby?token={}&presence=none", token(&info, &[]));
    let mut ws = server.ws(&path(json!({"role": "admin", "team": "red"}))).await;
    ws.json(json!({"type": "update", "info": {"status": "away", "role": "none"}})).await;
    let wanted = json!({"role": "admin", "team": "red", "status": "away"});
    until("the update", async || (info(&server, "ada").await == wanted).then_some(())).await;
    drop(ws);
    presence(&server, "lobby", "ada", "fading").await;
    for (claim, wanted) in [
        (json!({"role": "guest"}), json!({"role": "guest", "status": "away"})),
        (json!({}), json!({"status": "away"})),
        (json!({"status": "fixed"}), json!({"status": "fixed"})),
    ] {
        let _ws = server.ws(&path(claim)).await;
        assert_eq!(info(&server, "ada").await, wanted);
    }
}

#[tokio::test]
async fn a_fading_session_keeps_its_place_for_its_client_alone() {
    for base in ["/ws/lobby?user=ada&presence=none", "/socket/websocket?vsn=2.0.0&user=ada"] {
        let server = Server::start(&["--grace", "60s", "--max-connections", "1"]);
        let path = |key: usize| format!("{base}&session=key{key}");
        let open = async |key| {
            let mut ws = server.ws(&path(key)).await;
            if base.starts_with("/socket") {
                join(&mut ws, "1", "lobby", json!({})).await;
            }
            ws
        };
        let mut ws = open(0).await;
        let before = presence(&server, "lobby", "ada", "live").await;
        for _ in 0..3 {
            drop(ws);
            presence(&server, "lobby", "ada", "fading").await;
            for key in 1..10 {
                let refused = server.enter(&path(key)).send().await;
                assert_eq!(refused.error(), (503, "too_many_connections".to_owned()));
            }
            // A request that is no handshake takes nothing.
            assert_eq!(server.get(&path(0)).await.status, 503);
            ws = open(0).await;
            let after = presence(&server, "lobby", "ada", "live").await;
            assert_eq!(after["channel_name"], before["channel_name"]);
        }
        ws.close(Some(1000)).await;
        until("a free place", async || free(&server, &path(1)).await).await;
    }
}

#[tokio::test]
async fn a_client_that_comes_back_to_other_rooms_makes_no_more_sessions_than_it_has_places() {
    let server = Server::start(&["--grace", "60s", "--max-connections", "1"]);
    let path = "/socket/websocket?vsn=2.0.0&user=ada&session=tab";
    for round in 0..20 {
        let room = format!("room {round}");
        let mut ws = server.ws(path).await;
        join(&mut ws, "1", &room, json!({})).await;
        drop(ws);
        presence(&server, &room.replace(' ', "%20"), "ada", "fading").await;
        let rooms = server.json("/api/users/ada").await["rooms"].as_array().unwrap().len();
        assert!(rooms <= 2, "{rooms} sessions in round {round}");
    }
}

/// A WebSocket, if the server has a place for it.
async fn free(server: &Server, path: &str) -> Option<Ws> {
    server.ws_on(tokio::net::TcpSocket::new_v4().unwrap(), path, &[]).await.ok()
}

#[tokio::test]
async fn the_place_of_a_session_is_free_when_its_grace_is_over() {
    let server = Server::start(&["--grace", "1s", "--max-connections", "1"]);
    let dropped = Instant::now();
    drop(server.ws("/ws/lobby?user=ada&session=tab").await);
    let _other = until("a free place", async || free(&server, "/ws/lobby?user=bob").await).await;
    assert!(dropped.elapsed() >= Duration::from_secs(1));
    let other = Some("bob").into_iter();
    let presences = server.json("/api/rooms/lobby/presences").await["presences"].clone();
    let users = presences.as_array().unwrap().iter().filter_map(|one| one["user"].as_str());
    assert!(users.eq(other), "{presences}");
}

#[tokio::test]
async fn without_a_free_place_the_open_socket_of_the_session_is_ended_first() {
    let server = Server::start(&["--grace", "60s", "--max-connections", "1", "--secret", SECRET]);
    let all = token(&json!({}), &[]);
    let path = format!("/ws/lobby?token={all}&presence=none");
    let mut old = server.ws(&path).await;
    let before = presence(&server, "lobby", "ada", "live").await;
    let version = server.json("/api/rooms/lobby").await["version"].clone();
    for _ in 0..3 {
        let end = async {
            let closed = old.closed().await;
            old.ended().await;
            closed
        };
        let (new, closed) = tokio::join!(server.ws(&path), end);
        assert_eq!(closed, (4002, "replaced".to_owned()));
        let after = presence(&server, "lobby", "ada", "live").await;
        assert_eq!(after["channel_name"], before["channel_name"]);
        old = new;
    }
    assert_eq!(server.json("/api/rooms/lobby").await["version"], version, "nobody saw anything");
    // Who may not enter all its rooms ends no socket, nor does a request that is no handshake.
    let other = token(&json!({}), &["--room", "other"]);
    let refused = server.enter(&format!("/socket/websocket?vsn=2.0.0&token={other}")).send().await;
    assert_eq!(refused.error(), (503, "too_many_connections".to_owned()));
    assert_eq!(server.get(&path).await.status, 503);
    old.message("still here").await;
    assert_eq!(old.next_of("message").await["payload"], "still here");
}

#[tokio::test]
async fn the_socket_of_a_peer_that_reads_nothing_is_shut_down_for_its_successor() {
    let server = Server::start(&["--grace", "60s", "--max-connections", "1"]);
    let path = "/ws/lobby?user=ada&session=tab&presence=none";
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let _old = server.ws_on(socket, path, &[]).await.unwrap();
    presence(&server, "lobby", "ada", "live").await;
    // Its socket takes nothing any more, so its session is not run.
    for _ in 0..40 {
        let say = server.ask("POST", "/api/rooms/lobby/messages");
        assert_eq!(say.body(format!("\"{}\"", "x".repeat(60_000))).send().await.status, 200);
    }
    let opened = tokio::time::timeout(Duration::from_secs(6), server.ws(path)).await;
    let mut new = opened.expect("two seconds, and three times that for a slow machine");
    new.message("here").await;
    new.next_of("message").await;
}
