//! What goes to all members of a room: messages at once, and lists when they are due.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;

use super::{
    Delivery, Newcomer, Route,
    dispatchers::{DeliveryOrder, DeliveryReport, DispatcherId, SendOutcome},
    frames::List,
    published::{DeliveryCount, LocalMessage, MessageBody, MessageFrames, Publication},
    schedule::{Broadcast, ListSchedule},
};
use crate::{
    messages::{Content, Dialect, Feed},
    model::{ConnectionId, Diff, RoomName, Rooms, Sender, Snapshot},
};

/// The initial list for the newcomers of a turn.
struct InitialList {
    list: Arc<List>,
    /// Whether it is also for [`Feed::Full`]; otherwise these wait.
    for_full_feeds: bool,
}

impl Delivery {
    /// Notes a change of a room, which is this now, and removes the members that have left.
    pub fn changed(&mut self, diff: &Diff, room: Option<&Snapshot>, now: u64) {
        self.changed_in_place(diff, room, now);
        for left in &diff.leaves {
            self.exit(&diff.room, left.connection);
        }
    }

    /// Notes a change of a room whose members all stay.
    pub fn changed_in_place(&mut self, diff: &Diff, room: Option<&Snapshot>, now: u64) {
        let Some(schedule) = self.schedule_of(&diff.room) else { return };
        schedule.note(diff, room, now);
        self.set_due(&diff.room, now);
    }

    /// How many connections have entered rooms in this turn.
    pub fn newcomers(&self) -> usize {
        self.newcomers.len()
    }

    /// Ends a turn: newcomers get their initial lists, one for each room, then the lists that are due go out.
    pub fn end_turn(&mut self, rooms: &Rooms, now: u64) {
        self.send_released(now);
        let newcomers = std::mem::take(&mut self.newcomers);
        self.send_initial_lists(newcomers, |room| rooms.snapshot(room), now);
        while let Some(room) = self.take_due(now) {
            self.flush(&rooms.snapshot(&room), now);
        }
    }

    /// A message to be [published](Self::publish) in several rooms or in one, and the count of its receivers.
    pub fn message(
        &self,
        content: Content,
        from: Option<Sender>,
        several_rooms: bool,
    ) -> (Arc<MessageBody>, DeliveryCount) {
        MessageBody::new(content, from, several_rooms, self.deliveries.clone())
    }

    /// Sends a message to the members on this node: at once, unless the sender's join has to be listed first.
    pub fn publish(&mut self, room: &Snapshot, publication: Publication, now: u64) {
        let name = room.room();
        self.send_released(now);
        // Newcomers are members, and need the room's list before its next message.
        if self.newcomers.iter().any(|one| one.entry.room == *name) {
            let newcomers = self.newcomers.extract_if(.., |one| one.entry.room == *name).collect();
            self.send_initial_lists(newcomers, |_| room.clone(), now);
        }
        let schedule = self.schedule_of(name);
        if let Some(list) = schedule.and_then(|schedule| schedule.take_initial(room, now)) {
            self.offer_full(list, now);
        }
        let Publication { message, joined, except, only } = publication;
        let Some(route) = self.routes.get_mut(name) else { return };
        let message = LocalMessage {
            frames: Arc::new(MessageFrames::new(name.clone(), message)),
            sender: joined.map(|(sender, _)| sender),
            except,
            only,
            last_entry: self.last_entry,
            min_version: joined.map_or(0, |(_, version)| version),
        };
        match (&mut route.schedule, joined) {
            (Some(schedule), Some((sender, version))) if !schedule.has_listed(version) => {
                schedule.hold(message, sender, room, now);
                self.set_due(name, now);
            }
            _ => self.send_message(name, &message, now),
        }
    }

    /// Sends the messages that need not wait for a list any more.
    pub fn send_released(&mut self, now: u64) {
        for message in std::mem::take(&mut self.released) {
            self.send_message(&message.frames.room().clone(), &message, now);
        }
    }

