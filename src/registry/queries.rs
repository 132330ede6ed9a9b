//! Questions, and subscriptions.

use std::collections::HashMap;

use actix::prelude::*;

use super::{
    RoomRegistry,
    commands::{Answer, Reply, RoomCommand},
    sharing::correct_last_seen,
};
use crate::{
    messages::{
        BusState, Counters, Departed, Explain, Explained, GetOccupancy, GetSnapshot, GetStatus,
        ListPresences, ListRooms, QueryError, Scope, Status, Subscribe, SubscriptionId,
        UnheardNode, Unsubscribe, WhereIs,
    },
    model::{
        Moment, Occupancy, PresenceState, RecentLeave, RoomName, RoomSummary, SeenPresence,
        Snapshot,
    },
};

// --- about one room ------------------------------------------------------------------------------

impl Handler<GetSnapshot> for RoomRegistry {
    type Result = Reply<Answer<Option<Snapshot>>>;

    fn handle(&mut self, msg: GetSnapshot, ctx: &mut Context<Self>) -> Self::Result {
        if self.must_wait(&msg.room, ctx) {
            return self.reply_later(ctx, |reply| RoomCommand::Snapshot(msg, reply));
        }
        Reply::Now(self.snapshot(&msg))
    }
}

impl Handler<GetOccupancy> for RoomRegistry {
    type Result = Reply<Answer<Occupancy>>;

    fn handle(&mut self, msg: GetOccupancy, ctx: &mut Context<Self>) -> Self::Result {
        if self.must_wait(&msg.room, ctx) {
            return self.reply_later(ctx, |reply| RoomCommand::Occupancy(msg, reply));
        }
        Reply::Now(self.occupancy(&msg))
    }
}

impl Handler<ListPresences> for RoomRegistry {
    type Result = Reply<Answer<Option<Vec<SeenPresence>>>>;

    fn handle(&mut self, msg: ListPresences, ctx: &mut Context<Self>) -> Self::Result {
        if self.must_wait(&msg.room, ctx) {
            return self.reply_later(ctx, |reply| RoomCommand::Presences(msg, reply));
        }
        self.list_presences(msg)
    }
}

impl Handler<Explain> for RoomRegistry {
    type Result = Reply<Answer<Option<Explained>>>;

    fn handle(&mut self, msg: Explain, ctx: &mut Context<Self>) -> Self::Result {
        if self.must_wait(&msg.room, ctx) {
            return self.reply_later(ctx, |reply| RoomCommand::Explain(msg, reply));
        }
        self.explain(msg)
    }
}

