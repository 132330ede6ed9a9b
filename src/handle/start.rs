//! Starting the actors of a presence system, and the handle of a running one.

use std::time::Duration;

use actix::{MailboxError, prelude::*};

use super::{PresenceConfig, StartError};
#[cfg(feature = "postgres")]
use crate::store::PostgresStore;
#[cfg(feature = "sqlite")]
use crate::store::{OwnerLock, SqliteStore};
use crate::{
    bus::Bus,
    cluster::Cluster,
    messages::{
        FlushError, GetStatus, PresenceChanged, RoomFilter, Shutdown, Subscribe, SubscriptionId,
    },
    mirror::{COMMIT_INTERVAL, Mirror, Writer, WriterHandle},
    model::{Epoch, NodeName, Rooms},
    registry::{ClockOffset, Inherited, Parts, Pruner, RoomRegistry},
    store::{
        DatabaseUrl, SharedStore, Started, Store,
        reader::{Reader, ReaderHandle},
    },
    supervision::{Crashed, Supervisor},
};

/// How often the registry is asked whether it answers.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the actors may take to stop after a shutdown.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// What a registry works with: the database, and the bus to other nodes.
pub(crate) struct Backend {
    pub node: NodeName,
    /// The incarnation of this node in the database.
    pub incarnation: Epoch,
    pub inherited: Inherited,
    pub writer: WriterHandle,
    /// For a database that other nodes may use, too.
    pub reader: Option<ReaderHandle>,
    /// For rooms that are shared with these nodes.
    pub bus: Option<Box<dyn Bus>>,
    pub supervisor: Supervisor,
}

impl PresenceConfig {
    /// Migrates the database, removes the rows of dead processes, and starts the actors:
    /// [`RoomRegistry`] on a thread of its own, [`Pruner`] beside it.
    ///
    /// Blocks on the database: call it before the server runs.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an option is invalid or the database cannot be used.
    ///
    /// # Panics
    ///
    /// If no actix system runs on this thread.
    pub fn start(self) -> Result<PresenceHandle, StartError> {
        self.check()?;
        self.node_name()?;
        let url = self.database_url()?;
        let bus = self.bus(url.is_shared())?;
        match url {
            #[cfg(feature = "sqlite")]
            DatabaseUrl::SqliteMemory => {
                let store = SqliteStore::open(&url)?;
                self.start_on(Box::new(store), None, bus)
            }
            #[cfg(feature = "sqlite")]
            DatabaseUrl::SqliteFile(ref path) => {
                let owner = OwnerLock::take(path)?;
                let store = SqliteStore::open(&url)?.owned(Some(owner));
                self.start_on(Box::new(store), None, bus)
            }
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => {
                let writer = Box::new(PostgresStore::open(&url)?);
                let reader = Box::new(PostgresStore::open(&url)?);
                self.start_on(writer, Some(reader), bus)
            }
        }
    }

    /// Starts the actors as [`start`](Self::start) does, on a shared database and a bus of one's own
    /// implementation, or on those of `testing`. The options come from
    /// [`PresenceConfig::default`](Self::default), since the database is given here.
    ///
    /// `writer` and `reader` are two stores on the same database, so that neither waits for the other.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an option is invalid or the database cannot be used.
    ///
    /// # Panics
    ///
    /// If no actix system runs on this thread.
    pub fn start_shared(
        self,
        writer: Box<dyn SharedStore>,
        reader: Box<dyn SharedStore>,
        bus: Box<dyn Bus>,
    ) -> Result<PresenceHandle, StartError> {
        if self.database.is_some() || self.redis.is_some() {
            return Err(StartError::TwoDatabases);
        }
        self.start_on(writer, Some(reader), Some(bus))
    }

    fn start_on(
        mut self,
        mut store: Box<dyn Store>,
        mut reader: Option<Box<dyn SharedStore>>,
        bus: Option<Box<dyn Bus>>,
    ) -> Result<PresenceHandle, StartError> {
        self.check()?;
        let node = self.node_name()?;
        self.clock = self.clock.correctable();
        if let Some(reader) = &mut reader {
            ClockOffset::correct_first(&self.clock, &mut **reader);
        }
        let started = store.start(&node, self.clock.now().utc(), self.lease)?;
        let Started { incarnation, dead, inherited, stopped } = started;
        for dead in dead {
            let (node, presences) = (dead.node, dead.presences);
            tracing::info!(node, presences, "removed the rows of a dead node");
        }
        let supervisor = Supervisor::default();
        let guard = supervisor.guard(Crashed::Writer);
        let backend = Backend {
            writer: Writer::start_guarded(store, node.clone(), self.lease, guard).into(),
            reader: reader.map(|store| Reader::start(store, supervisor.guard(Crashed::Reader))),
            bus,
            node,
            incarnation,
            inherited: Inherited { rows: inherited, stopped },
            supervisor,
        };
        let arbiter = Arbiter::new().handle();
        let presence = self.run(backend, &arbiter)?;
        arbiter.spawn(check_health(presence.registry(), presence.supervisor.clone()));
        Ok(presence)
    }

