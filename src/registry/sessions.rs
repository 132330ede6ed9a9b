//! Ends of connections: at once, or after a grace in which their client may come back.

use std::{collections::BTreeMap, time::Duration};

use actix::prelude::*;

use super::{RoomRegistry, following::Reply, queries::last_heard_of};
use crate::{
    cluster::remote,
    messages::{Departed, Explain, Explained},
    mirror::Memory,
    model::{
        Activity, Cause, ConnectionId, Diff, Info, Left, Moment, NodeName, PresenceState,
        RemoteChange, Resumed, RoomName, SeenPresence,
    },
    store::Row,
};

/// How long after the start presences end that an earlier life of this node has left and nobody can
/// resume: so that observers which the app subscribes right after the start hear of it. Who asks for a
/// room meanwhile has them ended first, and does not see them.
pub(super) const UNRESUMABLE_DELAY: Duration = Duration::from_millis(100);

impl RoomRegistry {
    /// The connection has entered the room in the place of an older one of its client session.
    pub(super) fn resumed(
        &mut self,
        room: &RoomName,
        presence: ConnectionId,
        from: Resumed,
        now: Moment,
    ) {
        metrics::counter!("presence_sessions_resumed_total").increment(1);
        match from {
            Resumed::From(before) => self.is_out_of(room, before, Cause::Replaced),
            Resumed::Elsewhere => {
                tracing::debug!(%room, %presence, "came back from another node");
                let memory = Memory { rooms: &self.rooms, sessions: Some((&self.sessions, now)) };
                if let Some(row) = memory.row(room, presence) {
                    self.mirror.adopt(row);
                }
            }
        }
    }

    /// The connection has ended. Answers in how many rooms it was.
    pub(super) fn end_connection(
        &mut self,
        connection: ConnectionId,
        cause: Cause,
        now: Moment,
    ) -> usize {
        // A session that was told to close because this node stops ends for that reason, however it is
        // noticed.
        let dismissed = cause == Cause::Disconnected && self.delivery.is_dismissed(connection);
        let cause = if dismissed { Cause::Shutdown } else { cause };
        let keyed = |(room, presence): (_, _)| self.sessions.key_of(room, presence).is_some();
        let grace = self.grace_after(cause);
        let grace = grace.filter(|_| self.rooms.memberships_of(connection).any(keyed));
        let Some(grace) = grace else { return self.leave_all(connection, cause, now) };
        let stays = self.rooms.memberships_of(connection);
        let stays: Vec<_> = stays.map(|(room, presence)| (room.clone(), presence)).collect();
        self.rooms.touch(connection, Activity::Disconnect, now);
        self.delivery.forget(connection);
        let count = stays.len();
        for (room, presence) in stays {
            if grace.is_zero() || self.sessions.key_of(&room, presence).is_none() {
                let diff = self.rooms.leave(&room, connection, cause);
                self.announce_leave(diff, cause, now);
            } else if self.sessions.fading(presence, &room).is_none() {
                if self.cluster.is_some() {
                    self.mirror.mark_one(room.clone(), presence);
                }
                self.sessions.fade(presence, room, now, grace);
            }
        }
        count
    }

    /// The connection is not in the room any more: it hears of it, and closes if that was its last one.
    pub(super) fn is_out_of(&mut self, room: &RoomName, connection: ConnectionId, cause: Cause) {
        if self.rooms.last_seen(connection).is_none() {
            self.delivery.disconnect(connection, cause);
            self.places.release(connection);
        } else {
            self.delivery.exit(room, connection);
            self.delivery.close_room(room, connection, cause);
        }
    }

    /// Whether the presence was left by an earlier life of this node, until somebody asks.
    pub(super) fn adopted_orphan(&mut self, presence: ConnectionId, room: &RoomName) -> bool {
        !self.orphans.is_empty() && self.orphans.remove(&(presence, room.clone()))
    }

