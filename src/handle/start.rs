//! Starting the actors of a presence system, and the handle of a running one.

use std::{io, ops::Deref, time::Duration};

use actix::prelude::*;

use super::{PresenceClient, PresenceConfig, StartError};
#[cfg(feature = "sqlite")]
use crate::store::{OwnerLock, SqliteStore};
#[cfg(feature = "postgres")]
use crate::store::{PostgresOptions, PostgresStore};
use crate::{
    bus::Bus,
    clock::Clock,
    cluster::Cluster,
    messages::{FlushError, GetStatus, Shutdown},
    mirror::{COMMIT_INTERVAL, Mirror, Writer, WriterHandle},
    model::{Epoch, NodeName, Rooms},
    registry::{
        AsyncHook, ClockOffset, DrainObservers, Gauges, Hooks, Inherited, Parts, Pruner,
        RoomRegistry,
    },
    store::{
        DatabaseUrl, SharedStore, Started, Store, StoreError, answer_timeout,
        lane::HungCalls,
        reader::{Reader, ReaderHandle},
    },
    supervision::{Crashed, Supervisor, check_threads},
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
    /// For a database that other nodes may use, too: for queries, and for what may take long.
    pub readers: Option<[ReaderHandle; 2]>,
    /// For rooms that are shared with these nodes.
    pub bus: Option<Box<dyn Bus>>,
    pub supervisor: Supervisor,
}

