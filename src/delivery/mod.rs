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
mod frames;
mod observers;
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
    audience::Audience,
    courier::Order,
    couriers::{Couriers, Desk, Sent},
    frames::Published,
};
pub(crate) use self::{
    courier::{Courier, Outlet, Report},
    farewells::BATCH_INTERVAL,
    frames::Taking,
    observers::Observers,
};
use crate::{
    messages::{Content, Dialect, Disconnect, Feed, close_code},
    model::{Cause, ConnectionId, Diff, Few, RoomName, Shrink, Snapshot},
    sockets::CLOSE_TIMEOUT,
    tally::Tally,
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

/// The ways to all connections, and what their rooms owe them.
pub(crate) struct Delivery {
    couriers: Couriers,
    stays: HashMap<ConnectionId, Stay, RandomState>,
    serial: u32,
    routes: HashMap<RoomName, Route, RandomState>,
    /// When the next member list of a room may go out, for rooms that wait for it.
    due: BTreeSet<(u64, RoomName)>,
    lists_sent: Tally,
    deliveries: Tally,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            couriers: Couriers::default(),
            stays: HashMap::default(),
            serial: 0,
            routes: HashMap::default(),
            due: BTreeSet::new(),
            lists_sent: Tally::new("presence_lists_sent_total"),
            deliveries: Tally::new("presence_deliveries_total"),
        }
    }
}

impl Delivery {
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

    /// The connection is in the room, is reached like this from now on, and is owed the room's state
    /// if it wants to hear of it.
    pub fn enter(
        &mut self,
        room: &Snapshot,
        connection: ConnectionId,
        outlet: Outlet,
        courier: Option<Addr<Courier>>,
        now: u64,
    ) {
        let name = room.room();
        let listens = !matches!(outlet.dialect, Dialect::Raw | Dialect::Json(Feed::None));
        // In this order, as what it knew of the room may have been something else.
        self.exit(name, connection);
        let Self { couriers, serial, .. } = self;
        let stay = self.stays.entry(connection).or_insert_with(|| {
            *serial = serial.wrapping_add(1);
            let desk = couriers.hire(courier);
            Stay { desk, serial: *serial, rooms: Few::default(), dismissed: false }
        });
        stay.rooms.push((name.clone(), listens));
        let (room_name, serial) = (name.clone(), stay.serial);
        let order = Order::Enter { connection, room: room_name, listens, serial, outlet };
        couriers.tell(stay.desk, order);
        let route = self.routes.entry(name.clone()).or_default();
        route.count(stay.desk);
        if listens {
            let new = || Box::new(Audience::new(room.clone()));
            let audience = route.audience.get_or_insert_with(new);
            audience.listeners += 1;
            audience.admit(now);
            self.schedule(name, now);
        }
    }

    /// The connection is not in the room any more.
    pub fn exit(&mut self, room: &RoomName, connection: ConnectionId) {
        let Some(stay) = self.stays.get_mut(&connection) else { return };
        let Some(index) = stay.rooms.iter().position(|(name, _)| name == room) else { return };
        let Some((room, listened)) = stay.rooms.remove(index) else { return };
        let desk = stay.desk;
        self.uncount(&room, desk, listened);
        self.couriers.tell(desk, Order::Exit { connection, room });
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
        let Some(stay) = self.stays.get(&connection) else { return };
        if close_code(cause).is_some() {
            self.couriers.tell(stay.desk, Order::Close { connection, room: room.clone() });
        }
    }

    /// Sends to everybody in the room who is here, but for one.
    pub fn publish(
        &mut self,
        room: &RoomName,
        content: Content,
        from: Option<json::Sender>,
        except: Option<ConnectionId>,
        now: u64,
    ) -> (Taking, Refused) {
        let mut refused = Refused::default();
        let Some(route) = self.routes.get(room) else { return (Taking::none(), refused) };
        let (message, taking) =
            Published::new(room.clone(), content, from, self.deliveries.clone());
        let message = Arc::new(message);
        for (desk, _) in &route.desks {
            let order = Order::Message { message: Arc::clone(&message), except };
            match self.couriers.send(*desk, order, Report::default(), now) {
                Sent::Back(report) => refused.extend(self.refused(report)),
                Sent::Away => {}
                Sent::Lost => refused.slow.extend(self.connections_of(*desk)),
            }
        }
        (taking, refused)
    }