    /// Takes what an earlier life of this node has left in the database: clients with a session key may
    /// come back, for as long as is left of their grace if they were away already.
    pub(super) fn inherit(&mut self, rows: Vec<Row>) {
        let now = self.clock.now();
        let me = self.node.clone();
        let mut fading = Vec::new();
        for row in rows {
            let (room, presence) = (row.room.clone(), row.record.presence.connection);
            let (user, session) = (row.record.presence.user.clone(), row.record.session.clone());
            let fixed = row.record.fixed.clone();
            let left =
                row.record.fading.map(|until| (until - now.utc()).to_std().unwrap_or_default());
            let grace = left.map_or(self.grace, |left| left.min(self.grace));
            // It is the same node's, so it goes on as it was.
            let heard = RemoteChange::Present(remote(me.clone(), row));
            self.rooms.hear(&room, [heard], &me);
            if !self.rooms.adopt(&room, presence, presence, &me, now).unwrap_or(false) {
                continue;
            }
            match session.filter(|_| !grace.is_zero()) {
                Some(key) => {
                    self.sessions.bind(&room, presence, key, user, fixed);
                    fading.push((grace, presence, room.clone()));
                }
                None => self.unresumable.push((room.clone(), presence)),
            }
            self.mirror.mark_one(room.clone(), presence);
            if let Some(cluster) = &mut self.cluster {
                cluster.follow(&room);
            }
            self.orphans.insert((presence, room));
        }
        // They are kept in the order in which they end.
        fading.sort_unstable();
        for (grace, presence, room) in fading {
            self.sessions.fade(presence, room, now, grace);
        }
    }

    /// Ends what an earlier life of this node has left and nobody can resume: one change for each room.
    pub(super) fn end_unresumable(&mut self) {
        if self.unresumable.is_empty() {
            return;
        }
        let now = self.clock.now();
        let mut rooms: BTreeMap<RoomName, Vec<ConnectionId>> = BTreeMap::new();
        for (room, presence) in std::mem::take(&mut self.unresumable) {
            rooms.entry(room).or_default().push(presence);
        }
        for (room, presences) in rooms {
            let diff = self.rooms.leave_together(&room, &presences, self.orphaned);
            self.announce_leave(diff, self.orphaned, now);
        }
    }

    /// Ends the stays whose client did not come back in time.
    pub(super) fn end_faded(&mut self, now: Moment) {
        while let Some((presence, room)) = self.sessions.take_faded(now) {
            let cause = match self.adopted_orphan(presence, &room) {
                true => self.orphaned,
                false => Cause::Disconnected,
            };
            let diff = self.rooms.leave_together(&room, &[presence], cause);
            self.announce_leave(diff, cause, now);
        }
    }

    /// A presence has ended: remembers it, and lets its connection go if it is nowhere any more.
    pub(super) fn end(&mut self, diff: &Diff, left: &Left, now: Moment) {
        let presence = left.presence.connection;
        self.sessions.forget(&diff.room, presence);
        self.adopted_orphan(presence, &diff.room);
        self.is_out_of(&diff.room, left.connection, left.cause);
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
        let Left { mut presence, cause, last_seen, activity, joined_version, .. } = left.clone();
        // It explains nothing, and is the largest of it.
        presence.info = Info::EMPTY;
        let texts = presence.user.as_ref().map_or(0, |user| user.as_str().len());
        let (connection, state, node) = (presence.connection, PresenceState::Live, node.cloned());
        let explained = Explained {
            seen: SeenPresence { presence, last_seen, activity, joined_version, state, node },
            now: now.utc(),
            max_age: self.max_age,
            departed: Some(Departed { at: now.utc(), cause, version: diff.version }),
        };
        self.recent_leaves.remember(diff.room.clone(), connection, explained, texts, now);
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
        let seen = self
            .rooms
            .presence(room, *connection)
            .or_else(|| self.rooms.presence(room, self.rooms.presence_of(room, *connection)?));
        if let Some(seen) = seen {
            let seen = self.with_state(room, seen, now);
            return Some(Explained { seen, now: now.utc(), max_age: self.max_age, departed: None });
        }
        let departed = self.recent_leaves.find(room, *connection, now)?;
        Some(Explained { now: now.utc(), ..departed.clone() })
    }
}
