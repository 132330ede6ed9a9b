//! Who hears of one room's members, and when: member lists with a duty cycle.
//!
//! The first change goes out at once, later ones wait for a window that is longer for larger rooms; so
//! n joins in a moment cost a few lists and not n, and sending lists of one room never takes more than
//! a tenth of the time.

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
    /// When the next list may go out, in microseconds of the monotonic clock.
    pub not_before: u64,
    /// When it will, if it waits.
    pub due: Option<u64>,
}

impl Audience {
    pub fn new(room: Snapshot) -> Self {
        Self {
            listeners: HashMap::default(),
            flushed: room,
            touched: Touched::default(),
            not_before: 0,
            due: None,
        }
    }

    pub fn admit(&mut self, connection: ConnectionId) {
        self.listeners.insert(connection, Listener::Owed { refused: None });
    }

    /// Takes a listener out, and says whether it was the last.
    pub fn forget(&mut self, connection: ConnectionId) -> bool {
        self.listeners.remove(&connection);
        self.listeners.is_empty()
    }

    pub fn note(&mut self, diff: &Diff) {
        self.touched.note(diff);
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
        self.not_before = now + (busy * DUTY).max(micros(window(self.listeners.len())));
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

    #[test]
    fn of_a_crowd_that_comes_at_once_the_first_hears_in_few_lists() {
        for per_second in [60, 100, 200, 500, 1000, 10_000] {
            let joins = (0..300).map(|n| Duration::from_secs(n) / per_second);
            let (mut lists, mut not_before) = (0, Duration::ZERO);
            for (listeners, at) in joins.enumerate() {
                if at >= not_before {
                    lists += 1;
                    not_before = at + window(listeners + 1);
                }
            }
            // And the last list, of all.
            assert!(lists < 25, "{lists} lists at {per_second} joins a second");
        }
    }

    #[test]
    fn a_small_room_hears_at_the_pace_of_the_shortest_window_and_a_large_one_soon_enough() {
        assert_eq!((window(0), window(12), window(13)), (WINDOW, WINDOW, PER_LISTENER * 13));
        assert_eq!(window(usize::MAX), LONGEST);
    }
}
