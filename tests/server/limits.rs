//! What may be limited, and who is refused then.

use crate::harness::{Server, Ws, arrival, ending, until};

#[tokio::test]
async fn a_full_room_refuses_with_403_and_has_room_again_when_somebody_goes() {
    let server = Server::start(&["--max-room-size", "2"]);
    let mut first = server.ws("/ws/lobby?user=ada").await;
    let second = server.ws("/ws/lobby?user=bob").await;
    first.sees(&["ada", "bob"], 0).await;
    let refused = server.enter("/ws/lobby?user=eve").send().await;
    assert_eq!(refused.error(), (403, "room_full".to_owned()));
    let _elsewhere = server.ws("/ws/other?user=eve").await;
    second.close(Some(1000)).await;
    first.sees(&["ada"], 0).await;
    let _eve = server.ws("/ws/lobby?user=eve").await;
    first.sees(&["ada", "eve"], 0).await;
}

#[tokio::test]
async fn when_all_connections_are_taken_503_is_answered_until_one_is_free() {
    let server = Server::start(&["--max-connections", "2"]);
    let first = server.ws("/ws/one").await;
    let mut second = server.ws("/ws/two").await;
    let refused = server.enter("/ws/three").send().await;
    assert_eq!(refused.error(), (503, "too_many_connections".to_owned()));
    assert_eq!(server.get("/healthz").await.status, 200, "only WebSockets are counted");
    drop(first);
    let mut third: Ws = until("a free place", async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        server.ws_on(socket, "/ws/three?user=ada", &[]).await.ok()
    })
    .await;
    third.sees(&["ada"], 0).await;
    assert_eq!(server.enter("/ws/four").send().await.status, 503);
    // A refused handshake gives its place back.
    second.message("still here").await;
    second.next_of("message").await;
    second.close(Some(1000)).await;
    until("a free place", async || {
        (server.get("/ws/four").await.error() == (400, "handshake".to_owned())).then_some(())
    })
    .await;
    assert_eq!(server.get("/ws/four").await.error().0, 400);
    let _fourth = server.ws("/ws/four").await;
}

#[tokio::test]
async fn who_sends_too_many_frames_is_closed_with_1008() {
    let server = Server::start(&["--max-rate", "5"]);
    let mut witness = server.ws("/ws/lobby?user=witness&presence=diff").await;
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    arrival(&mut witness, "ada").await;
    for n in 0..50 {
        ada.message(n).await;
    }
    assert_eq!(ada.closed().await.0, 1008);
    assert_eq!(ending(&mut witness, "ada").await, "kicked");
    witness.message("within the rate").await;
    witness.until(|frame| frame["payload"] == "within the rate").await;
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_unless_they_are_named() {
    let server = Server::start(&["--allow-origin", "https://chat.example"]);
    let own = format!("http://{}", server.address());
    for welcome in [own.as_str(), "https://chat.example"] {
        let mut ada = server.ws_with("/ws/lobby?user=ada", &[("Origin", welcome)]).await;
        ada.next_of("presence").await;
        let answer = server.ask("GET", "/api/rooms").header("Origin", welcome).send().await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("access-control-allow-origin"), Some(welcome));
    }
    for foreign in ["https://evil.example", "http://chat.example", "null", "http://127.0.0.1:1"] {
        let refused = server.enter("/ws/lobby?user=ada").header("Origin", foreign).send().await;
        assert_eq!(refused.error(), (403, "foreign_origin".to_owned()), "{foreign}");
        let refused = server.ask("GET", "/api/rooms").header("Origin", foreign).send().await;
        assert_eq!(refused.error(), (403, "foreign_origin".to_owned()), "{foreign}");
        let post = server.ask("POST", "/api/rooms/lobby/messages").body("1");
        assert_eq!(post.header("Origin", foreign).send().await.status, 403, "{foreign}");
    }
    let preflight = server.ask("OPTIONS", "/api/rooms/lobby/messages");
    let preflight = preflight.header("Origin", "https://chat.example");
    let preflight = preflight.header("Access-Control-Request-Method", "POST");
    let preflight = preflight.header("Access-Control-Request-Headers", "content-type").send().await;
    assert!((200..300).contains(&preflight.status), "{preflight:?}");
    let allowed = preflight.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://chat.example"));
}

#[tokio::test]
async fn any_page_is_welcome_where_a_star_is_named() {
    let server = Server::start(&["--allow-origin", "*"]);
    for origin in ["https://evil.example", "null"] {
        server.ws_with("/ws/lobby?user=ada", &[("Origin", origin)]).await.sees(&["ada"], 0).await;
    }
}
