//! [`WsSession`]: the ready-made session, JSON frames on actix-web-actors.

use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_http::ws::{Codec, Item};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws;

use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Connection,
    guard::{Guard, TooBig},
    rate::Rate,
};
use crate::{
    messages::{Admit, Dialect, Disconnect, Feed, ForwardMessage, JoinError, Publish, UpdateInfo},
    model::{Cause, Info, InvalidInfo, RoomName, UserId},
    registry::RoomRegistry,
    wire::json::{self, ClientFrame},
};

/// Frames that may wait for a session before it counts as too slow.
const MAILBOX: usize = 256;
/// How long a peer may take to answer our close frame.
const FAREWELL: Duration = Duration::from_secs(2);

/// A WebSocket session in one room that speaks the JSON frames of the server.
///
/// ```
/// use actix_presence::{Feed, RoomName, RoomRegistry, WsSession, WsSessionError};
/// use actix_web::{HttpRequest, HttpResponse, web};
///
/// async fn enter(
///     req: HttpRequest,
///     body: web::Payload,
///     registry: web::Data<actix::Addr<RoomRegistry>>,
/// ) -> Result<HttpResponse, WsSessionError> {
///     let room = RoomName::new("lobby").expect("a name within the limits");
///     WsSession::new(registry.get_ref().clone(), room).feed(Feed::Diff).start(&req, body).await
/// }
/// ```
#[derive(Debug)]
pub struct WsSession {
    me: Connection,
    room: RoomName,
    user: Option<UserId>,
    info: Info,
    /// Keys of the info that an update does not touch.
    fixed: Map<String, Value>,
    feed: Feed,
    max_frame_size: usize,
    rate: Option<Rate>,
    ping_interval: Option<Duration>,
    too_big: TooBig,
    /// The fragments of a text so far.
    fragments: Vec<u8>,
    closing: bool,
    _place: Option<OwnedSemaphorePermit>,
}

/// Why a session did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WsSessionError {
    /// The registry does not take it.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The request is no WebSocket handshake.
    #[error("a WebSocket handshake is needed: {0}")]
    Handshake(String),
    /// The registry has stopped.
    #[error("the registry has stopped")]
    Stopped,
}

impl WsSession {
    /// An anonymous session in the room, with the whole member list and no limits but the size of
    /// frames, 64 KiB.
    #[must_use]
    pub fn new(registry: Addr<RoomRegistry>, room: RoomName) -> Self {
        Self {
            me: Connection::new(registry),
            room,
            user: None,
            info: Info::EMPTY,
            fixed: Map::new(),
            feed: Feed::Full,
            max_frame_size: 65_536,
            rate: None,
            ping_interval: None,
            too_big: TooBig::default(),
            fragments: Vec::new(),
            closing: false,
            _place: None,
        }
    }

    /// Whose session it is; `None` is anonymous.
    #[must_use]
    pub fn user(self, user: Option<UserId>) -> Self {
        Self { user, ..self }
    }

    /// What to attach to the presence. The client may replace it.
    #[must_use]
    pub fn info(self, info: Info) -> Self {
        Self { info, ..self }
    }

    /// What to attach to the presence, of which the client cannot replace any key.
    #[must_use]
    pub fn fixed_info(self, info: Info) -> Self {
        let fixed = match info.to_value() {
            Value::Object(fixed) => fixed,
            _ => Map::new(),
        };
        Self { info, fixed, ..self }
    }

    /// How much the client hears about who is in the room.
    #[must_use]
    pub fn feed(self, feed: Feed) -> Self {
        Self { feed, ..self }
    }

    /// The largest message of the client, in bytes, fragments together. A larger one ends the
    /// session with 1009.
    #[must_use]
    pub fn max_frame_size(self, bytes: usize) -> Self {
        Self { max_frame_size: bytes, ..self }
    }

    /// How many frames the client may send per second, and in one burst. One more ends the session
    /// with 1008.
    #[must_use]
    pub fn max_rate(self, frames: u32) -> Self {
        Self { rate: Some(Rate::new(frames, Instant::now())), ..self }
    }

