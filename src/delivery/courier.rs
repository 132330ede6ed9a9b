//! The last step to the sessions of one thread.
//!
//! The registry gives each thread one order for a broadcast, and the courier there hands it to the
//! thread's own sessions. Its orders are one queue: who is out of a room gets nothing of what is said
//! there after. Lists for everybody are handed out in slices, between which other orders are taken; see
//! [`handout`](super::handout).

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix::prelude::*;
use ahash::RandomState;

use super::{
    audience::Said,
    handout::{Handout, Queue, Slices, Task},
    list::List,
    order::{Entry, Errand, Greeting, Order, Parcel, Report, give},
    outlet::{Knows, Refusal, Session},
};
use crate::{
    clock::{Stopwatch, ThreadTime},
    messages::{Dialect, Disconnect, ForwardMessage, Forwarded},
    model::{ConnectionId, RoomName, Shrink, micros},
    sockets::CLOSE_TIMEOUT,
};

/// A listener that takes no list for this long is too slow.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A member of a room.
pub(super) struct Member {
    /// The number of its entry.
    entry: u64,
    pub knows: Knows,
}

/// The members of a room on this thread.
#[derive(Default)]
pub(super) struct Room {
    pub members: HashMap<ConnectionId, Member, RandomState>,
    /// The lists that are being handed out, and what waits for them.
    pub queue: Option<Box<Queue>>,
    /// The last list, and when it went out, if some listeners have not taken it.
    pub refused: Option<(Arc<List>, u64)>,
}

/// Sessions that are to close when what waits in these queues has been handed out.
struct Dismissal {
    connections: Vec<ConnectionId>,
    order: Disconnect,
    queues: Vec<(RoomName, u64)>,
}

/// How many broadcasts are handed out before the sessions have their turn: fewer than the smallest
/// mailbox takes. One counts for more by as many of these bytes as it has, as a backlog is bounded in
/// bytes.
const TURN: usize = 8;
const TURN_BYTES: usize = 64 * 1024;

/// Hands frames to sessions.
#[derive(Default)]
pub(crate) struct Courier {
    /// How many broadcasts it has handed out since the sessions had their turn.
    broadcasts: usize,
    pub(super) sessions: HashMap<ConnectionId, Session, RandomState>,
    pub(super) rooms: HashMap<RoomName, Room, RandomState>,
    pub(super) slices: Slices,
    dismissals: Vec<Dismissal>,
}

impl Courier {
    /// Does what is asked at once, also a list as a whole.
    pub(super) fn take(&mut self, order: Order, report: &mut Report) {
        match order {
            Order::Enter(entry) => {
                if let Some(greeting) = self.enter(entry) {
                    self.greet(greeting, report);
                }
            }
            Order::Exit { connection, room } => self.exit(connection, &room),
            Order::Close { connection, room } => {
                if let Some(Session { outlet, .. }) = self.sessions.get(&connection)
                    && outlet.dialect == Dialect::Phoenix
                {
                    // Once per stay, so it may go past a full mailbox.
                    outlet.forward.do_send(ForwardMessage::new(room, Forwarded::Closed, ""));
                }
            }
            Order::End { connection, rooms, order } => {
                for (room, _) in &*rooms {
                    self.exit(connection, room);
                }
                let ended = self.sessions.remove(&connection);
                self.sessions.shrink();
                self.rooms.shrink();
                if let (Some((order, timeout)), Some(session)) = (order, ended) {
                    session.outlet.close(order, timeout);
                }
            }
            Order::Dismiss { connections, order } => {
                // Until then they hear what waits now.
                let queues = self.queues();
                self.dismissals.push(Dismissal { connections, order, queues });
                self.dismiss_finished();
            }
            Order::Message(said) => self.message(&said, report),
            Order::Offer { list, only_newcomers, now } => {
                self.offer(&list, only_newcomers, now, report);
            }
            Order::List { list, now } => {
                let Some(room) = self.rooms.get(list.room()) else { return };
                let work = ThreadTime::now();
                let mut handout = Handout::new(list, now, room);
                self.hand_out(&mut handout, usize::MAX, report);
                report.busy = work.elapsed();
            }
        }
    }

