//! A WebSocket on actix-web-actors, whatever its dialect: what every session does alike.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_http::ws::{Codec, Item};
use actix_web::{
    Error, HttpRequest, HttpResponseBuilder, ResponseError,
    http::StatusCode,
    web::{self, Bytes},
};
use actix_web_actors::ws;
use futures_util::{
    Stream, StreamExt,
    future::{Either, select},
};
use tokio::sync::oneshot;

use super::{
    Connection,
    closing::Closing,
    guard::{Guard, Input, Refused},
    outgoing::{Outgoing, Writer},
    rate::Rate,
};
use crate::{
    messages::{
        Disconnect, ForwardMessage, JoinError, NotAMember, Publish, Say, SessionPlace,
        backlog_limit,
    },
    model::Cause,
};

/// Frames that may wait for a session before it counts as too slow.
const MAILBOX: usize = 256;
/// How long a peer may take to answer our close frame.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bounds and habits of a WebSocket session, whatever its dialect.
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::WsOptions;
///
/// let options = WsOptions::default().max_rate(50).ping_interval(Duration::from_secs(25));
/// ```
#[derive(Debug)]
pub struct WsOptions {
    max_frame_size: usize,
    max_rate: Option<u32>,
    ping_interval: Option<Duration>,
    place: Option<SessionPlace>,
}

impl Default for WsOptions {
    /// Messages of at most 64 KiB, and nothing else.
    fn default() -> Self {
        Self { max_frame_size: 65_536, max_rate: None, ping_interval: None, place: None }
    }
}

impl WsOptions {
    /// The largest message of the client, in bytes, fragments together. A larger one ends the
    /// session with 1009. Default 64 KiB.
    #[must_use]
    pub fn max_frame_size(self, bytes: usize) -> Self {
        Self { max_frame_size: bytes, ..self }
    }

    /// How many frames the client may send per second, and in one burst. One more ends the session
    /// with 1008. Default no limit.
    #[must_use]
    pub fn max_rate(self, frames: impl Into<Option<u32>>) -> Self {
        Self { max_rate: frames.into(), ..self }
    }

    /// How often to ping the client. A client library answers by itself, so this keeps a silent
    /// client present. Default never.
    #[must_use]
    pub fn ping_interval(self, interval: impl Into<Option<Duration>>) -> Self {
        Self { ping_interval: interval.into(), ..self }
    }

    /// A place among a limited number of sessions, given back when this one has ended: see [`SessionPlace`].
    #[must_use]
    pub fn place(self, place: impl Into<SessionPlace>) -> Self {
        Self { place: Some(place.into()), ..self }
    }

    /// Has the place kept while the session of this connection fades.
    pub(super) fn fading_with(self, me: &Connection) -> Self {
        let keep = |place: SessionPlace| place.kept_for(me.id(), me.registry().clone().recipient());
        Self { place: self.place.map(keep), ..self }
    }
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

impl ResponseError for WsSessionError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Handshake(_) => StatusCode::BAD_REQUEST,
            Self::Join(JoinError::ShuttingDown | JoinError::Withdrawn) | Self::Stopped => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Join(_) => StatusCode::FORBIDDEN,
        }
    }
}

/// The context of a session.
pub(super) type Ctx<P> = ws::WebsocketContext<Socket<P>>;

/// What a dialect makes of what happens to its socket.
pub(super) trait Protocol: Sized + Unpin + 'static {
    fn started(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>);
    /// A text frame; its touch is up to the dialect.
    fn text(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, text: &str);
    fn forward(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: ForwardMessage);
    fn disconnect(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: Disconnect);
}

/// The actor of a session.
#[derive(Debug)]
pub(super) struct Socket<P> {
    pub me: Connection,
    pub protocol: P,
    /// When the last frame came, of whatever kind.
    pub heard: Instant,
    pub outgoing: Outgoing,
    rate: Option<Box<Rate>>,
    ping_interval: Option<Duration>,
    input: Input,
    /// The fragments of a text so far.
    fragments: Vec<u8>,
    closing: bool,
    /// Given back after the connection has left.
    _place: Option<SessionPlace>,
}

