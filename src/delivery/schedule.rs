//! When a room's listeners are told of changes: at once while there is time, and otherwise as often as a
//! tenth of a thread allows.
//!
//! The first change goes out at once, later ones wait for a window of 50 ms, or until ten times the
//! thread time that the lists have cost is over, whichever is later. When a crowd has come and the room
//! falls quiet, one list may go out before that; its cost is added to what is to be waited for.

use std::time::Duration;

use smallvec::SmallVec;

use super::couriers::Desk;
use crate::model::micros;

/// Two lists for everybody are at least this far apart, unless a message waits for one.
const LIST_INTERVAL: Duration = Duration::from_millis(50);
/// The lists of a room take at most one part in this many of a thread's time.
const SHARE: u32 = 10;
/// How long earlier lists delay one at most.
const MAX_DEBT: Duration = Duration::from_secs(1);
/// A room is quiet when nothing has changed for this part of the time between two lists.
const QUIET_SHARE: u64 = 8;
/// A list waits for the one before to be handed out everywhere, but no longer than this.
const HAND_OUT_TIMEOUT: Duration = Duration::from_secs(1);
/// What a list counts for at most: so nobody waits for longer than three seconds, also after the lists of a
/// crowd of many thousands, or where the measurement errs.
const MAX_COST: Duration = Duration::from_millis(300);
/// For how long a message waits at most until its sender's coming has been told.
const MESSAGE_WAIT: Duration = Duration::from_secs(1);

/// All times are in microseconds of the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// When the last list went out.
    sent: u64,
    /// How many threads have not handed it out yet.
    away: usize,
    /// The time that it has taken so far, by thread.
    costs: SmallVec<[(Desk, u64); 2]>,
    /// Until when the share of the lists before is used up.
    used_before: u64,
    /// Whether the last list went out before its time.
    hurried: bool,
    /// When the room changed last, or could again.
    changed: u64,
}

impl Schedule {
    /// Something has changed.
    pub fn note(&mut self, now: u64) {
        self.changed = now;
    }

    /// The time that the last list has taken on the busiest thread so far; several lists that went out
    /// together count together.
    fn cost(&self) -> u64 {
        self.costs.iter().map(|(_, cost)| *cost).max().unwrap_or(0)
    }

    /// Until when the room's share of a thread is used up. What earlier lists have used delays the next one
    /// by no more than a second, so that who comes after a crowd need not wait for the crowd's lists.
    fn used_up(&self) -> u64 {
        let cost = self.cost() * u64::from(SHARE);
        let all = self.used_before + cost;
        all.min(self.sent + cost.max(micros(MAX_DEBT)))
    }

    /// Until when a list waits for the one before to be handed out.
    fn handed_out(&self) -> u64 {
        if self.away > 0 { self.sent + micros(HAND_OUT_TIMEOUT) } else { 0 }
    }

    /// When the next list may go out, as things are at `now`: after a `crowd` has come earlier than after a
    /// few changes.
    pub fn next(&self, crowd: bool, now: u64) -> u64 {
        let earliest = if self.sent == 0 { 0 } else { self.sent + micros(LIST_INTERVAL) };
        let latest = earliest.max(self.used_up());
        let next = if now >= latest || self.hurried || !crowd {
            latest
        } else {
            let quiet = (latest - self.sent) / QUIET_SHARE;
            earliest.max(self.changed + quiet).min(latest)
        };
        next.max(self.handed_out()).max(now)
    }

    /// When the list has to go out that a message has waited for since `since`.
    pub fn next_for_message(&self, since: u64, now: u64) -> u64 {
        let affordable = self.sent + self.cost() * u64::from(SHARE);
        affordable.max(self.handed_out()).min(since + micros(MESSAGE_WAIT)).max(now)
    }

    /// A list goes out to so many threads.
    pub fn sent(&mut self, threads: usize, now: u64) {
        let used_up = self.used_up();
        self.hurried = now < used_up;
        self.used_before = used_up.max(now);
        (self.sent, self.away) = (now.max(1), threads);
        self.costs.clear();
    }

