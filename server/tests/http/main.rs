//! The HTTP routes, in process.

use actix::prelude::*;
use actix_presence::{
    Cause, ConnectionId, Decision, Info, Join, LeaveAll, PresenceConfig, PresenceHandle, RoomName,
    UserId,
    testing::{Heard, ManualClock, Probe, Seen},
};
use actix_web::{
    App,
    body::MessageBody,
    dev::{Service, ServiceResponse},
    http::{Method, StatusCode, header},
    test::{TestRequest, call_service, init_service, read_body},
    web,
};
use jsonwebtoken::{EncodingKey, Header, get_current_timestamp};
use presence_server::{Metrics, Secret, ServerOptions, ServerState, configure};
use serde_json::{Value, json};

/// A request from this machine to this machine.
fn request(method: Method, path: &str) -> TestRequest {
    let peer = "127.0.0.1:5000".parse().unwrap();
    TestRequest::with_uri(path).method(method).peer_addr(peer).insert_header(("host", "localhost"))
}

fn get(path: &str) -> TestRequest {
    request(Method::GET, path)
}

struct Answer {
    status: StatusCode,
    headers: header::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The status and the code of an error, which must have a message.
    #[track_caller]
    fn refusal(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        (self.status.as_u16(), error["code"].as_str().unwrap().to_owned())
    }
}

async fn send<S, B, E>(app: &S, request: TestRequest) -> Answer
where
    S: Service<actix_http::Request, Response = ServiceResponse<B>, Error = E>,
    B: MessageBody,
    E: std::fmt::Debug,
{
    let response = call_service(app, request.to_request()).await;
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, body: read_body(response).await.to_vec() }
}

macro_rules! app {
    ($presence:expr, $options:expr) => {{
        let state = ServerState::new(&$presence, $options);
        init_service(App::new().configure(configure(state))).await
    }};
    ($presence:expr) => {
        app!($presence, ServerOptions::default())
    };
}

fn start() -> PresenceHandle {
    PresenceConfig::new("sqlite::memory:").node("here").start().unwrap()
}

fn options() -> ServerOptions {
    ServerOptions::default()
}

fn secret(text: &str) -> Secret {
    Secret::new(text).unwrap()
}

/// A connection in a room, as long as this lives.
struct Member {
    id: ConnectionId,
    probe: Addr<Probe<Heard>>,
    seen: Seen<Heard>,
}

async fn join(presence: &PresenceHandle, room: &str, user: Option<&str>) -> Member {
    join_with(presence, room, user, json!({})).await
}

async fn join_with(
    presence: &PresenceHandle,
    room: &str,
    user: Option<&str>,
    info: Value,
) -> Member {
    let (probe, seen) = Probe::<Heard>::new();
    let id = ConnectionId::new();
    let room = RoomName::new(room).unwrap();
    let mut join = Join::new(room, id, probe.clone().recipient())
        .disconnect(probe.clone().recipient())
        .info(Info::new(info).unwrap());
    join.user = user.map(|user| UserId::new(user).unwrap());
    presence.registry().send(join).await.unwrap().unwrap();
    Member { id, probe, seen }
}

fn token(claims: &Value, secret: &str) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(secret.as_bytes()))
        .unwrap()
}

mod access;
mod crashes;
mod embedded;
mod health;
mod joining;
mod pages;
mod rest;
mod rights;
mod sockets;
