//! `presence serve`: starts everything, and ends it in order.

use std::{
    future::{Future, pending},
    io,
    time::Duration,
};

use actix_web::{App, HttpServer, dev::ServerHandle, rt::task::JoinHandle};
use futures_util::future::{select, select_all};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Metrics, ServerOptions, ServerState,
    commands::{self, CommandError},
    configure,
    connections::{self, Connections, KEEP_ALIVE},
    descriptors::{self, Limits},
    flags::Serve,
    listen::Listening,
    log, memory,
};
use actix_presence::{PresenceConfig, PresenceHandle, watch_socket};

/// How long the goodbyes and the rows may take at the end.
const WRITING: Duration = Duration::from_secs(5);
/// How long WebSockets may take after that: a little more than a client has for its close frame.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(2500);
/// When new connections are refused: actix-server answers a pause before its thread has stopped accepting,
/// and would log errors of a listener that is shut down earlier.
const REFUSE_AFTER: Duration = Duration::from_millis(200);
/// How long all other connections may take then, in seconds.
const CLOSING: u64 = 3;
/// How long all of that may take together.
const STOP_TIMEOUT: Duration = Duration::from_millis(9500);
/// How often to look whether the last connection has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

pub(super) fn run(flags: Serve) -> Result<(), CommandError> {
    log::start(&flags.log).map_err(CommandError::Log)?;
    // Before anything is opened, such as the runtime.
    let limits = limits(&flags)?;
    actix::System::new().block_on(serve(flags, limits))
}

/// Divides the file descriptors that there are.
fn limits(flags: &Serve) -> Result<Limits, CommandError> {
    let workers = flags.workers.map_or_else(descriptors::default_workers, usize::from);
    let limits = Limits::new(descriptors::raise(), workers, flags.addresses().list.len())?;
    let sockets = limits.all_websockets();
    if let Some(descriptors) = limits.descriptors {
        tracing::info!(descriptors, workers, "room for {sockets} WebSockets");
    }
    if let Some(max) = flags.max_connections.map(count).filter(|max| *max > sockets) {
        tracing::warn!(
            "--max-connections is {max}, but there are file descriptors for {sockets} WebSockets only \
             (`ulimit -n`)"
        );
    }
    connections::publish(limits);
    Ok(limits)
}

async fn serve(flags: Serve, limits: Limits) -> Result<(), CommandError> {
    if flags.api_key.as_ref().is_some_and(|key| !key.is_visible_ascii()) {
        return Err(CommandError::ApiKey);
    }
    let config = config(&flags);
    config.validate()?;
    // Before anybody can know that the server is there.
    let signals = signals().map_err(CommandError::Serve)?;
    let listeners = flags.addresses().listen()?;
    let presence = config.start()?;
    let drain = flags.drain;
    let state = ServerState::new(&presence, options(flags));

    let shared = state.clone();
    let app = move || App::new().wrap(Connections).configure(configure(shared.clone()));
    let server = HttpServer::new(app).on_connect(move |io, extensions| {
        // Elsewhere they inherit it from their listener.
        #[cfg(not(target_os = "linux"))]
        actix_presence::configure_tcp(io);
        watch_socket(io, extensions);
        connections::opened(&limits, extensions);
    });
    let server = server.workers(limits.workers).max_connections(limits.accepted);
    let mut server = server.keep_alive(KEEP_ALIVE).shutdown_timeout(CLOSING).disable_signals();
    let listening = Listening::of(&listeners);
    for listener in listeners {
        server = server.listen(listener).map_err(CommandError::Serve)?;
    }
    for address in server.addrs() {
        tracing::info!("listening on http://{address}");
    }
    let server = server.run();
    let (done, stopped) = oneshot::channel();
    let tasks = [
        ("memory", actix::spawn(memory::give_back())),
        (
            "signals",
            actix::spawn(stop(
                signals,
                server.handle(),
                presence.clone(),
                state,
                (drain, listening),
                done,
            )),
        ),
    ];
    tokio::select! {
        ended = server => ended.map_err(CommandError::Serve),
        Ok(()) = stopped => Ok(()),
        error = failure(presence, tasks) => commands::abort(&error),
    }
}

