//! Starting everything, and the handle of what runs.

use std::time::Duration;

use actix::{MailboxError, prelude::*};

#[cfg(feature = "postgres")]
use crate::store::PostgresStore;
use crate::{
    bus::Bus,
    cluster::Cluster,
    handle::config::{PresenceConfig, StartError},
    messages::{
        FlushError, GetStatus, PresenceChanged, RoomFilter, Shutdown, Subscribe, SubscriptionId,
    },
    mirror::{Mirror, REST, Writer, WriterDesk},
    model::{Epoch, NodeName, Rooms},
    registry::{Inherited, Parts, Pruner, RoomRegistry},
    store::{
        DatabaseUrl, OwnerLock, SharedStore, SqliteStore, Started, Store,
        reader::{Desk, Reader},
    },
    supervision::{Crashed, Supervisor},
};

/// How long the actors may take to stop when they have done their work.
const ENDING: Duration = Duration::from_secs(1);

/// How often the registry is asked whether it answers.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What a registry is joined to.
pub(crate) struct Ties {
    pub node: NodeName,
    pub writer: WriterDesk,
    pub inherited: Inherited,
    pub shared: Option<Shared<Desk>>,
    /// This node's life in the database.
    pub incarnation: Epoch,
    pub supervisor: Supervisor,
}

/// What there is where other nodes may write to the database: the way to read what they write, and the
/// way to hear them, if they are to be heard.
pub(crate) struct Shared<R> {
    pub reader: R,
    pub bus: Option<Box<dyn Bus>>,
}

impl PresenceConfig {
    /// Migrates the database, removes what a dead process left in it, and starts the actors:
    /// [`RoomRegistry`] on a thread of its own, [`Pruner`] beside it.
    ///
    /// Waits for the database: call it before the server runs.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an option is wrong or the database cannot be used.
    ///
    /// # Panics
    ///
    /// If no actix system runs on this thread.
    pub fn start(self) -> Result<PresenceHandle, StartError> {
        self.check()?;
        let node = self.node_name()?;
        let url: DatabaseUrl = self.database.parse()?;
        #[cfg(feature = "postgres")]
        if let DatabaseUrl::Postgres(url) = &url {
            let bus = self.bus(true)?;
            let writer = Box::new(PostgresStore::open(url)?);
            let reader: Box<dyn SharedStore> = Box::new(PostgresStore::open(url)?);
            return self.start_on(node, writer, Some(Shared { reader, bus }));
        }
        self.bus(false)?;
        let owner = match &url {
            DatabaseUrl::SqliteFile(path) => Some(OwnerLock::take(path)?),
            _ => None,
        };
        let store = SqliteStore::open(&url)?.owned(owner);
        self.start_on(node, Box::new(store), None)
    }

    /// The bus of the options, if there is one, for a database that is `shared` or not.
    pub(crate) fn bus(&self, shared: bool) -> Result<Option<Box<dyn Bus>>, StartError> {
        let Some(url) = &self.redis else { return Ok(None) };
        if !shared {
            return Err(StartError::RedisAlone);
        }
        #[cfg(feature = "redis")]
        return Ok(Some(Box::new(crate::bus::RedisBus::new(url).map_err(|_| StartError::Redis)?)));
        #[cfg(not(feature = "redis"))]
        {
            let _ = url;
            Err(StartError::NoRedis)
        }
    }

