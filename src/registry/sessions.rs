//! Ends of connections: at once, or after a grace in which their client may come back. Where the number of
//! sessions is limited, a session keeps its place meanwhile.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use actix::prelude::*;
use ahash::RandomState;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{RoomRegistry, commands::Reply};
use crate::{
    cluster::remote,
    messages::{JoinError, PlaceBack, SessionPlace, TakePlace, close_code},
    mirror::Memory,
    model::{Activity, Cause, ConnectionId, Moment, RemoteChange, Resumed, RoomName},
    store::Row,
};

/// How long after the start the presences end that an earlier life of this node has left and nobody can
/// resume: observers that the app subscribes right after the start are to hear of it. A question about a
/// room ends them first.
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
        self.refuse_joins(connection, &JoinError::Withdrawn);
        // A session that was told to close because this node stops ends for that reason, however it is
        // noticed.
        let dismissed = cause == Cause::Disconnected && self.delivery.is_draining(connection);
        let cause = if dismissed { Cause::Shutdown } else { cause };
        let keyed = |(room, presence): (_, _)| self.sessions.key_of(room, presence).is_some();
        let grace = self.grace_after(cause);
        let grace = grace.filter(|_| self.rooms.memberships_of(connection).any(keyed));
        let Some(grace) = grace else { return self.leave_all(connection, cause, now) };
        let memberships = self.rooms.memberships_of(connection);
        let memberships: Vec<_> =
            memberships.map(|(room, presence)| (room.clone(), presence)).collect();
        self.rooms.touch(connection, Activity::Disconnect, now);
        self.delivery.forget(connection);
        let count = memberships.len();
        for (room, presence) in memberships {
            if grace.is_zero() || self.sessions.key_of(&room, presence).is_none() {
                let diff = self.rooms.leave(&room, connection, cause);
                self.announce_leave(diff, cause, now);
            } else if self.sessions.fading(presence, &room).is_none() {
                self.mark_shared(room.clone(), presence);
                self.sessions.fade(presence, room, now, grace);
            }
        }
        count
    }

    /// Tells a connection that it is out of a room, or to close if that was its last one.
    pub(super) fn is_out_of(&mut self, room: &RoomName, connection: ConnectionId, cause: Cause) {
        self.rights.forget(room, connection);
        if self.rooms.last_seen(connection).is_none() {
            if close_code(cause).is_some() {
                // One that is told to close is not let in anywhere else meanwhile.
                self.refuse_joins(connection, &JoinError::Withdrawn);
                self.registered.note_told(connection);
            }
            self.delivery.disconnect(connection, cause);
            self.places.release(connection);
        } else {
            self.delivery.exit(room, connection);
            self.delivery.close_room(room, connection, cause);
        }
    }

    /// Whether the presence was left by an earlier life of this node, and nobody has come back for it yet; it
    /// counts as this life's from now on.
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
            let present = RemoteChange::Present(remote(me.clone(), row));
            self.rooms.apply_remote(&room, [present], &me);
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

    /// Ends the presences whose client did not come back in time.
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
}

// --- places --------------------------------------------------------------------------------------

/// How many presences of a client are searched for its older connection.
const MAX_PRESENCES: usize = 128;

/// How long a client may take to read that its socket is replaced, before that is shut down: a newer
/// one waits for the place.
const REPLACED_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Places {
    /// Those of connections whose presences fade.
    kept: HashMap<ConnectionId, OwnedSemaphorePermit, RandomState>,
    /// Where those go whose socket is about to end.
    wanted: HashMap<ConnectionId, oneshot::Sender<Option<SessionPlace>>, RandomState>,
}

impl Places {
    /// The connection does not fade any more: its place is free.
    pub fn release(&mut self, connection: ConnectionId) {
        if !self.kept.is_empty() {
            self.kept.remove(&connection);
        }
    }

    /// Hands out the place of a connection when its socket has ended.
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
                // If the receiver was dropped, the place is dropped, and comes back again.
                let _ = waiting.send(Some(place));
            }
            (None, Some(newest)) => drop(self.places.kept.insert(newest, permit)),
            (None, None) => {}
        }
        self.advance_batch(ctx, now);
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
            self.advance_batch(ctx, now);
        }
        self.places.want(connection)
    }
}

impl RoomRegistry {
    /// The connections of the client that are in rooms it may enter now, the newest first.
    fn older_connections(&self, msg: &TakePlace) -> Vec<ConnectionId> {
        let presences =
            self.sessions.presences_of(&msg.session, msg.user.as_ref()).take(MAX_PRESENCES);
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
        self.delivery.close_within(connection, Cause::Replaced, REPLACED_TIMEOUT);
        self.registered.note_told(connection);
        self.end_connection(connection, Cause::Disconnected, now);
    }
}
