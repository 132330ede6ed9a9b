//! The sessions of docs/embedding.md: they answer pings, and close with a frame that says why.

/// The session that is an actor.
mod chatter {
    include!("guide/chatter.rs");

    pub fn route() -> actix_web::Route {
        web::get().to(enter)
    }
}

/// The session that is a task on actix-ws.
mod chat {
    use actix_presence::PresenceClient;
    use actix_web::{HttpRequest, HttpResponse, Route, web};

    include!("guide/chat.rs");

    async fn enter(
        req: HttpRequest,
        body: web::Payload,
        room: web::Path<RoomName>,
        presence: PresenceClient,
    ) -> actix_web::Result<HttpResponse> {
        let (response, session, frames) = actix_ws::handle(&req, body)?;
        let me = Connection::new(presence.registry()).watched(&req);
        actix_web::rt::spawn(chat(me, room.into_inner(), session, frames));
        Ok(response)
    }

    pub fn route() -> Route {
        web::get().to(enter)
    }
}

use std::{fs, future::pending, path::Path};

use actix_presence::{
    Decision, PresenceConfig, PresenceHandle, RoomName, configure_tcp, watch_socket,
};
use actix_web::{App, HttpServer, dev::ServerHandle};
use futures_util::{SinkExt, StreamExt};
use tokio::{sync::mpsc, time::timeout};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::process::{Client, SOON};

/// A reason that has no space in a close frame.
const LONG: &str = "this room is for those who have been invited by one of its owners; ask in the lobby, where \
                    the owners of all rooms are most of the time, or write a mail to the address that is on the \
                    page of the room";

/// The server with both sessions.
struct Served {
    presence: PresenceHandle,
    port: u16,
    server: ServerHandle,
    /// The rooms for which the hook does not answer.
    asked: mpsc::UnboundedReceiver<RoomName>,
}

impl Served {
    fn start() -> Self {
        let (ask, asked) = mpsc::unbounded_channel();
        let presence = PresenceConfig::new("sqlite::memory:").authorize_async(move |join| {
            let ask = ask.clone();
            async move {
                match join.room.as_str() {
                    "invited" => Decision::deny(LONG),
                    "undecided" => {
                        ask.send(join.room).unwrap();
                        pending().await
                    }
                    _ => Decision::Allow,
                }
            }
        });
        let presence = presence.start().unwrap();
        let client = presence.client();
        let app = move || {
            App::new()
                .app_data(client.clone())
                .route("/chatter/{room}", chatter::route())
                .route("/chat/{room}", chat::route())
        };
        let server = HttpServer::new(app).workers(1).disable_signals().on_connect(|io, data| {
            configure_tcp(io);
            watch_socket(io, data);
        });
        let server = server.bind(("127.0.0.1", 0)).unwrap();
        let port = server.addrs()[0].port();
        let running = server.run();
        let server = running.handle();
        actix::spawn(running);
        Self { presence, port, server, asked }
    }

    async fn connect(&self, path: &str) -> Client {
        let connecting = connect_async(format!("ws://127.0.0.1:{}{path}", self.port));
        timeout(SOON, connecting).await.unwrap().unwrap().0
    }

    async fn stop(self) {
        self.presence.shutdown(SOON).await.unwrap();
        self.server.stop(true).await;
    }
}

async fn next(client: &mut Client) -> Message {
    let frame = timeout(SOON, client.next()).await.expect("a frame in time");
    frame.expect("a frame").expect("a frame")
}

/// The next frame but texts, which is the one that closes.
async fn closed(client: &mut Client) -> (u16, String) {
    loop {
        match next(client).await {
            Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.to_string()),
            Message::Text(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_sessions_of_the_guide_are_those_that_are_tested_here() {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
    let page = fs::read_to_string(Path::new(&root).join("docs/embedding.md")).unwrap();
    for session in [include_str!("guide/chatter.rs"), include_str!("guide/chat.rs")] {
        assert!(page.contains(&format!("```rust,no_run\n{session}```\n")), "{session}");
    }
}

#[actix::test]
async fn a_refused_join_closes_with_a_reason_that_can_be_read_however_long_it_is() {
    let app = Served::start();
    for kind in ["chatter", "chat"] {
        let (code, reason) = closed(&mut app.connect(&format!("/{kind}/invited")).await).await;
        assert_eq!(code, 1008, "{kind}");
        assert_eq!(reason, format!("not allowed: {LONG}")[..123], "{kind}");
    }
    app.stop().await;
}

#[actix::test]
async fn a_join_that_waits_when_the_server_stops_closes_with_1001() {
    let mut app = Served::start();
    let mut clients = Vec::new();
    for kind in ["chatter", "chat"] {
        clients.push((kind, app.connect(&format!("/{kind}/undecided")).await));
        timeout(SOON, app.asked.recv()).await.unwrap().unwrap();
    }
    app.presence.clone().shutdown(SOON).await.unwrap();
    for (kind, mut client) in clients {
        assert_eq!(closed(&mut client).await, (1001, "shutdown".to_owned()), "{kind}");
    }
    app.server.stop(true).await;
}

#[actix::test]
async fn the_sessions_of_the_guide_answer_pings_and_close_by_order_and_for_what_they_do_not_take() {
    let app = Served::start();
    for kind in ["chatter", "chat"] {
        let path = format!("/{kind}/lobby");
        let mut client = app.connect(&path).await;
        client.send(Message::Ping("are you there?".into())).await.unwrap();
        let pong = loop {
            match next(&mut client).await {
                Message::Text(_) => {}
                other => break other,
            }
        };
        assert_eq!(pong, Message::Pong("are you there?".into()), "{kind}");

        client.send(Message::text("hello")).await.unwrap();
        while next(&mut client).await != Message::text("hello") {}
        let lobby = RoomName::new("lobby").unwrap();
        app.presence.close_room(&lobby).await.unwrap();
        assert_eq!(closed(&mut client).await, (4004, "room_closed".to_owned()), "{kind}");

        let unfit =
            [(Message::binary("bytes"), 1003), (Message::text("x".repeat(64 * 1024 + 1)), 1009)];
        for (frame, code) in unfit {
            let mut client = app.connect(&path).await;
            client.send(frame).await.unwrap();
            assert_eq!(closed(&mut client).await.0, code, "{kind}");
        }
    }
    app.stop().await;
}
