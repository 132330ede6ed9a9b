//! The actor of a WebSocket session, on actix-web-actors, for all dialects; and why the server closes one.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_http::ws::{CloseReason, Codec, Item};
use actix_web::{
    Error, HttpRequest, HttpResponseBuilder,
    web::{self, Bytes},
};
use actix_web_actors::ws;
use futures_util::{
    Stream, StreamExt,
    future::{Either, select},
};
use tokio::sync::oneshot;

use super::{
    Connection, SESSION_MAILBOX_CAPACITY,
    guard::{FrameError, FrameGuard, Input},
    options::{RateLimit, WsOptions, WsSessionError},
    write_queue::{SessionBody, WriteQueue},
};
use crate::{
    log_limit::LogLimit,
    messages::{
        Disconnect, ForwardMessage, Publish, PublishError, SessionPlace, SessionPublish,
        backlog_limit,
    },
    model::{Cause, ConnectionId},
};

/// How long a peer may take to answer our close frame.
const CLOSE_FRAME_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) type Ctx<P> = ws::WebsocketContext<Socket<P>>;

/// What a dialect does when something happens to its session.
pub(super) trait Protocol: Sized + Unpin + 'static {
    fn started(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>);
    /// Handles a text frame, touch included.
    fn text(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, text: &str);
    fn forward(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: ForwardMessage);
    fn disconnect(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: Disconnect);
    /// Drops what waits: the session handles no more frames.
    fn closing(_: &mut Socket<Self>) {}
}

#[derive(Debug)]
pub(super) struct Socket<P> {
    pub me: Connection,
    pub protocol: P,
    /// When the last frame of the client came.
    pub last_frame: Instant,
    pub outgoing: WriteQueue,
    rate: Option<Box<RateLimit>>,
    ping_interval: Option<Duration>,
    pub input: Input,
    fragments: Vec<u8>,
    closing: bool,
    /// Released after the connection has left.
    _place: Option<SessionPlace>,
}

/// Why the server closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// The registry has told the session to close.
    Ordered(Disconnect),
    /// A message is too large.
    MessageTooBig,
    /// The client has exceeded the rate limit.
    TooManyMessages,
    /// Only text frames are accepted.
    BinaryFrame,
    /// A text is not UTF-8.
    InvalidUtf8,
    /// A frame is malformed.
    MalformedFrame,
    /// A text is no Phoenix message.
    MalformedMessage,
    /// A client in no room was silent for too long.
    Silent,
    /// The registry does not answer any more.
    RegistryStopped,
}

impl Closing {
    /// The close code (RFC 6455, section 7.4.1, and the codes of [`close_code`](crate::close_code)).
    fn code(self) -> u16 {
        match self {
            Self::Ordered(order) => order.code,
            Self::MessageTooBig => 1009,
            Self::TooManyMessages => 1008,
            Self::BinaryFrame => 1003,
            Self::InvalidUtf8 | Self::MalformedMessage => 1007,
            Self::MalformedFrame => 1002,
            Self::Silent => 1001,
            Self::RegistryStopped => 1011,
        }
    }

    /// The reason in the close frame.
    fn text(self) -> &'static str {
        match self {
            Self::Ordered(order) => order.reason(),
            Self::MessageTooBig => "message too big",
            Self::TooManyMessages => "too many messages",
            Self::BinaryFrame => "binary frames are not taken",
            Self::InvalidUtf8 => "text is not UTF-8",
            Self::MalformedFrame => "malformed frame",
            Self::MalformedMessage => "malformed message",
            Self::Silent => "silent for too long",
            Self::RegistryStopped => "internal error",
        }
    }

    /// The cause with which the connection leaves its rooms.
    fn cause(self) -> Cause {
        match self {
            Self::Ordered(order) => order.cause,
            Self::TooManyMessages => Cause::Kicked,
            Self::Silent => Cause::Expired,
            _ => Cause::Disconnected,
        }
    }

    fn frame(self) -> CloseReason {
        CloseReason { code: self.code().into(), description: Some(self.text().to_owned()) }
    }

    /// Counts it, and warns if a client has met a limit.
    fn record(self, connection: ConnectionId) {
        static MESSAGE_TOO_BIG: LogLimit = LogLimit::new();
        static TOO_MANY_MESSAGES: LogLimit = LogLimit::new();
        metrics::counter!("presence_sockets_closed_total", "reason" => self.text()).increment(1);
        let (limit, option) = match self {
            Self::MessageTooBig => (&MESSAGE_TOO_BIG, "--max-frame-size"),
            Self::TooManyMessages => (&TOO_MANY_MESSAGES, "--max-rate"),
            _ => {
                tracing::debug!(%connection, code = self.code(), reason = self.text(), "closing a socket");
                return;
            }
        };
        if let Some(suppressed) = limit.pass() {
            let reason = self.text();
            tracing::warn!(%connection, reason, option, suppressed, "closing a socket: {reason} ({option})");
        }
    }
}

/// Checks that the request is a WebSocket handshake, and begins the answer.
pub(super) fn handshake(
    req: &HttpRequest,
    protocols: &[&str],
) -> Result<HttpResponseBuilder, WsSessionError> {
    let response = ws::handshake_with_protocols(req, protocols);
    response.map_err(|error| WsSessionError::Handshake(error.to_string()))
}