    /// Notes a change of a room for those who hear of it.
    pub fn changed(&mut self, diff: &Diff, now: u64) {
        self.changed_in_place(diff, now);
        for left in &diff.leaves {
            self.exit(&diff.room, left.connection);
        }
    }

    /// Notes a change of a room whose members all stay.
    pub fn changed_in_place(&mut self, diff: &Diff, now: u64) {
        let Some(audience) = self.audience(&diff.room) else { return };
        audience.note(diff, now);
        self.schedule(&diff.room, now);
    }

    /// When the next room is due, in microseconds of the monotonic clock.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes a room whose member list may go out now.
    pub fn take_due(&mut self, now: u64) -> Option<RoomName> {
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

    /// Sends the room's listeners what they do not know yet.
    pub fn flush(&mut self, room: &Snapshot, now: u64) -> Refused {
        let mut refused = Refused::default();
        let name = room.room();
        let Some(Route { desks, audience: Some(audience) }) = self.routes.get_mut(name) else {
            return refused;
        };
        let list = Arc::new(audience.list(room, desks.len(), now));
        for (desk, _) in desks.clone() {
            let order = Order::List { list: Arc::clone(&list), now };
            let report = Report { listed: Some(name.clone()), ..Report::default() };
            match self.couriers.send(desk, order, report, now) {
                Sent::Back(report) => refused.extend(self.returned(report, now)),
                Sent::Away => {}
                Sent::Lost => refused.slow.extend(self.connections_of(desk)),
            }
        }
        self.lists_sent.add(1);
        refused
    }

    /// Takes what came of an order.
    pub fn returned(&mut self, report: Report, now: u64) -> Refused {
        if let Some(room) = &report.listed
            && let Some(audience) = self.audience(room)
        {
            audience.returned(&report, now);
            self.schedule(room, now);
        }
        self.refused(report)
    }

    /// Who is still there of those who did not take something.
    fn refused(&self, Report { slow, gone, .. }: Report) -> Refused {
        let current = |known: Vec<(ConnectionId, u32)>| {
            let is_it =
                |(id, serial): &(_, _)| self.stays.get(id).is_some_and(|s| s.serial == *serial);
            known.into_iter().filter(is_it).map(|(id, _)| id).collect()
        };
        Refused { slow: current(slow), gone: current(gone) }
    }

    fn connections_of(&self, desk: Desk) -> impl Iterator<Item = ConnectionId> {
        let served = self.stays.iter().filter(move |(_, stay)| stay.desk == desk);
        served.map(|(connection, _)| *connection)
    }

    fn audience(&mut self, room: &RoomName) -> Option<&mut Audience> {
        self.routes.get_mut(room)?.audience.as_deref_mut()
    }

    fn schedule(&mut self, room: &RoomName, now: u64) {
        let Some(audience) = self.audience(room) else { return };
        let Some(due) = audience.next(now) else { return };
        if audience.due.is_none_or(|known| due < known) {
            let known = audience.due.replace(due);
            known.map(|known| self.due.remove(&(known, room.clone())));
            self.due.insert((due, room.clone()));
        }
    }

    /// A courier has one member less in the room.
    fn uncount(&mut self, room: &RoomName, desk: Desk, listened: bool) {
        let Some(route) = self.routes.get_mut(room) else { return };
        if let Some(audience) = route.audience.as_mut().filter(|_| listened) {
            audience.listeners -= 1;
            if audience.listeners == 0 {
                audience.due.map(|due| self.due.remove(&(due, room.clone())));
                route.audience = None;
            }
        }
        if route.uncount(desk) {
            self.routes.remove(room);
        }
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
