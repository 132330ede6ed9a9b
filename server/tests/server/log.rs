//! The log of a server: whatever becomes of stderr, presence goes on.

use std::{
    fs::OpenOptions,
    io::{PipeReader, Read, Write, pipe},
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{Server, code_of, presence, run, soon, stderr, until};

/// What a pipe holds by default.
const PIPE: usize = 64 * 1024;
/// Malformed requests of a stranger.
const REQUESTS: usize = 20;

/// A server on an address of its own, whose stderr is this.
fn server(flags: &[&str], stderr: impl Into<Stdio>) -> Server {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let url = format!("sqlite://{}", directory.path().join("presence.db").display());
    // No other test takes a port of this address.
    let address = TcpListener::bind("127.0.0.8:0").unwrap().local_addr().unwrap();
    let bind = address.to_string();
    let mut command = presence(&["serve", "--bind", &bind, "--workers", "2", "--database", &url]);
    command.args(flags).stdout(Stdio::null()).stderr(stderr);
    Server::spawn_unheard(directory, command, address)
}

/// Stderr whose reader stands still from the start, and that reader.
fn stalled() -> (PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(&vec![b'.'; PIPE]).unwrap();
    (reader, writer)
}

async fn malformed(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GARBAGE\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = soon("a refusal", stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok() && answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
}

async fn serves_and_stops(mut server: Server) {
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    let mut bob = server.ws("/ws/lobby?user=bob&presence=none").await;
    for _ in 0..REQUESTS {
        malformed(server.address()).await;
    }
    assert_eq!(server.get("/healthz").await.status, 200);
    ada.message("hello").await;
    assert_eq!(bob.next_of("message").await["payload"], "hello");
    server.signal("TERM");
    assert_eq!(ada.closed().await.0, 1001);
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn a_log_whose_reader_has_gone_stops_nobody() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    serves_and_stops(server(&["--log", "debug"], writer)).await;
}

#[tokio::test]
async fn a_log_whose_reader_stands_still_stops_nobody() {
    let (_reader, writer) = stalled();
    serves_and_stops(server(&["--log", "debug"], writer)).await;
}

#[tokio::test]
async fn a_log_on_a_full_disk_stops_nobody() {
    serves_and_stops(server(&["--log", "debug"], full())).await;
}

fn full() -> std::fs::File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

fn dropped(metrics: &str) -> u64 {
    let name = "presence_log_lines_dropped_total ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn lines_that_find_no_room_are_counted_and_the_number_is_said_when_there_is_room_again() {
    let (mut reader, writer) = stalled();
    let mut server = server(&["--log", "trace"], writer);
    until("dropped lines", async || {
        (dropped(&server.get("/metrics").await.body) > 0).then_some(())
    })
    .await;
    let read = thread::spawn(move || {
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        log
    });
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    let log = read.join().unwrap();
    assert!(log.contains("log lines were dropped"), "{} bytes of log", log.len());
}

#[tokio::test]
async fn malformed_requests_of_strangers_leave_one_line() {
    let server = Server::start(&[]);
    for _ in 0..REQUESTS {
        malformed(server.address()).await;
    }
    server.logs("ERROR actix_http");
    let log = server.log();
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
}

#[test]
fn commands_whose_stderr_or_stdout_is_full_end_with_their_code() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("none.db").display());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = taken.local_addr().unwrap().to_string();
    let code = |mut command: Command| code_of(command.stdout(full()).stderr(full()));
    assert_eq!(code(presence(&["rooms", "--database", &url])), Some(1));
    assert_eq!(code(presence(&["--no-such-flag"])), Some(2));
    assert_eq!(code(presence(&["serve", "--bind", &bind, "--database", &url])), Some(1));
    let migrated = run(&["migrate", "--database", &url]);
    assert!(migrated.status.success(), "{}", stderr(&migrated));
    assert_eq!(code(presence(&["rooms", "--database", &url])), Some(1), "stdout is full, too");
}

#[test]
fn a_server_that_cannot_start_ends_although_nobody_reads_why() {
    let (_reader, writer) = stalled();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = taken.local_addr().unwrap().to_string();
    let mut command = presence(&["serve", "--bind", &bind, "--database", "sqlite::memory:"]);
    assert_eq!(code_of(command.stderr(writer)), Some(1));
}
