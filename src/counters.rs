//! What has happened since the start, counted once for both who ask: the metrics and the registry.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::model::Cause;

/// A number that only grows. What is added is reported to [`metrics`] under its name, too. A clone is
/// the same number.
#[derive(Clone, Debug)]
pub(crate) struct Counter {
    name: &'static str,
    count: Arc<AtomicU64>,
}

impl Counter {
    pub fn new(name: &'static str) -> Self {
        Self { name, count: Arc::default() }
    }

    pub fn add(&self, more: usize) {
        self.count.fetch_add(more as u64, Relaxed);
        metrics::counter!(self.name).increment(more as u64);
    }

    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

/// Ends of presences, by cause.
#[derive(Debug)]
pub(crate) struct LeaveCounters([(Cause, u64); Cause::ALL.len()]);

impl LeaveCounters {
    pub fn new() -> Self {
        Self(Cause::ALL.map(|cause| (cause, 0)))
    }

    pub fn add(&mut self, cause: Cause, more: usize) {
        if let Some((_, count)) = self.0.iter_mut().find(|(counted, _)| *counted == cause) {
            *count += more as u64;
        }
        let counter = metrics::counter!("presence_leaves_total", "cause" => cause.as_str());
        counter.increment(more as u64);
    }

    pub fn counts(&self) -> Vec<(Cause, u64)> {
        self.0.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_counted_by_itself() {
        let mut leaves = LeaveCounters::new();
        for (more, cause) in Cause::ALL.into_iter().enumerate() {
            leaves.add(cause, more);
            leaves.add(cause, 1);
        }
        let expected: Vec<_> = Cause::ALL.into_iter().zip(1..).collect();
        assert_eq!(leaves.counts(), expected);
    }
}
