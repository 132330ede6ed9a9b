//! The ordered map in which a room keeps its presences.

use std::{cmp::Ordering, fmt, sync::Arc};

use smallvec::SmallVec;

use super::{ConnectionId, Info, Presence, UserId};

/// The position of a presence in its room: ordered by user, then by joining time.
///
/// All presences of a user are neighbours, the newest last, and anonymous ones come first. So one
/// ordered map answers who is online, with how many connections, and which infos there are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub(crate) struct Position {
    /// The first bytes of the user's name, so that most comparisons need not read the name.
    begin: u64,
    pub(super) user: Option<UserId>,
    /// Microseconds since 1970.
    pub(super) joined_at: i64,
    pub(super) connection: ConnectionId,
}

impl Position {
    pub(super) fn new(user: Option<UserId>, joined_at: i64, connection: ConnectionId) -> Self {
        let mut begin = [0; 8];
        let name = user.as_ref().map_or("", UserId::as_str);
        begin.iter_mut().zip(name.bytes()).for_each(|(position, byte)| *position = byte);
        Self { begin: u64::from_be_bytes(begin), user, joined_at, connection }
    }
}

impl From<&Presence> for Position {
    fn from(presence: &Presence) -> Self {
        let joined_at = presence.joined_at.timestamp_micros();
        Self::new(presence.user.clone(), joined_at, presence.connection)
    }
}

/// What a presence shows, and when that was set last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub info: Info,
    /// Microseconds since 1970.
    pub updated_at: i64,
}

impl From<&Presence> for Shown {
    fn from(presence: &Presence) -> Self {
        let updated_at = presence.updated_at.timestamp_micros();
        Self { info: presence.info.clone(), updated_at }
    }
}

/// The presences of a room in their order, with what they show: a persistent map, which is cloned by
/// cloning a pointer.
///
/// It is a treap: a search tree by position in which no node has a child of higher rank. Ranks are
/// pseudo-random, so the expected depth is that of a tree filled in random order, about twice the
/// logarithm of its size, whatever the order of inserts and removals. A change visits only the
/// nodes on the path to a position, which matters because most rooms are in no cache. A node that is
/// shared with a clone is copied before it changes.
#[derive(Clone, Default)]
pub(super) struct Tree {
    root: Subtree,
    len: usize,
}

type Subtree = Option<Arc<TreeNode>>;

/// Ordered so that what a search reads is in one cache line most often.
#[derive(Clone)]
#[repr(C)]
struct TreeNode {
    left: Subtree,
    right: Subtree,
    position: Position,
    shown: Shown,
}

impl Tree {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, position: &Position) -> Option<(&Position, &Shown)> {
        let mut link = &self.root;
        while let Some(node) = link {
            link = match position.cmp(&node.position) {
                Ordering::Less => &node.left,
                Ordering::Equal => return Some((&node.position, &node.shown)),
                Ordering::Greater => &node.right,
            };
        }
        None
    }

    /// Inserts a presence, or replaces what it shows.
    pub(super) fn insert(&mut self, position: Position, shown: Shown) {
        let new = insert(&mut self.root, rank(position.connection), position, shown);
        self.len += usize::from(new);
    }

    /// Removes a presence and returns what it showed.
    pub(super) fn remove(&mut self, position: &Position) -> Option<Shown> {
        let shown = remove(&mut self.root, position)?;
        self.len -= 1;
        Some(shown)
    }

    pub(super) fn iter(&self) -> Iter<'_> {
        self.iter_from(|_| true)
    }

    /// Iterates from the first position for which `part` holds; it has to hold for all later positions, too.
    pub(super) fn iter_from(&self, part: impl Fn(&Position) -> bool) -> Iter<'_> {
        let mut iter = Iter { above: SmallVec::new() };
        let mut link = &self.root;
        while let Some(node) = link {
            if part(&node.position) {
                iter.above.push(node);
                link = &node.left;
            } else {
                link = &node.right;
            }
        }
        iter
    }
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Iterates over presences in their order.
pub(super) struct Iter<'a> {
    /// The nodes to visit next, each followed by its right subtree; the nearest last.
    above: SmallVec<[&'a TreeNode; 24]>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Position, &'a Shown);

    fn next(&mut self) -> Option<Self::Item> {
        let node = self.above.pop()?;
        let mut link = &node.right;
        while let Some(next) = link {
            self.above.push(next);
            link = &next.left;
        }
        Some((&node.position, &node.shown))
    }
}

impl TreeNode {
    fn rank(&self) -> u64 {
        rank(self.position.connection)
    }
}

