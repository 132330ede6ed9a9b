//! Questions.

use std::collections::HashMap;

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{RoomRegistry, following::Reply};
use crate::{
    bus::BusMessage,
    messages::{
        BusState, Counters, GetOccupancy, GetSnapshot, GetStatus, Kick, ListPresences, ListRooms,
        Status, UnheardNode, WhereIs,
    },
    model::{Occupancy, RoomName, RoomSummary, SeenPresence, Snapshot},
    store::{SharedStore, StoreError, reader::ReaderHandle},
};

impl Handler<GetSnapshot> for RoomRegistry {
    type Result = Reply<Option<Snapshot>>;

    fn handle(&mut self, msg: GetSnapshot, ctx: &mut Context<Self>) -> Self::Result {
        let room = msg.room.clone();
        self.when_known(&room, ctx, move |registry, _| registry.rooms.room(&msg.room).cloned())
    }
}

impl Handler<GetOccupancy> for RoomRegistry {
    type Result = Reply<Occupancy>;

    fn handle(&mut self, msg: GetOccupancy, ctx: &mut Context<Self>) -> Self::Result {
        let room = msg.room.clone();
        self.when_known(&room, ctx, move |registry, _| registry.rooms.occupancy(&msg.room))
    }
}

impl Handler<WhereIs> for RoomRegistry {
    type Result = Reply<Vec<(RoomName, usize)>>;

    fn handle(&mut self, WhereIs { user }: WhereIs, ctx: &mut Context<Self>) -> Self::Result {
        let here = self.rooms.where_is(&user);
        self.ask_all(ctx, here, move |store| store.where_is(&user))
    }
}

impl Handler<ListRooms> for RoomRegistry {
    type Result = Reply<Vec<RoomSummary>>;

    fn handle(&mut self, msg: ListRooms, ctx: &mut Context<Self>) -> Self::Result {
        let ListRooms { after, limit } = msg;
        let here = self.rooms.list(after.as_ref(), limit);
        let versions: HashMap<_, _> = match self.desk() {
            Some(_) => here.iter().map(|one| (one.room.clone(), one.version)).collect(),
            None => HashMap::new(),
        };
        let reply = self.ask_all(ctx, here, move |store| store.list(after.as_ref(), limit));
        if self.desk().is_none() {
            return reply;
        }
        // The database does not know this node's versions.
        reply.then(move |mut rooms| async move {
            for one in &mut rooms {
                one.version = versions.get(&one.room).copied().unwrap_or(one.version);
            }
            rooms
        })
    }
}

impl Handler<ListPresences> for RoomRegistry {
    type Result = Reply<Option<Vec<SeenPresence>>>;

    fn handle(&mut self, msg: ListPresences, ctx: &mut Context<Self>) -> Self::Result {
        let room = msg.room.clone();
        let page = self.when_known(&room, ctx, move |registry, _| {
            registry.rooms.room(&msg.room)?;
            let now = registry.clock.now();
            let page = registry.rooms.presences(&msg.room, msg.after.as_ref(), msg.limit);
            let state = |seen| registry.with_state(&msg.room, seen, now);
            Some(page.into_iter().map(state).collect())
        });
        let Some(desk) = self.desk() else { return page };
        page.then(|page: Option<Vec<_>>| async {
            let mut page = page?;
            last_heard_of(desk, room, page.iter_mut().collect()).await;
            Some(page)
        })
    }
}

/// Asks the database when presences of other nodes were last heard of: those nodes say so only there.
pub(super) async fn last_heard_of(
    desk: ReaderHandle,
    room: RoomName,
    mut seen: Vec<&mut SeenPresence>,
) {
    seen.retain(|seen| seen.node.is_some());
    if seen.is_empty() {
        return;
    }
    let connections: Vec<_> = seen.iter().map(|seen| seen.presence.connection).collect();
    let rows = desk.ask(move |store| store.find(&room, &connections)).await;
    // Without an answer it is what was heard when they joined.
    let rows = rows.inspect_err(|error| tracing::warn!(%error, "presences cannot be read"));
    for (_, row) in rows.unwrap_or_default() {
        let same = |seen: &&mut &mut SeenPresence| {
            seen.presence.connection == row.record.presence.connection
        };
        if let Some(seen) = seen.iter_mut().find(same) {
            seen.last_seen = row.record.last_seen;
        }
    }
}

