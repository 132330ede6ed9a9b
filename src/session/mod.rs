//! Sessions, which connect a client to its rooms.
//!
//! Any session actor owns a [`Connection`], whatever carries its frames. [`WsSession`] and
//! [`PhoenixSession`] are ready-made sessions on actix-web-actors, one for each dialect.

mod channels;
mod guard;
mod json;
mod options;
mod phoenix;
mod write_queue;
mod ws;

use std::{
    cell::RefCell,
    fmt,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::Duration,
};

use actix::{WeakAddr, dev::ToEnvelope, prelude::*};
use actix_web::HttpRequest;
use tokio::sync::oneshot;

pub use self::{
    json::WsSession,
    options::{StopSignal, WsOptions, WsSessionError},
    phoenix::PhoenixSession,
};
use crate::{
    messages::{
        DEFAULT_BACKLOG_LIMIT, Disconnect, ForwardMessage, Join, JoinError, Joined, LeaveAll,
        PendingJoin, SessionBatch, Touch,
    },
    model::{Cause, ConnectionId, RoomName},
    registry::RoomRegistry,
    sockets::{self, CLOSE_TIMEOUT, SocketKey},
    wire::json::HEARTBEAT,
};

/// One connection: its id, its touches, and its leave.
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

    /// Notes that the client has closed its socket in order: a drop is a leave with [`Cause::Left`] from now
    /// on, not with [`Cause::Disconnected`].
    pub fn goodbye(&mut self) {
        self.cause = Cause::Left;
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
        self.leave(self.cause);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).field("cause", &self.cause).finish()
    }
}

/// How long a touch may wait. A join waits until the sessions of the thread that are ready have run.
const TOUCH_DELAY: Duration = Duration::from_millis(20);
/// How many touches a batch has at most.
const MAX_TOUCHES: usize = 1024;
/// How many batches of a thread may wait in the registry's mailbox; more touches are dropped.
const MAX_UNREAD_BATCHES: usize = 16;

thread_local! {
    static BATCHES: RefCell<Vec<RegistryBatch>> = const { RefCell::new(Vec::new()) };
}

/// The next batch of this thread for one registry: to wake the registry costs more than what it does with one
/// more touch or join.
struct RegistryBatch {
    /// Hash of the registry's address, unique for as long as `registry` is kept.
    id: u64,
    registry: WeakAddr<RoomRegistry>,
    batch: SessionBatch,
    /// Shared with the batches that the registry has not read, which are thereby counted.
    unread: Arc<()>,
}

/// Queues a touch. One that finds too many batches unread is dropped; the next one makes up for it.
fn batch_touch(registry: &Addr<RoomRegistry>, touch: Touch) {
    let (is_first, full) = with_batch(registry, |pending| {
        let touches = &mut pending.batch.touches;
        // A client that floods is no more alive than others.
        let is_repeated = touches.last() == Some(&touch);
        if !is_repeated {
            touches.push(touch);
        }
        let (is_first, is_full) = (touches.len() == 1, touches.len() >= MAX_TOUCHES);
        (is_first && !is_repeated, if is_full { pending.take() } else { None })
    });
    if let Some((registry, batch)) = full {
        registry.do_send(batch);
    }
    if is_first {
        actix::spawn(async {
            actix::clock::sleep(TOUCH_DELAY).await;
            flush_batches();
        });
    }
}

/// Joins; `None` if the registry has stopped.
async fn batch_join(registry: Addr<RoomRegistry>, join: Join) -> Option<Result<Joined, JoinError>> {
    let (reply, joined) = oneshot::channel();
    let is_first = with_batch(&registry, |pending| {
        pending.batch.joins.push(PendingJoin { join, reply });
        pending.batch.joins.len() == 1
    });
    if is_first {
        actix::spawn(async { flush_batches() });
    }
    joined.await.ok()
}

/// Sends the batches of this thread: before anything that must not overtake them.
fn flush_batches() {
    // A thread that is ending has nothing to send.
    let batches = BATCHES.try_with(|batches| {
        batches.borrow_mut().iter_mut().filter_map(RegistryBatch::take).collect::<Vec<_>>()
    });
    for (registry, batch) in batches.unwrap_or_default() {
        // Not refused by a full mailbox: it stands for many messages, each join is awaited by its
        // session, and batches of touches are bounded by `MAX_UNREAD_BATCHES`.
        registry.do_send(batch);
    }
}

fn with_batch<T>(registry: &Addr<RoomRegistry>, act: impl FnOnce(&mut RegistryBatch) -> T) -> T {
    let id = BuildHasherDefault::<DefaultHasher>::default().hash_one(registry);
    BATCHES.with_borrow_mut(|batches| {
        let known = batches.iter().position(|pending| pending.id == id);
        let index = known.unwrap_or_else(|| {
            batches.retain(|pending| pending.registry.upgrade().is_some());
            let (registry, batch) = (registry.downgrade(), SessionBatch::default());
            batches.push(RegistryBatch { id, registry, batch, unread: Arc::default() });
            batches.len() - 1
        });
        act(&mut batches[index])
    })
}

impl RegistryBatch {
    /// Takes what is to be sent, if there is anything.
    fn take(&mut self) -> Option<(Addr<RoomRegistry>, SessionBatch)> {
        let batch = std::mem::take(&mut self.batch);
        let unread = Arc::strong_count(&self.unread) - 1;
        let is_dropped = batch.touches.is_empty() || unread >= MAX_UNREAD_BATCHES;
        if batch.joins.is_empty() && is_dropped {
            return None;
        }
        let unread = Some(Arc::clone(&self.unread));
        Some((self.registry.upgrade()?, SessionBatch { unread, ..batch }))
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
