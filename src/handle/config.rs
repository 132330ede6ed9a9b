//! The options of a presence system.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    clock::Clock,
    messages::{Decision, JoinRequest},
    model::{Info, Limits, RoomName, UserId},
    registry::{Authorize, AuthorizeAsync},
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
    pub(super) database: Option<String>,
    pub(super) redis: Option<String>,
    pub(super) schema: Option<String>,
    pub(super) node: Option<String>,
    pub(super) lease: Duration,
    pub(super) wait_for_lock: Duration,
    pub(super) max_age: Duration,
    pub(super) grace: Duration,
    pub(super) prune_every: Option<Duration>,
    pub(super) prune_rooms_every: Duration,
    pub(super) limits: Limits,
    pub(super) observer_queue: usize,
    pub(super) max_list_size: usize,
    pub(super) metrics_label: Option<String>,
    pub(super) clock: Clock,
    pub(super) authorize: Option<Authorize>,
    pub(super) authorize_async: Option<AuthorizeAsync>,
    pub(super) authorize_timeout: Duration,
}

impl PresenceConfig {
    /// The default of [`max_list_size`](Self::max_list_size): 1 MiB.
    pub const DEFAULT_MAX_LIST_SIZE: usize = 1024 * 1024;

    /// The defaults, with this database: `sqlite://PATH`, `sqlite::memory:` or `postgres://…`.
    #[must_use]
    pub fn new(database: impl Into<String>) -> Self {
        Self { database: Some(database.into()), ..Self::default() }
    }

    /// The Redis through which several nodes on one PostgreSQL share their rooms:
    /// `redis://[[user]:password@]host[:port][/number]`. Default none.
    ///
    /// Systems with a database each may use the same Redis.
    #[must_use]
    pub fn redis(self, url: impl Into<String>) -> Self {
        Self { redis: Some(url.into()), ..self }
    }

    /// The schema of PostgreSQL that has the tables, for a database that has other tables, too; created if
    /// it is missing. Default none: the schema that the connection's `search_path` says.
    ///
    /// ```
    /// # #[cfg(feature = "postgres")] {
    /// use actix_presence::PresenceConfig;
    ///
    /// let config = PresenceConfig::new("postgres://app@db.internal/app").schema("presence");
    /// assert!(config.validate().is_ok());
    /// # }
    /// ```
    #[must_use]
    pub fn schema(self, name: impl Into<String>) -> Self {
        Self { schema: Some(name.into()), ..self }
    }