impl RoomRegistry {
    /// Where to ask the database, if other nodes share it and rooms with it.
    pub(super) fn desk(&self) -> Option<ReaderHandle> {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.is_shared());
        cluster.map(|cluster| cluster.desk.clone())
    }

    /// Asks the database about all rooms, of which this node follows only some; if it does not answer,
    /// what is known here has to do.
    fn ask_all<T: Send + 'static>(
        &mut self,
        ctx: &mut Context<Self>,
        here: T,
        question: impl FnOnce(&mut dyn SharedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Reply<T> {
        let Some(desk) = self.desk() else { return Reply::Now(here) };
        let written = self.written(ctx);
        Reply::Now(here).then(|here| async move {
            written.await;
            let answer = desk.ask(question).await;
            let answer =
                answer.inspect_err(|error| tracing::warn!(%error, "no answer about all rooms"));
            answer.unwrap_or(here)
        })
    }

    /// When what this node has answered before is in the database, or the database is in trouble: one
    /// that takes no rows may give some.
    fn written(&mut self, ctx: &mut Context<Self>) -> impl Future<Output = ()> + 'static {
        let settled = self.mirror.settled();
        let now = self.clock.now();
        self.write(ctx, now);
        async {
            if let Some(settled) = settled {
                let _ = settled.await;
            }
        }
    }

    /// Connections on other nodes that this one sees and that are to be put out.
    pub(super) fn remotes_of(&self, whom: &Kick) -> usize {
        match whom {
            Kick::User(user) if self.cluster.is_some() => self.rooms.remotes_of(user),
            _ => 0,
        }
    }

    /// Has those put out who are on other nodes, besides the `kicked` ones who were here. How many they
    /// are says the database, or else what is seen of them here.
    pub(super) fn kick_elsewhere(
        &mut self,
        whom: Kick,
        kicked: usize,
        seen: usize,
        ctx: &mut Context<Self>,
    ) -> Reply<usize> {
        let Some(desk) = self.desk() else { return Reply::Now(kicked) };
        let (reply, answer) = oneshot::channel();
        let (asked, written) = (whom.clone(), self.written(ctx));
        // Asked before they are put out: after that they are not there.
        let found = async move {
            written.await;
            desk.ask(move |store| store.connections(&asked)).await
        };
        ctx.spawn(found.into_actor(self).map(move |found, registry, _| {
            let Some(cluster) = &mut registry.cluster else { return };
            let single = matches!(whom, Kick::Connection(_));
            let elsewhere = match found {
                Ok(found) => found.iter().filter(|(_, node)| node != cluster.me()).count(),
                Err(error) => {
                    tracing::warn!(%error, "no answer how many are to be put out elsewhere");
                    seen
                }
            };
            let told = cluster.tell(BusMessage::Kick(whom));
            let all = kicked + if told { elsewhere } else { 0 };
            // A connection may have presences on two nodes, and is one all the same.
            let _ = reply.send(if single { all.min(1) } else { all });
        }));
        Reply::Later(answer)
    }
}

impl Handler<GetStatus> for RoomRegistry {
    type Result = Status;

    fn handle(&mut self, _: GetStatus, _: &mut Context<Self>) -> Status {
        let now = self.clock.now();
        let trouble = self.mirror.trouble(now);
        metrics::counter!("presence_touches_total").absolute(self.touches);
        Status {
            epoch: self.rooms.epoch(),
            uptime: now.since(self.started),
            rooms: self.rooms.room_count(),
            connections: self.rooms.connection_count(),
            presences: self.rooms.presence_count(),
            held: self.rooms.held_count(),
            users: self.rooms.user_count(),
            unwritten: self.mirror.unwritten(),
            database: trouble.map(|trouble| trouble.reason),
            lag: trouble.map(|trouble| now.since(trouble.since)).unwrap_or_default(),
            lease_age: now.since(self.mirror.lease_renewed().unwrap_or(self.started)),
            observer_lag: self.observers.lag(),
            nodes: 1 + self.cluster.as_ref().map_or(0, |cluster| cluster.peers.alive()),
            unheard: match &self.cluster {
                Some(cluster) => cluster.unheard(now).map(UnheardNode::from).collect(),
                None => Vec::new(),
            },
            bus: match &self.cluster {
                Some(cluster) if cluster.is_shared() => {
                    cluster.down().map_or(BusState::Up, BusState::Down)
                }
                _ => BusState::Local,
            },
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
        }
    }
}
