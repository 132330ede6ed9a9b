//! Maps give back the space of a crowd that has gone.

use std::{collections::HashMap, hash::Hash};

use ahash::RandomState;
use hashlink::LinkedHashMap;

/// A map with space for no more than this keeps it.
const KEPT: usize = 1024;

/// A collection that keeps the space of its largest size.
pub(crate) trait Shrink {
    /// Gives back most of the space if less than a quarter of it is used; else this costs nothing.
    fn shrink(&mut self);
}

fn is_sparse(len: usize, capacity: usize) -> bool {
    capacity > KEPT && len < capacity / 4
}

impl<K: Eq + Hash, V> Shrink for HashMap<K, V, RandomState> {
    fn shrink(&mut self) {
        if is_sparse(self.len(), self.capacity()) {
            self.shrink_to(self.len() * 2);
        }
    }
}

/// Its list keeps the nodes of all that was removed, too.
impl<K: Eq + Hash, V> Shrink for LinkedHashMap<K, V, RandomState> {
    fn shrink(&mut self) {
        if is_sparse(self.len(), self.capacity()) {
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
        assert!(map.capacity() < KEPT && linked.capacity() < KEPT);
        assert_eq!((map.len(), linked.len()), (50, 100));
    }
}
