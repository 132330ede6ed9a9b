//! Sessions, which connect a client to its rooms.
//!
//! Any session actor owns a [`Connection`], whatever carries its frames. [`WsSession`] and
//! [`PhoenixSession`] are ready-made sessions on actix-web-actors, one for each dialect.

mod batches;
mod channels;
mod guard;
mod idle;
mod joined_channels;
mod joining;
mod json;
mod options;
mod outlet;
mod phoenix;
mod write_queue;
mod ws;

use std::{fmt, future::poll_fn, pin::pin, sync::Arc, task::Poll};

use actix::{dev::ToEnvelope, prelude::*};
use actix_http::ws::{CloseCode, CloseReason};
use actix_web::HttpRequest;

use self::batches::{batch_register, batch_touch, flush_batches};
pub use self::{
    idle::{IdleStep, IdleWatch},
    json::WsSession,
    options::{WsOptions, WsSessionError},
    outlet::{Outlet, OutletStream},
    phoenix::PhoenixSession,
};
use crate::{
    messages::{
        DEFAULT_BACKLOG_LIMIT, Disconnect, ForwardMessage, Join, JoinError, Joined, Leave,
        LeaveAll, PresenceError, Publish, Registration, SessionPublish, Touch, UpdateInfo,
    },
    model::{Cause, ConnectionId, Info, RoomName},
    registry::RoomRegistry,
    sockets::{self, CLOSE_TIMEOUT, SocketKey},
    wire::json::HEARTBEAT,
};

/// How many messages may wait for a session before it counts as too slow.
const SESSION_MAILBOX_CAPACITY: usize = 256;

/// One connection: its id, what it does in its rooms, and its leave.
///
/// Its methods send messages to the registry. Those that answer return a future that borrows nothing, so that an
/// actor can wait for it and a task can await it. Await it: dropped before the registry has come to the message, it
/// may have had no effect; dropped later, as by a timeout, the message is handled all the same.
///
/// Dropping it leaves every room. A session actor that owns one therefore leaves when it stops, when its
/// response is dropped, and when it panics.
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
///         let joining = self.me.enter(join).into_actor(self);
///         ctx.wait(joining.map(|answer, _, ctx| match answer {
///             Ok(joined) => println!("{} are here", joined.snapshot.occupancy().connections),
///             Err(_) => ctx.stop(),
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
    /// Taken when it is dropped.
    alive: Option<Arc<()>>,
}

impl Connection {
    /// A new connection, in no room yet.
    #[must_use]
    pub fn new(registry: Addr<RoomRegistry>) -> Self {
        let backlog_limit = DEFAULT_BACKLOG_LIMIT;
        let (id, socket, cause) = (ConnectionId::new(), None, Cause::Disconnected);
        Self { registry, id, backlog_limit, socket, cause, alive: Some(Arc::default()) }
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

    fn with_backlog_limit(mut self, bytes: usize) -> Self {
        self.backlog_limit = bytes;
        self
    }

    /// The id of the connection.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The registry of the rooms.
    #[must_use]
    pub fn registry(&self) -> &Addr<RoomRegistry> {
        &self.registry
    }

    /// The message with which the session enters a room; add user, info and dialect, and
    /// [`enter`](Self::enter) with it.
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

    /// Enters a room with a message that [`join`](Self::join) has made: the answer comes when the connection is
    /// a member, and has been sent who else is. A join that has not been answered when the connection is dropped is
    /// withdrawn.
    ///
    /// # Errors
    ///
    /// [`PresenceError::Join`] with the reason of a refusal, or [`PresenceError::Ended`].
    pub fn enter(&self, join: Join) -> impl Future<Output = Result<Joined, PresenceError>> + use<> {
        let joined = self.registry.send(Join { connection: self.id, ..join });
        let alive = self.alive.as_ref().map(Arc::downgrade).unwrap_or_default();
        async move {
            let mut joined = pin!(joined);
            // A poll sends a message that a full mailbox has not taken, and it must not follow the leave.
            let joined = poll_fn(|cx| match alive.strong_count() {
                0 => Poll::Ready(None),
                _ => joined.as_mut().poll(cx).map(Some),
            });
            match joined.await {
                Some(joined) => Ok(joined.map_err(|_| PresenceError::Ended)??),
                None => Err(JoinError::Withdrawn.into()),
            }
        }
    }

    /// Leaves one room, with [`Cause::Left`]. Answers whether it was in it.
    ///
    /// # Errors
    ///
    /// [`PresenceError::Ended`].
    pub fn leave_room(
        &self,
        room: RoomName,
    ) -> impl Future<Output = Result<bool, PresenceError>> + use<> {
        let left = self.registry.send(Leave::new(room, self.id));
        async { left.await.map_err(|_| PresenceError::Ended) }
    }

    /// Publishes in the name of this connection. Answers how many took it, or after 50 ms how many have taken it
    /// so far.
    ///
    /// A session that waits for the answer before it reads its client's next frame cannot be flooded.
    ///
    /// ```
    /// use actix_presence::{Connection, PresenceError, Publish, RoomName};
    ///
    /// async fn say(me: &Connection, room: RoomName, text: String) -> Result<usize, PresenceError> {
    ///     me.publish(Publish::new(room, text).except(me.id())).await
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`PresenceError::Publish`]: see [`Publish::from`]. Or [`PresenceError::Ended`].
    pub fn publish(
        &self,
        publish: Publish,
    ) -> impl Future<Output = Result<usize, PresenceError>> + use<> {
        let published = self.registry.send(SessionPublish(publish.sent_by(self.id)));
        async { Ok(published.await.map_err(|_| PresenceError::Ended)??) }
    }

