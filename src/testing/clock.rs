//! A clock that is moved by hand.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::{clock::Clock, model::Moment};

/// A clock that stands still until it is moved. A clone is the same clock.
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::{PresenceConfig, testing::ManualClock};
///
/// let clock = ManualClock::new();
/// let config = PresenceConfig::new("sqlite::memory:").clock(clock.clock());
/// clock.advance(Duration::from_secs(61));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Moment>>);

impl ManualClock {
    /// A clock that shows the start of 2026.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "each clock is another")]
    pub fn new() -> Self {
        let wall = DateTime::<Utc>::from_timestamp(1_767_225_600, 0).unwrap_or_default();
        Self(Arc::new(Mutex::new(Moment::new(Duration::from_secs(1), wall))))
    }

    /// The clock for [`PresenceConfig::clock`](crate::PresenceConfig::clock).
    #[must_use]
    pub fn clock(&self) -> Clock {
        let moment = self.0.clone();
        Clock::from_fn(move || *moment.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The wall time it shows.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).utc()
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut moment = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let monotonic = moment.monotonic() + by;
        *moment = Moment::new(monotonic, moment.utc() + by);
    }

    /// Sets the wall clock by so much, as an administrator would; the monotonic one stays.
    pub fn set_wall(&self, by: TimeDelta) {
        let mut moment = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *moment = Moment::new(moment.monotonic(), moment.utc() + by);
    }
}
