//! The thread that waits for the database, so that nobody else does.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::{dev::ToEnvelope, prelude::*};
use chrono::{DateTime, Utc};

use crate::store::{Applied, Batch, Renewal, Store, StoreError};
use crate::{model::NodeName, supervision::Guard};

/// The actor that owns the store: one thread, one call at a time, in the order of the messages.
///
/// Its queue has no bound: send the next [`Write`] when the last one has been answered. Every message
/// is answered; a panic in the store becomes [`StoreError::Panicked`].
///
/// [`StoreError::Gone`] is answered for the call that met it, and the writer calls [`Store::start`]
/// before it does anything else, so who asks has to write every row again, and no more.
#[derive(Clone)]
pub struct Writer {
    node: NodeName,
    lease: Duration,
    // Shared with the factory of the arbiter, which may be asked for a second actor: the first one's
    // store goes on there.
    shared: Arc<Mutex<Shared>>,
    /// Dropped with the thread, which has the actor and its factory.
    _guard: Option<Arc<Guard>>,
}

struct Shared {
    /// `None` after [`Goodbye`].
    store: Option<Box<dyn Store>>,
    /// The database has been lost; the next call starts on the new one.
    restart: bool,
}

impl Writer {
    /// Starts the writer's thread. The store has been started for this node already.
    #[must_use]
    pub fn start(store: Box<dyn Store>, node: NodeName, lease: Duration) -> Addr<Self> {
        Self::new(store, node, lease).run()
    }

    pub(crate) fn new(store: Box<dyn Store>, node: NodeName, lease: Duration) -> Self {
        let shared = Arc::new(Mutex::new(Shared { store: Some(store), restart: false }));
        Self { node, lease, shared, _guard: None }
    }

    /// Starts the writer's thread, which keeps the guard for as long as it runs.
    pub(crate) fn start_guarded(
        store: Box<dyn Store>,
        node: NodeName,
        lease: Duration,
        guard: Guard,
    ) -> Addr<Self> {
        let _guard = Some(Arc::new(guard));
        Self { _guard, ..Self::new(store, node, lease) }.run()
    }

    fn run(self) -> Addr<Self> {
        SyncArbiter::start(1, move || self.clone())
    }

    fn call<T>(
        &self,
        now: DateTime<Utc>,
        call: impl FnOnce(&mut dyn Store, &NodeName) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Shared { store, restart } = &mut *shared;
        let store = store.as_deref_mut().ok_or(StoreError::Closed)?;
        // A store keeps nothing that a transaction cut short could leave half done.
        let result = catch_unwind(AssertUnwindSafe(|| {
            if *restart {
                let _ = store.start(&self.node, now, self.lease)?;
                *restart = false;
            }
            call(store, &self.node)
        }));
        let result = result.unwrap_or(Err(StoreError::Panicked));
        *restart |= matches!(result, Err(StoreError::Gone));
        result
    }
}

/// How to reach a writer.
#[derive(Clone)]
pub(crate) struct WriterDesk {
    pub write: Recipient<Write>,
    pub renew: Recipient<Renew>,
    pub prune_rooms: Recipient<PruneRoomRows>,
    pub goodbye: Recipient<Goodbye>,
}

impl<A> From<Addr<A>> for WriterDesk
where
    A: Actor + Handler<Write> + Handler<Renew> + Handler<PruneRoomRows> + Handler<Goodbye>,
    A::Context: ToEnvelope<A, Write>
        + ToEnvelope<A, Renew>
        + ToEnvelope<A, PruneRoomRows>
        + ToEnvelope<A, Goodbye>,
{
    fn from(writer: Addr<A>) -> Self {
        Self {
            write: writer.clone().recipient(),
            renew: writer.clone().recipient(),
            prune_rooms: writer.clone().recipient(),
            goodbye: writer.recipient(),
        }
    }
}

impl Actor for Writer {
    type Context = SyncContext<Self>;
}

/// "Write this." Sent by the mirror, one at a time; answers when it is committed.
///
/// On an error nothing is written, and the sender, who shares the batch, sends it again later.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Applied, StoreError>")]
pub struct Write {
    /// What to write.
    pub batch: Arc<Batch>,
    /// The time now.
    pub now: DateTime<Utc>,
}

impl Handler<Write> for Writer {
    type Result = Result<Applied, StoreError>;

    fn handle(&mut self, msg: Write, _: &mut SyncContext<Self>) -> Self::Result {
        self.write(msg)
    }
}

