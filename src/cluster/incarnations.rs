//! Which incarnations of nodes are over, and which a survey has to confirm.

use std::collections::VecDeque;

use crate::model::Epoch;

/// How many incarnations are remembered of each kind.
const MAX_REMEMBERED: usize = 1024;

/// Incarnations of other nodes. The database has the last word on each of them.
#[derive(Debug, Default)]
pub(super) struct Incarnations {
    /// Those that are over.
    over: VecDeque<Over>,
    /// Those that the database has to confirm: heard of before the survey under way, and since.
    asked: Vec<Epoch>,
    doubtful: Vec<Epoch>,
    surveys: u64,
}

#[derive(Debug)]
struct Over {
    incarnation: Epoch,
    /// The number of the survey after which it ended.
    survey: u64,
    /// Whether the node had stopped in order.
    stopped: bool,
}

impl Incarnations {
    pub fn is_over(&self, incarnation: Epoch) -> bool {
        self.over.iter().any(|over| over.incarnation == incarnation)
    }

    /// Whether the incarnation is over, and had stopped in order.
    pub fn has_stopped(&self, incarnation: Epoch) -> bool {
        self.over.iter().any(|over| over.incarnation == incarnation && over.stopped)
    }

    pub fn end(&mut self, incarnation: Epoch, stopped: bool) {
        if self.is_over(incarnation) {
            return;
        }
        if self.over.len() >= MAX_REMEMBERED {
            self.over.pop_front();
        }
        self.over.push_back(Over { incarnation, survey: self.surveys, stopped });
    }

    /// The database shows the incarnation alive. Answers whether it had been taken for over before this survey
    /// began, so that the survey is newer.
    pub fn revive(&mut self, incarnation: Epoch) -> bool {
        let before = self.over.len();
        self.over.retain(|over| over.incarnation != incarnation || over.survey == self.surveys);
        self.over.len() < before
    }

    /// The next survey has to say whether the incarnation is known to the database.
    pub fn doubt(&mut self, incarnation: Epoch) {
        let known = self.doubtful.contains(&incarnation) || self.asked.contains(&incarnation);
        if !known && self.doubtful.len() < MAX_REMEMBERED {
            self.doubtful.push(incarnation);
        }
    }

    /// A survey begins.
    pub fn ask(&mut self) {
        self.surveys += 1;
        self.asked.append(&mut self.doubtful);
    }

    /// Ends what was asked about and is not among the `known` incarnations.
    pub fn settle(&mut self, known: impl Fn(Epoch) -> bool) {
        for doubtful in std::mem::take(&mut self.asked) {
            if !known(doubtful) {
                self.end(doubtful, false);
            }
        }
    }
}
