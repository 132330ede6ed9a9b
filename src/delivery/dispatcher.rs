//! The dispatcher of a thread: delivers to the sessions there.
//!
//! Its mailbox is one sequence of orders, so a connection that has left a room gets none of the room's
//! later messages. Lists are handed out in slices, between which other orders are carried out: see
//! [`slices`](super::slices).

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix::prelude::*;
use ahash::RandomState;

use super::{
    dispatchers::{
        AckGuard, DeliveryOrder, DeliveryReport, JoinReplies, OrderEnvelope, RoomEntry,
        send_replies,
    },
    frames::List,
    published::LocalMessage,
    receiver::{Knowledge, Receiver, SendFailure},
    slices::{Handout, QueuedTask, RoomQueue, Slices},
};
use crate::{
    clock::{Stopwatch, ThreadTime},
    messages::{CRASHED, Disconnect, ForwardMessage, Forwarded},
    model::{ConnectionId, RoomName, Shrink, micros},
    sockets::CLOSE_TIMEOUT,
};

/// A listener that takes no list for this long is too slow.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// How many broadcasts are delivered before the sessions run: fewer than the smallest mailbox takes. One
/// counts for more by as many of these bytes as it has, as a backlog is bounded in bytes.
const BROADCASTS_PER_TURN: usize = 8;
const BYTES_PER_BROADCAST: usize = 64 * 1024;

pub(super) struct RoomMember {
    entry: u64,
    pub knowledge: Knowledge,
    /// It may not see who is in the room.
    pub counts_only: bool,
}

/// The members of a room on this thread.
#[derive(Default)]
pub(super) struct LocalRoom {
    pub members: HashMap<ConnectionId, RoomMember, RandomState>,
    /// The lists that are being handed out, and what waits for them.
    pub queue: Option<Box<RoomQueue>>,
    /// The last list that some listeners did not take, and when it was sent.
    pub refused: Option<(Arc<List>, u64)>,
}

/// The initial list for a connection that has entered a room.
pub(super) struct InitialDelivery {
    connection: ConnectionId,
    list: Arc<List>,
    rejoins: bool,
    replies: JoinReplies,
    now: u64,
}

/// Sessions that are to close as soon as these queues are handed out.
struct PendingDrain {
    connections: Vec<ConnectionId>,
    disconnect: Disconnect,
    queues: Vec<(RoomName, u64)>,
}

/// Delivers to the sessions of its thread.
#[derive(Default)]
pub(crate) struct Dispatcher {
    /// How many since the sessions ran.
    broadcasts: usize,
    pub(super) receivers: HashMap<ConnectionId, Receiver, RandomState>,
    pub(super) rooms: HashMap<RoomName, LocalRoom, RandomState>,
    pub(super) slices: Slices,
    drains: Vec<PendingDrain>,
}

impl Dispatcher {
    /// Carries out an order at once, also a list as a whole.
    pub(super) fn execute(&mut self, order: DeliveryOrder, report: &mut DeliveryReport) {
        match order {
            DeliveryOrder::Enter(entry) => {
                if let Some(initial) = self.enter(entry) {
                    self.send_initial_list(initial, report);
                }
            }
            DeliveryOrder::Exit { connection, room } => self.exit(connection, &room),
            DeliveryOrder::NotifyRemoved { connection, room, cause } => {
                if let Some(receiver) = self.receivers.get(&connection) {
                    // Bounded, as it is sent once for each entry: it may pass a full mailbox.
                    let closed = ForwardMessage::new(room, Forwarded::Closed { cause }, "");
                    receiver.recipients.forward.do_send(closed);
                }
            }
            DeliveryOrder::End { connection, rooms, close } => {
                for (room, _) in &*rooms {
                    self.exit(connection, room);
                }
                let ended = self.receivers.remove(&connection);
                let drained = self.take_pending_drain(connection);
                let close = close.or(drained.map(|disconnect| (disconnect, CLOSE_TIMEOUT)));
                self.receivers.shrink();
                self.rooms.shrink();
                if let (Some((disconnect, timeout)), Some(receiver)) = (close, ended) {
                    receiver.recipients.close(disconnect, timeout);
                }
            }
            DeliveryOrder::Drain { connections, disconnect } => {
                let queue = |(name, room): (&RoomName, &LocalRoom)| {
                    Some((name.clone(), room.queue.as_ref()?.number))
                };
                let queues = self.rooms.iter().filter_map(queue).collect();
                self.drains.push(PendingDrain { connections, disconnect, queues });
                self.finish_drains();
            }
            DeliveryOrder::Message(message) => self.send_message(&message, report),
            DeliveryOrder::FullList { list, only_newcomers, now } => {
                self.offer_full(&list, only_newcomers, now, report);
            }
            DeliveryOrder::List { list, now } => {
                let Some(room) = self.rooms.get(list.room()) else { return };
                let work = ThreadTime::now();
                let mut handout = Handout::new(list, now, room);
                self.hand_out(&mut handout, usize::MAX, report);
                report.busy = work.elapsed();
            }
        }
    }

