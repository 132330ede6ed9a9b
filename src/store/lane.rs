//! The threads that wait for the database, and their replacement when a call hangs.

use std::{
    io,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use tokio::time::timeout;

use super::{Pulse, Result, SharedStore, StoreError, StoreOpener, pulse::CHECK_INTERVAL};
use crate::{log_limit::LogLimit, supervision::Release};

/// The largest number of calls that may hang at once: each of them costs a thread and a connection.
const MAX_HUNG_CALLS: usize = 4;

/// How often in a row a call is found overdue before it is given up: after a pause of the process the answer
/// may be there, and not read yet.
const OVERDUE_LOOKS: u32 = 3;

/// The calls of a node that hang and have been given up. A clone counts the same calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct HungCalls(Arc<Mutex<Vec<Pulse>>>);

impl HungCalls {
    /// Adds one, unless there are so many already.
    fn add(&self, pulse: &Pulse, limit: usize) -> bool {
        let mut hung = lock(&self.0);
        hung.retain(Pulse::is_waiting);
        let fits = hung.len() < limit;
        if fits {
            hung.push(pulse.clone());
        }
        fits
    }

    /// Takes one out that goes on after all.
    fn remove(&self, pulse: &Pulse) {
        lock(&self.0).retain(|hung| !hung.is_same(pulse));
    }
}

/// A thread with a store of its own.
pub(crate) struct Worker<A> {
    /// Where its calls are sent to.
    pub address: A,
    /// Whether its database answers.
    pub pulse: Pulse,
    /// Lets the thread end without that being a crash.
    pub release: Release,
}

type StartWorker<A> = Box<dyn Fn() -> io::Result<Worker<A>> + Send>;

/// Sends calls to a thread with a store, one after the other. When a call hangs, it is given up: it and
/// those behind it fail with [`StoreError::Stalled`], the thread is left to itself, and another one with a
/// connection of its own takes over.
///
/// A clone sends to the same thread.
pub(crate) struct Lane<A>(Arc<Mutex<State<A>>>);

struct State<A> {
    worker: Worker<A>,
    /// Counts the threads, so that each is given up once.
    number: u64,
    /// Starts the next thread, if calls of this store can be given up.
    next: Option<StartWorker<A>>,
    hung: HungCalls,
    /// How many calls may hang, of this lane and all others, before this one is not replaced.
    max_hung: usize,
}

impl<A> Clone for Lane<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: Clone> Lane<A> {
    /// A lane whose calls are never given up.
    pub fn fixed(address: A) -> Self {
        let worker = Worker { address, pulse: Pulse::default(), release: Release::default() };
        let (hung, max_hung) = (HungCalls::default(), 0);
        Self(Arc::new(Mutex::new(State { worker, number: 0, next: None, hung, max_hung })))
    }

    /// A lane whose calls are given up if further stores can be opened. The last place among the hung calls
    /// is kept for an `essential` one.
    pub fn replaceable(
        worker: Worker<A>,
        opener: Option<StoreOpener>,
        hung: HungCalls,
        essential: bool,
        start: impl Fn(Box<dyn SharedStore>) -> io::Result<Worker<A>> + Send + 'static,
    ) -> Self
    where
        A: 'static,
    {
        let next = opener.map(|open| Box::new(move || start(open())) as StartWorker<A>);
        let max_hung = MAX_HUNG_CALLS - usize::from(!essential);
        Self(Arc::new(Mutex::new(State { worker, number: 0, next, hung, max_hung })))
    }

    /// Whether calls that hang are given up.
    pub fn gives_up(&self) -> bool {
        lock(&self.0).next.is_some()
    }

    /// Sends a call to the thread, and waits for its answer.
    pub fn call<T, F, S>(&self, send: S) -> impl Future<Output = Result<T>> + use<T, F, S, A>
    where
        F: Future<Output = Result<T>>,
        S: FnOnce(&A) -> F,
    {
        let sent = lock(&self.0).ready().map(|state| {
            let answer = send(&state.worker.address);
            let watched = state.next.is_some();
            (answer, watched.then(|| (state.number, state.worker.pulse.clone())))
        });
        let lane = self.clone();
        async move {
            let (answer, watched) = sent?;
            let Some((number, pulse)) = watched else { return answer.await };
            let mut answer = pin!(answer);
            let mut overdue = 0;
            while overdue < OVERDUE_LOOKS {
                if let Ok(answer) = timeout(CHECK_INTERVAL, &mut answer).await {
                    return answer;
                }
                overdue = if pulse.is_overdue() { overdue + 1 } else { 0 };
            }
            lock(&lane.0).give_up(number);
            Err(StoreError::Stalled)
        }
    }
}

impl<A> State<A> {
    /// The thread to send a call to. Fails if it hangs and cannot be replaced: calls would pile up.
    fn ready(&mut self) -> Result<&mut Self> {
        if self.next.is_some() && self.worker.pulse.is_overdue() && !self.give_up(self.number) {
            return Err(StoreError::Stalled);
        }
        Ok(self)
    }

    /// Replaces the thread with this number, unless too many calls hang already, or no further thread can be
    /// started.
    fn give_up(&mut self, number: u64) -> bool {
        let Some(start) = self.next.as_ref().filter(|_| number == self.number) else { return true };
        if !can_start_threads() || !self.hung.add(&self.worker.pulse, self.max_hung) {
            return false;
        }
        let next = match start() {
            Ok(next) => next,
            Err(error) => {
                self.hung.remove(&self.worker.pulse);
                let error = &error as &dyn std::error::Error;
                static FAILED: LogLimit = LogLimit::new();
                if let Some(suppressed) = FAILED.pass() {
                    tracing::error!(error, suppressed, "no thread for another connection");
                }
                return false;
            }
        };
        self.worker.release.release();
        self.number += 1;
        self.worker = next;
        metrics::counter!("presence_database_hung_total").increment(1);
        tracing::warn!("the database does not answer on a connection: it is given up");
        true
    }
}

/// Actix panics where a thread cannot be started.
fn can_start_threads() -> bool {
    let trial = thread::Builder::new().name("presence-store".to_owned()).spawn(|| ());
    match trial.map(thread::JoinHandle::join) {
        Ok(ended) => ended.is_ok(),
        Err(error) => {
            tracing::warn!(%error, "no thread for another connection to the database");
            false
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use futures_util::{FutureExt, future::join_all};
    use tokio::sync::oneshot;

    use super::*;
    use crate::{store::Waiting, testing::MemoryDatabase};

    /// A thread that answers its number, or hangs.
    #[derive(Clone)]
    struct Thread {
        number: usize,
        pulse: Pulse,
    }

    impl Thread {
        fn answer(&self) -> impl Future<Output = Result<usize>> + use<> {
            let number = self.number;
            async move { Ok(number) }
        }

        /// A call without an answer; it ends when the first of these is dropped.
        fn hang(&self) -> (Waiting, impl Future<Output = Result<usize>> + use<>) {
            let waiting = self.pulse.begin(Duration::ZERO);
            (waiting, std::future::pending())
        }
    }

    /// A lane whose threads are numbered from 0.
    fn lane(hung: &HungCalls, essential: bool) -> Lane<Thread> {
        limited_lane(hung, essential, &Arc::new(AtomicUsize::new(usize::MAX)))
    }

    /// A lane that may start so many threads.
    fn limited_lane(hung: &HungCalls, essential: bool, limit: &Arc<AtomicUsize>) -> Lane<Thread> {
        let (number, limit) = (Arc::new(AtomicUsize::new(0)), Arc::clone(limit));
        let start = move |_: Box<dyn SharedStore>| {
            if number.load(Relaxed) == limit.load(Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let number = number.fetch_add(1, Relaxed);
            let pulse = Pulse::default();
            let address = Thread { number, pulse: pulse.clone() };
            Ok(Worker { address, pulse, release: Release::default() })
        };
        let store = MemoryDatabase::new().store();
        let (opener, first) = (store.opener(), start(Box::new(store)).unwrap());
        Lane::replaceable(first, opener, hung.clone(), essential, start)
    }

    /// Has the next call hang, and returns what ends that.
    async fn hang(lane: &Lane<Thread>) -> Option<Waiting> {
        let (got, taken) = oneshot::channel();
        let call = lane.call(|thread| {
            let (waiting, answer) = thread.hang();
            let _ = got.send(waiting);
            answer
        });
        assert!(matches!(call.await, Err(StoreError::Stalled)));
        taken.now_or_never().and_then(Result::ok)
    }

    #[actix::test]
    async fn a_call_that_hangs_is_given_up_with_those_behind_it_and_another_thread_goes_on() {
        let lane = lane(&HungCalls::default(), true);
        assert_eq!(lane.call(Thread::answer).await.unwrap(), 0);
        let (got, hangs) = oneshot::channel();
        let behind: Vec<_> =
            (0..3).map(|_| lane.call(|_| std::future::pending::<Result<usize>>())).collect();
        let first = lane.call(|thread| {
            let (waiting, answer) = thread.hang();
            let _ = got.send(waiting);
            answer
        });
        let answers =
            join_all(behind.into_iter().map(FutureExt::boxed_local).chain([first.boxed_local()]));
        assert!(answers.await.iter().all(|answer| matches!(answer, Err(StoreError::Stalled))));
        assert_eq!(lane.call(Thread::answer).await.unwrap(), 1, "given up once");
        drop(hangs);
    }

    #[actix::test]
    async fn so_many_hang_at_once_and_the_last_place_is_for_an_essential_one() {
        let hung = HungCalls::default();
        let (reader, writer) = (lane(&hung, false), lane(&hung, true));
        let mut waiting = Vec::new();
        for _ in 0..MAX_HUNG_CALLS {
            waiting.push(hang(&reader).await.unwrap());
        }
        assert!(hang(&reader).await.is_none(), "it is not even sent");
        waiting.push(hang(&writer).await.unwrap());
        assert_eq!(writer.call(Thread::answer).await.unwrap(), 1, "the writer goes on");
        waiting.push(hang(&writer).await.unwrap());
        assert!(hang(&writer).await.is_none());
        // As soon as one is answered, another may hang.
        drop(waiting.remove(0));
        assert_eq!(writer.call(Thread::answer).await.unwrap(), 2);
        waiting.drain(..2);
        assert_eq!(reader.call(Thread::answer).await.unwrap(), 4);
    }

    #[actix::test]
    async fn where_no_thread_can_be_started_calls_stall_until_one_can() {
        let (hung, limit) = (HungCalls::default(), Arc::new(AtomicUsize::new(1)));
        let lane = limited_lane(&hung, true, &limit);
        let waiting = hang(&lane).await.unwrap();
        // More often than calls may hang: each is the same one.
        for _ in 0..=MAX_HUNG_CALLS {
            assert!(matches!(lane.call(Thread::answer).await, Err(StoreError::Stalled)));
        }
        limit.store(2, Relaxed);
        assert_eq!(lane.call(Thread::answer).await.unwrap(), 1, "on another thread");
        drop(waiting);
    }
}
