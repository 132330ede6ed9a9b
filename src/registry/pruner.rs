//! Prunes of presences that were silent for too long, and the [`Pruner`], which has the registry prune by the
//! clock.

use std::{fmt, time::Duration};

use actix::prelude::*;

use super::RoomRegistry;
use crate::{
    clock::{Clock, ClockMoved},
    messages::{PrunePresences, PruneReport, PruneRooms, Pruned},
    model::{Cause, Diff, Moment},
    supervision::Guard,
};

/// The actor that has silent presences and empty rooms pruned, each at its interval.
///
/// When it wakes late because the whole process stood still, nobody could be heard meanwhile: it adds
/// the stall to the age until everybody has had `max_age` to be heard again.
pub struct Pruner {
    registry: Addr<RoomRegistry>,
    clock: Clock,
    max_age: Duration,
    every: Duration,
    rooms_every: Duration,
    stalls: Stalls,
    _guard: Guard,
}

impl Pruner {
    pub(crate) fn new(
        registry: Addr<RoomRegistry>,
        clock: Clock,
        max_age: Duration,
        every: Duration,
        rooms_every: Duration,
        guard: Guard,
    ) -> Self {
        let stalls = Stalls::new(every, clock.now().monotonic());
        Self { registry, clock, max_age, every, rooms_every, stalls, _guard: guard }
    }

    fn prune(&mut self) {
        let stalled = self.stalls.wake(self.clock.now().monotonic(), self.max_age);
        if stalled > Duration::ZERO {
            tracing::warn!(
                ?stalled,
                "this process was stalled: the stall does not count as silence of clients"
            );
        }
        self.registry.do_send(PrunePresences { age: Some(self.max_age + stalled) });
    }

    fn prune_rooms(&mut self, ctx: &mut Context<Self>) {
        let pruned = self.registry.send(PruneRooms).into_actor(self);
        ctx.spawn(pruned.map(|answer, _, _| match answer {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(rooms)) => tracing::info!(rooms, "removed the rows of empty rooms"),
            Ok(Err(error)) => tracing::warn!(%error, "rooms could not be pruned"),
        }));
    }
}

impl Actor for Pruner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // A clock that is moved by hand has the registry itself prune.
        if !self.clock.is_moved_by_hand() {
            ctx.run_interval(self.every, |pruner, _| pruner.prune());
        }
        ctx.run_interval(self.rooms_every, Self::prune_rooms);
    }
}

impl fmt::Debug for Pruner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pruner")
            .field("max_age", &self.max_age)
            .field("every", &self.every)
            .field("rooms_every", &self.rooms_every)
            .finish_non_exhaustive()
    }
}

/// Finds out how long the process stood still between two wakes.
#[derive(Debug)]
struct Stalls {
    every: Duration,
    woke: Duration,
    forgiven: Duration,
    until: Duration,
}

impl Stalls {
    fn new(every: Duration, now: Duration) -> Self {
        Self { every, woke: now, forgiven: Duration::ZERO, until: Duration::ZERO }
    }

    /// How much silence to forgive at a wake now.
    fn wake(&mut self, now: Duration, max_age: Duration) -> Duration {
        let late = now.saturating_sub(self.woke).saturating_sub(self.every);
        self.woke = now;
        if now >= self.until {
            self.forgiven = Duration::ZERO;
        }
        // A timer that is a little late is no stall.
        if late > self.every / 2 {
            self.forgiven += late;
            self.until = now + max_age;
        }
        self.forgiven
    }
}

impl Handler<PrunePresences> for RoomRegistry {
    type Result = PruneReport;

    fn handle(&mut self, msg: PrunePresences, ctx: &mut Context<Self>) -> PruneReport {
        let now = self.clock.now();
        self.prune(msg.age.unwrap_or(self.max_age), now, ctx)
    }
}

impl Handler<ClockMoved> for RoomRegistry {
    type Result = ();

    /// What is due by then happens at once: a move is no stall of the process.
    fn handle(&mut self, _: ClockMoved, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        // Those whose grace is over have not expired.
        self.end_faded(now);
        self.prune(self.max_age, now, ctx);
        self.end_batch(ctx);
    }
}

impl RoomRegistry {
    fn prune(&mut self, age: Duration, now: Moment, ctx: &mut Context<Self>) -> PruneReport {
        let _span = tracing::debug_span!("prune").entered();
        let mut diffs = self.rooms.prune(now, age);
        diffs.sort_unstable_by(|one, other| one.room.cmp(&other.room));
        let pruned = |diff: &Diff| Pruned {
            room: diff.room.clone(),
            presences: diff.leaves.iter().map(|left| left.presence.clone()).collect(),
        };
        let report = PruneReport { rooms: diffs.iter().map(pruned).collect() };
        for diff in diffs {
            tracing::info!(room = %diff.room, removed = diff.leaves.len(), "pruned silent presences");
            self.announce_leave(Some(diff), Cause::Expired, now);
        }
        self.shrink(now);
        self.advance_batch(ctx, now);
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_stall_is_forgiven_until_everybody_had_time_to_be_heard_again() {
        let mut stalls = Stalls::new(secs(15), secs(0));
        let wakes = [(15, 0), (31, 0), (146, 100), (161, 100), (191, 100 + 15), (206, 115)];
        for (now, forgiven) in wakes {
            assert_eq!(stalls.wake(secs(now), secs(60)), secs(forgiven), "at {now} s");
        }
        assert_eq!(stalls.wake(secs(221), secs(60)), secs(115));
        assert_eq!(stalls.wake(secs(236), secs(60)), secs(115));
        assert_eq!(stalls.wake(secs(251), secs(60)), secs(0), "60 s after the last stall");
    }
}
