//! Who gets what: the one part that knows the recipients of sessions and observers.
//!
//! The registry keeps which threads have members in a room, and gives each of them one order for what
//! all members get; a [`Courier`] there delivers it. Frames are encoded once per dialect and shared.
//! Nothing here waits: a recipient that does not take its frame is reported to the registry, which
//! decides.

mod audience;
mod courier;
mod couriers;
mod farewells;
mod handout;
mod list;
mod listing;
mod observers;
mod order;
mod outlet;
mod published;
mod schedule;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use actix::{WeakRecipient, prelude::*};
use ahash::RandomState;
use smallvec::SmallVec;

use self::{
    audience::{Audience, Said},
    couriers::{Couriers, Desk, Sent},
    order::{Answers, Entry, Order},
    published::Published,
};
pub(crate) use self::{
    courier::Courier,
    farewells::BATCH_INTERVAL,
    observers::Observers,
    order::{Answer, Report},
    outlet::Outlet,
    published::Taking,
};
use crate::{
    counters::Counter,
    messages::{Content, Disconnect, close_code},
    model::{Cause, ConnectionId, Few, RoomName, Shrink, Snapshot},
    sockets::CLOSE_TIMEOUT,
    wire::json,
};

/// A connection that has an outlet.
struct Stay {
    desk: Desk,
    /// Tells it from earlier stays of the same id.
    serial: u32,
    /// Its rooms, and whether it listens to who is there.
    rooms: Few<(RoomName, bool)>,
    /// Whether it was told to close because this node stops.
    dismissed: bool,
}

/// How to reach the members of a room.
#[derive(Default)]
struct Route {
    /// How many there are by courier.
    desks: SmallVec<[(Desk, u32); 2]>,
    /// Those who listen to who is there, if anybody does.
    audience: Option<Box<Audience>>,
}

/// Connections that did not take what they were sent.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Their mailbox is full.
    pub slow: Vec<ConnectionId>,
    /// Their actor has stopped.
    pub gone: Vec<ConnectionId>,
}

impl Refused {
    fn extend(&mut self, more: Self) {
        self.slow.extend(more.slow);
        self.gone.extend(more.gone);
    }
}

/// A connection that has entered a room in this turn, of which its thread does not know yet.
struct Newcomer {
    desk: Desk,
    entry: Entry,
    /// Whether it has been a member already, and heard of what was said before.
    again: bool,
}

/// The ways to all connections, and what their rooms owe them.
pub(crate) struct Delivery {
    couriers: Couriers,
    stays: HashMap<ConnectionId, Stay, RandomState>,
    serial: u32,
    /// How often a connection has entered a room.
    entries: u64,
    newcomers: Vec<Newcomer>,
    /// Messages that need not wait any more, as nobody is left who listens to who is in their rooms.
    released: Vec<Said>,
    routes: HashMap<RoomName, Route, RandomState>,
    /// When the next member list of a room may go out, for rooms that wait for it.
    due: BTreeSet<(u64, RoomName)>,
    /// Who has not taken something, until that is [asked](Self::take_refused).
    refused: Refused,
    max_list_size: usize,
    lists_sent: Counter,
    deliveries: Counter,
}

/// A connection that joins a room.
pub(crate) struct Arrival {
    pub connection: ConnectionId,
    pub outlet: Outlet,
    /// Who delivers on its thread, if that is known.
    pub courier: Option<Addr<Courier>>,
    pub answer: Answer,
}

/// What is published to a room.
pub(crate) struct Publication {
    pub content: Content,
    pub from: Option<json::Sender>,
    /// The presence that says it, and the version that brought it, where both are known.
    pub joined: Option<(ConnectionId, u64)>,
    /// A connection that does not get it.
    pub except: Option<ConnectionId>,
}

impl Delivery {
    /// Nobody yet, with the limit of a member list in bytes.
    pub fn new(max_list_size: usize) -> Self {
        Self {
            couriers: Couriers::default(),
            stays: HashMap::default(),
            serial: 0,
            entries: 0,
            newcomers: Vec::new(),
            released: Vec::new(),
            routes: HashMap::default(),
            due: BTreeSet::new(),
            refused: Refused::default(),
            max_list_size,
            lists_sent: Counter::new("presence_lists_sent_total"),
            deliveries: Counter::new("presence_deliveries_total"),
        }
    }

    /// Gives back the space of a crowd that has gone.
    pub fn shrink(&mut self) {
        self.stays.shrink();
        self.routes.shrink();
    }

    /// Tells where couriers of other threads report to; without it there are none.
    pub fn report_to(&mut self, home: WeakRecipient<Report>) {
        self.couriers.report_to(home);
    }

    /// How often a room's listeners were sent who is there.
    pub fn lists_sent(&self) -> u64 {
        self.lists_sent.count()
    }

    /// How many messages members took.
    pub fn deliveries(&self) -> u64 {
        self.deliveries.count()
    }

