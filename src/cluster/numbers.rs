//! The numbers by which nodes notice that they have missed something, or that something comes again; and
//! which incarnations of nodes are over.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use ahash::RandomState;
use hashlink::LinkedHashMap;

use crate::{
    bus::{BusMessage, Envelope, RoomChanges, RowChange},
    model::{Epoch, NodeName, RoomName},
    store::{BatchEntry, Committed},
};

/// For how many rooms the number of their last batch is remembered.
const MAX_ROOMS: usize = 65_536;
/// The largest number of rooms in a heartbeat.
const MAX_BEAT_ROOMS: usize = 4096;

/// This node as the sender of its envelopes.
#[derive(Debug)]
pub(super) struct OwnIncarnation {
    pub node: NodeName,
    incarnation: Epoch,
    /// The number of its last envelope.
    number: u64,
}

impl OwnIncarnation {
    pub fn new(node: NodeName, incarnation: Epoch) -> Self {
        Self { node, incarnation, number: 0 }
    }

    /// The node goes on in another incarnation, whose envelopes are counted anew.
    pub fn begin(&mut self, incarnation: Epoch) {
        (self.incarnation, self.number) = (incarnation, 0);
    }

    pub fn incarnation(&self) -> Epoch {
        self.incarnation
    }

    /// The next envelope.
    pub fn envelope(&mut self, message: BusMessage) -> Envelope {
        self.number += 1;
        let Self { node, incarnation, number } = self;
        Envelope { node: node.clone(), incarnation: *incarnation, number: *number, message }
    }
}

/// The numbers of what this node publishes, from which others see whether they have missed something.
#[derive(Debug, Default)]
pub(super) struct SentNumbers {
    /// The last batch that had changes of a room, the latest last.
    last: LinkedHashMap<RoomName, u64, RandomState>,
    /// No batch after this one had changes of a room that was forgotten.
    floor: u64,
    /// The rooms of the batches since the last beat.
    since: BTreeMap<RoomName, u64>,
    beats: u64,
    /// Whether something could not be published.
    pub missed: bool,
}

impl SentNumbers {
    /// The changes of a committed batch by room.
    pub fn changes(&mut self, committed: &Committed) -> Vec<RoomChanges> {
        let Committed { batch, causes, refused } = committed;
        let refused: HashSet<_> = refused
            .iter()
            .filter_map(|change| match change {
                BatchEntry::Upsert(room, connection) | BatchEntry::Delete(room, connection) => {
                    Some((room, *connection))
                }
                BatchEntry::Seen(_) => None,
            })
            .collect();
        let mut rooms: HashMap<&RoomName, Vec<RowChange>, RandomState> = HashMap::default();
        for row in &batch.upserts {
            if !refused.contains(&(&row.room, row.record.presence.connection)) {
                rooms.entry(&row.room).or_default().push(RowChange::Here(row.record.clone()));
            }
        }
        for ((room, connection), cause) in batch.deletes.iter().zip(causes) {
            if !refused.contains(&(room, *connection)) {
                let connection = *connection;
                rooms.entry(room).or_default().push(match *cause {
                    Some(cause) => RowChange::Gone { connection, cause },
                    None => RowChange::Yielded { connection },
                });
            }
        }
        let mut rooms: Vec<_> = rooms.into_iter().collect();
        rooms.sort_unstable_by_key(|(room, _)| *room);
        let number = batch.number;
        let changes = rooms.into_iter().map(|(room, changes)| {
            let previous = self.note(room, number);
            RoomChanges { room: room.clone(), number, previous, changes }
        });
        changes.collect()
    }

    /// Notes that the room is in this batch, and returns its batch before.
    fn note(&mut self, room: &RoomName, number: u64) -> u64 {
        if self.since.len() < MAX_BEAT_ROOMS || self.since.contains_key(room) {
            self.since.insert(room.clone(), number);
        }
        let previous = self.last.remove(room).unwrap_or(self.floor);
        self.last.insert(room.clone(), number);
        if self.last.len() > MAX_ROOMS
            && let Some((_, forgotten)) = self.last.pop_front()
        {
            self.floor = self.floor.max(forgotten);
        }
        previous
    }