    /// Starts the actors as [`start`](Self::start) does, on a database that nodes share, and a bus on
    /// which they tell each other what has changed there: for those of one's own making, and for
    /// tests with those of [`testing`](crate::testing). The [database](Self::new) of the options is
    /// not used.
    ///
    /// `writer` and `reader` are two stores on the same database, so that neither waits for the
    /// other.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an option is wrong or the database cannot be used.
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
        self.check()?;
        let node = self.node_name()?;
        self.start_on(node, writer, Some(Shared { reader, bus: Some(bus) }))
    }

    fn node_name(&self) -> Result<NodeName, StartError> {
        Ok(match &self.node {
            Some(name) => NodeName::new(name)?,
            None => NodeName::new(format!("node-{}", uuid::Uuid::new_v4().as_simple()))?,
        })
    }

    fn start_on(
        self,
        node: NodeName,
        mut store: Box<dyn Store>,
        shared: Option<Shared<Box<dyn SharedStore>>>,
    ) -> Result<PresenceHandle, StartError> {
        let Started { incarnation, dead, inherited, stopped } =
            store.start(&node, self.clock.now().utc(), self.lease)?;
        for dead in dead {
            tracing::info!(
                node = dead.node,
                presences = dead.presences,
                "removed what a dead node had left in the database"
            );
        }
        let supervisor = Supervisor::default();
        let guard = supervisor.guard(Crashed::Writer);
        let writer = Writer::start_guarded(store, node.clone(), self.lease, guard).into();
        let shared = shared.map(|Shared { reader, bus }| {
            let reader = Reader::start(reader, supervisor.guard(Crashed::Reader));
            Shared { reader, bus }
        });
        let inherited = Inherited { rows: inherited, stopped };
        let arbiter = Arbiter::new().handle();
        let ties = Ties { node, writer, inherited, shared, incarnation, supervisor };
        let presence = self.run(ties, &arbiter)?;
        arbiter.spawn(ask(presence.registry(), presence.supervisor.clone()));
        Ok(presence)
    }

    /// Starts the actors on this arbiter.
    pub(crate) fn run(
        self,
        ties: Ties,
        arbiter: &ArbiterHandle,
    ) -> Result<PresenceHandle, StartError> {
        let prune_every = self.check()?;
        let Ties { node, writer, inherited, shared, incarnation, supervisor } = ties;
        // Other nodes hear of a change when it is committed.
        let rest = match &shared {
            Some(Shared { bus: Some(_), .. }) => Duration::ZERO,
            _ => REST,
        };
        let cluster = shared.map(|Shared { reader, bus }| {
            Box::new(Cluster::new(node.clone(), incarnation, bus, reader))
        });
        let parts = Parts {
            rooms: Rooms::new(self.limits),
            clock: self.clock.clone(),
            mirror: Mirror::new(writer, rest),
            node: node.clone(),
            cluster,
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

/// Asks the registry again and again, one question at a time. Runs on the registry's own arbiter: a thread
/// that is blocked asks nothing, which is seen, too.
async fn ask(registry: Addr<RoomRegistry>, supervisor: Supervisor) {
    while registry.send(GetStatus).await.is_ok() {
        supervisor.answered();
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

/// A running presence system. A clone is another handle of the same.
#[derive(Clone, Debug)]
pub struct PresenceHandle {
    registry: Addr<RoomRegistry>,
    pruner: Addr<Pruner>,
    arbiter: ArbiterHandle,
    node: NodeName,
    supervisor: Supervisor,
}

impl PresenceHandle {
    /// The registry, to send [messages](crate::messages) to.
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

    /// Has an observer told of every change from now on.
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

    /// Waits until the system has ended: `Ok` once a [`shutdown`](Self::shutdown) has answered, an error
    /// as soon as a part of it has ended by itself.
    ///
    /// Nothing brings such a part back; let the process end, so that its supervisor starts it anew:
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
    /// [`Crashed`] names the part.
    pub async fn closed(&self) -> Result<(), Crashed> {
        self.supervisor.closed().await
    }

    /// The part that has ended by itself, if one has; [`closed`](Self::closed) waits for that.
    #[must_use]
    pub fn crashed(&self) -> Option<Crashed> {
        self.supervisor.crashed()
    }

    /// For how long the registry has not answered. It is asked every second, so a second is no silence.
    #[must_use]
    pub fn registry_silence(&self) -> Duration {
        self.supervisor.silence()
    }

    /// Ends everything in order, see [`Shutdown`], in at most so long.
    ///
    /// # Errors
    ///
    /// [`FlushError`] if the rows could not be written in time; the next start removes them.
    pub async fn shutdown(self, at_most: Duration) -> Result<(), FlushError> {
        let closing = tokio::time::timeout(at_most, self.registry.send(Shutdown)).await;
        self.supervisor.stopping();
        self.arbiter.stop();
        // When this answers, nobody is there to be asked any more.
        let stopped = async {
            while self.registry.connected() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(ENDING, stopped).await.is_err() {
            tracing::warn!("the registry is busy, and ends when it can");
        }
        self.supervisor.stopped();
        match closing {
            Ok(Ok(closed)) => closed,
            Ok(Err(_)) => Err(FlushError { reason: "closed" }),
            Err(_) => Err(FlushError { reason: "timeout" }),
        }
    }
}
