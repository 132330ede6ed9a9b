//! How many frames a connection may send.

use std::time::Instant;

/// So many frames per second, with as many in one burst.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Rate {
    pub fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, at: now }
    }

    /// Whether one more frame is within the rate.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * self.per_second).min(self.per_second);
        let within = self.left >= 1.0;
        self.left -= f64::from(u8::from(within));
        within
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_taken_and_then_so_many_per_second() {
        let start = Instant::now();
        let mut rate = Rate::new(2, start);
        let after = |millis| start + Duration::from_millis(millis);
        let taken = [0, 0, 0, 500, 500, 5000, 5000, 5000].map(|millis| rate.take(after(millis)));
        assert_eq!(taken, [true, true, false, true, false, true, true, false]);
    }
}
