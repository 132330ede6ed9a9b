//! What was heard of nodes that the database has not shown yet, and what cannot be taken back.

use crate::{
    bus::{BusMessage, RoomMessage},
    model::{Epoch, NodeName},
};

/// How much is kept at most until the next survey.
const MAX_KEPT: usize = 256;
const MAX_KEPT_BYTES: usize = 1024 * 1024;

/// Messages, kicks and closings of nodes that a survey under way may show: a node is heard before others have
/// seen its row.
#[derive(Debug, Default)]
pub(crate) struct EarlyMessages {
    kept: Vec<(NodeName, Epoch, BusMessage)>,
    bytes: usize,
}

impl EarlyMessages {
    /// Keeps something until the next survey. Answers whether there was room for it.
    pub fn keep(&mut self, node: NodeName, incarnation: Epoch, message: BusMessage) -> bool {
        let bytes = match &message {
            BusMessage::Published(RoomMessage { content, .. }) => content.bytes(),
            _ => 0,
        };
        let fits = self.kept.len() < MAX_KEPT && self.bytes + bytes <= MAX_KEPT_BYTES;
        if fits {
            self.bytes += bytes;
            self.kept.push((node, incarnation, message));
        }
        fits
    }

    /// What was kept, in order.
    pub fn take(&mut self) -> Vec<(NodeName, Epoch, BusMessage)> {
        self.bytes = 0;
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_is_kept_until_the_next_survey() {
        let node = NodeName::new("n").unwrap();
        let mut early = EarlyMessages::default();
        let mut keep = || early.keep(node.clone(), Epoch::new(), BusMessage::Missed);
        assert_eq!((0..1000).filter(|_| keep()).count(), MAX_KEPT);
        assert_eq!(early.take().len(), MAX_KEPT);
        assert!(early.take().is_empty());
        assert!(early.keep(node, Epoch::new(), BusMessage::Missed));
    }
}
