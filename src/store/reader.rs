//! The thread that reads what other nodes have written.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::prelude::*;
use tokio::sync::{Semaphore, oneshot};

use super::{SharedStore, StoreError};
use crate::supervision::Guard;

/// The most queries that may wait for the reader.
const MAX_WAITING_QUERIES: usize = 1024;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// The pause after a failure of the database, given the number of failures before it in a row.
pub(crate) fn retry_pause(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LAST_RETRY)
}

/// A query to the store of a [`Reader`]; it sends its answer itself.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Query(Box<RunQuery>);

type RunQuery = dyn FnOnce(&mut dyn SharedStore) + Send;

/// The actor that owns a second store on the database: one thread, one query at a time.
pub(crate) struct Reader {
    // Shared with the factory of the arbiter, which may be asked for a second actor.
    store: Arc<Mutex<Box<dyn SharedStore>>>,
    _guard: Arc<Guard>,
}

impl Reader {
    /// Starts the reader's thread.
    pub fn start(store: Box<dyn SharedStore>, guard: Guard) -> ReaderHandle {
        let (store, guard) = (Arc::new(Mutex::new(store)), Arc::new(guard));
        let reader = move || Self { store: Arc::clone(&store), _guard: Arc::clone(&guard) };
        ReaderHandle::new(SyncArbiter::start(1, reader).recipient())
    }
}

impl Actor for Reader {
    type Context = SyncContext<Self>;
}

impl Handler<Query> for Reader {
    type Result = ();

    fn handle(&mut self, query: Query, _: &mut SyncContext<Self>) {
        query.run(&mut **self.store.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Query {
    /// Runs the query and sends its answer.
    pub fn run(self, store: &mut dyn SharedStore) {
        // A panic drops the sender of the answer, which tells the receiver.
        if catch_unwind(AssertUnwindSafe(|| (self.0)(store))).is_err() {
            tracing::error!("the store panicked");
        }
    }
}

/// Sends queries to the database that the nodes share. A clone uses the same reader.
#[derive(Clone)]
pub(crate) struct ReaderHandle {
    reader: Recipient<Query>,
    places: Arc<Semaphore>,
}

impl ReaderHandle {
    pub fn new(reader: Recipient<Query>) -> Self {
        Self { reader, places: Arc::new(Semaphore::new(MAX_WAITING_QUERIES)) }
    }

    /// Sends a query; it fails at once if too many wait already.
    pub fn ask<T: Send + 'static>(
        &self,
        query: impl FnOnce(&mut dyn SharedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> impl Future<Output = Result<T, StoreError>> + 'static {
        let (reply, answer) = oneshot::channel();
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => self.reader.do_send(Query(Box::new(move |store| {
                // The receiver may have been dropped.
                let _ = reply.send(query(store));
                drop(place);
            }))),
            Err(_) => {
                let _ = reply.send(Err(StoreError::unavailable("too many queries are waiting")));
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
        testing::{Bomb, MemoryDatabase},
    };

    #[actix::test]
    async fn a_panic_is_the_error_of_its_query_and_the_end_of_the_thread_is_noticed() {
        let supervisor = Supervisor::default();
        let store = Box::new(MemoryDatabase::new().store());
        let reader = Reader::start(store, supervisor.guard(Crashed::Reader));
        let panicked = reader.ask::<()>(|_| panic!("as the test says")).await;
        assert!(matches!(panicked, Err(StoreError::Panicked)));
        assert!(reader.ask(|_| Ok(1)).await.is_ok());
        assert_eq!(supervisor.crashed(), None);
        assert!(reader.ask::<()>(|_| std::panic::panic_any(Bomb)).await.is_err());
        assert_eq!(supervisor.closed().await, Err(Crashed::Reader));
    }
}
