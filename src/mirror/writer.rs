//! The thread that waits for the database.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::{dev::ToEnvelope, prelude::*};
use chrono::{DateTime, Utc};

use crate::{
    model::NodeName,
    store::{
        Applied, Batch, Renewal, Result, SharedStore, Store, StoreError,
        lane::{HungCalls, Lane, Worker},
    },
    supervision::{Crashed, Guard, Supervisor, check_threads, start_sync},
};

/// The actor that owns the store: one thread, one call at a time, in the order of the messages.
///
/// Its queue is unbounded: send the next [`Write`] when the last one has been answered. Every message is
/// answered; a panic in the store becomes [`StoreError::Panicked`].
///
/// After [`StoreError::Gone`] the writer calls [`Store::start`] before anything else, so the sender only
/// has to write every row again.
#[derive(Clone)]
pub struct Writer {
    node: NodeName,
    lease: Duration,
    // Shared with the factory of the arbiter, which may be asked for a second actor.
    shared: Arc<Mutex<Shared>>,
    /// Dropped with the thread, which owns the actor and its factory.
    _guard: Option<Arc<Guard>>,
}

struct Shared {
    /// `None` after [`CloseStore`].
    store: Option<Box<dyn Store>>,
    /// Whether the database was lost, so that the next call has to start on the new one.
    restart: bool,
}

impl Writer {
    pub(crate) fn new(store: Box<dyn Store>, node: NodeName, lease: Duration) -> Self {
        let shared = Arc::new(Mutex::new(Shared { store: Some(store), restart: false }));
        Self { node, lease, shared, _guard: None }
    }

    /// Starts the thread of a store whose calls are never given up.
    pub(crate) fn start_alone(
        store: Box<dyn Store>,
        node: NodeName,
        lease: Duration,
        supervisor: &Supervisor,
    ) -> io::Result<WriterHandle> {
        let guard = supervisor.guard(Crashed::Writer);
        Ok(Self::new(store, node, lease).start_guarded(guard)?.into())
    }

    /// Starts the thread of a store, and another one when a call hangs.
    pub(crate) fn start_shared(
        store: Box<dyn SharedStore>,
        node: NodeName,
        lease: Duration,
        hung: HungCalls,
        supervisor: &Supervisor,
    ) -> io::Result<WriterHandle> {
        let (opener, supervisor) = (store.opener(), supervisor.clone());
        let start = move |store: Box<dyn SharedStore>| {
            // Before there is a guard, which would report a crash.
            check_threads()?;
            let guard = supervisor.guard(Crashed::Writer);
            let (pulse, release) = (store.pulse(), guard.release());
            let writer = Self::new(store, node.clone(), lease).start_guarded(guard)?;
            Ok(Worker { address: writer.into(), pulse, release })
        };
        Ok(WriterHandle(Lane::replaceable(start(store)?, opener, hung, true, start)))
    }

    /// Starts the writer's thread, which holds the guard until it ends.
    fn start_guarded(self, guard: Guard) -> io::Result<Addr<Self>> {
        let _guard = Some(Arc::new(guard));
        Self { _guard, ..self }.run()
    }

    pub(super) fn run(self) -> io::Result<Addr<Self>> {
        start_sync(move || self.clone())
    }

    fn call<T>(
        &self,
        now: DateTime<Utc>,
        call: impl FnOnce(&mut dyn Store, &NodeName) -> Result<T>,
    ) -> Result<T> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Shared { store, restart } = &mut *shared;
        let store = store.as_deref_mut().ok_or(StoreError::Closed)?;
        // Unwind safe: a store has no state that an aborted transaction could leave inconsistent.
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

    pub(crate) fn write(&self, Write { batch, now }: Write) -> Result<Applied> {
        let (upserts, deletes) = (batch.upserts.len(), batch.deletes.len());
        let _span = tracing::debug_span!("write", upserts, deletes).entered();
        self.call(now, |store, node| store.apply(node, &batch, now))
    }

    pub(crate) fn renew(&self, Renew { now }: Renew) -> Result<Renewal> {
        self.call(now, |store, node| store.renew(node, now, self.lease))
    }

    pub(crate) fn prune_rooms(&self, msg: PruneRoomRows) -> Result<usize> {
        self.call(msg.now, |store, _| store.prune_rooms())
    }

    pub(crate) fn close_store(&self, CloseStore { now, grace }: CloseStore) -> Result<usize> {
        let removed = match self.call(now, |store, node| match grace {
            Some(grace) => store.hand_over(node, now, grace),
            None => store.stop(node),
        }) {
            // The new database has no rows of this node.
            Err(StoreError::Gone) => 0,
            result => result?,
        };
        let store = self.shared.lock().unwrap_or_else(PoisonError::into_inner).store.take();
        // A panic in the store's drop must not end the thread before the answer.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(store)));
        Ok(removed)
    }
}