    /// The number of the next beat, and the rooms of the batches since the last one.
    pub fn beat(&mut self) -> (u64, Vec<(RoomName, u64)>) {
        self.beats += 1;
        (self.beats, std::mem::take(&mut self.since).into_iter().collect())
    }
}

/// For how many incarnations the highest number is remembered: more than live at once.
const MAX_SENDERS: usize = 4096;

/// The highest number of an envelope that was heard of each incarnation, those heard last at the end.
///
/// A maximum is enough: only nodes of this database can number what verifies, and each numbers its envelopes
/// in the order in which it publishes them.
#[derive(Debug, Default)]
pub(super) struct HeardNumbers(LinkedHashMap<Epoch, u64, RandomState>);

impl HeardNumbers {
    /// Notes the number of an envelope. Answers whether it is higher than all before.
    pub fn note(&mut self, incarnation: Epoch, number: u64) -> bool {
        if let Some(highest) = self.0.to_back(&incarnation) {
            let is_new = number > *highest;
            *highest = number.max(*highest);
            return is_new;
        }
        self.0.insert(incarnation, number);
        if self.0.len() > MAX_SENDERS {
            self.0.pop_front();
        }
        true
    }
}

/// How many incarnations are remembered of each kind.
const MAX_INCARNATIONS: usize = 1024;

/// Incarnations of other nodes. The database has the last word on each of them.
#[derive(Debug, Default)]
pub(super) struct KnownIncarnations {
    /// Those that are over.
    over: VecDeque<EndedIncarnation>,
    /// Those that the database has to confirm: heard of before the survey under way, and since.
    asked: Vec<Epoch>,
    doubtful: Vec<Epoch>,
    surveys: u64,
    /// Those that went on in another one, in the order in which they did.
    continued: VecDeque<(Epoch, Epoch)>,
}

#[derive(Debug)]
struct EndedIncarnation {
    incarnation: Epoch,
    /// The number of the survey after which it ended.
    survey: u64,
    /// Whether the node had stopped in order.
    stopped: bool,
}

impl KnownIncarnations {
    pub fn is_over(&self, incarnation: Epoch) -> bool {
        self.over.iter().any(|over| over.incarnation == incarnation)
    }

    /// Whether the incarnation is over, and had stopped in order.
    pub fn has_stopped(&self, incarnation: Epoch) -> bool {
        self.over.iter().any(|over| over.incarnation == incarnation && over.stopped)
    }

    /// An incarnation goes on in another one, and is over itself.
    pub fn continues(&mut self, before: Epoch, incarnation: Epoch) {
        self.end(before, false);
        if self.continued.len() >= MAX_INCARNATIONS {
            self.continued.pop_front();
        }
        self.continued.push_back((before, incarnation));
    }

    /// The incarnation in which this one goes on, or itself. What was read before it changed has the old one.
    pub fn latest(&self, incarnation: Epoch) -> Epoch {
        // In order, so that each may go on in a later one.
        let continued = self.continued.iter();
        continued.fold(
            incarnation,
            |latest, (before, next)| if *before == latest { *next } else { latest },
        )
    }

