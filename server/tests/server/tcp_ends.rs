//! TCP ends as soon as both close frames have passed, whoever closes; and a plain response is not cut.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::harness::{Raw, Server, TEXT, frame, soon, until};

/// Half of the second for which actix-web would wait for the client.
const AT_ONCE: Duration = Duration::from_millis(500);

const CLOSE: u8 = 0x88;
const BINARY: u8 = 0x82;

/// Answers the close frame of the server, and asserts that the connection then ends at once.
async fn answers(mut raw: Raw, code: u16, what: &str) {
    assert_eq!(raw.closed().await, code, "{what}");
    raw.send(&frame(CLOSE, true, &code.to_be_bytes())).await;
    ends_at_once(raw, what).await;
}

/// Asserts that nothing but the end comes, in order and at once.
async fn ends_at_once(raw: Raw, what: &str) {
    let start = Instant::now();
    let mut rest = Vec::new();
    let read = soon("the end", raw.into_stream().read_to_end(&mut rest)).await;
    assert_eq!(read.map_err(|error| error.kind()), Ok(0), "{what}");
    assert!(start.elapsed() < AT_ONCE, "{what}: {:?}", start.elapsed());
}

#[tokio::test]
async fn after_a_close_frame_of_the_client_the_answer_is_the_last() {
    let server = Server::start(&[]);
    let phoenix = "/socket/websocket?vsn=2.0.0";
    for path in ["/ws/lobby", "/ws/lobby?presence=none&session=tab", phoenix] {
        for code in [1000_u16, 1001, 4321] {
            let mut raw = server.raw(path).await;
            raw.send(&frame(CLOSE, true, &code.to_be_bytes())).await;
            assert_eq!(raw.closed().await, code);
            ends_at_once(raw, &format!("{path}, {code}")).await;
        }
        let mut raw = server.raw(path).await;
        raw.send(&frame(CLOSE, true, b"")).await;
        while raw.next().await.expect("a close frame").0 != 8 {}
        ends_at_once(raw, path).await;
    }
}

#[tokio::test]
async fn after_a_close_frame_of_the_server_the_answer_is_the_last_whatever_was_wrong() {
    let server = Server::start(&["--max-rate", "100", "--max-frame-size", "1000"]);
    let text = |len: usize| frame(TEXT, true, &vec![b'x'; len]);
    let cases: [(&str, u16, Vec<u8>); 12] = [
        ("binary", 1003, frame(BINARY, true, b"x")),
        ("a fragmented binary", 1003, frame(0x02, true, b"x")),
        ("text that is not UTF-8", 1007, frame(TEXT, true, b"\xff")),
        ("an unmasked frame", 1002, frame(TEXT, false, b"x")),
        ("a long unmasked frame", 1002, frame(TEXT, false, &[b'x'; 300])),
        ("reserved bits", 1002, frame(0xc1, true, b"x")),
        ("an unknown opcode", 1002, frame(0x83, true, b"x")),
        ("a ping that is too long", 1002, frame(0x89, true, &[b'x'; 126])),
        ("a continuation of nothing", 1002, frame(0x80, true, b"x")),
        ("too many messages", 1008, frame(0x89, true, b"").repeat(200)),
        ("a message too big", 1009, [text(1001), text(10)].concat()),
        ("much too big a message", 1009, text(3_000_000)),
    ];
    for (what, code, bytes) in cases {
        let mut raw = server.raw("/ws/lobby?presence=none").await;
        raw.send(&bytes).await;
        answers(raw, code, what).await;
    }
    // The close frame itself is malformed, so it is the client's, and there is no other.
    let mut raw = server.raw("/ws/lobby?presence=none").await;
    raw.send(&frame(CLOSE, true, b"x")).await;
    assert_eq!(raw.closed().await, 1002);
    ends_at_once(raw, "half a code").await;
}

#[tokio::test]
async fn who_is_put_out_has_its_connection_end_with_its_answer() {
    let mut server = Server::start(&["--max-age", "2s", "--prune-interval", "100ms"]);
    let user = |user: &str| format!("/ws/lobby?presence=none&session=tab&user={user}");
    let expired = server.raw(&user("expired")).await;
    answers(expired, 4000, "expired").await;

    let kicked = server.raw(&user("kicked")).await;
    let page = server.json("/api/rooms/lobby/presences").await;
    let channel = page["presences"][0]["channel_name"].as_str().unwrap().to_owned();
    let kick = server.ask("DELETE", &format!("/api/connections/{channel}")).send().await;
    assert_eq!(kick.status, 204);
    answers(kicked, 4001, "kicked").await;

    let replaced = server.raw(&user("replaced")).await;
    let _newer = server.raw(&user("replaced")).await;
    answers(replaced, 4002, "replaced").await;

    let path = "/socket/websocket?vsn=2.0.0";
    let (stops, channels) = (server.raw(&user("stops")).await, server.raw(path).await);
    let mut member = server.raw(path).await;
    let join = json!(["1", "1", "lobby", "phx_join", {}]).to_string();
    member.send(&frame(TEXT, true, join.as_bytes())).await;
    member.text().await;
    server.signal("TERM");
    tokio::join!(
        answers(stops, 1001, "a stop"),
        answers(channels, 1001, "a stop, without a channel"),
        answers(member, 1001, "a stop, with a channel"),
    );
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[tokio::test]
async fn a_slow_reader_of_plain_responses_gets_all_of_them_and_then_the_end() {
    const REQUESTS: usize = 150;
    let server = Server::start(&[]);
    let asset = "/assets/dashboard.js";
    let len = server.get(asset).await.body.len();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address()).await.unwrap();
    let get = |connection: &str| {
        format!("GET {asset} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n")
    };
    let requests = get("keep-alive").repeat(REQUESTS - 1) + &get("close");
    stream.write_all(requests.as_bytes()).await.unwrap();
    // More than the buffers of the kernel take is unsent for longer than any timeout of a second.
    let mut all = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..30 {
        pace.tick().await;
        assert!(stream.read_buf(&mut all).await.unwrap() > 0);
    }
    soon("the rest", stream.read_to_end(&mut all)).await.unwrap();
    let head = b"HTTP/1.1 200 OK";
    let answers = all.windows(head.len()).filter(|window| window == head).count();
    assert_eq!(answers, REQUESTS);
    assert!(all.len() > len * REQUESTS);
}

#[tokio::test]
async fn a_refusal_of_a_request_whose_body_is_not_read_arrives() {
    let server = Server::start(&["--secret", "s", "--api-key", "k"]);
    let body = vec![b'1'; 60_000];
    for (path, status) in [("/api/rooms/lobby/messages", 401), ("/ws/lobby", 401)] {
        let method = if path.starts_with("/ws") { "GET" } else { "POST" };
        for _ in 0..20 {
            let ask = server.ask(method, path).body(body.clone());
            assert_eq!(ask.send().await.status, status, "{path}");
            let upgrade = server.enter("/ws/lobby").body(body.clone());
            assert_eq!(upgrade.send().await.status, 401);
        }
    }
    until("all are closed", async || (server.connections() <= 1).then_some(())).await;
}