impl RoomRegistry {
    /// An error if nothing is known of the room but who is here: its rows could not be read.
    fn check_known(&self, room: &RoomName) -> Answer<()> {
        match &self.cluster {
            Some(cluster) if !cluster.knows(room) => Err(match self.closing {
                true => QueryError::Closed,
                false => self.commands.why_unread(),
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn snapshot(&self, msg: &GetSnapshot) -> Answer<Option<Snapshot>> {
        self.check_known(&msg.room)?;
        Ok(self.rooms.room(&msg.room).cloned())
    }

    pub(super) fn occupancy(&self, msg: &GetOccupancy) -> Answer<Occupancy> {
        self.check_known(&msg.room)?;
        Ok(self.rooms.occupancy(&msg.room))
    }

    pub(super) fn list_presences(
        &self,
        msg: ListPresences,
    ) -> Reply<Answer<Option<Vec<SeenPresence>>>> {
        let ListPresences { room, after, limit } = msg;
        if let Err(error) = self.check_known(&room) {
            return Reply::Now(Err(error));
        }
        let now = self.clock.now();
        let page = self.rooms.room(&room).map(|_| {
            let page = self.rooms.presences(&room, after.as_ref(), limit);
            page.into_iter().map(|seen| self.with_state(&room, seen, now)).collect::<Vec<_>>()
        });
        match (page, self.reader()) {
            (Some(mut page), Some(reader)) => Reply::when_done(async move {
                correct_last_seen(&reader, room, page.iter_mut().collect()).await;
                Ok(Some(page))
            }),
            (page, _) => Reply::Now(Ok(page)),
        }
    }

    pub(super) fn explain(&self, msg: Explain) -> Reply<Answer<Option<Explained>>> {
        match (self.explain_here(&msg), self.reader()) {
            (Some(mut explained), Some(reader)) if explained.departed.is_none() => {
                Reply::when_done(async move {
                    correct_last_seen(&reader, msg.room, vec![&mut explained.seen]).await;
                    Ok(Some(explained))
                })
            }
            (None, _) => Reply::Now(self.check_known(&msg.room).map(|()| None)),
            (explained, _) => Reply::Now(Ok(explained)),
        }
    }

    fn explain_here(&self, Explain { room, connection }: &Explain) -> Option<Explained> {
        let (now, max_age) = (self.clock.now(), self.max_age);
        let seen = self.rooms.presence(room, *connection).or_else(|| {
            let here = self.rooms.presence_of(room, *connection);
            let presence = here.or_else(|| self.rooms.remote_presence_of(room, *connection))?;
            self.rooms.presence(room, presence)
        });
        if let Some(seen) = seen {
            let (seen, now) = (self.with_state(room, seen, now), now.utc());
            return Some(Explained { seen, now, max_age, departed: None });
        }
        let RecentLeave { left, version, node, at } =
            self.recent_leaves.find(room, *connection, now)?;
        let seen = SeenPresence {
            presence: left.presence.clone(),
            last_seen: left.last_seen,
            activity: left.activity,
            joined_version: left.joined_version,
            state: PresenceState::Live,
            node: node.clone(),
        };
        let departed = Some(Departed { at: at.utc(), cause: left.cause, version: *version });
        Some(Explained { seen, now: now.utc(), max_age, departed })
    }

    /// The presence with whether its client is there.
    fn with_state(&self, room: &RoomName, seen: SeenPresence, now: Moment) -> SeenPresence {
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

// --- about all rooms -----------------------------------------------------------------------------

impl Handler<WhereIs> for RoomRegistry {
    type Result = Reply<Answer<Vec<(RoomName, usize)>>>;

    fn handle(&mut self, WhereIs { user }: WhereIs, ctx: &mut Context<Self>) -> Self::Result {
        let Some(reader) = self.reader() else {
            return Reply::Now(Ok(self.rooms.where_is(&user)));
        };
        Reply::when_done(self.ask_all(reader, ctx, move |store| store.where_is(&user)))
    }
}

impl Handler<ListRooms> for RoomRegistry {
    type Result = Reply<Answer<Vec<RoomSummary>>>;

    fn handle(&mut self, msg: ListRooms, ctx: &mut Context<Self>) -> Self::Result {
        let ListRooms { after, limit } = msg;
        let here = self.rooms.list(after.as_ref(), limit);
        let Some(reader) = self.reader() else { return Reply::Now(Ok(here)) };
        // The database does not know this node's versions.
        let versions: HashMap<_, _> =
            here.iter().map(|one| (one.room.clone(), one.version)).collect();
        let rooms = self.ask_all(reader, ctx, move |store| store.list(after.as_ref(), limit));
        Reply::when_done(async move {
            let mut rooms = rooms.await?;
            for one in &mut rooms {
                one.version = versions.get(&one.room).copied().unwrap_or(one.version);
            }
            Ok(rooms)
        })
    }
}

impl Handler<GetStatus> for RoomRegistry {
    type Result = Status;

    fn handle(&mut self, _: GetStatus, _: &mut Context<Self>) -> Status {
        let now = self.clock.now();
        self.mirror.check_stall(now);
        let trouble = self.mirror.trouble();
        metrics::counter!("presence_touches_total").absolute(self.touches);
        let mut status = Status {
            epoch: self.rooms.epoch(),
            uptime: now.since(self.started),
            rooms: self.rooms.room_count(),
            connections: self.rooms.connection_count(),
            presences: self.rooms.presence_count(),
            held: self.rooms.held_count(),
            users: self.rooms.user_count(),
            unwritten: self.mirror.unwritten(),
            database: trouble.map(|trouble| trouble.reason),
            database_cause: trouble.map(|trouble| trouble.cause.clone()),
            lag: trouble.map(|trouble| now.since(trouble.since)).unwrap_or_default(),
            unanswered: self.unanswered.reason(),
            lease_age: now.since(self.mirror.lease_renewed().unwrap_or(self.started)),
            clock_ahead: self.clock.ahead(),
            observer_lag: self.observers.lag().max(self.user_observers.lag()),
            nodes: 1,
            unheard: Vec::new(),
            bus: BusState::Local,
            closing: self.closing,
            counters: Counters {
                joins: self.joins.count(),
                leaves: self.leaves.counts(),
                touches: self.touches,
                messages: self.messages.count(),
                deliveries: self.delivery.deliveries(),
                lists_sent: self.delivery.lists_sent(),
                rows_written: self.mirror.rows_written(),
            },
        };
        if let Some(cluster) = &self.cluster {
            status.nodes += cluster.peers.alive();
            status.unheard = cluster.unheard(now).map(UnheardNode::from).collect();
            if cluster.is_shared() {
                status.bus = cluster.down().map_or(BusState::Up, BusState::Down);
            }
        }
        self.gauges.report(&status);
        status
    }
}

// --- subscriptions -------------------------------------------------------------------------------

impl Handler<Subscribe> for RoomRegistry {
    type Result = SubscriptionId;

    fn handle(&mut self, msg: Subscribe, ctx: &mut Context<Self>) -> SubscriptionId {
        let Subscribe { filter, observer, scope } = msg;
        if scope == Scope::Cluster {
            self.follow_for(&filter, ctx);
        }
        self.observers.subscribe(filter, observer, scope)
    }
}

/// Waits until the observers have handled what is queued for them.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct DrainObservers;

impl Handler<DrainObservers> for RoomRegistry {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: DrainObservers, _: &mut Context<Self>) -> Self::Result {
        let (rooms, users) = (self.observers.drained(), self.user_observers.drained());
        Box::pin(async {
            rooms.await;
            users.await;
        })
    }
}

impl Handler<Unsubscribe> for RoomRegistry {
    type Result = bool;

    fn handle(&mut self, msg: Unsubscribe, _: &mut Context<Self>) -> bool {
        self.observers.unsubscribe(msg.id) || self.user_observers.unsubscribe(msg.id)
    }
}
