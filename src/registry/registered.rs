//! Connections that are told of a shutdown, whether or not they are in a room.

use std::{collections::HashMap, sync::Weak};

use actix::prelude::*;
use ahash::RandomState;

use super::RoomRegistry;
use crate::{
    messages::{Disconnect, Register, Registration},
    model::{ConnectionId, Shrink},
};

/// How many entries there are before those of sessions that have ended are looked for.
const FIRST_PURGE: usize = 1024;

/// The recipient of a connection's order to close.
struct Session {
    disconnect: Recipient<Disconnect>,
    /// Gone with the [`Connection`](crate::Connection), if it is one.
    alive: Option<Weak<()>>,
    /// Whether it was told to close.
    is_told: bool,
}

impl Session {
    /// Whether it may join again after it has left all rooms.
    fn outlives_leave(&self) -> bool {
        !self.is_told && self.alive.as_ref().is_some_and(|alive| alive.strong_count() > 0)
    }
}

#[derive(Default)]
pub(super) struct Registered {
    sessions: HashMap<ConnectionId, Session, RandomState>,
    /// How many there may be before those that have ended without a leave are forgotten.
    purge_at: usize,
}

impl Registered {
    fn insert(&mut self, msg: Register) {
        if self.sessions.len() >= self.purge_at.max(FIRST_PURGE) {
            self.purge();
            self.purge_at = self.sessions.len() * 2;
        }
        let Register { connection, disconnect, alive } = msg;
        self.sessions.insert(connection, Session { disconnect, alive, is_told: false });
    }

    fn purge(&mut self) {
        self.sessions.retain(|_, session| session.disconnect.connected());
        self.sessions.shrink();
    }

    /// The connection has left all its rooms. Its session may go on and join again: then it is still to be told of a
    /// shutdown.
    pub fn left(&mut self, connection: ConnectionId) {
        if self.sessions.get(&connection).is_some_and(|session| !session.outlives_leave()) {
            self.sessions.remove(&connection);
        }
    }

    /// The recipient of a connection's order to close, for a join that names none.
    pub fn recipient(&self, connection: ConnectionId) -> Option<Recipient<Disconnect>> {
        Some(self.sessions.get(&connection)?.disconnect.clone())
    }

    /// The connection was told to close in another way: it is told once.
    pub fn note_told(&mut self, connection: ConnectionId) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.is_told = true;
        }
    }

    /// Tells those to close that were not told yet.
    pub fn tell(&mut self, order: Disconnect) {
        self.tell_those(order, |_| true);
    }

    /// The same for those of these connections alone.
    pub fn tell_those(&mut self, order: Disconnect, meant: impl Fn(ConnectionId) -> bool) {
        for (connection, session) in &mut self.sessions {
            if meant(*connection) && !std::mem::replace(&mut session.is_told, true) {
                session.disconnect.do_send(order);
            }
        }
    }

    /// Gives the memory back that a crowd needed.
    pub fn shrink(&mut self) {
        self.sessions.shrink();
        self.purge_at = self.purge_at.min(self.sessions.len() * 2);
    }

    /// Whether all sessions have ended.
    pub fn is_empty(&self) -> bool {
        !self.sessions.values().any(|session| session.disconnect.connected())
    }
}

impl Handler<Register> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: Register, _: &mut Context<Self>) {
        self.register(msg);
    }
}

impl Handler<Registration> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: Registration, _: &mut Context<Self>) {
        self.take_registration(msg);
    }
}

impl RoomRegistry {
    pub(super) fn take_registration(&mut self, msg: Registration) {
        if let Some(msg) = msg.take() {
            self.register(msg);
        }
    }

    fn register(&mut self, msg: Register) {
        match self.order_of_stop() {
            Some(order) => msg.disconnect.do_send(order),
            None => self.registered.insert(msg),
        }
    }
}
