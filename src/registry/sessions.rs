//! Ends of connections: at once, or after a grace in which their client may come back.

use actix::prelude::*;

use super::RoomRegistry;
use crate::{
    messages::{Departed, Explain, Explained},
    model::{
        Cause, Claim, ConnectionId, Diff, Left, Moment, PresenceState, RoomName, SeenPresence, Sign,
    },
};

impl RoomRegistry {
    /// The connection speaks for the presences of the claim from now on.
    pub(super) fn take_place(&mut self, claim: Claim, room: &RoomName, now: Moment) {
        let (presence, replaces) = (claim.presence, claim.replaces);
        self.sessions.take(claim);
        if replaces {
            metrics::counter!("presence_sessions_resumed_total").increment(1);
            self.delivery.disconnect(presence, Cause::Replaced);
            self.fade(presence, Some(room), Cause::Replaced, now);
        }
        self.sessions.unfade(presence, room);
    }

    /// The connection of these presences has ended. Answers in how many rooms it was.
    pub(super) fn end_connection(
        &mut self,
        presence: ConnectionId,
        cause: Cause,
        now: Moment,
    ) -> usize {
        if cause != Cause::Disconnected || !self.sessions.has_key(presence) {
            return self.leave_all(presence, cause, now);
        }
        self.rooms.touch(presence, Sign::Disconnect, now);
        self.delivery.forget(presence);
        self.fade(presence, None, cause, now)
    }

    /// Has the presences fade, but for the one in `except`; without a grace they end at once.
    fn fade(
        &mut self,
        presence: ConnectionId,
        except: Option<&RoomName>,
        cause: Cause,
        now: Moment,
    ) -> usize {
        let rooms = self.rooms.rooms_of(presence).filter(|room| Some(*room) != except);
        let rooms: Vec<_> = rooms.cloned().collect();
        let count = rooms.len();
        for room in rooms {
            if self.grace.is_zero() {
                let diff = self.rooms.leave(&room, presence, cause);
                self.announce_leave(diff, cause, now);
            } else if self.sessions.fading(presence, &room).is_none() {
                self.delivery.unlisten(&room, presence);
                self.sessions.fade(presence, room, now, self.grace);
            }
        }
        count
    }

    /// Ends the stays whose client did not come back in time.
    pub(super) fn end_faded(&mut self, now: Moment) {
        while let Some((presence, room)) = self.sessions.take_faded(now) {
            let diff = self.rooms.leave(&room, presence, Cause::Disconnected);
            self.announce_leave(diff, Cause::Disconnected, now);
        }
    }

    /// A presence has ended: remembers it, and lets its connection go if it is nowhere any more.
    pub(super) fn end(&mut self, diff: &Diff, left: &Left, now: Moment) {
        let Left { presence, cause, last_seen, sign, joined_version } = left.clone();
        let connection = presence.connection;
        self.sessions.unfade(connection, &diff.room);
        if self.rooms.last_seen(connection).is_none() {
            self.delivery.disconnect(connection, cause);
            self.sessions.forget(connection);
        } else {
            self.delivery.close_room(&diff.room, connection, cause);
        }
        let state = PresenceState::Live;
        let explained = Explained {
            seen: SeenPresence { presence, last_seen, sign, joined_version, state, node: None },
            now: now.utc(),
            max_age: self.max_age,
            departed: Some(Departed { at: now.utc(), cause, version: diff.version }),
        };
        self.departures.remember(diff.room.clone(), connection, explained, now);
    }

    /// The presence with whether its client is there.
    pub(super) fn with_state(
        &self,
        room: &RoomName,
        seen: SeenPresence,
        now: Moment,
    ) -> SeenPresence {
        match self.sessions.fading(seen.presence.connection, room) {
            Some(until) => {
                let left = Moment { monotonic: until, wall: 0 }.since(now);
                let state = PresenceState::Fading { until: now.utc() + left };
                SeenPresence { state, ..seen }
            }
            None => seen,
        }
    }
}

impl Handler<Explain> for RoomRegistry {
    type Result = Option<Explained>;

    fn handle(&mut self, msg: Explain, _: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now();
        if let Some(seen) = self.rooms.presence(&msg.room, msg.connection) {
            let seen = self.with_state(&msg.room, seen, now);
            return Some(Explained { seen, now: now.utc(), max_age: self.max_age, departed: None });
        }
        let departed = self.departures.find(&msg.room, msg.connection, now)?;
        Some(Explained { now: now.utc(), ..departed.clone() })
    }
}
