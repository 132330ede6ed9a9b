//! Rooms that other nodes have a part in: what is asked of one waits until it is known.

use std::time::Duration;

use actix::{
    dev::{MessageResponse, OneshotSender},
    prelude::*,
};
use futures_util::FutureExt;
use tokio::sync::oneshot;

use super::RoomRegistry;
use crate::{
    bus::BusEvent,
    cluster::{News, ReadRooms},
    log_limit::LogLimit,
    messages::{Change, PresenceChanged},
    model::{
        Cause, ConnectionId, Diff, Moment, NodeName, Remote, RemoteChange, RemoteOutcome, RoomName,
        Yielded, micros,
    },
    store::{RoomRows, StoreError},
};

/// How long something waits for what other nodes know of a room. After that it is done with what is
/// known here.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What is done when a room is known.
pub(super) type Waiter = Box<dyn FnOnce(&mut RoomRegistry, &mut Context<RoomRegistry>)>;

/// An answer, now or when the room is known.
pub enum Reply<T> {
    /// Now.
    Now(T),
    /// When it comes.
    Later(oneshot::Receiver<T>),
}

impl<T: 'static> Reply<T> {
    /// Has the answer worked on before it is given.
    pub(super) fn then<U, F>(self, work: impl FnOnce(T) -> F + 'static) -> Reply<U>
    where
        U: 'static,
        F: Future<Output = U> + 'static,
    {
        let (reply, done) = oneshot::channel();
        match self {
            Self::Now(answer) => {
                let mut work = Box::pin(work(answer));
                // Most work has nothing to wait for.
                match (&mut work).now_or_never() {
                    Some(answer) => return Reply::Now(answer),
                    // Who asked may have gone.
                    None => drop(actix::spawn(async { drop(reply.send(work.await)) })),
                }
            }
            Self::Later(answer) => drop(actix::spawn(async {
                if let Ok(answer) = answer.await {
                    drop(reply.send(work(answer).await));
                }
            })),
        }
        Reply::Later(done)
    }
}

impl<M: Message<Result = T>, T: 'static> MessageResponse<RoomRegistry, M> for Reply<T> {
    fn handle(self, _: &mut Context<RoomRegistry>, asker: Option<OneshotSender<T>>) {
        let Some(asker) = asker else { return };
        match self {
            // Who asked may have gone.
            Self::Now(answer) => drop(asker.send(answer)),
            Self::Later(answer) => drop(actix::spawn(async {
                if let Ok(answer) = answer.await {
                    drop(asker.send(answer));
                }
            })),
        }
    }
}

impl RoomRegistry {
    /// Whether all is known of the room that can be.
    pub(super) fn is_known(&self, room: &RoomName) -> bool {
        self.closing || self.cluster.as_ref().is_none_or(|cluster| cluster.knows(room))
    }

