//! The backlog of a connection: the frames sent to it that its socket has not taken yet, wherever they wait.
//!
//! A mailbox is bounded in frames, which may be large. So each delivered frame carries a [`Reservation`] of
//! its bytes, which ends when the frame is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

/// How many bytes may wait for a connection by default.
pub(crate) const DEFAULT_BACKLOG_LIMIT: usize = 1024 * 1024;

/// How many bytes may wait for a connection whose own frames have at most this size.
pub(crate) fn backlog_limit(max_frame_size: usize) -> usize {
    max_frame_size.saturating_mul(2).max(DEFAULT_BACKLOG_LIMIT)
}

/// The size of the frames that wait for one connection. Its dispatcher adds, dropped frames subtract.
#[derive(Debug)]
pub(crate) struct Backlog {
    limit: usize,
    /// Bytes of messages, diffs and counts.
    bytes: AtomicUsize,
    /// Whether a full list waits; there is at most one.
    state: AtomicBool,
}

/// A frame's part of a [`Backlog`], released when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    backlog: Arc<Backlog>,
    part: ReservedPart,
}

/// What a [`Reservation`] holds.
#[derive(Debug)]
enum ReservedPart {
    Bytes(usize),
    State,
}

impl Backlog {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, bytes: AtomicUsize::new(0), state: AtomicBool::new(false) })
    }

    /// Reserves the bytes of a frame; one larger than the limit is accepted when nothing else waits.
    // Only the connection's dispatcher reserves, so nothing is added between check and update.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let waiting = self.bytes.load(Relaxed);
        if waiting > 0 && waiting.saturating_add(bytes) > self.limit {
            return None;
        }
        self.bytes.fetch_add(bytes, Relaxed);
        Some(Reservation { backlog: Arc::clone(self), part: ReservedPart::Bytes(bytes) })
    }

    /// Reserves space for a full list, if none waits.
    pub fn reserve_state(self: &Arc<Self>) -> Option<Reservation> {
        let taken = self.state.swap(true, Relaxed);
        (!taken).then(|| Reservation { backlog: Arc::clone(self), part: ReservedPart::State })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        match self.part {
            ReservedPart::Bytes(bytes) => drop(self.backlog.bytes.fetch_sub(bytes, Relaxed)),
            ReservedPart::State => self.backlog.state.store(false, Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_accepted_up_to_the_limit_and_again_when_others_are_dropped() {
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
    fn a_frame_over_the_limit_is_accepted_when_nothing_else_waits() {
        let backlog = Backlog::new(100);
        let large = backlog.reserve(1000).unwrap();
        assert!(backlog.reserve(1).is_none());
        drop(large);
        let _small = backlog.reserve(1).unwrap();
        assert!(backlog.reserve(1000).is_none());
    }

    #[test]
    fn at_most_one_full_list_waits_whatever_else_does() {
        let backlog = Backlog::new(100);
        let (_frame, state) = (backlog.reserve(100).unwrap(), backlog.reserve_state().unwrap());
        assert!(backlog.reserve_state().is_none());
        drop(state);
        assert!(backlog.reserve_state().is_some());
    }
}
