//! Listeners that stop reading: what waits for them is bounded in bytes, and ends them or is made up for.

use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::harness::{Server, Ws, until};

/// What may wait for a connection, in KiB.
const BACKLOG: u64 = 1024;

/// A client that has little room for what it does not read.
async fn listener(server: &Server, path: &str) -> Ws {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    server.ws_on(socket, path, &[]).await.unwrap()
}

async fn recipients(server: &Server, payload: &Value) -> u64 {
    let answer = server.ask("POST", "/api/rooms/room/messages").body(payload.to_string());
    let answer = answer.send().await;
    answer.json()["recipients"].as_u64().unwrap()
}

#[tokio::test]
async fn a_member_that_reads_no_messages_costs_its_backlog_and_is_put_out() {
    let server = Server::start(&[]);
    let mut slow = listener(&server, "/ws/room?presence=none").await;
    let before = server.memory();
    let (payload, mut most) = (json!("x".repeat(60_000)), 0);
    let taken = until("the slow member is put out", async || {
        let recipients = recipients(&server, &payload).await;
        most = most.max(server.memory() - before);
        (recipients == 0).then_some(())
    });
    taken.await;
    assert!(most < 3 * BACKLOG, "{most} KiB for one listener");
    // What waited is dropped, so it reads soon why.
    assert_eq!(slow.closed().await, (4003, "slow_consumer".to_owned()));
}

#[tokio::test]
async fn a_member_that_reads_no_lists_costs_one_list_and_its_backlog() {
    let server = Server::start(&[]);
    let info = "x".repeat(4000);
    let mut members = Vec::new();
    for n in 0..50 {
        let path = format!("/ws/room?presence=none&user=user{n}&info=%7B%22x%22:%22{info}%22%7D");
        members.push(server.ws(&path).await);
    }
    let list = 50 * 4;
    for dialect in ["full", "diff"] {
        let mut slow = listener(&server, &format!("/ws/room?presence={dialect}")).await;
        let (before, mut most) = (server.memory(), 0);
        // A kernel takes some megabytes by itself.
        for n in 0..400 {
            let update = json!({"type": "update", "info": {"x": format!("{n}{info}")}});
            members[0].json(update).await;
            members[0].text(r#"{"type":"message","payload":"done"}"#).await;
            let state = server.get("/api/rooms/room").await;
            assert_eq!(state.status, 200);
            most = most.max(server.memory().saturating_sub(before));
        }
        assert!(most < 3 * (BACKLOG + list), "{most} KiB for one listener of {dialect}");
        // It goes on with the latest state, however much it has missed.
        members[0].json(json!({"type": "update", "info": {"x": "the last"}})).await;
        slow.until(|frame| frame.to_string().contains("the last")).await;
    }
}

#[tokio::test]
async fn members_that_read_are_not_too_slow_for_a_burst_of_the_largest_messages() {
    let server = Server::start(&["--max-frame-size", "1048576"]);
    let mut members = Vec::new();
    for _ in 0..4 {
        members.push(server.ws("/ws/room?presence=none").await);
    }
    let payload = json!("x".repeat(1_000_000));
    for _ in 0..4 {
        // More than may wait for a connection at once.
        let burst = futures_util::future::join_all((0..3).map(|_| recipients(&server, &payload)));
        let heard = futures_util::future::join_all(members.iter_mut().map(|member| async {
            for _ in 0..3 {
                member.next_of("message").await;
            }
        }));
        assert_eq!(tokio::join!(burst, heard).0, [4; 3]);
    }
}
