//! The dispatchers: the registry's own, and one on each thread that has sessions, which is started when the
//! registry first needs it. The own one serves joins that were made where no actix arbiter runs.

use std::{sync::Arc, thread::ThreadId, time::Duration};

use actix::{WeakRecipient, dev::OneshotSender, prelude::*};
use smallvec::SmallVec;

use super::{dispatcher::Dispatcher, frames::List, published::LocalMessage, receiver::Recipients};
use crate::{
    messages::{Disconnect, JoinError, Joined, SessionThread},
    model::{Cause, ConnectionId, Few, RoomName, micros},
};

/// A thread is stalled if this many orders are pending there and none was finished for this long.
const MAX_PENDING_ORDERS: usize = 256;
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Which dispatcher serves a connection; `None` is the registry's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DispatcherId(Option<u32>);

#[cfg(test)]
impl DispatcherId {
    pub fn numbered(number: u32) -> Self {
        Self(Some(number))
    }
}

pub(super) enum DeliveryOrder {
    Enter(RoomEntry),
    Exit {
        connection: ConnectionId,
        room: RoomName,
    },
    /// Tells a connection that it was removed from one of its rooms.
    NotifyRemoved {
        connection: ConnectionId,
        room: RoomName,
        cause: Cause,
    },
    /// Removes a connection from its last rooms, and closes it within the timeout if it has not closed
    /// itself.
    End {
        connection: ConnectionId,
        rooms: Few<(RoomName, bool)>,
        close: Option<(Disconnect, Duration)>,
    },
    /// Closes connections, which stay members until they leave by themselves.
    Drain {
        connections: Vec<ConnectionId>,
        disconnect: Disconnect,
    },
    Message(LocalMessage),
    List {
        list: Arc<List>,
        now: u64,
    },
    /// The full list for the listeners that need it, or for the newcomers among them.
    FullList {
        list: Arc<List>,
        only_newcomers: bool,
        now: u64,
    },
}

/// A connection that enters a room.
pub(super) struct RoomEntry {
    pub connection: ConnectionId,
    pub room: RoomName,
    pub recipients: Recipients,
    /// It may not see who is in the room.
    pub counts_only: bool,
    /// Tells the connection from an earlier one with the same id.
    pub serial: u32,
    /// Ascending number of the entry.
    pub number: u64,
    pub version: u64,
    /// The initial list; `None` for a connection that does not listen, or gets its list later.
    pub list: Option<Arc<List>>,
    pub replies: JoinReplies,
    pub now: u64,
}

pub(crate) struct JoinReply {
    pub channel: OneshotSender<Result<Joined, JoinError>>,
    pub joined: Joined,
}

pub(super) type JoinReplies = SmallVec<[JoinReply; 1]>;

pub(super) fn send_replies(replies: JoinReplies) {
    for JoinReply { channel, joined } in replies {
        // The receiver may have been dropped.
        let _ = channel.send(Ok(joined));
    }
}

/// The outcome of an order.
#[derive(Debug, Default, Message)]
#[rtype(result = "()")]
pub(crate) struct DeliveryReport {
    /// The room, for orders that concern one.
    pub(super) room: Option<RoomName>,
    /// The dispatcher that has handed out a list to all of its listeners.
    pub(super) listed: Option<DispatcherId>,
    /// Some listeners did not take the list, and need a full one later.
    pub(super) needs_full_list: bool,
    /// Thread time that the list has cost.
    pub(super) busy: Duration,
    /// Connections whose mailbox or backlog is full, with their serials.
    pub(super) slow: Vec<(ConnectionId, u32)>,
    /// Connections whose actor has stopped, with their serials.
    pub(super) gone: Vec<(ConnectionId, u32)>,
}

impl DeliveryReport {
    pub(super) fn of(room: &RoomName) -> Self {
        Self { room: Some(room.clone()), ..Self::default() }
    }

    fn is_empty(&self) -> bool {
        let failed = self.slow.len() + self.gone.len();
        self.listed.is_none() && !self.needs_full_list && failed == 0
    }
}

/// Acknowledges an order when it is dropped: sends the report to the registry, also if the dispatcher has
/// ended without reading the order.
pub(super) struct AckGuard {
    pub reports: Arc<WeakRecipient<DeliveryReport>>,
    pub report: DeliveryReport,
}

impl Drop for AckGuard {
    fn drop(&mut self) {
        if self.report.is_empty() {
            return;
        }
        if let Some(reports) = self.reports.upgrade() {
            // Bounded: one for each pending list, and one for each connection that ends.
            reports.do_send(std::mem::take(&mut self.report));
        }
    }
}

/// An order for the dispatcher of another thread.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct OrderEnvelope(pub DeliveryOrder, pub Option<AckGuard>);

/// Answered when the orders before are carried out.
#[cfg(any(test, feature = "testing"))]
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Carried;

#[cfg(any(test, feature = "testing"))]
impl Handler<Carried> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: Carried, _: &mut Context<Self>) {}
}

/// What became of an order that is to be acknowledged.
pub(super) enum SendOutcome {
    Done(DeliveryReport),
    /// The report comes as a message.
    Pending,
    /// Not sent: the thread has ended or is stalled.
    Unreachable,
}