/// Sends messages to the writer. A clone sends to the same one.
#[derive(Clone)]
pub(crate) struct WriterHandle(Lane<WriterAddress>);

/// The address of a writer.
#[derive(Clone)]
struct WriterAddress {
    write: Recipient<Write>,
    renew: Recipient<Renew>,
    prune_rooms: Recipient<PruneRoomRows>,
    close_store: Recipient<CloseStore>,
}

macro_rules! send {
    ($method:ident, $message:ty, $answer:ty) => {
        /// Sends the message; without an answer the writer's thread has ended with the system.
        pub fn $method(&self, message: $message) -> impl Future<Output = Result<$answer>> + use<> {
            self.0.call(move |writer| {
                let answer = writer.$method.send(message);
                async { answer.await.unwrap_or(Err(StoreError::Closed)) }
            })
        }
    };
}

impl WriterHandle {
    /// Whether calls that hang are given up.
    pub fn gives_up(&self) -> bool {
        self.0.gives_up()
    }

    send!(write, Write, Applied);
    send!(renew, Renew, Renewal);
    send!(prune_rooms, PruneRoomRows, usize);
    send!(close_store, CloseStore, usize);
}

impl<A> From<Addr<A>> for WriterHandle
where
    WriterAddress: From<Addr<A>>,
    A: Actor,
{
    /// A handle of an actor whose calls are never given up.
    fn from(writer: Addr<A>) -> Self {
        Self(Lane::fixed(writer.into()))
    }
}

impl<A> From<Addr<A>> for WriterAddress
where
    A: Actor + Handler<Write> + Handler<Renew> + Handler<PruneRoomRows> + Handler<CloseStore>,
    A::Context: ToEnvelope<A, Write>
        + ToEnvelope<A, Renew>
        + ToEnvelope<A, PruneRoomRows>
        + ToEnvelope<A, CloseStore>,
{
    fn from(writer: Addr<A>) -> Self {
        Self {
            write: writer.clone().recipient(),
            renew: writer.clone().recipient(),
            prune_rooms: writer.clone().recipient(),
            close_store: writer.recipient(),
        }
    }
}

impl Actor for Writer {
    type Context = SyncContext<Self>;
}

/// Writes a batch. Sent by the mirror, one at a time; answered when the batch is committed.
///
/// On an error nothing is written, and the sender, which shares the batch, sends it again later.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Applied>")]
pub struct Write {
    /// The batch.
    pub batch: Arc<Batch>,
    /// The current time.
    pub now: DateTime<Utc>,
}

/// Renews the lease. Sent by the mirror, at least every third of the lease.
///
/// After [`Renewal::Lapsed`] every row has to be written again.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Renewal>")]
pub struct Renew {
    /// The current time.
    pub now: DateTime<Utc>,
}

/// Removes the rows of empty rooms. Sent when the registry prunes its rooms; returns the number removed.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<usize>")]
pub struct PruneRoomRows {
    /// The current time.
    pub now: DateTime<Utc>,
}

/// Removes the rows of this node and closes the store; sent once, at the end. With a grace, fading
/// presences stay for that long, see [`Store::hand_over`].
///
/// Returns the number of presences removed. On an error the store stays open, and the message can be sent
/// again; afterwards every message is answered with [`StoreError::Closed`].
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<usize>")]
pub struct CloseStore {
    /// The current time.
    pub now: DateTime<Utc>,
    /// How long clients may take to come back to another node, if there is one.
    pub grace: Option<Duration>,
}

