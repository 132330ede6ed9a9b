//! How often lists of a room are sent: at once if possible, otherwise as often as a tenth of a thread's time
//! allows.
//!
//! The first change is sent at once, later ones after a window of 50 ms or ten times the thread time that
//! the lists have cost, whichever is later. When a crowd has come and the room falls quiet, one list may be
//! sent early; its cost is added to the next wait.

use std::time::Duration;

use smallvec::SmallVec;

use super::dispatchers::DispatcherId;
use crate::model::micros;

/// Lists are at least this far apart, unless a message waits for one.
const LIST_INTERVAL: Duration = Duration::from_millis(50);
/// Lists of a room take at most one part in this many of a thread's time.
const SHARE: u32 = 10;
/// How long the cost of earlier lists delays one at most.
const MAX_DEBT: Duration = Duration::from_secs(1);
/// A room is quiet when nothing has changed for one part in this many of the wait.
const QUIET_SHARE: u64 = 8;
/// How long a list waits for all threads to hand out the one before.
const HAND_OUT_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest cost of a list that counts, so that the next one follows within three seconds, whatever is
/// measured.
const MAX_COST: Duration = Duration::from_millis(300);
/// How long a message waits at most until its sender's join has been listed.
const MAX_MESSAGE_WAIT: Duration = Duration::from_secs(1);

/// All times are in microseconds of the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    sent: u64,
    /// How many threads have not handed it out yet.
    pending: usize,
    /// The thread time that it has cost so far.
    costs: SmallVec<[(DispatcherId, u64); 2]>,
    /// Until when the lists before it have used up their share.
    used_before: u64,
    /// Whether the last list was sent early.
    hurried: bool,
    /// When the room changed last, or newcomers could be handled again.
    changed: u64,
}

impl Throttle {
    pub fn note_change(&mut self, now: u64) {
        self.changed = now;
    }

    /// The thread time of the last list on the busiest thread so far; lists that were sent together count
    /// together.
    fn cost(&self) -> u64 {
        self.costs.iter().map(|(_, cost)| *cost).max().unwrap_or(0)
    }

    /// Until when the room's share of a thread is used up. The delay by earlier lists is bounded, so that a
    /// newcomer after a crowd need not wait for all of the crowd's lists.
    fn used_up(&self) -> u64 {
        let cost = self.cost() * u64::from(SHARE);
        let all = self.used_before + cost;
        all.min(self.sent + cost.max(micros(MAX_DEBT)))
    }

    /// Until when a list waits for the one before to be handed out.
    fn hand_out_deadline(&self) -> u64 {
        if self.pending > 0 { self.sent + micros(HAND_OUT_TIMEOUT) } else { 0 }
    }

    /// When the next list may be sent, as things are at `now`: earlier if a `crowd` has come and the room is
    /// quiet.
    pub fn next(&self, crowd: bool, now: u64) -> u64 {
        let earliest = if self.sent == 0 { 0 } else { self.sent + micros(LIST_INTERVAL) };
        let latest = earliest.max(self.used_up());
        let next = if now >= latest || self.hurried || !crowd {
            latest
        } else {
            let quiet = (latest - self.sent) / QUIET_SHARE;
            earliest.max(self.changed + quiet).min(latest)
        };
        next.max(self.hand_out_deadline()).max(now)
    }

    /// When the list is to be sent that a message has waited for since `since`.
    pub fn next_for_message(&self, since: u64, now: u64) -> u64 {
        let affordable = self.sent + self.cost() * u64::from(SHARE);
        affordable.max(self.hand_out_deadline()).min(since + micros(MAX_MESSAGE_WAIT)).max(now)
    }

    /// A list is sent to so many threads.
    pub fn sent(&mut self, threads: usize, now: u64) {
        let used_up = self.used_up();
        self.hurried = now < used_up;
        self.used_before = used_up.max(now);
        (self.sent, self.pending) = (now.max(1), threads);
        self.costs.clear();
    }

