//! Many at once, and one that does not keep up.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::harness::{Server, arrival, leave_of, members, soon, until, until_within};

#[tokio::test]
async fn three_hundred_clients_that_come_at_once_end_with_the_same_list() {
    const CLIENTS: usize = 300;
    let server = Arc::new(Server::start(&[]));
    let client = async |n: usize| {
        let mut ws = server.ws(&format!("/ws/lobby?user=u{n:03}&info=%7B%22n%22%3A{n}%7D")).await;
        let last = ws.until(|frame| members(frame).len() == CLIENTS).await;
        (ws, last)
    };
    let (sockets, lists): (Vec<_>, Vec<Value>) =
        join_all((0..CLIENTS).map(client)).await.into_iter().unzip();
    let version = lists[0]["payload"]["version"].as_u64();
    assert_eq!(version, Some(CLIENTS as u64), "one for each join");
    for list in &lists {
        assert_eq!(list, &lists[0]);
    }
    for (n, member) in lists[0]["payload"]["members"].as_array().unwrap().iter().enumerate() {
        assert_eq!(member["id"], format!("u{n:03}"));
        assert_eq!((&member["info"]["n"], &member["connections"]), (&n.into(), &1.into()));
    }

    // And all but one go at once.
    let mut sockets = sockets.into_iter();
    let mut first = sockets.next().unwrap();
    drop(sockets);
    first.sees(&["u000"], 0).await;
    until("their sockets", async || (server.connections() == 1).then_some(())).await;
    let rows = || server.database().count("presences");
    until("one row", async || (rows() == 1).then_some(())).await;
}

/// As many as leave some ten MiB behind, in KiB, where memory is kept for ever.
const CROWD: usize = 1000;
const LEFT_BEHIND: u64 = 6 * 1024;

#[tokio::test]
async fn memory_goes_back_after_a_crowd_of_plain_http() {
    let server = Server::start(&[]);
    let before = server.memory();
    let mut idle = Vec::new();
    for _ in 0..CROWD {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        soon("the page", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        idle.push(stream);
    }
    assert!(server.memory() > before + LEFT_BEHIND);
    drop(idle);
    until("memory goes back", async || {
        let now = server.memory();
        (now < before + LEFT_BEHIND).then_some(())
    })
    .await;
}

/// What a message of 64 KiB at most may carry, with its frame around it.
const PAYLOAD: usize = 60 * 1024;
/// As many messages as would need 1.5 GiB if they were kept for whoever does not read.
const FLOOD: usize = 25_000;
/// How much the server may grow meanwhile, in KiB.
const GROWTH: u64 = 64 * 1024;

#[tokio::test]
async fn who_stops_reading_is_put_out_and_nobody_else_is_the_worse_for_it() {
    let server = Server::start(&["--max-age", "120s"]);
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    let mut witness = server.ws("/ws/lobby?user=witness&presence=diff").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let deaf = server.ws_on(socket, "/ws/lobby?user=deaf", &[]).await.unwrap();
    arrival(&mut witness, "deaf").await;
    assert_eq!(server.connections(), 3);

    let before = server.memory();
    let (mut most, mut cause) = (before, None);
    for n in 0..FLOOD {
        let payload = format!("{n} {}", "x".repeat(PAYLOAD));
        ada.message(payload.as_str()).await;
        // Each gets every message, and in order.
        assert_eq!(ada.next().await["payload"], payload.as_str());
        loop {
            let frame = witness.next().await;
            if frame["type"] == "message" {
                assert_eq!(frame["payload"], payload.as_str());
                break;
            }
            if let Some(leave) = leave_of(&frame, "deaf") {
                cause = Some(leave["cause"].clone());
            }
        }
        most = most.max(server.memory());
        if cause.is_some() {
            break;
        }
    }
    assert_eq!(cause, Some(Value::from("slow_consumer")));
    assert!(most - before < GROWTH, "it grew from {before} to {most} KiB");

    // It still does not read, and the server's side of its connection goes all the same.
    let gone = async || (server.connections() == 2).then_some(());
    until_within(Duration::from_secs(60), "its socket is gone", gone).await;
    ada.message("after it").await;
    assert_eq!(ada.next().await["payload"], "after it");
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("presence_leaves_total{cause=\"slow_consumer\"} 1"), "{metrics}");
    drop(deaf);
}
