//! Options, and starting everything from them.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use actix::{MailboxError, prelude::*};

use crate::{
    clock::Clock,
    messages::{FlushError, PresenceChanged, RoomFilter, Shutdown, Subscribe, SubscriptionId},
    mirror::{
        Mirror, Writer,
        store::{
            DatabaseUrl, InvalidDatabaseUrl, OwnerError, OwnerLock, SqliteStore, Store, StoreError,
            migrate,
        },
    },
    model::{Info, InvalidNodeName, Limits, NodeName, RoomName, Rooms, UserId},
    pruner::Pruner,
    registry::{Authorize, Parts, RoomRegistry},
};

/// How long the actors may take to stop when they have done their work.
const ENDING: Duration = Duration::from_secs(1);

/// Whether somebody may join: what the [`authorize`](PresenceConfig::authorize) hook answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow,
    /// No, and what to tell the client.
    Deny(Cow<'static, str>),
}

impl Decision {
    /// No, for this reason.
    #[must_use]
    pub fn deny(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Deny(reason.into())
    }
}

/// The options of a presence system, and the way to start one.
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::{Decision, PresenceConfig};
///
/// # actix::System::new().block_on(async {
/// let presence = PresenceConfig::new("sqlite::memory:")
///     .max_age(Duration::from_secs(60))
///     .authorize(|room, user, _info| match (room.as_str(), user) {
///         ("staff", None) => Decision::deny("staff only"),
///         _ => Decision::Allow,
///     })
///     .start()?;
/// presence.shutdown(Duration::from_secs(5)).await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct PresenceConfig {
    database: String,
    node: Option<String>,
    lease: Duration,
    max_age: Duration,
    grace: Duration,
    prune_every: Option<Duration>,
    prune_rooms_every: Duration,
    limits: Limits,
    observer_queue: usize,
    clock: Clock,
    authorize: Option<Authorize>,
}

