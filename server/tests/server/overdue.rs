//! Who is out is off: the socket of a client that was told to close is gone in time, whatever it reads.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::harness::{Server, TEXT, frame, until, until_within};

/// Three times the ten seconds that a client has.
const GONE: Duration = Duration::from_secs(30);
/// How much is said to a client before it is put out.
const MESSAGES: usize = 40;

/// A client that has joined, and has hardly any room for what it does not read.
async fn reluctant(server: &Server, user: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address()).await.unwrap();
    let request = format!(
        "GET /ws/room?presence=none&user={user} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        server.address()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads a byte now and then, for as long as there is a connection.
async fn sip(mut stream: TcpStream) {
    while let Ok(1..) = stream.read(&mut [0]).await {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn is_there(server: &Server, user: &str) -> bool {
    channel_of(server, user).await.is_some()
}

/// The connection of a user in the room, if there is one.
async fn channel_of(server: &Server, user: &str) -> Option<String> {
    let page = server.get("/api/rooms/room/presences").await;
    let presences = page.json()["presences"].as_array()?.clone();
    let one = presences.iter().find(|one| one["user"] == user)?;
    one["channel_name"].as_str().map(str::to_owned)
}

/// Says something large to the room.
async fn talk(server: &Server) {
    let say = server.ask("POST", "/api/rooms/room/messages");
    assert_eq!(say.body(json!("x".repeat(60_000)).to_string()).send().await.status, 200);
}

#[tokio::test]
async fn the_kicked_the_slow_and_the_expired_are_gone_though_they_read_a_byte_now_and_then() {
    let flags = ["--max-connections", "2", "--max-age", "20s", "--ping-interval", "5s"];
    let server = Server::start(&flags);
    // Keeps the room, and reads everything.
    let mut keeper = server.ws("/ws/room?presence=none&user=keeper").await;
    let keeper = tokio::spawn(async move { while keeper.frame().await.is_some() {} });
    for how in ["kicked", "slow", "expired"] {
        let client = reluctant(&server, how).await;
        until("it has joined", async || is_there(&server, how).await.then_some(())).await;
        let sipping = tokio::spawn(sip(client));
        // As much as the kernel takes for a client that hardly reads, and no more than may wait for it.
        for _ in 0..MESSAGES {
            talk(&server).await;
        }
        match how {
            "kicked" => {
                let channel = channel_of(&server, how).await.expect("it is there");
                let kick = server.ask("DELETE", &format!("/api/connections/{channel}"));
                assert_eq!(kick.send().await.status, 204);
            }
            "slow" => {
                until("it is too slow", async || {
                    talk(&server).await;
                    (!is_there(&server, how).await).then_some(())
                })
                .await
            }
            _ => {}
        }
        until_within(GONE, "it is out", async || (!is_there(&server, how).await).then_some(()))
            .await;
        until_within(GONE, "its socket is gone", async || {
            (server.connections() == 1).then_some(())
        })
        .await;
        // So is its place.
        let next = server.ws("/ws/room?presence=none&user=next").await;
        next.close(Some(1000)).await;
        // What it has received it may read for long.
        sipping.abort();
    }
    assert!(!keeper.is_finished());
    let metrics = server.get("/metrics").await.body;
    let line = metrics.lines().find(|line| line.contains("reason=\"overdue_close\"")).unwrap();
    let overdue: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((1..=3).contains(&overdue), "{line}");
}

#[tokio::test]
async fn who_breaks_a_rule_is_gone_though_it_reads_nothing() {
    let server = Server::start(&["--max-rate", "10"]);
    let mut client = reluctant(&server, "breaker").await;
    until("it has joined", async || is_there(&server, "breaker").await.then_some(())).await;
    let pings = frame(0x89, true, &[b'x'; 125]).repeat(1000);
    let _ = client.write_all(&pings).await;
    let _ = client.write_all(&frame(TEXT, true, b"\"heartbeat\"")).await;
    until_within(GONE, "its socket is gone", async || (server.connections() == 0).then_some(()))
        .await;
}
