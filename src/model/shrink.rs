//! Maps give back the space of a crowd that has gone.

use std::{collections::HashMap, hash::Hash};

use ahash::RandomState;
use hashlink::LinkedHashMap;

/// A map with space for no more than this keeps it.
const KEPT: usize = 1024;

/// A collection that keeps the space of its largest size.
pub(crate) trait Shrink {
    /// Gives back most of the space if less than a quarter of it is used.
    fn shrink(&mut self);
}

impl<K: Eq + Hash, V> Shrink for HashMap<K, V, RandomState> {
    fn shrink(&mut self) {
        // Does nothing unless that takes fewer buckets.
        self.shrink_to((self.len() * 4).max(KEPT));
    }
}

/// Its list keeps the nodes of all that was removed, too. To fit costs a step for each entry, and the
/// capacity may be said too small when many were removed, so a small map is always made to fit.
impl<K: Eq + Hash, V> Shrink for LinkedHashMap<K, V, RandomState> {
    fn shrink(&mut self) {
        if self.len() <= KEPT || self.len() < self.capacity() / 4 {
            self.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_whose_crowd_has_gone_gives_back_its_space_and_one_in_use_does_not() {
        let mut map: HashMap<u32, u32, _> = HashMap::with_hasher(RandomState::new());
        let mut linked = LinkedHashMap::with_hasher(RandomState::new());
        for n in 0..10_000 {
            map.insert(n, n);
            linked.insert(n, n);
        }
        map.retain(|n, _| n % 2 == 0);
        map.shrink();
        assert!(map.capacity() > 10_000, "half of it is used");
        map.retain(|n, _| *n < 100);
        linked.retain(|n, _| *n < 100);
        map.shrink();
        linked.shrink();
        let bound = 2 * KEPT;
        assert!(map.capacity() < bound, "{}", map.capacity());
        assert!(linked.capacity() < bound, "{}", linked.capacity());
        assert_eq!((map.len(), linked.len()), (50, 100));
    }
}
