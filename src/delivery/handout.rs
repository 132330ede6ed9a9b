//! Lists, handed out to the listeners of a thread in slices.
//!
//! A list for thousands takes a thread longer than who has just come should wait. So a slice takes about
//! two milliseconds, with what its sessions write, and other orders are taken between two of them:
//! newcomers get their state, and messages go on. The rooms of a thread take turns. What has to come after
//! a list waits in the queue of its room: a message whose sender the list brings, the next list, and the
//! whole list for those who hear what waits.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use ahash::RandomState;

use super::{
    audience::Said,
    courier::{Courier, Room},
    list::List,
    order::{Errand, Greeting, Report},
};
use crate::{
    clock::{Stopwatch, ThreadTime},
    model::{ConnectionId, RoomName},
};

/// How long a slice takes at most, with what its sessions write.
const SLICE_TIME: Duration = Duration::from_millis(2);
/// How long its frames may take to be handed over, and after how many of them that is looked at.
const HAND_OVER_TIME: Duration = Duration::from_millis(1);
const LOOK_EVERY: usize = 16;
/// How many listeners a slice has at least and at most.
const MIN_SLICE: usize = 32;
const MAX_SLICE: usize = 1024;

/// How long this thread takes for each listener.
pub(super) struct Pace(Duration);

impl Default for Pace {
    fn default() -> Self {
        Self(Duration::from_micros(20))
    }
}

impl Pace {
    fn slice(&self) -> usize {
        let listeners = SLICE_TIME.as_nanos() / self.0.as_nanos().max(1);
        usize::try_from(listeners).unwrap_or(MAX_SLICE).clamp(MIN_SLICE, MAX_SLICE)
    }

    fn note(&mut self, busy: Duration, listeners: usize) {
        // Fewer tell more of other things that the thread has done.
        if let Some(listeners) = u32::try_from(listeners).ok().filter(|_| listeners >= MIN_SLICE) {
            self.0 = (self.0 + busy / listeners) / 2;
        }
    }
}

/// A list on its way to the listeners of a thread.
pub(super) struct Handout {
    list: Arc<List>,
    now: u64,
    /// Who is to get it yet.
    left: Vec<ConnectionId>,
    /// Whether somebody has not taken it.
    refused: bool,
    /// The slices so far: how many they served, and how long the thread was busy meanwhile.
    slices: Vec<(u32, Duration)>,
}

impl Handout {
    pub fn new(list: Arc<List>, now: u64, room: &Room) -> Self {
        let version = list.version();
        let needy = room.members.iter().filter(|(_, one)| one.knows.needs(version));
        let left = needy.map(|(connection, _)| *connection).collect();
        Self { list, now, left, refused: false, slices: Vec::new() }
    }

    /// A slice of it is over.
    fn note(&mut self, served: usize, busy: Duration) {
        self.slices.push((u32::try_from(served).unwrap_or(u32::MAX), busy));
    }

    /// What it has cost. In the time of a slice the thread may have done something else, such as to write
    /// what newcomers are told: of several slices one counts for no more than twice the median.
    fn cost(&self) -> Duration {
        let pace = |(served, busy): &(u32, Duration)| *busy / (*served).max(1);
        let mut paces: Vec<_> = self.slices.iter().map(pace).collect();
        paces.sort_unstable();
        let most = match paces.len() {
            0..3 => Duration::MAX,
            several => paces[several / 2] * 2,
        };
        let cost = |slice: &(u32, Duration)| slice.1.min(most.saturating_mul(slice.0.max(1)));
        self.slices.iter().map(cost).sum()
    }
}

/// Something that waits for its turn in a room.
pub(super) enum Task {
    List {
        list: Arc<List>,
        now: u64,
        errand: Errand,
    },
    Message(Said, Errand),
    /// The list for one who has joined again, and hears what was said before.
    Greeting(Greeting, Errand),
    /// The whole list for those who are owed it.
    Offer {
        list: Arc<List>,
        now: u64,
        errand: Errand,
    },
}

/// The lists of a room that are being handed out, one after the other, and what comes after them.
pub(super) struct Queue {
    /// Tells it from an earlier one of the room.
    number: u64,
    handout: Option<(Handout, Errand)>,
    tasks: VecDeque<Task>,
    /// Whose messages are among the tasks: their later ones come after them.
    senders: HashSet<ConnectionId, RandomState>,
    /// The version of the last list that everybody got whom it was for.
    told: u64,
}

impl Queue {
    pub fn push(&mut self, task: Task) {
        if let Task::Message(Said { sender: Some(sender), .. }, _) = &task {
            self.senders.insert(*sender);
        }
        self.tasks.push_back(task);
    }

    /// Whether a message has to come after what is in the queue.
    fn holds_back(&self, said: &Said) -> bool {
        said.after > self.told || said.sender.is_some_and(|sender| self.senders.contains(&sender))
    }