    /// How long [`start`](Self::start) waits for another process to release the file of SQLite. Default 0 s: a
    /// file that another process uses is refused at once.
    ///
    /// For a deploy that starts the new process while the old one still shuts down: make it longer than the
    /// shutdown may take. Nothing of the database is touched before. Other errors are not waited for, and other
    /// databases have no such lock.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use actix_presence::{PresenceConfig, StartError};
    ///
    /// # actix::System::new().block_on(async {
    /// # let directory = tempfile::tempdir()?;
    /// # let url = format!("sqlite://{}/presence.db", directory.path().display());
    /// let first = PresenceConfig::new(&url).start()?;
    ///
    /// // Nobody stops the first one here. A real deploy waits for 30 s or so.
    /// let second = PresenceConfig::new(&url).wait_for_lock(Duration::from_millis(20)).start();
    /// assert!(matches!(second, Err(StartError::Owner(_))));
    ///
    /// first.shutdown(Duration::from_secs(5)).await?;
    /// let third = PresenceConfig::new(&url).wait_for_lock(Duration::from_secs(30)).start()?;
    /// # third.shutdown(Duration::from_secs(5)).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn wait_for_lock(self, timeout: Duration) -> Self {
        Self { wait_for_lock: timeout, ..self }
    }

    /// How long a silent connection counts as present. Default 60 s.
    ///
    /// Clients should send something at least every third of it. Browsers slow the timers of background
    /// tabs down to one a minute: with such clients use 150 s or more.
    #[must_use]
    pub fn max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// How long the presences of a lost connection stay if its client has a
    /// [session key](crate::Join::session), so that it can come back unnoticed. Default 0 s: they end at
    /// once. A grace longer than `max_age` is limited by it.
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

    /// The name of this node in the database: 1 to 64 visible ASCII characters. Default random.
    ///
    /// A new process with the name of a dead one takes over its rows.
    #[must_use]
    pub fn node(self, name: impl Into<String>) -> Self {
        Self { node: Some(name.into()), ..self }
    }

    /// How long the lease of this node in the database lasts; it is renewed every third of it. Default
    /// 15 s.
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
    /// Instead of a larger list a connection gets a count with `truncated` (`presence_count`), until the
    /// list is smaller than nine tenths of that. A connection that has the list already gets its changes.
    #[must_use]
    pub fn max_list_size(self, bytes: usize) -> Self {
        Self { max_list_size: bytes, ..self }
    }

    /// The value of the label `system` on the gauges, for a process that has several systems: without it their
    /// gauges replace each other's values. Default no label. Counters have none; they add up.
    #[must_use]
    pub fn metrics_label(self, system: impl Into<String>) -> Self {
        Self { metrics_label: Some(system.into()), ..self }
    }

    /// Decides who may join. Default everybody.
    ///
    /// Called on the registry's thread for every join: it must not block; see
    /// [`authorize_async`](Self::authorize_async). If it panics, the join is refused as
    /// [`JoinError::Undecided`](crate::JoinError::Undecided).
    #[must_use]
    pub fn authorize(
        self,
        hook: impl Fn(&RoomName, Option<&UserId>, &Info) -> Decision + Send + Sync + 'static,
    ) -> Self {
        Self { authorize: Some(Arc::new(hook)), ..self }
    }

    /// Decides who may join, and with which rights, by asking somebody. Default everybody, with all rights.
    ///
    /// Called for every join on a thread of its own, beside [`authorize`](Self::authorize), which is asked
    /// first; a member has the rights that both give. A slow answer delays its own join and nothing else: the
    /// session goes on in its other rooms, a [`PhoenixSession`](crate::PhoenixSession) too. A newer connection of a
    /// client session takes the [place](crate::TakePlace) of the older one if `authorize` lets it, before this is
    /// asked. A member whose later join is denied stays, with the rights that it has.
    ///
    /// At most 256 answers are outstanding and 16,384 joins wait; more are refused with
    /// [`JoinError::Busy`](crate::JoinError::Busy), and as [`JoinError::Undecided`](crate::JoinError::Undecided) if the
    /// hook panics or does not answer within the [timeout](Self::authorize_timeout). It must not block its thread,
    /// which serves all calls: blocking work goes to `actix_web::web::block` or `tokio::task::spawn_blocking`.
    ///
    /// ```
    /// use actix_presence::{Decision, PresenceConfig, Rights, UserId};
    ///
    /// /// Stands for a query to the app's database.
    /// async fn is_muted(user: &UserId) -> Result<bool, std::io::Error> {
    ///     Ok(user == "eve")
    /// }
    ///
    /// let config = PresenceConfig::new("sqlite::memory:").authorize_async(|join| async move {
    ///     let Some(user) = &join.user else { return Decision::deny("log in first") };
    ///     match is_muted(user).await {
    ///         Ok(false) => Decision::Allow,
    ///         Ok(true) => Decision::Grant(Rights { publish: false, ..Rights::ALL }),
    ///         Err(_) => Decision::Undecided,
    ///     }
    /// });
    /// ```
    #[must_use]
    pub fn authorize_async<F>(self, hook: impl Fn(JoinRequest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Decision> + Send + 'static,
    {
        let hook: AuthorizeAsync = Arc::new(move |request| Box::pin(hook(request)));
        Self { authorize_async: Some(hook), ..self }
    }

    /// How long a join waits for [`authorize_async`](Self::authorize_async), with the wait for its turn.
    /// Default 5 s; keep it below 10 s, after which a member that joins again counts as one that takes no lists.
    #[must_use]
    pub fn authorize_timeout(self, timeout: Duration) -> Self {
        Self { authorize_timeout: timeout, ..self }
    }

    /// The clock of the actors. Default the system clock.
    #[must_use]
    pub fn clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }
}

impl Default for PresenceConfig {
    /// The defaults without a database, for [`start_shared`](Self::start_shared).
    fn default() -> Self {
        Self {
            database: None,
            redis: None,
            schema: None,
            node: None,
            lease: Duration::from_secs(15),
            wait_for_lock: Duration::ZERO,
            max_age: Duration::from_secs(60),
            grace: Duration::ZERO,
            prune_every: None,
            prune_rooms_every: Duration::from_secs(600),
            limits: Limits::default(),
            observer_queue: 1024,
            max_list_size: Self::DEFAULT_MAX_LIST_SIZE,
            metrics_label: None,
            clock: Clock::system(),
            authorize: None,
            authorize_async: None,
            authorize_timeout: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for PresenceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceConfig")
            .field("schema", &self.schema)
            .field("node", &self.node)
            .field("lease", &self.lease)
            .field("wait_for_lock", &self.wait_for_lock)
            .field("max_age", &self.max_age)
            .field("grace", &self.grace)
            .field("prune_every", &self.prune_every)
            .field("prune_rooms_every", &self.prune_rooms_every)
            .field("limits", &self.limits)
            .field("observer_queue", &self.observer_queue)
            .field("max_list_size", &self.max_list_size)
            .field("metrics_label", &self.metrics_label)
            .field("authorize", &self.authorize.is_some())
            .field("authorize_async", &self.authorize_async.is_some())
            .finish_non_exhaustive()
    }
}
