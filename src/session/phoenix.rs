//! [`PhoenixSession`]: one socket with channels in many rooms, for clients of Phoenix.
//!
//! After phoenixframework/phoenix, `lib/phoenix/socket.ex`, for what a server does with each frame.

use std::{borrow::Cow, fmt, future::pending, time::Duration};

use actix::prelude::*;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value};
use smallvec::SmallVec;
use tokio::sync::watch;

use super::{
    Connection,
    closing::Closing,
    outgoing::Outgoing,
    together,
    ws::{Ctx, Protocol, Socket, WsOptions, WsSessionError, handshake},
};
use crate::{
    messages::{Dialect, Disconnect, ForwardMessage, Forwarded, JoinError, Leave, Publish},
    model::{
        Cause, Info, InvalidInfo, LimitReached, MAX_DEPTH, RoomName, SessionKey, UserId, is_shallow,
    },
    registry::RoomRegistry,
    wire::phoenix::{self, Frame, TooLong},
};

/// A socket in no room from which nothing comes for this long is closed; clients send a heartbeat
/// every 30 s.
const IDLE: Duration = Duration::from_secs(60);

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
    /// What of the info a join does not touch.
    fixed: Info,
    session: Option<SessionKey>,
    allowed: Box<dyn Fn(&RoomName) -> bool>,
    /// Turns true when the server ends.
    closing: Option<watch::Receiver<bool>>,
    /// The rooms that are joined, by name; nearly always one.
    joined: SmallVec<[Channel; 1]>,
    /// What looks after the socket while it is in no room.
    guardian: SpawnHandle,
}

/// A joined room.
#[derive(Debug)]
struct Channel {
    room: RoomName,
    /// The reference of the join.
    join_ref: Box<str>,
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
            fixed: Info::EMPTY,
            session: None,
            allowed: Box::new(|_| true),
            closing: None,
            joined: SmallVec::new(),
            guardian: SpawnHandle::default(),
        };
        Self { me: Connection::new(registry), channels, options: WsOptions::default() }
    }

    /// Whose session it is; `None` is anonymous.
    #[must_use]
    pub fn user(mut self, user: Option<UserId>) -> Self {
        self.channels.user = user;
        self
    }

    /// What to attach to the presences. The client may name another info when it joins. Neither counts
    /// in a room where a client session is resumed: its presence keeps what it has.
    #[must_use]
    pub fn info(mut self, info: Info) -> Self {
        self.channels.info = info;
        self
    }

    /// What to attach to the presences, of which the client cannot replace any key.
    #[must_use]
    pub fn fixed_info(mut self, info: Info) -> Self {
        self.channels.fixed = info.clone();
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
        self.channels.allowed = Box::new(allowed);
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
        let mut response = handshake(req, &["phoenix"])?;
        let options = match self.channels.session {
            Some(_) => self.options.fading_with(&self.me),
            None => self.options,
        };
        let session = Socket::start(req, payload, self.me, self.channels, options);
        Ok(response.streaming(session))
    }
}

impl Protocol for Channels {
    fn started(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>) {
        look_after(socket, ctx);
    }

