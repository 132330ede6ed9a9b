//! Log lines that others can cause as often as they please, let through at a bounded rate.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How far apart two lines of one [`LogLimit`] are.
const INTERVAL: Duration = Duration::from_secs(60);

/// Lets one line a minute through and counts those in between; one `static` for each kind of line.
///
/// ```text
/// static REFUSED: LogLimit = LogLimit::new();
/// if let Some(suppressed) = REFUSED.pass() {
///     tracing::warn!(suppressed, "a page of another origin was refused (--allow-origin)");
/// }
/// ```
#[derive(Debug)]
pub(crate) struct LogLimit {
    /// When the last line was let through, in milliseconds since the first use of any limit, plus one;
    /// 0 for never.
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    pub const fn new() -> Self {
        Self { last: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Whether a line may be written now: how many were suppressed since the last one.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(now())
    }

    fn pass_at(&self, now: Duration) -> Option<u64> {
        // A process does not live for half a billion years.
        let now = now.as_millis() as u64 + 1;
        let last = self.last.load(Relaxed);
        let due = last == 0 || now >= last + INTERVAL.as_millis() as u64;
        // Of threads that come at once, one writes.
        if due && self.last.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
            return Some(self.suppressed.swap(0, Relaxed));
        }
        self.suppressed.fetch_add(1, Relaxed);
        None
    }
}

/// Since the first use of any limit.
fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// As [`LogLimit`], but lines about different things do not suppress each other: of each minute it lets
/// the first line of each key pass, for [`MAX_KEYS`](Self::MAX_KEYS) keys.
#[derive(Debug)]
pub(crate) struct KeyedLogLimit(Mutex<Minute>);

/// The keys let through since the minute began.
#[derive(Debug)]
struct Minute {
    began: Option<Duration>,
    keys: Vec<String>,
    suppressed: u64,
}

impl KeyedLogLimit {
    /// How many lines a minute are let through.
    pub const MAX_KEYS: usize = 8;

    pub const fn new() -> Self {
        Self(Mutex::new(Minute { began: None, keys: Vec::new(), suppressed: 0 }))
    }

    /// Whether a line about this key may be written now: how many were suppressed since the last one.
    pub fn pass(&self, key: &str) -> Option<u64> {
        self.pass_at(key, now())
    }

    fn pass_at(&self, key: &str, now: Duration) -> Option<u64> {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.began.is_none_or(|began| now >= began + INTERVAL) {
            minute.began = Some(now);
            minute.keys.clear();
        }
        if minute.keys.len() == Self::MAX_KEYS || minute.keys.iter().any(|known| known == key) {
            minute.suppressed += 1;
            return None;
        }
        minute.keys.push(key.to_owned());
        Some(std::mem::take(&mut minute.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_different_keys_pass_up_to_a_bound_and_each_key_once_a_minute() {
        let limit = KeyedLogLimit::new();
        let at = |secs, key: &str| limit.pass_at(key, Duration::from_secs(secs));
        assert_eq!(at(0, "a"), Some(0));
        assert_eq!(at(1, "a"), None);
        assert_eq!(at(2, "b"), Some(1));
        let others = (0..100).filter(|n| at(3, &n.to_string()).is_some()).count();
        assert_eq!(others, KeyedLogLimit::MAX_KEYS - 2);
        assert_eq!(at(59, "a"), None);
        assert_eq!(at(60, "a"), Some(95));
    }

    #[test]
    fn one_line_a_minute_passes_and_says_how_many_did_not() {
        let limit = LogLimit::new();
        let at = |secs| limit.pass_at(Duration::from_secs(secs));
        assert_eq!([0, 1, 59, 60, 61, 200].map(at), [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
