//! This node's clock beside that of the database which the nodes share.
//!
//! The nodes compare times of one another: who joined last, until when a client may come back, and, by the
//! times in the ids of connections, which of two connections of a client session is the newer one. So each
//! measures its clock when it starts and after each renewal of its lease, and corrects the times that it
//! makes from then on. What was made before stays as it is.

use std::{error::Error, time::Duration};

use actix::prelude::*;
use chrono::TimeDelta;

use super::RoomRegistry;
use crate::{
    clock::Clock,
    log_limit::LogLimit,
    model::{ConnectionId, Moment, micros},
    store::{SharedStore, StoreError},
};

/// An answer that takes longer says too little about the time.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(1);

/// A clock that differs by more is named in the log.
const MAX_OFFSET: TimeDelta = TimeDelta::seconds(2);

/// How much a clock is ahead of the database's, in microseconds; it may be half a round trip more or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockOffset {
    ahead: i64,
    round_trip: Duration,
    /// How much the clock of the machine is, by which ids of connections are made: it need not be the same.
    machine_ahead: i64,
    machine_round_trip: Duration,
}

impl ClockOffset {
    /// Measures it on the thread of the store, so that waiting for the store does not count.
    pub fn measure(clock: &Clock, store: &mut dyn SharedStore) -> Result<Self, StoreError> {
        let machine = Clock::system();
        let (asked, asked_by_machine) = (clock.uncorrected(), machine.now());
        let time = store.time(asked.utc())?;
        let round_trip = clock.uncorrected().since(asked);
        let machine_round_trip = machine.now().since(asked_by_machine);
        let ahead = |asked: Moment, round_trip: Duration| {
            let middle = asked.utc() + round_trip / 2;
            middle.timestamp_micros().saturating_sub(time.timestamp_micros())
        };
        Ok(Self {
            ahead: ahead(asked, round_trip),
            round_trip,
            machine_ahead: ahead(asked_by_machine, machine_round_trip),
            machine_round_trip,
        })
    }

    /// Corrects the clock before there is anything with a time. What fails is tried again with each renewal.
    pub fn correct_first(clock: &Clock, store: &mut dyn SharedStore) {
        match Self::measure(clock, store) {
            Ok(offset) => offset.correct(clock),
            Err(error) => {
                let error = &error as &dyn Error;
                tracing::warn!(error, "this node's clock cannot be compared with the database's");
            }
        }
    }

    /// Corrects the clock by it, unless the answer took too long.
    pub fn correct(self, clock: &Clock) {
        if self.round_trip < MAX_ROUND_TRIP {
            clock.correct(self.ahead, micros(self.round_trip / 2));
        }
        if self.machine_round_trip < MAX_ROUND_TRIP {
            let uncertainty = micros(self.machine_round_trip / 2);
            ConnectionId::set_correction(self.machine_ahead.saturating_neg(), uncertainty);
        }
    }
}

impl RoomRegistry {
    /// Measures the clock, unless that is under way.
    pub(super) fn measure_clock(&mut self, ctx: &mut Context<Self>) {
        let Some(cluster) = &self.cluster else { return };
        if std::mem::replace(&mut self.measuring_clock, true) {
            return;
        }
        let clock = self.clock.clone();
        let measured = cluster.reader.ask(move |store| ClockOffset::measure(&clock, store));
        ctx.spawn(measured.into_actor(self).map(|measured, registry, _| {
            registry.measuring_clock = false;
            match measured {
                Ok(offset) => offset.correct(&registry.clock),
                // The survey, which is asked at the same time, warns.
                Err(error) => tracing::debug!(%error, "the clock cannot be measured"),
            }
            registry.judge_clock();
        }));
    }

    /// Names a clock that differs much from the database's.
    pub(super) fn judge_clock(&mut self) {
        let Some(ahead) = self.clock.ahead() else { return };
        let is_off = ahead.abs() > MAX_OFFSET;
        let was_off = std::mem::replace(&mut self.clock_is_off, is_off);
        let seconds = ahead.as_seconds_f64();
        if is_off {
            static OFF: LogLimit = LogLimit::new();
            if let Some(suppressed) = OFF.pass() {
                tracing::warn!(
                    ahead_seconds = seconds,
                    suppressed,
                    "this node's clock differs from the database's: the times of presences are corrected"
                );
            }
        } else if was_off {
            tracing::info!(
                ahead_seconds = seconds,
                "this node's clock agrees with the database's again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ManualClock, MemoryDatabase};

    /// How much a clock is ahead after its node was answered after so long, half of it on the way back.
    fn ahead_after(round_trip: Duration) -> Option<TimeDelta> {
        let clock = ManualClock::new();
        let on_the_way = clock.clone();
        let database = MemoryDatabase::with_clock(Clock::from_fn(move || {
            on_the_way.advance(round_trip / 2);
            let moment = Moment::new(Duration::ZERO, on_the_way.now() - TimeDelta::minutes(3));
            on_the_way.advance(round_trip / 2);
            moment
        }));
        let clock = clock.clock().correctable();
        let offset = ClockOffset::measure(&clock, &mut database.store()).unwrap();
        assert_eq!(offset.round_trip, round_trip);
        offset.correct(&clock);
        clock.ahead()
    }

    #[test]
    fn a_clock_is_measured_in_the_middle_of_a_round_trip_that_is_short() {
        for millis in [0, 1, 998] {
            let ahead = ahead_after(Duration::from_millis(millis));
            assert_eq!(ahead, Some(TimeDelta::minutes(3)), "{millis} ms");
        }
        assert_eq!(ahead_after(Duration::from_secs(1)), None);
    }

    #[test]
    fn a_database_that_does_not_answer_corrects_nothing() {
        let clock = ManualClock::new().clock();
        let mut store = MemoryDatabase::with_clock(ManualClock::new().clock()).store();
        store.link().cut();
        assert!(ClockOffset::measure(&clock, &mut store).is_err());
    }
}
