//! The bus that goes through Redis.

mod failure;
mod link;
mod names;
mod queues;

use std::{
    cell::{Cell, RefCell},
    fmt,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use actix::prelude::*;
use metrics::{counter, gauge};
use redis::Msg;
use uuid::Uuid;

use self::{
    failure::{ConnectionLog, Failure},
    link::{RedisLink, Server},
    names::{ChannelNames, Prefix},
    queues::{Inbox, Outbox, QueuedEvent},
};
use crate::bus::{Bus, BusEvent, Channel, ClusterIdentity, Envelope, InvalidEnvelope, NotSent};

/// The pause after the first failure. Each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A connection that lasted this long resets the pause.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The number of events sent to the listener before one is confirmed by it.
const MAX_UNCONFIRMED: u32 = 32;

/// A bus between nodes on one Redis, by `PUBLISH` and `SUBSCRIBE`.
///
/// It runs on a thread of its own, with two connections: one to publish, one to receive. It pings both
/// every few seconds, so that a Redis that hangs is noticed within ten seconds. Dropping the bus ends its
/// thread and its connections; queued envelopes have a second to be sent.
///
/// The queues are bounded: to send, 8,192 envelopes and 64 MiB; to receive, 65,536 envelopes and 64 MiB. An
/// envelope of more than 16 MiB is refused ([`NotSent`]): Redis disconnects a client for which more than 32
/// MiB are queued (`client-output-buffer-limit`).
///
/// It is up when Redis has let it subscribe to the channel of the nodes and to all rooms, and publish.
///
/// The reasons of [`BusEvent::Down`] are `refused`, `unreachable`, `denied` (the password, or what its user
/// may do), `timeout`, `lost`, `overrun` (the listener did not keep up), `identity` (the database has another
/// [identity](Bus::identify)), `error` (Redis refused a command) and `ended` (the thread ended, which is a
/// bug: nothing comes after it). The log has one line for each, at most one a minute.
///
/// ```
/// use actix_presence::bus::RedisBus;
///
/// let bus = RedisBus::new("redis://127.0.0.1:6379")?.prefix("chat");
/// # drop(bus);
/// # Ok::<(), actix_presence::bus::InvalidRedisUrl>(())
/// ```
pub struct RedisBus {
    server: Server,
    prefix: Prefix,
    outbox: Arc<Outbox>,
    /// The names of channels, once there is an identity.
    names: Option<ChannelNames>,
}

/// The URL of Redis is invalid. It is not repeated, since it may contain a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid Redis URL: it is \
     redis://[[user]:password@]host[:port], the same with rediss:// for TLS, or unix:path"
)]
#[non_exhaustive]
pub struct InvalidRedisUrl;

impl RedisBus {
    /// A bus through the Redis at this URL: `redis://[[user]:password@]host[:port]`, `rediss://` for TLS
    /// with the certificates that the system trusts, or `unix:path`. It connects when it gets its listener.
    /// With TLS, if the process has no default `CryptoProvider` of rustls by then, ring becomes it.
    ///
    /// Systems with a database each do not hear one another, also on one Redis. Redis publishes to all of its
    /// databases, and none is selected, so the number of one in the URL means nothing.
    ///
    /// # Errors
    ///
    /// [`InvalidRedisUrl`].
    pub fn new(url: &str) -> Result<Self, InvalidRedisUrl> {
        let (server, number) = Server::new(url).map_err(|_| InvalidRedisUrl)?;
        // A version that did not authenticate its envelopes has the number in the names of channels.
        let old = if number == 0 { "presence" } else { &format!("presence:{number}") };
        let prefix = Prefix::new("presence", old);
        Ok(Self { server, prefix, outbox: Arc::default(), names: None })
    }

    /// The prefix of the names of its channels. Default `presence`: with [`ClusterIdentity::channel`] as VALUE
    /// the channels are `presence:VALUE:nodes`, and `presence:VALUE:room:lobby` for the room `lobby`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> Self {
        self.prefix = Prefix::new(prefix.as_ref(), prefix.as_ref());
        self
    }
}