    /// Starts the actors on this arbiter.
    pub(crate) fn run(
        self,
        backend: Backend,
        arbiter: &ArbiterHandle,
    ) -> Result<PresenceHandle, StartError> {
        let prune_every = self.check()?;
        let Backend { node, incarnation, inherited, writer, reader, bus, supervisor } = backend;
        // Other nodes hear of a change when it is committed, so with a bus nothing is delayed.
        let commit_interval = if bus.is_some() { Duration::ZERO } else { COMMIT_INTERVAL };
        let parts = Parts {
            rooms: Rooms::new(self.limits),
            clock: self.clock.clone(),
            mirror: Mirror::new(writer, commit_interval),
            node: node.clone(),
            cluster: reader
                .map(|reader| Box::new(Cluster::new(node.clone(), incarnation, bus, reader))),
            inherited,
            authorize: self.authorize,
            max_age: self.max_age,
            lease: self.lease,
            grace: self.grace,
            observer_queue: self.observer_queue,
            max_list_size: self.max_list_size,
            guard: supervisor.guard(Crashed::Registry),
        };
        let registry = RoomRegistry::start_in_arbiter(arbiter, |_| RoomRegistry::new(parts));
        let pruner = Pruner::new(
            registry.clone(),
            self.clock,
            self.max_age,
            prune_every,
            self.prune_rooms_every,
            supervisor.guard(Crashed::Pruner),
        );
        let pruner = Pruner::start_in_arbiter(arbiter, |_| pruner);
        Ok(PresenceHandle { registry, pruner, arbiter: arbiter.clone(), node, supervisor })
    }
}

/// Asks the registry again and again, one question at a time. Runs on the arbiter of the registry, so that a
/// blocked thread is noticed, too.
async fn check_health(registry: Addr<RoomRegistry>, supervisor: Supervisor) {
    while registry.send(GetStatus).await.is_ok() {
        supervisor.answered();
        tokio::time::sleep(HEALTH_CHECK_INTERVAL).await;
    }
}

/// A handle of a running presence system. A clone is a handle of the same system.
///
/// Dropping a handle, or all of them, stops nothing: the actors go on until
/// [`shutdown`](Self::shutdown), or until the actix system ends.
#[derive(Clone, Debug)]
pub struct PresenceHandle {
    registry: Addr<RoomRegistry>,
    pruner: Addr<Pruner>,
    arbiter: ArbiterHandle,
    node: NodeName,
    supervisor: Supervisor,
}

impl PresenceHandle {
    /// The registry, to send messages to.
    #[must_use]
    pub fn registry(&self) -> Addr<RoomRegistry> {
        self.registry.clone()
    }

    /// The pruner.
    #[must_use]
    pub fn pruner(&self) -> Addr<Pruner> {
        self.pruner.clone()
    }

    /// The name of this node.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Subscribes an observer to every change from now on.
    ///
    /// # Errors
    ///
    /// [`MailboxError`] if the registry has stopped.
    pub async fn subscribe(
        &self,
        filter: RoomFilter,
        observer: Recipient<PresenceChanged>,
    ) -> Result<SubscriptionId, MailboxError> {
        self.registry.send(Subscribe::new(filter, observer)).await
    }

    /// Waits until the system has ended: `Ok` once a [`shutdown`](Self::shutdown) has returned, an error
    /// as soon as a part of it has crashed.
    ///
    /// A crashed part is not restarted; end the process, so that its supervisor restarts it:
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use actix_presence::PresenceConfig;
    /// # actix::System::new().block_on(async {
    /// let presence = PresenceConfig::new("sqlite::memory:").start()?;
    /// let watched = presence.clone();
    /// actix::spawn(async move {
    ///     if let Err(error) = watched.closed().await {
    ///         eprintln!("{error}");
    ///         std::process::exit(70);
    ///     }
    /// });
    /// presence.shutdown(Duration::from_secs(5)).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`Crashed`] is the part.
    pub async fn closed(&self) -> Result<(), Crashed> {
        self.supervisor.closed().await
    }

