//! Listeners that stop reading: what waits for them is bounded in bytes, and ends them or is made up for.

use serde_json::{Value, json};
use socket2::SockRef;
use tokio::net::TcpSocket;

use crate::harness::{Server, Ws, until};

/// What may wait for a connection, in KiB.
const BACKLOG: u64 = 1024;
/// How many lists a listener does not read: far more than its backlog takes, in less time than it has to take
/// one. With each comes a message, of which a mailbox takes more.
const LISTS: usize = 25;

/// A client for which both kernels have little room: the server's send buffer is as small as the segments.
async fn listener(server: &Server, path: &str) -> Ws {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    SockRef::from(&socket).set_tcp_mss(536).unwrap();
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

/// A room whose list has the size of its members' infos.
struct Crowd {
    server: Server,
    members: Vec<Ws>,
    witness: Ws,
    version: u64,
}

impl Crowd {
    async fn new(size: usize) -> Self {
        let server = Server::start(&[]);
        let mut members = Vec::new();
        for n in 0..size {
            members.push(server.ws(&format!("/ws/room?presence=none&user=user{n}")).await);
        }
        let mut witness = server.ws("/ws/room?presence=count").await;
        let version = version(&witness.next_of("presence_count").await);
        Self { server, members, witness, version }
    }

    /// Changes all members, and waits until this is listed. Answers how much memory the server has then.
    async fn change(&mut self, number: usize) -> u64 {
        let info = json!({"x": format!("{number}{}", "x".repeat(4000))});
        for member in &mut self.members {
            member.json(json!({"type": "update", "info": info})).await;
        }
        self.members[0].message("done").await;
        let listed = self.version + self.members.len() as u64;
        let listed = self
            .witness
            .until(|frame| frame["type"] == "presence_count" && version(frame) >= listed);
        self.version = version(&listed.await);
        self.server.memory()
    }
}

fn version(frame: &Value) -> u64 {
    frame["payload"]["version"].as_u64().unwrap()
}

#[tokio::test]
async fn a_member_that_reads_no_lists_costs_one_list_and_its_backlog() {
    let mut crowd = Crowd::new(50).await;
    let size = 50 * 4;
    for dialect in ["full", "diff"] {
        let path = format!("/ws/room?presence={dialect}");
        let mut quick = crowd.server.ws(&path).await;
        let mut before = 0;
        for number in 0..LISTS {
            before = before.max(crowd.change(number).await);
            quick.next_of("message").await;
        }
        quick.close(None).await;
        let mut slow = listener(&crowd.server, &path).await;
        let mut most = 0;
        for number in 0..LISTS {
            most = most.max(crowd.change(number).await);
        }
        assert_eq!(crowd.server.get("/api/rooms/room").await.status, 200);
        let most = most.saturating_sub(before);
        assert!(most < 3 * (BACKLOG + size), "{most} KiB for one listener of {dialect}");
        // It goes on with the latest state, however much it has missed.
        crowd.members[0].json(json!({"type": "update", "info": {"x": "the last"}})).await;
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