    fn text(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, text: &str) {
        let frame = match phoenix::read(text) {
            Ok(frame) => frame,
            Err(error) => {
                let (connection, column) = (socket.me.id(), error.column());
                tracing::debug!(%connection, kind = ?error.classify(), column, "no Phoenix frame");
                socket.me.touch_soon();
                return socket.close(ctx, Closing::MalformedMessage);
            }
        };
        let is_heartbeat = (&*frame.topic, &*frame.event) == ("phoenix", "heartbeat");
        if is_heartbeat && frame.check().is_ok() {
            socket.me.heartbeat_soon();
            let answer = phoenix::ok(None, frame.r#ref.as_deref(), &frame.topic);
            return socket.outgoing.text(answer);
        }
        socket.me.touch_soon();
        if let Err(too_long) = frame.check() {
            // What is too long is not sent back.
            let topic = if too_long == TooLong::Topic { "phoenix" } else { &*frame.topic };
            let refusal = phoenix::refused(None, None, topic, &too_long.to_string());
            return socket.outgoing.text(refusal);
        }
        match &*frame.event {
            phoenix::ACCESS_TOKEN => access_token(socket, &frame),
            "phx_join" => join(socket, ctx, &frame),
            "phx_leave" => leave(socket, ctx, &frame),
            _ => push(socket, ctx, frame),
        }
    }

    fn forward(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: ForwardMessage) {
        let Some(channel) = socket.protocol.channel(msg.room.as_str()) else { return };
        let outgoing = &socket.outgoing;
        match msg.kind {
            Forwarded::State => {
                channel.stated = true;
                let state = phoenix::addressed(&msg.payload, &channel.join_ref);
                outgoing.forward(state, msg.reservation);
            }
            Forwarded::Diff if !channel.stated => {}
            Forwarded::Message | Forwarded::Diff => outgoing.forward(msg.payload, msg.reservation),
            Forwarded::Closed => {
                outgoing.text(phoenix::close(&channel.join_ref, msg.room.as_str()));
                left(socket, ctx, msg.room.as_str());
                // It may have joined again before it read this.
                socket.me.registry().do_send(Leave::new(msg.room, socket.me.id()));
            }
        }
    }

    /// A client reconnects by itself unless the code is 1000, and joins again what was not closed.
    fn disconnect(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: Disconnect) {
        if !matches!(msg.cause, Cause::Kicked | Cause::Replaced | Cause::RoomClosed) {
            return socket.close(ctx, Closing::Ordered(msg));
        }
        for channel in socket.protocol.joined.drain(..) {
            socket.outgoing.text(phoenix::close(&channel.join_ref, channel.room.as_str()));
        }
        socket.close(ctx, Closing::Ordered(Disconnect { code: 1000, ..msg }));
    }
}

/// Looks after a socket that is in no room: the registry does not know of it, and so neither tells it
/// that the server ends nor finds out that it is silent.
fn look_after(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>) {
    let closing = socket.protocol.closing.clone();
    let closed = async {
        let Some(mut closing) = closing else { return pending().await };
        if closing.wait_for(|closing| *closing).await.is_err() {
            pending().await
        }
    };
    let patience = IDLE.saturating_sub(socket.heard.elapsed());
    let closed = actix::clock::timeout(patience, closed).into_actor(socket);
    socket.protocol.guardian = ctx.spawn(closed.map(|closed, socket, ctx| match closed {
        Ok(()) => socket.close(ctx, Closing::ServerStops),
        Err(_) if socket.heard.elapsed() >= IDLE => socket.close(ctx, Closing::Silent),
        Err(_) => look_after(socket, ctx),
    }));
}

/// The room is joined. Answers by which join it was before.
fn joined(
    socket: &mut Socket<Channels>,
    ctx: &mut Ctx<Channels>,
    room: RoomName,
    join_ref: Box<str>,
) -> Option<Box<str>> {
    let channels = &mut socket.protocol;
    if channels.joined.is_empty() {
        ctx.cancel_future(channels.guardian);
    }
    match channels.place(room.as_str()) {
        Ok(place) => {
            let channel = &mut channels.joined[place];
            channel.stated = false;
            Some(std::mem::replace(&mut channel.join_ref, join_ref))
        }
        Err(place) => {
            channels.joined.insert(place, Channel { room, join_ref, stated: false });
            None
        }
    }
}

/// The room is left, if it was joined. Answers by which join.
fn left(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, room: &str) -> Option<Box<str>> {
    let place = socket.protocol.place(room).ok()?;
    let channel = socket.protocol.joined.remove(place);
    if socket.protocol.joined.is_empty() {
        look_after(socket, ctx);
    }
    Some(channel.join_ref)
}

impl Channels {
    /// Where the room is among those that are joined, or would be.
    fn place(&self, room: &str) -> Result<usize, usize> {
        self.joined.binary_search_by(|channel| channel.room.as_str().cmp(room))
    }

    fn channel(&mut self, room: &str) -> Option<&mut Channel> {
        let place = self.place(room).ok()?;
        self.joined.get_mut(place)
    }

