//! What a connection is sent, as a stream: for sessions that are no actors.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context as TaskContext, Poll, Waker},
};

use actix::prelude::*;
use futures_util::Stream;

use super::SESSION_MAILBOX_CAPACITY;
use crate::{
    messages::{Disconnect, ForwardMessage, Forwarded, Heard, LeaveAll, close_code},
    model::{Cause, ConnectionId},
    registry::RoomRegistry,
};

/// The actor that receives for a connection: see [`Connection::outlet`](crate::Connection::outlet).
pub struct Outlet {
    connection: ConnectionId,
    registry: Addr<RoomRegistry>,
    capacity: usize,
    shared: Shared,
}

/// What a connection is sent: see [`Connection::outlet`](crate::Connection::outlet).
///
/// After [`Heard::Close`], and when its thread ends, the stream ends. A frame counts towards the connection's
/// backlog until it is dropped: so keep it until it is written.
pub struct OutletStream {
    outlet: Addr<Outlet>,
    shared: Shared,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    frames: VecDeque<ForwardMessage>,
    close: Option<Disconnect>,
    /// Nothing is added any more.
    has_ended: bool,
    waker: Option<Waker>,
}

/// The stream was dropped.
#[derive(Message)]
#[rtype(result = "()")]
struct StreamDropped;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the stream after what waits in it, or with this order.
    fn end(&self, order: Option<Disconnect>) {
        let mut queue = self.lock();
        if queue.has_ended {
            return;
        }
        if order.is_some_and(|order| order.cause == Cause::SlowConsumer) {
            // Otherwise the client would have to read all of it before the close frame.
            queue.frames.clear();
        }
        (queue.close, queue.has_ended) = (order, true);
        queue.wake();
    }
}

impl Queue {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Outlet {
    pub(super) fn start(
        connection: ConnectionId,
        registry: Addr<RoomRegistry>,
        capacity: usize,
    ) -> (Addr<Self>, OutletStream) {
        let shared = Shared::default();
        let capacity = capacity.max(1);
        let outlet = Self { connection, registry, capacity, shared: shared.clone() };
        let outlet = match Arbiter::try_current() {
            Some(_) => Actor::start(outlet),
            // It never runs, and with it the stream ends.
            None => Context::new().address(),
        };
        (outlet.clone(), OutletStream { outlet, shared })
    }
}

impl Actor for Outlet {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(SESSION_MAILBOX_CAPACITY);
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.shared.end(None);
    }
}

impl Handler<ForwardMessage> for Outlet {
    type Result = ();

    fn handle(&mut self, msg: ForwardMessage, _: &mut Context<Self>) {
        let mut queue = self.shared.lock();
        if queue.has_ended {
            return;
        }
        // That it is out of a room is bounded by its rooms, and must not cost it the others.
        let is_notice = matches!(msg.kind, Forwarded::Closed { .. });
        if is_notice || queue.frames.len() < self.capacity {
            queue.frames.push_back(msg);
            return queue.wake();
        }
        drop(queue);
        metrics::counter!("presence_slow_consumers_total").increment(1);
        let cause = Cause::SlowConsumer;
        // Sent once: the stream has ended then.
        self.registry.do_send(LeaveAll::because(self.connection, cause));
        self.shared.end(close_code(cause).map(|code| Disconnect { code, cause }));
    }
}

impl Handler<Disconnect> for Outlet {
    type Result = ();

    fn handle(&mut self, order: Disconnect, ctx: &mut Context<Self>) {
        self.shared.end(Some(order));
        ctx.stop();
    }
}

impl Handler<StreamDropped> for Outlet {
    type Result = ();

    fn handle(&mut self, _: StreamDropped, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

impl OutletStream {
    /// What comes next; `None` when nothing comes any more. May be dropped while it waits, as `select!` does.
    pub async fn recv(&mut self) -> Option<Heard> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for OutletStream {
    type Item = Heard;

    fn poll_next(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Heard>> {
        let mut queue = self.shared.lock();
        if let Some(frame) = queue.frames.pop_front() {
            return Poll::Ready(Some(Heard::Frame(frame)));
        }
        if let Some(order) = queue.close.take() {
            return Poll::Ready(Some(Heard::Close(order)));
        }
        if queue.has_ended {
            return Poll::Ready(None);
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for OutletStream {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.frames.clear();
        queue.has_ended = true;
        drop(queue);
        // Sent once.
        self.outlet.do_send(StreamDropped);
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl fmt::Debug for OutletStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.shared.lock();
        f.debug_struct("OutletStream")
            .field("waiting", &queue.frames.len())
            .field("has_ended", &queue.has_ended)
            .finish_non_exhaustive()
    }
}
