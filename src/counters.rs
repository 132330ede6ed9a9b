//! Counters since the start, for both the metrics and the registry.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::model::Cause;

/// A number that only grows, and is also reported to [`metrics`] under its name. A clone is the same
/// counter.
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

/// The numbers of leaves by cause.
#[derive(Debug)]
pub(crate) struct LeaveCounters(Vec<(Cause, u64)>);

impl LeaveCounters {
    pub fn new() -> Self {
        Self(Cause::ALL.iter().map(|cause| (*cause, 0)).collect())
    }

    pub fn add(&mut self, cause: Cause, more: usize) {
        if let Some((_, count)) = self.0.iter_mut().find(|(counted, _)| *counted == cause) {
            *count += more as u64;
        }
        let counter = metrics::counter!("presence_leaves_total", "cause" => cause.as_str());
        counter.increment(more as u64);
    }

    pub fn counts(&self) -> Vec<(Cause, u64)> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_counted_separately() {
        let mut leaves = LeaveCounters::new();
        for (more, cause) in Cause::ALL.iter().enumerate() {
            leaves.add(*cause, more);
            leaves.add(*cause, 1);
        }
        let expected: Vec<_> = Cause::ALL.iter().copied().zip(1..).collect();
        assert_eq!(leaves.counts(), expected);
    }
}
