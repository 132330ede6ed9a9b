//! Collections that use no more memory than they need.

use std::{
    collections::HashMap,
    hash::Hash,
    ops::{Deref, DerefMut},
};

use ahash::RandomState;
use hashlink::LinkedHashMap;

/// A list that holds one value nearly always and then takes no more space than the value. (A `SmallVec`
/// keeps a length beside it.)
#[derive(Clone, Debug)]
pub(crate) enum Few<T> {
    One(T),
    /// Boxed, because a `Vec` has three words.
    #[expect(clippy::box_collection, reason = "a Vec would make every Few as large")]
    Other(Option<Box<Vec<T>>>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::Other(None)
    }
}

impl<T> From<Vec<T>> for Few<T> {
    fn from(mut values: Vec<T>) -> Self {
        match (values.pop(), values.is_empty()) {
            (None, _) => Self::Other(None),
            (Some(one), true) => Self::One(one),
            (Some(last), false) => {
                values.push(last);
                Self::Other(Some(Box::new(values)))
            }
        }
    }
}

impl<T> Few<T> {
    /// Inserts a value at an index, which is at most the length.
    pub(super) fn insert(&mut self, index: usize, value: T) {
        *self = match std::mem::take(self) {
            Self::Other(None) => Self::One(value),
            few => {
                let mut values = few.into_vec();
                values.insert(index, value);
                values.into()
            }
        };
    }

    pub(crate) fn push(&mut self, value: T) {
        self.insert(self.len(), value);
    }

    /// Removes the value at an index, if there is one.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        match std::mem::take(self) {
            Self::One(one) => Some(one),
            few => {
                let mut values = few.into_vec();
                let taken = values.remove(index);
                *self = values.into();
                Some(taken)
            }
        }
    }

    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Other(values) => values.map_or_else(Vec::new, |values| *values),
        }
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Other(values) => values.as_deref().map_or(&[], Vec::as_slice),
        }
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::One(one) => std::slice::from_mut(one),
            Self::Other(values) => values.as_deref_mut().map_or(&mut [], Vec::as_mut_slice),
        }
    }
}

/// A map with a capacity up to this keeps it.
const KEPT: usize = 1024;

/// A collection that keeps the capacity of its largest size.
pub(crate) trait Shrink {
    /// Releases most of the capacity if less than a quarter of it is used.
    fn shrink(&mut self);
}

impl<K: Eq + Hash, V> Shrink for HashMap<K, V, RandomState> {
    fn shrink(&mut self) {
        // Does nothing unless fewer buckets are enough.
        self.shrink_to((self.len() * 4).max(KEPT));
    }
}

/// The list keeps the nodes of removed entries, too. `shrink_to_fit` visits every entry, and
/// `capacity` may be too low after many removals, so a small map is always shrunk.
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
    use crate::model::{RoomName, membership::Membership};

    #[test]
    fn it_holds_what_a_vec_holds() {
        let (mut few, mut vec) = (Few::default(), Vec::new());
        for (index, value) in [(0, 'a'), (0, 'b'), (2, 'c'), (1, 'd')] {
            few.insert(index, value);
            vec.insert(index, value);
            assert_eq!(*few, *vec);
        }
        few.push('e');
        vec.push('e');
        for index in [1, 9, 3, 0, 0, 0, 0] {
            let expected = (index < vec.len()).then(|| vec.remove(index));
            assert_eq!(few.remove(index), expected);
            assert_eq!(few.clone().into_vec(), vec);
        }
        assert!(few.is_empty());
    }

    #[test]
    fn one_is_no_larger_than_itself() {
        assert_eq!(size_of::<Few<Membership>>(), size_of::<Membership>());
        assert_eq!(size_of::<Few<(RoomName, usize)>>(), size_of::<(RoomName, usize)>());
    }

    #[test]
    fn a_map_that_became_small_shrinks_and_one_in_use_does_not() {
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
