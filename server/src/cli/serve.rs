//! `presence serve`: starts the server, and stops it in order.

use std::{future::pending, time::Duration};

use actix::Arbiter;
use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn, rt::task::JoinHandle};
use futures_util::future::{select, select_all};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::{
    connections::{self, middleware::track_request},
    descriptors::{self, DescriptorLimits},
    error::CommandError,
    flags::ServeFlags,
    listen::ListenerHandles,
    log,
    signals::StopSignals,
    threads::{self, TooFewThreads},
};
use crate::{
    error_chain::error_chain,
    metrics::Metrics,
    routes::{configure, configure_unknown},
    state::{ServerOptions, ServerState},
};
use actix_presence::{PresenceConfig, PresenceHandle, watch_socket};

/// How long opening the database may take. SQLite waits for locks of others for 30 s at most.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// When it is logged that opening takes long.
const SLOW_START: Duration = Duration::from_secs(10);
/// How long sessions may take to be closed, and rows to be written, when the server stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long WebSockets may take after that: a little longer than a client has for its close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long after the pause new connections are refused: actix-server answers a pause before its thread
/// has stopped accepting, and would log errors of a listener that is shut down earlier.
const REFUSE_AFTER: Duration = Duration::from_millis(200);
/// How long other connections may take after that, in seconds.
const CONNECTION_TIMEOUT_SECS: u64 = 3;
/// How long the whole stop may take.
const STOP_TIMEOUT: Duration = Duration::from_millis(9500);
/// How often to check whether the last connection has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

pub(super) fn run(flags: ServeFlags) -> Result<(), CommandError> {
    let workers = flags.workers.map_or_else(descriptors::default_workers, usize::from);
    log::start(&flags.log).map_err(|error| TooFewThreads::none(workers, error))?;
    // Before anything is opened or started, such as the runtime.
    threads::check(workers)?;
    let limits = descriptor_limits(&flags, workers)?;
    actix::System::new().block_on(serve(flags, limits))
}

/// Raises the limit of file descriptors, and divides them.
fn descriptor_limits(flags: &ServeFlags, workers: usize) -> Result<DescriptorLimits, CommandError> {
    let listeners = flags.addresses().list.len();
    let limits = DescriptorLimits::new(descriptors::raise(), workers, listeners)?;
    let sockets = limits.all_websockets();
    if let Some(descriptors) = limits.descriptors {
        tracing::info!(descriptors, workers, "room for {sockets} WebSockets");
    }
    if let Some(max) = flags.max_connections.map(to_usize).filter(|max| *max > sockets) {
        tracing::warn!(
            "--max-connections is {max}, but there are file descriptors for only {sockets} WebSockets \
             (`ulimit -n`)"
        );
    }
    Ok(limits)
}

async fn serve(flags: ServeFlags, limits: DescriptorLimits) -> Result<(), CommandError> {
    if flags.api_key.as_ref().is_some_and(|key| !key.is_visible_ascii()) {
        return Err(CommandError::ApiKey);
    }
    let config = config(&flags);
    config.validate()?;
    // Before anybody can know that the server has started.
    let mut signals = StopSignals::listen().map_err(CommandError::Signals)?;
    let listeners = flags.addresses().listen()?;
    let Some(presence) = start(config, &mut signals).await? else {
        tracing::info!("stopped before the database was open");
        return Ok(());
    };
    let (drain, keep_alive) = (flags.drain, flags.keep_alive);
    let state = ServerState::new(&presence, options(flags));
    connections::init_gauges(&limits);

    let shared = state.clone();
    let app = move || {
        App::new()
            .wrap(from_fn(track_request))
            .configure(configure(shared.clone()))
            .configure(configure_unknown(shared.clone()))
    };
    let server = HttpServer::new(app).on_connect(move |io, extensions| {
        // On Linux they inherit it from their listener.
        #[cfg(not(target_os = "linux"))]
        actix_presence::configure_tcp(io);
        watch_socket(io, extensions);
        connections::track(&limits, keep_alive, extensions);
    });
    let server = server.workers(limits.workers).max_connections(limits.accepted);
    let server = server.keep_alive(keep_alive).shutdown_timeout(CONNECTION_TIMEOUT_SECS);
    let mut server = server.disable_signals();
    let handles = ListenerHandles::of(&listeners);
    for listener in listeners {
        server = server.listen(listener).map_err(CommandError::Serve)?;
    }
    for address in server.addrs() {
        tracing::info!("listening on http://{address}");
    }
    let server = server.run();
    let stop = Stop { server: server.handle(), presence: presence.clone(), state, drain, handles };
    let (done, stopped) = oneshot::channel();
    let tasks = [
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        ("memory", actix::spawn(super::memory::start().map_err(CommandError::Thread)?)),
        ("signals", actix::spawn(stop.on_signal(signals, done))),
    ];
    tokio::select! {
        ended = server => ended.map_err(CommandError::Serve),
        Ok(()) = stopped => Ok(()),
        error = failure(presence, tasks) => error.abort(),
    }
}

