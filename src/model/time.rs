//! Time as an argument: the model never reads a clock.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// A point in time, read once per message: monotonic time for ages, wall time for people and rows.
///
/// Both in microseconds; 16 bytes. Ages stay right when the wall clock is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds of a clock that never steps back, since an arbitrary start.
    pub monotonic: u64,
    /// The wall clock: microseconds since 1970 in UTC.
    pub wall: i64,
}

impl Moment {
    /// Combines a monotonic time since an arbitrary start and a wall time.
    #[must_use]
    pub fn new(monotonic: Duration, wall: DateTime<Utc>) -> Self {
        Self { monotonic: micros(monotonic), wall: wall.timestamp_micros() }
    }

    /// The monotonic time since the clock's start.
    #[must_use]
    pub fn monotonic(self) -> Duration {
        Duration::from_micros(self.monotonic)
    }

    /// The wall time as a date.
    #[must_use]
    pub fn utc(self) -> DateTime<Utc> {
        utc(self.wall)
    }

    /// The time since `earlier`; zero if that is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.monotonic.saturating_sub(earlier.monotonic))
    }

    /// The later of both by the monotonic clock.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.monotonic > self.monotonic { other } else { self }
    }
}

pub(crate) fn utc(micros: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// A duration in whole microseconds, saturating.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
