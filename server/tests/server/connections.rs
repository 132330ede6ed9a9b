//! Connections that wait for their clients, and what there is when descriptors run out.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::harness::{Server, finish, presence, soon, stderr, until, until_within};

/// What the server gives a half request in all, and three times as much.
const HALF: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(30);
const ALLOWANCE: Duration = Duration::from_secs(90);

/// The binary under `ulimit` with these options.
fn limited(ulimit: &str, args: &[&str]) -> Command {
    let inner = presence(args);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit {ulimit}; exec \"$0\" \"$@\""));
    command.arg(inner.get_program()).args(inner.get_args());
    for (name, _) in inner.get_envs() {
        command.env_remove(name);
    }
    command
}

fn start_limited(ulimit: &str, flags: &[&str]) -> Server {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let database = format!("sqlite://{}", directory.path().join("presence.db").display());
    let base = ["serve", "--bind", "127.0.0.1:0", "--workers", "2", "--database", &database];
    Server::spawn(directory.clone(), limited(ulimit, &[&base, flags].concat()))
}

async fn connect(server: &Server) -> TcpStream {
    soon("a connection", TcpStream::connect(server.address())).await.unwrap()
}

/// A connection on which this has been sent.
async fn sent(server: &Server, text: &str) -> TcpStream {
    let mut stream = connect(server).await;
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// A connection that has had an answer, and on which this has been sent then.
async fn then_sent(server: &Server, text: &str) -> TcpStream {
    let mut stream = sent(server, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    answer(&mut stream).await;
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// The status of an answer, read to its end.
async fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"}") {
        let read = soon("an answer", stream.read_buf(&mut bytes)).await.unwrap();
        assert!(read > 0, "no answer but {}", String::from_utf8_lossy(&bytes));
    }
    String::from_utf8(bytes).unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// After how long the server ends the connection; what it sends meanwhile is read.
async fn end(mut stream: TcpStream) -> Duration {
    let start = Instant::now();
    let mut bytes = [0; 4096];
    let all = async { while matches!(stream.read(&mut bytes).await, Ok(read) if read > 0) {} };
    timeout(ALLOWANCE, all).await.expect("the connection stays open");
    start.elapsed()
}

/// As often as it takes: one more byte a second, until the connection has ended.
async fn drip(mut stream: TcpStream) -> Duration {
    let start = Instant::now();
    let mut byte = [0];
    while start.elapsed() < ALLOWANCE {
        if stream.write_all(b"a").await.is_err() {
            return start.elapsed();
        }
        match timeout(Duration::from_secs(1), stream.read(&mut byte)).await {
            Ok(Ok(1)) | Err(_) => {}
            Ok(_) => return start.elapsed(),
        }
    }
    panic!("the connection stays open");
}

async fn counted(server: &Server, reason: &str) -> u64 {
    let line = format!("presence_connections_ended_total{{reason=\"{reason}\"}} ");
    let metrics = server.get("/metrics").await.body;
    let count = metrics.lines().find_map(|text| text.strip_prefix(&line)).expect("such a metric");
    count.parse().unwrap()
}

#[tokio::test]
async fn requests_that_stop_half_way_end_after_ten_seconds_and_long_ones_after_thirty() {
    let server = Server::start(&[]);
    let post = "POST /api/rooms/lobby/messages HTTP/1.1\r\nHost: localhost\r\n";
    let get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
    let (head, chunked) = (format!("{get}X-Half: "), "Transfer-Encoding: chunked\r\n\r\n");
    let stopped = [
        then_sent(&server, &head).await,
        sent(&server, &format!("{get}{chunked}")).await,
        then_sent(&server, &format!("{get}{chunked}")).await,
        sent(&server, &format!("{post}Content-Length: 100\r\n\r\n\"half")).await,
        sent(&server, &format!("{post}{chunked}5\r\n\"half\r\n")).await,
        // Answered, and the body goes on.
        sent(
            &server,
            &format!("POST /nothing HTTP/1.1\r\nHost: localhost\r\n{chunked}3\r\nabc\r\n"),
        )
        .await,
    ];
    let mut dripped = [
        then_sent(&server, &head).await,
        sent(&server, &format!("{post}Content-Length: 1000\r\n\r\n")).await,
    ]
    .into_iter();
    // A good client that is slow.
    let mut slow = sent(&server, &format!("{post}Content-Length: 16\r\n\r\n\"")).await;
    let steady = async {
        for _ in 0..14 {
            sleep(Duration::from_secs(1)).await;
            slow.write_all(b"x").await.unwrap();
        }
        slow.write_all(b"\"").await.unwrap();
        answer(&mut slow).await
    };
    let stopped = futures_util::future::join_all(stopped.map(end));
    let (head, body) = (drip(dripped.next().unwrap()), drip(dripped.next().unwrap()));
    let (stopped, head, body, steady) = tokio::join!(stopped, head, body, steady);
    assert!(stopped.iter().all(|end| *end > HALF / 2 && *end < HALF * 3), "{stopped:?}");
    assert!(
        [head, body].iter().all(|end| *end > HALF * 2 && *end < ALLOWANCE),
        "{head:?} {body:?}"
    );
    assert!(body > WHOLE - HALF, "{body:?}");
    assert_eq!(steady, "200");
    assert_eq!(counted(&server, "half_request").await, 8);
    let lines = server.log().matches("whose request did not end").count();
    assert_eq!(lines, 1, "one line a minute");
    drop(slow);
    until("all gone", async || (server.connections() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_request_with_an_empty_chunked_body_is_answered_and_its_connection_goes_on() {
    let server = Server::start(&[]);
    let get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut stream = connect(&server).await;
    for _ in 0..3 {
        stream.write_all(format!("{get}0\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream).await, "200");
    }
    let long = format!("{get}11170\r\n{}\r\n0\r\n\r\n", "x".repeat(70_000));
    let _ = stream.write_all(long.as_bytes()).await;
    assert_eq!(answer(&mut stream).await, "413");
}

#[tokio::test]
async fn an_offer_to_upgrade_to_another_protocol_is_ignored_and_the_answer_says_close() {
    let server = Server::start(&[]);
    let offer = "Host: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    for request in [
        format!("GET /api/rooms HTTP/1.1\r\n{offer}\r\n"),
        format!("POST /api/rooms/r/messages HTTP/1.1\r\n{offer}Content-Length: 1\r\n\r\n1"),
    ] {
        let mut stream = connect(&server).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("the end of the connection", stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{answer}");
        assert!(head.contains("\r\nconnection: close") && !head.contains("upgrade"), "{answer}");
        assert!(body.starts_with('{'), "{answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_as_long_as_it_should() {
    let server = Server::start(&["--keep-alive", "1s"]);
    let mut stream = connect(&server).await;
    let get = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for _ in 0..2 {
        stream.write_all(get.as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream).await, "200");
    }
    let idle = Instant::now();
    let mut rest = Vec::new();
    soon("the end of the idle connection", stream.read_to_end(&mut rest)).await.unwrap();
    assert!(idle.elapsed() >= Duration::from_millis(900), "{:?}", idle.elapsed());
}

#[tokio::test]
async fn a_response_that_nobody_reads_ends_and_a_slow_reader_gets_all_of_it() {
    let server = Server::start(&[]);
    // More than the buffers of the kernel take.
    let many = "GET /assets/dashboard.js HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1200);
    let asked = async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(server.address()).await.unwrap();
        // The server stops reading when it cannot write.
        let _ = timeout(Duration::from_secs(1), stream.write_all(many.as_bytes())).await;
        stream
    };
    let unread = asked().await;
    let mut read = asked().await;
    let reading = async {
        let start = Instant::now();
        let mut bytes = vec![0; 2048];
        while start.elapsed() < WHOLE * 4 / 3 {
            assert!(read.read(&mut bytes).await.unwrap() > 0);
            sleep(Duration::from_millis(100)).await;
        }
    };
    let gone = until_within(ALLOWANCE, "the unread one gone", async || {
        sleep(Duration::from_millis(200)).await;
        (server.connections() <= 1).then_some(())
    });
    tokio::join!(gone, reading);
    drop((unread, read));
}

#[tokio::test]
async fn half_requests_take_a_quarter_of_the_descriptors_and_the_oldest_go() {
    let server = start_limited("-n 256", &[]);
    let half = "GET /hea";
    let oldest = then_sent(&server, half).await;
    let mut others = Vec::new();
    for _ in 0..150 {
        others.push(then_sent(&server, half).await);
        let started = Instant::now();
        if others.len() % 10 == 0 {
            assert_eq!(server.get("/healthz").await.status, 200);
            assert!(started.elapsed() < Duration::from_secs(5));
        }
    }
    let newest = others.pop().unwrap();
    assert!(end(oldest).await < HALF / 2, "the oldest goes at once");
    until("a quarter", async || (server.connections() <= 64).then_some(())).await;
    assert!(end(newest).await > HALF / 2, "the newest stays its time");
    assert!(counted(&server, "crowded").await >= 86);
    assert_eq!(server.log().matches("closed the oldest").count(), 1, "{}", server.log());
}

#[tokio::test]
async fn a_socket_too_many_is_refused_with_503_and_health_checks_get_through() {
    let server = start_limited("-n 128", &[]);
    let mut inside = Vec::new();
    let refused = loop {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let name = format!("/ws/lobby?user=u{}&presence=none", inside.len());
        match server.ws_on(socket, &name, &[]).await {
            Ok(socket) => inside.push(socket),
            Err(_) => break server.enter("/ws/lobby").send().await,
        }
        assert!(inside.len() < 128);
    };
    // One worker may be full before the other.
    if refused.status != 101 {
        assert_eq!(refused.error(), (503, "too_many_connections".to_owned()));
    }
    assert!(inside.len() >= 50, "{}", inside.len());
    let mut crowd = Vec::new();
    for _ in 0..5 {
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(server.get(path).await.status, 200, "{path}");
        }
        // Connections that say nothing.
        for _ in 0..50 {
            crowd.push(connect(&server).await);
        }
    }
    inside[0].message("all hear this").await;
    for socket in &mut inside {
        assert_eq!(socket.next_of("message").await["payload"], "all hear this");
    }
    let log = server.log();
    assert_eq!(log.matches("refused a WebSocket").count(), 1, "{log}");
    assert!(!log.contains("ERROR"), "{log}");
    drop((inside, crowd));
    let _again = until("a free place", async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        server.ws_on(socket, "/ws/lobby", &[]).await.ok()
    })
    .await;
}

#[tokio::test]
async fn the_soft_limit_of_descriptors_is_raised_and_a_promise_above_it_is_warned_of() {
    let server = start_limited("-S -n 256", &["--max-connections", "4000000"]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
    server.logs("--max-connections is 4000000");
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains(&format!("presence_descriptors_limit {}", words[3])), "{metrics}");
    assert!(metrics.contains("presence_connections_open 1\n"), "{metrics}");
}

#[test]
fn too_few_descriptors_are_an_error_at_the_start() {
    let args = ["--bind", "127.0.0.1:0", "--database", "sqlite::memory:", "--workers", "16"];
    let output = finish(&mut limited("-n 64", &args));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("too few file descriptors: 64"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}