    fn is_empty(&self) -> bool {
        self.handout.is_none() && self.tasks.is_empty()
    }
}

/// What a slice has done, until the sessions have written it. Its errands end with it.
#[derive(Default)]
struct Slice {
    /// How many listeners it has served.
    served: usize,
    lists: Vec<Part>,
    messages: Vec<(Said, Errand)>,
    errands: Vec<Errand>,
}

/// What a slice has done of one list.
struct Part {
    room: RoomName,
    queue: u64,
    served: usize,
    /// If that was the last of it.
    done: Option<(Handout, Errand)>,
}

/// How a thread hands out its lists.
#[derive(Default)]
pub(super) struct Slices {
    pace: Pace,
    /// Rooms that have a queue.
    rooms: VecDeque<RoomName>,
    /// The slice that the sessions are writing, with its number and when it began.
    out: Option<(Slice, u64, ThreadTime)>,
    /// How many slices there have been.
    count: u64,
    /// What the thread has done besides meanwhile.
    aside: Duration,
    /// How many queues there have been.
    queues: u64,
}

impl Slices {
    /// Measures something that is done between slices, and is none of their cost.
    pub fn begin_aside(&self) -> Option<ThreadTime> {
        self.out.is_some().then(ThreadTime::now)
    }

    pub fn end_aside(&mut self, begun: Option<ThreadTime>) {
        self.aside += begun.map_or(Duration::ZERO, ThreadTime::elapsed);
    }
}

impl Courier {
    /// Hands a list to the next listeners. Answers how many they were.
    pub(super) fn hand_out(
        &mut self,
        handout: &mut Handout,
        listeners: usize,
        report: &mut Report,
    ) -> usize {
        let Self { sessions, rooms, .. } = self;
        let Handout { list, now, left, refused, .. } = handout;
        let Some(room) = rooms.get_mut(list.room()) else {
            left.clear();
            return 0;
        };
        let (work, mut served) = (Stopwatch::start(), 0);
        while served < listeners
            && let Some(connection) = left.pop()
        {
            served += 1;
            let Some(member) = room.members.get_mut(&connection) else { continue };
            let Some(session) = sessions.get_mut(&connection).filter(|one| !one.ended) else {
                continue;
            };
            let told = session.tell(list, &mut member.knows, *now);
            *refused |= Self::note(told, connection, session, &member.knows, *now, report);
            if *refused {
                room.refused = Some((Arc::clone(list), *now));
            }
            let look = served % LOOK_EVERY == 0 && listeners < usize::MAX;
            if look && work.elapsed() > HAND_OVER_TIME {
                break;
            }
        }
        if left.is_empty() && !*refused {
            room.refused.take_if(|(refused, _)| refused.version() <= list.version());
        }
        served
    }

    /// Takes a list, to be handed out after those of the room that are on their way.
    pub(super) fn take_list(
        &mut self,
        list: Arc<List>,
        now: u64,
        mut errand: Errand,
        ctx: &mut Context<Self>,
    ) {
        let (name, told) = (list.room().clone(), list.told_before());
        // They have no list yet, and hear what is said meanwhile.
        self.offer(&list, true, now, &mut errand.report);
        let Some(room) = self.rooms.get_mut(&name) else { return };
        let task = Task::List { list, now, errand };
        if let Some(queue) = &mut room.queue {
            return queue.push(task);
        }
        let (number, tasks, senders) = (self.slices.queues, VecDeque::new(), HashSet::default());
        let mut queue = Box::new(Queue { number, handout: None, tasks, senders, told });
        queue.push(task);
        room.queue = Some(queue);
        self.slices.queues += 1;
        self.slices.rooms.push_back(name);
        self.go_on(ctx);
    }

    /// Hands a message to the members of its room, unless it has to come after a list that is on its way.
    pub(super) fn take_message(&mut self, said: Said, mut errand: Errand, ctx: &mut Context<Self>) {
        if let Some(room) = self.rooms.get_mut(said.message.room())
            && let Some(queue) = &mut room.queue
            && queue.holds_back(&said)
        {
            return queue.push(Task::Message(said, errand));
        }
        self.message(&said, &mut errand.report);
        let bytes = said.message.bytes();
        // It is done when those who were woken by it have had their turn, and written it to their
        // sockets: who waits for that cannot fill their mailboxes.
        let turn = actix::spawn(async { drop((said, errand)) });
        if self.ends_turn(bytes) {
            ctx.wait(turn.into_actor(self).map(|_, courier, ctx| {
                // Messages may come so fast that nothing else ends a slice; its sessions have had their
                // turn, too.
                courier.end_slice();
                courier.go_on(ctx);
            }));
        }
    }

