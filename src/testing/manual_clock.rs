//! The clock of a test.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    clock::{Clock, ClockFollowers},
    model::Moment,
};

/// A clock that stands still until it is moved. A clone is the same clock.
///
/// The presence systems that have it follow when it is [advanced](Self::advance): presences that are silent for too
/// long are pruned, those whose grace is over end, and lists that are due are sent. Nothing has to be waited for:
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::{
///     Cause, Connection, PresenceChanged, PresenceConfig, RoomFilter, RoomName,
///     testing::{Heard, ManualClock, Probe},
/// };
///
/// # actix::System::new().block_on(async {
/// let clock = ManualClock::new();
/// let presence = PresenceConfig::new("sqlite::memory:").clock(clock.clock()).start()?;
/// let (observer, mut events) = Probe::<PresenceChanged>::new();
/// presence.subscribe(RoomFilter::Any, observer.recipient()).await?;
/// let me = Connection::new(presence.registry());
/// let (session, _frames) = Probe::<Heard>::new();
/// presence.registry().send(me.join(RoomName::new("lobby")?, session)).await??;
///
/// clock.advance(Duration::from_secs(61));
/// let events = events.settled(&presence).await;
/// assert_eq!(events.last().and_then(PresenceChanged::cause), Some(Cause::Expired));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
///
/// What a session does by timers of its own, such as pings, and what nodes tell each other about their leases, goes
/// by real time.
#[derive(Clone)]
pub struct ManualClock {
    moment: Arc<Mutex<Moment>>,
    followers: ClockFollowers,
}

impl ManualClock {
    /// A clock at the start of 2026.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two clocks are never equal")]
    pub fn new() -> Self {
        let wall = DateTime::<Utc>::from_timestamp(1_767_225_600, 0).unwrap_or_default();
        let moment = Arc::new(Mutex::new(Moment::new(Duration::from_secs(1), wall)));
        Self { moment, followers: ClockFollowers::default() }
    }

    /// The clock for [`PresenceConfig::clock`](crate::PresenceConfig::clock).
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock_alone().moved_by_hand(self.followers.clone())
    }

    /// The same for a system that is not told when it is moved: there a test sends
    /// [`PrunePresences`](crate::PrunePresences) itself, to see the report.
    #[must_use]
    pub fn clock_alone(&self) -> Clock {
        let moment = self.moment.clone();
        Clock::from_fn(move || *moment.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The wall time it shows.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.moment.lock().unwrap_or_else(PoisonError::into_inner).utc()
    }

    /// Moves both clocks forward, in one step. What this thread has sent to a registry before is handled at the
    /// earlier time, and what is due at the later time has happened when this returns.
    ///
    /// It blocks the thread for that, which takes no longer than the work; not to be called from `authorize`,
    /// which runs on the thread that it waits for.
    pub fn advance(&self, by: Duration) {
        self.followers.tell();
        self.change(|moment| Moment::new(moment.monotonic() + by, moment.utc() + by));
        self.followers.tell();
    }

    /// Adjusts the wall clock, as an administrator would; the monotonic clock stays.
    pub fn set_wall(&self, by: TimeDelta) {
        self.change(|moment| Moment::new(moment.monotonic(), moment.utc() + by));
    }

    fn change(&self, to: impl FnOnce(Moment) -> Moment) {
        let mut moment = self.moment.lock().unwrap_or_else(PoisonError::into_inner);
        *moment = to(*moment);
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManualClock({})", self.now())
    }
}
