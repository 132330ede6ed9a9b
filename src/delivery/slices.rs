//! Lists, handed out to the listeners of a thread in slices.
//!
//! A list for thousands takes a thread longer than a newcomer should wait. So a slice takes about two
//! milliseconds, with what its sessions write, and other orders are carried out between two of them. The
//! rooms of a thread take turns. What has to come after a list waits in the queue of its room: a message
//! whose sender the list brings, the next list, and the full list for listeners that get what waits.
//!
//! Sessions run when what the dispatcher has spawned after waking them runs: a spawned future that is
//! ready at once is the barrier that tells when they have written what they were sent.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use ahash::RandomState;

use super::{
    dispatcher::{Dispatcher, InitialDelivery, LocalRoom, live, note_sent},
    dispatchers::{AckGuard, DeliveryReport},
    frames::List,
    published::LocalMessage,
};
use crate::{
    clock::{Stopwatch, ThreadTime},
    model::{ConnectionId, RoomName},
};

/// How long a slice takes at most, with what its sessions write.
const SLICE_TIME: Duration = Duration::from_millis(2);
/// How long sending its frames may take, and after how many of them that is looked at.
const SEND_TIME: Duration = Duration::from_millis(1);
const LOOK_EVERY: usize = 16;
/// How many listeners a slice has at least and at most.
const MIN_SLICE: usize = 32;
const MAX_SLICE: usize = 1024;

/// How long this thread takes for each listener.
struct ListenerTime(Duration);

impl Default for ListenerTime {
    fn default() -> Self {
        Self(Duration::from_micros(20))
    }
}

impl ListenerTime {
    /// How many listeners fit into a slice.
    fn slice(&self) -> usize {
        let listeners = SLICE_TIME.as_nanos() / self.0.as_nanos().max(1);
        usize::try_from(listeners).unwrap_or(MAX_SLICE).clamp(MIN_SLICE, MAX_SLICE)
    }

    fn note(&mut self, busy: Duration, listeners: usize) {
        // Fewer say more about other work of the thread.
        if let Some(listeners) = u32::try_from(listeners).ok().filter(|_| listeners >= MIN_SLICE) {
            self.0 = (self.0 + busy / listeners) / 2;
        }
    }
}

/// A list that is being handed out to the listeners of a thread.
pub(super) struct Handout {
    list: Arc<List>,
    now: u64,
    /// The listeners that have not got it yet.
    left: Vec<ConnectionId>,
    is_refused: bool,
    /// The slices so far: how many listeners they had, and how busy the thread was.
    slices: Vec<(u32, Duration)>,
}

impl Handout {
    pub fn new(list: Arc<List>, now: u64, room: &LocalRoom) -> Self {
        let version = list.version();
        let needy = room.members.iter().filter(|(_, one)| one.knowledge.needs(version));
        let left = needy.map(|(connection, _)| *connection).collect();
        Self { list, now, left, is_refused: false, slices: Vec::new() }
    }

    fn note(&mut self, listeners: usize, busy: Duration) {
        self.slices.push((u32::try_from(listeners).unwrap_or(u32::MAX), busy));
    }

    /// The thread time it has cost. A slice may contain other work, such as the writes of newcomers: of
    /// several slices one counts for no more than twice the median.
    fn cost(&self) -> Duration {
        let each = |(listeners, busy): &(u32, Duration)| *busy / (*listeners).max(1);
        let mut times: Vec<_> = self.slices.iter().map(each).collect();
        times.sort_unstable();
        let max = match times.len() {
            0..3 => Duration::MAX,
            several => times[several / 2] * 2,
        };
        let cost = |slice: &(u32, Duration)| slice.1.min(max.saturating_mul(slice.0.max(1)));
        self.slices.iter().map(cost).sum()
    }
}

pub(super) enum QueuedTask {
    List(Arc<List>, u64),
    Message(LocalMessage),
    /// The initial list for a member that has joined again.
    InitialList(InitialDelivery),
    /// The full list for the listeners that need it.
    FullList(Arc<List>, u64),
}

/// The lists of a room that are being handed out one after the other, and what comes after them.
pub(super) struct RoomQueue {
    /// Tells it from an earlier queue of the room.
    pub number: u64,
    handout: Option<(Handout, AckGuard)>,
    tasks: VecDeque<(QueuedTask, AckGuard)>,
    /// Whose messages wait: their later ones come after them.
    senders: HashSet<ConnectionId, RandomState>,
    /// The version of the last list that was handed out.
    listed_version: u64,
}

impl RoomQueue {
    pub fn push(&mut self, task: QueuedTask, ack: AckGuard) {
        if let QueuedTask::Message(LocalMessage { sender: Some(sender), .. }) = &task {
            self.senders.insert(*sender);
        }
        self.tasks.push_back((task, ack));
    }