    fn send_message(&mut self, room: &RoomName, message: &LocalMessage, now: u64) {
        let order = |_| (DeliveryOrder::Message(message.clone()), DeliveryReport::default());
        self.request_all(room, order, now);
    }

    /// Gives an order to all dispatchers that have members of the room.
    fn request_all(
        &mut self,
        room: &RoomName,
        order: impl Fn(DispatcherId) -> (DeliveryOrder, DeliveryReport),
        now: u64,
    ) {
        let Some(route) = self.routes.get(room) else { return };
        for (dispatcher, _) in route.members.clone() {
            let (order, report) = order(dispatcher);
            self.request(dispatcher, order, report, now);
        }
    }

    /// Has newcomers enter their rooms, in order, each with the initial list that its room's newcomers share.
    fn send_initial_lists(
        &mut self,
        newcomers: Vec<Newcomer>,
        room_of: impl Fn(&RoomName) -> Snapshot,
        now: u64,
    ) {
        let mut lists: HashMap<RoomName, Option<InitialList>, RandomState> = HashMap::default();
        for at in 0..newcomers.len() {
            let name = &newcomers[at].entry.room;
            if !lists.contains_key(name) {
                let same = || newcomers[at..].iter().filter(|one| one.entry.room == *name);
                let list = self.initial_list(&room_of(name), same, now);
                lists.insert(name.clone(), list);
            }
        }
        for Newcomer { dispatcher, mut entry, .. } in newcomers {
            let list = lists.get(&entry.room).and_then(Option::as_ref);
            let is_for_it = |one: &&InitialList| {
                let dialect = entry.recipients.dialect;
                entry.recipients.listens() && (one.for_full_feeds || !is_full_feed(dialect))
            };
            entry.list = list.filter(is_for_it).map(|one| Arc::clone(&one.list));
            let report = DeliveryReport::of(&entry.room);
            self.request(dispatcher, DeliveryOrder::Enter(entry), report, now);
        }
    }

    fn initial_list<'a, N: Iterator<Item = &'a Newcomer>>(
        &mut self,
        room: &Snapshot,
        newcomers: impl Fn() -> N,
        now: u64,
    ) -> Option<InitialList> {
        let rejoins = newcomers().any(|one| one.rejoins && one.entry.recipients.listens());
        if rejoins && self.schedule_of(room.room()).is_some_and(ListSchedule::expedite_closed) {
            // A member that joins again gets the messages of those who have left before the list
            // without them.
            self.flush(room, now);
        }
        let schedule = self.schedule_of(room.room())?;
        let dialects = || newcomers().map(|one| one.entry.recipients.dialect);
        let for_full_feeds = dialects().any(is_full_feed) && schedule.may_send_full(room, now);
        let listeners = newcomers().filter(|one| {
            let recipients = &one.entry.recipients;
            recipients.listens() && (for_full_feeds || !is_full_feed(recipients.dialect))
        });
        let listeners = listeners.count();
        let list = (listeners > 0).then(|| schedule.initial_list(room, listeners));
        self.set_due(room.room(), now);
        Some(InitialList { list: list?, for_full_feeds })
    }

    /// When the next list is due, in microseconds of the monotonic clock.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes a room that has a list due now.
    fn take_due(&mut self, now: u64) -> Option<RoomName> {
        while self.next_due()? <= now {
            let (_, room) = self.due.pop_first()?;
            let Some(schedule) = self.schedule_of(&room) else { continue };
            // It may have changed since it was scheduled.
            match schedule.next(now) {
                Some(due) if due > now => {
                    schedule.due = Some(due);
                    self.due.insert((due, room));
                }
                next => {
                    schedule.due = None;
                    if next.is_some() {
                        return Some(room);
                    }
                }
            }
        }
        None
    }

