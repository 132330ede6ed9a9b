//! Who hears of one room's members, and when: member lists with a duty cycle.
//!
//! The first change goes out at once, later ones wait for a window that is longer for larger rooms; so
//! n joins in a moment cost a few lists and not n, and sending lists of one room never takes more than
//! a tenth of the time. When a crowd has come and falls quiet, the window ends early, but not twice in
//! one window.

use std::{collections::HashMap, time::Duration};

use actix::prelude::*;
use ahash::RandomState;

use super::{
    Refused,
    frames::{Presences, Touched},
};
use crate::{
    clock::Stopwatch,
    messages::{Dialect, Feed, ForwardMessage, Forwarded},
    model::{ConnectionId, Diff, Snapshot, micros},
};

/// Two member lists of a room are at least this far apart.
const WINDOW: Duration = Duration::from_millis(50);
/// So much further for each listener: a room gets 250 frames a second about who is there, not 20 for
/// each of its listeners.
const PER_LISTENER: Duration = Duration::from_millis(4);
/// But no further than this by their number.
const LONGEST: Duration = Duration::from_millis(500);
/// Sending the lists of a room takes at most one part in this many of the time.
const DUTY: u64 = 10;
/// A room is quiet when nothing has changed for this part of its window.
const QUIET: u32 = 8;
/// A listener that takes no list for this long is too slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a listener of a room knows.
enum Listener {
    /// The room as it was flushed last.
    Current,
    /// Less: it needs the whole state. Since when it has refused to take it, if it has.
    Owed { refused: Option<u64> },
}

/// The listeners of one room.
pub(super) struct Audience {
    listeners: HashMap<ConnectionId, Listener, RandomState>,
    /// The state that every current listener knows.
    flushed: Snapshot,
    /// What may be different since.
    touched: Touched,
    /// Until when the next list waits at least, and at most, in microseconds of the monotonic clock.
    earliest: u64,
    latest: u64,
    /// Until when it may not go out before `latest`.
    patient: u64,
    /// When the room changed last.
    changed: u64,
    /// When the next list is to go out, if it waits.
    pub due: Option<u64>,
}

impl Audience {
    pub fn new(room: Snapshot) -> Self {
        Self {
            listeners: HashMap::default(),
            flushed: room,
            touched: Touched::default(),
            earliest: 0,
            latest: 0,
            patient: 0,
            changed: 0,
            due: None,
        }
    }

    pub fn admit(&mut self, connection: ConnectionId, now: u64) {
        self.listeners.insert(connection, Listener::Owed { refused: None });
        self.changed = now;
    }

    /// Takes a listener out, and says whether it was the last.
    pub fn forget(&mut self, connection: ConnectionId) -> bool {
        self.listeners.remove(&connection);
        self.listeners.is_empty()
    }

    pub fn note(&mut self, diff: &Diff, now: u64) {
        self.touched.note(diff);
        self.changed = now;
    }

    /// When the next list may go out, as things are now.
    pub fn next(&self, now: u64) -> u64 {
        if now >= self.latest {
            return now;
        }
        if now < self.patient {
            return self.latest;
        }
        let quiet = micros(window(self.listeners.len()) / QUIET);
        self.earliest.max(self.changed + quiet).min(self.latest)
    }

    /// Whether somebody needs a state though the room may not change again.
    pub fn owes(&self) -> bool {
        self.listeners.values().any(|listener| matches!(listener, Listener::Owed { .. }))
    }

    pub fn flush<'a>(
        &mut self,
        room: &Snapshot,
        now: u64,
        outlet: impl Fn(ConnectionId) -> Option<(&'a Recipient<ForwardMessage>, Dialect)>,
    ) -> Refused {
        let work = Stopwatch::start();
        let moved = room.version() != self.flushed.version();
        let mut frames = Presences::new(&self.flushed, room, &self.touched);
        let mut refused = Refused::default();
        for (&connection, listener) in &mut self.listeners {
            let since = match listener {
                Listener::Current if !moved => continue,
                Listener::Current => None,
                Listener::Owed { refused } => *refused,
            };
            let Some((forward, dialect)) = outlet(connection) else { continue };
            let current = matches!(listener, Listener::Current);
            let (kind, payload) = match (dialect, current) {
                (Dialect::Raw | Dialect::Json(Feed::None), _) => {
                    *listener = Listener::Current;
                    continue;
                }
                (Dialect::Json(Feed::Full), _) => (Forwarded::State, frames.full()),
                (Dialect::Json(Feed::Count), _) => (Forwarded::State, frames.count()),
                (Dialect::Json(Feed::Diff), false) => (Forwarded::State, frames.state()),
                (Dialect::Json(Feed::Diff), true) => (Forwarded::Diff, frames.diff()),
                (Dialect::Phoenix, false) => (Forwarded::State, frames.phoenix_state()),
                (Dialect::Phoenix, true) => (Forwarded::Diff, frames.phoenix_diff()),
            };
            let message = ForwardMessage { room: room.room().clone(), kind, payload };
            *listener = match forward.try_send(message) {
                Ok(()) => Listener::Current,
                Err(SendError::Closed(_)) => {
                    refused.gone.push(connection);
                    continue;
                }
                Err(SendError::Full(_)) => {
                    let since = since.unwrap_or(now);
                    if now.saturating_sub(since) >= micros(PATIENCE) {
                        refused.slow.push(connection);
                    }
                    Listener::Owed { refused: Some(since) }
                }
            };
        }
        let busy = micros(work.elapsed());
        if now < self.latest {
            self.patient = now + micros(window(self.listeners.len()));
        }
        self.earliest = now + (busy * DUTY).max(micros(WINDOW));
        self.latest = self.earliest.max(now + micros(window(self.listeners.len())));
        let coalesced = room.version().saturating_sub(self.flushed.version() + 1);
        metrics::counter!("presence_changes_coalesced_total").increment(coalesced);
        self.flushed = room.clone();
        self.touched.clear();
        refused
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
    use crate::model::{Info, Moment, RoomName, Rooms};

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
                let next = audience.next(at);
                *due = (next > at).then_some(next);
                if due.is_none() {
                    audience.flush(room, at, |_| None);
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
            audience.admit(id, now);
            audience.note(&diff, now);
            due = due.or(Some(audience.next(now)));
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
