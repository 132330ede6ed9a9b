//! A stop in order: connections are told to close, batch by batch, and are members until they have; then the
//! remaining presences are ended and the rows are written.

use std::{time::Duration, vec};

use actix::{fut::ActorFutureExt, prelude::*};
use tokio::{sync::oneshot, time::timeout};

use super::{
    RoomRegistry,
    mirroring::{CLOSED, WriterReply},
};
use crate::{
    bus::BusMessage,
    delivery::DRAIN_INTERVAL,
    messages::{Disconnect, FlushError, GOING_AWAY, Shutdown},
    mirror::{CloseStore, flush_error},
    model::{Cause, ConnectionId, Moment, RoomName},
};

/// What sessions are told where there are other nodes to go to (the registry of close codes of RFC 6455).
const RESTARTING: Disconnect = Disconnect { code: 1012, cause: Cause::Shutdown };

/// How long to wait for the rows before anybody is told to close: a client that comes back to another node is
/// recognized there by its row.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the sessions of the last batch may take to leave. A session whose client does not read is
/// not run, and one of the app's own may ignore the order.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What is left to do before all connections are closed.
pub(super) struct Draining {
    order: Disconnect,
    /// How long clients with a session key may take to come back to another node, if there is one.
    grace: Option<Duration>,
    batches: vec::IntoIter<Vec<ConnectionId>>,
    /// Set once all have been told to close; dropped when all have left, or had the time to.
    all_left: Option<oneshot::Sender<()>>,
    /// Further senders of [`Shutdown`], to be answered with the first.
    also_asking: Vec<oneshot::Sender<Result<(), FlushError>>>,
    is_over: bool,
}

impl Handler<Shutdown> for RoomRegistry {
    type Result = WriterReply<()>;

    fn handle(&mut self, _: Shutdown, ctx: &mut Context<Self>) -> Self::Result {
        if let Some(draining) = self.draining.as_mut().filter(|draining| !draining.is_over) {
            let (asked, ended) = oneshot::channel();
            draining.also_asking.push(asked);
            return Box::pin(async { ended.await.unwrap_or(Err(CLOSED)) }.into_actor(self));
        }
        self.closing = true;
        // Before any row goes: a node that reads the rows knows then why they are gone.
        if let Some(cluster) = &mut self.cluster {
            cluster.tell(BusMessage::Stopping);
        }
        let others = self.cluster.as_ref().is_some_and(|cluster| cluster.has_others());
        let grace = Some(self.grace).filter(|grace| others && !grace.is_zero());
        let order = if others { RESTARTING } else { GOING_AWAY };
        let batches = Vec::new().into_iter();
        let (all_left, also_asking) = (None, Vec::new());
        self.draining =
            Some(Draining { order, grace, batches, all_left, also_asking, is_over: false });
        self.run_all_commands(ctx);
        let committed = grace.map(|_| self.commit(ctx));
        let committed = async {
            if let Some(committed) = committed {
                // If they cannot be written, the clients have to close all the same.
                let _ = timeout(COMMIT_TIMEOUT, committed).await;
            }
        };
        let closed = committed
            .into_actor(self)
            .then(|(), registry, ctx| registry.drain(ctx))
            .then(move |_, registry, ctx| registry.end_remaining(grace, ctx))
            .then(move |flushed, registry, _| registry.close_store(flushed, grace));
        Box::pin(closed)
    }
}

impl RoomRegistry {
    /// Tells all connections to close. Done when all have left, or had the time to.
    fn drain(&mut self, ctx: &mut Context<Self>) -> impl ActorFuture<Self> + use<> {
        let (done, all_left) = oneshot::channel();
        if let Some(draining) = &mut self.draining {
            draining.batches = self.delivery.drain_batches().into_iter();
        }
        self.drain_next(done, ctx);
        all_left.into_actor(self)
    }

