//! Starting the actors of a presence system.

use std::time::Duration;

use actix::prelude::*;

use super::{PresenceClient, PresenceConfig, PresenceHandle, StartError, stores::Stores};
#[cfg(feature = "sqlite")]
use crate::store::{OwnerLock, SqliteStore};
#[cfg(feature = "postgres")]
use crate::store::{PostgresOptions, PostgresStore};
use crate::{
    bus::Bus,
    cluster::Cluster,
    messages::GetStatus,
    mirror::{COMMIT_INTERVAL, Mirror, WriterHandle},
    model::{Epoch, NodeName, Rooms},
    registry::{AsyncHook, Gauges, Hooks, Inherited, Parts, Pruner, RoomRegistry},
    store::{DatabaseUrl, SharedStore, Started, answer_timeout, reader::ReaderHandle},
    supervision::{Crashed, Supervisor, check_threads},
};

/// How often the registry is asked whether it answers.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

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