    /// Replaces the info of its presence in a room. Answers whether that changed anything.
    ///
    /// # Errors
    ///
    /// [`PresenceError::Ended`].
    pub fn update_info(
        &self,
        room: RoomName,
        info: Info,
    ) -> impl Future<Output = Result<bool, PresenceError>> + use<> {
        let updated = self.registry.send(UpdateInfo { room, connection: self.id, info });
        async { updated.await.map_err(|_| PresenceError::Ended) }
    }

    /// Has the session told to close when the app shuts down, also while it is in no room; at once, if it shuts
    /// down or has done so. To be called once; holds until this is dropped.
    ///
    /// ```
    /// # use actix::prelude::*;
    /// # use actix_presence::{Connection, Disconnect};
    /// struct Lobbyist {
    ///     me: Connection,
    /// }
    ///
    /// impl Actor for Lobbyist {
    ///     type Context = Context<Self>;
    ///
    ///     fn started(&mut self, ctx: &mut Self::Context) {
    ///         self.me.register(ctx.address());
    ///     }
    /// }
    ///
    /// impl Handler<Disconnect> for Lobbyist {
    ///     type Result = ();
    ///     fn handle(&mut self, order: Disconnect, ctx: &mut Self::Context) {
    ///         println!("close with {}", order.code);
    ///         ctx.stop();
    ///     }
    /// }
    /// ```
    pub fn register<A>(&self, session: Addr<A>)
    where
        A: Actor + Handler<Disconnect>,
        A::Context: ToEnvelope<A, Disconnect>,
    {
        // Bounded: one for each connection. Its leave takes it back.
        self.registry.do_send(self.registration(session));
    }

    /// As [`register`](Self::register), in the next batch of this thread.
    fn batched_register<A>(&self, session: Addr<A>)
    where
        A: Actor + Handler<Disconnect>,
        A::Context: ToEnvelope<A, Disconnect>,
    {
        batch_register(&self.registry, self.registration(session));
    }

    fn registration<A>(&self, session: Addr<A>) -> Registration
    where
        A: Actor + Handler<Disconnect>,
        A::Context: ToEnvelope<A, Disconnect>,
    {
        let alive = self.alive.as_ref().map(Arc::downgrade);
        Registration::new(self.id, session.recipient(), alive)
    }

