//! The end of a turn: what several messages have changed is told together.
//!
//! A turn is what the registry handles before it has nothing left to handle, but no more than 64 joins or
//! two milliseconds. At its end those who have joined are told who is in their rooms, then hear that they
//! have joined; and whatever else is due goes out, is written, or gets a timer.

use std::time::Duration;

use actix::prelude::*;

use super::RoomRegistry;
use crate::model::{Moment, micros};

/// How many joins a turn has at most, and how long it lasts.
const MAX_JOINS: usize = 64;
const MAX_DURATION: Duration = Duration::from_millis(2);

impl RoomRegistry {
    /// The end of every handler that changed something.
    pub(super) fn settle(&mut self, ctx: &mut Context<Self>, now: Moment) {
        self.put_out_refused(now);
        let Some(begun) = self.turn_begun else {
            self.turn_begun = Some(now.monotonic);
            // An actor runs what it has spawned when its mailbox is empty.
            ctx.spawn(async {}.into_actor(self).map(|(), registry, ctx| {
                if registry.turn_begun.is_some() {
                    registry.end_turn(ctx);
                }
            }));
            return;
        };
        let lasts = now.monotonic.saturating_sub(begun) > micros(MAX_DURATION);
        if lasts || self.delivery.newcomers() >= MAX_JOINS {
            self.end_turn(ctx);
        }
    }

    /// Ends a turn that has lasted long enough: also so many signs of life may come that the mailbox is never
    /// empty.
    pub(super) fn go_on_with_turn(&mut self, ctx: &mut Context<Self>, now: Moment) {
        if self.turn_begun.is_some() {
            self.settle(ctx, now);
        }
    }

    fn end_turn(&mut self, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        self.end_faded(now);
        self.lose_patience(ctx, now);
        self.delivery.end_turn(&self.rooms, now.monotonic);
        self.put_out_refused(now);
        self.turn_begun = None;
        self.arm(ctx, now);
        self.write(ctx, now);
        if std::mem::take(&mut self.renewal_is_due) {
            self.renew(ctx);
        }
        if std::mem::take(&mut self.survey_is_due) {
            self.survey(ctx);
        }
        self.stop_waiting_if_all_left();
    }

    /// Members that did not take their frames leave.
    fn put_out_refused(&mut self, now: Moment) {
        while let Some(refused) = self.delivery.take_failed() {
            self.put_out(&refused, now);
            self.delivery.send_released(now.monotonic);
        }
    }

    /// Sets the one timer of what is due later.
    pub(super) fn arm(&mut self, ctx: &mut Context<Self>, now: Moment) {
        let next = [self.delivery.next_due(), self.sessions.next_end(), self.next_impatience()];
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
            registry.settle(ctx, now);
        });
        self.timer = Some((due, timer));
    }
}