impl PresenceConfig {
    /// Migrates the database, removes the rows of dead processes, and starts the actors:
    /// [`RoomRegistry`] on a thread of its own, [`Pruner`] beside it.
    ///
    /// Blocks on the database, and on another process that uses its file
    /// ([`wait_for_lock`](Self::wait_for_lock)): call it before the server runs.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an option is invalid, the database cannot be used, no actix system runs on this
    /// thread, or the system does not allow the threads.
    ///
    /// ```
    /// use actix_presence::{PresenceConfig, StartError};
    ///
    /// // Neither `#[actix_web::main]` nor `#[actix::main]` is around this.
    /// let refused = PresenceConfig::new("sqlite::memory:").start();
    /// assert!(matches!(refused, Err(StartError::NoSystem)));
    /// ```
    pub fn start(self) -> Result<PresenceHandle, StartError> {
        self.check()?;
        self.node_name()?;
        let url = self.database_url()?;
        self.check_schema(&url)?;
        let bus = self.bus(url.is_shared())?;
        // Before the database is touched.
        check_process()?;
        match url {
            #[cfg(feature = "sqlite")]
            DatabaseUrl::SqliteMemory => {
                let store = SqliteStore::open(&url)?;
                self.start_on(Stores::Alone(Box::new(store)), bus)
            }
            #[cfg(feature = "sqlite")]
            DatabaseUrl::SqliteFile(ref path) => {
                let owner = OwnerLock::take_within(path, self.wait_for_lock)?;
                let store = SqliteStore::open(&url)?.owned(Some(owner));
                self.start_on(Stores::Alone(Box::new(store)), bus)
            }
            #[cfg(feature = "postgres")]
            DatabaseUrl::Postgres(url) => {
                let mut options = PostgresOptions::for_lease(self.lease);
                options.schema = self.schema_name()?;
                let writer = Box::new(PostgresStore::open_with(&url, options)?);
                let reader = Box::new(writer.another());
                self.start_on(Stores::Shared { writer, reader }, bus)
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
    /// [`StartError`], as [`start`](Self::start).
    pub fn start_shared(
        self,
        writer: Box<dyn SharedStore>,
        reader: Box<dyn SharedStore>,
        bus: Box<dyn Bus>,
    ) -> Result<PresenceHandle, StartError> {
        if self.database.is_some() || self.redis.is_some() || self.schema.is_some() {
            return Err(StartError::TwoDatabases);
        }
        self.start_on(Stores::Shared { writer, reader }, Some(bus))
    }

    fn start_on(
        mut self,
        stores: Stores,
        bus: Option<Box<dyn Bus>>,
    ) -> Result<PresenceHandle, StartError> {
        self.check()?;
        let node = self.node_name()?;
        check_process()?;
        self.clock = self.clock.correctable();
        let (started, stores) = stores.start(node.clone(), self.clock.clone(), self.lease)?;
        let Started { incarnation, dead, inherited, stopped } = started;
        for dead in dead {
            let (node, presences) = (dead.node, dead.presences);
            tracing::info!(node, presences, "removed the rows of a dead node");
        }
        let supervisor = Supervisor::default();
        let threads = stores.start_threads(&node, self.lease, &supervisor);
        let (writer, readers) = threads.map_err(StartError::Thread)?;
        let inherited = Inherited { rows: inherited, stopped };
        let backend = Backend { node, incarnation, inherited, writer, readers, bus, supervisor };
        let arbiter = Arbiter::try_new().map_err(StartError::Thread)?.handle();
        let clock = self.clock.clone();
        let presence = self.run(backend, &arbiter)?;
        clock.follow(|| presence.registry().recipient());
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
        let Backend { node, incarnation, inherited, writer, readers, bus, supervisor } = backend;
        // Other nodes hear of a change when it is committed, so with a bus nothing is delayed.
        let commit_interval = if bus.is_some() { Duration::ZERO } else { COMMIT_INTERVAL };
        let later = match self.authorize_async {
            Some(hook) => {
                let arbiter = Arbiter::try_new().map_err(StartError::Thread)?;
                Some(AsyncHook { hook, arbiter, timeout: self.authorize_timeout })
            }
            None => None,
        };
        let hooks = Hooks { sync: self.authorize, later };
        let parts = Parts {
            rooms: Rooms::new(self.limits),
            clock: self.clock.clone(),
            mirror: Mirror::new(writer, commit_interval, answer_timeout(self.lease)),
            node: node.clone(),
            cluster: readers
                .map(|readers| Box::new(Cluster::new(node.clone(), incarnation, bus, readers))),
            inherited,
            hooks,
            max_age: self.max_age,
            lease: self.lease,
            grace: self.grace,
            observer_queue: self.observer_queue,
            max_list_size: self.max_list_size,
            gauges: Gauges::of(self.metrics_label),
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
        let client = PresenceClient::new(registry);
        Ok(PresenceHandle { client, pruner, arbiter: arbiter.clone(), node, supervisor })
    }
}

/// The stores of a database.
enum Stores {
    /// One that is for this process alone.
    Alone(Box<dyn Store>),
    /// Two that share it with each other and with other nodes.
    Shared { writer: Box<dyn SharedStore>, reader: Box<dyn SharedStore> },
}

impl Stores {
    /// Has the writer's store started, unless the database stops answering. A clock is corrected before, by
    /// that of a shared database.
    fn start(
        self,
        node: NodeName,
        clock: Clock,
        lease: Duration,
    ) -> Result<(Started, Self), StoreError> {
        match self {
            Self::Alone(mut writer) => {
                let started = writer.start(&node, clock.now().utc(), lease)?;
                Ok((started, Self::Alone(writer)))
            }
            Self::Shared { mut writer, mut reader } => {
                let measured = clock.clone();
                let reader = reader.pulse().watch(move || {
                    ClockOffset::correct_first(&measured, &mut *reader);
                    Ok(reader)
                })?;
                let (started, writer) = writer
                    .pulse()
                    .watch(move || Ok((writer.start(&node, clock.now().utc(), lease)?, writer)))?;
                Ok((started, Self::Shared { writer, reader }))
            }
        }
    }

    /// Starts a thread for each store, and one more for what may take long.
    fn start_threads(
        self,
        node: &NodeName,
        lease: Duration,
        supervisor: &Supervisor,
    ) -> io::Result<(WriterHandle, Option<[ReaderHandle; 2]>)> {
        let node = node.clone();
        let (writer, reader) = match self {
            Self::Alone(writer) => {
                return Ok((Writer::start_alone(writer, node, lease, supervisor)?, None));
            }
            Self::Shared { writer, reader } => (writer, reader),
        };
        let hung = HungCalls::default();
        let further = reader.opener().map(|open| open());
        let reader = Reader::start(reader, hung.clone(), supervisor)?;
        let background = match further {
            Some(store) => Reader::start(store, hung.clone(), supervisor)?,
            None => reader.clone(),
        };
        let writer = Writer::start_shared(writer, node, lease, hung, supervisor)?;
        Ok((writer, Some([reader, background])))
    }
}

/// Checks what the threads and actors need, which would panic without it.
fn check_process() -> Result<(), StartError> {
    if System::try_current().is_none() {
        return Err(StartError::NoSystem);
    }
    check_threads().map_err(StartError::Thread)
}

/// Asks the registry again and again, one question at a time, which also reports its gauges. Runs on the arbiter
/// of the registry, so that a blocked thread is noticed, too.
async fn check_health(registry: Addr<RoomRegistry>, supervisor: Supervisor) {
    while registry.send(GetStatus).await.is_ok() {
        supervisor.answered();
        tokio::time::sleep(HEALTH_CHECK_INTERVAL).await;
    }
}

/// A handle of a running presence system: its [`client`](Self::client), and what ends it. A clone is a handle
/// of the same system.
///
/// It has the methods of [`PresenceClient`], too. Dropping a handle, or all of them, stops nothing: the actors go on until
/// [`shutdown`](Self::shutdown), or until the actix system ends.
#[derive(Clone, Debug)]
pub struct PresenceHandle {
    client: PresenceClient,
    pruner: Addr<Pruner>,
    arbiter: ArbiterHandle,
    node: NodeName,
    supervisor: Supervisor,
}

impl PresenceHandle {
    /// A client of the registry, for handlers and whatever else is no actor.
    #[must_use]
    pub fn client(&self) -> PresenceClient {
        self.client.clone()
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

    /// Shuts the system down, see [`Shutdown`], within the timeout: when it returns, the rows are written and the
    /// observers have handled all events, the leaves of the shutdown among them.
    ///
    /// Rows are first: while an observer takes its time, they are written already.
    ///
    /// # Errors
    ///
    /// [`FlushError`] if the rows could not be written in time, and the next start removes them; or if they are
    /// written, and observers had not handled all events in time ([`FlushError::Unobserved`]).
    pub async fn shutdown(self, timeout: Duration) -> Result<(), FlushError> {
        let mut written = None;
        let in_order = async {
            written = Some(self.registry().send(Shutdown).await);
            let observed = self.registry().send(DrainObservers).await;
            // The last report of the gauges.
            let _ = self.registry().send(GetStatus).await;
            observed
        };
        let observed = matches!(tokio::time::timeout(timeout, in_order).await, Ok(Ok(())));
        self.supervisor.stopping();
        self.arbiter.stop();
        // The registry must not be reachable any more when this returns.
        let stopped = async {
            while self.registry().connected() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, stopped).await.is_err() {
            tracing::warn!("the registry did not stop in time: it stops when it is idle");
        }
        self.supervisor.stopped();
        match written {
            Some(Ok(Ok(()))) if !observed => Err(FlushError::Unobserved),
            Some(Ok(written)) => written,
            Some(Err(_)) => Err(FlushError::Closed),
            None => Err(FlushError::Timeout),
        }
    }
}

impl Deref for PresenceHandle {
    type Target = PresenceClient;

    fn deref(&self) -> &PresenceClient {
        &self.client
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
                readers: None,
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