    /// Starts what a session that is no actor receives with: the address to [`join`](Self::join) with, and the
    /// stream of what the connection is sent. It is [registered](Self::register), too.
    ///
    /// At most `capacity` frames (at least 1) wait in the stream, and of so many bytes as for any session; a connection that
    /// lets more wait leaves its rooms ([`Cause::SlowConsumer`]), and its stream ends with the order to close. The
    /// outlet runs on the thread that calls this, which has to be one of an actix system; elsewhere the stream has
    /// ended already.
    ///
    /// ```
    /// # use actix_presence::{GetOccupancy, PresenceConfig, RoomName};
    /// use actix_presence::{Connection, PresenceError, Heard};
    ///
    /// async fn listen(me: Connection, room: RoomName) -> Result<(), PresenceError> {
    ///     let (outlet, mut heard) = me.outlet(256);
    ///     me.enter(me.join(room, outlet)).await?;
    ///     while let Some(heard) = heard.recv().await {
    ///         match heard {
    ///             Heard::Frame(frame) => println!("to the client: {}", frame.payload),
    ///             Heard::Close(order) => println!("close with {}", order.code),
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// # #[actix::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let presence = PresenceConfig::new("sqlite::memory:").start()?;
    /// # let me = Connection::new(presence.registry());
    /// # let (registry, room) = (presence.registry(), RoomName::new("lobby")?);
    /// # let listening = actix::spawn(listen(me, room.clone()));
    /// # while registry.send(GetOccupancy { room: room.clone() }).await??.connections == 0 {}
    /// # presence.shutdown(std::time::Duration::from_secs(5)).await?;
    /// # Ok(listening.await??)
    /// # }
    /// ```
    #[must_use]
    pub fn outlet(&self, capacity: usize) -> (Addr<Outlet>, OutletStream) {
        let (outlet, stream) = Outlet::start(self.id, self.registry.clone(), capacity);
        self.register(outlet.clone());
        (outlet, stream)
    }

    /// Sends a [`Touch`]: to be called for every frame, also for pings and pongs.
    pub fn touch(&self) {
        // A touch that meets a full mailbox is dropped; the next one makes up for it.
        let _ = self.registry.try_send(Touch::new(self.id));
    }

    /// Sends a [`Touch`] for a heartbeat.
    pub fn heartbeat(&self) {
        let _ = self.registry.try_send(Touch::heartbeat(self.id));
    }

    /// As [`touch`](Self::touch), in the next batch of this thread.
    fn batched_touch(&self) {
        batch_touch(&self.registry, Touch::new(self.id));
    }

    fn batched_heartbeat(&self) {
        batch_touch(&self.registry, Touch::heartbeat(self.id));
    }

    /// Handles a text frame: sends a touch, and returns the text, unless it is the literal `"heartbeat"` (JSON,
    /// with its quotes).
    #[must_use]
    pub fn text<'a>(&self, text: &'a str) -> Option<&'a str> {
        if text == HEARTBEAT {
            self.heartbeat();
            return None;
        }
        self.touch();
        Some(text)
    }

    /// Notes the close frame of the client. With code 1000, or none, it has left: the drop is a leave with
    /// [`Cause::Left`]. With any other, such as 1001 of a page that is reloaded, the drop stays one with
    /// [`Cause::Disconnected`], after which a [client session](Join::session) fades.
    ///
    /// ```
    /// use actix_presence::Connection;
    /// use actix_web_actors::ws::Message;
    ///
    /// fn handle(me: &mut Connection, frame: Message) {
    ///     if let Message::Close(reason) = frame {
    ///         me.closed_by_client(reason.as_ref());
    ///     }
    /// }
    /// ```
    pub fn closed_by_client(&mut self, reason: Option<&CloseReason>) {
        if reason.is_none_or(|reason| reason.code == CloseCode::Normal) {
            self.cause = Cause::Left;
        }
    }

    /// Leaves every room now, with this cause.
    pub fn leave(&self, cause: Cause) {
        flush_batches();
        // Must not be lost; bounded, as it is sent at most twice.
        self.registry.do_send(LeaveAll::because(self.id, cause));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Before the leave, which ends what was registered then.
        self.alive = None;
        self.leave(self.cause);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("cause", &self.cause).finish()
    }
}