/// Runs a session whose handshake is not answered yet, until it sends an answer on the channel. Returns also
/// what it has written by then.
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
    /// A session that speaks this protocol, as the body of its response. It starts when that is polled.
    pub fn start(
        req: &HttpRequest,
        payload: web::Payload,
        me: Connection,
        protocol: P,
        options: WsOptions,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Unpin + use<P> {
        let WsOptions { max_frame_size, max_rate, ping_interval, place: _place } = options;
        let (guarded, input) = FrameGuard::new(payload, max_frame_size);
        let outgoing = WriteQueue::new(input.clone());
        let me = me.watched(req).with_backlog_limit(backlog_limit(max_frame_size));
        let rate = max_rate.map(|frames| Box::new(RateLimit::new(frames, Instant::now())));
        let socket = me.socket;
        let session = Self {
            me,
            protocol,
            last_frame: Instant::now(),
            outgoing: outgoing.clone(),
            rate,
            ping_interval,
            input,
            fragments: Vec::new(),
            closing: false,
            _place,
        };
        let codec = Codec::new().max_size(max_frame_size);
        SessionBody::new(
            ws::WebsocketContext::with_codec(session, guarded, codec),
            outgoing,
            socket,
        )
    }

    /// Closes the session from our side: leaves, sends the close frame, and waits for the peer's.
    pub fn close(&mut self, ctx: &mut Ctx<P>, closing: Closing) {
        if self.closing {
            return;
        }
        self.closing = true;
        P::closing(self);
        closing.record(self.me.id());
        self.me.leave(closing.cause());
        if closing.cause() == Cause::SlowConsumer {
            // Otherwise the peer would have to read all of it before the close frame.
            self.outgoing.clear();
        }
        self.outgoing.close(Some(closing.frame()));
        self.me.end_socket();
        ctx.run_later(CLOSE_FRAME_TIMEOUT, |_, ctx| ctx.stop());
    }

    /// Whether the close frame was sent: nothing may follow it.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Publishes a message of the client. Its next frame waits for the answer, which is the backpressure.
    pub fn publish(
        &mut self,
        ctx: &mut Ctx<P>,
        publish: Publish,
        then: impl FnOnce(&mut Self, Result<usize, PublishError>) + 'static,
    ) {
        let published = self.me.registry().send(SessionPublish(publish.sent_by(self.me.id())));
        ctx.wait(published.into_actor(self).map(|answer, socket, ctx| match answer {
            Ok(answer) => then(socket, answer),
            Err(_) => socket.registry_stopped(ctx),
        }));
    }

    /// Closes, as the registry does not answer any more.
    pub fn registry_stopped(&mut self, ctx: &mut Ctx<P>) {
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

    fn closed(&mut self, ctx: &mut Ctx<P>, reason: Option<CloseReason>) {
        if !self.closing {
            self.me.closed_by_client(reason.as_ref());
            self.outgoing.close(reason.map(|reason| reason.code.into()));
        }
        ctx.stop();
    }

    /// Closes after a malformed frame, and skips everything up to the peer's close frame.
    fn protocol_error(&mut self, ctx: &mut Ctx<P>, error: &ws::ProtocolError) {
        let closing = match (self.input.error(), error) {
            (Some(FrameError::TooBig), _) => Closing::MessageTooBig,
            (Some(FrameError::Malformed), _) => Closing::MalformedFrame,
            (None, ws::ProtocolError::Overflow) => Closing::MessageTooBig,
            // The codec's error for reserved bits; other I/O errors are text that is not UTF-8.
            (None, ws::ProtocolError::Io(error)) if error.kind() == ErrorKind::InvalidData => {
                Closing::MalformedFrame
            }
            (None, ws::ProtocolError::Io(_)) => Closing::InvalidUtf8,
            (None, _) => Closing::MalformedFrame,
        };
        self.close(ctx, closing);
        self.input.skip_to_close();
    }
}

impl<P: Protocol> Actor for Socket<P> {
    type Context = Ctx<P>;

    fn started(&mut self, ctx: &mut Ctx<P>) {
        ctx.set_mailbox_capacity(SESSION_MAILBOX_CAPACITY);
        if let Some(interval) = self.ping_interval {
            ctx.run_interval(interval, |socket, _| socket.outgoing.ping());
        }
        P::started(self, ctx);
    }

    fn stopped(&mut self, _: &mut Ctx<P>) {
        self.me.end_socket();
        if !self.outgoing.is_empty() {
            // `Connection` is dropped only when the client has read all of it, which may take long.
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
            self.last_frame = Instant::now();
        }
        if let Ok(ws::Message::Close(reason)) = frame {
            return self.closed(ctx, reason);
        }
        if self.closing {
            if frame.is_err() {
                // The codec would fail at this frame again and again.
                ctx.stop();
            }
            return;
        }
        if !self.me.registry().connected() {
            return self.registry_stopped(ctx);
        }
        if self.rate.as_mut().is_some_and(|rate| !rate.take(Instant::now())) {
            return self.close(ctx, Closing::TooManyMessages);
        }
        match frame {
            Ok(ws::Message::Text(text)) => P::text(self, ctx, &text),
            Ok(ws::Message::Continuation(item)) => {
                self.me.batched_touch();
                self.fragment(ctx, item);
            }
            Ok(ws::Message::Binary(_)) => {
                self.me.batched_touch();
                self.close(ctx, Closing::BinaryFrame);
            }
            Ok(ws::Message::Ping(bytes)) => {
                self.me.batched_touch();
                self.outgoing.pong(bytes);
            }
            Ok(ws::Message::Pong(_)) => self.me.batched_touch(),
            Ok(ws::Message::Close(_) | ws::Message::Nop) => {}
            Err(error) => self.protocol_error(ctx, &error),
        }
    }
}