    /// Closes the sessions that have got what waited before their drain.
    pub(super) fn finish_drains(&mut self) {
        if self.drains.is_empty() {
            return;
        }
        let Self { drains, rooms, receivers, .. } = self;
        let is_waiting = |(room, number): &(RoomName, u64)| {
            let queue = rooms.get(room).and_then(|room| room.queue.as_ref());
            queue.is_some_and(|queue| queue.number == *number)
        };
        let finished = drains.extract_if(.., |drain| {
            drain.queues.retain(is_waiting);
            drain.queues.is_empty()
        });
        for PendingDrain { connections, disconnect, .. } in finished {
            for connection in connections {
                if let Some(receiver) = receivers.get_mut(&connection) {
                    // A session ignores what it gets after `Disconnect`; sent nothing more, it cannot
                    // become too slow. One without that recipient is ended by the registry.
                    receiver.has_ended |= receiver.recipients.disconnect.is_some();
                    receiver.recipients.close(disconnect, CLOSE_TIMEOUT);
                }
            }
        }
    }

    /// The order to close of a connection that ends before the lists were handed out which it was to get first.
    fn take_pending_drain(&mut self, connection: ConnectionId) -> Option<Disconnect> {
        self.drains.iter_mut().find_map(|drain| {
            let place = drain.connections.iter().position(|one| *one == connection)?;
            drain.connections.swap_remove(place);
            Some(drain.disconnect)
        })
    }

