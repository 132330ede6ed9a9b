//! Lists, handed out to the listeners of a thread in slices.
//!
//! A list for thousands takes a thread longer than who has just come should wait. So a slice takes about
//! two milliseconds, with what its sessions write, and other orders are taken between two of them:
//! newcomers get their state, and messages go on. What has to come after a list waits in the queue of the
//! room: a message whose sender the list brings, and the next list.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use actix::prelude::*;
use actix_web::rt::task::JoinHandle;

use super::{
    audience::Said,
    courier::{Courier, Errand, Greeting, Report, Room},
    list::List,
    outlet::Knows,
};
use crate::{
    clock::{Stopwatch, ThreadTime},
    model::{ConnectionId, RoomName},
};

/// How long a slice takes at most, with what its sessions write.
const SLICE: Duration = Duration::from_millis(2);
/// How long its frames may take to be handed over.
const HANDING_OVER: Duration = Duration::from_millis(1);
/// After how many frames that is looked at.
const LOOK: usize = 16;
/// How many listeners a slice has at least and at most.
const LEAST: usize = 8;
const MOST: usize = 1024;

/// How long this thread takes for each listener.
pub(super) struct Pace(Duration);

impl Default for Pace {
    fn default() -> Self {
        Self(Duration::from_micros(20))
    }
}

impl Pace {
    fn slice(&self) -> usize {
        let listeners = SLICE.as_nanos() / self.0.as_nanos().max(1);
        usize::try_from(listeners).unwrap_or(MOST).clamp(LEAST, MOST)
    }