    pub fn end(&mut self, incarnation: Epoch, stopped: bool) {
        if self.is_over(incarnation) {
            return;
        }
        if self.over.len() >= MAX_INCARNATIONS {
            self.over.pop_front();
        }
        self.over.push_back(EndedIncarnation { incarnation, survey: self.surveys, stopped });
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
        if !known && self.doubtful.len() < MAX_INCARNATIONS {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::DateTime;

    use super::*;
    use crate::{
        bus::ClusterIdentity,
        model::{ConnectionId, Info, Presence, PresenceRecord, SessionKey},
        store::{Batch, Row},
    };

    #[test]
    fn what_is_not_higher_than_the_highest_number_of_its_incarnation_is_old() {
        let (mut heard, one, other) = (HeardNumbers::default(), Epoch::new(), Epoch::new());
        let notes = [1, 1, 3, 2, 3, 9, 4].map(|number| heard.note(one, number));
        assert_eq!(notes, [true, false, true, false, false, true, false]);
        assert!(heard.note(other, 1));
        assert!(!heard.note(one, 9));
    }

    #[test]
    fn of_many_incarnations_those_heard_last_are_remembered() {
        let (mut heard, lives) = (HeardNumbers::default(), Epoch::new());
        for _ in 0..MAX_SENDERS + 10 {
            heard.note(lives, 7);
            heard.note(Epoch::new(), 1);
        }
        assert_eq!(heard.0.len(), MAX_SENDERS);
        assert!(!heard.note(lives, 7));
    }

    #[test]
    fn envelopes_are_counted_and_in_another_incarnation_anew() {
        let mut own = OwnIncarnation::new(NodeName::new("n").unwrap(), Epoch::new());
        let number = |own: &mut OwnIncarnation| own.envelope(BusMessage::Missed).number;
        assert_eq!([number(&mut own), number(&mut own)], [1, 2]);
        let next = Epoch::new();
        own.begin(next);
        let first = own.envelope(BusMessage::Missed);
        assert_eq!((first.incarnation, first.number), (next, 1));
    }

    #[test]
    fn what_went_on_in_another_incarnation_is_known_by_the_latest() {
        let [first, second, third, other] = [(); 4].map(|()| Epoch::new());
        let mut known = KnownIncarnations::default();
        known.continues(first, second);
        known.continues(second, third);
        assert_eq!(
            [first, second, third, other].map(|one| known.latest(one)),
            [third, third, third, other]
        );
        assert!(known.is_over(first) && known.is_over(second) && !known.is_over(third));
    }

    #[test]
    fn a_forgotten_room_gets_the_latest_forgotten_batch_as_its_previous_one() {
        let room = |number: usize| RoomName::new(format!("room {number}")).unwrap();
        let mut sent = SentNumbers::default();
        assert_eq!(sent.note(&room(0), 1), 0);
        assert_eq!(sent.note(&room(0), 2), 1);
        for number in 1..=MAX_ROOMS {
            sent.note(&room(number), number as u64 + 2);
        }
        assert_eq!(sent.last.len(), MAX_ROOMS);
        assert_eq!(sent.note(&room(0), 100_000), 2, "the latest that was forgotten");
    }

    #[test]
    fn a_beat_names_the_rooms_since_the_last_one() {
        let room = RoomName::new("lobby").unwrap();
        let mut sent = SentNumbers::default();
        sent.note(&room, 4);
        sent.note(&room, 5);
        assert_eq!(sent.beat(), (1, vec![(room, 5)]));
        assert_eq!(sent.beat(), (2, Vec::new()));
    }

    #[test]
    fn a_published_row_has_its_session_key_but_no_debug_output_does() {
        let now = DateTime::UNIX_EPOCH;
        let presence = Presence {
            connection: ConnectionId::new(),
            user: None,
            info: Info::EMPTY,
            joined_at: now,
            updated_at: now,
        };
        let mut record = PresenceRecord::new(presence);
        record.session = SessionKey::new("secret of a tab").ok();
        let row = Row { room: RoomName::new("lobby").unwrap(), record };
        let batch = Arc::new(Batch { upserts: vec![row], ..Batch::default() });
        let committed = Committed { batch, causes: Vec::new(), refused: Vec::new() };
        let changes = SentNumbers::default().changes(&committed).remove(0);
        let mut own = OwnIncarnation::new(NodeName::new("n").unwrap(), Epoch::new());
        let envelope = own.envelope(BusMessage::Changes(changes));
        let bytes = envelope.encode(&ClusterIdentity::new([1; 32], [2; 16]));
        assert!(String::from_utf8_lossy(&bytes).contains("secret of a tab"));
        assert!(!format!("{committed:?} {envelope:#?}").contains("secret"));
    }
}
