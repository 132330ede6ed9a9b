//! The time of rooms and presences, which only the registry and the actors beside it read; timeouts of
//! sockets, the bus and the log have clocks of their own.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
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
    /// Set for a clock that is moved by hand, and says so.
    followers: Option<ClockFollowers>,
}

/// A clock that is moved by hand has been moved, or is about to be: whatever is due now is to happen.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct ClockMoved {
    /// Dropped when that has happened.
    _done: mpsc::Sender<()>,
}

/// Who is told when a clock is moved. A clone has the same.
#[derive(Clone, Default)]
pub(crate) struct ClockFollowers(Arc<Mutex<Vec<Recipient<ClockMoved>>>>);

impl ClockFollowers {
    /// How long they may take, so that nothing is blocked for good.
    #[cfg(any(test, feature = "testing"))]
    const MAX_WAIT: Duration = Duration::from_secs(10);

    fn add(&self, follower: Recipient<ClockMoved>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(follower);
    }

    /// Has them do what is due, and blocks this thread until they have. Theirs are others.
    #[cfg(any(test, feature = "testing"))]
    pub fn tell(&self) {
        let (done, all_done) = mpsc::channel();
        let mut followers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(Recipient::connected);
        for follower in &*followers {
            follower.do_send(ClockMoved { _done: done.clone() });
        }
        drop((followers, done));
        // Nothing is sent: it ends when all have dropped it.
        let _ = all_done.recv_timeout(Self::MAX_WAIT);
    }
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
        Self { read: Arc::new(now), correction: Correction::none(), followers: None }
    }

    /// The same clock, which is moved by hand and says so to these.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn moved_by_hand(self, followers: ClockFollowers) -> Self {
        Self { followers: Some(followers), ..self }
    }

    /// Has an actor of another thread told when the clock is moved, if it is one that is moved by hand. Otherwise
    /// timers have to look at it.
    pub(crate) fn follow(&self, follower: impl FnOnce() -> Recipient<ClockMoved>) {
        if let Some(followers) = &self.followers {
            followers.add(follower());
        }
    }

    /// Whether the clock says itself when it was moved.
    pub(crate) fn is_moved_by_hand(&self) -> bool {
        self.followers.is_some()
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
        let followers = self.followers.clone();
        Self { read: Arc::clone(&self.read), correction: Correction::none(), followers }
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