/// The dispatcher of another thread.
struct ThreadDispatcher {
    thread: ThreadId,
    dispatcher: Addr<Dispatcher>,
    /// Shared with the pending orders, which are thereby counted.
    reports: Arc<WeakRecipient<DeliveryReport>>,
    /// How many were pending after the last was sent, and since when none was finished.
    pending: usize,
    since: u64,
    connections: usize,
}

/// All dispatchers of the registry.
#[derive(Default)]
pub(super) struct Dispatchers {
    own: Dispatcher,
    threads: Vec<ThreadDispatcher>,
    reports: Option<WeakRecipient<DeliveryReport>>,
}

impl Dispatchers {
    /// Sets the recipient for delivery reports of other threads; without one, the own dispatcher serves all.
    pub fn report_to(&mut self, reports: WeakRecipient<DeliveryReport>) {
        self.reports = Some(reports);
    }

    /// Adds a connection to the dispatcher of its thread, or to the own one if that thread is unknown or
    /// has ended.
    pub fn assign(&mut self, thread: Option<SessionThread>) -> DispatcherId {
        let Some(index) = thread.and_then(|thread| self.find_or_start(thread)) else {
            return DispatcherId(None);
        };
        self.threads[index].connections += 1;
        DispatcherId(u32::try_from(index).ok())
    }

    fn find_or_start(&mut self, SessionThread { id, arbiter }: SessionThread) -> Option<usize> {
        let is_live = |it: &ThreadDispatcher| it.thread == id && it.dispatcher.connected();
        if let Some(index) = self.threads.iter().position(is_live) {
            return Some(index);
        }
        let reports = Arc::new(self.reports.clone()?);
        let dispatcher = Dispatcher::start_in_arbiter(&arbiter, |_| Dispatcher::default());
        // An arbiter that has ended drops what is spawned on it.
        if !dispatcher.connected() {
            return None;
        }
        let (thread, pending, since, connections) = (id, 0, 0, 0);
        let new = ThreadDispatcher { thread, dispatcher, reports, pending, since, connections };
        let is_unused = |it: &ThreadDispatcher| it.connections == 0 && !it.dispatcher.connected();
        match self.threads.iter().position(is_unused) {
            Some(index) => {
                self.threads[index] = new;
                Some(index)
            }
            None => {
                self.threads.push(new);
                Some(self.threads.len() - 1)
            }
        }
    }

    /// Removes a connection from its dispatcher, which is kept for the next one of its thread.
    pub fn unassign(&mut self, dispatcher: DispatcherId) {
        if let Some(thread) = self.on_thread(dispatcher) {
            thread.connections -= 1;
        }
    }

    /// Gives an order that is not acknowledged.
    pub fn notify(&mut self, dispatcher: DispatcherId, order: DeliveryOrder) {
        match self.on_thread(dispatcher) {
            None => self.own.execute(order, &mut DeliveryReport::default()),
            Some(thread) => thread.dispatcher.do_send(OrderEnvelope(order, None)),
        }
    }

    /// Gives an order that is acknowledged with a report, now or later.
    pub fn request(
        &mut self,
        dispatcher: DispatcherId,
        order: DeliveryOrder,
        mut report: DeliveryReport,
        now: u64,
    ) -> SendOutcome {
        let Some(thread) = self.on_thread(dispatcher) else {
            self.own.execute(order, &mut report);
            return SendOutcome::Done(report);
        };
        if thread.is_stalled(now) {
            return SendOutcome::Unreachable;
        }
        let ack = AckGuard { reports: Arc::clone(&thread.reports), report };
        thread.dispatcher.do_send(OrderEnvelope(order, Some(ack)));
        SendOutcome::Pending
    }

    /// Done when the threads have carried out all orders.
    #[cfg(any(test, feature = "testing"))]
    pub fn settled(&self) -> impl Future<Output = ()> + use<> {
        let thread = |it: &ThreadDispatcher| (it.dispatcher.clone(), Arc::downgrade(&it.reports));
        let threads: Vec<_> = self.threads.iter().map(thread).collect();
        async {
            for (dispatcher, reports) in threads {
                // Those that are not acknowledged are carried out at once; lists are handed out in slices.
                while dispatcher.send(Carried).await.is_ok() && reports.strong_count() > 1 {}
            }
        }
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.own.is_idle() && self.threads.iter().all(|thread| thread.connections == 0)
    }

    fn on_thread(&mut self, DispatcherId(index): DispatcherId) -> Option<&mut ThreadDispatcher> {
        self.threads.get_mut(index? as usize)
    }
}

impl Drop for Dispatchers {
    fn drop(&mut self) {
        // The others notice by themselves.
        self.own.tell_crash();
    }
}

impl ThreadDispatcher {
    /// Whether it takes no orders any more. Counts one more if it does.
    fn is_stalled(&mut self, now: u64) -> bool {
        let pending = Arc::strong_count(&self.reports) - 1;
        if pending == 0 || pending < self.pending {
            self.since = now;
        }
        // Time alone would find every thread stalled after a pause of the process.
        let stalled =
            pending >= MAX_PENDING_ORDERS && now.saturating_sub(self.since) > micros(STALL_TIMEOUT);
        if stalled || !self.dispatcher.connected() {
            return true;
        }
        self.pending = pending + 1;
        false
    }
}
