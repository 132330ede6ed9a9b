//! The listeners of one room: what they know of it, what they do not, and what waits for that.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{
    couriers::Desk,
    list::{List, Sizes, Touched, Whole},
    published::Published,
    schedule::Schedule,
};
use crate::model::{ConnectionId, Diff, Snapshot, micros};

/// How many versions are kept that newcomers have and others do not. Whoever came at another is sent the
/// whole list again.
const MAX_BASES: usize = 1024;
/// It is a crowd when changes wait for one part in this many of the listeners.
const CROWD_SHARE: usize = 8;
/// How many bytes of messages wait for a list.
const MAX_WAITING: usize = 1024 * 1024;
/// What each of them takes besides its own bytes.
const MESSAGE_OVERHEAD: usize = 256;
/// A newcomer waits for the whole list in each frame at most this many times what its encoding takes,
const ENCODING_SHARE: u32 = 10;
/// and no longer than this.
const MAX_GREETING_WAIT: Duration = Duration::from_millis(50);
/// When a listener that did not take the whole list is offered it again.
const OFFER_INTERVAL: Duration = Duration::from_millis(50);

/// A message for the members of a room.
#[derive(Clone)]
pub(super) struct Said {
    pub message: Arc<Published>,
    /// The presence that says it, if it is one.
    pub sender: Option<ConnectionId>,
    pub except: Option<ConnectionId>,
    /// Who was a member then: those whose entry has at most this number.
    pub entries: u64,
    /// The version that a listener has to know before it hears this.
    pub after: u64,
}

/// Messages that wait until their senders' coming has been told.
struct Waiting {
    /// The latest version that has all senders in it.
    room: Snapshot,
    senders: SmallVec<[ConnectionId; 2]>,
    messages: Vec<Said>,
}

/// What is to be sent, in this order.
pub(super) enum Next {
    /// A list for everybody.
    List(Arc<List>),
    /// A message that has waited for it.
    Message(Said),
}

/// The listeners of one room. All times are in microseconds of the monotonic clock.
pub(super) struct Audience {
    pub listeners: usize,
    /// The state that was listed last.
    listed: Snapshot,
    /// What may be different since.
    touched: Touched,
    /// Later versions, which those have who came since.
    bases: Vec<Snapshot>,
    sizes: Arc<Sizes>,
    schedule: Schedule,
    /// The version of the last list that went out.
    told: u64,
    /// When somebody is to be offered the whole list, if no list for everybody goes out before.
    owed: Option<u64>,
    /// Whether that is a newcomer, who has no list at all.
    greeting_waits: bool,
    /// When newcomers who get the whole list each time got it last.
    full_sent: u64,
    /// Lists that are closed, as one of their senders has left, each with the messages that wait for it.
    closed: Vec<(List, Vec<Said>)>,
    waiting: Option<Box<Waiting>>,
    /// Since when messages wait, and how many bytes they have.
    waiting_since: u64,
    waiting_bytes: usize,
    /// When the next list is to go out, if it waits.
    pub due: Option<u64>,
}

impl Audience {
    pub fn new(room: Snapshot, max_list_size: usize) -> Self {
        Self {
            listeners: 0,
            told: room.version(),
            listed: room,
            touched: Touched::default(),
            bases: Vec::new(),
            sizes: Sizes::new(max_list_size),
            schedule: Schedule::default(),
            owed: None,
            greeting_waits: false,
            full_sent: 0,
            closed: Vec::new(),
            waiting: None,
            waiting_since: 0,
            waiting_bytes: 0,
            due: None,
        }
    }

    /// Notes a change, after which the room is this.
    pub fn note(&mut self, diff: &Diff, room: Option<&Snapshot>, now: u64) {
        if let Some(waiting) = &mut self.waiting {
            let leaves = |one: &ConnectionId| {
                diff.leaves.iter().any(|left| left.presence.connection == *one)
            };
            match room {
                Some(room) if !waiting.senders.iter().any(leaves) => waiting.room = room.clone(),
                _ => self.close(),
            }
        }
        self.touched.note(diff);
        self.schedule.note(now);
    }