    /// How often to ping the client. A client library answers by itself, so this keeps a silent
    /// client present.
    #[must_use]
    pub fn ping_interval(self, interval: Duration) -> Self {
        Self { ping_interval: Some(interval), ..self }
    }

    /// A place among a limited number of sessions, given back when this one ends.
    #[must_use]
    pub fn place(self, place: OwnedSemaphorePermit) -> Self {
        Self { _place: Some(place), ..self }
    }

    /// Asks the registry, answers the handshake and starts the session.
    ///
    /// # Errors
    ///
    /// [`WsSessionError`]; the request can still be answered with a status.
    pub async fn start(
        mut self,
        req: &HttpRequest,
        payload: web::Payload,
    ) -> Result<HttpResponse, WsSessionError> {
        let handshake = ws::handshake(req).map_err(|e| WsSessionError::Handshake(e.to_string()));
        let mut response = handshake?;
        let (room, user, info) = (self.room.clone(), self.user.clone(), self.info.clone());
        let admitted = self.me.registry().send(Admit { room, user, info }).await;
        admitted.map_err(|_| WsSessionError::Stopped)??;

        let (guarded, too_big) = Guard::new(payload, self.max_frame_size);
        self.too_big = too_big;
        let codec = Codec::new().max_size(self.max_frame_size);
        Ok(response.streaming(ws::WebsocketContext::with_codec(self, guarded, codec)))
    }

    /// Ends the session from our side: leaves, says why, and waits for the peer's answer.
    fn close(&mut self, ctx: &mut ws::WebsocketContext<Self>, code: u16, cause: Cause) {
        if self.closing {
            return;
        }
        self.closing = true;
        self.me.leave(cause);
        let description = Some(cause.as_str().to_owned());
        ctx.close(Some(ws::CloseReason { code: code.into(), description }));
        ctx.run_later(FAREWELL, |_, ctx| ctx.stop());
    }

    fn error(&self, ctx: &mut ws::WebsocketContext<Self>, code: &str, message: &str) {
        ctx.text(json::error(code, message));
    }

    fn text(&mut self, ctx: &mut ws::WebsocketContext<Self>, text: &str) {
        let Some(text) = self.me.text(text) else { return };
        match json::read(text) {
            Ok(ClientFrame::Heartbeat) => {}
            Ok(ClientFrame::Message(payload)) => {
                let publish = Publish::json(self.room.clone(), payload).from(self.me.id());
                let published = self.me.registry().send(publish).into_actor(self);
                // The next frame is read when the registry has taken this one.
                ctx.wait(published.map(|answer, session, ctx| match answer {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => session.error(ctx, "not_a_member", &error.to_string()),
                    Err(_) => session.close(ctx, 1011, Cause::Disconnected),
                }));
            }
            Ok(ClientFrame::Update(info)) => self.update(ctx, info),
            Err(bad) => self.error(ctx, bad.code(), &bad.to_string()),
        }
    }

    fn update(&mut self, ctx: &mut ws::WebsocketContext<Self>, mut info: Map<String, Value>) {
        info.extend(self.fixed.clone());
        let info = match Info::from_map(&info) {
            Ok(info) => info,
            Err(error @ InvalidInfo::TooLarge { .. }) => {
                return self.error(ctx, "info_too_large", &error.to_string());
            }
            Err(error) => return self.error(ctx, "bad_frame", &error.to_string()),
        };
        let (room, connection) = (self.room.clone(), self.me.id());
        let update = self.me.registry().send(UpdateInfo { room, connection, info });
        ctx.wait(update.into_actor(self).map(|answer, session, ctx| {
            if answer.is_err() {
                session.close(ctx, 1011, Cause::Disconnected);
            }
        }));
    }

