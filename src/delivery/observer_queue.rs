//! The queue between the registry and one observer, with the task that sends one event at a time.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use actix::prelude::*;
use tokio::sync::Notify;

use crate::log_limit::LogLimit;

/// What waits for an observer.
pub(super) trait Waiting: Default + 'static {
    type Event: Message<Result = ()> + Send + 'static;

    /// How many events there are.
    fn len(&self) -> usize;

    /// Takes the next event out.
    fn pop(&mut self) -> Option<Self::Event>;
}

#[derive(Default)]
pub(super) struct ObserverQueue<W> {
    pub waiting: RefCell<W>,
    is_closed: Cell<bool>,
    /// Whether the observer has an event that it has not handled yet.
    is_in_flight: Cell<bool>,
    wake: Notify,
    /// Notified whenever there is nothing to do.
    idle: Notify,
}

impl<W: Waiting> ObserverQueue<W> {
    /// A queue whose events are sent to this observer until it is closed, or the observer has stopped. An observer in
    /// a `SyncArbiter` goes on while one of its threads lives.
    pub fn start(observer: Recipient<W::Event>) -> Rc<Self> {
        let queue = Rc::<Self>::default();
        let events = Rc::clone(&queue);
        actix::spawn(async move {
            while let Some(event) = events.next().await {
                if observer.send(event).await.is_ok() {
                    continue;
                }
                if observer.connected() {
                    note_lost();
                } else {
                    events.close();
                }
            }
        });
        queue
    }

    pub fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    pub fn close(&self) {
        self.is_closed.set(true);
        self.wake.notify_one();
        self.idle.notify_waiters();
    }

    /// To be called when an event was queued.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Done when the observers of these queues have handled all that waits for them, or have stopped.
    pub async fn all_drained(queues: Vec<Rc<Self>>) {
        for queue in queues {
            queue.drained().await;
        }
    }

    async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            if self.is_closed() || (!self.is_in_flight.get() && self.len() == 0) {
                return;
            }
            idle.await;
        }
    }

    async fn next(&self) -> Option<W::Event> {
        loop {
            if self.is_closed() {
                return None;
            }
            let event = self.waiting.borrow_mut().pop();
            self.is_in_flight.set(event.is_some());
            if event.is_some() {
                return event;
            }
            self.idle.notify_waiters();
            self.wake.notified().await;
        }
    }
}

/// Notes an event that an observer which goes on has not handled: a thread of its `SyncArbiter` has panicked, or it
/// has dropped its own answer.
fn note_lost() {
    static LOST: LogLimit = LogLimit::new();
    metrics::counter!("presence_observer_events_lost_total").increment(1);
    if let Some(suppressed) = LOST.pass() {
        tracing::error!(suppressed, "an observer has panicked at an event, or given it up");
    }
}