    /// What the client wants attached, in the params of a join.
    fn info_of(&self, frame: &Frame<'_>) -> Result<Info, Cow<'static, str>> {
        let params = phoenix::params(frame.payload).ok_or("the payload is no object")?;
        let Some(info) = params.get("info") else { return Ok(self.info.clone()) };
        if !is_shallow(info.get()) {
            return Err(InvalidInfo::TooDeep.to_string().into());
        }
        let info: Result<Map<String, Value>, _> = serde_json::from_str(info.get());
        let mut info = info.map_err(|_| "info is no object")?;
        info.extend(self.fixed.to_map());
        Info::from_map(&info).map_err(|_| "info is too large".into())
    }
}

fn refuse(outgoing: &Outgoing, join_ref: Option<&str>, frame: &Frame<'_>, reason: &str) {
    outgoing.text(phoenix::refused(join_ref, frame.r#ref.as_deref(), &frame.topic, reason));
}

fn join(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: &Frame<'_>) {
    let channels = &socket.protocol;
    let room = match RoomName::new(&*frame.topic) {
        Ok(room) if room != "phoenix" => room,
        _ => return refuse(&socket.outgoing, None, frame, "unmatched topic"),
    };
    let join_ref = frame.join_ref.as_deref().or(frame.r#ref.as_deref()).unwrap_or_default();
    if !(channels.allowed)(&room) {
        return refuse(&socket.outgoing, Some(join_ref), frame, "unauthorized");
    }
    let info = match channels.info_of(frame) {
        Ok(info) => info,
        Err(reason) => return refuse(&socket.outgoing, Some(join_ref), frame, &reason),
    };
    let join = socket.me.join(room.clone(), ctx.address()).user(channels.user.clone()).info(info);
    let join = join.fixed_info(channels.fixed.clone()).session(channels.session.clone());
    let join = join.dialect(Dialect::Phoenix);
    let joining = together::join(socket.me.registry().clone(), join).into_actor(socket);
    let (join_ref, reference) = (Box::<str>::from(join_ref), owned(frame.r#ref.as_deref()));
    // What the room says waits in the mailbox meanwhile, so the answer comes before it.
    ctx.wait(joining.map(move |answer, socket, ctx| match answer {
        Some(Ok(_)) => {
            let topic = room.as_str();
            let answer = phoenix::ok(Some(&join_ref), reference.as_deref(), topic);
            socket.outgoing.text(answer);
            if let Some(before) = joined(socket, ctx, room.clone(), join_ref) {
                socket.outgoing.text(phoenix::close(&before, topic));
            }
        }
        Some(Err(error)) => {
            let reason = match &error {
                JoinError::Limit(LimitReached::TooManyRooms { .. }) => "too many channels joined",
                JoinError::Limit(LimitReached::RoomFull { .. }) => "room is full",
                JoinError::Denied { reason } => reason,
                JoinError::Superseded(_) => "replaced",
                JoinError::Withdrawn => "withdrawn",
                JoinError::ShuttingDown => "shutting down",
            };
            let (join_ref, reference) = (Some(&*join_ref), reference.as_deref());
            let refusal = phoenix::refused(join_ref, reference, room.as_str(), reason);
            socket.outgoing.text(refusal);
        }
        None => socket.lost(ctx),
    }));
}

fn owned(text: Option<&str>) -> Option<Box<str>> {
    text.map(Box::from)
}

fn leave(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: &Frame<'_>) {
    let (reference, topic) = (frame.r#ref.as_deref(), &*frame.topic);
    let Some(channel) = socket.protocol.channel(topic) else {
        let answer = phoenix::ok(frame.join_ref.as_deref(), reference, topic);
        return socket.outgoing.text(answer);
    };
    if !channel.is_meant(frame) {
        return;
    }
    let room = channel.room.clone();
    let Some(join_ref) = left(socket, ctx, topic) else { return };
    let answer = phoenix::ok(Some(&join_ref), reference, topic);
    let leave = Leave::new(room.clone(), socket.me.id());
    let leaving = socket.me.registry().send(leave).into_actor(socket);
    ctx.wait(leaving.map(move |left, socket, ctx| match left {
        Ok(_) => {
            socket.outgoing.text(answer);
            socket.outgoing.text(phoenix::close(&join_ref, room.as_str()));
        }
        Err(_) => socket.lost(ctx),
    }));
}

fn push(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: Frame<'_>) {
    let Some(channel) = socket.protocol.channel(&frame.topic) else {
        return refuse(&socket.outgoing, None, &frame, "unmatched topic");
    };
    if !channel.is_meant(&frame) {
        return;
    }
    if !phoenix::may_push(&frame.event) {
        return refuse(&socket.outgoing, Some(&channel.join_ref), &frame, "reserved event");
    }
    if !is_shallow(frame.payload.get()) {
        let reason = format!("the payload may be nested at most {MAX_DEPTH} deep");
        return refuse(&socket.outgoing, Some(&channel.join_ref), &frame, &reason);
    }
    if phoenix::object(frame.payload).is_none() {
        return refuse(
            &socket.outgoing,
            Some(&channel.join_ref),
            &frame,
            "the payload is no object",
        );
    }
    let (room, join_ref) = (channel.room.clone(), channel.join_ref.clone());
    let reference = owned(frame.r#ref.as_deref());
    let publish = Publish::event(room.clone(), frame.event.into_owned(), frame.payload.to_owned());
    socket.say(ctx, publish, move |socket, answer| {
        let (reference, topic) = (reference.as_deref(), room.as_str());
        socket.outgoing.text(match answer {
            Ok(_) if reference.is_none() => return,
            Ok(_) => phoenix::ok(Some(&join_ref), reference, topic),
            Err(_) => phoenix::refused(None, reference, topic, "unmatched topic"),
        });
    });
}

/// Answers a client that tells its token as it would a push, and drops the token.
fn access_token(socket: &mut Socket<Channels>, frame: &Frame<'_>) {
    let join_ref = match socket.protocol.channel(&frame.topic) {
        Some(channel) if channel.is_meant(frame) => Some(&*channel.join_ref),
        Some(_) => return,
        None if frame.topic == "phoenix" => None,
        None => return refuse(&socket.outgoing, None, frame, "unmatched topic"),
    };
    if let Some(reference) = frame.r#ref.as_deref() {
        let answer = phoenix::ok(join_ref, Some(reference), &frame.topic);
        socket.outgoing.text(answer);
    }
}

impl Channel {
    /// Whether the frame is of the latest join, and not of one before.
    fn is_meant(&self, frame: &Frame<'_>) -> bool {
        frame.join_ref.as_ref().is_none_or(|one| **one == *self.join_ref)
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels")
            .field("user", &self.user)
            .field("joined", &self.joined)
            .finish_non_exhaustive()
    }
}
