//! Ends of connections: at once, or after a grace in which their client may come back.

use std::time::Duration;

use actix::prelude::*;

use super::{RoomRegistry, following::Reply, queries::last_heard_of};
use crate::{
    cluster::remote,
    messages::{Departed, Explain, Explained},
    mirror::store::Row,
    model::{
        Cause, Claim, ConnectionId, Diff, Heard, Info, Left, Moment, NodeName, PresenceState,
        RoomName, SeenPresence, Sign,
    },
};

/// How long presences stay at least that an earlier life of this node has left: so that observers who
/// subscribe when it starts hear of their end.
const SOON: Duration = Duration::from_secs(1);

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
        if self.sessions.fading(presence, room).is_some() {
            self.sessions.unfade(presence, room);
            if self.cluster.is_some() {
                // The others have heard that its client is away.
                self.mirror.mark_one(room.clone(), presence);
            }
        }
        self.adopted_orphan(presence, room);
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
                self.delivery.exit(&room, presence);
                if self.cluster.is_some() {
                    self.mirror.mark_one(room.clone(), presence);
                }
                self.sessions.fade(presence, room, now, self.grace);
            }
        }
        count
    }

    /// Whether the presence was left by an earlier life of this node, until somebody asks.
    pub(super) fn adopted_orphan(&mut self, presence: ConnectionId, room: &RoomName) -> bool {
        !self.orphans.is_empty() && self.orphans.remove(&(presence, room.clone()))
    }

    /// Takes what an earlier life of this node has left in the database: its clients may come back.
    pub(super) fn inherit(&mut self, rows: Vec<Row>) {
        let now = self.clock.now();
        let me = self.node.clone();
        for row in rows {
            let (room, connection) = (row.room.clone(), row.presence.connection);
            let (user, session) = (row.presence.user.clone(), row.session.clone());
            // It is the same node's, so it goes on as it was.
            let heard = Heard::Here(remote(me.clone(), row));
            self.rooms.hear(&room, [heard], &me);
            if self.rooms.adopt(&room, connection, &me, now) {
                self.sessions.restore(connection, session, user);
                self.sessions.fade(connection, room.clone(), now, self.grace.max(SOON));
                self.mirror.mark_one(room.clone(), connection);
                if let Some(cluster) = &mut self.cluster {
                    cluster.follow(&room);
                }
                self.orphans.insert((connection, room));
            }
        }
    }

    /// Ends the stays whose client did not come back in time.
    pub(super) fn end_faded(&mut self, now: Moment) {
        while let Some((presence, room)) = self.sessions.take_faded(now) {
            let cause = match self.adopted_orphan(presence, &room) {
                true => Cause::NodeLost,
                false => Cause::Disconnected,
            };
            let diff = self.rooms.leave(&room, presence, cause);
            self.announce_leave(diff, cause, now);
        }
    }

    /// A presence has ended: remembers it, and lets its connection go if it is nowhere any more.
    pub(super) fn end(&mut self, diff: &Diff, left: &Left, now: Moment) {
        let (connection, cause) = (left.presence.connection, left.cause);
        self.sessions.unfade(connection, &diff.room);
        self.adopted_orphan(connection, &diff.room);
        if self.rooms.last_seen(connection).is_none() {
            self.delivery.disconnect(connection, cause);
            self.sessions.forget(connection);
        } else {
            self.delivery.close_room(&diff.room, connection, cause);
        }
        self.remember(diff, left, None, now);
    }

    /// Remembers the end of a presence that this node held, or another.
    pub(super) fn remember(
        &mut self,
        diff: &Diff,
        left: &Left,
        node: Option<&NodeName>,
        now: Moment,
    ) {
        let Left { mut presence, cause, last_seen, sign, joined_version } = left.clone();
        // It explains nothing, and is the largest of it.
        presence.info = Info::EMPTY;
        let texts = presence.user.as_ref().map_or(0, |user| user.as_str().len());
        let (connection, state, node) = (presence.connection, PresenceState::Live, node.cloned());
        let explained = Explained {
            seen: SeenPresence { presence, last_seen, sign, joined_version, state, node },
            now: now.utc(),
            max_age: self.max_age,
            departed: Some(Departed { at: now.utc(), cause, version: diff.version }),
        };
        self.departures.remember(diff.room.clone(), connection, explained, texts, now);
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
    type Result = Reply<Option<Explained>>;

    fn handle(&mut self, msg: Explain, ctx: &mut Context<Self>) -> Self::Result {
        let room = msg.room.clone();
        let explained = self.when_known(&room, ctx, move |registry, _| registry.explain(&msg));
        let Some(desk) = self.desk() else { return explained };
        explained.then(|explained: Option<Explained>| async {
            let mut explained = explained?;
            if explained.departed.is_none() {
                last_heard_of(desk, room, vec![&mut explained.seen]).await;
            }
            Some(explained)
        })
    }
}

impl RoomRegistry {
    fn explain(&self, Explain { room, connection }: &Explain) -> Option<Explained> {
        let now = self.clock.now();
        if let Some(seen) = self.rooms.presence(room, *connection) {
            let seen = self.with_state(room, seen, now);
            return Some(Explained { seen, now: now.utc(), max_age: self.max_age, departed: None });
        }
        let departed = self.departures.find(room, *connection, now)?;
        Some(Explained { now: now.utc(), ..departed.clone() })
    }
}
