//! Connections that are told of a shutdown, whether or not they are in a room.

use std::{collections::HashMap, sync::Weak};

use actix::prelude::*;
use ahash::RandomState;

use super::RoomRegistry;
use crate::{
    messages::{CRASHED, Disconnect, Register},
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
    pub fn is_told(&mut self, connection: ConnectionId) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.is_told = true;
        }
    }

    /// Tells those to close that were not told yet.
    pub fn tell(&mut self, order: Disconnect) {
        for session in self.sessions.values_mut() {
            if !std::mem::replace(&mut session.is_told, true) {
                session.disconnect.do_send(order);
            }
        }
    }

    /// Tells those of these connections that were not told to close that the registry has crashed.
    pub fn tell_crash(&self, of: impl Fn(ConnectionId) -> bool) {
        for (connection, session) in &self.sessions {
            if !session.is_told && of(*connection) {
                session.disconnect.do_send(CRASHED);
            }
        }
    }

    /// Whether all sessions have ended.
    pub fn is_empty(&self) -> bool {
        !self.sessions.values().any(|session| session.disconnect.connected())
    }
}

impl Handler<Register> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: Register, _: &mut Context<Self>) {
        match self.order_of_stop() {
            Some(order) => msg.disconnect.do_send(order),
            None => self.registered.insert(msg),
        }
    }
}