/// Why a presence system did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The database's address is none.
    #[error(transparent)]
    Url(#[from] InvalidDatabaseUrl),
    /// The node's name is none.
    #[error(transparent)]
    Node(#[from] InvalidNodeName),
    /// An option must be longer than zero, and is not.
    #[error("{option} must be longer than zero")]
    Zero {
        /// Which option.
        option: &'static str,
    },
    /// Presences are pruned too seldom for their age: silence would count as presence for long.
    #[error("the prune interval ({prune_every:?}) must not be longer than max-age ({max_age:?})")]
    PrunedTooSeldom {
        /// The interval.
        prune_every: Duration,
        /// The age.
        max_age: Duration,
    },
    /// Another server owns the database file.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The database cannot be used.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
}

impl PresenceConfig {
    /// The defaults, with this database: `sqlite://PATH` or `sqlite::memory:`.
    #[must_use]
    pub fn new(database: impl Into<String>) -> Self {
        Self {
            database: database.into(),
            node: None,
            lease: Duration::from_secs(15),
            max_age: Duration::from_secs(60),
            grace: Duration::ZERO,
            prune_every: None,
            prune_rooms_every: Duration::from_secs(600),
            limits: Limits::default(),
            observer_queue: 1024,
            clock: Clock::system(),
            authorize: None,
        }
    }

    /// How long a silent connection counts as present. Default 60 s.
    ///
    /// Clients should give a sign of life at least every third of it. Browsers slow the timers of
    /// background tabs down to one a minute: with such clients take 150 s or more.
    #[must_use]
    pub fn max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// How long the presences of a connection that ended without a goodbye stay, if its client has a
    /// [session key](crate::Join::session) and so may come back unnoticed. Default 0 s: they end at
    /// once. Silence ends them too, so a grace longer than `max_age` is cut short by it.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// How often silent presences are pruned; at most `max_age`. Default a quarter of `max_age`, at
    /// most 15 s.
    #[must_use]
    pub fn prune_every(self, interval: Duration) -> Self {
        Self { prune_every: Some(interval), ..self }
    }

    /// How often the rows of empty rooms are removed. Default 600 s.
    #[must_use]
    pub fn prune_rooms_every(self, interval: Duration) -> Self {
        Self { prune_rooms_every: interval, ..self }
    }

    /// The name of this node in the database: 1 to 64 visible ASCII characters. Default made up.
    ///
    /// A new process with the name of a dead one takes over its rows.
    #[must_use]
    pub fn node(self, name: impl Into<String>) -> Self {
        Self { node: Some(name.into()), ..self }
    }

    /// How long the database believes a silent node; it is renewed every third of it. Default 15 s.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// How many connections one room may hold. Default no limit.
    #[must_use]
    pub fn room_size(mut self, connections: usize) -> Self {
        self.limits.room_size = Some(connections);
        self
    }

    /// How many rooms one connection may be in. Default 128.
    #[must_use]
    pub fn rooms_per_connection(mut self, rooms: usize) -> Self {
        self.limits.rooms_per_connection = rooms;
        self
    }

    /// How many events may wait for one observer before further ones are conflated. Default 1024, at
    /// least 1.
    #[must_use]
    pub fn observer_queue(self, events: usize) -> Self {
        Self { observer_queue: events.max(1), ..self }
    }

    /// Decides who may join. Default everybody.
    ///
    /// Called on the registry's thread for every join: it must answer at once, from memory. If it
    /// panics, the join is denied.
    #[must_use]
    pub fn authorize(
        self,
        hook: impl Fn(&RoomName, Option<&UserId>, &Info) -> Decision + Send + Sync + 'static,
    ) -> Self {
        Self { authorize: Some(Arc::new(hook)), ..self }
    }

    /// The clock of the actors. Default the machine's.
    #[must_use]
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

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
        let prune_every = self.check()?;
        let url: DatabaseUrl = self.database.parse()?;
        let node = match &self.node {
            Some(name) => NodeName::new(name)?,
            None => NodeName::new(format!("node-{}", uuid::Uuid::new_v4().as_simple()))?,
        };
        let owner = match &url {
            DatabaseUrl::SqliteFile(path) => Some(OwnerLock::take(path)?),
            _ => None,
        };
        migrate(&url)?;
        let mut store = SqliteStore::open(&url)?.owned(owner);
        let started = store.start(&node, self.clock.now().utc(), self.lease)?;
        for dead in started.dead {
            tracing::info!(
                node = dead.node,
                presences = dead.presences,
                "removed what a dead node had left in the database"
            );
        }

        let mirror = Mirror::new(Writer::start(Box::new(store), node.clone(), self.lease).into());
        let parts = Parts {
            rooms: Rooms::new(self.limits),
            clock: self.clock.clone(),
            mirror,
            node: node.clone(),
            cluster: None,
            inherited: started.inherited,
            authorize: self.authorize,
            max_age: self.max_age,
            lease: self.lease,
            grace: self.grace,
            observer_queue: self.observer_queue,
        };
        let arbiter = Arbiter::new().handle();
        let registry = RoomRegistry::start_in_arbiter(&arbiter, |_| RoomRegistry::new(parts));
        let pruner = Pruner::new(
            registry.clone(),
            self.clock,
            self.max_age,
            prune_every,
            self.prune_rooms_every,
        );
        let pruner = Pruner::start_in_arbiter(&arbiter, |_| pruner);
        Ok(PresenceHandle { registry, pruner, arbiter, node })
    }

    /// Checks the options without touching the database, as [`start`](Self::start) does first.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an option is wrong.
    pub fn validate(&self) -> Result<(), StartError> {
        self.check()?;
        self.database.parse::<DatabaseUrl>()?;
        if let Some(name) = &self.node {
            NodeName::new(name)?;
        }
        Ok(())
    }

    /// Checks the options against each other, and answers the prune interval.
    fn check(&self) -> Result<Duration, StartError> {
        let prune_every =
            self.prune_every.unwrap_or_else(|| (self.max_age / 4).min(Duration::from_secs(15)));
        for (option, value) in [
            ("max-age", self.max_age),
            ("prune interval", prune_every),
            ("room prune interval", self.prune_rooms_every),
            ("lease", self.lease),
        ] {
            // A third or a quarter of it is a timer's interval.
            if value < Duration::from_millis(1) {
                return Err(StartError::Zero { option });
            }
        }
        if prune_every > self.max_age {
            let max_age = self.max_age;
            return Err(StartError::PrunedTooSeldom { prune_every, max_age });
        }
        Ok(prune_every)
    }
}

impl fmt::Debug for PresenceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceConfig")
            .field("node", &self.node)
            .field("lease", &self.lease)
            .field("max_age", &self.max_age)
            .field("grace", &self.grace)
            .field("prune_every", &self.prune_every)
            .field("prune_rooms_every", &self.prune_rooms_every)
            .field("limits", &self.limits)
            .field("observer_queue", &self.observer_queue)
            .field("authorize", &self.authorize.is_some())
            .finish_non_exhaustive()
    }
}

/// A running presence system. A clone is another handle of the same.
#[derive(Clone, Debug)]
pub struct PresenceHandle {
    registry: Addr<RoomRegistry>,
    pruner: Addr<Pruner>,
    arbiter: ArbiterHandle,
    node: NodeName,
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

    /// Ends everything in order, see [`Shutdown`], in at most so long.
    ///
    /// # Errors
    ///
    /// [`FlushError`] if the rows could not be written in time; the next start removes them.
    pub async fn shutdown(self, at_most: Duration) -> Result<(), FlushError> {
        let closing = tokio::time::timeout(at_most, self.registry.send(Shutdown)).await;
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
        match closing {
            Ok(Ok(closed)) => closed,
            Ok(Err(_)) => Err(FlushError { reason: "closed" }),
            Err(_) => Err(FlushError { reason: "timeout" }),
        }
    }
}
