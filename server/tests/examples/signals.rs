//! The examples are stopped by real signals.

use std::net::TcpListener;

use rustix::process::Signal;
use tokio::time::timeout;
use tokio_tungstenite::connect_async;

use crate::{
    desk, mount,
    process::{APP, Process, SOON, close, closed, connect},
};

/// The process of an example; the tests start it.
#[test]
#[ignore = "it is a part of the other tests"]
fn app() {
    let Ok(name) = std::env::var(APP) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    actix::System::new().block_on(async move {
        let ended = match &*name {
            "desk" => {
                let database = desk::tables::open("desk.db").unwrap();
                desk::app::run(listener, database, "sqlite://presence.db").await
            }
            "mount" => mount::run(listener).await,
            other => panic!("{other}"),
        };
        ended.unwrap();
    });
}

#[actix::test]
async fn sigterm_and_sigint_close_each_kind_of_socket_of_the_desk() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut app = Process::start("desk");
        let port = app.port().await;
        let mut clients = Vec::new();
        for (path, cookie) in [
            ("/agent/ticket:1", "desk=ada"),
            ("/listen/ticket:1", "desk=ada"),
            ("/realtime/ws/ticket:1", "desk=bob"),
        ] {
            clients.push((path, connect(port, path, cookie).await.unwrap().0));
        }
        app.send(signal);
        for (path, mut client) in clients {
            assert_eq!(closed(&mut client).await, Some(1001), "{path} {signal:?}");
        }
        assert!(app.end().await.success(), "{signal:?}");
    }
}

#[actix::test]
async fn sigterm_and_sigint_close_the_sockets_of_mounted_routes_those_in_no_room_too() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut app = Process::start("mount");
        let port = app.port().await;
        let (mut member, _) = connect(port, "/ws/lobby", "").await.unwrap();
        let phoenix = format!("ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0");
        let (mut nowhere, _) = timeout(SOON, connect_async(phoenix)).await.unwrap().unwrap();
        app.send(signal);
        assert_eq!(closed(&mut member).await, Some(1001), "{signal:?}");
        assert_eq!(closed(&mut nowhere).await, Some(1001), "{signal:?}");
        assert!(app.end().await.success(), "{signal:?}");
    }
}

#[actix::test]
async fn mounted_routes_answer_a_close_with_its_code() {
    let app = Process::start("mount");
    let (client, _) = connect(app.port().await, "/ws/lobby", "").await.unwrap();
    close(client).await;
}
