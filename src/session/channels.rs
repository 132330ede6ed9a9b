//! The Phoenix dialect: what a socket with channels does with each frame.
//!
//! After phoenixframework/phoenix, `lib/phoenix/socket.ex`.

use std::{borrow::Cow, fmt, time::Duration};

use actix::prelude::*;
use serde_json::{Map, Value};

use super::{
    batches::{batch_join, flush_batches},
    joined_channels::JoinedChannels,
    joining::{PendingJoin, Turn, WaitingTopics, join_ref, reason},
    write_queue::WriteQueue,
    ws::{Closing, Ctx, Protocol, Socket},
};
use crate::{
    messages::{
        Dialect, Disconnect, ForwardMessage, Forwarded, JoinError, Joined, Leave, Publish,
        PublishError,
    },
    model::{Cause, Info, RoomName, SessionKey, UserId, check_info, check_payload},
    wire::phoenix::{self, Frame, TooLong},
};

/// A client in no room that is silent for this long is disconnected; clients send a heartbeat every 30 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The reason of the refusal of an event that only the server may send.
const RESERVED: &str = "reserved event";

/// The member that the session joins as, and its channels.
pub(super) struct Channels {
    pub user: Option<UserId>,
    pub info: Info,
    /// The part of the info that joins do not replace.
    pub fixed: Info,
    pub session: Option<SessionKey>,
    pub allowed: Box<dyn Fn(&RoomName) -> bool>,
    joined: JoinedChannels,
    /// What waits for joins that are not answered yet.
    waiting: WaitingTopics,
    /// Whether [`handle_waiting`] goes on by itself.
    handles_waiting: bool,
    /// Waits for the idle timeout while there is no channel.
    idle_watch: SpawnHandle,
}

impl Default for Channels {
    /// Anonymous, with access to every room.
    fn default() -> Self {
        Self {
            user: None,
            info: Info::EMPTY,
            fixed: Info::EMPTY,
            session: None,
            allowed: Box::new(|_| true),
            joined: JoinedChannels::default(),
            waiting: WaitingTopics::default(),
            handles_waiting: false,
            idle_watch: SpawnHandle::default(),
        }
    }
}

impl Protocol for Channels {
    fn started(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>) {
        socket.me.batched_register(ctx.address());
        watch_idle(socket, ctx);
    }

