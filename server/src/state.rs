//! The options of the routes, and the state that they share.

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

use crate::{
    identity::IdentityHook, metrics::Metrics, origin::AllowedOrigin, ranking::TopRooms,
    response::ApiError, token::Secret,
};
use actix_presence::{
    PresenceConfig, PresenceHandle, RoomRegistry, SessionPlace, SessionPlaces, TakePlace,
};

/// Clients that may read the live numbers at the same time.
const MAX_LIVE_READERS: usize = 64;

/// How long a request waits for the registry, which answers at once unless something is very wrong.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Says who opens a WebSocket, in place of tokens and the query: [`secrets`](Self::secrets),
    /// [`allow_anonymous`](Self::allow_anonymous) and [`believe_query`](Self::believe_query) then count
    /// for nothing there. Default none. Where it reads cookies, do not allow the origin `*`: any page
    /// could act as its visitor.
    pub identity: Option<IdentityHook>,
    /// Keys that tokens may be signed with. Default none: everybody is anonymous.
    pub secrets: Vec<Secret>,
    /// Whether clients without a token are let in although there are [`secrets`](Self::secrets). Default
    /// no.
    pub allow_anonymous: bool,
    /// Whether `user` and `info` of the query are trusted in requests from and to this machine, as long
    /// as there are no [`secrets`](Self::secrets). Default no; only for servers bound to loopback.
    pub believe_query: bool,
    /// The key of `/api`. Default none: only requests from and to this machine are answered.
    pub api_key: Option<Secret>,
    /// Origins whose pages may use the server, besides pages of its own host; `/api` only with the key.
    /// Default none.
    pub allowed_origins: Vec<AllowedOrigin>,
    /// The largest message from a client, and the largest request body, in bytes. Default 64 KiB.
    pub max_frame_size: usize,
    /// The largest member list in an answer of `/api`, in bytes. Default 1 MiB; for WebSockets it is
    /// [`PresenceConfig::max_list_size`](actix_presence::PresenceConfig::max_list_size).
    pub max_list_size: usize,
    /// How many WebSockets may be open, and disconnected sessions may wait for their client, at the same
    /// time. Default no limit.
    pub max_connections: Option<usize>,
    /// How many frames a WebSocket may send per second, and in one burst. Default no limit.
    pub max_rate: Option<u32>,
    /// How often WebSockets are pinged. Default never.
    pub ping_interval: Option<Duration>,
    /// What `/metrics` answers. Default none: then it answers 404.
    pub metrics: Option<Metrics>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            identity: None,
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

/// What the routes share: the registry, the options, and the count of open WebSockets. Clones share one
/// state.
///
/// Make one for the whole server, outside of the closure that makes an app for each worker, so that the
/// limits hold for the connections of all workers together.
#[derive(Clone)]
pub struct ServerState(Arc<StateInner>);

struct StateInner {
    presence: PresenceHandle,
    registry: Addr<RoomRegistry>,
    node: String,
    options: ServerOptions,
    /// A permit for each WebSocket and each session that waits for its client, if there is a limit.
    places: Option<SessionPlaces>,
    /// Each open WebSocket holds a clone.
    open: Arc<()>,
    live_readers: Arc<Semaphore>,
    /// Whether the server is about to stop, and should not get new clients.
    draining: AtomicBool,
    top_rooms: Mutex<TopRooms>,
}

impl ServerState {
    /// Makes the state of routes to this presence system.
    #[must_use]
    pub fn new(presence: &PresenceHandle, options: ServerOptions) -> Self {
        Self(Arc::new(StateInner {
            presence: presence.clone(),
            registry: presence.registry(),
            node: presence.node().as_str().to_owned(),
            places: options.max_connections.map(SessionPlaces::new),
            options,
            open: Arc::new(()),
            live_readers: Arc::new(Semaphore::new(MAX_LIVE_READERS)),
            draining: AtomicBool::new(false),
            top_rooms: Mutex::default(),
        }))
    }

    /// The number of open WebSockets.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        Arc::strong_count(&self.0.open) - 1
    }

    /// Makes `/readyz` answer 503 from now on, so that load balancers send no new clients. Nothing else
    /// changes: call it some time before the [shutdown](actix_presence::PresenceHandle::shutdown).
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    pub(crate) fn presence(&self) -> &PresenceHandle {
        &self.0.presence
    }

    pub(crate) fn registry(&self) -> &Addr<RoomRegistry> {
        &self.0.registry
    }

    pub(crate) fn options(&self) -> &ServerOptions {
        &self.0.options
    }

    /// The name of this node.
    pub(crate) fn node(&self) -> &str {
        &self.0.node
    }

    /// The largest rooms. Do not hold the guard across an `await`.
    pub(crate) fn top_rooms(&self) -> MutexGuard<'_, TopRooms> {
        self.0.top_rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit to read the live numbers.
    pub(crate) fn live_reader(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.0.live_readers.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_LIVE_READERS} clients already read the live numbers");
            ApiError::unavailable("too_many_readers", message)
        })
    }

    /// Takes a place for a WebSocket: a free one, or that of an older connection of its client session.
    pub(crate) async fn place(&self, older: Option<TakePlace>) -> Result<SessionPlace, ApiError> {
        let free = match &self.0.places {
            Some(places) => places.take(),
            None => Some(SessionPlace::unlimited()),
        };
        let place = match (free, older) {
            (Some(free), _) => Some(free),
            (None, Some(older)) => self.place_of(older).await,
            (None, None) => None,
        };
        let message = "the server has reached its limit of connections";
        let place = place.ok_or_else(|| ApiError::unavailable("too_many_connections", message))?;
        Ok(place.counted(Arc::clone(&self.0.open)))
    }

    /// The place of an older connection, if there is one and its socket ends in time.
    async fn place_of(&self, older: TakePlace) -> Option<SessionPlace> {
        let asked = timeout(PLACE_TIMEOUT, self.0.registry.send(older));
        asked.await.ok()?.ok()?
    }

    /// Asks the registry.
    pub(crate) async fn ask<M>(&self, question: M) -> Result<M::Result, ApiError>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        RoomRegistry: Handler<M>,
        Context<RoomRegistry>: ToEnvelope<RoomRegistry, M>,
    {
        match timeout(REGISTRY_TIMEOUT, self.0.registry.send(question)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => {
                Err(ApiError::unavailable("shutting_down", "the room registry has stopped"))
            }
            Err(_) => Err(ApiError::unavailable("busy", "the room registry does not answer")),
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
