//! Sessions: what connects a client to its rooms.
//!
//! [`Connection`] is what any session actor owns, whatever carries its frames. [`WsSession`] and
//! [`PhoenixSession`] are ready-made sessions on actix-web-actors, one for each dialect.

mod channels;
mod closing;
mod guard;
mod json;
mod options;
mod outgoing;
mod phoenix;
mod ws;

use std::fmt;

use actix::{dev::ToEnvelope, prelude::*};
use actix_web::HttpRequest;

pub use self::{
    json::WsSession,
    options::{StopSignal, WsOptions, WsSessionError},
    phoenix::PhoenixSession,
};
use crate::{
    delivery::batch,
    messages::{DEFAULT_BACKLOG_LIMIT, Disconnect, ForwardMessage, Join, LeaveAll, Touch},
    model::{Cause, ConnectionId, RoomName},
    registry::RoomRegistry,
    sockets::{self, CLOSE_TIMEOUT, SocketKey},
    wire::json::HEARTBEAT,
};

/// One connection: its id, its touches, and its leave, which no end of a session misses.
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
    /// Its socket, if that is watched.
    socket: Option<SocketKey>,
    /// Why it leaves if it is dropped now.
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

    /// Adds the socket of a request, if the app [watches](crate::watch_socket) it: ten seconds after the
    /// registry has told the connection to close, the socket is shut down, whatever its client does. The
    /// ready-made sessions do this by themselves.
    #[must_use]
    pub fn watched(mut self, req: &HttpRequest) -> Self {
        self.socket = sockets::key_of(req);
        self
    }

    /// Shuts its socket down after a timeout, if that is watched and has not closed by then.
    fn end_socket(&self) {
        if let Some(socket) = self.socket {
            sockets::end_within(socket, CLOSE_TIMEOUT);
        }
    }

    /// Sets how many bytes of frames may wait for it.
    fn with_backlog_limit(mut self, bytes: usize) -> Self {
        self.backlog_limit = bytes;
        self
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Its registry.
    #[must_use]
    pub fn registry(&self) -> &Addr<RoomRegistry> {
        &self.registry
    }

    /// The message with which the session enters a room; add user, info and dialect, and send it to
    /// the [registry](Self::registry).
    ///
    /// To be called on the session's own thread: see [`Join`].
    #[must_use]
    pub fn join<A>(&self, room: RoomName, session: Addr<A>) -> Join
    where
        A: Actor + Handler<ForwardMessage> + Handler<Disconnect>,
        A::Context: ToEnvelope<A, ForwardMessage> + ToEnvelope<A, Disconnect>,
    {
        let join = Join::new(room, self.id, session.clone().recipient());
        let (backlog_limit, socket) = (self.backlog_limit, self.socket);
        Join { backlog_limit, socket, ..join }.disconnect(session.recipient())
    }

    /// Sends a [`Touch`]: to be called for every frame, also for pings and pongs.
    pub fn touch(&self) {
        // A touch that meets a full mailbox is dropped; the next one makes up for it.
        let _ = self.registry.try_send(Touch::new(self.id));
    }

    /// Sends a touch for a heartbeat.
    pub fn heartbeat(&self) {
        let _ = self.registry.try_send(Touch::heartbeat(self.id));
    }

    /// Sends a touch in the next batch of this thread.
    fn batched_touch(&self) {
        batch::touch(&self.registry, Touch::new(self.id));
    }

    /// Sends a heartbeat in the next batch of this thread.
    fn batched_heartbeat(&self) {
        batch::touch(&self.registry, Touch::heartbeat(self.id));
    }

    /// The hook for text frames: sends a touch, and returns the text to be handled, unless it is the literal
    /// `"heartbeat"` (JSON, with its quotes).
    #[must_use]
    pub fn text<'a>(&self, text: &'a str) -> Option<&'a str> {
        if text == HEARTBEAT {
            self.heartbeat();
            return None;
        }
        self.touch();
        Some(text)
    }

    /// Notes that the client has closed its socket in order: a drop is a leave with [`Cause::Left`] from now
    /// on, not with [`Cause::Disconnected`].
    pub fn goodbye(&mut self) {
        self.cause = Cause::Left;
    }

    /// Leaves every room now, with this cause.
    pub fn leave(&self, cause: Cause) {
        batch::flush();
        // Must not be lost; bounded, as it is sent at most twice.
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

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;
    use crate::{
        handle::PresenceConfig,
        messages::{Decision, GetStatus},
        model::{Info, UserId},
        testing::{Heard, Probe},
    };

    #[actix::test]
    async fn batches_of_touches_are_not_lost_to_a_full_mailbox_and_a_bounded_number_waits() {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        // The registry waits there.
        let authorize = move |room: &RoomName, _: Option<&UserId>, _: &Info| {
            if *room == *"gate" {
                _ = gate.lock().unwrap().recv();
            }
            Decision::Allow
        };
        let presence = PresenceConfig::new("sqlite::memory:").authorize(authorize).start().unwrap();
        let registry = presence.registry();
        let connections = [0, 1].map(|_| Connection::new(registry.clone()));
        let (session, _heard) = Probe::<Heard>::new();
        let join = |me: &Connection, room| me.join(RoomName::new(room).unwrap(), session.clone());
        for me in &connections {
            registry.send(join(me, "lobby")).await.unwrap().unwrap();
        }
        for batches in [4, 100] {
            let before = registry.send(GetStatus).await.unwrap().counters.touches;
            registry.do_send(join(&connections[0], "gate"));
            (0..5000).for_each(|_| registry.do_send(GetStatus));
            for touch in 0..batches * 1024 {
                connections[touch % 2].batched_touch();
            }
            open.send(()).unwrap();
            let touches = registry.send(GetStatus).await.unwrap().counters.touches - before;
            assert_eq!(touches, batches.min(16) as u64 * 1024);
        }
    }
}
