//! Keeping the database in step.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::RoomRegistry;
use crate::{
    messages::{Flush, FlushError, PruneRooms},
    mirror::{Memory, NextStep, PruneRoomRows, flush_error},
    model::Moment,
};

pub(super) type WriterReply<T> = ResponseActFuture<RoomRegistry, Result<T, FlushError>>;

pub(super) const CLOSED: FlushError = FlushError::Closed;

impl RoomRegistry {
    /// Starts what the mirror does periodically: `last_seen` in bulk, and the lease.
    pub(super) fn keep_mirror(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(self.max_age / 4, |registry, ctx| {
            registry.mirror.sweep();
            metrics::counter!("presence_touches_total").absolute(registry.touches);
            let now = registry.clock.now();
            registry.write(ctx, now);
        });
        ctx.run_interval(self.lease / 3, |registry, ctx| {
            let now = registry.clock.now();
            registry.mirror.check_stall(now);
            registry.renew(ctx);
            registry.stop_lingering(now);
        });
        if self.cluster.as_ref().is_some_and(|cluster| cluster.is_shared()) {
            self.start_beating(ctx);
        }
    }

    /// Renews the lease, then looks for other nodes.
    pub(super) fn renew(&mut self, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let Some(renewal) = self.mirror.renew(now) else { return };
        ctx.spawn(renewal.into_actor(self).map(|answer, registry, ctx| {
            let now = registry.clock.now();
            let renewed = answer.is_ok();
            if let Some(cluster) = &mut registry.cluster {
                cluster.peers.renewed(renewed, registry.lease, now);
            }
            let next = registry.mirror.renewed(answer, &registry.rooms, now);
            registry.go_on(ctx, next, now);
            if renewed {
                if registry.surplus_is_due {
                    registry.remove_surplus(ctx);
                }
                registry.measure_clock(ctx);
                registry.survey(ctx);
            }
        }));
    }

    /// Has the next batch written, if the writer is free.
    pub(super) fn write(&mut self, ctx: &mut Context<Self>, now: Moment) {
        let sessions = self.cluster.is_some().then_some((&self.sessions, now));
        let memory = Memory { rooms: &self.rooms, sessions };
        let Some(writing) = self.mirror.next(&memory, now) else { return };
        ctx.spawn(writing.into_actor(self).map(|answer, registry, ctx| {
            let now = registry.clock.now();
            let next = registry.mirror.written(answer, &registry.rooms, now);
            registry.go_on(ctx, next, now);
        }));
    }

    fn rest(&mut self, ctx: &mut Context<Self>) {
        let Some(rest) = self.mirror.begin_interval() else { return };
        ctx.run_later(rest, |registry, ctx| {
            registry.mirror.end_interval();
            let now = registry.clock.now();
            registry.write(ctx, now);
        });
    }

    fn go_on(&mut self, ctx: &mut Context<Self>, next: NextStep, now: Moment) {
        match next {
            NextStep::Write => self.write(ctx, now),
            NextStep::Publish(committed) => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.tell_committed(&committed);
                }
                self.rest(ctx);
                self.write(ctx, now);
            }
            NextStep::RetryAfter(wait) => {
                ctx.run_later(wait, |registry, ctx| {
                    registry.mirror.retry();
                    let now = registry.clock.now();
                    registry.write(ctx, now);
                });
            }
            NextStep::Renew => self.renew(ctx),
            NextStep::RenewAfter(wait) => {
                ctx.run_later(wait, |registry, ctx| registry.renew(ctx));
            }
            NextStep::ContinueAs(incarnation) => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.continue_as(incarnation);
                }
                self.mirror.continue_incarnation(&self.rooms);
                self.remove_surplus(ctx);
                self.write(ctx, now);
            }
            NextStep::BeginIncarnation(incarnation) => {
                self.register_again(incarnation, now);
                self.advance_batch(ctx, now);
            }
        }
    }

    /// Removes rows of this node that should not be there, once all others are written.
    fn remove_surplus(&mut self, ctx: &mut Context<Self>) {
        let Some(cluster) = self.cluster.as_ref().filter(|_| !self.closing) else { return };
        self.surplus_is_due = false;
        let (node, background) = (self.node.clone(), cluster.background.clone());
        let committed = self.commit(ctx);
        let surplus = async move {
            match committed.await.unwrap_or(Err(CLOSED)) {
                Ok(()) | Err(FlushError::RowsRefused) => {
                    background.ask(move |store| store.places(&node)).await.ok()
                }
                Err(_) => None,
            }
        };
        ctx.spawn(surplus.into_actor(self).map(|places, registry, ctx| {
            let Some(places) = places else {
                // Until it has been done, since the rows of a presence that has ended would be believed.
                registry.surplus_is_due = true;
                return;
            };
            registry.mirror.mark_surplus(places, &registry.rooms);
            let now = registry.clock.now();
            registry.write(ctx, now);
        }));
    }

    /// Has everything written, `last_seen` included.
    pub(super) fn flush(
        &mut self,
        ctx: &mut Context<Self>,
    ) -> oneshot::Receiver<Result<(), FlushError>> {
        self.mirror.sweep_all();
        self.commit(ctx)
    }

    /// Has all changes written.
    pub(super) fn commit(
        &mut self,
        ctx: &mut Context<Self>,
    ) -> oneshot::Receiver<Result<(), FlushError>> {
        let committed = self.mirror.commit();
        let now = self.clock.now();
        self.write(ctx, now);
        committed
    }
}

impl Handler<Flush> for RoomRegistry {
    type Result = WriterReply<()>;

    fn handle(&mut self, _: Flush, ctx: &mut Context<Self>) -> Self::Result {
        let flushed = self.flush(ctx);
        Box::pin(async { flushed.await.unwrap_or(Err(CLOSED)) }.into_actor(self))
    }
}

impl Handler<PruneRooms> for RoomRegistry {
    type Result = WriterReply<usize>;

    fn handle(&mut self, _: PruneRooms, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now().utc();
        let writer = self.mirror.writer().clone();
        // Where the lease must not wait for it.
        let background = self.cluster.as_ref().map(|cluster| cluster.background.clone());
        // A room that is empty in memory may still have presences in rows that wait to be deleted.
        let committed = self.commit(ctx);
        let pruned = async move {
            committed.await.unwrap_or(Err(CLOSED))?;
            let pruned = match background {
                Some(background) => background.ask(|store| store.prune_rooms()).await,
                None => writer.prune_rooms(PruneRoomRows { now }).await,
            };
            pruned.map_err(flush_error)
        };
        Box::pin(pruned.into_actor(self))
    }
}
