//! Who hears of one room's members, and when: member lists with a duty cycle.
//!
//! The first change goes out at once, later ones wait for a window; so n joins in a moment cost a few
//! lists and not n, and sending lists of one room never takes more than a tenth of the time.

use std::{collections::HashMap, time::Duration};

use actix::prelude::*;
use ahash::RandomState;
use bytestring::ByteString;

use super::Refused;
use crate::{
    clock::Stopwatch,
    messages::{Feed, ForwardMessage},
    model::{Cause, ConnectionId, Diff, Snapshot, UserId},
    wire::json,
};

/// Two member lists of a room are at least this far apart.
const WINDOW: Duration = Duration::from_millis(50);
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
    /// Users whose entry may have changed since, with the cause of the last leave.
    touched: HashMap<UserId, Cause, RandomState>,
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
            touched: HashMap::default(),
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
        for user in diff.users() {
            self.touched.entry(user.clone()).or_insert(Cause::Left);
        }
        for gone in &diff.offline {
            self.touched.insert(gone.user.clone(), gone.cause);
        }
    }

    /// Whether somebody needs a state though the room may not change again.
    pub fn owes(&self) -> bool {
        self.listeners.values().any(|listener| matches!(listener, Listener::Owed { .. }))
    }

    pub fn flush<'a>(
        &mut self,
        room: &Snapshot,
        now: u64,
        outlet: impl Fn(ConnectionId) -> Option<(&'a Recipient<ForwardMessage>, Feed)>,
    ) -> Refused {
        let work = Stopwatch::start();
        let moved = room.version() != self.flushed.version();
        let mut frames = Frames::new(&self.flushed, room, &self.touched);
        let mut refused = Refused::default();
        for (&connection, listener) in &mut self.listeners {
            let since = match listener {
                Listener::Current if !moved => continue,
                Listener::Current => None,
                Listener::Owed { refused } => *refused,
            };
            let Some((forward, feed)) = outlet(connection) else { continue };
            let payload = match (feed, &listener) {
                (Feed::None, _) => continue,
                (Feed::Full, _) => frames.full(),
                (Feed::Count, _) => frames.count(),
                (Feed::Diff, Listener::Current) => frames.diff(),
                (Feed::Diff, Listener::Owed { .. }) => frames.state(),
            };
            let room = room.room().clone();
            *listener = match forward.try_send(ForwardMessage { room, payload }) {
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
        self.not_before = now + (busy * DUTY).max(micros(WINDOW));
        self.flushed = room.clone();
        self.touched.clear();
        metrics::counter!("presence_lists_sent_total").increment(1);
        refused
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The frames of one flush, each encoded when first asked for.
struct Frames<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    touched: &'a HashMap<UserId, Cause, RandomState>,
    full: Option<ByteString>,
    state: Option<ByteString>,
    diff: Option<ByteString>,
    count: Option<ByteString>,
}

impl<'a> Frames<'a> {
    fn new(
        before: &'a Snapshot,
        after: &'a Snapshot,
        touched: &'a HashMap<UserId, Cause, RandomState>,
    ) -> Self {
        Self { before, after, touched, full: None, state: None, diff: None, count: None }
    }

    fn full(&mut self) -> ByteString {
        self.full.get_or_insert_with(|| self.after.to_json()).clone()
    }

    fn state(&mut self) -> ByteString {
        self.state.get_or_insert_with(|| json::presence_state(self.after)).clone()
    }

    fn count(&mut self) -> ByteString {
        self.count.get_or_insert_with(|| json::presence_count(self.after)).clone()
    }

    fn diff(&mut self) -> ByteString {
        let changed = || self.touched.iter().map(|(user, cause)| (user, *cause));
        self.diff
            .get_or_insert_with(|| json::presence_diff(self.before, self.after, changed()))
            .clone()
    }
}