    /// A thread has handed out the last list, and may have taken no newcomers meanwhile.
    pub fn returned(&mut self, desk: Desk, busy: Duration, now: u64) {
        self.away = self.away.saturating_sub(1);
        self.changed = self.changed.max(now);
        let cost = micros(busy.min(MAX_COST));
        match self.costs.iter_mut().find(|(known, _)| *known == desk) {
            Some((_, before)) => *before += cost,
            None => self.costs.push((desk, cost)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many join, evenly, and handing out a list takes so long for each who is there: how many lists that
    /// takes, how long after the last join the last one goes out, and how long all took together.
    fn crowd(size: u64, per_second: u64, each: Duration) -> (usize, Duration, Duration) {
        let (mut schedule, mut lists, mut changed) = (Schedule::default(), 0, false);
        let (mut last, mut busy) = (0, Duration::ZERO);
        let end = (size - 1) * 1_000_000 / per_second;
        let mut now = 1;
        let mut come = 0;
        while come < size || changed {
            let next_join = if come < size { 1 + come * 1_000_000 / per_second } else { u64::MAX };
            let next_list = if changed { schedule.next(true, now) } else { u64::MAX };
            now = now.max(next_join.min(next_list));
            if next_join <= next_list {
                come += 1;
                changed = true;
                schedule.note(now);
                continue;
            }
            schedule.sent(1, now);
            let cost = each * u32::try_from(come).unwrap();
            (last, changed) = (now, false);
            lists += 1;
            busy += cost;
            now += micros(cost);
            schedule.returned(Desk::default(), cost, now);
        }
        (lists, Duration::from_micros(last.saturating_sub(end)), busy)
    }

    const FRAME: Duration = Duration::from_micros(10);

    #[test]
    fn of_a_crowd_that_comes_at_once_the_first_hears_in_few_lists() {
        for (size, per_second) in [(300, 500), (1000, 1000), (1000, 5000), (1000, 10_000)] {
            let (lists, ..) = crowd(size, per_second, FRAME);
            assert!(lists <= 20, "{lists} lists at {per_second} joins a second");
        }
    }

    #[test]
    fn when_a_crowd_has_come_everybody_hears_of_everybody_soon() {
        for (size, per_second) in [(1000, 5000), (1000, 10_000), (300, 1000)] {
            let (_, after, _) = crowd(size, per_second, FRAME);
            assert!(after <= Duration::from_millis(60), "{after:?} at {per_second} joins a second");
        }
    }

    #[test]
    fn a_trickle_costs_a_tenth_of_a_thread_however_large_the_room() {
        for each in [5, 50, 250].map(Duration::from_micros) {
            let seconds = 60;
            let mut schedule = Schedule::default();
            let (mut busy, mut now, cost) = (Duration::ZERO, 1, each * 1000);
            for change in 0..seconds * 50 {
                let at = 1 + change * 20_000;
                now = now.max(at);
                schedule.note(at);
                if schedule.next(false, now) <= now {
                    schedule.sent(1, now);
                    busy += cost;
                    now += micros(cost);
                    schedule.returned(Desk::default(), cost, now);
                }
            }
            let share = busy.as_secs_f64() / seconds as f64;
            assert!(share <= 0.1 + 2.0 * cost.as_secs_f64() / seconds as f64, "{each:?}: {share}");
        }
    }

    #[test]
    fn a_small_room_hears_the_first_change_at_once_and_later_ones_by_the_window() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next(false, 7), 7);
        schedule.sent(1, 7);
        schedule.returned(Desk::default(), Duration::from_micros(100), 10);
        schedule.note(11);
        assert_eq!(schedule.next(false, 11), 7 + micros(LIST_INTERVAL));
    }

    #[test]
    fn a_message_waits_for_what_the_last_list_has_cost_and_for_no_window() {
        let mut schedule = Schedule::default();
        schedule.sent(2, 1000);
        let [one, other] = [1, 2].map(Desk::numbered);
        schedule.returned(one, Duration::from_micros(300), 1300);
        assert_eq!(
            schedule.next_for_message(1300, 1300),
            1000 + micros(HAND_OUT_TIMEOUT),
            "one is away"
        );
        schedule.returned(other, Duration::from_micros(500), 1500);
        assert_eq!(schedule.next_for_message(1300, 1500), 1000 + 5000);
        assert_eq!(schedule.next_for_message(1300, 9000), 9000);
        schedule.returned(Desk::default(), Duration::from_secs(1), 9000);
        assert_eq!(schedule.next_for_message(5000, 9000), 5000 + micros(MESSAGE_WAIT));
    }
}
