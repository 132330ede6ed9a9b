//! The thread that reads what other nodes have written.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::prelude::*;
use tokio::sync::{Semaphore, oneshot};

use super::{
    SharedStore, StoreError,
    lane::{HungCalls, Lane, Worker},
};
use crate::supervision::{Crashed, Guard, Supervisor, check_threads, start_sync};

/// The most queries that may wait for the reader.
const MAX_WAITING_QUERIES: usize = 1024;

const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest pause after a failure of the database.
pub(crate) const LAST_RETRY: Duration = Duration::from_secs(5);

/// The pause after a failure of the database, given the number of failures before it in a row.
pub(crate) fn retry_pause(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LAST_RETRY)
}

/// A query to the store of a [`Reader`]; it sends its answer itself.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Query(Box<RunQuery>);

type RunQuery = dyn FnOnce(&mut dyn SharedStore) + Send;

/// The actor that owns a store for queries: one thread, one query at a time.
pub(crate) struct Reader {
    // Shared with the factory of the arbiter, which may be asked for a second actor.
    store: Arc<Mutex<Box<dyn SharedStore>>>,
    _guard: Arc<Guard>,
}

impl Reader {
    /// Starts a thread for queries, and another one when a query hangs.
    pub fn start(
        store: Box<dyn SharedStore>,
        hung: HungCalls,
        supervisor: &Supervisor,
    ) -> io::Result<ReaderHandle> {
        let (opener, supervisor) = (store.opener(), supervisor.clone());
        let start = move |store| {
            // Before there is a guard, which would report a crash.
            check_threads()?;
            Self::start_thread(store, supervisor.guard(Crashed::Reader))
        };
        Ok(ReaderHandle(Lane::replaceable(start(store)?, opener, hung, false, start)))
    }

    fn start_thread(store: Box<dyn SharedStore>, guard: Guard) -> io::Result<Worker<QuerySender>> {
        let (pulse, release) = (store.pulse(), guard.release());
        let (store, guard) = (Arc::new(Mutex::new(store)), Arc::new(guard));
        let reader = move || Self { store: Arc::clone(&store), _guard: Arc::clone(&guard) };
        let address = QuerySender::new(start_sync(reader)?.recipient());
        Ok(Worker { address, pulse, release })
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

/// Where queries are sent to, at most [`MAX_WAITING_QUERIES`] at once.
#[derive(Clone)]
struct QuerySender {
    reader: Recipient<Query>,
    places: Arc<Semaphore>,
}

impl QuerySender {
    fn new(reader: Recipient<Query>) -> Self {
        Self { reader, places: Arc::new(Semaphore::new(MAX_WAITING_QUERIES)) }
    }
}

/// Sends queries to the database that the nodes share. A clone uses the same thread.
#[derive(Clone)]
pub(crate) struct ReaderHandle(Lane<QuerySender>);

impl ReaderHandle {
    /// A handle of an actor whose queries are never given up.
    #[cfg(test)]
    pub fn new(reader: Recipient<Query>) -> Self {
        Self(Lane::fixed(QuerySender::new(reader)))
    }

    /// Sends a query; it fails at once if too many wait already.
    pub fn ask<T, Q>(&self, query: Q) -> impl Future<Output = Result<T, StoreError>> + use<T, Q>
    where
        T: Send + 'static,
        Q: FnOnce(&mut dyn SharedStore) -> Result<T, StoreError> + Send + 'static,
    {
        self.0.call(move |QuerySender { reader, places }| {
            let (reply, answer) = oneshot::channel();
            match Arc::clone(places).try_acquire_owned() {
                Ok(place) => reader.do_send(Query(Box::new(move |store| {
                    // Nobody waits for an answer that was given up.
                    if !reply.is_closed() {
                        let _ = reply.send(query(store));
                    }
                    drop(place);
                }))),
                Err(_) => {
                    let full = StoreError::unavailable("too many queries are waiting");
                    let _ = reply.send(Err(full));
                }
            }
            async { answer.await.unwrap_or(Err(StoreError::Panicked)) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bomb, MemoryDatabase};

    #[actix::test]
    async fn a_panic_is_the_error_of_its_query_and_the_end_of_the_thread_is_noticed() {
        let supervisor = Supervisor::default();
        let store = Box::new(MemoryDatabase::new().store());
        let hung = HungCalls::default();
        let reader = Reader::start(store, hung, &supervisor).unwrap();
        let panicked = reader.ask::<(), _>(|_| panic!("as the test says")).await;
        assert!(matches!(panicked, Err(StoreError::Panicked)));
        assert!(reader.ask(|_| Ok(1)).await.is_ok());
        assert_eq!(supervisor.crashed(), None);
        assert!(reader.ask::<(), _>(|_| std::panic::panic_any(Bomb)).await.is_err());
        assert_eq!(supervisor.closed().await, Err(Crashed::Reader));
    }
}
