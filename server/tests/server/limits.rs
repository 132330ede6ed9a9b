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
