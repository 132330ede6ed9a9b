//! What tests of an app that embeds presence need: a manual clock, probes in the place of sessions and
//! observers, and a database in memory and a bus that several nodes share. The rules that a database and
//! a bus have to obey, as tests: [`store_contract`], [`bus_contract`].

pub mod bus_contract;
mod memory;
mod memory_bus;
mod probe;
pub mod store_contract;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

pub use self::{
    memory::{MemoryDatabase, MemoryLink, MemoryStore},
    memory_bus::{MemoryBus, MemoryConnection, MemoryHub},
    probe::{Heard, Probe, Seen},
};
use crate::{clock::Clock, model::Moment};

/// The payload of a panic, which panics when it is dropped, so that it cannot be caught.
#[cfg(test)]
pub(crate) struct Bomb;

#[cfg(test)]
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("again");
    }
}

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
    /// A clock at the start of 2026.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two clocks are never equal")]
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

    /// Adjusts the wall clock, as an administrator would; the monotonic clock stays.
    pub fn set_wall(&self, by: TimeDelta) {
        let mut moment = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *moment = Moment::new(moment.monotonic(), moment.utc() + by);
    }
}
