//! A WebSocket client that speaks the JSON dialect.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{Server, soon};

/// An open WebSocket. Dropping it ends the TCP connection without a word.
pub struct Ws {
    stream: WebSocketStream<TcpStream>,
}

impl Server {
    /// Opens a WebSocket, which must be let in.
    pub async fn ws(&self, path: &str) -> Ws {
        self.ws_with(path, &[]).await
    }

    pub async fn ws_with(&self, path: &str, headers: &[(&'static str, &str)]) -> Ws {
        self.ws_on(TcpSocket::new_v4().unwrap(), path, headers).await.unwrap()
    }

    /// Opens a WebSocket on a prepared socket.
    pub async fn ws_on(
        &self,
        socket: TcpSocket,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Ws, Error> {
        let mut request = format!("ws://{}{path}", self.address()).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let opening = async {
            let stream = socket.connect(self.address()).await?;
            let (stream, _) = client_async(request, stream).await?;
            Ok(Ws { stream })
        };
        soon("the handshake", opening).await
    }
}

impl Ws {
    pub async fn say(&mut self, message: Message) {
        soon("a sent frame", self.stream.send(message)).await.unwrap();
    }

    pub async fn text(&mut self, text: &str) {
        self.say(Message::text(text)).await;
    }

    pub async fn json(&mut self, value: Value) {
        self.text(&value.to_string()).await;
    }

    pub async fn message(&mut self, payload: impl Into<Value>) {
        self.json(json!({"type": "message", "payload": payload.into()})).await;
    }

    /// The next frame of any kind.
    pub async fn frame(&mut self) -> Option<Result<Message, Error>> {
        soon("a frame", self.stream.next()).await
    }

    /// The next text frame, which must be JSON; pings and pongs are passed over.
    pub async fn next(&mut self) -> Value {
        loop {
            match self.frame().await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("no text but {other:?}"),
            }
        }
    }

    /// The first frame that is as wanted.
    pub async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let frame = self.next().await;
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// The first frame of a type.
    pub async fn next_of(&mut self, kind: &str) -> Value {
        self.until(|frame| frame["type"] == kind).await
    }

    /// Waits for a list of exactly these users and so many anonymous.
    pub async fn sees(&mut self, users: &[&str], lurkers: usize) -> Value {
        let frame = self.until(|frame| {
            frame["type"] == "presence"
                && members(frame) == users
                && frame["payload"]["lurkers"] == lurkers
        });
        frame.await
    }

    /// The code and the reason of the server's close frame; other frames are passed over.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.frame().await {
                Some(Ok(Message::Close(Some(close)))) => {
                    return (close.code.into(), close.reason.to_string());
                }
                Some(Ok(Message::Close(None))) => return (1005, String::new()),
                Some(Ok(_)) => {}
                other => panic!("no close frame but {other:?}"),
            }
        }
    }

    /// Waits for the end of the TCP connection.
    pub async fn ended(&mut self) {
        while let Some(Ok(_)) = self.frame().await {}
    }

    /// Says goodbye with a code, or with none.
    pub async fn close(mut self, code: Option<u16>) {
        let frame = |code| CloseFrame { code: CloseCode::from(code), reason: "".into() };
        self.say(Message::Close(code.map(frame))).await;
        self.ended().await;
    }
}

/// The ids in a member list.
pub fn members(frame: &Value) -> Vec<&str> {
    let members = frame["payload"]["members"].as_array().unwrap();
    members.iter().map(|member| member["id"].as_str().unwrap()).collect()
}

/// What a diff says of the leave of a user.
pub fn leave_of<'a>(frame: &'a Value, user: &str) -> Option<&'a Value> {
    frame["payload"]["leaves"].as_array()?.iter().find(|leave| leave["id"] == user)
}

/// Waits until a witness with the diff dialect has seen the user come: who goes before that cancels
/// the arrival.
pub async fn arrival(witness: &mut Ws, user: &str) {
    let comes = |frame: &Value| {
        let joins = frame["payload"]["joins"].as_array();
        joins.is_some_and(|joins| joins.iter().any(|member| member["id"] == user))
    };
    witness.until(comes).await;
}

/// Waits until a witness with the diff dialect has seen the user go, and answers why.
pub async fn ending(witness: &mut Ws, user: &str) -> String {
    let frame = witness.until(|frame| leave_of(frame, user).is_some()).await;
    leave_of(&frame, user).unwrap()["cause"].as_str().unwrap().to_owned()
}
