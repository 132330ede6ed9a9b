//! A server on a port of its own, and clients of its WebSockets.

use std::{net::TcpListener, time::Duration};

use actix_presence::PresenceHandle;
use actix_web::{App, HttpServer, dev::ServerHandle};
use futures_util::{SinkExt, StreamExt};
use presence_server::{ServerOptions, ServerState, configure};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, protocol::CloseFrame},
};

/// Serves the routes, and believes who a client says it is. Answers the URL.
pub fn serve(presence: &PresenceHandle) -> (String, ServerHandle) {
    let options = ServerOptions { believe_query: true, ..ServerOptions::default() };
    let state = ServerState::new(presence, options);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let server = HttpServer::new(move || App::new().configure(configure(state.clone())))
        .workers(1)
        .disable_signals()
        .listen(listener)
        .unwrap()
        .run();
    let handle = server.handle();
    actix::spawn(server);
    (url, handle)
}

/// A client of a WebSocket.
pub struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    pub async fn open(url: &str) -> Self {
        Self(connect_async(url).await.unwrap().0)
    }

    pub async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame, or the close frame, which has to come within ten seconds.
    pub async fn next(&mut self) -> Result<Value, Option<CloseFrame>> {
        loop {
            let next = timeout(Duration::from_secs(10), self.0.next());
            match next.await.expect("a frame within ten seconds").unwrap().unwrap() {
                Message::Text(text) => return Ok(serde_json::from_str(&text).unwrap()),
                Message::Close(frame) => return Err(frame),
                _ => {}
            }
        }
    }

    /// The frames up to the next one that satisfies the condition, that one too; diffs are left out, as some
    /// come later than others.
    pub async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await.unwrap();
            let is_last = wanted(&frame);
            if frame[3] != "presence_diff" {
                frames.push(frame);
            }
            if is_last {
                return frames;
            }
        }
    }

    /// All frames that the server has sent to what it has read so far.
    pub async fn heard(&mut self) -> Vec<Value> {
        self.say(json!([null, "until", "phoenix", "heartbeat", {}])).await;
        let mut frames = self.until(|frame| frame[1] == "until").await;
        frames.pop();
        frames
    }

    /// Waits until the connection has ended in order, as after both close frames.
    pub async fn ended(&mut self) {
        let end = self.0.next().await;
        assert!(matches!(end, None | Some(Err(Error::ConnectionClosed))), "{end:?}");
    }
}