    /// Sends the room's lists that are due, with the messages that waited for them.
    fn flush(&mut self, room: &Snapshot, now: u64) {
        let name = room.room();
        let Some(Route { members, schedule: Some(schedule) }) = self.routes.get_mut(name) else {
            return;
        };
        let broadcasts = schedule.take(room, members.len(), now);
        let full = schedule.take_full(room, now);
        for broadcast in broadcasts {
            match broadcast {
                Broadcast::Message(message) => self.send_message(name, &message, now),
                Broadcast::List(list) => {
                    self.lists_sent.add(1);
                    let order = |dispatcher| {
                        let listed = Some(dispatcher);
                        let report = DeliveryReport { listed, ..DeliveryReport::of(name) };
                        (DeliveryOrder::List { list: Arc::clone(&list), now }, report)
                    };
                    self.request_all(name, order, now);
                }
            }
        }
        if let Some(full) = full {
            self.offer_full(full, now);
        }
        self.set_due(name, now);
    }

    /// Offers the full list to the listeners that need it, or to the newcomers among them.
    fn offer_full(&mut self, (list, only_newcomers): (List, bool), now: u64) {
        let (room, list) = (list.room().clone(), Arc::new(list));
        let order = |_| {
            let order = DeliveryOrder::FullList { list: Arc::clone(&list), only_newcomers, now };
            (order, DeliveryReport::of(&room))
        };
        self.request_all(&room, order, now);
    }

    /// Sends the messages that wait for lists now, each after its list.
    pub(super) fn flush_messages(&mut self, rooms: &Rooms, now: u64) {
        let expedite = |route: &mut Route| route.schedule.as_mut().is_some_and(|it| it.expedite());
        let waiting =
            self.routes.iter_mut().filter_map(|(room, route)| expedite(route).then_some(room));
        for room in waiting.cloned().collect::<Vec<_>>() {
            self.flush(&rooms.snapshot(&room), now);
        }
    }

    fn request(
        &mut self,
        dispatcher: DispatcherId,
        order: DeliveryOrder,
        report: DeliveryReport,
        now: u64,
    ) {
        match self.dispatchers.request(dispatcher, order, report, now) {
            SendOutcome::Done(report) => self.take_report(report, now),
            SendOutcome::Pending => {}
            SendOutcome::Unreachable => {
                let served = self.memberships.iter().filter(|(_, it)| it.dispatcher == dispatcher);
                self.failed.slow.extend(served.map(|(connection, _)| *connection));
            }
        }
    }

    pub fn take_report(&mut self, report: DeliveryReport, now: u64) {
        let DeliveryReport { room, listed, needs_full_list, busy, slow, gone } = report;
        if let Some(room) = &room
            && let Some(schedule) = self.schedule_of(room)
        {
            if let Some(dispatcher) = listed {
                schedule.handed_out(dispatcher, busy, now);
            }
            if needs_full_list {
                schedule.offer_full_later(now);
            }
            self.set_due(room, now);
        }
        // Another connection may have entered with the same id meanwhile.
        let is_same = |(id, serial): &(ConnectionId, u32)| {
            self.memberships.get(id).is_some_and(|known| known.serial == *serial)
        };
        let current = |known: Vec<_>| known.into_iter().filter(is_same).map(|(id, _)| id);
        self.failed.slow.extend(current(slow));
        self.failed.gone.extend(current(gone));
    }

    pub(super) fn schedule_of(&mut self, room: &RoomName) -> Option<&mut ListSchedule> {
        self.routes.get_mut(room)?.schedule.as_deref_mut()
    }

    /// Notes when something of a room is due next.
    pub(super) fn set_due(&mut self, room: &RoomName, now: u64) {
        let Some(schedule) = self.schedule_of(room) else { return };
        let Some(due) = schedule.next(now) else { return };
        if schedule.due.is_none_or(|known| due < known) {
            let known = schedule.due.replace(due);
            known.map(|known| self.due.remove(&(known, room.clone())));
            self.due.insert((due, room.clone()));
        }
    }
}

fn is_full_feed(dialect: Dialect) -> bool {
    dialect == Dialect::Json(Feed::Full)
}