    /// Who has not taken something since this was asked.
    pub fn take_refused(&mut self) -> Option<Refused> {
        let Refused { slow, gone } = &self.refused;
        let any = !slow.is_empty() || !gone.is_empty();
        any.then(|| std::mem::take(&mut self.refused))
    }

    /// The connection is in the room, and is reached like this from now on. At the end of the turn it is
    /// told who is there, then its join is answered: see [`end_turn`](Self::end_turn).
    pub fn enter(&mut self, room: &Snapshot, arrival: Arrival, now: u64) {
        let Arrival { connection, outlet, courier, answer } = arrival;
        let (name, listens) = (room.room(), outlet.listens());
        let same = |one: &Newcomer| one.entry.connection == connection && one.entry.room == *name;
        let earlier = self.newcomers.iter().position(same).map(|at| self.newcomers.remove(at));
        let Self { couriers, serial, .. } = self;
        let stay = self.stays.entry(connection).or_insert_with(|| {
            *serial = serial.wrapping_add(1);
            let desk = couriers.hire(courier);
            Stay { desk, serial: *serial, rooms: Few::default(), dismissed: false }
        });
        let (desk, serial) = (stay.desk, stay.serial);
        let known = stay.rooms.iter().position(|(known, _)| known == name);
        let before = known.and_then(|index| stay.rooms.remove(index));
        stay.rooms.push((name.clone(), listens));
        self.entries += 1;
        let (mut number, mut again, mut answers) =
            (self.entries, before.is_some(), Answers::default());
        if let Some(earlier) = earlier {
            (number, again, answers) = (earlier.entry.number, earlier.again, earlier.entry.answers);
        }
        answers.push(answer);
        let (room_name, version, list) = (name.clone(), room.version(), None);
        let entry = Entry {
            connection,
            room: room_name,
            outlet,
            serial,
            number,
            version,
            list,
            answers,
            now,
        };
        self.newcomers.push(Newcomer { desk, entry, again });
        let route = self.routes.entry(name.clone()).or_default();
        if listens {
            let new = || Box::new(Audience::new(room.clone(), self.max_list_size));
            route.audience.get_or_insert_with(new).listeners += 1;
        }
        route.count(desk);
        if let Some((_, listened)) = before {
            self.uncount(name, desk, listened);
        }
    }

    /// The connection is not in the room any more.
    pub fn exit(&mut self, room: &RoomName, connection: ConnectionId) {
        self.introduce(connection, Some(room));
        let Some(stay) = self.stays.get_mut(&connection) else { return };
        let Some(index) = stay.rooms.iter().position(|(name, _)| name == room) else { return };
        let Some((room, listened)) = stay.rooms.remove(index) else { return };
        let desk = stay.desk;
        self.uncount(&room, desk, listened);
        self.couriers.tell(desk, Order::Exit { connection, room });
    }

    /// Tells the thread of a newcomer that it has come to a room, or to all its rooms, before it hears that
    /// it has left.
    fn introduce(&mut self, connection: ConnectionId, room: Option<&RoomName>) {
        let is_it = |one: &mut Newcomer| {
            one.entry.connection == connection && room.is_none_or(|room| one.entry.room == *room)
        };
        for newcomer in self.newcomers.extract_if(.., is_it) {
            self.couriers.tell(newcomer.desk, Order::Enter(newcomer.entry));
        }
    }

    /// Forgets a connection that is out of its last room, telling it to close if it does not know.
    pub fn disconnect(&mut self, connection: ConnectionId, cause: Cause) {
        self.close_within(connection, cause, CLOSE_TIMEOUT);
    }

    /// Does the same to a connection whose socket has to be gone sooner, as its place is wanted.
    pub fn close_within(&mut self, connection: ConnectionId, cause: Cause, timeout: Duration) {
        let disconnect = close_code(cause).map(|code| Disconnect { code, cause });
        self.end(connection, disconnect.map(|disconnect| (disconnect, timeout)));
    }

    /// Forgets a connection that has ended.
    pub fn forget(&mut self, connection: ConnectionId) {
        self.end(connection, None);
    }

    fn end(&mut self, connection: ConnectionId, order: Option<(Disconnect, Duration)>) {
        self.introduce(connection, None);
        let Some(stay) = self.stays.remove(&connection) else { return };
        let Stay { desk, rooms, dismissed, .. } = stay;
        // An order to close is given once.
        let order = order.filter(|_| !dismissed);
        for (room, listened) in &*rooms {
            self.uncount(room, desk, *listened);
        }
        self.couriers.tell(desk, Order::End { connection, rooms, order });
        self.couriers.release(desk);
    }

