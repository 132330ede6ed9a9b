//! Tells observers which users come online anywhere and go offline everywhere, without ever waiting for one.
//!
//! As with [changes of rooms](super::observers), each observer has a bounded queue and a task that sends one event
//! at a time. When the queue is full, at most one event of each further user waits: coming and going again cancel
//! out. For too many users the queue is replaced by one event that names all who are online.

use std::{
    collections::{HashSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use actix::prelude::*;
use ahash::RandomState;
use hashlink::LinkedHashMap;

use super::observer_queue::{ObserverQueue, Waiting};
use crate::{
    log_limit::LogLimit,
    messages::{SubscriptionId, UserChange, UserChanged},
    model::{Moment, Offline, UserId},
};

/// For how many users one event each waits beyond the queue of an observer.
const MAX_CONFLATED_USERS: usize = 65_536;

/// Tells these subscriptions from those to changes of rooms.
const FIRST_ID: u64 = 1 << 63;

pub(crate) struct UserObservers {
    observers: Vec<UserObserver>,
    next_id: u64,
    capacity: usize,
    /// Whom the observers know to be online; empty without observers.
    online: HashSet<UserId, RandomState>,
}

struct UserObserver {
    id: SubscriptionId,
    recipient: Recipient<UserChanged>,
    queue: Rc<ObserverQueue<UserEvents>>,
}

impl UserObservers {
    pub fn new(capacity: usize) -> Self {
        Self { observers: Vec::new(), next_id: FIRST_ID, capacity, online: HashSet::default() }
    }

    /// Whether there are observers, for which all rooms are followed.
    pub fn any(&self) -> bool {
        self.observers.iter().any(|observer| observer.recipient.connected())
    }

    /// Queued events of the observer that lags most.
    pub fn lag(&self) -> usize {
        self.observers.iter().map(|observer| observer.queue.len()).max().unwrap_or(0)
    }

    /// Done when the observers have handled all that is queued for them, or have stopped.
    pub fn drained(&self) -> impl Future<Output = ()> + use<> {
        ObserverQueue::all_drained(self.observers.iter().map(|one| one.queue.clone()).collect())
    }

    /// Adds an observer; `online` are the users that are online now. Returns whom the observers know to be.
    pub fn subscribe(
        &mut self,
        observer: Recipient<UserChanged>,
        online: impl Iterator<Item = UserId>,
    ) -> (SubscriptionId, Vec<UserId>) {
        if !self.any() {
            self.online = online.collect();
        }
        self.forget_stopped();
        self.next_id += 1;
        let id = SubscriptionId(self.next_id);
        let queue = ObserverQueue::start(observer.clone());
        self.observers.push(UserObserver { id, recipient: observer, queue });
        (id, self.online.iter().cloned().collect())
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
        if self.observers.is_empty() {
            self.online = HashSet::default();
        }
        self.observers.len() != before
    }

    /// The user is in some room. Nothing happens if the observers know.
    pub fn is_online(&mut self, user: &UserId, now: Moment) {
        if self.online.insert(user.clone()) {
            self.tell(UserChange::Online(user.clone()), user, now);
        }
    }

    /// The user is in no room. Nothing happens if the observers know.
    pub fn is_offline(&mut self, gone: &Offline, now: Moment) {
        if self.online.remove(&gone.user) {
            self.tell(UserChange::Offline(gone.clone()), &gone.user, now);
        }
    }

    fn tell(&mut self, change: UserChange, user: &UserId, now: Moment) {
        let Self { observers, capacity, online, .. } = self;
        let event = UserChanged { at: now.utc(), change };
        let mut all: Option<Arc<[UserId]>> = None;
        observers.retain(|observer| {
            let queue = &observer.queue;
            let mut events = queue.waiting.borrow_mut();
            if !queue.is_closed() && !events.push(&event, user, *capacity) {
                let all = all.get_or_insert_with(|| online.iter().cloned().collect());
                let change = UserChange::Resync(Arc::clone(all));
                events.replace_all(UserChanged { change, ..event.clone() });
                warn_overflow(observer.id);
            }
            queue.wake();
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
            "an observer lags behind about too many users: it is told who is online"
        );
    }
}

impl Drop for UserObservers {
    fn drop(&mut self) {
        for observer in &self.observers {
            observer.queue.close();
        }
    }
}

#[derive(Default)]
struct UserEvents {
    single: VecDeque<UserChanged>,
    /// One event of each further user, which differs from what the observer has been or will be told before.
    conflated: LinkedHashMap<UserId, UserChanged, RandomState>,
}

impl UserEvents {
    /// Queues an event. Returns whether there was space.
    fn push(&mut self, event: &UserChanged, user: &UserId, capacity: usize) -> bool {
        if self.conflated.is_empty() && self.single.len() < capacity {
            self.single.push_back(event.clone());
        } else if self.conflated.remove(user).is_some() {
            // Of two changes of one user the later undoes the earlier.
        } else if self.conflated.len() < MAX_CONFLATED_USERS {
            metrics::counter!("presence_observer_conflations_total").increment(1);
            self.conflated.insert(user.clone(), event.clone());
        } else {
            return false;
        }
        true
    }

    fn replace_all(&mut self, event: UserChanged) {
        self.conflated.clear();
        self.single = VecDeque::from([event]);
    }
}

impl Waiting for UserEvents {
    type Event = UserChanged;

    fn len(&self) -> usize {
        self.single.len() + self.conflated.len()
    }

    fn pop(&mut self) -> Option<UserChanged> {
        let further = |conflated: &mut LinkedHashMap<_, _, _>| conflated.pop_front();
        self.single.pop_front().or_else(|| further(&mut self.conflated).map(|(_, event)| event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Cause, testing::Probe};

    const NOW: Moment = Moment { monotonic: 0, wall: 0 };

    fn user(number: usize) -> UserId {
        UserId::new(format!("user {number}")).unwrap()
    }

    fn gone(number: usize) -> Offline {
        Offline { user: user(number), cause: Cause::Left }
    }

    #[actix::test]
    async fn a_user_alternates_for_an_observer_that_lags_and_coming_and_going_cancel_out() {
        let mut observers = UserObservers::new(2);
        let (observer, mut seen) = Probe::<UserChanged>::new();
        let (_, online) = observers.subscribe(observer.recipient(), [user(9)].into_iter());
        assert_eq!(online, [user(9)]);
        // The observer's task does not run before all are queued.
        observers.is_online(&user(9), NOW);
        observers.is_online(&user(0), NOW);
        observers.is_offline(&gone(0), NOW);
        observers.is_offline(&gone(0), NOW);
        for number in 0..3 {
            observers.is_online(&user(number), NOW);
        }
        observers.is_offline(&gone(1), NOW);
        observers.is_offline(&gone(9), NOW);
        assert_eq!(observers.lag(), 5);
        let mut told = Vec::new();
        for _ in 0..5 {
            told.push(seen.next().await.unwrap().change);
        }
        use UserChange::{Offline, Online};
        let expected = [Online(user(0)), Offline(gone(0)), Online(user(0)), Online(user(2))];
        assert_eq!(told[..4], expected);
        assert_eq!(told[4], Offline(gone(9)));
        observers.is_online(&user(1), NOW);
        assert_eq!(seen.next().await.unwrap().change, Online(user(1)));
    }

    #[actix::test]
    async fn an_observer_that_lags_about_too_many_users_is_told_who_is_online() {
        let mut observers = UserObservers::new(1);
        let (observer, mut seen) = Probe::<UserChanged>::new();
        let (id, _) = observers.subscribe(observer.recipient(), std::iter::empty());
        for number in 0..MAX_CONFLATED_USERS + 2 {
            observers.is_online(&user(number), NOW);
        }
        observers.is_offline(&gone(0), NOW);
        let UserChange::Resync(all) = seen.next().await.unwrap().change else { panic!("all") };
        assert_eq!(all.len(), MAX_CONFLATED_USERS + 2);
        assert_eq!(seen.next().await.unwrap().change, UserChange::Offline(gone(0)));
        assert!(observers.unsubscribe(id) && !observers.any() && observers.online.is_empty());
    }
}