    /// Nobody gives orders any more. A registry that shuts down has told all sessions before; who was not told hears
    /// that it has crashed, as does who is served by a thread that has ended.
    pub(super) fn tell_crash(&mut self) {
        self.drains.iter_mut().for_each(|drain| drain.queues.clear());
        self.finish_drains();
        for receiver in self.receivers.values().filter(|receiver| !receiver.has_ended) {
            receiver.recipients.close(CRASHED, CLOSE_TIMEOUT);
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.receivers.is_empty() && self.rooms.is_empty()
    }

    /// Adds the member, and returns what is to be sent to it. Without a list, its joins are answered.
    fn enter(&mut self, entry: RoomEntry) -> Option<InitialDelivery> {
        let RoomEntry { connection, room, recipients, serial, number, version, .. } = entry;
        let RoomEntry { list, replies, now, counts_only, .. } = entry;
        let receiver = match self.receivers.get_mut(&connection) {
            Some(known) if known.recipients.forward == recipients.forward => {
                // Failures and the backlog survive a rejoin.
                known.recipients.dialect = recipients.dialect;
                known
            }
            _ => {
                let receiver = Receiver::new(recipients, serial);
                self.receivers.entry(connection).insert_entry(receiver).into_mut()
            }
        };
        let listens = receiver.recipients.listens();
        let room = self.rooms.entry(room).or_default();
        let rejoins = room.members.contains_key(&connection);
        let knowledge = Knowledge::NotListening;
        let new = RoomMember { entry: number, knowledge, counts_only };
        let member = room.members.entry(connection).or_insert(new);
        member.counts_only = counts_only;
        member.knowledge.enter(listens, version);
        let Some(list) = list else {
            send_replies(replies);
            return None;
        };
        Some(InitialDelivery { connection, list, rejoins, replies, now })
    }

    /// Sends the initial list, then answers the joins: a session writes both at once.
    pub(super) fn send_initial_list(
        &mut self,
        initial: InitialDelivery,
        report: &mut DeliveryReport,
    ) {
        let InitialDelivery { connection, list, replies, now, .. } = initial;
        if let Some(room) = self.rooms.get_mut(list.room())
            && let Some(member) = room.members.get_mut(&connection)
            && let Some(receiver) = live(&mut self.receivers, &connection)
        {
            let sent = receiver.send_initial_list(&list, member, now);
            if note_sent(sent, connection, receiver, &member.knowledge, now, report) {
                room.refused.get_or_insert((list, now));
            }
        }
        send_replies(replies);
    }

    /// Adds a member. One that joins again gets its list after what waits in the room, as it gets that too.
    fn enter_in_order(&mut self, entry: RoomEntry, mut ack: AckGuard) {
        let Some(mut initial) = self.enter(entry) else { return };
        let room = self.rooms.get_mut(initial.list.room()).filter(|_| initial.rejoins);
        match room.and_then(|room| room.queue.as_mut()) {
            Some(queue) => {
                send_replies(std::mem::take(&mut initial.replies));
                queue.push(QueuedTask::InitialList(initial), ack);
            }
            None => self.send_initial_list(initial, &mut ack.report),
        }
    }

    /// Offers the full list. While lists are being handed out, newcomers get it at once, and others after
    /// what waits in the room, as they get that too.
    fn offer_full_in_order(&mut self, list: Arc<List>, now: u64, mut ack: AckGuard) {
        let queue = self.rooms.get_mut(list.room()).and_then(|room| room.queue.as_mut());
        let Some(queue) = queue else {
            return self.offer_full(&list, false, now, &mut ack.report);
        };
        let (reports, report) = (Arc::clone(&ack.reports), DeliveryReport::of(list.room()));
        queue.push(QueuedTask::FullList(Arc::clone(&list), now), AckGuard { reports, report });
        self.offer_full(&list, true, now, &mut ack.report);
    }

    /// Offers the full list to the listeners that need it, or to the newcomers among them.
    pub(super) fn offer_full(
        &mut self,
        list: &Arc<List>,
        only_newcomers: bool,
        now: u64,
        report: &mut DeliveryReport,
    ) {
        let Some(room) = self.rooms.get_mut(list.room()) else { return };
        if !only_newcomers {
            room.refused = None;
        }
        for (connection, member) in &mut room.members {
            if let Knowledge::NeedsFull(needed) = &member.knowledge
                && needed.waits_for_offer(only_newcomers)
                && let Some(receiver) = live(&mut self.receivers, connection)
            {
                let sent = receiver.send_list(list, member, now);
                if note_sent(sent, *connection, receiver, &member.knowledge, now, report) {
                    room.refused.get_or_insert_with(|| (Arc::clone(list), now));
                }
            }
        }
    }

    fn exit(&mut self, connection: ConnectionId, name: &RoomName) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.members.remove(&connection);
        if room.members.is_empty() {
            self.rooms.remove(name);
        }
    }

    pub(super) fn send_message(&mut self, message: &LocalMessage, report: &mut DeliveryReport) {
        let Self { rooms, receivers, .. } = self;
        let Some(LocalRoom { members, refused, .. }) = rooms.get_mut(message.frames.room()) else {
            return;
        };
        let work = Stopwatch::start();
        let refused = refused.as_ref();
        let mut send = |connection: &ConnectionId, member: &mut RoomMember| {
            usize::from(send_to_member(*connection, member, receivers, refused, message, report))
        };
        let taken = match &message.only {
            None => members.iter_mut().map(|(connection, member)| send(connection, member)).sum(),
            Some(only) => {
                let send = |one| members.get_mut(one).map(|member| send(one, member));
                only.iter().filter_map(send).sum()
            }
        };
        message.frames.count_taken(taken);
        let busy = micros(work.elapsed());
        metrics::counter!("presence_fan_out_microseconds_total").increment(busy);
    }