impl Writer {
    pub(crate) fn write(&self, Write { batch, now }: Write) -> Result<Applied, StoreError> {
        let (upserts, deletes) = (batch.upserts.len(), batch.deletes.len());
        let _span = tracing::debug_span!("write", upserts, deletes).entered();
        self.call(now, |store, node| store.apply(node, &batch, now))
    }
}

/// "We are still alive." Sent by the mirror, at least every third of the lease.
///
/// After [`Renewal::Lapsed`] every row has to be written again.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Renewal, StoreError>")]
pub struct Renew {
    /// The time now.
    pub now: DateTime<Utc>,
}

impl Handler<Renew> for Writer {
    type Result = Result<Renewal, StoreError>;

    fn handle(&mut self, msg: Renew, _: &mut SyncContext<Self>) -> Self::Result {
        self.renew(msg)
    }
}

impl Writer {
    pub(crate) fn renew(&self, Renew { now }: Renew) -> Result<Renewal, StoreError> {
        let lease = self.lease;
        self.call(now, |store, node| store.renew(node, now, lease))
    }
}

/// "Remove the rooms nobody is in." Sent when the registry prunes its rooms; answers how many.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<usize, StoreError>")]
pub struct PruneRoomRows {
    /// The time now.
    pub now: DateTime<Utc>,
}

impl Handler<PruneRoomRows> for Writer {
    type Result = Result<usize, StoreError>;

    fn handle(&mut self, msg: PruneRoomRows, _: &mut SyncContext<Self>) -> Self::Result {
        self.prune_rooms(msg)
    }
}

impl Writer {
    pub(crate) fn prune_rooms(&self, msg: PruneRoomRows) -> Result<usize, StoreError> {
        self.call(msg.now, |store, _| store.prune_rooms())
    }
}

/// "That was all." Removes what this node has in the database and closes it; sent once, at the end.
/// With a grace, what is fading stays for so long, see [`Store::hand_over`].
///
/// Answers how many presences it removed. On an error the database stays open, and it can be sent
/// again; afterwards every message is answered with [`StoreError::Closed`].
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<usize, StoreError>")]
pub struct Goodbye {
    /// The time now.
    pub now: DateTime<Utc>,
    /// How long clients may take to come back to another node, if there is one.
    pub grace: Option<Duration>,
}

impl Handler<Goodbye> for Writer {
    type Result = Result<usize, StoreError>;

    fn handle(&mut self, msg: Goodbye, _: &mut SyncContext<Self>) -> Self::Result {
        self.goodbye(msg)
    }
}

impl Writer {
    pub(crate) fn goodbye(&self, msg: Goodbye) -> Result<usize, StoreError> {
        let Goodbye { now, grace } = msg;
        let removed = match self.call(now, |store, node| match grace {
            Some(grace) => store.hand_over(node, now, grace),
            None => store.stop(node),
        }) {
            // The new database has nothing of this node.
            Err(StoreError::Gone) => 0,
            result => result?,
        };
        let store = self.shared.lock().unwrap_or_else(PoisonError::into_inner).store.take();
        // Everything is written; a panic while it is closed must not end the thread before the answer.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(store)));
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Epoch,
        store::{DatabaseUrl, RoomCounts, SqliteStore, Started},
        supervision::{Crashed, Supervisor},
    };

    /// What a store is to do with the next call.
    enum Next {
        Succeed,
        Fail(StoreError),
        Panic,
        /// A panic of which nobody can be told.
        PanicTwice,
    }

