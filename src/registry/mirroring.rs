//! Keeping the database in step, and the end.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::RoomRegistry;
use crate::{
    messages::{Flush, FlushError, PruneRooms, Shutdown},
    mirror::{Goodbye, Next, PruneRoomRows, store::StoreError},
    model::{Cause, Moment},
};

type Answer<T> = ResponseActFuture<RoomRegistry, Result<T, FlushError>>;

const CLOSED: FlushError = FlushError { reason: "closed" };

/// What the writer answered, in the registry's words.
fn told<T>(answer: Result<Result<T, StoreError>, MailboxError>) -> Result<T, FlushError> {
    let answer = answer.map_err(|_| CLOSED)?;
    answer.map_err(|error| FlushError { reason: error.as_str() })
}

impl RoomRegistry {
    /// Starts what the mirror does by the clock on the wall: signs of life in bulk, and the lease.
    pub(super) fn keep_mirror(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(self.max_age / 4, |registry, ctx| {
            registry.mirror.sweep(&registry.rooms);
            metrics::counter!("presence_touches_total").absolute(registry.touches);
            let now = registry.clock.now();
            registry.write(ctx, now);
        });
        ctx.run_interval(self.lease / 3, |registry, ctx| {
            let now = registry.clock.now();
            registry.mirror.give_up_waiting(now);
            let Some(renewal) = registry.mirror.renew(now) else { return };
            ctx.spawn(renewal.into_actor(registry).map(|answer, registry, ctx| {
                let now = registry.clock.now();
                let answer = answer.unwrap_or(Err(StoreError::Closed));
                let next = registry.mirror.renewed(answer, &registry.rooms, now);
                registry.go_on(ctx, next, now);
            }));
        });
    }

    /// Has the next batch written, if the writer is free.
    pub(super) fn write(&mut self, ctx: &mut Context<Self>, now: Moment) {
        let Some(writing) = self.mirror.next(&self.rooms, now) else { return };
        ctx.spawn(writing.into_actor(self).map(|answer, registry, ctx| {
            let now = registry.clock.now();
            let next = registry.mirror.written(answer, &registry.rooms, now);
            registry.go_on(ctx, next, now);
        }));
    }

    fn go_on(&mut self, ctx: &mut Context<Self>, next: Next, now: Moment) {
        match next {
            Next::Go => self.write(ctx, now),
            Next::Retry(wait) => {
                ctx.run_later(wait, |registry, ctx| {
                    registry.mirror.retry();
                    let now = registry.clock.now();
                    registry.write(ctx, now);
                });
            }
        }
    }

    fn flush(&mut self, ctx: &mut Context<Self>) -> oneshot::Receiver<Result<(), FlushError>> {
        let flushed = self.mirror.flush(&self.rooms);
        let now = self.clock.now();
        self.write(ctx, now);
        flushed
    }
}

impl Handler<Flush> for RoomRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, _: Flush, ctx: &mut Context<Self>) -> Self::Result {
        let flushed = self.flush(ctx);
        Box::pin(async { flushed.await.unwrap_or(Err(CLOSED)) }.into_actor(self))
    }
}

impl Handler<PruneRooms> for RoomRegistry {
    type Result = Answer<usize>;

    fn handle(&mut self, _: PruneRooms, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now().utc();
        let writer = self.mirror.writer().clone();
        // A room that is empty in memory may still have presences in rows that wait to be deleted.
        let flushed = self.flush(ctx);
        let pruned = async move {
            flushed.await.unwrap_or(Err(CLOSED))?;
            told(writer.send(PruneRoomRows { now }).await)
        };
        Box::pin(pruned.into_actor(self))
    }
}

impl Handler<Shutdown> for RoomRegistry {
    type Result = Answer<()>;

    fn handle(&mut self, _: Shutdown, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now();
        self.closing = true;
        let rooms: Vec<_> =
            self.rooms.list(None, usize::MAX).into_iter().map(|summary| summary.room).collect();
        for room in rooms {
            let diff = self.rooms.close_room(&room, Cause::Shutdown);
            self.announce_leave(diff, Cause::Shutdown, now);
        }
        let flushed = self.flush(ctx);
        let writer = self.mirror.writer().clone();
        let clock = self.clock.clone();
        let closed = async move {
            let flushed = flushed.await.unwrap_or(Err(CLOSED));
            told(writer.send(Goodbye { now: clock.now().utc() }).await)?;
            flushed
        };
        Box::pin(closed.into_actor(self))
    }
}
