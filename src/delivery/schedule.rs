//! The list schedule of one room: what its listeners were sent, what has changed since, and what waits
//! for the next list.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{
    dispatchers::DispatcherId,
    frames::{Changes, FullFrame, List, Sizes},
    published::LocalMessage,
    throttle::Throttle,
};
use crate::model::{ConnectionId, Diff, Snapshot, micros};

/// How many versions of newcomers are kept to diff from. A newcomer at another one gets the full list again.
pub(super) const MAX_NEWCOMER_VERSIONS: usize = 1024;
/// A crowd has come when the pending changes are more than one part in this many of the listeners.
const CROWD_SHARE: usize = 8;
/// How many bytes of messages may wait for a list.
pub(super) const MAX_HELD_BYTES: usize = 1024 * 1024;
/// What each of them takes besides its content.
pub(super) const MESSAGE_OVERHEAD: usize = 256;
/// Full lists for newcomers with [`Feed::Full`](crate::messages::Feed::Full) are at least this many times
/// their encoding time apart,
const ENCODING_SHARE: u32 = 10;
/// but no newcomer waits longer than this.
const MAX_NEWCOMER_WAIT: Duration = Duration::from_millis(50);
/// When a listener that did not take the full list is offered it again.
const OFFER_INTERVAL: Duration = Duration::from_millis(50);

/// What is sent to all members of a room, in this order.
pub(super) enum Broadcast {
    List(Arc<List>),
    /// A message that has waited for the list before.
    Message(LocalMessage),
}

/// The version that the next list starts from, and what has changed since.
struct Baseline {
    /// The room as it was listed last.
    listed: Snapshot,
    changes: Changes,
    /// Later versions that newcomers got, in ascending order.
    newcomers: Vec<Snapshot>,
}

/// Whether some listeners need the full list before the next list for all, and when it is offered.
enum FullOffer {
    None,
    /// Only listeners that did not take a list, or got a count as it was too large.
    Retry {
        at: u64,
    },
    /// Newcomers, too.
    Newcomer {
        at: u64,
    },
}

/// Messages that wait for lists, as their senders' joins have not been listed.
struct HeldMessages {
    since: u64,
    bytes: usize,
    /// Lists up to the leave of a sender, each with the messages that wait for it.
    closed: Vec<(List, Vec<LocalMessage>)>,
    open: Option<OpenHold>,
}

struct OpenHold {
    /// The latest version that has all senders in it.
    room: Snapshot,
    senders: SmallVec<[ConnectionId; 2]>,
    messages: Vec<LocalMessage>,
}

/// The list schedule of one room. All times are in microseconds of the monotonic clock.
pub(super) struct ListSchedule {
    pub listeners: usize,
    baseline: Baseline,
    sizes: Arc<Sizes>,
    throttle: Throttle,
    listed_version: u64,
    full_offer: FullOffer,
    /// When newcomers with [`Feed::Full`](crate::messages::Feed::Full) got their list last.
    full_sent: u64,
    held: Option<Box<HeldMessages>>,
    /// When something is due, if that was noted.
    pub due: Option<u64>,
}

impl ListSchedule {
    pub fn new(room: Snapshot, max_list_size: usize) -> Self {
        Self {
            listeners: 0,
            listed_version: room.version(),
            baseline: Baseline::new(room),
            sizes: Sizes::new(max_list_size),
            throttle: Throttle::default(),
            full_offer: FullOffer::None,
            full_sent: 0,
            held: None,
            due: None,
        }
    }

    /// Notes a change, after which the room is this.
    pub fn note(&mut self, diff: &Diff, room: Option<&Snapshot>, now: u64) {
        if let Some(held) = &mut self.held
            && let Some(open) = &mut held.open
        {
            let leaves = |sender: &ConnectionId| {
                diff.leaves.iter().any(|left| left.presence.connection == *sender)
            };
            match room {
                Some(room) if !open.senders.iter().any(leaves) => open.room = room.clone(),
                // The next list would not have the sender any more.
                _ => held.close(&mut self.baseline, &self.sizes),
            }
        }
        self.baseline.changes.note(diff);
        self.throttle.note_change(now);
    }