    fn drain_next(&mut self, done: oneshot::Sender<()>, ctx: &mut Context<Self>) {
        let Some(draining) = &mut self.draining else { return };
        if let Some(batch) = draining.batches.next() {
            let now = self.clock.now().monotonic;
            for told in self.delivery.drain(batch, draining.order, &self.rooms, now) {
                self.registered.note_told(told);
            }
        }
        if draining.batches.len() > 0 {
            ctx.run_later(DRAIN_INTERVAL, |registry, ctx| registry.drain_next(done, ctx));
            return;
        }
        // Those that are in no room.
        self.registered.tell(draining.order);
        draining.all_left = Some(done);
        ctx.run_later(LEAVE_TIMEOUT, |registry, _| registry.stop_draining());
        self.stop_draining_if_empty();
    }

    /// Goes on as soon as all who were told to close have left.
    pub(super) fn stop_draining_if_empty(&mut self) {
        if self.draining.is_some() && self.delivery.is_empty() && self.registered.is_empty() {
            self.stop_draining();
        }
    }

    fn stop_draining(&mut self) {
        if let Some(draining) = &mut self.draining {
            draining.all_left = None;
        }
    }

    /// The order to close that everybody gets, if this node stops.
    pub(super) fn order_of_stop(&self) -> Option<Disconnect> {
        self.draining.as_ref().map(|draining| draining.order)
    }

    /// How long the presences of a client session stay when its connection has ended for this cause;
    /// none if they end with it.
    pub(super) fn grace_after(&self, cause: Cause) -> Option<Duration> {
        match cause {
            Cause::Disconnected => Some(self.grace),
            Cause::Shutdown => self.draining.as_ref()?.grace,
            _ => None,
        }
    }

    /// Ends the presences that are left, and has everything written.
    fn end_remaining(
        &mut self,
        grace: Option<Duration>,
        ctx: &mut Context<Self>,
    ) -> impl ActorFuture<Self, Output = Result<(), FlushError>> + use<> {
        self.end_all(grace, self.clock.now());
        let flushed = self.flush(ctx);
        async { flushed.await.unwrap_or(Err(CLOSED)) }.into_actor(self)
    }

    /// Closes the database, which no other write may follow.
    fn close_store(
        &mut self,
        flushed: Result<(), FlushError>,
        grace: Option<Duration>,
    ) -> impl ActorFuture<Self, Output = Result<(), FlushError>> + use<> {
        self.mirror.close();
        // Again: others believe it for two looks at the table only, and these have been seconds ago.
        if let Some(cluster) = &mut self.cluster {
            cluster.tell(BusMessage::Stopping);
        }
        let close = CloseStore { now: self.clock.now().utc(), grace };
        let closed = self.mirror.writer().close_store(close);
        closed.into_actor(self).map(move |answer, registry, _| {
            let closed =
                answer.map_err(flush_error).inspect_err(|_| registry.mirror.reopen()).and(flushed);
            if let Some(draining) = &mut registry.draining {
                draining.is_over = true;
                for asked in draining.also_asking.drain(..) {
                    let _ = asked.send(closed.clone());
                }
            }
            closed
        })
    }

    /// All presences here end, but for those whose client may come back to another node within the grace: they
    /// fade.
    fn end_all(&mut self, grace: Option<Duration>, now: Moment) {
        let rooms: Vec<_> =
            self.rooms.list(None, usize::MAX).into_iter().map(|summary| summary.room).collect();
        for room in rooms {
            match grace {
                Some(grace) => self.fade_all(&room, grace, now),
                None => {
                    let diff = self.rooms.close_room(&room, Cause::Shutdown);
                    self.announce_leave(diff, Cause::Shutdown, now);
                }
            }
        }
    }

    fn fade_all(&mut self, room: &RoomName, grace: Duration, now: Moment) {
        let here: Vec<_> = self.rooms.snapshot(room).connections().collect();
        let here = here.into_iter().filter(|one| self.rooms.holds(room, *one));
        let keyed = |one: &_| self.sessions.key_of(room, *one).is_some();
        let (stay, go): (Vec<_>, Vec<_>) = here.partition(keyed);
        let diff = self.rooms.leave_together(room, &go, Cause::Shutdown);
        self.announce_leave(diff, Cause::Shutdown, now);
        for presence in stay {
            if self.sessions.fading(presence, room).is_none() {
                self.mirror.mark_one(room.clone(), presence);
                // The rows end by the database's clock; this node is gone by then.
                self.sessions.fade(presence, room.clone(), now, grace);
            }
        }
    }
}