    /// A thread has handed out the last list; it may have handled no newcomers meanwhile.
    pub fn handed_out(&mut self, dispatcher: DispatcherId, busy: Duration, now: u64) {
        self.pending = self.pending.saturating_sub(1);
        self.changed = self.changed.max(now);
        let cost = micros(busy.min(MAX_COST));
        match self.costs.iter_mut().find(|(known, _)| *known == dispatcher) {
            Some((_, before)) => *before += cost,
            None => self.costs.push((dispatcher, cost)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members join evenly, and a list costs so much for each member. Returns the number of lists, how long
    /// after the last join the last one is sent, and the cost of all.
    fn crowd(size: u64, per_second: u64, each: Duration) -> (usize, Duration, Duration) {
        let (mut throttle, mut lists, mut changed) = (Throttle::default(), 0, false);
        let (mut last, mut busy) = (0, Duration::ZERO);
        let end = (size - 1) * 1_000_000 / per_second;
        let mut now = 1;
        let mut joined = 0;
        while joined < size || changed {
            let next_join =
                if joined < size { 1 + joined * 1_000_000 / per_second } else { u64::MAX };
            let next_list = if changed { throttle.next(true, now) } else { u64::MAX };
            now = now.max(next_join.min(next_list));
            if next_join <= next_list {
                joined += 1;
                changed = true;
                throttle.note_change(now);
                continue;
            }
            throttle.sent(1, now);
            let cost = each * u32::try_from(joined).unwrap();
            (last, changed) = (now, false);
            lists += 1;
            busy += cost;
            now += micros(cost);
            throttle.handed_out(DispatcherId::default(), cost, now);
        }
        (lists, Duration::from_micros(last.saturating_sub(end)), busy)
    }

    const FRAME: Duration = Duration::from_micros(10);

    #[test]
    fn a_crowd_that_joins_at_once_causes_few_lists() {
        for (size, per_second) in [(300, 500), (1000, 1000), (1000, 5000), (1000, 10_000)] {
            let (lists, ..) = crowd(size, per_second, FRAME);
            assert!(lists <= 20, "{lists} lists at {per_second} joins a second");
        }
    }

    #[test]
    fn the_list_of_a_whole_crowd_is_sent_soon_after_its_last_join() {
        for (size, per_second) in [(1000, 5000), (1000, 10_000), (300, 1000)] {
            let (_, after, _) = crowd(size, per_second, FRAME);
            assert!(after <= Duration::from_millis(60), "{after:?} at {per_second} joins a second");
        }
    }

    #[test]
    fn a_trickle_costs_a_tenth_of_a_thread_however_large_the_room() {
        for each in [5, 50, 250].map(Duration::from_micros) {
            let seconds = 60;
            let mut throttle = Throttle::default();
            let (mut busy, mut now, cost) = (Duration::ZERO, 1, each * 1000);
            for change in 0..seconds * 50 {
                let at = 1 + change * 20_000;
                now = now.max(at);
                throttle.note_change(at);
                if throttle.next(false, now) <= now {
                    throttle.sent(1, now);
                    busy += cost;
                    now += micros(cost);
                    throttle.handed_out(DispatcherId::default(), cost, now);
                }
            }
            let share = busy.as_secs_f64() / seconds as f64;
            assert!(share <= 0.1 + 2.0 * cost.as_secs_f64() / seconds as f64, "{each:?}: {share}");
        }
    }

    #[test]
    fn the_first_change_is_sent_at_once_and_later_ones_after_the_window() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.next(false, 7), 7);
        throttle.sent(1, 7);
        throttle.handed_out(DispatcherId::default(), Duration::from_micros(100), 10);
        throttle.note_change(11);
        assert_eq!(throttle.next(false, 11), 7 + micros(LIST_INTERVAL));
    }

    #[test]
    fn a_message_waits_for_the_cost_of_the_last_list_but_not_for_the_window() {
        let mut throttle = Throttle::default();
        throttle.sent(2, 1000);
        let [one, other] = [1, 2].map(DispatcherId::numbered);
        throttle.handed_out(one, Duration::from_micros(300), 1300);
        let deadline = 1000 + micros(HAND_OUT_TIMEOUT);
        assert_eq!(throttle.next_for_message(1300, 1300), deadline, "one is pending");
        throttle.handed_out(other, Duration::from_micros(500), 1500);
        assert_eq!(throttle.next_for_message(1300, 1500), 1000 + 5000);
        assert_eq!(throttle.next_for_message(1300, 9000), 9000);
        throttle.handed_out(DispatcherId::default(), Duration::from_secs(1), 9000);
        assert_eq!(throttle.next_for_message(5000, 9000), 5000 + micros(MAX_MESSAGE_WAIT));
    }
}
