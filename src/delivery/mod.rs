//! Delivers frames to sessions and events to observers.
//!
//! [`Delivery`] has the threads that have members of a room, and gives each one order for what all members
//! get; the [dispatcher](dispatcher) of the thread carries it out. Frames are encoded once per dialect and
//! shared. Nothing here waits: a recipient that does not take its frame is reported to the registry.

mod broadcast;
mod dispatcher;
mod dispatchers;
mod frames;
mod observer_queue;
mod observers;
mod published;
mod receiver;
mod schedule;
mod slices;
#[cfg(test)]
mod tests;
mod throttle;
mod user_observers;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use actix::WeakRecipient;
use ahash::RandomState;
use smallvec::SmallVec;

use self::{
    dispatchers::{DeliveryOrder, DispatcherId, Dispatchers, JoinReplies, RoomEntry},
    published::LocalMessage,
    schedule::ListSchedule,
};
pub(crate) use self::{
    dispatchers::{DeliveryReport, JoinReply},
    observers::Observers,
    published::{DeliveryCount, Publication},
    receiver::Recipients,
    user_observers::UserObservers,
};
use crate::{
    counters::Counter,
    messages::{Disconnect, SessionThread, close_code},
    model::{Cause, ConnectionId, Few, RoomName, Rooms, Shrink, Snapshot},
    sockets::CLOSE_TIMEOUT,
};

/// Draining closes all connections in at most this many batches, this far apart, so that their clients do not
/// all reconnect at once: two seconds at most.
const MAX_DRAIN_BATCHES: usize = 20;
pub(crate) const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
const MIN_DRAIN_BATCH: usize = 64;

/// The rooms of a connection, and how it is reached.
struct Memberships {
    dispatcher: DispatcherId,
    /// Tells it from an earlier connection with the same id.
    serial: u32,
    /// Its rooms, and whether it listens to their lists.
    rooms: Few<(RoomName, bool)>,
    is_draining: bool,
}

/// How to reach the members of a room.
#[derive(Default)]
struct Route {
    members: SmallVec<[(DispatcherId, u32); 2]>,
    /// The lists for the listeners, if there are any.
    schedule: Option<Box<ListSchedule>>,
}

/// Connections that did not take what they were sent.
#[derive(Debug, Default)]
pub(crate) struct FailedMembers {
    /// Their mailbox or backlog is full.
    pub slow: Vec<ConnectionId>,
    /// Their actor has stopped.
    pub gone: Vec<ConnectionId>,
}

impl FailedMembers {
    fn is_empty(&self) -> bool {
        self.slow.is_empty() && self.gone.is_empty()
    }
}

/// A connection that has entered a room in this turn, which its dispatcher does not know yet.
struct Newcomer {
    dispatcher: DispatcherId,
    entry: RoomEntry,
    /// Whether it was a member before, and got the room's earlier messages.
    rejoins: bool,
}

impl Newcomer {
    /// Whether it is an entry of this connection, into this room or any.
    fn is(&self, connection: ConnectionId, room: Option<&RoomName>) -> bool {
        self.entry.connection == connection && room.is_none_or(|room| self.entry.room == *room)
    }
}

pub(crate) struct Arrival {
    pub connection: ConnectionId,
    pub recipients: Recipients,
    /// It may not see who is in the room.
    pub counts_only: bool,
    /// Where the join was made, if an actix arbiter runs there.
    pub thread: Option<SessionThread>,
    pub reply: JoinReply,
}

/// The routes to all connections, and what is scheduled for their rooms.
pub(crate) struct Delivery {
    dispatchers: Dispatchers,
    memberships: HashMap<ConnectionId, Memberships, RandomState>,
    last_serial: u32,
    last_entry: u64,
    newcomers: Vec<Newcomer>,
    /// Messages that waited for a list that is no longer needed, as the last listener has left.
    released: Vec<LocalMessage>,
    routes: HashMap<RoomName, Route, RandomState>,
    /// Rooms in the order in which their next list is due.
    due: BTreeSet<(u64, RoomName)>,
    failed: FailedMembers,
    max_list_size: usize,
    lists_sent: Counter,
    deliveries: Counter,
}

impl Delivery {
    /// No connections yet; a full list may have this many bytes.
    pub fn new(max_list_size: usize) -> Self {
        Self {
            dispatchers: Dispatchers::default(),
            memberships: HashMap::default(),
            last_serial: 0,
            last_entry: 0,
            newcomers: Vec::new(),
            released: Vec::new(),
            routes: HashMap::default(),
            due: BTreeSet::new(),
            failed: FailedMembers::default(),
            max_list_size,
            lists_sent: Counter::new("presence_lists_sent_total"),
            deliveries: Counter::new("presence_deliveries_total"),
        }
    }

