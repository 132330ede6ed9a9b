//! Who is told of whom, and when: newcomers at once, the others when it is time.

use std::{collections::HashMap, sync::Arc};

use ahash::RandomState;

use super::{
    Delivery, Newcomer, Route,
    audience::{Audience, Next},
    list::List,
    order::{Order, Report},
};
use crate::{
    messages::{Dialect, Feed},
    model::{Diff, RoomName, Rooms, Snapshot},
};

impl Delivery {
    /// Notes a change of a room, which is this now, for those who hear of it.
    pub fn changed(&mut self, diff: &Diff, room: Option<&Snapshot>, now: u64) {
        self.changed_in_place(diff, room, now);
        for left in &diff.leaves {
            self.exit(&diff.room, left.connection);
        }
    }

    /// Notes a change of a room whose members all stay.
    pub fn changed_in_place(&mut self, diff: &Diff, room: Option<&Snapshot>, now: u64) {
        let Some(audience) = self.audience(&diff.room) else { return };
        audience.note(diff, room, now);
        self.schedule(&diff.room, now);
    }

    /// How many have entered rooms in this turn.
    pub fn newcomers(&self) -> usize {
        self.newcomers.len()
    }

    /// The end of a turn: tells those who have come in it who is in their rooms, with one list for all who
    /// have come to a room, then everybody else what is due.
    pub fn end_turn(&mut self, rooms: &Rooms, now: u64) {
        self.send_released(now);
        let newcomers = std::mem::take(&mut self.newcomers);
        self.greet(newcomers, |room| rooms.snapshot(room), now);
        while let Some(room) = self.take_due(now) {
            self.flush(&rooms.snapshot(&room), now);
        }
    }

    /// Tells those who have come to a room in this turn who is there, before its end.
    pub(super) fn greet_in(&mut self, room: &Snapshot, now: u64) {
        let newcomers = self.newcomers.extract_if(.., |one| one.entry.room == *room.room());
        let newcomers = newcomers.collect();
        self.greet(newcomers, |_| room.clone(), now);
    }

    /// Tells newcomers who is in their rooms: in the order in which they have come, with one list for each
    /// room.
    fn greet(
        &mut self,
        newcomers: Vec<Newcomer>,
        room_of: impl Fn(&RoomName) -> Snapshot,
        now: u64,
    ) {
        let mut lists: HashMap<RoomName, Option<GreetingList>, RandomState> = HashMap::default();
        for at in 0..newcomers.len() {
            let name = &newcomers[at].entry.room;
            if !lists.contains_key(name) {
                let same = || newcomers[at..].iter().filter(|one| one.entry.room == *name);
                let list = self.greeting(&room_of(name), same, now);
                lists.insert(name.clone(), list);
            }
        }
        for Newcomer { desk, mut entry, .. } in newcomers {
            let name = entry.room.clone();
            entry.list = match (lists.get(&name), entry.outlet.dialect) {
                (Some(Some(GreetingList { full: false, .. })), Dialect::Json(Feed::Full)) => None,
                (Some(Some(GreetingList { list, .. })), _) if entry.outlet.listens() => {
                    Some(Arc::clone(list))
                }
                _ => None,
            };
            let report = Report { room: Some(name), ..Report::default() };
            self.order(desk, Order::Enter(entry), report, now);
        }
    }

    /// The list for the newcomers of a room.
    fn greeting<'a, N: Iterator<Item = &'a Newcomer>>(
        &mut self,
        room: &Snapshot,
        newcomers: impl Fn() -> N,
        now: u64,
    ) -> Option<GreetingList> {
        let again = newcomers().any(|one| one.again && one.entry.outlet.listens());
        if again && self.audience(room.room()).is_some_and(Audience::hurry_closed) {
            // Who joins again hears what somebody has said before the state without them.
            self.flush(room, now);
        }
        let audience = self.audience(room.room())?;
        let list = audience.list_for(newcomers, room, now);
        self.schedule(room.room(), now);
        list
    }