/// Pseudo-random and constant for a connection: the product of both halves of its id.
fn rank(connection: ConnectionId) -> u64 {
    let (high, low) = connection.halves();
    let mixed = u128::from(high ^ 0x9E37_79B9_7F4A_7C15) * u128::from(low ^ 0xD1B5_4A32_D192_ED03);
    (mixed >> 64) as u64 ^ mixed as u64
}

fn insert(link: &mut Subtree, rank: u64, position: Position, shown: Shown) -> bool {
    match link {
        Some(node) if node.rank() >= rank => {
            let node = Arc::make_mut(node);
            match position.cmp(&node.position) {
                Ordering::Less => insert(&mut node.left, rank, position, shown),
                Ordering::Equal => {
                    node.shown = shown;
                    false
                }
                Ordering::Greater => insert(&mut node.right, rank, position, shown),
            }
        }
        _ => {
            let (left, right) = split(link.take(), &position);
            *link = Some(Arc::new(TreeNode { position, shown, left, right }));
            true
        }
    }
}

fn remove(link: &mut Subtree, position: &Position) -> Option<Shown> {
    let node = link.as_mut()?;
    match position.cmp(&node.position) {
        Ordering::Less => remove(&mut Arc::make_mut(node).left, position),
        Ordering::Greater => remove(&mut Arc::make_mut(node).right, position),
        Ordering::Equal => {
            let TreeNode { shown, left, right, .. } = Arc::unwrap_or_clone(link.take()?);
            *link = join(left, right);
            Some(shown)
        }
    }
}

/// Splits a tree into what comes before the position and what comes after it.
fn split(link: Subtree, position: &Position) -> (Subtree, Subtree) {
    let Some(mut shared) = link else { return (None, None) };
    let node = Arc::make_mut(&mut shared);
    if node.position < *position {
        let (before, after) = split(node.right.take(), position);
        node.right = before;
        (Some(shared), after)
    } else {
        let (before, after) = split(node.left.take(), position);
        node.left = after;
        (before, Some(shared))
    }
}

/// Joins two trees, of which the first comes before the second.
fn join(before: Subtree, after: Subtree) -> Subtree {
    let (mut left, mut right) = match (before, after) {
        (Some(left), Some(right)) => (left, right),
        (one, other) => return one.or(other),
    };
    if left.rank() >= right.rank() {
        let node = Arc::make_mut(&mut left);
        node.right = join(node.right.take(), Some(right));
        Some(left)
    } else {
        let node = Arc::make_mut(&mut right);
        node.left = join(Some(left), node.left.take());
        Some(right)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn position(n: u64) -> Position {
        let user = (!n.is_multiple_of(3))
            .then(|| UserId::new(format!("same-beginning-{}", n % 50)).unwrap());
        Position::new(user, 0, ConnectionId::from_u128(n.into()))
    }

    fn shown(n: u64) -> Shown {
        let info = Info::new(serde_json::json!({"n": n})).unwrap();
        Shown { info, updated_at: 0 }
    }

    #[test]
    fn it_holds_what_an_ordered_map_holds_and_its_clones_stay_as_they_are() {
        let (mut tree, mut map) = (Tree::default(), BTreeMap::new());
        let mut clones = Vec::new();
        let mut random = 1_u64;
        for step in 0..2_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let position = position((random >> 32) % 200);
            if random >> 63 == 0 {
                tree.insert(position.clone(), shown(step));
                map.insert(position, shown(step));
            } else {
                assert_eq!(tree.remove(&position), map.remove(&position));
                assert_eq!(tree.get(&position), None);
            }
            if step % 100 == 0 {
                clones.push((tree.clone(), map.clone()));
            }
        }
        clones.push((tree, map));
        for (tree, map) in clones {
            assert_eq!(tree.len(), map.len());
            assert!(tree.iter().eq(&map));
            for n in 0..200 {
                let position = position(n);
                assert_eq!(tree.get(&position), map.get_key_value(&position));
                assert!(
                    tree.iter_from(|other| *other > position)
                        .eq(map.range(&position..).skip(usize::from(map.contains_key(&position)),))
                );
            }
        }
    }

    #[test]
    fn it_is_not_deep_however_it_was_filled() {
        fn depth(link: &Subtree) -> usize {
            link.as_ref().map_or(0, |node| 1 + depth(&node.left).max(depth(&node.right)))
        }
        let mut tree = Tree::default();
        for time in 0..10_000 {
            tree.insert(Position::new(None, time, ConnectionId::new()), shown(0));
        }
        assert!(depth(&tree.root) < 60, "{}", depth(&tree.root));
    }
}