    /// The initial list for newcomers, of whom so many listen. Their next list starts from it.
    pub fn initial_list(&mut self, room: &Snapshot, newcomers: usize) -> Arc<List> {
        if newcomers == self.listeners && self.held.is_none() {
            // No listener has an earlier version.
            self.baseline = Baseline::new(room.clone());
            self.listed_version = room.version();
        } else {
            self.baseline.keep(room);
        }
        let list = List::full(room.clone(), &self.sizes);
        Arc::new(list.followed(self.has_changed()))
    }

    /// Whether a newcomer with [`Feed::Full`](crate::messages::Feed::Full) may have its list now. If not, it
    /// is offered it soon.
    pub fn may_send_full(&mut self, room: &Snapshot, now: u64) -> bool {
        if self.sizes.is_too_large(FullFrame::Presence, room) {
            // It gets a count, which costs no encoding.
            return true;
        }
        let cost = self.sizes.presence_cost().saturating_mul(ENCODING_SHARE);
        let ready = self.full_sent + micros(cost.min(MAX_NEWCOMER_WAIT));
        // The newcomers of one turn share one encoding.
        if now == self.full_sent || now >= ready {
            self.full_sent = now;
            return true;
        }
        let at = self.full_offer.at().map_or(ready, |at| at.min(ready));
        self.full_offer = FullOffer::Newcomer { at };
        false
    }

    /// Has the full list offered again to listeners that did not take it, or got a count instead.
    pub fn offer_full_later(&mut self, now: u64) {
        let later = now + micros(OFFER_INTERVAL);
        match &mut self.full_offer {
            FullOffer::Retry { at } | FullOffer::Newcomer { at } => *at = later.min(*at),
            FullOffer::None => self.full_offer = FullOffer::Retry { at: later },
        }
    }

    /// Whether the listeners were sent this version.
    pub fn has_listed(&self, version: u64) -> bool {
        version <= self.listed_version
    }

    /// Holds a message until the list that has its sender; the room is this now.
    pub fn hold(&mut self, message: LocalMessage, sender: ConnectionId, room: &Snapshot, now: u64) {
        let new =
            || Box::new(HeldMessages { since: now, bytes: 0, closed: Vec::new(), open: None });
        let held = self.held.get_or_insert_with(new);
        held.bytes = held.bytes.saturating_add(message.frames.bytes() + MESSAGE_OVERHEAD);
        let new = || {
            let (senders, messages) = (SmallVec::new(), Vec::new());
            OpenHold { room: room.clone(), senders, messages }
        };
        let open = held.open.get_or_insert_with(new);
        if !open.senders.contains(&sender) {
            open.senders.push(sender);
        }
        open.messages.push(message);
    }

    /// Makes held messages due at once. Returns whether there are any.
    pub fn expedite(&mut self) -> bool {
        self.held.as_mut().map(|held| held.bytes = usize::MAX).is_some()
    }

    /// The same, if a sender of held messages has left.
    pub fn expedite_closed(&mut self) -> bool {
        self.held.as_ref().is_some_and(|held| !held.closed.is_empty()) && self.expedite()
    }

    fn has_changed(&self) -> bool {
        !self.baseline.changes.is_empty() || self.held.is_some()
    }

    /// When something is due, as things are now, if anything is to be sent.
    pub fn next(&self, now: u64) -> Option<u64> {
        let list = self.has_changed().then(|| self.next_list(now));
        let full = self.full_offer.at().map(|at| at.max(now));
        list.into_iter().chain(full).min()
    }

    /// When the pending changes are due, whether or not a message waits for them.
    fn next_changes(&self, now: u64) -> u64 {
        let crowd = self.baseline.changes.places() > self.listeners / CROWD_SHARE;
        self.throttle.next(crowd, now)
    }

    fn next_list(&self, now: u64) -> u64 {
        let next = self.next_changes(now);
        match &self.held {
            None => next,
            Some(held) if held.bytes > MAX_HELD_BYTES => now,
            Some(held) => next.min(self.throttle.next_for_message(held.since, now)),
        }
    }