    fn text(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, text: &str) {
        let frame = match phoenix::read(text) {
            Ok(frame) => frame,
            Err(error) => {
                let (connection, column) = (socket.me.id(), error.column());
                tracing::debug!(%connection, kind = ?error.classify(), column, "no Phoenix frame");
                socket.me.batched_touch();
                return socket.close(ctx, Closing::MalformedMessage);
            }
        };
        let is_heartbeat = (&*frame.topic, &*frame.event) == ("phoenix", "heartbeat");
        if is_heartbeat && frame.check().is_ok() {
            socket.me.batched_heartbeat();
            let answer = phoenix::ok(None, frame.r#ref.as_deref(), &frame.topic);
            return socket.outgoing.text(answer);
        }
        socket.me.batched_touch();
        if let Err(too_long) = frame.check() {
            // A name that is too long is not sent back.
            let topic = if too_long == TooLong::Topic { "phoenix" } else { &*frame.topic };
            let refusal = phoenix::refused(None, None, topic, &too_long.to_string());
            return socket.outgoing.text(refusal);
        }
        match socket.protocol.waiting.queue(&frame, text) {
            Turn::Now => handle(socket, ctx, frame),
            Turn::Later(bytes) => {
                socket.input.hold(bytes);
                if &*frame.event == "phx_leave" {
                    // Of a join that waits here: now it need not wait to be asked.
                    handle_waiting(socket, ctx);
                }
            }
            Turn::Withdraws(room, bytes) => {
                socket.input.hold(bytes);
                // The join may not have been sent.
                flush_batches();
                // Bounded: one for each join.
                socket.me.registry().do_send(Leave::new(room, socket.me.id()));
            }
        }
    }

    fn forward(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: ForwardMessage) {
        if let Some(join) = socket.protocol.waiting.join(msg.room.as_str()) {
            return join.held_back.push(msg);
        }
        let Some(channel) = socket.protocol.joined.get(msg.room.as_str()) else { return };
        let outgoing = &socket.outgoing;
        match msg.kind {
            Forwarded::State => {
                channel.has_state = true;
                let state = phoenix::addressed(&msg.payload, &channel.join_ref);
                outgoing.forward(state, msg.reservation);
            }
            Forwarded::Diff if !channel.has_state => {}
            Forwarded::Message | Forwarded::Diff => outgoing.forward(msg.payload, msg.reservation),
            Forwarded::Closed { .. } => {
                outgoing.text(phoenix::close(&channel.join_ref, msg.room.as_str()));
                left(socket, ctx, msg.room.as_str());
                // It may have rejoined before it handled this.
                socket.me.registry().do_send(Leave::new(msg.room, socket.me.id()));
            }
        }
    }

    /// A client reconnects by itself unless the code is 1000, and then joins the channels again that were
    /// not closed.
    fn disconnect(socket: &mut Socket<Self>, ctx: &mut Ctx<Self>, msg: Disconnect) {
        let Channels { joined, waiting, .. } = &mut socket.protocol;
        let is_final = matches!(msg.cause, Cause::Kicked | Cause::Replaced | Cause::RoomClosed);
        if is_final {
            for channel in joined.drain() {
                socket.outgoing.text(phoenix::close(&channel.join_ref, channel.room.as_str()));
            }
        }
        waiting.refuse_all(
            &socket.outgoing,
            match msg.cause {
                Cause::Shutdown => reason(&JoinError::ShuttingDown),
                cause => cause.as_str(),
            },
        );
        let code = if is_final { 1000 } else { msg.code };
        socket.close(ctx, Closing::Ordered(Disconnect { code, ..msg }));
    }

    fn closing(socket: &mut Socket<Self>) {
        let waiting = std::mem::take(&mut socket.protocol.waiting);
        socket.input.release(waiting.bytes());
    }
}

/// Handles a frame whose turn it is.
fn handle(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: Frame<'_>) {
    match &*frame.event {
        phoenix::ACCESS_TOKEN => access_token(socket, &frame),
        "phx_join" => join(socket, ctx, &frame),
        "phx_leave" => leave(socket, ctx, &frame),
        _ => push(socket, ctx, frame),
    }
}

/// Closes a client in no room, of which the registry does not know when it was last heard, when it is silent for too
/// long.
fn watch_idle(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>) {
    let wait = IDLE_TIMEOUT.saturating_sub(socket.last_frame.elapsed());
    socket.protocol.idle_watch = ctx.run_later(wait, |socket, ctx| {
        if socket.last_frame.elapsed() >= IDLE_TIMEOUT {
            socket.close(ctx, Closing::Silent);
        } else {
            watch_idle(socket, ctx);
        }
    });
}

/// Adds a channel. Returns the reference of its join before, if there was one.
fn joined(
    socket: &mut Socket<Channels>,
    ctx: &mut Ctx<Channels>,
    room: RoomName,
    join_ref: Box<str>,
) -> Option<Box<str>> {
    let channels = &mut socket.protocol;
    if channels.joined.is_empty() {
        ctx.cancel_future(channels.idle_watch);
    }
    channels.joined.put(room, join_ref)
}

/// Removes a channel. Returns the reference of its join, if it was joined.
fn left(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, room: &str) -> Option<Box<str>> {
    let channel = socket.protocol.joined.remove(room)?;
    if socket.protocol.joined.is_empty() {
        watch_idle(socket, ctx);
    }
    Some(channel.join_ref)
}

impl Channels {
    /// The info with which the client joins.
    fn info_of(&self, frame: &Frame<'_>) -> Result<Info, Cow<'static, str>> {
        let params = phoenix::params(frame.payload).ok_or("the payload is no object")?;
        let Some(info) = params.get("info") else { return Ok(self.info.clone()) };
        check_info(info.get()).map_err(|unfit| unfit.to_string())?;
        let info: Result<Map<String, Value>, _> = serde_json::from_str(info.get());
        let mut info = info.map_err(|_| "info is no object")?;
        info.extend(self.fixed.to_map());
        Info::from_map(&info).map_err(|_| "info is too large".into())
    }
}

fn refuse(outgoing: &WriteQueue, join_ref: Option<&str>, frame: &Frame<'_>, reason: &str) {
    outgoing.text(phoenix::refused(join_ref, frame.r#ref.as_deref(), &frame.topic, reason));
}

/// Handles a `phx_join` on a topic whose last join is answered.
fn join(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: &Frame<'_>) {
    let channels = &socket.protocol;
    let room = match RoomName::new(&*frame.topic) {
        Ok(room) if room != "phoenix" => room,
        _ => return refuse(&socket.outgoing, None, frame, "unmatched topic"),
    };
    let pending = PendingJoin::new(room.clone(), join_ref(frame), frame.r#ref.as_deref());
    if !(channels.allowed)(&room) {
        return pending.refuse(&socket.outgoing, "unauthorized");
    }
    let info = match channels.info_of(frame) {
        Ok(info) => info,
        Err(reason) => return pending.refuse(&socket.outgoing, &reason),
    };
    let join = socket.me.join(room.clone(), ctx.address()).user(channels.user.clone()).info(info);
    let join = join.fixed_info(channels.fixed.clone()).session(channels.session.clone());
    let join = join.dialect(Dialect::Phoenix);
    let answer = batch_join(socket.me.registry(), join).into_actor(socket);
    socket.protocol.waiting.push(pending);
    ctx.spawn(answer.map(move |answer, socket, ctx| answered(socket, ctx, &room, answer)));
}

/// Goes on with a topic whose join is answered; `None` if the registry has stopped.
fn answered(
    socket: &mut Socket<Channels>,
    ctx: &mut Ctx<Channels>,
    room: &RoomName,
    answer: Option<Result<Joined, JoinError>>,
) {
    if socket.is_closing() {
        return;
    }
    let Some(mut join) = socket.protocol.waiting.answered(room) else { return };
    match answer {
        Some(Ok(_)) => {
            let (join_ref, topic) = (std::mem::take(&mut join.join_ref), room.as_str());
            let answer = phoenix::ok(Some(&join_ref), join.reference.as_deref(), topic);
            socket.outgoing.text(answer);
            if let Some(before) = joined(socket, ctx, room.clone(), join_ref) {
                socket.outgoing.text(phoenix::close(&before, topic));
            }
        }
        Some(Err(error)) => {
            join.refuse(&socket.outgoing, reason(&error));
            if join.is_withdrawn {
                end_before(socket, ctx, room.as_str());
            }
        }
        None => return socket.registry_stopped(ctx),
    }
    for msg in join.held_back {
        Channels::forward(socket, ctx, msg);
    }
    handle_waiting(socket, ctx);
}

/// Ends a channel whose second join the client has withdrawn: the leave is for all of it.
fn end_before(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, topic: &str) {
    let Some(channel) = socket.protocol.joined.get(topic) else { return };
    let room = channel.room.clone();
    if let Some(before) = left(socket, ctx, topic) {
        socket.outgoing.text(phoenix::close(&before, topic));
        // Bounded: a channel ends once.
        socket.me.registry().do_send(Leave::new(room, socket.me.id()));
    }
}

/// Handles the frames whose turn has come, one after the other. Between two of them the session has its turn with
/// its mailbox, and other connections with the thread.
fn handle_waiting(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>) {
    let channels = &mut socket.protocol;
    if channels.handles_waiting || !channels.waiting.has_frames() {
        return;
    }
    channels.handles_waiting = true;
    let turn = tokio::task::yield_now().into_actor(socket);
    ctx.spawn(turn.map(|(), socket, ctx| {
        socket.protocol.handles_waiting = false;
        if socket.is_closing() {
            return;
        }
        let Some(waiting) = socket.protocol.waiting.next() else { return };
        socket.input.release(waiting.bytes());
        // It was read before.
        if let Ok(frame) = phoenix::read(&waiting.text) {
            if waiting.is_withdrawn {
                waiting.refuse(&socket.outgoing, reason(&JoinError::Withdrawn));
                end_before(socket, ctx, &frame.topic);
            } else {
                handle(socket, ctx, frame);
            }
        }
        handle_waiting(socket, ctx);
    }));
}

fn leave(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: &Frame<'_>) {
    let (reference, topic) = (frame.r#ref.as_deref(), &*frame.topic);
    let Some(channel) = socket.protocol.joined.get(topic) else {
        let answer = phoenix::ok(frame.join_ref.as_deref(), reference, topic);
        return socket.outgoing.text(answer);
    };
    if !channel.is_current(frame) {
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
        Err(_) => socket.registry_stopped(ctx),
    }));
}

fn push(socket: &mut Socket<Channels>, ctx: &mut Ctx<Channels>, frame: Frame<'_>) {
    let Some(channel) = socket.protocol.joined.get(&frame.topic) else {
        return refuse(&socket.outgoing, None, &frame, "unmatched topic");
    };
    if !channel.is_current(&frame) {
        return;
    }
    if !phoenix::may_push(&frame.event) {
        return refuse(&socket.outgoing, Some(&channel.join_ref), &frame, RESERVED);
    }
    if let Err(unfit) = check_payload(frame.payload.get()) {
        let reason = unfit.to_string();
        return refuse(&socket.outgoing, Some(&channel.join_ref), &frame, &reason);
    }
    if phoenix::object(frame.payload).is_none() {
        let reason = "the payload is no object";
        return refuse(&socket.outgoing, Some(&channel.join_ref), &frame, reason);
    }
    let (room, join_ref) = (channel.room.clone(), channel.join_ref.clone());
    let reference = frame.r#ref.as_deref().map(Box::<str>::from);
    let publish = Publish::event(room.clone(), frame.event.into_owned(), frame.payload.to_owned());
    socket.publish(ctx, publish, move |socket, answer| {
        let (reference, topic) = (reference.as_deref(), room.as_str());
        socket.outgoing.text(match answer {
            Ok(_) if reference.is_none() => return,
            Ok(_) => phoenix::ok(Some(&join_ref), reference, topic),
            Err(PublishError::NotAMember) => {
                phoenix::refused(None, reference, topic, "unmatched topic")
            }
            Err(PublishError::NotAllowed) => {
                phoenix::refused(Some(&join_ref), reference, topic, "unauthorized")
            }
            Err(PublishError::ReservedEvent) => {
                phoenix::refused(Some(&join_ref), reference, topic, RESERVED)
            }
        });
    });
}

/// Answers an access token like a push, and drops it.
fn access_token(socket: &mut Socket<Channels>, frame: &Frame<'_>) {
    let join_ref = match socket.protocol.joined.get(&frame.topic) {
        Some(channel) if channel.is_current(frame) => Some(&*channel.join_ref),
        Some(_) => return,
        None if frame.topic == "phoenix" => None,
        None => return refuse(&socket.outgoing, None, frame, "unmatched topic"),
    };
    if let Some(reference) = frame.r#ref.as_deref() {
        let answer = phoenix::ok(join_ref, Some(reference), &frame.topic);
        socket.outgoing.text(answer);
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels")
            .field("user", &self.user)
            .field("joined", &self.joined)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}
