//! Places that sessions keep while they fade, and that their clients take when they come back.

use std::{collections::HashMap, time::Duration};

use actix::prelude::*;
use ahash::RandomState;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{RoomRegistry, following::Reply};
use crate::{
    messages::{PlaceBack, SessionPlace, TakePlace},
    model::{Cause, ConnectionId, Moment},
};

/// Presences of a client that are looked at to find its older connection.
const LOOKED_AT: usize = 128;

/// How long a client may take to read that its socket is replaced, before that is shut down: a newer
/// one waits for the place.
const REPLACED_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Places {
    /// Of connections that fade.
    kept: HashMap<ConnectionId, OwnedSemaphorePermit, RandomState>,
    /// Of connections whose socket is about to end, with who gets them then.
    wanted: HashMap<ConnectionId, oneshot::Sender<Option<SessionPlace>>, RandomState>,
}

impl Places {
    /// The connection does not fade any more: its place is free.
    pub fn release(&mut self, connection: ConnectionId) {
        if !self.kept.is_empty() {
            self.kept.remove(&connection);
        }
    }

    /// Hands out the place of a connection when it comes back.
    fn want(&mut self, connection: ConnectionId) -> Reply<Option<SessionPlace>> {
        let (reply, place) = oneshot::channel();
        self.wanted.retain(|_, waiting| !waiting.is_closed());
        self.wanted.insert(connection, reply);
        Reply::Later(place)
    }
}

impl Handler<PlaceBack> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: PlaceBack, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let PlaceBack { permit, connections } = msg;
        let waiting = connections.iter().find_map(|one| self.places.wanted.remove(one));
        let mut fading = connections;
        fading.retain(|one| self.rooms.has_ended(*one) && !self.places.kept.contains_key(one));
        let newest = fading.first().copied();
        // One place is for one session: what its client has not resumed ends.
        for older in fading.into_iter().skip(1) {
            self.leave_all(older, Cause::Disconnected, now);
        }
        match (waiting, newest) {
            (Some(waiting), newest) => {
                let place = SessionPlace::of(permit, newest, ctx.address().recipient());
                // If nobody waits any more, it comes back again.
                let _ = waiting.send(Some(place));
            }
            (None, Some(newest)) => drop(self.places.kept.insert(newest, permit)),
            (None, None) => {}
        }
        self.settle(ctx, now);
    }
}

impl Handler<TakePlace> for RoomRegistry {
    type Result = Reply<Option<SessionPlace>>;

    fn handle(&mut self, msg: TakePlace, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now();
        let mut older = self.older_connections(&msg);
        older.retain(|connection| self.may_replace(*connection, &msg));
        for connection in &older {
            if let Some(permit) = self.places.kept.remove(connection) {
                let place = SessionPlace::of(permit, Some(*connection), ctx.address().recipient());
                return Reply::Now(Some(place));
            }
        }
        let Some(connection) = older.into_iter().next() else { return Reply::Now(None) };
        if !self.rooms.has_ended(connection) {
            self.end_socket(connection, now);
            self.settle(ctx, now);
        }
        self.places.want(connection)
    }
}

impl RoomRegistry {
    /// The connections of the client that are in rooms it may enter now, the newest first.
    fn older_connections(&self, msg: &TakePlace) -> Vec<ConnectionId> {
        let presences = self.sessions.presences_of(&msg.session, msg.user.as_ref()).take(LOOKED_AT);
        // What an earlier life of this node has left has no socket, and so no place to give.
        let presences = presences.filter(|(room, presence)| {
            (msg.enters)(room) && !self.orphans.contains(&(*presence, (*room).clone()))
        });
        let mut older: Vec<_> = presences
            .filter_map(|(room, presence)| self.rooms.current_connection(room, presence))
            .collect();
        older.sort_unstable_by(|one, other| other.cmp(one));
        older.dedup();
        older
    }

    /// Whether a newer connection may take the place of this one in all its rooms.
    fn may_replace(&self, connection: ConnectionId, msg: &TakePlace) -> bool {
        let TakePlace { user, session, info, enters } = msg;
        self.rooms.memberships_of(connection).all(|(room, presence)| {
            self.sessions.presence_in(room, session, user.as_ref()) == Some(presence)
                && enters(room)
                && self.admit(room, user.as_ref(), info).is_ok()
        })
    }

    /// Ends the socket of a connection whose place a newer one of its client session needs. Its
    /// presences fade until the newer one has joined.
    fn end_socket(&mut self, connection: ConnectionId, now: Moment) {
        // While it is known there.
        self.delivery.close_within(connection, Cause::Replaced, REPLACED_TIMEOUT);
        self.end_connection(connection, Cause::Disconnected, now);
    }
}
