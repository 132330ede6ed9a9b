//! The time of rooms and presences, which only the registry and the actors beside it read; timeouts of
//! sockets, the bus and the log have clocks of their own.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chrono::{TimeDelta, Utc};

use crate::model::Moment;

/// The clock of the actors: the system clock, or that of a test.
///
/// Each actor reads it once per message. A clone reads the same clock.
///
/// Where a database is shared, a presence system corrects the wall time that it reads by the database's clock,
/// so that the times of several nodes can be compared. The monotonic time, by which ages are judged, stays.
#[derive(Clone)]
pub struct Clock {
    read: Arc<dyn Fn() -> Moment + Send + Sync>,
    correction: Arc<Correction>,
}

/// What is known of a clock beside another one, in microseconds.
struct Correction {
    /// What is added to the wall time.
    added: AtomicI64,
    /// By how much the clock was ahead when it was measured last.
    ahead: AtomicI64,
}

impl Correction {
    const UNKNOWN: i64 = i64::MIN;

    fn none() -> Arc<Self> {
        Arc::new(Self { added: AtomicI64::new(0), ahead: AtomicI64::new(Self::UNKNOWN) })
    }
}

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
        Self { read: Arc::new(now), correction: Correction::none() }
    }

    /// The current time.
    #[must_use]
    pub fn now(&self) -> Moment {
        let Moment { monotonic, wall } = self.uncorrected();
        Moment { monotonic, wall: wall.saturating_add(self.correction.added.load(Relaxed)) }
    }

    /// The current time without the correction.
    pub(crate) fn uncorrected(&self) -> Moment {
        (self.read)()
    }

    /// The same clock with a correction of its own, none at first: a clock may be given to several systems.
    pub(crate) fn correctable(&self) -> Self {
        Self { read: Arc::clone(&self.read), correction: Correction::none() }
    }

    /// Corrects the clock, which was measured to be so much ahead, give or take an uncertainty. What differs
    /// by less from the last correction changes nothing, so times do not waver.
    pub(crate) fn correct(&self, ahead: i64, uncertainty: u64) {
        let Correction { added, ahead: last } = &*self.correction;
        last.store(ahead.max(Correction::UNKNOWN + 1), Relaxed);
        let needed = ahead.saturating_neg();
        if needed.abs_diff(added.load(Relaxed)) > uncertainty {
            added.store(needed, Relaxed);
        }
    }

    /// By how much the clock was ahead, uncorrected, when it was measured last.
    pub(crate) fn ahead(&self) -> Option<TimeDelta> {
        let ahead = self.correction.ahead.load(Relaxed);
        (ahead != Correction::UNKNOWN).then(|| TimeDelta::microseconds(ahead))
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

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn a_correction_moves_the_wall_time_alone_and_does_not_waver() {
        let wall = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let given = Clock::from_fn(move || Moment::new(Duration::from_secs(7), wall));
        let clock = given.correctable();
        assert_eq!((clock.now(), clock.ahead()), (given.now(), None));
        let ahead = TimeDelta::minutes(5);
        clock.correct(ahead.num_microseconds().unwrap(), 400);
        let now = clock.clone().now();
        assert_eq!((now.utc(), now.monotonic()), (wall - ahead, Duration::from_secs(7)));
        clock.correct(ahead.num_microseconds().unwrap() + 300, 400);
        assert_eq!((clock.now(), clock.ahead()), (now, Some(ahead + TimeDelta::microseconds(300))));
        clock.correct(-1000, 400);
        assert_eq!(clock.now().utc(), wall + TimeDelta::milliseconds(1));
        assert_eq!(
            (given.now().utc(), clock.uncorrected().utc()),
            (wall, wall),
            "another system's"
        );
    }
}
