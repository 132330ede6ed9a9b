//! Who gets what: the one part that knows the recipients of sessions and observers.
//!
//! Frames are encoded once per dialect and shared. Nothing here waits: a recipient that does not take
//! its frame is reported to the registry, which decides.

mod audience;
mod farewells;
mod frames;
mod observers;

use std::collections::{BTreeSet, HashMap};

use actix::prelude::*;
use ahash::RandomState;
use bytestring::ByteString;

use self::{audience::Audience, frames::Published};
pub(crate) use self::{farewells::Farewells, observers::Observers};
use crate::{
    messages::{Content, Dialect, Disconnect, Feed, ForwardMessage, Forwarded, close_code},
    model::{Cause, ConnectionId, Diff, RoomName, Snapshot},
    tally::Tally,
    wire::json,
};

/// How to reach one connection.
struct Outlet {
    /// This very recipient and no clone of it: each clone has a free slot in a full mailbox.
    forward: Recipient<ForwardMessage>,
    disconnect: Option<Recipient<Disconnect>>,
    dialect: Dialect,
}

impl Outlet {
    /// Whether it wants to hear who is in its rooms.
    fn listens(&self) -> bool {
        !matches!(self.dialect, Dialect::Raw | Dialect::Json(Feed::None))
    }
}

/// Connections that did not take what they were sent.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Their mailbox is full.
    pub slow: Vec<ConnectionId>,
    /// Their actor has stopped.
    pub gone: Vec<ConnectionId>,
}

/// The recipients of all connections, and what their rooms owe them.
pub(crate) struct Delivery {
    outlets: HashMap<ConnectionId, Outlet, RandomState>,
    /// Rooms of which somebody wants to hear who is there.
    audiences: HashMap<RoomName, Audience, RandomState>,
    /// When the next member list of a room may go out, for rooms that wait for it.
    due: BTreeSet<(u64, RoomName)>,
    lists_sent: Tally,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            outlets: HashMap::default(),
            audiences: HashMap::default(),
            due: BTreeSet::new(),
            lists_sent: Tally::new("presence_lists_sent_total"),
        }
    }
}

impl Delivery {
    /// How often a room's listeners were sent who is there.
    pub fn lists_sent(&self) -> u64 {
        self.lists_sent.count()
    }

    /// Remembers how to reach a connection.
    pub fn connect(
        &mut self,
        connection: ConnectionId,
        forward: Recipient<ForwardMessage>,
        disconnect: Option<Recipient<Disconnect>>,
        dialect: Dialect,
    ) {
        match self.outlets.get_mut(&connection) {
            Some(known) if known.forward == forward => known.dialect = dialect,
            _ => {
                self.outlets.insert(connection, Outlet { forward, disconnect, dialect });
            }
        }
    }

    /// Forgets a connection that is out of its last room, telling it to close if it does not know.
    pub fn disconnect(&mut self, connection: ConnectionId, cause: Cause) {
        let Some(outlet) = self.outlets.remove(&connection) else { return };
        if let (Some(code), Some(disconnect)) = (close_code(cause), outlet.disconnect) {
            disconnect.do_send(Disconnect { code, cause });
        }
    }

    /// Forgets everybody, who are to be told to close with this code.
    pub fn dismiss(&mut self, code: u16) -> Farewells {
        let mut outlets: Vec<_> = std::mem::take(&mut self.outlets).into_iter().collect();
        outlets.sort_unstable_by_key(|(connection, _)| *connection);
        let sessions = outlets.into_iter().filter_map(|(_, outlet)| outlet.disconnect).collect();
        self.audiences.clear();
        self.due.clear();
        Farewells { sessions, code }
    }

    /// Forgets a connection that has ended.
    pub fn forget(&mut self, connection: ConnectionId) {
        self.outlets.remove(&connection);
    }

