//! Members with fewer rights, on real sockets.

use std::net::TcpListener;

use actix_presence::{Decision, PresenceConfig, Rights};
use actix_web::{App, HttpServer};
use futures_util::{SinkExt, StreamExt};
use presence_server::{ServerOptions, ServerState, configure};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message},
};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn next(socket: &mut Socket) -> Value {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("no text but {other:?}"),
        }
    }
}

/// The next frame that satisfies the condition.
async fn until(socket: &mut Socket, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let frame = next(socket).await;
        if wanted(&frame) {
            return frame;
        }
    }
}

async fn say(socket: &mut Socket, frame: Value) {
    socket.send(Message::text(frame.to_string())).await.unwrap();
}

#[actix::test]
async fn who_may_not_publish_is_told_so_and_who_may_not_see_members_gets_counts() {
    let presence = PresenceConfig::new("sqlite::memory:")
        .authorize_async(|join| async move {
            let user = join.user.as_ref().map_or("", |user| user.as_str());
            Decision::Grant(match user {
                "eve" => Rights::NONE,
                "reader" => Rights { publish: false, ..Rights::ALL },
                "audience" => Rights { publish: false, members: false, ..Rights::ALL },
                _ => Rights::ALL,
            })
        })
        .start()
        .unwrap();
    let state = ServerState::new(
        &presence,
        ServerOptions { believe_query: true, ..ServerOptions::default() },
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = HttpServer::new(move || App::new().configure(configure(state.clone())))
        .workers(1)
        .listen(listener)
        .unwrap()
        .run();
    let stop = server.handle();
    let serving = actix::spawn(server);
    let open = |path: String| connect_async(format!("ws://{address}{path}"));
    let message = json!({"type": "message", "payload": "hi"});

    match open("/ws/lobby?user=eve".into()).await {
        Err(Error::Http(refused)) => assert_eq!(refused.status(), 403),
        other => panic!("{other:?}"),
    }
    let (mut reader, _) = open("/ws/lobby?user=reader".into()).await.unwrap();
    assert_eq!(next(&mut reader).await["type"], "presence");
    say(&mut reader, message.clone()).await;
    assert_eq!(next(&mut reader).await["payload"]["code"], "not_allowed");
    say(&mut reader, json!({"type": "update", "info": {"status": "away"}})).await;
    let list = until(&mut reader, |frame| frame["type"] == "presence").await;
    assert_eq!(list["payload"]["members"][0]["info"]["status"], "away");

    let (mut audience, _) = open("/ws/lobby?user=audience&presence=diff".into()).await.unwrap();
    let count = next(&mut audience).await;
    assert_eq!((&count["type"], &count["payload"]["users"]), (&json!("presence_count"), &json!(2)));

    let phoenix = "/socket/websocket?vsn=2.0.0&user=";
    let (mut denied, _) = open(format!("{phoenix}eve")).await.unwrap();
    say(&mut denied, json!(["1", "1", "lobby", "phx_join", {}])).await;
    let reply = until(&mut denied, |frame| frame[3] == "phx_reply").await;
    assert_eq!(reply[4], json!({"response": {"reason": "unauthorized"}, "status": "error"}));

    let (mut client, _) = open(format!("{phoenix}audience")).await.unwrap();
    say(&mut client, json!(["1", "1", "lobby", "phx_join", {}])).await;
    let reply = until(&mut client, |frame| frame[3] == "phx_reply").await;
    assert_eq!(reply[4]["status"], "ok");
    assert_eq!(next(&mut client).await, json!(["1", null, "lobby", "presence_state", {}]));
    let count = next(&mut client).await;
    assert_eq!(count[3], "presence_count");
    let keys: Vec<_> = count[4].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["lurkers", "users", "version"]);
    say(&mut client, json!(["1", "2", "lobby", "shout", {}])).await;
    let reply = until(&mut client, |frame| frame[1] == "2").await;
    assert_eq!(reply[0], "1");
    assert_eq!(reply[4], json!({"response": {"reason": "unauthorized"}, "status": "error"}));

    let (mut ada, _) = open("/ws/lobby?user=ada".into()).await.unwrap();
    say(&mut ada, message).await;
    for socket in [&mut reader, &mut audience] {
        let heard = until(socket, |frame| frame["type"] == "message").await;
        assert_eq!(heard["payload"], "hi");
    }
    assert_eq!(until(&mut client, |frame| frame[3] == "message").await[4]["payload"], "hi");
    presence.shutdown(std::time::Duration::from_secs(5)).await.unwrap();
    stop.stop(false).await;
    serving.await.unwrap().unwrap();
}