/// Checks that the request is a WebSocket handshake, and begins the answer.
pub(super) fn handshake(
    req: &HttpRequest,
    protocols: &[&str],
) -> Result<HttpResponseBuilder, WsSessionError> {
    let response = ws::handshake_with_protocols(req, protocols);
    response.map_err(|error| WsSessionError::Handshake(error.to_string()))
}

/// Runs a session whose handshake is not answered yet, until it has answered something itself. Gives
/// also what it has sent by then.
pub(super) async fn run_until<S: Stream + Unpin, T>(
    session: &mut S,
    answer: oneshot::Receiver<T>,
) -> (Option<S::Item>, Result<T, oneshot::error::RecvError>) {
    match select(session.next(), answer).await {
        Either::Left((sent, answer)) => (sent, answer.await),
        Either::Right((answer, _)) => (None, answer),
    }
}

impl<P: Protocol> Socket<P> {
    /// A session that speaks this protocol: what it sends after the answer to the handshake. It
    /// starts when it is asked for that.
    pub fn start(
        req: &HttpRequest,
        payload: web::Payload,
        me: Connection,
        protocol: P,
        options: WsOptions,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Unpin + use<P> {
        let WsOptions { max_frame_size, max_rate, ping_interval, place: _place } = options;
        let (guarded, input) = Guard::new(payload, max_frame_size);
        let outgoing = Outgoing::new(input.clone());
        let me = me.watched(req).with_backlog_limit(backlog_limit(max_frame_size));
        let rate = max_rate.map(|frames| Box::new(Rate::new(frames, Instant::now())));
        let socket = me.socket;
        let session = Self {
            me,
            protocol,
            heard: Instant::now(),
            outgoing: outgoing.clone(),
            rate,
            ping_interval,
            input,
            fragments: Vec::new(),
            closing: false,
            _place,
        };
        let codec = Codec::new().max_size(max_frame_size);
        Writer::new(ws::WebsocketContext::with_codec(session, guarded, codec), outgoing, socket)
    }

    /// Ends the session from our side: leaves, says why, and waits for the peer's answer.
    pub fn close(&mut self, ctx: &mut Ctx<P>, closing: Closing) {
        if self.closing {
            return;
        }
        self.closing = true;
        closing.note(self.me.id());
        self.me.leave(closing.cause());
        if closing.cause() == Cause::SlowConsumer {
            // The peer would have to take all of it before it could read why it is put out.
            self.outgoing.clear();
        }
        self.outgoing.close(Some(closing.frame()));
        self.me.end_socket();
        ctx.run_later(FAREWELL, |_, ctx| ctx.stop());
    }

    /// Publishes what the client says, and does something with the answer. Its next frame waits for
    /// that, which is the back pressure.
    pub fn say(
        &mut self,
        ctx: &mut Ctx<P>,
        publish: Publish,
        then: impl FnOnce(&mut Self, Result<usize, NotAMember>) + 'static,
    ) {
        let said = self.me.registry().send(Say(publish.from(self.me.id())));
        ctx.wait(said.into_actor(self).map(|answer, socket, ctx| match answer {
            Ok(answer) => then(socket, answer),
            Err(_) => socket.lost(ctx),
        }));
    }

    /// The registry does not answer any more.
    pub fn lost(&mut self, ctx: &mut Ctx<P>) {
        self.close(ctx, Closing::RegistryStopped);
    }

    fn fragment(&mut self, ctx: &mut Ctx<P>, item: Item) {
        match item {
            Item::FirstText(bytes) | Item::Continue(bytes) => self.fragments.extend(bytes),
            Item::FirstBinary(_) => self.close(ctx, Closing::BinaryFrame),
            Item::Last(bytes) => {
                self.fragments.extend(bytes);
                match String::from_utf8(std::mem::take(&mut self.fragments)) {
                    Ok(text) => P::text(self, ctx, &text),
                    Err(_) => self.close(ctx, Closing::InvalidUtf8),
                }
            }
        }
    }

    /// The peer closes, or answers our close.
    fn closed(&mut self, ctx: &mut Ctx<P>, reason: Option<ws::CloseReason>) {
        if !self.closing {
            let code = reason.as_ref().map(|reason| u16::from(reason.code));
            if code.is_none_or(|code| code == 1000) {
                self.me.goodbye();
            }
            self.outgoing.close(reason.map(|reason| reason.code.into()));
        }
        ctx.stop();
    }

    /// The peer sent what is no frame. Whatever follows does not count, but for its close frame.
    fn broken(&mut self, ctx: &mut Ctx<P>, error: &ws::ProtocolError) {
        self.close(ctx, self.closing_for(error));
        self.input.skip_to_close();
    }

    /// What a broken frame is closed with.
    fn closing_for(&self, error: &ws::ProtocolError) -> Closing {
        match (self.input.refused(), error) {
            (Some(Refused::TooBig), _) => Closing::MessageTooBig,
            (Some(Refused::Malformed), _) => Closing::MalformedFrame,
            (None, ws::ProtocolError::Overflow) => Closing::MessageTooBig,
            // So come reserved bits, and text that is not UTF-8.
            (None, ws::ProtocolError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                Closing::MalformedFrame
            }
            (None, ws::ProtocolError::Io(_)) => Closing::InvalidUtf8,
            (None, _) => Closing::MalformedFrame,
        }
    }
}

impl<P: Protocol> Actor for Socket<P> {
    type Context = Ctx<P>;