    /// The payload of a panic, which panics when it is dropped.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("again");
        }
    }

    /// A store that follows a script and notes what it was asked.
    struct Scripted {
        script: std::vec::IntoIter<Next>,
        calls: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Scripted {
        fn next<T>(&mut self, call: &'static str, answer: T) -> Result<T, StoreError> {
            self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
            match self.script.next() {
                Some(Next::Panic) => panic!("as the script says"),
                Some(Next::PanicTwice) => std::panic::panic_any(Bomb),
                Some(Next::Fail(error)) => Err(error),
                Some(Next::Succeed) | None => Ok(answer),
            }
        }
    }

    impl Store for Scripted {
        fn apply(
            &mut self,
            _: &NodeName,
            _: &Batch,
            _: DateTime<Utc>,
        ) -> Result<Applied, StoreError> {
            self.next("apply", Applied::default())
        }

        fn start(
            &mut self,
            _: &NodeName,
            _: DateTime<Utc>,
            _: Duration,
        ) -> Result<Started, StoreError> {
            let (incarnation, dead, inherited) = (Epoch::new(), Vec::new(), Vec::new());
            self.next("start", Started { incarnation, dead, inherited, stopped: false })
        }

        fn renew(
            &mut self,
            _: &NodeName,
            _: DateTime<Utc>,
            _: Duration,
        ) -> Result<Renewal, StoreError> {
            self.next("renew", Renewal::Held)
        }

        fn stop(&mut self, _: &NodeName) -> Result<usize, StoreError> {
            self.next("stop", 3)
        }

        fn prune_presences(&mut self, _: DateTime<Utc>, _: Duration) -> Result<usize, StoreError> {
            self.next("prune_presences", 0)
        }

        fn prune_rooms(&mut self) -> Result<usize, StoreError> {
            self.next("prune_rooms", 2)
        }

        fn rooms(&mut self) -> Result<Vec<RoomCounts>, StoreError> {
            self.next("rooms", Vec::new())
        }
    }

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    fn writer(script: Vec<Next>) -> (Addr<Writer>, Arc<Mutex<Vec<&'static str>>>) {
        let calls = Arc::default();
        let store = Scripted { script: script.into_iter(), calls: Arc::clone(&calls) };
        (start(store), calls)
    }

    fn start(store: impl Store + 'static) -> Addr<Writer> {
        Writer::start(Box::new(store), NodeName::new("n").unwrap(), Duration::from_secs(15))
    }

    fn write() -> Write {
        Write { batch: Arc::default(), now: NOW }
    }

    #[actix::test]
    async fn a_panic_in_the_store_is_an_answer_and_the_writer_goes_on() {
        let (writer, _) = writer(vec![Next::Panic, Next::Succeed]);
        let panicked = writer.send(write()).await.unwrap();
        assert!(matches!(panicked, Err(StoreError::Panicked)));
        assert_eq!(writer.send(write()).await.unwrap().unwrap(), Applied::default());
    }

    #[actix::test]
    async fn a_thread_that_has_ended_is_told() {
        let calls = Arc::default();
        let script = vec![Next::Succeed, Next::PanicTwice].into_iter();
        let store = Box::new(Scripted { script, calls });
        let supervisor = Supervisor::default();
        let guard = supervisor.guard(Crashed::Writer);
        let name = NodeName::new("n").unwrap();
        let writer = Writer::start_guarded(store, name, Duration::from_secs(15), guard);
        assert!(writer.send(write()).await.unwrap().is_ok());
        assert_eq!(supervisor.crashed(), None);
        assert!(writer.send(write()).await.is_err());
        assert_eq!(supervisor.closed().await, Err(Crashed::Writer));
    }

    #[actix::test]
    async fn a_lost_database_is_started_again_before_anything_else() {
        let (writer, calls) =
            writer(vec![Next::Fail(StoreError::Gone), Next::Fail(StoreError::Locked)]);
        assert!(matches!(writer.send(write()).await.unwrap(), Err(StoreError::Gone)));
        assert!(matches!(writer.send(write()).await.unwrap(), Err(StoreError::Locked)));
        assert!(writer.send(write()).await.unwrap().is_ok());
        assert_eq!(writer.send(Renew { now: NOW }).await.unwrap().unwrap(), Renewal::Held);
        assert_eq!(*calls.lock().unwrap(), ["apply", "start", "start", "apply", "renew"]);
    }

    #[actix::test]
    async fn after_goodbye_the_store_is_closed() {
        let (writer, calls) = writer(vec![Next::Succeed, Next::Fail(StoreError::Locked)]);
        assert_eq!(writer.send(PruneRoomRows { now: NOW }).await.unwrap().unwrap(), 2);
        let goodbye = Goodbye { now: NOW, grace: None };
        assert!(matches!(writer.send(goodbye).await.unwrap(), Err(StoreError::Locked)));
        assert_eq!(writer.send(goodbye).await.unwrap().unwrap(), 3);
        assert!(matches!(writer.send(goodbye).await.unwrap(), Err(StoreError::Closed)));
        assert_eq!(Arc::strong_count(&calls), 1, "the store is dropped, not only silent");
    }

    #[actix::test]
    async fn a_real_store_works_on_the_writers_thread() {
        let writer = start(SqliteStore::open(&DatabaseUrl::SqliteMemory).unwrap());
        let renewal = writer.send(Renew { now: NOW }).await.unwrap().unwrap();
        assert!(matches!(renewal, Renewal::Lapsed { .. }));
        assert_eq!(writer.send(write()).await.unwrap().unwrap(), Applied::default());
        assert_eq!(writer.send(Goodbye { now: NOW, grace: None }).await.unwrap().unwrap(), 0);
    }
}