    /// What waits goes out with the room as it was: later changes are in a later list.
    fn close(&mut self) {
        let Some(waiting) = self.waiting.take() else { return };
        let Waiting { room, messages, .. } = *waiting;
        let list = self.list(room);
        self.closed.push((list, messages));
    }

    /// The list with what has changed up to a version, from which the next one goes on.
    fn list(&mut self, room: Snapshot) -> List {
        let coalesced = room.version().saturating_sub(self.listed.version() + 1);
        metrics::counter!("presence_changes_coalesced_total").increment(coalesced);
        let listed = std::mem::replace(&mut self.listed, room.clone());
        debug_assert!(listed.version() <= room.version());
        let mut bases = vec![listed];
        let later = self.bases.iter().position(|base| base.version() >= room.version());
        bases.extend(self.bases.drain(..later.unwrap_or(self.bases.len())));
        bases.dedup_by_key(|base| base.version());
        let touched = std::mem::take(&mut self.touched);
        List::since(bases, room, touched, &self.sizes)
    }

    /// The list for newcomers, of whom so many listen. Their next one goes on from it.
    pub fn greet(&mut self, room: &Snapshot, newcomers: usize) -> Arc<List> {
        if newcomers == self.listeners && !self.messages_wait() {
            // Nobody is there who knows less.
            (self.listed, self.told) = (room.clone(), room.version());
            self.touched = Touched::default();
            self.bases.clear();
        } else {
            self.keep_base(room);
        }
        let list = List::whole(room.clone(), &self.sizes);
        Arc::new(list.followed(self.has_changed()))
    }

    fn keep_base(&mut self, room: &Snapshot) {
        let newest = self.bases.last().unwrap_or(&self.listed).version();
        if newest < room.version() && self.bases.len() < MAX_BASES {
            self.bases.push(room.clone());
        }
    }

    /// Whether a newcomer that gets the whole list each time may have it now. If not, it is owed it soon.
    pub fn may_greet_in_full(&mut self, room: &Snapshot, now: u64) -> bool {
        if self.sizes.is_too_large(Whole::Full, room) {
            // It gets a count, which costs no encoding.
            return true;
        }
        let cost = self.sizes.full_cost().saturating_mul(ENCODING_SHARE);
        let ready = self.full_sent + micros(cost.min(MAX_GREETING_WAIT));
        // Those who come in one turn share one encoding.
        if now == self.full_sent || now >= ready {
            self.full_sent = now;
            return true;
        }
        self.owe(ready);
        self.greeting_waits = true;
        false
    }

    /// Somebody needs the whole list, and is to be offered it at this time.
    fn owe(&mut self, at: u64) {
        self.owed = Some(self.owed.map_or(at, |owed| owed.min(at)));
    }

    /// Somebody needs the whole list and did not take it, or it was too large.
    pub fn owe_later(&mut self, now: u64) {
        self.owe(now + micros(OFFER_INTERVAL));
    }

    /// Whether the listeners have been told of this version.
    pub fn has_told(&self, version: u64) -> bool {
        version <= self.told
    }

    /// Has a message wait for the list that brings its sender, in the room as it is now.
    pub fn wait(&mut self, said: Said, sender: ConnectionId, room: &Snapshot, now: u64) {
        if !self.messages_wait() {
            (self.waiting_since, self.waiting_bytes) = (now, 0);
        }
        let bytes = said.message.bytes() + MESSAGE_OVERHEAD;
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        let new = || {
            let (senders, messages) = (SmallVec::new(), Vec::new());
            Box::new(Waiting { room: room.clone(), senders, messages })
        };
        let waiting = self.waiting.get_or_insert_with(new);
        if !waiting.senders.contains(&sender) {
            waiting.senders.push(sender);
        }
        waiting.messages.push(said);
    }

    /// Has the messages that wait go out at once. Says whether there are any.
    pub fn hurry(&mut self) -> bool {
        self.waiting_bytes = usize::MAX;
        self.messages_wait()
    }