    /// Releases memory that was needed for more connections than there are now.
    pub fn shrink(&mut self) {
        self.memberships.shrink();
        self.routes.shrink();
    }

    /// Sets the recipient for delivery reports of other threads.
    pub fn report_to(&mut self, reports: WeakRecipient<DeliveryReport>) {
        self.dispatchers.report_to(reports);
    }

    /// How many lists were sent, each to all listeners of a room.
    pub fn lists_sent(&self) -> u64 {
        self.lists_sent.count()
    }

    /// How many messages were taken by members.
    pub fn deliveries(&self) -> u64 {
        self.deliveries.count()
    }

    /// Takes the connections that did not take something, if there are any.
    pub fn take_failed(&mut self) -> Option<FailedMembers> {
        (!self.failed.is_empty()).then(|| std::mem::take(&mut self.failed))
    }

    /// Adds a connection to a room, reached by these recipients from now on. The initial list, then the
    /// reply to its join, follow at the [end of the turn](Self::end_turn).
    pub fn enter(&mut self, room: &Snapshot, arrival: Arrival, now: u64) {
        let Arrival { connection, recipients, counts_only, thread, reply } = arrival;
        let (name, listens) = (room.room(), recipients.listens());
        let Self { dispatchers, last_serial, .. } = self;
        let known = self.memberships.entry(connection).or_insert_with(|| {
            *last_serial = last_serial.wrapping_add(1);
            Memberships {
                dispatcher: dispatchers.assign(thread),
                serial: *last_serial,
                rooms: Few::default(),
                is_draining: false,
            }
        });
        let (dispatcher, serial) = (known.dispatcher, known.serial);
        let index = known.rooms.iter().position(|(known, _)| known == name);
        let before = index.and_then(|index| known.rooms.remove(index));
        known.rooms.push((name.clone(), listens));
        self.last_entry += 1;
        let earlier = self.newcomers.iter().position(|one| one.is(connection, Some(name)));
        let (number, rejoins, mut replies) = match earlier.map(|at| self.newcomers.remove(at)) {
            Some(Newcomer { entry, rejoins, .. }) => (entry.number, rejoins, entry.replies),
            None => (self.last_entry, before.is_some(), JoinReplies::default()),
        };
        replies.push(reply);
        let entry = RoomEntry {
            connection,
            room: name.clone(),
            recipients,
            counts_only,
            serial,
            number,
            version: room.version(),
            list: None,
            replies,
            now,
        };
        self.newcomers.push(Newcomer { dispatcher, entry, rejoins });
        let route = self.routes.entry(name.clone()).or_default();
        if listens {
            let new = || Box::new(ListSchedule::new(room.clone(), self.max_list_size));
            route.schedule.get_or_insert_with(new).listeners += 1;
        }
        route.add_member(dispatcher);
        if let Some((_, listened)) = before {
            self.remove_from_route(name, dispatcher, listened);
        }
    }

    /// Removes a connection from a room.
    pub fn exit(&mut self, room: &RoomName, connection: ConnectionId) {
        self.send_entries(connection, Some(room));
        let Some(known) = self.memberships.get_mut(&connection) else { return };
        let Some(index) = known.rooms.iter().position(|(name, _)| name == room) else { return };
        let Some((room, listened)) = known.rooms.remove(index) else { return };
        let dispatcher = known.dispatcher;
        self.remove_from_route(&room, dispatcher, listened);
        self.dispatchers.notify(dispatcher, DeliveryOrder::Exit { connection, room });
    }

    /// Sends the pending entries of a connection into a room, or all rooms, before orders that must not overtake
    /// them.
    fn send_entries(&mut self, connection: ConnectionId, room: Option<&RoomName>) {
        for newcomer in self.newcomers.extract_if(.., |one| one.is(connection, room)) {
            let enter = DeliveryOrder::Enter(newcomer.entry);
            self.dispatchers.notify(newcomer.dispatcher, enter);
        }
    }

    /// Forgets a connection that has left its last room, and closes it unless the cause is its own.
    pub fn disconnect(&mut self, connection: ConnectionId, cause: Cause) {
        self.close_within(connection, cause, CLOSE_TIMEOUT);
    }

    /// The same with a timeout after which the socket is shut down.
    pub fn close_within(&mut self, connection: ConnectionId, cause: Cause, timeout: Duration) {
        let disconnect = close_code(cause).map(|code| Disconnect { code, cause });
        self.end(connection, disconnect.map(|disconnect| (disconnect, timeout)));
    }

    /// Forgets a connection whose session has ended.
    pub fn forget(&mut self, connection: ConnectionId) {
        self.end(connection, None);
    }

