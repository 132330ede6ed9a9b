//! Telling observers of every change, without ever waiting for one.
//!
//! Each observer has a bounded queue and a task of its own that hands over one event at a time. When
//! the queue is full, the further changes of a room are conflated into its latest state.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    rc::Rc,
};

use actix::prelude::*;
use ahash::RandomState;
use tokio::sync::Notify;

use crate::{
    messages::{Change, PresenceChanged, RoomFilter, Scope, SubscriptionId},
    model::{NodeName, RoomName, Snapshot},
};

/// An observer that lags behind in more rooms than this has stopped taking anything.
const MAX_CONFLATED_ROOMS: usize = 65_536;

/// All observers.
pub(crate) struct Observers {
    observers: Vec<Observer>,
    next_id: u64,
    capacity: usize,
}

struct Observer {
    id: SubscriptionId,
    filter: RoomFilter,
    scope: Scope,
    /// To see whether its actor has stopped, also when there is nothing to tell it.
    recipient: Recipient<PresenceChanged>,
    line: Rc<Line>,
}

/// The queue between the registry and one observer's task.
#[derive(Default)]
struct Line {
    queue: RefCell<Queue>,
    wake: Notify,
}

impl Observers {
    pub fn new(capacity: usize) -> Self {
        Self { observers: Vec::new(), next_id: 0, capacity }
    }

    /// Whether anybody wants to hear of the changes of other nodes in this very room.
    pub fn follow(&self, room: &RoomName) -> bool {
        let named = |filter: &RoomFilter| matches!(filter, RoomFilter::Room(only) if only == room);
        let mut observers = self.observers.iter();
        observers.any(|one| one.scope == Scope::Cluster && named(&one.filter))
    }

    /// Whether anybody wants to hear of the changes of other nodes in all rooms.
    pub fn follow_everything(&self) -> bool {
        let mut observers = self.observers.iter().filter(|one| one.recipient.connected());
        observers.any(|one| one.scope == Scope::Cluster && one.filter == RoomFilter::Any)
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        !self.observers.is_empty()
    }

    /// Events that wait for the observer furthest behind.
    pub fn lag(&self) -> usize {
        self.observers.iter().map(|observer| observer.line.queue.borrow().len()).max().unwrap_or(0)
    }

    pub fn subscribe(
        &mut self,
        filter: RoomFilter,
        observer: Recipient<PresenceChanged>,
        scope: Scope,
    ) -> SubscriptionId {
        self.next_id += 1;
        let id = SubscriptionId(self.next_id);
        let line = Rc::new(Line::default());
        actix::spawn(hand_over(observer.clone(), line.clone()));
        self.forget_stopped();
        self.observers.push(Observer { id, filter, scope, recipient: observer, line });
        id
    }

    fn forget_stopped(&mut self) {
        self.observers.retain(|observer| {
            let here = observer.recipient.connected();
            if !here {
                observer.line.close();
            }
            here
        });
    }

    pub fn unsubscribe(&mut self, id: SubscriptionId) -> bool {
        let before = self.observers.len();
        self.observers.retain(|observer| {
            if observer.id == id {
                observer.line.close();
            }
            observer.id != id
        });
        self.observers.len() != before
    }

    /// Queues the event for everybody who wants to hear of its room, and of the changes of other
    /// nodes unless it is `ours`.
    pub fn tell(&mut self, event: &PresenceChanged, ours: bool) {
        let capacity = self.capacity;
        self.observers.retain(|observer| {
            let admits = ours || observer.scope == Scope::Cluster;
            if !admits || !observer.filter.admits(&event.room) {
                return !observer.line.queue.borrow().closed;
            }
            let open = observer.line.queue.borrow_mut().push(event, capacity);
            observer.line.wake.notify_one();
            if !open {
                tracing::warn!(id = observer.id.0, "an observer is gone or takes nothing: dropped");
            }
            open
        });
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        for observer in &self.observers {
            observer.line.close();
        }
    }
}

impl Line {
    fn close(&self) {
        self.queue.borrow_mut().closed = true;
        self.wake.notify_one();
    }

    async fn next(&self) -> Option<PresenceChanged> {
        loop {
            let event = {
                let mut queue = self.queue.borrow_mut();
                if queue.closed {
                    return None;
                }
                queue.pop()
            };
            match event {
                Some(event) => return Some(event),
                None => self.wake.notified().await,
            }
        }
    }
}

async fn hand_over(observer: Recipient<PresenceChanged>, line: Rc<Line>) {
    while let Some(event) = line.next().await {
        if observer.send(event).await.is_err() {
            line.close();
        }
    }
}

#[derive(Default)]
struct Queue {
    events: VecDeque<PresenceChanged>,
    /// The rooms whose single changes had no place, in the order in which that began.
    conflated: VecDeque<RoomName>,
    latest: HashMap<RoomName, (Snapshot, NodeName), RandomState>,
    closed: bool,
}

impl Queue {
    /// Takes an event, or what the room is now; `false` if the line is closed.
    fn push(&mut self, event: &PresenceChanged, capacity: usize) -> bool {
        if let Some(latest) = self.latest.get_mut(&event.room) {
            *latest = (event.snapshot.clone(), event.node.clone());
        } else if self.events.len() < capacity {
            self.events.push_back(event.clone());
        } else if self.conflated.len() < MAX_CONFLATED_ROOMS {
            metrics::counter!("presence_observer_conflations_total").increment(1);
            self.conflated.push_back(event.room.clone());
            let latest = (event.snapshot.clone(), event.node.clone());
            self.latest.insert(event.room.clone(), latest);
        } else {
            self.closed = true;
        }
        !self.closed
    }

    fn len(&self) -> usize {
        self.events.len() + self.conflated.len()
    }

    fn pop(&mut self) -> Option<PresenceChanged> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let (state, node) = self.latest.remove(&self.conflated.pop_front()?)?;
        Some(PresenceChanged {
            room: state.room().clone(),
            epoch: state.epoch(),
            version: state.version(),
            snapshot: state,
            node,
            change: Change::Resync,
        })
    }
}