    /// Takes what is due for all: lists, and the messages that waited for them.
    pub fn take(&mut self, room: &Snapshot, threads: usize, now: u64) -> Vec<Broadcast> {
        if !self.has_changed() || self.next_list(now) > now {
            return Vec::new();
        }
        let are_changes_due = self.next_changes(now) <= now;
        let (mut lists, open) = match self.held.take() {
            Some(held) => (held.closed, held.open),
            None => (Vec::new(), None),
        };
        // A closed list alone does not make later changes due.
        if open.is_some() || are_changes_due {
            let list = self.baseline.list(room.clone(), &self.sizes);
            lists.push((list, open.map(|open| open.messages).unwrap_or_default()));
            (self.full_offer, self.full_sent) = (FullOffer::None, now);
        }
        self.throttle.sent(threads * lists.len(), now);
        let mut broadcasts = Vec::new();
        for (list, messages) in lists {
            self.listed_version = list.version();
            broadcasts.push(Broadcast::List(Arc::new(list)));
            broadcasts.extend(messages.into_iter().map(Broadcast::Message));
        }
        broadcasts
    }

    /// Takes the full list for the listeners that need it, if it is due; returns whether only for the
    /// newcomers among them. Others get the held messages, which are of versions before this list.
    pub fn take_full(&mut self, room: &Snapshot, now: u64) -> Option<(List, bool)> {
        let (only_newcomers, later) = (self.held.is_some(), now + micros(OFFER_INTERVAL));
        match &mut self.full_offer {
            FullOffer::None => return None,
            FullOffer::Retry { at } if only_newcomers => {
                *at = later.max(*at);
                return None;
            }
            FullOffer::Retry { at } | FullOffer::Newcomer { at } if *at > now => return None,
            offer if only_newcomers => *offer = FullOffer::Retry { at: later },
            offer => *offer = FullOffer::None,
        }
        self.full_sent = now;
        self.baseline.keep(room);
        Some((List::full(room.clone(), &self.sizes), only_newcomers))
    }

    /// Takes the full list for newcomers that wait for it, if there are any.
    pub fn take_initial(&mut self, room: &Snapshot, now: u64) -> Option<(List, bool)> {
        let FullOffer::Newcomer { at } = &mut self.full_offer else { return None };
        *at = now;
        self.take_full(room, now)
    }

    /// Takes the held messages, as there are no listeners any more.
    pub fn take_held(&mut self) -> impl Iterator<Item = LocalMessage> + use<> {
        let held = self.held.take().into_iter();
        held.flat_map(|held| {
            let closed = held.closed.into_iter().flat_map(|(_, messages)| messages);
            closed.chain(held.open.into_iter().flat_map(|open| open.messages))
        })
    }

    pub fn handed_out(&mut self, dispatcher: DispatcherId, busy: Duration, now: u64) {
        self.throttle.handed_out(dispatcher, busy, now);
    }
}

impl FullOffer {
    fn at(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Retry { at } | Self::Newcomer { at } => Some(*at),
        }
    }
}

impl HeldMessages {
    /// Makes a list of the room as the open messages need it: later changes are in a later list.
    fn close(&mut self, baseline: &mut Baseline, sizes: &Arc<Sizes>) {
        let Some(OpenHold { room, messages, .. }) = self.open.take() else { return };
        self.closed.push((baseline.list(room, sizes), messages));
    }
}

impl Baseline {
    fn new(listed: Snapshot) -> Self {
        Self { listed, changes: Changes::default(), newcomers: Vec::new() }
    }

    /// Keeps a version that newcomers got.
    fn keep(&mut self, room: &Snapshot) {
        let newest = self.newcomers.last().unwrap_or(&self.listed).version();
        if newest < room.version() && self.newcomers.len() < MAX_NEWCOMER_VERSIONS {
            self.newcomers.push(room.clone());
        }
    }

    /// The list of what has changed up to a version, from which the next one starts.
    fn list(&mut self, room: Snapshot, sizes: &Arc<Sizes>) -> List {
        let coalesced = room.version().saturating_sub(self.listed.version() + 1);
        metrics::counter!("presence_changes_coalesced_total").increment(coalesced);
        let listed = std::mem::replace(&mut self.listed, room.clone());
        debug_assert!(listed.version() <= room.version());
        let mut bases = vec![listed];
        let later = self.newcomers.iter().position(|base| base.version() >= room.version());
        bases.extend(self.newcomers.drain(..later.unwrap_or(self.newcomers.len())));
        bases.dedup_by_key(|base| base.version());
        List::since(bases, room, std::mem::take(&mut self.changes), sizes)
    }
}