    /// Orders those to close who have heard what they have to.
    pub(super) fn dismiss_finished(&mut self) {
        if self.dismissals.is_empty() {
            return;
        }
        let mut dismissals = std::mem::take(&mut self.dismissals);
        for dismissal in &mut dismissals {
            dismissal.queues.retain(|queue| !self.is_finished(queue));
        }
        let (finished, waiting) = dismissals.into_iter().partition(|one| one.queues.is_empty());
        self.dismissals = waiting;
        let finished: Vec<Dismissal> = finished;
        for Dismissal { connections, order, .. } in finished {
            self.dismiss(&connections, order);
        }
    }

    /// Orders sessions to close. A session ignores what comes after that order in its mailbox, so it
    /// is sent nothing more, and cannot become too slow.
    fn dismiss(&mut self, connections: &[ConnectionId], order: Disconnect) {
        for connection in connections {
            if let Some(session) = self.sessions.get_mut(connection) {
                // One that cannot be told is ended by the registry.
                session.ended |= session.outlet.disconnect.is_some();
                session.outlet.close(order, CLOSE_TIMEOUT);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.rooms.is_empty()
    }

    /// Enters the member. Answers the list that it is to be told, unless it does not listen.
    fn enter(&mut self, entry: Entry) -> Option<Greeting> {
        let Entry { connection, room: name, outlet, serial, number, version, .. } = entry;
        let (list, answers, now) = (entry.list, entry.answers, entry.now);
        let session = match self.sessions.get_mut(&connection) {
            Some(known) if known.outlet.forward == outlet.forward => {
                // What it has refused is not forgiven.
                known.outlet.dialect = outlet.dialect;
                known
            }
            _ => self
                .sessions
                .entry(connection)
                .insert_entry(Session::new(outlet, serial))
                .into_mut(),
        };
        let listens = session.outlet.listens();
        let room = self.rooms.entry(name).or_default();
        let again = room.members.contains_key(&connection);
        let member = room
            .members
            .entry(connection)
            .or_insert(Member { entry: number, knows: Knows::Nothing });
        // Who joins again has been a member all the time.
        member.knows.enter(listens, version);
        match list {
            Some(list) => Some(Greeting { connection, list, again, answers, now }),
            None => {
                give(answers);
                None
            }
        }
    }

    /// Tells one who has entered who is there.
    pub(super) fn greet(&mut self, greeting: Greeting, report: &mut Report) {
        let Greeting { connection, list, answers, now, .. } = greeting;
        if let Some(room) = self.rooms.get_mut(list.room())
            && let Some(member) = room.members.get_mut(&connection)
            && let Some(session) = self.sessions.get_mut(&connection).filter(|one| !one.ended)
        {
            let told = session.greet(&list, &mut member.knows, now);
            if Self::note(told, connection, session, &member.knows, now, report) {
                room.refused.get_or_insert((list, now));
            }
        }
        // The session reads what it was told together with the answer.
        give(answers);
    }

    /// Enters a member. Who joins again is told who is there after what waits in the room, as it hears that
    /// too.
    fn take_entry(&mut self, entry: Entry, mut errand: Errand) {
        let Some(mut greeting) = self.enter(entry) else { return };
        let room = self.rooms.get_mut(greeting.list.room()).filter(|_| greeting.again);
        match room.and_then(|room| room.queue.as_mut()) {
            Some(queue) => {
                // It has heard of the room before, and is not to be deaf meanwhile.
                give(std::mem::take(&mut greeting.answers));
                queue.push(Task::Greeting(greeting, errand));
            }
            None => self.greet(greeting, &mut errand.report),
        }
    }

    /// Notes what came of telling a listener who is there. Says whether it has to be told again.
    pub(super) fn note(
        told: Result<(), Refusal>,
        connection: ConnectionId,
        session: &mut Session,
        knows: &Knows,
        now: u64,
        report: &mut Report,
    ) -> bool {
        match told {
            Ok(()) => false,
            Err(Refusal::Closed) => {
                session.ended = true;
                report.gone.push((connection, session.serial));
                false
            }
            Err(Refusal::Full) => {
                let Knows::Owed(owed) = knows else { return false };
                let since = owed.refused.unwrap_or(now).max(session.state_taken);
                if now.saturating_sub(since) >= micros(TAKE_TIMEOUT) {
                    session.ended = true;
                    report.slow.push((connection, session.serial));
                    return false;
                }
                report.owes = true;
                true
            }
        }
    }

    /// Offers the whole list to those who are owed it. While lists are on their way, newcomers get it at
    /// once, and others after what waits, as they hear that.
    fn take_offer(&mut self, list: Arc<List>, now: u64, mut errand: Errand) {
        let queue = self.rooms.get_mut(list.room()).and_then(|room| room.queue.as_mut());
        let Some(queue) = queue else { return self.offer(&list, false, now, &mut errand.report) };
        let (room, home) = (errand.report.room.clone(), Arc::clone(&errand.home));
        let later = Errand { home, report: Report { room, ..Report::default() } };
        queue.push(Task::Offer { list: Arc::clone(&list), now, errand: later });
        self.offer(&list, true, now, &mut errand.report);
    }

    /// Offers the whole list to those who are owed it, or to the newcomers among them.
    pub(super) fn offer(
        &mut self,
        list: &Arc<List>,
        only_newcomers: bool,
        now: u64,
        report: &mut Report,
    ) {
        let Some(room) = self.rooms.get_mut(list.room()) else { return };
        if !only_newcomers {
            room.refused = None;
        }
        for (connection, member) in &mut room.members {
            if let Knows::Owed(owed) = &member.knows
                && owed.waits_for_offer(only_newcomers)
                && let Some(session) = self.sessions.get_mut(connection).filter(|one| !one.ended)
            {
                let told = session.tell(list, &mut member.knows, now);
                if Self::note(told, *connection, session, &member.knows, now, report) {
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

    pub(super) fn message(&mut self, said: &Said, report: &mut Report) {
        let Some(room) = self.rooms.get_mut(said.message.room()) else { return };
        let Said { message, except, entries, after, .. } = said;
        let work = Stopwatch::start();
        let mut taken = 0;
        for (connection, member) in &mut room.members {
            if Some(*connection) == *except || member.entry > *entries {
                continue;
            }
            let Some(session) = self.sessions.get_mut(connection).filter(|one| !one.ended) else {
                continue;
            };
            if let Some((list, now)) = &room.refused
                && member.knows.lacks(*after)
            {
                // Who is too slow for this too is too slow for the message, or hears it without.
                _ = session.tell_first(list, &mut member.knows, *now);
            }
            let payload = message.frame(session.outlet.dialect);
            let refused = match session.send_small(message.room(), Forwarded::Message, payload) {
                Ok(()) => {
                    taken += 1;
                    continue;
                }
                Err(Refusal::Full) => &mut report.slow,
                Err(Refusal::Closed) => &mut report.gone,
            };
            session.ended = true;
            refused.push((*connection, session.serial));
        }
        message.taken_by(taken);
        let busy = micros(work.elapsed());
        metrics::counter!("presence_fan_out_microseconds_total").increment(busy);
    }

    /// Counts a broadcast. Says whether the sessions are to have their turn before the next order.
    pub(super) fn ends_turn(&mut self, bytes: usize) -> bool {
        self.broadcasts += 1 + bytes / TURN_BYTES;
        let ends = self.broadcasts >= TURN;
        if ends {
            self.broadcasts = 0;
        }
        ends
    }
}

impl Actor for Courier {
    type Context = Context<Self>;
}

impl Handler<Parcel> for Courier {
    type Result = ();

    fn handle(&mut self, Parcel(order, errand): Parcel, ctx: &mut Context<Self>) {
        let aside = self.slices.begin_aside();
        match (order, errand) {
            (Order::List { list, now }, Some(errand)) => {
                return self.take_list(list, now, errand, ctx);
            }
            (Order::Enter(entry), Some(errand)) => self.take_entry(entry, errand),
            (Order::Offer { list, only_newcomers: false, now }, Some(errand)) => {
                self.take_offer(list, now, errand);
            }
            (Order::Message(said), Some(errand)) => self.take_message(said, errand, ctx),
            (order, Some(mut errand)) => self.take(order, &mut errand.report),
            (order, None) => self.take(order, &mut Report::default()),
        }
        self.slices.end_aside(aside);
    }
}
