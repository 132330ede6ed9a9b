//! The session's side: what connects one client to its rooms.
//!
//! [`Connection`] is the helper that any session actor can own, whatever carries its frames.
//! [`WsSession`] and [`PhoenixSession`] are ready-made sessions built from it, on actix-web-actors:
//! one dialect each over the same socket.

mod closing;
mod guard;
mod json;
mod outgoing;
mod phoenix;
mod rate;
mod thread;
mod together;
mod ws;

use std::fmt;

use actix::{dev::ToEnvelope, prelude::*};
use actix_web::HttpRequest;

pub use self::{
    json::WsSession,
    phoenix::PhoenixSession,
    ws::{WsOptions, WsSessionError},
};
use crate::{
    messages::{DEFAULT_BACKLOG_LIMIT, Disconnect, ForwardMessage, Join, LeaveAll, Touch},
    model::{Cause, ConnectionId, RoomName},
    registry::RoomRegistry,
    sockets::{self, CLOSE_TIMEOUT, SocketKey},
    wire::json::HEARTBEAT,
};

/// One connection's stay: its id, its signs of life, and its leaving, which no end of a session
/// misses.
///
/// Dropping it leaves every room, once. A session actor that owns one therefore leaves when it
/// stops, when its response is dropped, and when it panics.
///
/// ```
/// # use actix::prelude::*;
/// # use actix_presence::{Connection, Disconnect, ForwardMessage, RoomName};
/// struct Chatter {
///     me: Connection,
///     room: RoomName,
/// }
///
/// impl Actor for Chatter {
///     type Context = Context<Self>;
///
///     fn started(&mut self, ctx: &mut Self::Context) {
///         let join = self.me.join(self.room.clone(), ctx.address());
///         let joining = self.me.registry().send(join).into_actor(self);
///         ctx.wait(joining.map(|answer, _, ctx| match answer {
///             Ok(Ok(joined)) => println!("{} are here", joined.snapshot.occupancy().connections),
///             Ok(Err(_)) | Err(_) => ctx.stop(),
///         }));
///     }
/// }
///
/// impl Handler<ForwardMessage> for Chatter {
///     type Result = ();
///     fn handle(&mut self, msg: ForwardMessage, _: &mut Self::Context) {
///         println!("{}", msg.payload);
///     }
/// }
///
/// impl Handler<Disconnect> for Chatter {
///     type Result = ();
///     fn handle(&mut self, _: Disconnect, ctx: &mut Self::Context) {
///         ctx.stop();
///     }
/// }
/// ```
pub struct Connection {
    registry: Addr<RoomRegistry>,
    id: ConnectionId,
    /// How many bytes of frames may wait for it.
    backlog_limit: usize,
    /// The socket that carries it, if that is watched.
    socket: Option<SocketKey>,
    /// Why it leaves when it is dropped.
    cause: Cause,
}

impl Connection {
    /// A new connection, in no room yet.
    #[must_use]
    pub fn new(registry: Addr<RoomRegistry>) -> Self {
        let backlog_limit = DEFAULT_BACKLOG_LIMIT;
        let (id, socket, cause) = (ConnectionId::new(), None, Cause::Disconnected);
        Self { registry, id, backlog_limit, socket, cause }
    }

    /// The same with the socket of a request, if the app [watches](crate::watch_socket) it: when the
    /// registry has the connection close, the socket is gone ten seconds later, whatever its client
    /// does. The ready-made sessions do this by themselves.
    #[must_use]
    pub fn watched(mut self, req: &HttpRequest) -> Self {
        self.socket = sockets::key_of(req);
        self
    }

    /// Ends its socket in a while, if that is watched and does not end by itself.
    fn end_socket(&self) {
        if let Some(socket) = self.socket {
            sockets::end_within(socket, CLOSE_TIMEOUT);
        }
    }

    /// The same with another bound for the bytes of frames that may wait for its session.
    fn with_backlog_limit(mut self, bytes: usize) -> Self {
        self.backlog_limit = bytes;
        self
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The registry that it is known to.
    #[must_use]
    pub fn registry(&self) -> &Addr<RoomRegistry> {
        &self.registry
    }

    /// The message with which the session enters a room; add user, info and dialect, and send it to
    /// the [registry](Self::registry).
    ///
    /// To be called on the session's own thread: what its rooms hear is delivered from there.
    #[must_use]
    pub fn join<A>(&self, room: RoomName, session: Addr<A>) -> Join
    where
        A: Actor + Handler<ForwardMessage> + Handler<Disconnect>,
        A::Context: ToEnvelope<A, ForwardMessage> + ToEnvelope<A, Disconnect>,
    {
        let join = Join::anonymous(room, self.id, session.clone().recipient());
        let (courier, backlog_limit) = (thread::courier(&self.registry), self.backlog_limit);
        let socket = self.socket;
        Join { courier, backlog_limit, socket, ..join }.disconnect(session.recipient())
    }

    /// A sign of life: to be called for every frame, also for pings and pongs.
    pub fn touch(&self) {
        // One that meets a full mailbox is lost; the next one repairs it.
        let _ = self.registry.try_send(Touch::new(self.id));
    }

    /// A heartbeat, which is a sign of life and nothing else.
    pub fn heartbeat(&self) {
        let _ = self.registry.try_send(Touch::heartbeat(self.id));
    }

    /// A sign of life that may be on its way for a moment, with those of other sessions of this thread.
    fn touch_soon(&self) {
        together::touch(&self.registry, Touch::new(self.id));
    }

    /// A heartbeat that may be.
    fn heartbeat_soon(&self) {
        together::touch(&self.registry, Touch::heartbeat(self.id));
    }

    /// The hook for text frames: a sign of life, and all of it if the text is the literal
    /// `"heartbeat"` (JSON, with its quotes). Any other text is given back to be handled.
    #[must_use]
    pub fn text<'a>(&self, text: &'a str) -> Option<&'a str> {
        if text == HEARTBEAT {
            self.heartbeat();
            return None;
        }
        self.touch();
        Some(text)
    }

    /// The client has said goodbye: what drops now has [left](Cause::Left), and is not just
    /// disconnected.
    pub fn goodbye(&mut self) {
        self.cause = Cause::Left;
    }

    /// Leaves every room now, for a cause of its own.
    pub fn leave(&self, cause: Cause) {
        together::go();
        // Sent unbounded, because it must not be lost; at most twice per connection.
        self.registry.do_send(LeaveAll::because(self.id, cause));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.leave(self.cause);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("cause", &self.cause).finish()
    }
}