    /// The same, if some of them are of senders who have left.
    pub fn hurry_closed(&mut self) -> bool {
        !self.closed.is_empty() && self.hurry()
    }

    fn messages_wait(&self) -> bool {
        self.waiting.is_some() || !self.closed.is_empty()
    }

    fn has_changed(&self) -> bool {
        !self.touched.is_empty() || self.messages_wait()
    }

    /// When something may go out, as things are now, if there is anything to tell.
    pub fn next(&self, now: u64) -> Option<u64> {
        let list = self.has_changed().then(|| self.next_list(now));
        let owed = self.owed.map(|owed| owed.max(now));
        list.into_iter().chain(owed).min()
    }

    /// Whether so many changes wait that it is rather a crowd than a trickle.
    fn is_crowd(&self) -> bool {
        self.touched.places() > self.listeners / CROWD_SHARE
    }

    fn next_list(&self, now: u64) -> u64 {
        let next = self.schedule.next(self.is_crowd(), now);
        if !self.messages_wait() {
            return next;
        }
        if self.waiting_bytes > MAX_WAITING {
            return now;
        }
        next.min(self.schedule.next_for_message(self.waiting_since, now))
    }

    /// Takes what may go out now to everybody: lists, and the messages that have waited for them.
    pub fn take(&mut self, room: &Snapshot, threads: usize, now: u64) -> Vec<Next> {
        if !self.has_changed() || self.next_list(now) > now {
            return Vec::new();
        }
        // A list that only a message of somebody who has left waits for takes no more with it.
        let is_time = self.waiting.is_some() || self.schedule.next(self.is_crowd(), now) <= now;
        let mut lists = std::mem::take(&mut self.closed);
        if is_time {
            let waiting = self.waiting.take();
            let list = self.list(room.clone());
            lists.push((list, waiting.map(|waiting| waiting.messages).unwrap_or_default()));
            (self.owed, self.greeting_waits, self.full_sent) = (None, false, now);
        }
        self.schedule.sent(threads * lists.len(), now);
        let mut next = Vec::new();
        for (list, messages) in lists {
            self.told = list.version();
            next.push(Next::List(Arc::new(list)));
            next.extend(messages.into_iter().map(Next::Message));
        }
        next
    }

    /// Takes the list for those who need the whole of it, if it may be offered to them now; says whether
    /// only to the newcomers among them.
    pub fn take_owed(&mut self, room: &Snapshot, now: u64) -> Option<(List, bool)> {
        // Others hear messages that wait, which are of versions before this one.
        let only_newcomers = self.messages_wait();
        let later = now + micros(OFFER_INTERVAL);
        if only_newcomers && !self.greeting_waits {
            self.owed = self.owed.map(|owed| owed.max(later));
            return None;
        }
        self.owed.take_if(|owed| *owed <= now)?;
        if only_newcomers {
            self.owe(later);
        }
        (self.greeting_waits, self.full_sent) = (false, now);
        self.keep_base(room);
        Some((List::whole(room.clone(), &self.sizes), only_newcomers))
    }

    /// Takes the list for newcomers who wait for it, if there are any.
    pub fn take_greeting(&mut self, room: &Snapshot, now: u64) -> Option<(List, bool)> {
        if !self.greeting_waits {
            return None;
        }
        self.owed = Some(now);
        self.take_owed(room, now)
    }

    /// Takes the messages that wait, as nobody is left who listens.
    pub fn take_messages(&mut self) -> Vec<Said> {
        let closed =
            std::mem::take(&mut self.closed).into_iter().flat_map(|(_, messages)| messages);
        let waiting = self.waiting.take().map(|waiting| waiting.messages).unwrap_or_default();
        closed.chain(waiting).collect()
    }

    /// A thread has handed out a list.
    pub fn returned(&mut self, desk: Desk, busy: Duration, now: u64) {
        self.schedule.returned(desk, busy, now);
    }
}

#[cfg(test)]
#[path = "audience_tests.rs"]
mod tests;
