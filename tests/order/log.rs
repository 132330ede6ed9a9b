//! What has happened in a room: who was in it between which versions, and who was there when something was
//! said.

use std::collections::BTreeMap;

use actix_presence::{PresenceChanged, Snapshot};

/// The number of a guest, of a stay, and of a message.
pub type Who = usize;
pub type StayNo = usize;
pub type MessageNo = usize;

/// One stay of a guest in the room.
pub struct Stay {
    pub who: Who,
    /// The versions that brought it and that took it.
    pub joined: u64,
    pub left: u64,
}

/// Something that was said.
pub struct Said {
    pub sender: Option<StayNo>,
    pub to: Vec<StayNo>,
}

/// A change of the room whose version is not known yet.
enum Change {
    Joined(StayNo),
    Left(Vec<StayNo>),
    Updated,
}

#[derive(Default)]
pub struct Log {
    pub stays: Vec<Stay>,
    pub said: Vec<Said>,
    pub snapshots: BTreeMap<u64, Snapshot>,
    pub here: BTreeMap<Who, StayNo>,
    changes: Vec<Change>,
}

impl Log {
    pub fn joined(&mut self, who: Who) {
        if self.here.contains_key(&who) {
            return self.changes.push(Change::Updated);
        }
        let number = self.stays.len();
        self.stays.push(Stay { who, joined: u64::MAX, left: u64::MAX });
        self.here.insert(who, number);
        self.changes.push(Change::Joined(number));
    }

    pub fn updated(&mut self, who: Who) {
        if self.here.contains_key(&who) {
            self.changes.push(Change::Updated);
        }
    }

    pub fn left(&mut self, who: Who) {
        self.changes.extend(self.here.remove(&who).map(|stay| Change::Left(vec![stay])));
    }

    pub fn closed(&mut self) {
        if !self.here.is_empty() {
            let here = std::mem::take(&mut self.here);
            self.changes.push(Change::Left(here.into_values().collect()));
        }
    }

    /// Notes a message, unless its sender is not in the room.
    pub fn said(&mut self, sender: Option<Who>, except: Option<Who>) -> Option<MessageNo> {
        let sender = match sender {
            Some(who) => Some(*self.here.get(&who)?),
            None => None,
        };
        let to = self.here.iter().filter(|(who, _)| Some(**who) != except);
        self.said.push(Said { sender, to: to.map(|(_, stay)| *stay).collect() });
        Some(self.said.len() - 1)
    }

    /// Learns the versions of what has changed since this was asked.
    pub fn learn(&mut self, heard: Vec<PresenceChanged>) {
        assert_eq!(heard.len(), self.changes.len(), "each change is one");
        for (change, heard) in self.changes.drain(..).zip(heard) {
            let version = heard.version;
            match change {
                Change::Joined(stay) => self.stays[stay].joined = version,
                Change::Left(stays) => {
                    stays.into_iter().for_each(|stay| self.stays[stay].left = version);
                }
                Change::Updated => {}
            }
            self.snapshots.insert(version, heard.snapshot);
        }
    }

    /// The latest version.
    pub fn version(&self) -> Option<u64> {
        self.snapshots.last_key_value().map(|(version, _)| *version)
    }

    /// Whether the stay is in the room at this version.
    pub fn is_in(&self, stay: StayNo, version: u64) -> bool {
        let Stay { joined, left, .. } = self.stays[stay];
        (joined..left).contains(&version)
    }

    /// The stay of a guest at this version.
    pub fn stay(&self, who: Who, version: u64) -> Option<StayNo> {
        let mut all = 0..self.stays.len();
        all.find(|stay| self.stays[*stay].who == who && self.is_in(*stay, version))
    }
}