/// Starts the presence system, on another thread, since the database may hang. `None` if a signal has
/// come first.
async fn start(
    config: PresenceConfig,
    signals: &mut StopSignals,
) -> Result<Option<PresenceHandle>, CommandError> {
    let arbiter = Arbiter::try_new().map_err(CommandError::Thread)?;
    let (answer, mut started) = oneshot::channel();
    arbiter.spawn_fn(move || drop(answer.send(config.start())));
    let answered = async {
        if let Ok(answer) = timeout(SLOW_START, &mut started).await {
            return Ok(answer);
        }
        tracing::warn!(after = ?SLOW_START, "the database is not open yet");
        timeout(START_TIMEOUT - SLOW_START, started).await
    };
    let answer = tokio::select! {
        () = signals.next() => return Ok(None),
        answer = answered => answer.map_err(|_| CommandError::Unanswered(START_TIMEOUT))?,
    };
    arbiter.stop();
    // Without an answer it has panicked.
    Ok(Some(answer.map_err(|_| CommandError::Task("start"))??))
}

/// Waits for a part of the system to end that must not end by itself: the process cannot do its work
/// without it.
async fn failure<const N: usize>(
    presence: PresenceHandle,
    tasks: [(&'static str, JoinHandle<()>); N],
) -> CommandError {
    let crashed = async {
        match presence.closed().await {
            Err(crashed) => CommandError::Crashed(crashed),
            Ok(()) => pending().await,
        }
    };
    let panicked = tasks.map(|(name, task)| {
        Box::pin(async move {
            match task.await {
                Err(_) => CommandError::Task(name),
                Ok(()) => pending().await,
            }
        })
    });
    tokio::select! {
        error = crashed => error,
        (error, ..) = select_all(panicked) => error,
    }
}

fn config(flags: &ServeFlags) -> PresenceConfig {
    let mut config = PresenceConfig::new(&flags.database.url)
        .lease(flags.lease)
        .max_age(flags.max_age)
        .grace(flags.grace)
        .max_list_size(to_usize(flags.max_list_size))
        .prune_rooms_every(flags.prune_rooms_interval);
    if let Some(redis) = &flags.redis {
        config = config.redis(redis);
    }
    if let Some(node) = &flags.node {
        config = config.node(node);
    }
    if let Some(interval) = flags.prune_interval {
        config = config.prune_every(interval);
    }
    if let Some(size) = flags.max_room_size {
        config = config.room_size(to_usize(size));
    }
    config
}

fn options(flags: ServeFlags) -> ServerOptions {
    let addresses = flags.addresses().list;
    let loopback = addresses.iter().all(|address| address.ip().to_canonical().is_loopback());
    if flags.secrets.is_empty() && !loopback {
        tracing::warn!("no --secret, and not bound to loopback only: all clients are anonymous");
    }
    if flags.api_key.is_none() {
        tracing::warn!("no --api-key: /api answers this machine only");
    }
    let metrics = Metrics::install();
    let metrics =
        metrics.inspect_err(|error| tracing::warn!("no /metrics: {}", error_chain(error)));
    ServerOptions {
        identity: None,
        secrets: flags.secrets,
        allow_anonymous: flags.allow_anonymous,
        believe_query: loopback,
        api_key: flags.api_key,
        allowed_origins: flags.allowed_origins,
        max_frame_size: to_usize(flags.max_frame_size),
        max_list_size: to_usize(flags.max_list_size),
        max_connections: flags.max_connections.map(to_usize),
        max_rate: flags.max_rate,
        ping_interval: flags.ping_interval,
        metrics: metrics.ok(),
    }
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// What is stopped when the process gets a signal.
struct Stop {
    server: ServerHandle,
    presence: PresenceHandle,
    state: ServerState,
    drain: Duration,
    handles: ListenerHandles,
}

impl Stop {
    /// Stops the server in order at the first signal, and ends the process at once at the second.
    async fn on_signal(self, mut signals: StopSignals, done: oneshot::Sender<()>) {
        signals.next().await;
        self.state.drain();
        actix::spawn(async move {
            signals.next().await;
            log::drain();
            std::process::exit(1);
        });
        if !self.drain.is_zero() {
            tracing::info!(drain = ?self.drain, "draining: not ready any more, but still serving");
            actix::clock::sleep(self.drain).await;
        }
        self.run().await;
        // The receiver may have been dropped.
        let _ = done.send(());
    }

    async fn run(self) {
        tracing::info!("stopping: closing the WebSockets and writing the rows");
        let deadline = Instant::now() + STOP_TIMEOUT;
        self.server.pause().await;
        let closing = async {
            match self.presence.shutdown(SHUTDOWN_TIMEOUT).await {
                Ok(()) => tracing::info!("all rows are written"),
                Err(error) => {
                    tracing::error!("not all rows are written, the next start cleans up: {error}");
                }
            }
            let _ = timeout(CLOSE_TIMEOUT, until(|| self.state.open_sockets() == 0)).await;
        };
        let refusing = async {
            actix::clock::sleep(REFUSE_AFTER).await;
            self.handles.refuse_connections();
            pending::<()>().await
        };
        select(Box::pin(closing), Box::pin(refusing)).await;
        // Connections that are still open at the deadline are cut.
        let _ = timeout_at(deadline, end_connections(self.server)).await;
    }
}

/// Ends all other connections. The workers themselves check only once a second whether one was the last.
async fn end_connections(server: ServerHandle) {
    let all_ended = until(|| connections::open() == 0);
    select(Box::pin(server.stop(true)), Box::pin(all_ended)).await;
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        actix::clock::sleep(POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use actix_web::rt::time::timeout;

    use super::*;
    use actix_presence::{Clock, Crashed};

    /// How long a failure may take to be reported on a busy machine.
    const SOON: Duration = Duration::from_secs(10);

    #[actix::test]
    async fn a_registry_that_panics_ends_the_process_with_a_code_of_its_own() {
        let (panics, clock) = (Arc::<AtomicBool>::default(), Clock::system());
        let doom = panics.clone();
        let clock = Clock::from_fn(move || {
            assert!(!doom.load(SeqCst), "told by the test");
            clock.now()
        });
        let presence = PresenceConfig::new("sqlite::memory:").clock(clock).start().unwrap();
        let failure = actix::spawn(failure(presence, [("idle", actix::spawn(async {}))]));
        panics.store(true, SeqCst);
        let error = timeout(SOON, failure).await.unwrap().unwrap();
        assert!(matches!(error, CommandError::Crashed(Crashed::Registry)), "{error}");
        assert_eq!(error.code(), 70);
    }

    #[actix::test]
    async fn a_task_that_panics_ends_the_process_and_a_shutdown_does_not() {
        let presence = PresenceConfig::new("sqlite::memory:").start().unwrap();
        let (ask, asked) = tokio::sync::oneshot::channel::<()>();
        let signals = actix::spawn(async move { asked.await.unwrap() });
        let failure = actix::spawn(failure(presence.clone(), [("signals", signals)]));
        presence.shutdown(SHUTDOWN_TIMEOUT).await.unwrap();
        assert!(!failure.is_finished());
        drop(ask);
        let error = timeout(SOON, failure).await.unwrap().unwrap();
        assert!(matches!(error, CommandError::Task("signals")), "{error}");
        assert_eq!(error.code(), 70);
    }
}