    /// Does something with a room as soon as all is known of it, in the order in which it was asked.
    pub(super) fn when_known<T: 'static>(
        &mut self,
        room: &RoomName,
        ctx: &mut Context<Self>,
        what: impl FnOnce(&mut Self, &mut Context<Self>) -> T + 'static,
    ) -> Reply<T> {
        self.end_unresumable();
        if let Some(cluster) = &mut self.cluster {
            cluster.follow(room);
            self.linger_if_nobody_is_here(room, self.clock.now());
        }
        if self.is_known(room) {
            return Reply::Now(what(self, ctx));
        }
        self.read(ctx);
        self.wait_for(room, ctx, what)
    }

    /// A room in which this node holds nobody is followed a little longer.
    pub(super) fn linger_if_nobody_is_here(&mut self, room: &RoomName, now: Moment) {
        if let Some(cluster) = &mut self.cluster
            && !self.rooms.holds_any(room)
        {
            cluster.linger(room, now);
        }
    }

    /// Does something after what waits for the room already, or now if nothing does.
    pub(super) fn in_turn<T: 'static>(
        &mut self,
        room: &RoomName,
        ctx: &mut Context<Self>,
        what: impl FnOnce(&mut Self, &mut Context<Self>) -> T + 'static,
    ) -> Reply<T> {
        if self.waiting.is_empty() || !self.waiting.contains_key(room) {
            return Reply::Now(what(self, ctx));
        }
        self.wait_for(room, ctx, what)
    }

    fn wait_for<T: 'static>(
        &mut self,
        room: &RoomName,
        ctx: &mut Context<Self>,
        what: impl FnOnce(&mut Self, &mut Context<Self>) -> T + 'static,
    ) -> Reply<T> {
        let (reply, answer) = oneshot::channel();
        let waiter = move |registry: &mut Self, ctx: &mut Context<Self>| {
            // Who asked may have gone.
            drop(reply.send(what(registry, ctx)));
        };
        let now = self.clock.now();
        let until = now.monotonic + micros(PATIENCE);
        match self.waiting.get_mut(room) {
            Some((_, waiting)) => waiting.push(Box::new(waiter)),
            None => {
                self.waiting.insert(room.clone(), (until, vec![Box::new(waiter)]));
            }
        }
        self.arm(ctx, now);
        Reply::Later(answer)
    }

    /// When the next room is waited for no longer; the first to be asked for is the first.
    pub(super) fn next_impatience(&self) -> Option<u64> {
        self.waiting.front().map(|(_, (until, _))| *until)
    }

    /// Does what has waited for long enough.
    pub(super) fn lose_patience(&mut self, ctx: &mut Context<Self>, now: Moment) {
        // What is done then ends with a look at what is due, as everything does.
        if std::mem::replace(&mut self.impatient, true) {
            return;
        }
        while self.next_impatience().is_some_and(|until| until <= now.monotonic) {
            let Some((room, _)) = self.waiting.front() else { break };
            self.wait_no_longer(&room.clone(), ctx);
        }
        self.impatient = false;
    }

    /// Does what waits for a room.
    pub(super) fn wait_no_longer(&mut self, room: &RoomName, ctx: &mut Context<Self>) {
        let Some((_, waiting)) = self.waiting.remove(room) else { return };
        for waiter in waiting {
            waiter(self, ctx);
        }
    }

    /// Reads the rooms that wait for it, if nothing is being read.
    pub(super) fn read(&mut self, ctx: &mut Context<Self>) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.take_unlisted() {
            self.follow_page(None, ctx);
        }
        let Some(cluster) = &mut self.cluster else { return };
        let Some(rooms) = cluster.next_read() else { return };
        let (names, now) = (rooms.clone(), self.clock.now().utc());
        let reading = cluster.desk.ask(move |store| store.read(&names, now));
        ctx.spawn(reading.into_actor(self).map(move |found, registry, ctx| {
            registry.was_read(rooms, found, ctx);
        }));
    }

    fn was_read(
        &mut self,
        rooms: Vec<RoomName>,
        found: Result<RoomRows, StoreError>,
        ctx: &mut Context<Self>,
    ) {
        let Some(cluster) = &mut self.cluster else { return };
        let now = self.clock.now();
        match found {
            Ok(found) => {
                tracing::trace!(node = %cluster.me(), ?rooms, ?found, "read");
                let read = cluster.read(rooms, found);
                self.survey_is_due |= read.unsure;
                let known: Vec<_> = read.rooms.iter().map(|(room, _)| room.clone()).collect();
                self.take_rooms(read, now);
                for room in known {
                    self.wait_no_longer(&room, ctx);
                    self.linger_if_nobody_is_here(&room, now);
                }
                self.read(ctx);
            }
            Err(error) => {
                tracing::warn!(%error, "rooms cannot be read: what other nodes know of them is missing");
                let wait = cluster.not_read(rooms.clone());
                ctx.run_later(wait, |registry, ctx| {
                    if let Some(cluster) = &mut registry.cluster {
                        cluster.read_again();
                    }
                    registry.read(ctx);
                });
                for room in rooms {
                    self.wait_no_longer(&room, ctx);
                }
            }
        }
        self.settle(ctx, now);
    }

    fn take_rooms(&mut self, read: ReadRooms, now: Moment) {
        for (room, everybody) in read.rooms {
            self.write_missing(&room, |presence| read.own.contains(&(room.clone(), presence)));
            self.end_rivals(&room, everybody.iter(), now);
            let Some(cluster) = &self.cluster else { return };
            let left = |node: &NodeName| {
                let reborn = read.reborn.iter().find(|(of, who, _)| (of, who) == (&room, node));
                reborn.map_or_else(|| cluster.peers.cause_of_absence(node), |(.., cause)| *cause)
            };
            let (unheard, me) = (self.rooms.unheard(&room, everybody, left), cluster.me().clone());
            for (node, heard) in unheard {
                // One after the other, so that each change is told with the room as it is after it.
                let outcome = self.rooms.hear_certainly(&room, heard, &me);
                self.take_outcome(&room, &node, outcome, now);
            }
        }
        for news in read.news {
            self.take_news(news, now);
        }
    }

    /// Has rows written again that others have removed, of presences that this node holds: another node
    /// may have taken one and ended it before this one heard of either.
    fn write_missing(&mut self, room: &RoomName, is_written: impl Fn(ConnectionId) -> bool) {
        let snapshot = self.rooms.snapshot(room);
        let unwritten = snapshot.connections().filter(|one| !is_written(*one));
        let missing = unwritten.filter(|one| self.rooms.holds(room, *one)).collect();
        self.mirror.mark_missing(room, missing);
    }

    pub(super) fn take_news(&mut self, news: News, now: Moment) {
        let Some(cluster) = &mut self.cluster else { return };
        let me = cluster.me().clone();
        let News { room, node, heard, yielded } = news;
        let held = |one: &_| self.rooms.remote(&room, *one).is_some_and(|known| known.node == node);
        if yielded.iter().any(held) {
            cluster.read_later(&room);
        }
        let here = heard.iter().filter_map(|heard| match heard {
            RemoteChange::Present(remote) => Some(remote),
            RemoteChange::Gone { connection, .. } => {
                if self.rooms.holds(&room, *connection) {
                    // The other node held it, too, and has removed its row.
                    self.mirror.mark_one(room.clone(), *connection);
                }
                None
            }
        });
        let here: Vec<_> = here.collect();
        self.end_rivals(&room, here.into_iter(), now);
        let outcome = self.rooms.hear(&room, heard, &me);
        self.take_outcome(&room, &node, outcome, now);
    }

    pub(super) fn take_outcome(
        &mut self,
        room: &RoomName,
        node: &NodeName,
        outcome: RemoteOutcome,
        now: Moment,
    ) {
        for yielded in outcome.yielded {
            self.yielded(room, yielded);
        }
        if let Some(diff) = outcome.diff {
            self.announce_from(diff, node, false, now);
        }
        self.linger_if_nobody_is_here(room, now);
    }

    /// The client of a presence has come back on another node, which holds it from now on.
    fn yielded(&mut self, room: &RoomName, Yielded { presence, connection }: Yielded) {
        self.mirror.mark_one(room.clone(), presence);
        self.adopted_orphan(presence, room);
        self.sessions.forget(room, presence);
        self.is_out_of(room, connection, Cause::Replaced);
    }

    /// A client session has one presence in a room. Where two nodes took it in without knowing of each
    /// other, one ends: that whose client is away, or else the earlier one.
    fn end_rivals<'a>(
        &mut self,
        room: &RoomName,
        remotes: impl Iterator<Item = &'a Remote>,
        now: Moment,
    ) {
        for remote in remotes {
            let Some(session) = &remote.record.session else { continue };
            let user = remote.record.presence.user.as_ref();
            let Some(own) = self.sessions.presence_in(room, session, user) else { continue };
            let theirs = remote.record.presence.connection;
            let own_is_here = self.sessions.fading(own, room).is_none();
            if own == theirs {
                // It went there and came back here before this node heard of it.
                let is_back = own_is_here && remote.record.fading.is_some();
                if is_back && self.rooms.outbid(room, own, remote.record.generation) {
                    self.mirror.mark_one(room.clone(), own);
                }
            } else if (own_is_here, own) < (remote.record.fading.is_none(), theirs) {
                let diff = self.rooms.leave_together(room, &[own], Cause::Replaced);
                self.announce_leave(diff, Cause::Replaced, now);
            }
        }
    }

    /// Makes a change of presences known that this node does not hold; `ours` if it is the one to
    /// tell the observers of the cluster.
    pub(super) fn announce_from(&mut self, diff: Diff, node: &NodeName, ours: bool, now: Moment) {
        self.delivery.changed(&diff, self.rooms.room(&diff.room), now.monotonic);
        for left in &diff.leaves {
            self.remember(&diff, left, Some(node), now);
        }
        self.tell_observers(diff, node.clone(), ours);
    }

    pub(super) fn tell_observers(&mut self, diff: Diff, node: NodeName, ours: bool) {
        if self.observers.any() {
            let room = self.rooms.snapshot(&diff.room);
            let event = PresenceChanged {
                room: diff.room.clone(),
                epoch: room.epoch(),
                version: diff.version,
                snapshot: room,
                node,
                change: Change::Diff(std::sync::Arc::new(diff)),
            };
            self.observers.tell(&event, ours);
        }
    }
}

impl Handler<BusEvent> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: BusEvent, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let Some(cluster) = &mut self.cluster else { return };
        tracing::trace!(node = %cluster.me(), ?msg, "from the bus");
        match msg {
            BusEvent::Up => {
                tracing::info!("the bus is up");
                cluster.up(now);
                // Nodes that start need not wait for one another's next beat.
                cluster.beat();
                self.survey_is_due = true;
            }
            BusEvent::Down(why) => {
                tracing::warn!(why, "the bus is down: other nodes are not heard");
                cluster.is_down(why);
            }
            BusEvent::Subscribed(channel) => cluster.subscribed(&channel),
            BusEvent::Received(envelope) => self.heard(envelope, now),
            BusEvent::Unreadable(error) => {
                static UNREADABLE: LogLimit = LogLimit::new();
                metrics::counter!("presence_bus_unreadable_total").increment(1);
                if let Some(suppressed) = UNREADABLE.pass() {
                    tracing::warn!(
                        %error,
                        suppressed,
                        "another node said something that this one does not understand"
                    );
                }
            }
        }
        self.read(ctx);
        self.settle(ctx, now);
    }
}