    fn fragment(&mut self, ctx: &mut ws::WebsocketContext<Self>, item: Item) {
        match item {
            Item::FirstText(bytes) | Item::Continue(bytes) => self.fragments.extend(bytes),
            Item::FirstBinary(_) => self.close(ctx, 1003, Cause::Disconnected),
            Item::Last(bytes) => {
                self.fragments.extend(bytes);
                match String::from_utf8(std::mem::take(&mut self.fragments)) {
                    Ok(text) => self.text(ctx, &text),
                    Err(_) => self.close(ctx, 1007, Cause::Disconnected),
                }
            }
        }
    }
}

impl Actor for WsSession {
    type Context = ws::WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        if let Some(interval) = self.ping_interval {
            ctx.run_interval(interval, |_, ctx| ctx.ping(b""));
        }
        let join = self.me.join(self.room.clone(), ctx.address());
        let join = join.user(self.user.clone()).info(self.info.clone());
        let join = join.dialect(Dialect::Json(self.feed));
        // No frame is read before the registry knows us.
        ctx.wait(self.me.registry().send(join).into_actor(self).map(|answer, session, ctx| {
            match answer {
                Ok(Ok(_)) => {}
                Ok(Err(JoinError::ShuttingDown)) => session.close(ctx, 1001, Cause::Shutdown),
                Ok(Err(error)) => {
                    session.error(ctx, "join_refused", &error.to_string());
                    session.close(ctx, 1008, Cause::Kicked);
                }
                Err(_) => session.close(ctx, 1011, Cause::Disconnected),
            }
        }));
    }
}

impl Handler<ForwardMessage> for WsSession {
    type Result = ();

    fn handle(&mut self, msg: ForwardMessage, ctx: &mut Self::Context) {
        if !self.closing {
            ctx.text(msg.payload);
        }
    }
}

impl Handler<Disconnect> for WsSession {
    type Result = ();

    fn handle(&mut self, msg: Disconnect, ctx: &mut Self::Context) {
        self.close(ctx, msg.code, msg.cause);
    }
}

impl StreamHandler<Result<ws::Message, ws::ProtocolError>> for WsSession {
    fn handle(&mut self, frame: Result<ws::Message, ws::ProtocolError>, ctx: &mut Self::Context) {
        if let Ok(ws::Message::Close(reason)) = frame {
            return self.closed(ctx, reason);
        }
        if self.closing {
            return;
        }
        if self.rate.as_mut().is_some_and(|rate| !rate.take(Instant::now())) {
            return self.close(ctx, 1008, Cause::Kicked);
        }
        match frame {
            Ok(ws::Message::Text(text)) => self.text(ctx, &text),
            Ok(ws::Message::Continuation(item)) => {
                self.me.touch();
                self.fragment(ctx, item);
            }
            Ok(ws::Message::Binary(_)) => {
                self.me.touch();
                self.close(ctx, 1003, Cause::Disconnected);
            }
            Ok(ws::Message::Ping(bytes)) => {
                self.me.touch();
                ctx.pong(&bytes);
            }
            Ok(ws::Message::Pong(_)) => self.me.touch(),
            Ok(ws::Message::Close(_) | ws::Message::Nop) => {}
            Err(error) => self.close(ctx, self.code_of(&error), Cause::Disconnected),
        }
    }
}

impl WsSession {
    /// The peer closes, or answers our close.
    fn closed(&mut self, ctx: &mut ws::WebsocketContext<Self>, reason: Option<ws::CloseReason>) {
        if !self.closing {
            let code = reason.as_ref().map(|reason| u16::from(reason.code));
            if code.is_none_or(|code| code == 1000) {
                self.me.goodbye();
            }
            ctx.close(reason.map(|reason| reason.code.into()));
        }
        ctx.stop();
    }

    /// The close code for a broken frame (RFC 6455, section 7.4.1).
    fn code_of(&self, error: &ws::ProtocolError) -> u16 {
        match error {
            ws::ProtocolError::Overflow => 1009,
            _ if self.too_big.get() => 1009,
            // Text that is not UTF-8 comes as an I/O error; of a real one nobody is left to hear.
            ws::ProtocolError::Io(_) => 1007,
            _ => 1002,
        }
    }
}
