//! Numbers that were heard lately.

/// Numbers that are remembered. An envelope that arrives twice does so at once: a node may be
/// subscribed to a room and to all rooms.
const REMEMBERED: usize = 32;

/// The latest numbers of a node's messages, so that one which arrives twice is taken once.
///
/// Not a maximum: one wrong number must not silence all that follow.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// A ring; 0 is no number.
    numbers: [u64; REMEMBERED],
    next: usize,
}

impl Recent {
    /// Notes a number. Answers whether it is new.
    pub fn note(&mut self, number: u64) -> bool {
        if self.numbers.contains(&number) {
            return false;
        }
        self.numbers[self.next] = number;
        self.next = (self.next + 1) % REMEMBERED;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once_and_a_huge_one_silences_nothing() {
        let mut recent = Recent::default();
        let notes = [1, 1, 2, u64::MAX, u64::MAX, 3, 2, 3].map(|number| recent.note(number));
        assert_eq!(notes, [true, false, true, true, false, true, false, false]);
        assert!((4..100).all(|number| recent.note(number)));
    }
}
