//! The end of this node: connections are told to close, batch by batch, and stay members until they
//! have; then the rest is ended and the rows are written.

use std::{time::Duration, vec};

use actix::{fut::ActorFutureExt, prelude::*};
use tokio::{sync::oneshot, time::timeout};

use super::{
    RoomRegistry,
    mirroring::{Answer, CLOSED, told},
};
use crate::{
    bus::BusMessage,
    delivery::BATCH_INTERVAL,
    messages::{Disconnect, FlushError, Shutdown},
    mirror::Goodbye,
    model::{Cause, ConnectionId, Moment, RoomName},
};

/// Close codes (RFC 6455, section 7.4.1, and its registry): the server goes away, or restarts.
const GOING_AWAY: u16 = 1001;
const RESTARTING: u16 = 1012;

/// How long the rows may take before anybody is told to close. A client that comes back to another
/// node is recognized there by its row.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the sessions of the last batch may take to leave. A session whose client does not read is
/// not run, and one of the app's own may ignore the order.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// What is left to do before all connections are closed.
pub(super) struct Farewells {
    order: Disconnect,
    /// How long clients with a session key may take to come back to another node, if there is one.
    grace: Option<Duration>,
    batches: vec::IntoIter<Vec<ConnectionId>>,
    /// Dropped when everybody has left or had the time to. Set once all have been told.
    waiting: Option<oneshot::Sender<()>>,
    /// Who else has asked for the end, to be answered with it.
    also_asked: Vec<oneshot::Sender<Result<(), FlushError>>>,
    is_over: bool,
}

impl Handler<Shutdown> for RoomRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, _: Shutdown, ctx: &mut Context<Self>) -> Self::Result {
        if let Some(farewells) = self.farewells.as_mut().filter(|farewells| !farewells.is_over) {
            let (asked, ended) = oneshot::channel();
            farewells.also_asked.push(asked);
            return Box::pin(async { ended.await.unwrap_or(Err(CLOSED)) }.into_actor(self));
        }
        self.closing = true;
        // Before any row goes: a node that reads the rows knows then why they are gone.
        if let Some(cluster) = &mut self.cluster {
            cluster.tell(BusMessage::Stopping);
        }
        let others = self.cluster.as_ref().is_some_and(|cluster| cluster.has_others());
        let grace = Some(self.grace).filter(|grace| others && !grace.is_zero());
        let code = if others { RESTARTING } else { GOING_AWAY };
        let order = Disconnect { code, cause: Cause::Shutdown };
        let batches = Vec::new().into_iter();
        let (waiting, also_asked) = (None, Vec::new());
        self.farewells =
            Some(Farewells { order, grace, batches, waiting, also_asked, is_over: false });
        for room in self.waiting.keys().cloned().collect::<Vec<_>>() {
            self.wait_no_longer(&room, ctx);
        }
        let committed = grace.map(|_| self.commit(ctx));
        let committed = async {
            if let Some(committed) = committed {
                // If they cannot be written, the clients have to close all the same.
                let _ = timeout(COMMIT_TIMEOUT, committed).await;
            }
        };
        let closed = committed
            .into_actor(self)
            .then(|(), registry, ctx| registry.say_farewell(ctx))
            .then(move |_, registry, ctx| registry.end_rest(grace, ctx))
            .then(move |flushed, registry, _| registry.close_store(flushed, grace));
        Box::pin(closed)
    }
}

impl RoomRegistry {
    /// Tells everybody to close. Answers when all have left, or had the time to.
    fn say_farewell(&mut self, ctx: &mut Context<Self>) -> impl ActorFuture<Self> + use<> {
        let (done, all_left) = oneshot::channel();
        if let Some(farewells) = &mut self.farewells {
            farewells.batches = self.delivery.batches().into_iter();
        }
        self.dismiss_next(done, ctx);
        all_left.into_actor(self)
    }

    fn dismiss_next(&mut self, done: oneshot::Sender<()>, ctx: &mut Context<Self>) {
        let Some(farewells) = &mut self.farewells else { return };
        if let Some(batch) = farewells.batches.next() {
            let now = self.clock.now().monotonic;
            self.delivery.dismiss(batch, farewells.order, &self.rooms, now);
        }
        if farewells.batches.len() > 0 {
            ctx.run_later(BATCH_INTERVAL, |registry, ctx| registry.dismiss_next(done, ctx));
            return;
        }
        farewells.waiting = Some(done);
        ctx.run_later(LEAVE_TIMEOUT, |registry, _| registry.stop_waiting());
        self.stop_waiting_if_all_left();
    }

    /// Goes on with the end as soon as everybody who was told to close has left.
    pub(super) fn stop_waiting_if_all_left(&mut self) {
        if self.farewells.is_some() && self.delivery.is_empty() {
            self.stop_waiting();
        }
    }

    fn stop_waiting(&mut self) {
        if let Some(farewells) = &mut self.farewells {
            farewells.waiting = None;
        }
    }

    /// How long the presences of a client session stay when its connection has ended for this cause;
    /// none if they end with it.
    pub(super) fn grace_after(&self, cause: Cause) -> Option<Duration> {
        match cause {
            Cause::Disconnected => Some(self.grace),
            Cause::Shutdown => self.farewells.as_ref()?.grace,
            _ => None,
        }
    }

    /// Ends the presences that are left, and has everything written.
    fn end_rest(
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
        let goodbye = Goodbye { now: self.clock.now().utc(), grace };
        let closed = self.mirror.writer().goodbye.send(goodbye);
        closed.into_actor(self).map(move |answer, registry, _| {
            let closed = told(answer).inspect_err(|_| registry.mirror.reopen()).and(flushed);
            if let Some(farewells) = &mut registry.farewells {
                farewells.is_over = true;
                for asked in farewells.also_asked.drain(..) {
                    let _ = asked.send(closed.clone());
                }
            }
            closed
        })
    }

    /// Everybody who is here leaves, but for those who may come back to another node within the grace:
    /// they fade.
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