    fn holds_back(&self, message: &LocalMessage) -> bool {
        message.min_version > self.listed_version
            || message.sender.is_some_and(|sender| self.senders.contains(&sender))
    }

    fn is_empty(&self) -> bool {
        self.handout.is_none() && self.tasks.is_empty()
    }
}

/// What a slice has sent, until the sessions have written it; then its orders are acknowledged.
#[derive(Default)]
struct Slice {
    listeners: usize,
    lists: Vec<ListSlice>,
    acks: Vec<(Option<LocalMessage>, AckGuard)>,
}

struct ListSlice {
    room: RoomName,
    queue: u64,
    listeners: usize,
    /// If that was the last of it.
    finished: Option<(Handout, AckGuard)>,
}

/// How a thread hands out its lists.
#[derive(Default)]
pub(super) struct Slices {
    listener_time: ListenerTime,
    rooms: VecDeque<RoomName>,
    /// The slice that the sessions are writing, with its number and when it began.
    current: Option<(Slice, u64, ThreadTime)>,
    count: u64,
    /// Thread time of other work meanwhile.
    other_work: Duration,
    queue_count: u64,
}

impl Slices {
    /// Measures work that is done between slices, and is not part of their cost.
    pub fn begin_other_work(&self) -> Option<ThreadTime> {
        self.current.is_some().then(ThreadTime::now)
    }

    pub fn end_other_work(&mut self, begun: Option<ThreadTime>) {
        self.other_work += begun.map_or(Duration::ZERO, ThreadTime::elapsed);
    }
}

impl Dispatcher {
    /// Sends a list to the next listeners. Returns how many they were.
    pub(super) fn hand_out(
        &mut self,
        handout: &mut Handout,
        max_listeners: usize,
        report: &mut DeliveryReport,
    ) -> usize {
        let Self { receivers, rooms, .. } = self;
        let Handout { list, now, left, is_refused, .. } = handout;
        let Some(room) = rooms.get_mut(list.room()) else {
            left.clear();
            return 0;
        };
        let (work, mut listeners) = (Stopwatch::start(), 0);
        while listeners < max_listeners
            && let Some(connection) = left.pop()
        {
            listeners += 1;
            let Some(member) = room.members.get_mut(&connection) else { continue };
            let Some(receiver) = live(receivers, &connection) else { continue };
            let sent = receiver.send_list(list, member, *now);
            *is_refused |= note_sent(sent, connection, receiver, &member.knowledge, *now, report);
            if *is_refused {
                room.refused = Some((Arc::clone(list), *now));
            }
            let look = listeners % LOOK_EVERY == 0 && max_listeners < usize::MAX;
            if look && work.elapsed() > SEND_TIME {
                break;
            }
        }
        if left.is_empty() && !*is_refused {
            room.refused.take_if(|(refused, _)| refused.version() <= list.version());
        }
        listeners
    }

    /// Queues a list, to be handed out after those of its room.
    pub(super) fn queue_list(
        &mut self,
        list: Arc<List>,
        now: u64,
        mut ack: AckGuard,
        ctx: &mut Context<Self>,
    ) {
        let (name, listed_version) = (list.room().clone(), list.first_base());
        // Newcomers without a list do not wait: they get messages meanwhile.
        self.offer_full(&list, true, now, &mut ack.report);
        let Some(room) = self.rooms.get_mut(&name) else { return };
        let task = QueuedTask::List(list, now);
        if let Some(queue) = &mut room.queue {
            return queue.push(task, ack);
        }
        let (number, tasks) = (self.slices.queue_count, VecDeque::from([(task, ack)]));
        let senders = HashSet::default();
        let queue = RoomQueue { number, handout: None, tasks, senders, listed_version };
        room.queue = Some(Box::new(queue));
        self.slices.queue_count += 1;
        self.slices.rooms.push_back(name);
        self.next_slice(ctx);
    }

    /// Sends a message to the members of its room, unless it has to come after a list that is being handed
    /// out.
    pub(super) fn send_message_in_order(
        &mut self,
        message: LocalMessage,
        mut ack: AckGuard,
        ctx: &mut Context<Self>,
    ) {
        if let Some(room) = self.rooms.get_mut(message.frames.room())
            && let Some(queue) = &mut room.queue
            && queue.holds_back(&message)
        {
            return queue.push(QueuedTask::Message(message), ack);
        }
        self.send_message(&message, &mut ack.report);
        let bytes = message.frames.bytes();
        // Acknowledged when the sessions that it woke have run: a publisher that waits for that cannot
        // fill their mailboxes.
        let barrier = actix::spawn(async { drop((message, ack)) });
        if self.ends_turn(bytes) {
            ctx.wait(barrier.into_actor(self).map(|_, dispatcher, ctx| {
                // The barrier of a slice may never be reached while messages come fast.
                dispatcher.end_slice();
                dispatcher.next_slice(ctx);
            }));
        }
    }