    /// Hands out the next slice, unless the sessions are writing the one before.
    fn go_on(&mut self, ctx: &mut Context<Self>) {
        if self.slices.out.is_some() || self.slices.rooms.is_empty() {
            return;
        }
        let start = ThreadTime::now();
        let (mut slice, budget, mut is_turn) = (Slice::default(), self.slices.pace.slice(), false);
        let work = Stopwatch::start();
        while slice.served < budget && !is_turn && work.elapsed() < HAND_OVER_TIME {
            let Some(name) = self.slices.rooms.pop_front() else { break };
            let queue = self.rooms.get_mut(&name).and_then(|room| room.queue.take());
            let Some(mut queue) = queue else { continue };
            is_turn = self.work_off(&name, &mut queue, budget, &mut slice);
            if !queue.is_empty()
                && let Some(room) = self.rooms.get_mut(&name)
            {
                room.queue = Some(queue);
                self.slices.rooms.push_back(name);
            }
        }
        let number = self.slices.count;
        self.slices.count += 1;
        self.slices.aside = Duration::ZERO;
        self.slices.out = Some((slice, number, start));
        let turn = actix::spawn(async {}).into_actor(self).map(move |_, courier, ctx| {
            if courier.slices.out.as_ref().is_some_and(|(_, out, _)| *out == number) {
                courier.end_slice();
            }
            if !courier.slices.rooms.is_empty() {
                // After the orders that have come meanwhile.
                ctx.spawn(async {}.into_actor(courier).map(|(), courier, ctx| courier.go_on(ctx)));
            }
        });
        if is_turn {
            ctx.wait(turn);
        } else {
            // Other orders are taken meanwhile.
            ctx.spawn(turn);
        }
    }

    /// Does what waits in a room, until the slice has served so many listeners. Says whether the sessions
    /// are to have their turn before anything else.
    fn work_off(
        &mut self,
        name: &RoomName,
        queue: &mut Queue,
        budget: usize,
        slice: &mut Slice,
    ) -> bool {
        loop {
            if let Some((handout, errand)) = &mut queue.handout {
                let left = budget - slice.served;
                let served = self.hand_out(handout, left, &mut errand.report);
                slice.served += served;
                let done = queue.handout.take_if(|(handout, _)| handout.left.is_empty());
                let is_done = done.is_some();
                if let Some((handout, _)) = &done {
                    queue.told = queue.told.max(handout.list.version());
                }
                let room = name.clone();
                slice.lists.push(Part { room, queue: queue.number, served, done });
                if !is_done {
                    return false;
                }
            }
            if slice.served >= budget {
                return false;
            }
            match queue.tasks.pop_front() {
                None => return false,
                Some(Task::List { list, now, errand }) => {
                    let Some(room) = self.rooms.get(name) else { return false };
                    queue.handout = Some((Handout::new(list, now, room), errand));
                    if self.ends_turn(0) {
                        return true;
                    }
                }
                Some(Task::Greeting(greeting, mut errand)) => {
                    self.greet(greeting, &mut errand.report);
                    slice.errands.push(errand);
                }
                Some(Task::Offer { list, now, mut errand }) => {
                    self.offer(&list, false, now, &mut errand.report);
                    slice.errands.push(errand);
                }
                Some(Task::Message(said, mut errand)) => {
                    self.message(&said, &mut errand.report);
                    let bytes = said.message.bytes();
                    slice.messages.push((said, errand));
                    if self.ends_turn(bytes) {
                        return true;
                    }
                }
            }
        }
    }

    /// The sessions have written what they were handed: each list has its part of the time.
    fn end_slice(&mut self) {
        let Some((slice, _, start)) = self.slices.out.take() else { return };
        let busy = start.elapsed().saturating_sub(self.slices.aside);
        self.slices.pace.note(busy, slice.served);
        let total = u32::try_from(slice.served).unwrap_or(u32::MAX).max(1);
        for Part { room, queue: number, served, done } in slice.lists {
            let part = busy / total * u32::try_from(served).unwrap_or(u32::MAX);
            if let Some((mut handout, mut errand)) = done {
                handout.note(served, part);
                errand.report.busy = handout.cost();
            } else if let Some(queue) = self.rooms.get_mut(&room).and_then(|it| it.queue.as_mut())
                && queue.number == number
                && let Some((handout, _)) = &mut queue.handout
            {
                handout.note(served, part);
            }
        }
        self.dismiss_finished();
    }

    /// What is being handed out: each room with the number of its queue.
    pub(super) fn queues(&self) -> Vec<(RoomName, u64)> {
        let queue =
            |name: &RoomName| Some((name.clone(), self.rooms.get(name)?.queue.as_ref()?.number));
        self.slices.rooms.iter().filter_map(queue).collect()
    }

    /// Whether a queue has been handed out.
    pub(super) fn is_finished(&self, (room, number): &(RoomName, u64)) -> bool {
        let queue = self.rooms.get(room).and_then(|room| room.queue.as_ref());
        queue.is_none_or(|queue| queue.number != *number)
    }
}
