//! Sends every change to the observers, without ever waiting for one.
//!
//! Each observer has a bounded queue and a task of its own that sends one event at a time. When the queue is
//! full, further changes of a room are conflated into its latest state ([`Change::Resync`]); for too many
//! rooms the queue is replaced by one event to read all rooms again ([`Change::ResyncAll`]).

use std::{
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use actix::prelude::*;
use ahash::RandomState;
use chrono::{DateTime, Utc};

use super::observer_queue::{ObserverQueue, Waiting};
use crate::{
    log_limit::LogLimit,
    messages::{Change, PresenceChanged, RoomFilter, Scope, SubscriptionId},
    model::{NodeName, RoomName, Snapshot},
};

/// In how many rooms changes are conflated for an observer.
const MAX_CONFLATED_ROOMS: usize = 65_536;

pub(crate) struct Observers {
    observers: Vec<Observer>,
    next_id: u64,
    capacity: usize,
}

struct Observer {
    id: SubscriptionId,
    filter: RoomFilter,
    scope: Scope,
    /// Shows whether its actor has stopped, also when there is nothing to send.
    recipient: Recipient<PresenceChanged>,
    queue: Rc<ObserverQueue<Events>>,
}

impl Observers {
    pub fn new(capacity: usize) -> Self {
        Self { observers: Vec::new(), next_id: 0, capacity }
    }

    /// Whether an observer names this room, on all nodes.
    pub fn follow(&self, room: &RoomName) -> bool {
        let named = |filter: &RoomFilter| matches!(filter, RoomFilter::Room(only) if only == room);
        let mut observers = self.observers.iter();
        observers.any(|one| one.scope == Scope::Cluster && named(&one.filter))
    }

    /// Whether an observer observes rooms that it does not name, on all nodes.
    pub fn follow_everything(&self) -> bool {
        let mut observers = self.observers.iter().filter(|one| one.recipient.connected());
        let unnamed = |filter: &RoomFilter| !matches!(filter, RoomFilter::Room(_));
        observers.any(|one| one.scope == Scope::Cluster && unnamed(&one.filter))
    }

    pub fn any(&self) -> bool {
        !self.observers.is_empty()
    }

    /// Queued events of the observer that lags most.
    pub fn lag(&self) -> usize {
        self.observers.iter().map(|observer| observer.queue.len()).max().unwrap_or(0)
    }

    /// Done when the observers have handled all that is queued for them, or have stopped.
    pub fn drained(&self) -> impl Future<Output = ()> + use<> {
        ObserverQueue::all_drained(self.observers.iter().map(|one| one.queue.clone()).collect())
    }

    pub fn subscribe(
        &mut self,
        filter: RoomFilter,
        observer: Recipient<PresenceChanged>,
        scope: Scope,
    ) -> SubscriptionId {
        self.next_id += 1;
        let id = SubscriptionId(self.next_id);
        let queue = ObserverQueue::start(observer.clone());
        self.forget_stopped();
        self.observers.push(Observer { id, filter, scope, recipient: observer, queue });
        id
    }

    fn forget_stopped(&mut self) {
        self.observers.retain(|observer| {
            let here = observer.recipient.connected();
            if !here {
                observer.queue.close();
            }
            here
        });
    }

    pub fn unsubscribe(&mut self, id: SubscriptionId) -> bool {
        let before = self.observers.len();
        self.observers.retain(|observer| {
            if observer.id == id {
                observer.queue.close();
            }
            observer.id != id
        });
        self.observers.len() != before
    }

    /// Queues the event for all observers of its room; unless it is `ours`, for those of all nodes.
    pub fn tell(&mut self, event: &PresenceChanged, ours: bool) {
        let capacity = self.capacity;
        self.observers.retain(|observer| {
            let queue = &observer.queue;
            let admits = ours || observer.scope == Scope::Cluster;
            if admits && !queue.is_closed() && observer.filter.admits(&event.room) {
                if queue.waiting.borrow_mut().push(event, capacity) {
                    warn_overflow(observer.id);
                }
                queue.wake();
            }
            !queue.is_closed()
        });
    }
}

fn warn_overflow(SubscriptionId(id): SubscriptionId) {
    static OVERFLOW: LogLimit = LogLimit::new();
    if let Some(suppressed) = OVERFLOW.pass() {
        tracing::warn!(
            id,
            suppressed,
            "an observer lags behind in too many rooms: it is told to read all of them again"
        );
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        for observer in &self.observers {
            observer.queue.close();
        }
    }
}

#[derive(Default)]
struct Events {
    single: VecDeque<PresenceChanged>,
    /// Rooms whose further changes are conflated, in the order in which that began.
    conflated: VecDeque<RoomName>,
    latest: HashMap<RoomName, Latest, RandomState>,
}

/// The latest state of a room whose changes are conflated.
struct Latest {
    snapshot: Snapshot,
    node: NodeName,
    at: DateTime<Utc>,
}

impl Events {
    /// Queues an event, or the room's latest state. Returns whether everything queued was dropped.
    fn push(&mut self, event: &PresenceChanged, capacity: usize) -> bool {
        let latest =
            || Latest { snapshot: event.snapshot.clone(), node: event.node.clone(), at: event.at };
        if let Some(known) = self.latest.get_mut(&event.room) {
            *known = latest();
        } else if self.single.len() < capacity {
            self.single.push_back(event.clone());
        } else if self.conflated.len() < MAX_CONFLATED_ROOMS {
            metrics::counter!("presence_observer_conflations_total").increment(1);
            self.conflated.push_back(event.room.clone());
            self.latest.insert(event.room.clone(), latest());
        } else {
            let resync = PresenceChanged { change: Change::ResyncAll, ..event.clone() };
            *self = Self { single: VecDeque::from([resync]), ..Self::default() };
            return true;
        }
        false
    }
}

impl Waiting for Events {
    type Event = PresenceChanged;

    fn len(&self) -> usize {
        self.single.len() + self.conflated.len()
    }

    fn pop(&mut self) -> Option<PresenceChanged> {
        if let Some(event) = self.single.pop_front() {
            return Some(event);
        }
        let Latest { snapshot, node, at } = self.latest.remove(&self.conflated.pop_front()?)?;
        Some(PresenceChanged {
            room: snapshot.room().clone(),
            epoch: snapshot.epoch(),
            version: snapshot.version(),
            snapshot,
            node,
            at,
            change: Change::Resync,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Rooms, testing::Probe};

    #[actix::test]
    async fn an_observer_that_lags_in_too_many_rooms_gets_one_event_for_all_and_stays_subscribed() {
        let (rooms, node) = (Rooms::default(), NodeName::new("node").unwrap());
        let change = |room: &str| {
            let room = RoomName::new(room).unwrap();
            let snapshot = rooms.snapshot(&room);
            let (epoch, version, node) = (snapshot.epoch(), snapshot.version(), node.clone());
            let at = DateTime::UNIX_EPOCH;
            PresenceChanged { room, epoch, version, snapshot, node, at, change: Change::Resync }
        };
        let mut observers = Observers::new(1);
        let (observer, mut seen) = Probe::<PresenceChanged>::new();
        observers.subscribe(RoomFilter::Any, observer.recipient(), Scope::Node);
        // The observer's task does not run before all are queued.
        for number in 0..MAX_CONFLATED_ROOMS + 1 {
            observers.tell(&change(&number.to_string()), true);
        }
        observers.tell(&change("too many"), true);
        observers.tell(&change("after"), true);
        let resync = seen.next().await.unwrap();
        assert!(matches!(resync.change, Change::ResyncAll), "{resync:?}");
        assert_eq!(seen.next().await.unwrap().room, "after");
        observers.tell(&change("later"), true);
        assert_eq!(seen.next().await.unwrap().room, "later");
    }
}
