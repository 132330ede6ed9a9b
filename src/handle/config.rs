//! Options.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    clock::Clock,
    messages::Decision,
    model::{Info, InvalidNodeName, Limits, NodeName, RoomName, UserId},
    registry::Authorize,
    store::{DatabaseUrl, InvalidDatabaseUrl, OwnerError, StoreError},
};

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
    pub(crate) database: String,
    pub(crate) redis: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) lease: Duration,
    pub(crate) max_age: Duration,
    pub(crate) grace: Duration,
    pub(crate) prune_every: Option<Duration>,
    pub(crate) prune_rooms_every: Duration,
    pub(crate) limits: Limits,
    pub(crate) observer_queue: usize,
    pub(crate) max_list_size: usize,
    pub(crate) clock: Clock,
    pub(crate) authorize: Option<Authorize>,
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
    /// The address of Redis is none.
    #[error("redis: the address of a Redis is `redis://[[user]:password@]host[:port][/number]`")]
    Redis,
    /// The options name Redis, which this build leaves out.
    #[error("redis: Redis is not in this build")]
    NoRedis,
    /// There is a Redis, and a database that only one node can use.
    #[error(
        "redis: nodes that hear each other by Redis have to share a database, too: use `postgres://…`"
    )]
    RedisAlone,
    /// Another server owns the database file.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The database cannot be used.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
}

impl PresenceConfig {
    /// The largest member list that a connection is sent unless the app says otherwise, in bytes:
    /// 1 MiB.
    pub const DEFAULT_MAX_LIST_SIZE: usize = 1024 * 1024;

    /// The defaults, with this database: `sqlite://PATH`, `sqlite::memory:` or `postgres://…`.
    #[must_use]
    pub fn new(database: impl Into<String>) -> Self {
        Self {
            database: database.into(),
            redis: None,
            node: None,
            lease: Duration::from_secs(15),
            max_age: Duration::from_secs(60),
            grace: Duration::ZERO,
            prune_every: None,
            prune_rooms_every: Duration::from_secs(600),
            limits: Limits::default(),
            observer_queue: 1024,
            max_list_size: Self::DEFAULT_MAX_LIST_SIZE,
            clock: Clock::system(),
            authorize: None,
        }
    }

    /// The Redis through which several nodes on one PostgreSQL hear each other, and share their rooms:
    /// `redis://[[user]:password@]host[:port][/number]`. Default none.
    ///
    /// Systems that use the same Redis need a number each.
    #[must_use]
    pub fn redis(self, url: impl Into<String>) -> Self {
        Self { redis: Some(url.into()), ..self }
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

    /// The largest member list that a connection is sent, in bytes of its frame. Default 1 MiB.
    ///
    /// Where the whole list is larger, who needs it gets a count with `truncated` instead
    /// (`presence_count`), until it has fewer than nine tenths of that. Who has it already goes on with
    /// what changes.
    #[must_use]
    pub fn max_list_size(self, bytes: usize) -> Self {
        Self { max_list_size: bytes, ..self }
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

    /// Checks the options without touching the database, as [`start`](Self::start) does first.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an option is wrong.
    pub fn validate(&self) -> Result<(), StartError> {
        self.check()?;
        let database = self.database.parse::<DatabaseUrl>()?;
        self.bus(database.is_shared())?;
        if let Some(name) = &self.node {
            NodeName::new(name)?;
        }
        Ok(())
    }

    /// Checks the options against each other, and answers the prune interval.
    pub(crate) fn check(&self) -> Result<Duration, StartError> {
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
            .field("max_list_size", &self.max_list_size)
            .field("authorize", &self.authorize.is_some())
            .finish_non_exhaustive()
    }
}
