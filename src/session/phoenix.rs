//! [`PhoenixSession`]: one socket with channels in many rooms, for clients of Phoenix.
//!
//! After phoenixframework/phoenix, `lib/phoenix/socket.ex`, for what a server does with each frame.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use actix::prelude::*;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::{
    Connection,
    ws::{Ctx, Protocol, Socket, WsOptions, WsSessionError, handshake},
};
use crate::{
    messages::{Dialect, Disconnect, ForwardMessage, Forwarded, JoinError, Leave, Publish},
    model::{Cause, Info, LimitReached, RoomName, SessionKey, UserId},
    registry::RoomRegistry,
    wire::phoenix::{self, Frame},
};

/// A socket from which nothing comes for this long is closed; clients send a heartbeat every 30 s.
const IDLE: Duration = Duration::from_secs(60);
/// How often to look.
const LOOK: Duration = Duration::from_secs(15);

/// A WebSocket session that speaks Phoenix Channels, version 2.0.0: connecting alone joins nothing,
/// and each topic the client joins is a room.
///
/// ```
/// use actix_presence::{PhoenixSession, RoomRegistry, WsSessionError};
/// use actix_web::{HttpRequest, HttpResponse, web};
///
/// async fn socket(
///     req: HttpRequest,
///     body: web::Payload,
///     registry: web::Data<actix::Addr<RoomRegistry>>,
/// ) -> Result<HttpResponse, WsSessionError> {
///     let session = PhoenixSession::new(registry.get_ref().clone());
///     session.rooms(|room| room.as_str().starts_with("public:")).start(&req, body)
/// }
/// ```
#[derive(Debug)]
pub struct PhoenixSession {
    me: Connection,
    channels: Channels,
    options: WsOptions,
}

/// Who takes part, and in which rooms.
struct Channels {
    user: Option<UserId>,
    info: Info,
    /// Keys of the info that a join does not touch.
    fixed: Map<String, Value>,
    session: Option<SessionKey>,
    allowed: Arc<dyn Fn(&RoomName) -> bool>,
    /// Turns true when the server ends.
    closing: Option<watch::Receiver<bool>>,
    /// The rooms that are joined.
    joined: HashMap<RoomName, Channel>,
}

/// A joined room.
#[derive(Debug)]
struct Channel {
    /// The reference of the join.
    join_ref: String,
    /// Whether the client has got the room's state since; a difference from before would be one to
    /// another state.
    stated: bool,
}

impl PhoenixSession {
    /// An anonymous session that may join every room.
    #[must_use]
    pub fn new(registry: Addr<RoomRegistry>) -> Self {
        let channels = Channels {
            user: None,
            info: Info::EMPTY,
            fixed: Map::new(),
            session: None,
            allowed: Arc::new(|_| true),
            closing: None,
            joined: HashMap::new(),
        };
        Self { me: Connection::new(registry), channels, options: WsOptions::default() }
    }

    /// Whose session it is; `None` is anonymous.
    #[must_use]
    pub fn user(mut self, user: Option<UserId>) -> Self {
        self.channels.user = user;
        self
    }

    /// What to attach to the presences. The client may name another info when it joins.
    #[must_use]
    pub fn info(mut self, info: Info) -> Self {
        self.channels.info = info;
        self
    }

    /// What to attach to the presences, of which the client cannot replace any key.
    #[must_use]
    pub fn fixed_info(mut self, info: Info) -> Self {
        self.channels.fixed = info.to_map();
        self.info(info)
    }

    /// The client session that survives reconnects, if the client has one: see
    /// [`Join::session`](crate::Join::session).
    #[must_use]
    pub fn session(mut self, session: Option<SessionKey>) -> Self {
        self.channels.session = session;
        self
    }

    /// Which rooms the client may join; others are refused as `unauthorized`.
    #[must_use]
    pub fn rooms(mut self, allowed: impl Fn(&RoomName) -> bool + 'static) -> Self {
        self.channels.allowed = Arc::new(allowed);
        self
    }

    /// Ends with 1001 when this turns true, unless it is in some room: such sessions the registry tells.
    #[must_use]
    pub fn until(mut self, closing: watch::Receiver<bool>) -> Self {
        self.channels.closing = Some(closing);
        self
    }

    /// Bounds and habits.
    #[must_use]
    pub fn options(self, options: WsOptions) -> Self {
        Self { options, ..self }
    }