macro_rules! handler {
    ($message:ty, $method:ident) => {
        impl Handler<$message> for Writer {
            type Result = <$message as Message>::Result;

            fn handle(&mut self, msg: $message, _: &mut SyncContext<Self>) -> Self::Result {
                self.$method(msg)
            }
        }
    };
}
handler!(Write, write);
handler!(Renew, renew);
handler!(PruneRoomRows, prune_rooms);
handler!(CloseStore, close_store);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Epoch,
        store::{RoomCounts, Started},
        testing::{Bomb, MemoryDatabase},
    };

    /// What the store does with the next call.
    enum Step {
        Succeed,
        Fail(StoreError),
        Panic,
        /// A panic that cannot be caught.
        PanicTwice,
    }

    /// A store that follows a script and records its calls.
    struct Scripted {
        script: std::vec::IntoIter<Step>,
        calls: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Scripted {
        fn next<T>(&mut self, call: &'static str, answer: T) -> Result<T> {
            self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
            match self.script.next() {
                Some(Step::Panic) => panic!("as the script says"),
                Some(Step::PanicTwice) => std::panic::panic_any(Bomb),
                Some(Step::Fail(error)) => Err(error),
                Some(Step::Succeed) | None => Ok(answer),
            }
        }
    }

    impl Store for Scripted {
        fn apply(&mut self, _: &NodeName, _: &Batch, _: DateTime<Utc>) -> Result<Applied> {
            self.next("apply", Applied::default())
        }

        fn start(&mut self, _: &NodeName, _: DateTime<Utc>, _: Duration) -> Result<Started> {
            let (incarnation, dead, inherited) = (Epoch::new(), Vec::new(), Vec::new());
            self.next("start", Started { incarnation, dead, inherited, stopped: false })
        }

        fn renew(&mut self, _: &NodeName, _: DateTime<Utc>, _: Duration) -> Result<Renewal> {
            self.next("renew", Renewal::Held)
        }

        fn stop(&mut self, _: &NodeName) -> Result<usize> {
            self.next("stop", 3)
        }

        fn prune_presences(&mut self, _: DateTime<Utc>, _: Duration) -> Result<usize> {
            self.next("prune_presences", 0)
        }

        fn prune_rooms(&mut self) -> Result<usize> {
            self.next("prune_rooms", 2)
        }

        fn rooms(&mut self, _: DateTime<Utc>) -> Result<Vec<RoomCounts>> {
            self.next("rooms", Vec::new())
        }
    }

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    fn writer(script: Vec<Step>) -> (Addr<Writer>, Arc<Mutex<Vec<&'static str>>>) {
        let calls = Arc::default();
        let store = Scripted { script: script.into_iter(), calls: Arc::clone(&calls) };
        (start(store), calls)
    }

    fn start(store: impl Store + 'static) -> Addr<Writer> {
        Writer::new(Box::new(store), NodeName::new("n").unwrap(), Duration::from_secs(15))
            .run()
            .unwrap()
    }

    fn write() -> Write {
        Write { batch: Arc::default(), now: NOW }
    }

    #[actix::test]
    async fn a_panic_in_the_store_is_answered_as_an_error_and_the_writer_continues() {
        let (writer, _) = writer(vec![Step::Panic, Step::Succeed]);
        let panicked = writer.send(write()).await.unwrap();
        assert!(matches!(panicked, Err(StoreError::Panicked)));
        assert_eq!(writer.send(write()).await.unwrap().unwrap(), Applied::default());
    }

    #[actix::test]
    async fn the_end_of_the_thread_is_noticed() {
        let calls = Arc::default();
        let script = vec![Step::Succeed, Step::PanicTwice].into_iter();
        let store = Box::new(Scripted { script, calls });
        let supervisor = Supervisor::default();
        let name = NodeName::new("n").unwrap();
        let writer =
            Writer::start_alone(store, name, Duration::from_secs(15), &supervisor).unwrap();
        assert!(writer.write(write()).await.is_ok());
        assert_eq!(supervisor.crashed(), None);
        assert!(matches!(writer.write(write()).await, Err(StoreError::Closed)));
        assert_eq!(supervisor.closed().await, Err(Crashed::Writer));
    }

    #[actix::test]
    async fn a_lost_database_is_started_again_before_anything_else() {
        let (writer, calls) =
            writer(vec![Step::Fail(StoreError::Gone), Step::Fail(StoreError::Locked)]);
        assert!(matches!(writer.send(write()).await.unwrap(), Err(StoreError::Gone)));
        assert!(matches!(writer.send(write()).await.unwrap(), Err(StoreError::Locked)));
        assert!(writer.send(write()).await.unwrap().is_ok());
        assert_eq!(writer.send(Renew { now: NOW }).await.unwrap().unwrap(), Renewal::Held);
        assert_eq!(*calls.lock().unwrap(), ["apply", "start", "start", "apply", "renew"]);
    }

    #[actix::test]
    async fn after_close_store_every_message_is_answered_as_closed() {
        let (writer, calls) = writer(vec![Step::Succeed, Step::Fail(StoreError::Locked)]);
        assert_eq!(writer.send(PruneRoomRows { now: NOW }).await.unwrap().unwrap(), 2);
        let close = CloseStore { now: NOW, grace: None };
        assert!(matches!(writer.send(close).await.unwrap(), Err(StoreError::Locked)));
        assert_eq!(writer.send(close).await.unwrap().unwrap(), 3);
        assert!(matches!(writer.send(close).await.unwrap(), Err(StoreError::Closed)));
        assert_eq!(Arc::strong_count(&calls), 1, "the store is dropped, not only silent");
    }

    #[actix::test]
    async fn a_real_store_works_on_the_writers_thread() {
        let writer = start(MemoryDatabase::new().store());
        let renewal = writer.send(Renew { now: NOW }).await.unwrap().unwrap();
        assert!(matches!(renewal, Renewal::Lapsed { .. }));
        assert_eq!(writer.send(write()).await.unwrap().unwrap(), Applied::default());
        assert_eq!(writer.send(CloseStore { now: NOW, grace: None }).await.unwrap().unwrap(), 0);
    }
}