    /// Counts a broadcast. Returns whether the sessions have to run before the next order.
    pub(super) fn ends_turn(&mut self, bytes: usize) -> bool {
        self.broadcasts += 1 + bytes / BYTES_PER_BROADCAST;
        let ends = self.broadcasts >= BROADCASTS_PER_TURN;
        if ends {
            self.broadcasts = 0;
        }
        ends
    }
}

/// The receiver of a connection, unless it gets nothing more.
pub(super) fn live<'a>(
    receivers: &'a mut HashMap<ConnectionId, Receiver, RandomState>,
    connection: &ConnectionId,
) -> Option<&'a mut Receiver> {
    receivers.get_mut(connection).filter(|receiver| !receiver.has_ended)
}

/// Sends a message to a member, unless it is not for it. Returns whether it took it.
fn send_to_member(
    connection: ConnectionId,
    member: &mut RoomMember,
    receivers: &mut HashMap<ConnectionId, Receiver, RandomState>,
    refused: Option<&(Arc<List>, u64)>,
    message: &LocalMessage,
    report: &mut DeliveryReport,
) -> bool {
    let LocalMessage { frames, except, last_entry, min_version, .. } = message;
    if Some(connection) == *except || member.entry > *last_entry {
        return false;
    }
    let Some(receiver) = live(receivers, &connection) else { return false };
    if !frames.reaches(connection) {
        return false;
    }
    if let Some((list, now)) = refused
        && member.knowledge.lacks(*min_version)
    {
        // A session too slow for this is too slow for the message, or gets it without.
        _ = receiver.send_list_first(list, member, *now);
    }
    let failed = match receiver.send_message(frames) {
        Ok(()) => return true,
        Err(SendFailure::Full) => &mut report.slow,
        Err(SendFailure::Closed) => &mut report.gone,
    };
    receiver.has_ended = true;
    failed.push((connection, receiver.serial));
    false
}

/// Notes the outcome of sending a list. Returns whether it is to be sent again.
pub(super) fn note_sent(
    sent: Result<(), SendFailure>,
    connection: ConnectionId,
    receiver: &mut Receiver,
    knowledge: &Knowledge,
    now: u64,
    report: &mut DeliveryReport,
) -> bool {
    match sent {
        Ok(()) => false,
        Err(SendFailure::Closed) => {
            receiver.has_ended = true;
            report.gone.push((connection, receiver.serial));
            false
        }
        Err(SendFailure::Full) => {
            let Knowledge::NeedsFull(needed) = knowledge else { return false };
            let since = needed.refused_since.unwrap_or(now).max(receiver.full_taken);
            if now.saturating_sub(since) >= micros(LIST_TIMEOUT) {
                receiver.has_ended = true;
                report.slow.push((connection, receiver.serial));
                return false;
            }
            report.needs_full_list = true;
            true
        }
    }
}

impl Actor for Dispatcher {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.tell_crash();
    }
}

impl Handler<OrderEnvelope> for Dispatcher {
    type Result = ();

    fn handle(&mut self, OrderEnvelope(order, ack): OrderEnvelope, ctx: &mut Context<Self>) {
        let begun = self.slices.begin_other_work();
        match (order, ack) {
            (DeliveryOrder::List { list, now }, Some(ack)) => {
                return self.queue_list(list, now, ack, ctx);
            }
            (DeliveryOrder::Enter(entry), Some(ack)) => self.enter_in_order(entry, ack),
            (DeliveryOrder::FullList { list, only_newcomers: false, now }, Some(ack)) => {
                self.offer_full_in_order(list, now, ack);
            }
            (DeliveryOrder::Message(message), Some(ack)) => {
                self.send_message_in_order(message, ack, ctx);
            }
            (order, Some(mut ack)) => self.execute(order, &mut ack.report),
            (order, None) => self.execute(order, &mut DeliveryReport::default()),
        }
        self.slices.end_other_work(begun);
    }
}