    /// When the next room is due, in microseconds of the monotonic clock.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes a room in which something may go out now.
    pub(super) fn take_due(&mut self, now: u64) -> Option<RoomName> {
        while self.next_due()? <= now {
            let (_, room) = self.due.pop_first()?;
            let Some(audience) = self.audience(&room) else { continue };
            // It may have changed again since it was due.
            match audience.next(now) {
                Some(due) if due > now => {
                    audience.due = Some(due);
                    self.due.insert((due, room));
                }
                next => {
                    audience.due = None;
                    if next.is_some() {
                        return Some(room);
                    }
                }
            }
        }
        None
    }

    /// Sends the room's listeners what they do not know yet and is due.
    pub(super) fn flush(&mut self, room: &Snapshot, now: u64) {
        let name = room.room();
        let Some(Route { desks, audience: Some(audience) }) = self.routes.get_mut(name) else {
            return;
        };
        let next = audience.take(room, desks.len(), now);
        let owed = audience.take_owed(room, now);
        for next in next {
            match next {
                Next::Message(said) => self.send(name, &said, now),
                Next::List(list) => {
                    self.lists_sent.add(1);
                    let order = |desk| {
                        let (room, listed) = (Some(name.clone()), Some(desk));
                        let report = Report { room, listed, ..Report::default() };
                        (Order::List { list: Arc::clone(&list), now }, report)
                    };
                    self.order_all(name, order, now);
                }
            }
        }
        if let Some((list, only_newcomers)) = owed {
            self.offer(&Arc::new(list), only_newcomers, now);
        }
        self.schedule(name, now);
    }

    /// Offers the whole list to those who are owed it, or to the newcomers among them.
    fn offer(&mut self, list: &Arc<List>, only_newcomers: bool, now: u64) {
        let order = |_| {
            let report = Report { room: Some(list.room().clone()), ..Report::default() };
            (Order::Offer { list: Arc::clone(list), only_newcomers, now }, report)
        };
        self.order_all(list.room(), order, now);
    }

    /// Tells newcomers at once who is in the room that have to wait for it, before something is said there.
    pub(super) fn greet_waiting(&mut self, room: &Snapshot, now: u64) {
        let audience = self.audience(room.room());
        if let Some((list, only_newcomers)) =
            audience.and_then(|audience| audience.take_greeting(room, now))
        {
            self.offer(&Arc::new(list), only_newcomers, now);
        }
    }

    /// Has the messages go out that wait for lists, each after its list.
    pub(super) fn flush_messages(&mut self, rooms: &Rooms, now: u64) {
        let hurries = |route: &mut Route| route.audience.as_mut().is_some_and(|one| one.hurry());
        let waiting =
            self.routes.iter_mut().filter_map(|(room, route)| hurries(route).then_some(room));
        for room in waiting.cloned().collect::<Vec<_>>() {
            self.flush(&rooms.snapshot(&room), now);
        }
    }

    pub(super) fn audience(&mut self, room: &RoomName) -> Option<&mut Audience> {
        self.routes.get_mut(room)?.audience.as_deref_mut()
    }

    /// Notes when something of a room is to go out next.
    pub(super) fn schedule(&mut self, room: &RoomName, now: u64) {
        let Some(audience) = self.audience(room) else { return };
        let Some(due) = audience.next(now) else { return };
        if audience.due.is_none_or(|known| due < known) {
            let known = audience.due.replace(due);
            known.map(|known| self.due.remove(&(known, room.clone())));
            self.due.insert((due, room.clone()));
        }
    }
}

/// The list for the newcomers of a turn.
struct GreetingList {
    list: Arc<List>,
    /// Whether those get it, too, who get the whole list each time.
    full: bool,
}

impl Audience {
    /// The list for newcomers, if any of them listens.
    fn list_for<'a, N: Iterator<Item = &'a Newcomer>>(
        &mut self,
        newcomers: impl Fn() -> N,
        room: &Snapshot,
        now: u64,
    ) -> Option<GreetingList> {
        let dialects = || newcomers().map(|one| one.entry.outlet.dialect);
        let is_full = |dialect: Dialect| dialect == Dialect::Json(Feed::Full);
        let full = dialects().any(is_full) && self.may_greet_in_full(room, now);
        let listeners = newcomers().filter(|one| {
            one.entry.outlet.listens() && (full || !is_full(one.entry.outlet.dialect))
        });
        let listeners = listeners.count();
        (listeners > 0).then(|| GreetingList { list: self.greet(room, listeners), full })
    }
}
