//! The thread that reads what other nodes have written.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use actix::prelude::*;
use tokio::sync::{Semaphore, oneshot};

use super::{SharedStore, StoreError};
use crate::supervision::Guard;

/// Questions that may wait for the reader.
const WAITING: usize = 1024;

/// A question to the store of a [`Reader`], which brings its own way to answer.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Ask(Box<Question>);

type Question = dyn FnOnce(&mut dyn SharedStore) + Send;

/// The actor that owns a second store on the database: one thread, one question at a time.
pub(crate) struct Reader {
    // Shared with the factory of the arbiter, which may be asked for a second actor.
    store: Arc<Mutex<Box<dyn SharedStore>>>,
    _guard: Arc<Guard>,
}

impl Reader {
    /// Starts the reader's thread.
    pub fn start(store: Box<dyn SharedStore>, guard: Guard) -> Desk {
        let (store, guard) = (Arc::new(Mutex::new(store)), Arc::new(guard));
        let reader = move || Self { store: Arc::clone(&store), _guard: Arc::clone(&guard) };
        Desk::new(SyncArbiter::start(1, reader).recipient())
    }
}

impl Actor for Reader {
    type Context = SyncContext<Self>;
}

impl Handler<Ask> for Reader {
    type Result = ();

    fn handle(&mut self, ask: Ask, _: &mut SyncContext<Self>) {
        ask.answer(&mut **self.store.lock().unwrap_or_else(PoisonError::into_inner));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        supervision::{Crashed, Supervisor},
        testing::MemoryDatabase,
    };

    /// The payload of a panic, which panics when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("again");
        }
    }

    #[actix::test]
    async fn a_panic_is_the_error_of_its_question_and_a_thread_that_has_ended_is_told() {
        let supervisor = Supervisor::default();
        let store = Box::new(MemoryDatabase::new().store());
        let desk = Reader::start(store, supervisor.guard(Crashed::Reader));
        let panicked = desk.ask::<()>(|_| panic!("as the test says")).await;
        assert!(matches!(panicked, Err(StoreError::Panicked)));
        assert!(desk.ask(|_| Ok(1)).await.is_ok());
        assert_eq!(supervisor.crashed(), None);
        assert!(desk.ask::<()>(|_| std::panic::panic_any(Bomb)).await.is_err());
        assert_eq!(supervisor.closed().await, Err(Crashed::Reader));
    }
}