impl Bus for RedisBus {
    fn listen(&mut self, listener: Recipient<BusEvent>) {
        let (server, prefix) = (self.server.clone(), self.prefix.clone());
        link::provide_encryption(&server);
        let outbox = self.outbox.clone();
        let end_guard = EndGuard { outbox: outbox.clone(), listener: listener.clone() };
        let started = thread::Builder::new().name("presence-bus".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime.inspect_err(|error| tracing::error!(%error, "no bus")) else {
                return;
            };
            let thread = BusThread::new(server, prefix, outbox);
            runtime.block_on(thread.run(&listener));
            // A lookup of a host name may be under way; it is not waited for.
            runtime.shutdown_background();
            drop(end_guard);
        });
        if let Err(error) = started {
            // Its closure was dropped with the guard in it, which has reported `Down`.
            tracing::error!(%error, "no thread for the bus");
        }
    }

    fn identify(&mut self, identity: ClusterIdentity) {
        self.names = Some(self.prefix.names(Arc::new(identity.clone())));
        self.outbox.identify(identity);
    }

    fn subscribe(&mut self, channel: Channel) {
        self.outbox.request(channel, true);
    }

    fn unsubscribe(&mut self, channel: Channel) {
        self.outbox.request(channel, false);
    }

    fn publish(&mut self, envelope: &Envelope) -> Result<(), NotSent> {
        let names = self.names.as_ref();
        let encode = |names: &ChannelNames| {
            (names.of(&envelope.channel()), envelope.encode(&names.identity))
        };
        let queued = names.ok_or(NotSent).and_then(|names| self.outbox.put(|| encode(names)));
        queued.inspect_err(|NotSent| {
            counter!("presence_bus_refused_total").increment(1);
        })
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.outbox.end();
    }
}

impl fmt::Debug for RedisBus {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.server.address();
        f.debug_struct("RedisBus").field("address", &address).finish_non_exhaustive()
    }
}

/// Reports `Down` if the thread ends by itself or cannot be started: the listener would wait forever.
struct EndGuard {
    outbox: Arc<Outbox>,
    listener: Recipient<BusEvent>,
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.outbox.close();
        if !self.outbox.ended() {
            self.listener.do_send(BusEvent::Down("ended"));
        }
    }
}

/// The state of the thread of a bus.
struct BusThread {
    server: Server,
    prefix: Prefix,
    outbox: Arc<Outbox>,
    inbox: Inbox,
    /// The names of the channels of which messages are in the inbox.
    names: RefCell<Option<Arc<ChannelNames>>>,
    old_nodes: Cell<bool>,
    log: ConnectionLog,
}

impl BusThread {
    fn new(server: Server, prefix: Prefix, outbox: Arc<Outbox>) -> Self {
        let address = server.address();
        Self {
            server,
            prefix,
            outbox,
            inbox: Inbox::default(),
            names: RefCell::default(),
            old_nodes: Cell::default(),
            log: ConnectionLog::new(address),
        }
    }

    /// Runs until the bus is dropped or the listener stops.
    async fn run(&self, listener: &Recipient<BusEvent>) {
        tokio::select! {
            () = self.outbox.ended_and_sent() => {}
            () = self.forward_events(listener) => {}
            () = listener_stopped(listener) => {}
            () = self.keep_connected() => {}
        }
        gauge!("presence_bus_up").set(0.0);
    }