    /// Tells a connection that it was put out of one of its rooms, if its dialect has a word for it.
    pub fn close_room(&mut self, room: &RoomName, connection: ConnectionId, cause: Cause) {
        let Some(outlet) = self.outlets.get(&connection) else { return };
        if outlet.dialect == Dialect::Phoenix && close_code(cause).is_some() {
            let (room, kind, payload) = (room.clone(), Forwarded::Closed, ByteString::new());
            // Once per stay, so it may go past a full mailbox.
            outlet.forward.do_send(ForwardMessage { room, kind, payload });
        }
    }

    /// Sends to everybody in the room of whom it is `wanted`; says how many took it.
    pub fn publish(
        &mut self,
        room: &Snapshot,
        content: &Content,
        from: Option<&json::Sender>,
        wanted: impl Fn(ConnectionId) -> bool,
    ) -> (usize, Refused) {
        let mut published = Published::new(room, content, from);
        let (mut taken, mut refused) = (0, Refused::default());
        for connection in room.connections().filter(|one| wanted(*one)) {
            let Some(outlet) = self.outlets.get(&connection) else { continue };
            let (kind, payload) = (Forwarded::Message, published.frame(outlet.dialect));
            let room = room.room().clone();
            match outlet.forward.try_send(ForwardMessage { room, kind, payload }) {
                Ok(()) => taken += 1,
                Err(SendError::Full(_)) => refused.slow.push(connection),
                Err(SendError::Closed(_)) => refused.gone.push(connection),
            }
        }
        (taken, refused)
    }

    /// The connection has joined the room and is owed its state, if it wants to hear of it.
    pub fn listen(&mut self, room: &Snapshot, connection: ConnectionId, now: u64) {
        let name = room.room();
        if !self.outlets.get(&connection).is_some_and(Outlet::listens) {
            return self.unlisten(name, connection);
        }
        self.audiences
            .entry(name.clone())
            .or_insert_with(|| Audience::new(room.clone()))
            .admit(connection, now);
        self.schedule(name, now);
    }

    /// Notes a change of a room for those who hear of it.
    pub fn changed(&mut self, diff: &Diff, now: u64) {
        self.changed_in_place(diff, now);
        for left in &diff.leaves {
            self.unlisten(&diff.room, left.presence.connection);
        }
    }

    /// Notes a change of a room whose members all stay.
    pub fn changed_in_place(&mut self, diff: &Diff, now: u64) {
        let Some(audience) = self.audiences.get_mut(&diff.room) else { return };
        audience.note(diff, now);
        self.schedule(&diff.room, now);
    }

    /// The connection does not hear of the room any more.
    pub fn unlisten(&mut self, room: &RoomName, connection: ConnectionId) {
        let Some(audience) = self.audiences.get_mut(room) else { return };
        if audience.forget(connection) {
            let due = self.audiences.remove(room).and_then(|audience| audience.due);
            due.map(|due| self.due.remove(&(due, room.clone())));
        }
    }

    fn schedule(&mut self, room: &RoomName, now: u64) {
        let Some(audience) = self.audiences.get_mut(room) else { return };
        if audience.due.is_none() {
            let due = audience.next(now);
            audience.due = Some(due);
            self.due.insert((due, room.clone()));
        }
    }

    /// When the next room is due, in microseconds of the monotonic clock.
    pub fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes a room whose member list may go out now.
    pub fn take_due(&mut self, now: u64) -> Option<RoomName> {
        while self.next_due()? <= now {
            let (_, room) = self.due.pop_first()?;
            let Some(audience) = self.audiences.get_mut(&room) else { continue };
            // It may have changed again since it was due.
            let due = audience.next(now);
            audience.due = (due > now).then_some(due);
            if audience.due.is_none() {
                return Some(room);
            }
            self.due.insert((due, room));
        }
        None
    }

    /// Sends the room's listeners what they do not know yet.
    pub fn flush(&mut self, room: &Snapshot, now: u64) -> Refused {
        let Some(audience) = self.audiences.get_mut(room.room()) else { return Refused::default() };
        let outlets = &self.outlets;
        let outlet = |connection| outlets.get(&connection).map(|o| (&o.forward, o.dialect));
        let refused = audience.flush(room, now, outlet);
        self.lists_sent.add(1);
        if audience.owes() {
            self.schedule(room.room(), now);
        }
        refused
    }
}