/// Waits for a part of the system to end that must not end by itself: then the process does better to
/// end than to go on without it.
async fn failure<const N: usize>(
    presence: PresenceHandle,
    tasks: [(&'static str, JoinHandle<()>); N],
) -> CommandError {
    let crashed = async {
        match presence.closed().await {
            Err(crashed) => CommandError::Crashed(crashed),
            Ok(()) => std::future::pending().await,
        }
    };
    let panicked = tasks.map(|(name, task)| {
        Box::pin(async move {
            match task.await {
                Err(_) => CommandError::Task(name),
                Ok(()) => std::future::pending().await,
            }
        })
    });
    tokio::select! {
        error = crashed => error,
        (error, ..) = select_all(panicked) => error,
    }
}

fn config(flags: &Serve) -> PresenceConfig {
    let mut config = PresenceConfig::new(&flags.database.url)
        .lease(flags.lease)
        .max_age(flags.max_age)
        .grace(flags.grace)
        .max_list_size(count(flags.max_list_size))
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
        config = config.room_size(count(size));
    }
    config
}

fn options(flags: Serve) -> ServerOptions {
    let addresses = flags.addresses().list;
    let loopback = addresses.iter().all(|address| address.ip().to_canonical().is_loopback());
    if flags.secrets.is_empty() && !loopback {
        tracing::warn!("no --secret, and not on loopback only: everybody is anonymous");
    }
    if flags.api_key.is_none() {
        tracing::warn!("no --api-key: /api answers only this machine");
    }
    let metrics = Metrics::install().inspect_err(|error| tracing::warn!(%error, "no /metrics"));
    ServerOptions {
        secrets: flags.secrets,
        allow_anonymous: flags.allow_anonymous,
        believe_query: loopback,
        api_key: flags.api_key,
        allowed_origins: flags.allowed_origins,
        max_frame_size: count(flags.max_frame_size),
        max_list_size: count(flags.max_list_size),
        max_connections: flags.max_connections.map(count),
        max_rate: flags.max_rate,
        ping_interval: flags.ping_interval,
        metrics: metrics.ok(),
    }
}

fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// On a first signal ends everything in order, on a second one at once.
async fn stop(
    mut signals: impl Signals,
    server: ServerHandle,
    presence: PresenceHandle,
    state: ServerState,
    (drain, listening): (Duration, Listening),
    done: oneshot::Sender<()>,
) {
    signals.next().await;
    state.drain();
    actix::spawn(async move {
        signals.next().await;
        log::drain();
        std::process::exit(1);
    });
    if !drain.is_zero() {
        tracing::info!(?drain, "draining: not ready any more, and still serving");
        actix::clock::sleep(drain).await;
    }
    tracing::info!("stopping: closing the sockets and writing the rows");
    let deadline = Instant::now() + STOP_TIMEOUT;
    server.pause().await;
    state.close();
    let closing = async {
        match presence.shutdown(WRITING).await {
            Ok(()) => tracing::info!("everything is written"),
            Err(error) => {
                tracing::error!(%error, "not everything is written; the next start tidies up")
            }
        }
        let _ = timeout(FAREWELL_TIMEOUT, until(|| state.open_sockets() == 0)).await;
    };
    let refusing = async {
        actix::clock::sleep(REFUSE_AFTER).await;
        listening.refuse_connections();
        pending::<()>().await
    };
    select(Box::pin(closing), Box::pin(refusing)).await;
    // What is open still at the deadline is cut.
    let _ = timeout_at(deadline, end_connections(server)).await;
    // The server may be about to end the process as well.
    let _ = done.send(());
}

/// Ends all other connections. The workers look only once a second whether one was the last.
async fn end_connections(server: ServerHandle) {
    let all_ended = until(|| connections::open() == 0);
    select(Box::pin(server.stop(true)), Box::pin(all_ended)).await;
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        actix::clock::sleep(LOOK_INTERVAL).await;
    }
}

/// The signals that end the server, one after the other.
trait Signals: 'static {
    fn next(&mut self) -> impl Future<Output = ()>;
}

#[cfg(unix)]
fn signals() -> io::Result<impl Signals> {
    use std::{future::poll_fn, task::Poll};

    use actix_web::rt::signal::unix::{Signal, SignalKind, signal};

    struct Unix([Signal; 2]);
    impl Signals for Unix {
        async fn next(&mut self) {
            poll_fn(|cx| {
                let ready = self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
                if ready { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
    }
    Ok(Unix([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]))
}

#[cfg(not(unix))]
fn signals() -> io::Result<impl Signals> {
    struct CtrlC;
    impl Signals for CtrlC {
        async fn next(&mut self) {
            if actix_web::rt::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
    Ok(CtrlC)
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

    /// How long it may take until a failure is told, on a busy machine.
    const SOON: Duration = Duration::from_secs(10);

    #[actix::test]
    async fn a_registry_that_panics_ends_the_process_with_a_code_of_its_own() {
        let (panics, clock) = (Arc::<AtomicBool>::default(), Clock::system());
        let doom = panics.clone();
        let clock = Clock::from_fn(move || {
            assert!(!doom.load(SeqCst), "as the test says");
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
        presence.shutdown(WRITING).await.unwrap();
        assert!(!failure.is_finished());
        drop(ask);
        let error = timeout(SOON, failure).await.unwrap().unwrap();
        assert!(matches!(error, CommandError::Task("signals")), "{error}");
        assert_eq!(error.code(), 70);
    }
}
