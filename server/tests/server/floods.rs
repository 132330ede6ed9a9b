//! One client that sends as fast as it can, whatever it sends and whether it reads or not: what the
//! server holds for it is bounded.

use std::time::{Duration, Instant};

use tokio::{io::AsyncWriteExt, time::timeout};

use crate::harness::{Server, TEXT, frame};

/// How long each flood takes.
const LASTS: Duration = Duration::from_secs(10);
/// What the server may take of memory, in KiB; it takes 17,000 when nobody is there.
pub const MOST: u64 = 100 * 1024;

pub const JSON: &str = "/ws/flood?presence=none";
pub const PHOENIX: &str = "/socket/websocket?vsn=2.0.0";

/// So many times the same text frame.
pub fn texts(text: &str, times: usize) -> Vec<u8> {
    frame(TEXT, true, text.as_bytes()).repeat(times)
}

/// Sends the bytes over and over, once by a client that reads and once by one that does not.
async fn flood(path: &str, first: &[u8], bytes: &[u8]) {
    for reads in [true, false] {
        let server = Server::start(&[]);
        let (mut stream, end) = (server.raw(path).await.into_stream(), Instant::now() + LASTS);
        stream.write_all(first).await.unwrap();
        let (mut sent, mut most, mut buffer) = (0, 0, vec![0; 1 << 20]);
        while Instant::now() < end {
            // That the server closes it is no failure.
            match timeout(Duration::from_millis(20), stream.write(&bytes[sent % bytes.len()..]))
                .await
            {
                Ok(Ok(written)) => sent += written,
                Ok(Err(_)) => break,
                Err(_) => {}
            }
            if reads {
                while matches!(stream.try_read(&mut buffer), Ok(1..)) {}
            }
            most = most.max(server.memory());
        }
        assert!(sent > 100_000, "only {sent} bytes were taken");
        assert!(most < MOST, "{most} KiB, while the client reads: {reads}; {sent} bytes sent");
    }
}

#[tokio::test]
async fn a_flood_of_small_messages() {
    flood(JSON, b"", &texts(r#"{"type":"message","payload":1}"#, 100)).await;
}

#[tokio::test]
async fn a_flood_of_large_messages() {
    let payload = "x".repeat(60_000);
    flood(JSON, b"", &texts(&format!(r#"{{"type":"message","payload":"{payload}"}}"#), 1)).await;
}

#[tokio::test]
async fn a_flood_of_updates() {
    let [one, two] =
        [1, 2].map(|n| texts(&format!(r#"{{"type":"update","info":{{"n":{n}}}}}"#), 1));
    flood("/ws/flood", b"", &[one, two].concat().repeat(50)).await;
}

#[tokio::test]
async fn a_flood_of_heartbeats() {
    flood(JSON, b"", &texts("\"heartbeat\"", 100)).await;
}

#[tokio::test]
async fn a_flood_of_texts_that_are_no_messages() {
    flood(JSON, b"", &texts("{", 100)).await;
}

#[tokio::test]
async fn a_flood_of_pings() {
    flood(JSON, b"", &frame(0x89, true, &[b'x'; 100]).repeat(100)).await;
}

#[tokio::test]
async fn a_flood_of_pongs() {
    flood(JSON, b"", &frame(0x8a, true, b"").repeat(100)).await;
}

#[tokio::test]
async fn a_flood_of_empty_fragments() {
    flood(JSON, &frame(0x01, true, b""), &frame(0x00, true, b"").repeat(200)).await;
}

#[tokio::test]
async fn a_flood_of_phoenix_pushes() {
    let join = texts(r#"["1","1","flood","phx_join",{}]"#, 1);
    flood(PHOENIX, &join, &texts(r#"["1","2","flood","shout",{}]"#, 100)).await;
}

#[tokio::test]
async fn a_flood_of_phoenix_pushes_to_topics_that_are_not_joined() {
    flood(PHOENIX, b"", &texts(r#"["1","2","flood","shout",{}]"#, 100)).await;
}

#[tokio::test]
async fn a_flood_of_phoenix_rejoins() {
    flood(PHOENIX, b"", &texts(r#"["1","1","flood","phx_join",{}]"#, 100)).await;
}

#[tokio::test]
async fn a_flood_of_phoenix_pushes_to_long_topics() {
    let topic = "x".repeat(60_000);
    flood(PHOENIX, b"", &texts(&format!(r#"[null,null,"{topic}","shout",{{}}]"#), 1)).await;
}