    fn note(&mut self, busy: Duration, listeners: usize) {
        // So few tell more of other things that the thread has done.
        if let Some(listeners) = u32::try_from(listeners).ok().filter(|some| *some >= 8) {
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
}

impl Handout {
    pub fn new(list: Arc<List>, now: u64, room: &Room) -> Self {
        let version = list.version();
        let needs = |knows: &Knows| match knows {
            Knows::Nothing => false,
            Knows::Version(known) => *known < version,
            Knows::Owed(owed) => owed.needs(version),
        };
        let needy = room.members.iter().filter(|(_, one)| needs(&one.knows));
        let left = needy.map(|(connection, _)| *connection).collect();
        Self { list, now, left, refused: false }
    }

    pub fn is_done(&self) -> bool {
        self.left.is_empty()
    }
}

/// Something that waits for its turn in a room.
enum Task {
    List { list: Arc<List>, now: u64, errand: Errand },
    Message(Said, Errand),
    Greeting(Greeting, Errand),
}

/// The lists of a room that are being handed out, one after the other, and what comes after them.
pub(super) struct Queue {
    /// Tells it from an earlier one of the room.
    number: u64,
    handout: Option<(Handout, Errand)>,
    tasks: VecDeque<Task>,
    /// The version of the last list that everybody got whom it was for.
    told: u64,
    /// How long the thread was busy with the lists of the queue.
    busy: Duration,
}

impl Queue {
    /// Has one who has joined again told who is there after what waits.
    pub fn greet_later(&mut self, greeting: Greeting, errand: Errand) {
        self.tasks.push_back(Task::Greeting(greeting, errand));
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
        let Handout { list, now, left, refused } = handout;
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
            if served % LOOK == 0 && listeners < usize::MAX && work.elapsed() > HANDING_OVER {
                break;
            }
        }
        if left.is_empty() && !*refused {
            room.refused = None;
        }
        served
    }

    /// Takes a list, to be handed out after those of the room that are on their way.
    pub(super) fn take_list(
        &mut self,
        list: Arc<List>,
        now: u64,
        errand: Errand,
        ctx: &mut Context<Self>,
    ) {
        let (name, told) = (list.room().clone(), list.told_before());
        let Some(room) = self.rooms.get_mut(&name) else { return };
        let is_first = room.queue.is_none();
        let number = self.queues;
        let new = || {
            let (handout, tasks, busy) = (None, VecDeque::new(), Duration::ZERO);
            Box::new(Queue { number, handout, tasks, told, busy })
        };
        let queue = room.queue.get_or_insert_with(new);
        queue.tasks.push_back(Task::List { list, now, errand });
        if is_first {
            self.queues += 1;
            self.go_on(&name, ctx);
        }
    }

    /// Hands a message to the members of its room, unless it has to come after a list that is on its way.
    pub(super) fn take_message(&mut self, said: Said, errand: Errand, ctx: &mut Context<Self>) {
        if let Some(room) = self.rooms.get_mut(said.message.room())
            && let Some(queue) = &mut room.queue
            && said.after > queue.told
        {
            return queue.tasks.push_back(Task::Message(said, errand));
        }
        if let Some(turn) = self.hand_out_message(said, errand) {
            ctx.wait(turn.into_actor(self).map(|_, _, _| ()));
        }
    }

    /// Hands out a message. Answers what ends with the turn of the sessions, if that is to be waited for.
    fn hand_out_message(&mut self, said: Said, mut errand: Errand) -> Option<JoinHandle<()>> {
        self.message(&said, &mut errand.report);
        let bytes = said.message.bytes();
        // It is done when those who were woken by it have had their turn, and written it to their
        // sockets: who waits for that cannot fill their mailboxes.
        let turn = actix::spawn(async { drop((said, errand)) });
        self.ends_turn(bytes).then_some(turn)
    }

    /// Goes on with what waits in a room, until it has to be waited for what the sessions write.
    fn go_on(&mut self, name: &RoomName, ctx: &mut Context<Self>) {
        let Some(mut queue) = self.rooms.get_mut(name).and_then(|room| room.queue.take()) else {
            return;
        };
        let (number, start) = (queue.number, ThreadTime::now());
        let next = loop {
            if let Some((handout, errand)) = &mut queue.handout {
                let served = self.hand_out(handout, self.pace.slice(), &mut errand.report);
                break Some((actix::spawn(async {}), served, false));
            }
            match queue.tasks.pop_front() {
                None => break None,
                Some(Task::List { list, now, errand }) => {
                    let Some(room) = self.rooms.get(name) else { break None };
                    queue.handout = Some((Handout::new(list, now, room), errand));
                    if self.ends_turn(0) {
                        break Some((actix::spawn(async {}), 0, true));
                    }
                }
                Some(Task::Greeting(greeting, mut errand)) => {
                    self.greet(greeting, &mut errand.report);
                }
                Some(Task::Message(said, errand)) => {
                    if let Some(turn) = self.hand_out_message(said, errand) {
                        break Some((turn, 0, true));
                    }
                }
            }
        };
        let (Some((turn, served, alone)), Some(room)) = (next, self.rooms.get_mut(name)) else {
            return;
        };
        room.queue = Some(queue);
        let name = name.clone();
        let turn = turn.into_actor(self).map(move |_, courier, ctx| {
            courier.end_slice(&name, number, served, start.elapsed(), ctx);
        });
        if alone {
            ctx.wait(turn);
        } else {
            // Other orders are taken meanwhile.
            ctx.spawn(turn);
        }
    }

    /// Hands out everything that waits in rooms, in one slice.
    pub(super) fn finish_queues(&mut self) {
        let queues = self.rooms.iter_mut().filter_map(|(name, room)| {
            let queue = room.queue.take()?;
            Some((name.clone(), queue))
        });
        for (name, queue) in queues.collect::<Vec<_>>() {
            let Queue { mut handout, mut tasks, .. } = *queue;
            loop {
                if let Some((mut handout, mut errand)) = handout.take() {
                    self.hand_out(&mut handout, usize::MAX, &mut errand.report);
                }
                match tasks.pop_front() {
                    Some(Task::List { list, now, errand }) => {
                        let Some(room) = self.rooms.get(&name) else { break };
                        handout = Some((Handout::new(list, now, room), errand));
                    }
                    Some(Task::Greeting(greeting, mut errand)) => {
                        self.greet(greeting, &mut errand.report);
                    }
                    Some(Task::Message(said, mut errand)) => {
                        self.message(&said, &mut errand.report);
                    }
                    None => break,
                }
            }
        }
    }

    /// The sessions have written what they were handed.
    fn end_slice(
        &mut self,
        name: &RoomName,
        number: u64,
        served: usize,
        busy: Duration,
        ctx: &mut Context<Self>,
    ) {
        self.pace.note(busy, served);
        let Some(room) = self.rooms.get_mut(name) else { return };
        let Some(queue) = room.queue.as_mut().filter(|queue| queue.number == number) else {
            return;
        };
        queue.busy += busy;
        if let Some((handout, mut errand)) = queue.handout.take_if(|(it, _)| it.is_done()) {
            queue.told = queue.told.max(handout.list.version());
            errand.report.busy = queue.busy;
        }
        self.go_on(name, ctx);
    }
}
