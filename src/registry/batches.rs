//! Batches: what the registry handles before its mailbox is empty, but no more than 64 joins or two milliseconds.
//!
//! At the end of one those who have joined are sent who is in their rooms, then their joins are answered; and whatever
//! else is due is sent, is written, or gets a timer.

use std::time::Duration;

use actix::prelude::*;

use super::RoomRegistry;
use crate::{
    delivery::FailedMembers,
    model::{Cause, Moment, micros},
};

/// How many joins a batch has at most, and how long it lasts.
const MAX_BATCH_JOINS: usize = 64;
const MAX_BATCH_DURATION: Duration = Duration::from_millis(2);

impl RoomRegistry {
    /// The end of every handler that changed something: begins a batch, or ends one that is full.
    pub(super) fn advance_batch(&mut self, ctx: &mut Context<Self>, now: Moment) {
        self.remove_refusing(now);
        // A join may have waited behind one that is gone now.
        self.call_hook(ctx, now);
        let Some(begun) = self.batch_begun else {
            self.batch_begun = Some(now.monotonic);
            // An actor runs what it has spawned when its mailbox is empty.
            ctx.spawn(async {}.into_actor(self).map(|(), registry, ctx| {
                if registry.batch_begun.is_some() {
                    registry.end_batch(ctx);
                }
            }));
            return;
        };
        let lasts = now.monotonic.saturating_sub(begun) > micros(MAX_BATCH_DURATION);
        if lasts || self.delivery.newcomers() >= MAX_BATCH_JOINS {
            self.end_batch(ctx);
        }
    }

    /// The end of a handler that changed nothing: so many touches may come that the mailbox is never empty.
    pub(super) fn continue_batch(&mut self, ctx: &mut Context<Self>, now: Moment) {
        if self.batch_begun.is_some() {
            self.advance_batch(ctx, now);
        }
    }

    /// Sends and writes what is due.
    pub(super) fn end_batch(&mut self, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        self.end_faded(now);
        self.run_expired_commands(ctx, now);
        self.refuse_overdue(ctx, now);
        self.delivery.end_turn(&self.rooms, now.monotonic);
        self.remove_refusing(now);
        self.batch_begun = None;
        self.set_timer(ctx, now);
        self.write(ctx, now);
        if std::mem::take(&mut self.renewal_is_due) {
            self.renew(ctx);
        }
        if std::mem::take(&mut self.survey_is_due) {
            self.survey(ctx);
        }
        self.stop_draining_if_empty();
    }

    /// Ends the connections whose mailboxes refused frames.
    fn remove_refusing(&mut self, now: Moment) {
        while let Some(FailedMembers { slow, gone }) = self.delivery.take_failed() {
            if !slow.is_empty() {
                let slow = slow.len() as u64;
                metrics::counter!("presence_slow_consumers_total").increment(slow);
            }
            for connection in slow {
                self.end_connection(connection, Cause::SlowConsumer, now);
            }
            for connection in gone {
                self.end_connection(connection, Cause::Disconnected, now);
            }
            self.delivery.send_released(now.monotonic);
        }
    }

    /// Sets the one timer of what is due later.
    pub(super) fn set_timer(&mut self, ctx: &mut Context<Self>, now: Moment) {
        let next =
            [self.delivery.next_due(), self.sessions.next_end(), self.commands.next_deadline()];
        let Some(due) = next.into_iter().flatten().min() else { return };
        if let Some((at, timer)) = self.timer {
            if at <= due {
                return;
            }
            ctx.cancel_future(timer);
        }
        let wait = Duration::from_micros(due.saturating_sub(now.monotonic));
        let timer = ctx.run_later(wait, |registry, ctx| {
            registry.timer = None;
            let now = registry.clock.now();
            registry.advance_batch(ctx, now);
        });
        self.timer = Some((due, timer));
    }
}