    /// Answers the handshake and starts the session.
    ///
    /// # Errors
    ///
    /// [`WsSessionError::Handshake`].
    pub fn start(
        self,
        req: &HttpRequest,
        payload: web::Payload,
    ) -> Result<HttpResponse, WsSessionError> {
        let response = handshake(req, &["phoenix"])?;
        Ok(Socket::start(response, payload, self.me, self.channels, self.options))
    }
}

impl Protocol for Channels {
    fn started(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>) {
        if let Some(mut closing) = socket.protocol.closing.take() {
            let closed = async move { closing.wait_for(|closing| *closing).await.is_ok() };
            ctx.spawn(closed.into_actor(socket).map(|closing, socket, ctx| {
                // Whom the registry knows, it tells: what becomes of the presences is decided there.
                if closing && socket.protocol.joined.is_empty() {
                    socket.close(ctx, 1001, Cause::Shutdown);
                }
            }));
        }
        ctx.run_interval(LOOK, |socket, ctx| {
            if socket.heard.elapsed() > IDLE {
                socket.close(ctx, 1001, Cause::Expired);
            }
        });
    }

    fn text(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, text: &str) {
        let frame = match phoenix::read(text) {
            Ok(frame) => frame,
            Err(error) => {
                let (connection, column) = (socket.me.id(), error.column());
                tracing::debug!(%connection, kind = ?error.classify(), column, "no Phoenix frame");
                socket.me.touch_soon();
                return socket.close(ctx, 1007, Cause::Disconnected);
            }
        };
        if (&*frame.topic, &*frame.event) == ("phoenix", "heartbeat") {
            socket.me.heartbeat_soon();
            return ctx.text(phoenix::ok(None, frame.r#ref.as_deref(), &frame.topic));
        }
        socket.me.touch_soon();
        match &*frame.event {
            "phx_join" => join(socket, ctx, frame),
            "phx_leave" => leave(socket, ctx, &frame),
            _ => push(socket, ctx, frame),
        }
    }

    fn forward(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: ForwardMessage) {
        let joined = &mut socket.protocol.joined;
        let Some(channel) = joined.get_mut(&msg.room) else { return };
        match msg.kind {
            Forwarded::State => {
                channel.stated = true;
                ctx.text(phoenix::addressed(&msg.payload, &channel.join_ref));
            }
            Forwarded::Diff if !channel.stated => {}
            Forwarded::Message | Forwarded::Diff => ctx.text(msg.payload),
            Forwarded::Closed => {
                ctx.text(phoenix::close(&channel.join_ref, msg.room.as_str()));
                joined.remove(&msg.room);
                // It may have joined again before it read this.
                socket.me.registry().do_send(Leave::new(msg.room, socket.me.id()));
            }
        }
    }

    /// A client reconnects by itself unless the code is 1000, and joins again what was not closed.
    fn disconnect(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: Disconnect) {
        if !matches!(msg.cause, Cause::Kicked | Cause::Replaced | Cause::RoomClosed) {
            return socket.close(ctx, msg.code, msg.cause);
        }
        for (room, channel) in socket.protocol.joined.drain() {
            ctx.text(phoenix::close(&channel.join_ref, room.as_str()));
        }
        socket.close(ctx, 1000, msg.cause);
    }
}

impl Channels {
    /// The room that the frame is about, if it is joined, and whether by the latest join.
    fn room(&self, frame: &Frame) -> Option<(RoomName, bool)> {
        let (room, channel) = self.joined.get_key_value(&*frame.topic)?;
        let current = frame.join_ref.as_ref().is_none_or(|one| *one == channel.join_ref);
        Some((room.clone(), current))
    }

    /// What the client wants attached, in the params of a join.
    fn info_of(&self, frame: &Frame) -> Result<Info, &'static str> {
        let params = phoenix::object(&frame.payload).ok_or("the payload is no object")?;
        match params.get("info") {
            None => Ok(self.info.clone()),
            Some(Value::Object(info)) => {
                let mut info = info.clone();
                info.extend(self.fixed.clone());
                Info::from_map(&info).map_err(|_| "info is too large")
            }
            Some(_) => Err("info is no object"),
        }
    }
}

fn refuse(ctx: &mut Ctx<Channels>, join_ref: Option<&str>, frame: &Frame, reason: &str) {
    ctx.text(phoenix::refused(join_ref, frame.r#ref.as_deref(), &frame.topic, reason));
}

fn join(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: Frame) {
    let channels = &socket.protocol;
    let room = match RoomName::new(&frame.topic) {
        Ok(room) if room != "phoenix" => room,
        _ => return refuse(ctx, None, &frame, "unmatched topic"),
    };
    let join_ref = frame.join_ref.clone().or(frame.r#ref.clone()).unwrap_or_default();
    if !(channels.allowed)(&room) {
        return refuse(ctx, Some(&join_ref), &frame, "unauthorized");
    }
    let info = match channels.info_of(&frame) {
        Ok(info) => info,
        Err(reason) => return refuse(ctx, Some(&join_ref), &frame, reason),
    };
    let join = socket.me.join(room.clone(), ctx.address()).user(channels.user.clone()).info(info);
    let join = join.session(channels.session.clone()).dialect(Dialect::Phoenix);
    let joining = socket.me.registry().send(join).into_actor(socket);
    // What the room says waits in the mailbox meanwhile, so the answer comes before it.
    ctx.wait(joining.map(move |answer, socket, ctx| match answer {
        Ok(Ok(_)) => {
            ctx.text(phoenix::ok(Some(&join_ref), frame.r#ref.as_deref(), &frame.topic));
            let channel = Channel { join_ref, stated: false };
            if let Some(before) = socket.protocol.joined.insert(room, channel) {
                ctx.text(phoenix::close(&before.join_ref, &frame.topic));
            }
        }
        Ok(Err(error)) => {
            let reason = match &error {
                JoinError::Limit(LimitReached::TooManyRooms { .. }) => "too many channels joined",
                JoinError::Limit(LimitReached::RoomFull { .. }) => "room is full",
                JoinError::Denied { reason } => reason,
                JoinError::Superseded(_) => "replaced",
                JoinError::Withdrawn => "withdrawn",
                JoinError::ShuttingDown => "shutting down",
            };
            refuse(ctx, Some(&join_ref), &frame, reason);
        }
        Err(_) => socket.lost(ctx),
    }));
}

fn leave(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: &Frame) {
    let left = |join_ref| phoenix::ok(join_ref, frame.r#ref.as_deref(), &frame.topic);
    let Some((room, current)) = socket.protocol.room(frame) else {
        return ctx.text(left(frame.join_ref.as_deref()));
    };
    if !current {
        return;
    }
    let Some(Channel { join_ref, .. }) = socket.protocol.joined.remove(&room) else { return };
    let left = left(Some(&join_ref));
    let leave = Leave::new(room.clone(), socket.me.id());
    let leaving = socket.me.registry().send(leave).into_actor(socket);
    ctx.wait(leaving.map(move |answer, socket, ctx| match answer {
        Ok(_) => {
            ctx.text(left);
            ctx.text(phoenix::close(&join_ref, room.as_str()));
        }
        Err(_) => socket.lost(ctx),
    }));
}

fn push(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: Frame) {
    let Some((room, current)) = socket.protocol.room(&frame) else {
        return refuse(ctx, None, &frame, "unmatched topic");
    };
    if !current {
        return;
    }
    let join_ref = socket.protocol.joined.get(&room).map(|channel| channel.join_ref.clone());
    if !phoenix::may_push(&frame.event) {
        return refuse(ctx, join_ref.as_deref(), &frame, "reserved event");
    }
    if phoenix::object(&frame.payload).is_none() {
        return refuse(ctx, join_ref.as_deref(), &frame, "the payload is no object");
    }
    let Frame { r#ref, topic, event, payload, .. } = frame;
    let publish = Publish::event(room, event, payload).from(socket.me.id());
    let published = socket.me.registry().send(publish).into_actor(socket);
    ctx.wait(published.map(move |answer, socket, ctx| {
        let (join_ref, reference) = (join_ref.as_deref(), r#ref.as_deref());
        match answer {
            Ok(Ok(_)) if reference.is_none() => {}
            Ok(Ok(_)) => ctx.text(phoenix::ok(join_ref, reference, &topic)),
            Ok(Err(_)) => ctx.text(phoenix::refused(None, reference, &topic, "unmatched topic")),
            Err(_) => socket.lost(ctx),
        }
    }));
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels")
            .field("user", &self.user)
            .field("joined", &self.joined)
            .finish_non_exhaustive()
    }
}