    /// Tells a connection that it was put out of one of its rooms, if its dialect has a word for it.
    pub fn close_room(&mut self, room: &RoomName, connection: ConnectionId, cause: Cause) {
        self.introduce(connection, Some(room));
        let Some(stay) = self.stays.get(&connection) else { return };
        if close_code(cause).is_some() {
            self.couriers.tell(stay.desk, Order::Close { connection, room: room.clone() });
        }
    }

    /// Sends to everybody in the room who is here, but for one: at once, unless it has to be told first that
    /// the sender has come.
    pub fn publish(&mut self, room: &Snapshot, publication: Publication, now: u64) -> Taking {
        let name = room.room();
        self.send_released(now);
        if self.newcomers.iter().any(|one| one.entry.room == *name) {
            // They are members, and have to know of the room what is said there.
            self.greet_in(room, now);
        }
        self.greet_waiting(room, now);
        let Publication { content, from, joined, except } = publication;
        let Some(route) = self.routes.get_mut(name) else { return Taking::none() };
        let (message, taking) =
            Published::new(name.clone(), content, from, self.deliveries.clone());
        let (entries, after) = (self.entries, joined.map_or(0, |(_, version)| version));
        let sender = joined.map(|(sender, _)| sender);
        let said = Said { message: Arc::new(message), sender, except, entries, after };
        match (&mut route.audience, joined) {
            (Some(audience), Some((sender, joined))) if !audience.has_told(joined) => {
                audience.wait(said, sender, room, now);
                self.schedule(name, now);
            }
            _ => self.send(name, &said, now),
        }
        taking
    }

    /// Sends the messages that need not wait any more.
    pub fn send_released(&mut self, now: u64) {
        for said in std::mem::take(&mut self.released) {
            self.send(&said.message.room().clone(), &said, now);
        }
    }

    /// Sends a message to all threads that have members of the room.
    fn send(&mut self, room: &RoomName, said: &Said, now: u64) {
        self.order_all(room, |_| (Order::Message(said.clone()), Report::default()), now);
    }

    /// Gives an order to all threads that have members of the room.
    fn order_all(&mut self, room: &RoomName, order: impl Fn(Desk) -> (Order, Report), now: u64) {
        let Some(route) = self.routes.get(room) else { return };
        for (desk, _) in route.desks.clone() {
            let (order, report) = order(desk);
            self.order(desk, order, report, now);
        }
    }

    /// Gives an order of which something comes back.
    fn order(&mut self, desk: Desk, order: Order, report: Report, now: u64) {
        match self.couriers.send(desk, order, report, now) {
            Sent::Back(report) => self.returned(report, now),
            Sent::Away => {}
            Sent::Lost => {
                let lost: Vec<_> = self.connections_of(desk).collect();
                self.refused.slow.extend(lost);
            }
        }
    }

    /// Takes what came of an order.
    pub fn returned(&mut self, report: Report, now: u64) {
        let Report { room, listed, owes, busy, slow, gone } = report;
        if let Some(room) = &room
            && let Some(audience) = self.audience(room)
        {
            if let Some(desk) = listed {
                audience.returned(desk, busy, now);
            }
            if owes {
                audience.owe_later(now);
            }
            self.schedule(room, now);
        }
        let current = |known: Vec<(ConnectionId, u32)>| {
            let is_it =
                |(id, serial): &(_, _)| self.stays.get(id).is_some_and(|s| s.serial == *serial);
            known.into_iter().filter(is_it).map(|(id, _)| id).collect()
        };
        let refused = Refused { slow: current(slow), gone: current(gone) };
        self.refused.extend(refused);
    }

    fn connections_of(&self, desk: Desk) -> impl Iterator<Item = ConnectionId> {
        let served = self.stays.iter().filter(move |(_, stay)| stay.desk == desk);
        served.map(|(connection, _)| *connection)
    }

    /// A courier has one member less in the room.
    fn uncount(&mut self, room: &RoomName, desk: Desk, listened: bool) {
        let Some(route) = self.routes.get_mut(room) else { return };
        let mut unheard = Vec::new();
        if let Some(audience) = route.audience.as_mut().filter(|_| listened) {
            audience.listeners -= 1;
            if audience.listeners == 0 {
                audience.due.map(|due| self.due.remove(&(due, room.clone())));
                unheard = audience.take_messages();
                route.audience = None;
            }
        }
        if route.uncount(desk) {
            self.routes.remove(room);
        }
        self.released.extend(unheard);
    }
}

impl Route {
    fn count(&mut self, desk: Desk) {
        match self.desks.iter_mut().find(|(known, _)| *known == desk) {
            Some((_, members)) => *members += 1,
            None => self.desks.push((desk, 1)),
        }
    }

    /// Says whether nobody is left.
    fn uncount(&mut self, desk: Desk) -> bool {
        if let Some(index) = self.desks.iter().position(|(known, _)| *known == desk) {
            self.desks[index].1 -= 1;
            if self.desks[index].1 == 0 {
                self.desks.swap_remove(index);
            }
        }
        self.desks.is_empty()
    }
}