    async fn keep_connected(&self) {
        let mut pause = FIRST_PAUSE;
        let mut connected_before = false;
        loop {
            let started = Instant::now();
            let failure = match self.stay_connected(&mut connected_before).await {
                Ok(failure) | Err(failure) => failure,
            };
            self.down(&failure);
            if started.elapsed() > STABLE_AFTER {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Connects, and stays so until the connection is lost or the identity is another; the result is the
    /// reason, as an error if the bus never was up.
    async fn stay_connected(&self, connected_before: &mut bool) -> Result<Failure, Failure> {
        let mut connections = link::connect(&self.server).await?;
        let identity = self.outbox.identity(None).await;
        let names = Arc::new(self.prefix.names(identity.clone()));
        let link = RedisLink::new(&names, &self.outbox, &self.inbox, &self.old_nodes);
        link.try_out(&mut connections).await?;
        self.names.replace(Some(names.clone()));
        self.up(&identity, std::mem::replace(connected_before, true));
        tokio::select! {
            failure = link.run(connections) => Ok(failure),
            _ = self.outbox.identity(Some(&identity)) => Ok("identity".into()),
        }
    }

    fn up(&self, identity: &ClusterIdentity, again: bool) {
        // The listener may publish as soon as it knows.
        self.outbox.open(identity);
        self.inbox.up();
        gauge!("presence_bus_up").set(1.0);
        counter!("presence_bus_reconnects_total").increment(u64::from(again));
        self.log.up();
    }

    fn down(&self, failure: &Failure) {
        self.outbox.close();
        gauge!("presence_bus_up").set(0.0);
        self.inbox.down(failure.reason);
        self.log.down(failure);
    }

    fn decode(&self, message: &Msg) -> BusEvent {
        // There are names since before there was a message, and none of a time before them.
        let names = self.names.borrow();
        let Some(names) = &*names else {
            return BusEvent::Unreadable(InvalidEnvelope::Unverified);
        };
        let channel = names.name_of(message.get_channel_name());
        Envelope::decode(message.get_payload_bytes(), channel, &names.identity)
            .map_or_else(BusEvent::Unreadable, BusEvent::Received)
    }

    /// Sends the events to the listener, at its pace, until it has stopped.
    async fn forward_events(&self, listener: &Recipient<BusEvent>) {
        let mut unconfirmed = 0;
        loop {
            let event = match self.inbox.next().await {
                QueuedEvent::Up => BusEvent::Up,
                QueuedEvent::Down(reason) => BusEvent::Down(reason),
                QueuedEvent::Subscribed(channel) => BusEvent::Subscribed(channel),
                QueuedEvent::Message(message) => {
                    counter!("presence_bus_heard_total").increment(1);
                    self.decode(&message)
                }
            };
            let event = if unconfirmed < MAX_UNCONFIRMED {
                unconfirmed += 1;
                match listener.try_send(event) {
                    Ok(()) => continue,
                    Err(SendError::Full(event)) => event,
                    Err(SendError::Closed(_)) => return,
                }
            } else {
                event
            };
            unconfirmed = 0;
            if listener.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// Waits until the listener has stopped, even if there are no events.
async fn listener_stopped(listener: &Recipient<BusEvent>) {
    while listener.connected() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A random pause of at least half this length: nodes that were cut off together do not reconnect together.
fn jittered(pause: Duration) -> Duration {
    let random = Uuid::new_v4().as_fields().0;
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_and_not_repeated() {
        for good in
            ["redis://h", "redis://:secret@h:6379/1", "rediss://u:secret@h", "unix:/run/redis"]
        {
            let bus = RedisBus::new(good).unwrap_or_else(|error| panic!("{good}: {error}"));
            assert!(!format!("{bus:?}").contains("secret"));
        }
        for bad in ["", "h:6379", "http://h", "redis://:secret@", "redis://:secret@h:port"] {
            let error = RedisBus::new(bad).expect_err(bad);
            assert!(!format!("{error}{error:?}").contains("secret"));
        }
    }

    #[test]
    fn a_jittered_pause_is_at_least_half_as_long() {
        for _ in 0..100 {
            let pause = jittered(FIRST_PAUSE);
            assert!(pause >= FIRST_PAUSE / 2 && pause <= FIRST_PAUSE, "{pause:?}");
        }
    }
}
