//! Who hears of one room's members, and when: member lists with a duty cycle.
//!
//! The first change goes out at once, later ones wait for a window that is longer for larger rooms; so
//! n joins in a moment cost a few lists and not n, and sending lists of one room never takes more than
//! a tenth of the time. When a crowd has come and falls quiet, the window ends early, but not twice in
//! one window.

use std::time::Duration;

use super::{
    courier::Report,
    frames::{Presences, Touched},
};
use crate::model::{Diff, Snapshot, micros};

/// Two member lists of a room are at least this far apart.
const WINDOW: Duration = Duration::from_millis(50);
/// So much further for each listener: a room gets 250 frames a second about who is there, not 20 for
/// each of its listeners.
const PER_LISTENER: Duration = Duration::from_millis(4);
/// But no further than this by their number.
const LONGEST: Duration = Duration::from_millis(500);
/// Sending the lists of a room takes at most one part in this many of the time.
const DUTY: u32 = 10;
/// A room is quiet when nothing has changed for this part of its window.
const QUIET: u32 = 8;

/// A list waits for the one before to be handed out everywhere, but no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// The listeners of one room.
pub(super) struct Audience {
    pub listeners: usize,
    /// The state that was listed last.
    listed: Snapshot,
    /// What may be different since.
    touched: Touched,
    /// Some listener needs the whole state.
    owes: bool,
    /// How many threads have not handed out the last list yet.
    away: usize,
    /// When it went out, in microseconds of the monotonic clock, as all times here.
    sent: u64,
    /// Until when the next list waits at least, and at most.
    earliest: u64,
    latest: u64,
    /// Until when it may not go out before `latest`.
    patient: u64,
    /// When the room changed last, or could again.
    changed: u64,
    /// When the next list is to go out, if it waits.
    pub due: Option<u64>,
}

impl Audience {
    pub fn new(room: Snapshot) -> Self {
        Self {
            listeners: 0,
            listed: room,
            touched: Touched::default(),
            owes: false,
            away: 0,
            sent: 0,
            earliest: 0,
            latest: 0,
            patient: 0,
            changed: 0,
            due: None,
        }
    }

    /// Somebody needs the whole state.
    pub fn admit(&mut self, now: u64) {
        self.owes = true;
        self.changed = now;
    }

    pub fn note(&mut self, diff: &Diff, now: u64) {
        self.touched.note(diff);
        self.changed = now;
    }

    /// When the next list may go out, as things are now, if there is anything to tell.
    pub fn next(&self, now: u64) -> Option<u64> {
        if !self.owes && self.touched.is_empty() {
            return None;
        }
        let next = if now >= self.latest {
            now
        } else if now < self.patient {
            self.latest
        } else {
            let quiet = micros(window(self.listeners) / QUIET);
            self.earliest.max(self.changed + quiet).min(self.latest)
        };
        // A thread that stands still holds up the others a little, and not for ever.
        let away = if self.away > 0 { self.sent + micros(PATIENCE) } else { 0 };
        Some(next.max(away).max(now))
    }

    /// Makes the next list, for so many threads.
    pub fn list(&mut self, room: &Snapshot, threads: usize, now: u64) -> Presences {
        let coalesced = room.version().saturating_sub(self.listed.version() + 1);
        metrics::counter!("presence_changes_coalesced_total").increment(coalesced);
        let window = micros(window(self.listeners));
        if now < self.latest {
            self.patient = now + window;
        }
        (self.owes, self.away, self.sent) = (false, threads, now);
        self.earliest = now + micros(WINDOW);
        self.latest = self.earliest.max(now + window);
        let listed = std::mem::replace(&mut self.listed, room.clone());
        Presences::new(listed, room.clone(), std::mem::take(&mut self.touched))
    }

    /// A thread has handed out the list, and may have taken no newcomers meanwhile.
    pub fn returned(&mut self, report: &Report, now: u64) {
        self.away = self.away.saturating_sub(1);
        self.changed = self.changed.max(now);
        self.owes |= report.owes;
        self.earliest = self.earliest.max(self.sent + micros(report.busy.saturating_mul(DUTY)));
        self.latest = self.latest.max(self.earliest);
    }
}

/// How long the next list waits for the number of listeners.
fn window(listeners: usize) -> Duration {
    let listeners = u32::try_from(listeners).unwrap_or(u32::MAX);
    PER_LISTENER.saturating_mul(listeners).clamp(WINDOW, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ConnectionId, Info, Moment, RoomName, Rooms};

    /// So many join, evenly: how many lists that takes, and how long after the last join the last one
    /// goes out.
    fn crowd(size: u64, per_second: u64) -> (usize, Duration) {
        let room = RoomName::new("lobby").unwrap();
        let mut rooms = Rooms::default();
        let mut audience = Audience::new(rooms.snapshot(&room));
        let (mut lists, mut due, mut last) = (0, None, 0);
        let mut flush = |audience: &mut Audience, room: &Snapshot, due: &mut Option<u64>, until| {
            while let Some(at) = *due
                && at <= until
            {
                *due = audience.next(at).filter(|next| *next > at);
                if due.is_none() {
                    audience.list(room, 1, at);
                    audience.returned(&Report::default(), at);
                    lists += 1;
                    last = at;
                }
            }
        };
        for n in 0..size {
            let now = n * 1_000_000 / per_second;
            flush(&mut audience, &rooms.snapshot(&room), &mut due, now.saturating_sub(1));
            let moment = Moment { monotonic: now, wall: 0 };
            let id = ConnectionId::from_u128(n.into());
            let diff = rooms.join(&room, id, None, Info::EMPTY, moment).unwrap().unwrap();
            audience.listeners += 1;
            audience.admit(now);
            audience.note(&diff, now);
            due = due.or(audience.next(now));
            flush(&mut audience, &rooms.snapshot(&room), &mut due, now);
        }
        flush(&mut audience, &rooms.snapshot(&room), &mut due, u64::MAX);
        let end = (size - 1) * 1_000_000 / per_second;
        (lists, Duration::from_micros(last - end))
    }

    #[test]
    fn of_a_crowd_that_comes_at_once_the_first_hears_in_few_lists() {
        for (size, per_second) in
            [(300, 60), (300, 100), (300, 500), (1000, 200), (1000, 1000), (1000, 10_000)]
        {
            let (lists, _) = crowd(size, per_second);
            assert!(lists < 25, "{lists} lists at {per_second} joins a second");
        }
    }

    #[test]
    fn when_a_crowd_has_come_everybody_hears_of_everybody_soon() {
        for (size, per_second) in [(1000, 5000), (1000, 10_000), (300, 1000)] {
            let (_, after) = crowd(size, per_second);
            let quiet = LONGEST / QUIET;
            assert!(after <= quiet, "{after:?} after the last of {per_second} joins a second");
        }
    }

    #[test]
    fn a_trickle_into_a_large_room_costs_few_lists_all_the_same() {
        let (before, _) = crowd(500, 10_000);
        let (lists, _) = crowd(600, 10);
        // A minute: two lists in a window and a quiet moment.
        assert!(lists < before + 60 * 4 * 2, "{lists} lists in a minute");
    }

    #[test]
    fn a_small_room_hears_at_the_pace_of_the_shortest_window_and_a_large_one_soon_enough() {
        assert_eq!((window(0), window(12), window(13)), (WINDOW, WINDOW, PER_LISTENER * 13));
        assert_eq!(window(usize::MAX), LONGEST);
    }
}
