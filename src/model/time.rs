//! Time as the model takes it: an argument, never asked for.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// A moment, read once per message: monotonic for ages, wall time for people and rows.
///
/// Microseconds; 16 bytes. Ages never go wrong when the wall clock is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds of a clock that only moves forward, from an arbitrary start.
    pub monotonic: u64,
    /// The wall clock, microseconds since 1970 in UTC.
    pub wall: i64,
}

impl Moment {
    /// Makes a moment of a monotonic time since an arbitrary start and a wall time.
    #[must_use]
    pub fn new(monotonic: Duration, wall: DateTime<Utc>) -> Self {
        Self { monotonic: micros(monotonic), wall: wall.timestamp_micros() }
    }

    /// The monotonic time since the clock's start.
    #[must_use]
    pub fn monotonic(self) -> Duration {
        Duration::from_micros(self.monotonic)
    }

    /// The wall time.
    #[must_use]
    pub fn utc(self) -> DateTime<Utc> {
        utc(self.wall)
    }

    /// How long `earlier` is ago; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.monotonic.saturating_sub(earlier.monotonic))
    }

    /// The later of both, by the monotonic clock.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.monotonic > self.monotonic { other } else { self }
    }
}

pub(crate) fn utc(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// A duration in whole microseconds, as far as they can be counted.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