    /// Hands out the next slice, unless the sessions are writing the one before.
    fn next_slice(&mut self, ctx: &mut Context<Self>) {
        if self.slices.current.is_some() || self.slices.rooms.is_empty() {
            return;
        }
        let start = ThreadTime::now();
        let (mut slice, mut ends_turn) = (Slice::default(), false);
        let max_listeners = self.slices.listener_time.slice();
        let work = Stopwatch::start();
        while slice.listeners < max_listeners && !ends_turn && work.elapsed() < SEND_TIME {
            let Some(name) = self.slices.rooms.pop_front() else { break };
            let queue = self.rooms.get_mut(&name).and_then(|room| room.queue.take());
            let Some(mut queue) = queue else { continue };
            ends_turn = self.work_off(&name, &mut queue, max_listeners, &mut slice);
            if !queue.is_empty()
                && let Some(room) = self.rooms.get_mut(&name)
            {
                room.queue = Some(queue);
                self.slices.rooms.push_back(name);
            }
        }
        let number = self.slices.count;
        self.slices.count += 1;
        self.slices.other_work = Duration::ZERO;
        self.slices.current = Some((slice, number, start));
        let barrier = actix::spawn(async {}).into_actor(self).map(move |_, dispatcher, ctx| {
            let current = dispatcher.slices.current.as_ref();
            if current.is_some_and(|(_, current, _)| *current == number) {
                dispatcher.end_slice();
            }
            if !dispatcher.slices.rooms.is_empty() {
                // After the orders that have come meanwhile.
                let next = async {}.into_actor(dispatcher);
                ctx.spawn(next.map(|(), dispatcher, ctx| dispatcher.next_slice(ctx)));
            }
        });
        if ends_turn {
            ctx.wait(barrier);
        } else {
            // Other orders are carried out meanwhile.
            ctx.spawn(barrier);
        }
    }

    /// Does what waits in a room, until the slice has enough listeners. Returns whether the sessions have to
    /// run before anything else.
    fn work_off(
        &mut self,
        name: &RoomName,
        queue: &mut RoomQueue,
        max_listeners: usize,
        slice: &mut Slice,
    ) -> bool {
        loop {
            if let Some((handout, ack)) = &mut queue.handout {
                let left = max_listeners - slice.listeners;
                let listeners = self.hand_out(handout, left, &mut ack.report);
                slice.listeners += listeners;
                let finished = queue.handout.take_if(|(handout, _)| handout.left.is_empty());
                let is_finished = finished.is_some();
                if let Some((handout, _)) = &finished {
                    queue.listed_version = queue.listed_version.max(handout.list.version());
                }
                let (room, queue) = (name.clone(), queue.number);
                slice.lists.push(ListSlice { room, queue, listeners, finished });
                if !is_finished {
                    return false;
                }
            }
            if slice.listeners >= max_listeners {
                return false;
            }
            let Some((task, mut ack)) = queue.tasks.pop_front() else { return false };
            let mut ends_turn = false;
            match task {
                QueuedTask::List(list, now) => {
                    let Some(room) = self.rooms.get(name) else { return false };
                    queue.handout = Some((Handout::new(list, now, room), ack));
                    ends_turn = self.ends_turn(0);
                }
                QueuedTask::InitialList(initial) => {
                    self.send_initial_list(initial, &mut ack.report);
                    slice.acks.push((None, ack));
                }
                QueuedTask::FullList(list, now) => {
                    self.offer_full(&list, false, now, &mut ack.report);
                    slice.acks.push((None, ack));
                }
                QueuedTask::Message(message) => {
                    self.send_message(&message, &mut ack.report);
                    ends_turn = self.ends_turn(message.frames.bytes());
                    slice.acks.push((Some(message), ack));
                }
            }
            if ends_turn {
                return true;
            }
        }
    }

    /// The sessions have written what they were sent: each list gets its share of the time.
    fn end_slice(&mut self) {
        let Some((slice, _, start)) = self.slices.current.take() else { return };
        let busy = start.elapsed().saturating_sub(self.slices.other_work);
        self.slices.listener_time.note(busy, slice.listeners);
        let total = u32::try_from(slice.listeners).unwrap_or(u32::MAX).max(1);
        for ListSlice { room, queue: number, listeners, finished } in slice.lists {
            let share = busy / total * u32::try_from(listeners).unwrap_or(u32::MAX);
            if let Some((mut handout, mut ack)) = finished {
                handout.note(listeners, share);
                ack.report.busy = handout.cost();
            } else if let Some(queue) = self.rooms.get_mut(&room).and_then(|it| it.queue.as_mut())
                && queue.number == number
                && let Some((handout, _)) = &mut queue.handout
            {
                handout.note(listeners, share);
            }
        }
        self.finish_drains();
    }
}
