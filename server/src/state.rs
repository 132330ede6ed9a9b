//! What the routes share.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::{Addr, Context, Handler, Message, dev::ToEnvelope};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{AllowedOrigin, Metrics, Secret, error::ApiError, ranking::Ranking};
use actix_presence::{
    PresenceConfig, PresenceHandle, RoomRegistry, StopSignal,
    messages::{SessionPlace, SessionPlaces, TakePlace},
};

/// Readers of the live numbers at one time.
const SEATS: usize = 64;

/// How long a request waits for the registry, which answers at once unless something is very wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a handshake waits for the socket of its session's older connection to end.
const PLACE_TIMEOUT: Duration = Duration::from_secs(3);

/// The options of the routes.
///
/// ```
/// use presence_server::{Secret, ServerOptions};
///
/// let options = ServerOptions {
///     secrets: vec![Secret::new("the key of tokens")?],
///     max_connections: Some(10_000),
///     ..ServerOptions::default()
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Keys of tokens, any of which is good. Default none: everybody is anonymous.
    pub secrets: Vec<Secret>,
    /// Whether one may come without a token although there is a key. Default no.
    pub allow_anonymous: bool,
    /// Whether the query's `user` and `info` are believed of requests from and for this machine, as
    /// long as there is no key of tokens. Default no; only for servers bound to loopback.
    pub believe_query: bool,
    /// The key of `/api`. Default none: only requests from and for this machine are answered.
    pub api_key: Option<Secret>,
    /// Pages that may use the server besides those of its own host, `/api` only with the key. Default
    /// none.
    pub allowed_origins: Vec<AllowedOrigin>,
    /// The largest message of a client, and body of a request, in bytes. Default 64 KiB.
    pub max_frame_size: usize,
    /// The largest member list in an answer of `/api`, in bytes. Default 1 MiB; that of the sockets is
    /// [`PresenceConfig::max_list_size`](actix_presence::PresenceConfig::max_list_size).
    pub max_list_size: usize,
    /// How many WebSockets may be open and sessions fade at once. Default no limit.
    pub max_connections: Option<usize>,
    /// How many frames per second, and in one burst, a WebSocket may send. Default no limit.
    pub max_rate: Option<u32>,
    /// How often WebSockets are pinged. Default never.
    pub ping_interval: Option<Duration>,
    /// What `/metrics` tells. Default nothing: then there is no such route.
    pub metrics: Option<Metrics>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            secrets: Vec::new(),
            allow_anonymous: false,
            believe_query: false,
            api_key: None,
            allowed_origins: Vec::new(),
            max_frame_size: 65_536,
            max_list_size: PresenceConfig::DEFAULT_MAX_LIST_SIZE,
            max_connections: None,
            max_rate: None,
            ping_interval: None,
            metrics: None,
        }
    }
}

/// What the routes share: where the registry is, and the options. A clone is the same.
///
/// Make one for the whole server, outside of the closure that makes an app for each worker: the
/// connections of all workers are counted together.
#[derive(Clone)]
pub struct ServerState(Arc<Shared>);

struct Shared {
    presence: PresenceHandle,
    registry: Addr<RoomRegistry>,
    node: String,
    options: ServerOptions,
    /// One for each WebSocket and each session that fades, if there is a limit.
    places: Option<SessionPlaces>,
    /// Held by each WebSocket for as long as it is open.
    open: Arc<()>,
    /// What is left of them for readers of the live numbers.
    seats: Arc<Semaphore>,
    /// Whether the server is about to stop, and nobody new is to be sent to it.
    draining: AtomicBool,
    /// Given when the server ends.
    stop: StopSignal,
    ranking: Mutex<Ranking>,
}

impl ServerState {
    /// What the routes of this presence system share.
    #[must_use]
    pub fn new(presence: &PresenceHandle, options: ServerOptions) -> Self {
        Self(Arc::new(Shared {
            presence: presence.clone(),
            registry: presence.registry(),
            node: presence.node().as_str().to_owned(),
            places: options.max_connections.map(SessionPlaces::new),
            options,
            open: Arc::new(()),
            seats: Arc::new(Semaphore::new(SEATS)),
            draining: AtomicBool::new(false),
            stop: StopSignal::new(),
            ranking: Mutex::default(),
        }))
    }

    /// How many WebSockets are open.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        Arc::strong_count(&self.0.open) - 1
    }

    /// Has `/readyz` say 503 from now on, so that nobody new is sent here. Nothing else changes: call
    /// it some time before the [shutdown](actix_presence::PresenceHandle::shutdown).
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    /// Closes the WebSockets that are in no room, of which the registry does not know.
    pub fn close(&self) {
        self.0.stop.stop();
    }

    /// Given when the server ends.
    pub(super) fn stop_signal(&self) -> StopSignal {
        self.0.stop.clone()
    }

    /// The running system.
    pub(super) fn presence(&self) -> &PresenceHandle {
        &self.0.presence
    }

    pub(super) fn registry(&self) -> &Addr<RoomRegistry> {
        &self.0.registry
    }

    pub(super) fn options(&self) -> &ServerOptions {
        &self.0.options
    }

    /// The name of this node.
    pub(super) fn node(&self) -> &str {
        &self.0.node
    }

    /// The largest rooms. Held only between two questions, never during one.
    pub(super) fn ranking(&self) -> MutexGuard<'_, Ranking> {
        self.0.ranking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat for a reader of the live numbers.
    pub(super) fn seat(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.0.seats.clone().try_acquire_owned().map_err(|_| {
            ApiError::unavailable(
                "too_many_readers",
                format!("{SEATS} read the live numbers already"),
            )
        })
    }

    /// Takes a place for a WebSocket: a free one, or that of an older connection of its client session.
    pub(super) async fn place(&self, older: Option<TakePlace>) -> Result<SessionPlace, ApiError> {
        let free = match &self.0.places {
            Some(places) => places.take(),
            None => Some(SessionPlace::unlimited()),
        };
        let place = match (free, older) {
            (Some(free), _) => Some(free),
            (None, Some(older)) => self.place_of(older).await,
            (None, None) => None,
        };
        let message = "the server has no place left";
        let place = place.ok_or_else(|| ApiError::unavailable("too_many_connections", message))?;
        Ok(place.counted(Arc::clone(&self.0.open)))
    }

    /// The place of an older connection, if there is one and its socket ends in time.
    async fn place_of(&self, older: TakePlace) -> Option<SessionPlace> {
        let asked = timeout(PLACE_TIMEOUT, self.0.registry.send(older));
        asked.await.ok()?.ok()?
    }

    /// Asks the registry.
    pub(super) async fn ask<M>(&self, question: M) -> Result<M::Result, ApiError>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        RoomRegistry: Handler<M>,
        Context<RoomRegistry>: ToEnvelope<RoomRegistry, M>,
    {
        match timeout(PATIENCE, self.0.registry.send(question)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(ApiError::unavailable("shutting_down", "the registry has stopped")),
            Err(_) => Err(ApiError::unavailable("busy", "the registry does not answer")),
        }
    }
}

impl fmt::Debug for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerState")
            .field("node", &self.0.node)
            .field("options", &self.0.options)
            .field("open_sockets", &self.open_sockets())
            .finish_non_exhaustive()
    }
}