    fn end(&mut self, connection: ConnectionId, close: Option<(Disconnect, Duration)>) {
        self.send_entries(connection, None);
        let Some(known) = self.memberships.remove(&connection) else { return };
        let Memberships { dispatcher, rooms, is_draining, .. } = known;
        // `Disconnect` is sent once.
        let close = close.filter(|_| !is_draining);
        for (room, listened) in &*rooms {
            self.remove_from_route(room, dispatcher, *listened);
        }
        self.dispatchers.notify(dispatcher, DeliveryOrder::End { connection, rooms, close });
        self.dispatchers.unassign(dispatcher);
    }

    /// Tells a connection that was removed from one of its rooms, unless it left by itself.
    pub fn close_room(&mut self, room: &RoomName, connection: ConnectionId, cause: Cause) {
        self.send_entries(connection, Some(room));
        let Some(known) = self.memberships.get(&connection) else { return };
        if close_code(cause).is_some() {
            let order = DeliveryOrder::NotifyRemoved { connection, room: room.clone(), cause };
            self.dispatchers.notify(known.dispatcher, order);
        }
    }

    fn remove_from_route(&mut self, room: &RoomName, dispatcher: DispatcherId, listened: bool) {
        let Some(route) = self.routes.get_mut(room) else { return };
        if let Some(schedule) = route.schedule.as_mut().filter(|_| listened) {
            schedule.listeners -= 1;
            if schedule.listeners == 0 {
                schedule.due.map(|due| self.due.remove(&(due, room.clone())));
                self.released.extend(schedule.take_held());
                route.schedule = None;
            }
        }
        if route.remove_member(dispatcher) {
            self.routes.remove(room);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.memberships.is_empty()
    }

    /// Done when what was given to the dispatchers is in the mailboxes of the sessions.
    #[cfg(any(test, feature = "testing"))]
    pub fn settled(&self) -> impl Future<Output = ()> + use<> {
        self.dispatchers.settled()
    }

    /// All connections, in the batches in which they are to be drained.
    pub fn drain_batches(&self) -> Vec<Vec<ConnectionId>> {
        let mut all: Vec<_> = self.memberships.keys().copied().collect();
        all.sort_unstable();
        let size = all.len().div_ceil(MAX_DRAIN_BATCHES).max(MIN_DRAIN_BATCH);
        all.chunks(size).map(<[_]>::to_vec).collect()
    }

    /// Tells connections to close. Each stays a member until its session has left, and gets what was published
    /// before. Returns those that were told: who has left since is not a member any more.
    pub fn drain(
        &mut self,
        connections: Vec<ConnectionId>,
        disconnect: Disconnect,
        rooms: &Rooms,
        now: u64,
    ) -> Vec<ConnectionId> {
        self.end_turn(rooms, now);
        self.flush_messages(rooms, now);
        self.order_to_close(connections, disconnect)
    }

    /// Tells all connections to close that were not told yet, at once. Returns them.
    pub fn order_all_to_close(&mut self, disconnect: Disconnect) -> Vec<ConnectionId> {
        self.order_to_close(self.memberships.keys().copied().collect(), disconnect)
    }

    fn order_to_close(
        &mut self,
        connections: Vec<ConnectionId>,
        disconnect: Disconnect,
    ) -> Vec<ConnectionId> {
        let mut told = Vec::new();
        let mut by_dispatcher: Vec<(DispatcherId, Vec<ConnectionId>)> = Vec::new();
        for connection in connections {
            let Some(known) = self.memberships.get_mut(&connection) else { continue };
            if std::mem::replace(&mut known.is_draining, true) {
                continue;
            }
            told.push(connection);
            match by_dispatcher.iter_mut().find(|(id, _)| *id == known.dispatcher) {
                Some((_, connections)) => connections.push(connection),
                None => by_dispatcher.push((known.dispatcher, vec![connection])),
            }
        }
        for (dispatcher, connections) in by_dispatcher {
            self.dispatchers.notify(dispatcher, DeliveryOrder::Drain { connections, disconnect });
        }
        told
    }

    pub fn is_draining(&self, connection: ConnectionId) -> bool {
        self.memberships.get(&connection).is_some_and(|known| known.is_draining)
    }
}

impl Route {
    fn add_member(&mut self, dispatcher: DispatcherId) {
        match self.members.iter_mut().find(|(known, _)| *known == dispatcher) {
            Some((_, count)) => *count += 1,
            None => self.members.push((dispatcher, 1)),
        }
    }

    /// Whether that was the last member.
    fn remove_member(&mut self, dispatcher: DispatcherId) -> bool {
        if let Some(index) = self.members.iter().position(|(known, _)| *known == dispatcher) {
            self.members[index].1 -= 1;
            if self.members[index].1 == 0 {
                self.members.swap_remove(index);
            }
        }
        self.members.is_empty()
    }
}
