//! The thread that reads what other nodes have written.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use actix::prelude::*;
use tokio::sync::{Semaphore, oneshot};

use super::store::{SharedStore, StoreError};

/// Questions that may wait for the reader.
const WAITING: usize = 1024;

/// A question to the store of a [`Reader`], which brings its own way to answer.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Ask(Box<Question>);

type Question = dyn FnOnce(&mut dyn SharedStore) + Send;

/// The actor that owns a second store on the database: one thread, one question at a time.
pub(crate) struct Reader(Arc<Mutex<Box<dyn SharedStore>>>);

impl Reader {
    /// Starts the reader's thread.
    pub fn start(store: Box<dyn SharedStore>) -> Desk {
        // Shared with the factory of the arbiter, which may be asked for a second actor.
        let store = Arc::new(Mutex::new(store));
        Desk::new(SyncArbiter::start(1, move || Self(Arc::clone(&store))).recipient())
    }
}

impl Actor for Reader {
    type Context = SyncContext<Self>;
}

impl Handler<Ask> for Reader {
    type Result = ();

    fn handle(&mut self, ask: Ask, _: &mut SyncContext<Self>) {
        ask.answer(&mut **self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Ask {
    /// Answers the question.
    pub fn answer(self, store: &mut dyn SharedStore) {
        // Who asked is told that the store has panicked: its end of the answer is dropped.
        let answered = catch_unwind(AssertUnwindSafe(|| (self.0)(store)));
        if answered.is_err() {
            tracing::error!("the store panicked");
        }
    }
}

/// Where to ask the database that the nodes share. A clone asks the same reader.
#[derive(Clone)]
pub(crate) struct Desk {
    reader: Recipient<Ask>,
    places: Arc<Semaphore>,
}

impl Desk {
    pub fn new(reader: Recipient<Ask>) -> Self {
        Self { reader, places: Arc::new(Semaphore::new(WAITING)) }
    }

    /// Asks; the answer comes when the database has given it, or does not take the question.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn SharedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> impl Future<Output = Result<T, StoreError>> + 'static {
        let (reply, answer) = oneshot::channel();
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => self.reader.do_send(Ask(Box::new(move |store| {
                // Who asked may have gone.
                let _ = reply.send(question(store));
                drop(place);
            }))),
            Err(_) => {
                let _ = reply.send(Err(StoreError::unavailable("too many questions wait for it")));
            }
        }
        async { answer.await.unwrap_or(Err(StoreError::Panicked)) }
    }
}