    fn started(&mut self, ctx: &mut Ctx<P>) {
        ctx.set_mailbox_capacity(MAILBOX);
        if let Some(interval) = self.ping_interval {
            ctx.run_interval(interval, |socket, _| socket.outgoing.ping());
        }
        P::started(self, ctx);
    }

    fn stopped(&mut self, _: &mut Ctx<P>) {
        self.me.end_socket();
        if !self.outgoing.is_empty() {
            // It is dropped only when its client has taken that, which may be long.
            self.me.leave(self.me.cause);
        }
    }
}

impl<P: Protocol> Handler<ForwardMessage> for Socket<P> {
    type Result = ();

    fn handle(&mut self, msg: ForwardMessage, ctx: &mut Ctx<P>) {
        if !self.closing {
            P::forward(self, ctx, msg);
        }
    }
}

impl<P: Protocol> Handler<Disconnect> for Socket<P> {
    type Result = ();

    fn handle(&mut self, msg: Disconnect, ctx: &mut Ctx<P>) {
        if !self.closing {
            P::disconnect(self, ctx, msg);
        }
    }
}

impl<P: Protocol> StreamHandler<Result<ws::Message, ws::ProtocolError>> for Socket<P> {
    fn handle(&mut self, frame: Result<ws::Message, ws::ProtocolError>, ctx: &mut Ctx<P>) {
        self.input.handled();
        if frame.is_ok() {
            self.heard = Instant::now();
        }
        if let Ok(ws::Message::Close(reason)) = frame {
            return self.closed(ctx, reason);
        }
        if self.closing {
            if frame.is_err() {
                // A codec that does not get past a frame would fail again and again.
                ctx.stop();
            }
            return;
        }
        if self.rate.as_mut().is_some_and(|rate| !rate.take(Instant::now())) {
            return self.close(ctx, Closing::TooManyMessages);
        }
        match frame {
            Ok(ws::Message::Text(text)) => P::text(self, ctx, &text),
            Ok(ws::Message::Continuation(item)) => {
                self.me.touch_soon();
                self.fragment(ctx, item);
            }
            Ok(ws::Message::Binary(_)) => {
                self.me.touch_soon();
                self.close(ctx, Closing::BinaryFrame);
            }
            Ok(ws::Message::Ping(bytes)) => {
                self.me.touch_soon();
                self.outgoing.pong(bytes);
            }
            Ok(ws::Message::Pong(_)) => self.me.touch_soon(),
            Ok(ws::Message::Close(_) | ws::Message::Nop) => {}
            Err(error) => self.broken(ctx, &error),
        }
    }
}
