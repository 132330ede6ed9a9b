//! The time of rooms and presences, which only the registry and the actors beside it read; timeouts of
//! sockets, the bus and the log have clocks of their own.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;

use crate::model::Moment;

/// The clock of the actors: the system clock, or that of a test.
///
/// Each actor reads it once per message. A clone reads the same clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Moment + Send + Sync>);

impl Clock {
    /// The system clock.
    #[must_use]
    pub fn system() -> Self {
        let start = Instant::now();
        Self::from_fn(move || Moment::new(start.elapsed(), Utc::now()))
    }

    /// A clock that calls a function. Its monotonic part must never step back.
    #[must_use]
    pub fn from_fn(now: impl Fn() -> Moment + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The current time.
    #[must_use]
    pub fn now(&self) -> Moment {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}

/// Measures real time, whatever the clock of the actors is.
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The processor time of a thread, which does not include the time in which it waited.
#[derive(Clone, Copy)]
pub(crate) struct ThreadTime(Duration);

impl ThreadTime {
    /// The processor time of this thread so far.
    pub fn now() -> Self {
        Self(thread_time())
    }

    /// The processor time since then; to be called on the same thread.
    pub fn elapsed(self) -> Duration {
        thread_time().saturating_sub(self.0)
    }
}

#[cfg(unix)]
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// On other systems real time is used.
#[cfg(not(unix))]
fn thread_time() -> Duration {
    use std::sync::LazyLock;

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}
