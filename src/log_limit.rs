//! A rate limit for log lines that clients can cause at will.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The time between two lines of one [`LogLimit`].
const INTERVAL: Duration = Duration::from_secs(60);

/// Lets one line a minute pass and counts the others; one `static` for each kind of line.
///
/// ```
/// use actix_presence::log_limit::LogLimit;
///
/// static REFUSED: LogLimit = LogLimit::new();
/// if let Some(suppressed) = REFUSED.pass() {
///     tracing::warn!(suppressed, "a page of another origin was refused (--allow-origin)");
/// }
/// ```
#[derive(Debug)]
pub struct LogLimit {
    /// When the last line passed, in milliseconds since the first use of any limit, plus one; 0 for never.
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl LogLimit {
    /// A limit that lets its first line through.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// If a line may be written now, the number of lines suppressed since the last one.
    pub fn pass(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        self.pass_at(START.get_or_init(Instant::now).elapsed())
    }

    /// As [`pass`](Self::pass), at a time since some start.
    pub fn pass_at(&self, now: Duration) -> Option<u64> {
        // It takes half a billion years to overflow.
        let now = now.as_millis() as u64 + 1;
        let last = self.last.load(Relaxed);
        let due = last == 0 || now >= last + INTERVAL.as_millis() as u64;
        // Of concurrent threads one writes.
        if due && self.last.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
            return Some(self.suppressed.swap(0, Relaxed));
        }
        self.suppressed.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_passes_with_the_number_of_suppressed_ones() {
        let limit = LogLimit::new();
        let at = |secs| limit.pass_at(Duration::from_secs(secs));
        assert_eq!([0, 1, 59, 60, 61, 200].map(at), [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