    /// The part that has crashed, if one has; [`closed`](Self::closed) waits for that.
    #[must_use]
    pub fn crashed(&self) -> Option<Crashed> {
        self.supervisor.crashed()
    }

    /// How long the registry has not answered. It is asked every second, so up to a second is normal.
    #[must_use]
    pub fn registry_silence(&self) -> Duration {
        self.supervisor.silence()
    }

    /// Shuts the system down, see [`Shutdown`], within the timeout.
    ///
    /// # Errors
    ///
    /// [`FlushError`] if the rows could not be written in time; the next start removes them.
    pub async fn shutdown(self, timeout: Duration) -> Result<(), FlushError> {
        let closing = tokio::time::timeout(timeout, self.registry.send(Shutdown)).await;
        self.supervisor.stopping();
        self.arbiter.stop();
        // The registry must not be reachable any more when this returns.
        let stopped = async {
            while self.registry.connected() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, stopped).await.is_err() {
            tracing::warn!("the registry did not stop in time: it stops when it is idle");
        }
        self.supervisor.stopped();
        match closing {
            Ok(Ok(closed)) => closed,
            Ok(Err(_)) => Err(FlushError::Closed),
            Err(_) => Err(FlushError::Timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::{
        messages::{Flush, Join},
        mirror::{CloseStore, PruneRoomRows, Renew, Write},
        model::{ConnectionId, RoomName},
        store::{Applied, Renewal},
        testing::{Heard, MemoryDatabase, MemoryHub, Probe},
    };

    /// A writer that records when it gets how many rows.
    struct Recorder(Rc<RefCell<Vec<(Duration, usize)>>>, Instant);

    impl Actor for Recorder {
        type Context = Context<Self>;
    }

    impl Handler<Write> for Recorder {
        type Result = <Write as Message>::Result;
        fn handle(&mut self, write: Write, _: &mut Context<Self>) -> Self::Result {
            self.0.borrow_mut().push((self.1.elapsed(), write.batch.upserts.len()));
            Ok(Applied::default())
        }
    }

    macro_rules! answer {
        ($message:ty, $answer:expr) => {
            impl Handler<$message> for Recorder {
                type Result = <$message as Message>::Result;
                fn handle(&mut self, _: $message, _: &mut Context<Self>) -> Self::Result {
                    Ok($answer)
                }
            }
        };
    }
    answer!(Renew, Renewal::Held);
    answer!(PruneRoomRows, 0);
    answer!(CloseStore, 0);

    fn paused() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    }

    #[test]
    fn a_first_change_is_written_at_once_and_later_ones_together_unless_a_flush_waits() {
        actix::System::with_tokio_rt(paused).block_on(async {
            let writes = Rc::default();
            let backend = Backend {
                node: NodeName::new("n").unwrap(),
                incarnation: Epoch::new(),
                inherited: Inherited::default(),
                writer: Recorder(Rc::clone(&writes), Instant::now()).start().into(),
                reader: None,
                bus: None,
                supervisor: Supervisor::default(),
            };
            let presence = PresenceConfig::default().run(backend, &Arbiter::current()).unwrap();
            let registry = presence.registry();
            let (session, _heard) = Probe::<Heard>::new();
            let room = RoomName::new("lobby").unwrap();
            for _ in 0..8 {
                let (id, to) = (ConnectionId::new(), session.clone().recipient());
                registry.send(Join::new(room.clone(), id, to)).await.unwrap().unwrap();
                sleep(COMMIT_INTERVAL * 3 / 10).await;
            }
            registry.send(Flush).await.unwrap().unwrap();
            // A timer is a millisecond late.
            let tenths = |at: Duration| at.as_millis() * 10 / COMMIT_INTERVAL.as_millis();
            let writes: Vec<_> =
                writes.borrow().iter().map(|(at, rows)| (tenths(*at), *rows)).collect();
            assert_eq!(writes, [(0, 1), (10, 3), (20, 3), (24, 1)]);
        });
    }

    #[test]
    fn the_database_is_named_or_given_and_not_both() {
        let database = MemoryDatabase::new();
        let start = |config: PresenceConfig| {
            let [writer, reader] = [(); 2].map(|()| Box::new(database.store()));
            config.start_shared(writer, reader, Box::new(MemoryHub::new().bus()))
        };
        let both = start(PresenceConfig::new("sqlite::memory:"));
        assert!(matches!(both, Err(StartError::TwoDatabases)));
        assert!(matches!(PresenceConfig::default().start(), Err(StartError::NoDatabase)));
    }
}
