//! How much waits for one connection: frames that were accepted for it, and that its socket has not
//! taken yet.
//!
//! A mailbox is bounded in frames, which may be large. So each frame that is delivered carries a
//! [`Reservation`] of its bytes, which ends when the frame is dropped, wherever it waited.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

/// The bytes that may wait for a connection, unless its session asks for more: see
/// [`backlog_limit`].
pub(crate) const DEFAULT_BACKLOG_LIMIT: usize = 1024 * 1024;

/// How many bytes may wait for a connection whose own frames have at most this size.
pub(crate) fn backlog_limit(max_frame_size: usize) -> usize {
    max_frame_size.saturating_mul(2).max(DEFAULT_BACKLOG_LIMIT)
}

/// What waits for one connection; shared by its dispatcher, which adds, and the frames, which subtract.
#[derive(Debug)]
pub(crate) struct Backlog {
    limit: usize,
    /// Bytes of messages, diffs and counts.
    bytes: AtomicUsize,
    /// Whether a whole state waits, of which there is one at most.
    state: AtomicBool,
}

/// A frame's part of a [`Backlog`], given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    backlog: Arc<Backlog>,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Bytes(usize),
    State,
}

impl Backlog {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, bytes: AtomicUsize::new(0), state: AtomicBool::new(false) })
    }

    /// Room for a frame of so many bytes; a frame larger than the limit has the backlog for itself.
    // Only the dispatcher of the connection reserves, so nothing is added between look and take.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let waiting = self.bytes.load(Relaxed);
        if waiting > 0 && waiting.saturating_add(bytes) > self.limit {
            return None;
        }
        self.bytes.fetch_add(bytes, Relaxed);
        Some(Reservation { backlog: Arc::clone(self), part: Part::Bytes(bytes) })
    }

    /// The place of a whole state, if none waits already.
    pub fn reserve_state(self: &Arc<Self>) -> Option<Reservation> {
        let taken = self.state.swap(true, Relaxed);
        (!taken).then(|| Reservation { backlog: Arc::clone(self), part: Part::State })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match self.part {
            Part::Bytes(bytes) => drop(self.backlog.bytes.fetch_sub(bytes, Relaxed)),
            Part::State => self.backlog.state.store(false, Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_find_room_up_to_the_limit_and_again_when_others_are_gone() {
        let backlog = Backlog::new(100);
        let first = backlog.reserve(60).unwrap();
        let second = backlog.reserve(40).unwrap();
        assert!(backlog.reserve(1).is_none());
        drop(first);
        assert!(backlog.reserve(61).is_none());
        assert!(backlog.reserve(60).is_some());
        drop(second);
    }

    #[test]
    fn a_frame_over_the_limit_is_taken_when_nothing_else_waits() {
        let backlog = Backlog::new(100);
        let large = backlog.reserve(1000).unwrap();
        assert!(backlog.reserve(1).is_none());
        drop(large);
        let _small = backlog.reserve(1).unwrap();
        assert!(backlog.reserve(1000).is_none());
    }

    #[test]
    fn one_state_waits_at_most_whatever_else_does() {
        let backlog = Backlog::new(100);
        let (_frame, state) = (backlog.reserve(100).unwrap(), backlog.reserve_state().unwrap());
        assert!(backlog.reserve_state().is_none());
        drop(state);
        assert!(backlog.reserve_state().is_some());
    }
}
