//! The examples do what they say: those that end by themselves run here, those that serve are talked
//! to over real sockets.

#[path = "../../examples/actix_ws.rs"]
mod chat_on_actix_ws;
#[path = "../../examples/django_tour.rs"]
mod django_tour;
#[path = "../../examples/embed.rs"]
mod embed;
#[path = "../../examples/observer.rs"]
mod observer;
#[path = "../../examples/webhook.rs"]
mod webhook;

mod process;
mod sessions;
mod signals;

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::oneshot, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

const SOON: Duration = Duration::from_secs(10);

#[actix::test]
async fn the_tour_gets_the_answers_it_prints() {
    timeout(SOON * 3, django_tour::tour()).await.unwrap().unwrap();
}

#[actix::test]
async fn the_board_follows_and_catches_up() {
    timeout(SOON * 3, observer::watch_a_room()).await.unwrap().unwrap();
}

#[actix::test]
async fn the_webhook_is_told_everything_in_order_and_the_shutdown_too() {
    let events = timeout(SOON * 3, webhook::call_a_webhook()).await.unwrap().unwrap();
    let told: Vec<_> =
        events.iter().map(|event| [&event["room"], &event["online"], &event["offline"]]).collect();
    let gone = |user| json!([{ "user": user, "cause": "shutdown" }]);
    assert_eq!(
        told[..2],
        [
            [&json!("team:red"), &json!(["ada"]), &json!([])],
            [&json!("team:blue"), &json!(["bob"]), &json!([])],
        ]
    );
    assert_eq!(told.len(), 4);
    assert!(told.contains(&[&json!("team:red"), &json!([]), &gone("ada")]), "{told:?}");
    assert!(told.contains(&[&json!("team:blue"), &json!([]), &gone("bob")]), "{told:?}");
}

#[actix::test]
async fn an_embedded_session_joins_chats_lives_and_leaves() {
    let app = app!(embed);
    let mut ada = Client::connect(app.addr, "/ws/lobby?name=ada").await;
    assert_eq!(ada.text().await, "* in lobby: ada, and 0 guests");
    assert_eq!(ada.text().await, "* ada is here");
    let mut guest = Client::connect(app.addr, "/ws/lobby").await;
    assert_eq!(guest.text().await, "* in lobby: ada, and 1 guests");
    let mut bob = Client::connect(app.addr, "/ws/lobby?name=bob").await;
    assert_eq!(bob.text().await, "* in lobby: ada, bob, and 1 guests");
    for client in [&mut ada, &mut bob, &mut guest] {
        assert_eq!(client.text().await, "* bob is here");
    }

    bob.say("\"heartbeat\"").await;
    bob.say("hello").await;
    for client in [&mut ada, &mut bob, &mut guest] {
        assert_eq!(client.text().await, "bob: hello", "and nothing of the heartbeat");
    }

    bob.0.close(None).await.unwrap();
    assert_eq!(ada.text().await, "* bob left");
    drop(ada);
    assert_eq!(guest.text().await, "* bob left");
    assert_eq!(guest.text().await, "* ada disconnected");

    app.stop.send(()).unwrap();
    assert_eq!(guest.closed().await, 1001);
    timeout(SOON, app.ended).await.unwrap().unwrap();
}

#[actix::test]
async fn a_session_on_actix_ws_joins_chats_lives_and_leaves() {
    let app = app!(chat_on_actix_ws);
    let mut ada = Client::connect(app.addr, "/ws/lobby?name=ada").await;
    ada.members(&["ada"], 0).await;
    let mut guest = Client::connect(app.addr, "/ws/lobby").await;
    guest.members(&["ada"], 1).await;
    let mut bob = Client::connect(app.addr, "/ws/lobby?name=bob").await;
    for client in [&mut ada, &mut bob, &mut guest] {
        client.members(&["ada", "bob"], 1).await;
    }

    bob.say("\"heartbeat\"").await;
    bob.say("hello").await;
    for client in [&mut ada, &mut bob, &mut guest] {
        let frame = client.json().await;
        assert_eq!(frame["payload"], "hello", "and nothing of the heartbeat");
        assert_eq!(frame["from"]["id"], "bob");
    }

    bob.0.close(None).await.unwrap();
    ada.members(&["ada"], 1).await;
    drop(ada);
    guest.members(&[], 1).await;

    app.stop.send(()).unwrap();
    assert_eq!(guest.closed().await, 1001);
    timeout(SOON, app.ended).await.unwrap().unwrap();
}

#[actix::test]
async fn each_example_answers_a_close_with_its_code() {
    for (name, app) in [("embed", app!(embed)), ("actix_ws", app!(chat_on_actix_ws))] {
        let mut client = Client::connect(app.addr, "/ws/lobby").await;
        let bye = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
        client.0.send(Message::Close(Some(bye))).await.unwrap();
        assert_eq!(client.closed().await, 1000, "{name}");
        app.stop.send(()).unwrap();
        timeout(SOON, app.ended).await.unwrap().unwrap();
    }
}

#[actix::test]
async fn a_name_that_is_none_is_refused_before_the_handshake() {
    let app = app!(embed);
    for (path, status) in [("/ws/lobby?name=__proto__", 400), ("/ws/a%00b", 404)] {
        let refused = connect_async(format!("ws://{}{path}", app.addr)).await.unwrap_err();
        let tokio_tungstenite::tungstenite::Error::Http(answer) = refused else {
            panic!("{refused}")
        };
        assert_eq!(answer.status(), status, "{path}");
    }
}

/// An example's app, served on a port of its own.
struct Served {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

macro_rules! app {
    ($example:ident) => {{
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let ended = actix::spawn(async move {
            $example::serve(listener, async { drop(stopped.await) }).await.unwrap();
        });
        Served { addr, stop, ended }
    }};
}
use app;

/// A WebSocket client.
struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn connect(addr: SocketAddr, path: &str) -> Self {
        let connecting = connect_async(format!("ws://{addr}{path}"));
        Self(timeout(SOON, connecting).await.unwrap().unwrap().0)
    }

    async fn say(&mut self, text: &'static str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn next(&mut self) -> Message {
        timeout(SOON, self.0.next()).await.expect("a frame in time").expect("a frame").unwrap()
    }

    async fn text(&mut self) -> String {
        self.next().await.into_text().unwrap().to_string()
    }

    async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// Waits for the member list with these users and so many guests; older lists are passed over.
    async fn members(&mut self, users: &[&str], lurkers: usize) {
        loop {
            let frame = self.json().await;
            assert_eq!(frame["type"], "presence");
            let payload = &frame["payload"];
            let members = payload["members"].as_array().unwrap();
            let ids: Vec<_> = members.iter().map(|member| &member["id"]).collect();
            if json!(ids) == json!(users) && payload["lurkers"] == lurkers {
                return;
            }
        }
    }

    /// The code with which the server closes.
    async fn closed(&mut self) -> u16 {
        loop {
            if let Message::Close(reason) = self.next().await {
                return reason.expect("a reason").code.into();
            }
        }
    }
}
