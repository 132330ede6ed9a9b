//! The bus that goes through Redis.

mod inbox;
mod link;
mod names;
mod outbox;

use std::{
    fmt,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use actix::prelude::*;
use metrics::{counter, gauge};
use redis::Client;
use uuid::Uuid;

use self::{
    inbox::{Inbox, Untold},
    link::Link,
    names::Names,
    outbox::Outbox,
};
use super::{Bus, BusEvent, Channel, Envelope, NotSent};

/// The pause after the first failure. Each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two tries to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A connection that lasted so long had nothing to do with the failure before.
const STEADY: Duration = Duration::from_secs(10);

/// So much is sent ahead to the listener before it is asked whether it has come so far.
const MOST_AHEAD: u32 = 32;

/// A bus of nodes that are connected to the same Redis: its `PUBLISH` and `SUBSCRIBE`.
///
/// It works on a thread of its own, with two connections: one to publish, one to hear. Every few
/// seconds it asks both for a sign of life, so that a Redis that hangs is found out within ten seconds.
/// Dropping the bus ends its thread and its connections; what waits to be sent has a second to go out.
///
/// What waits is bounded: to be sent, 8,192 envelopes and 64 MiB; to be heard, 65,536 envelopes and 64
/// MiB. An envelope of more than 16 MiB is refused ([`NotSent`]): Redis cuts off who is to be sent more
/// than 32 MiB (`client-output-buffer-limit`).
///
/// The reasons that come with [`FromBus::Down`] are `refused`, `unreachable`, `denied` (the password, or
/// what it permits), `timeout`, `lost`, `overrun` (the listener did not keep up), `error` (Redis did not
/// do what it was asked) and `ended` (the thread did, which is a bug: nothing comes after it).
///
/// ```
/// use actix_presence::bus::RedisBus;
///
/// let bus = RedisBus::new("redis://127.0.0.1:6379")?.prefix("chat");
/// # drop(bus);
/// # Ok::<(), actix_presence::bus::InvalidRedisUrl>(())
/// ```
pub struct RedisBus {
    client: Client,
    names: Names,
    outbox: Arc<Outbox>,
}

/// The address is not one of a Redis.
///
/// What was given is not repeated, since it may have a password in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the address of a Redis: \
     redis://[[user]:password@]host[:port], the same with rediss:// for TLS, or unix:path"
)]
#[non_exhaustive]
pub struct InvalidRedisUrl;

impl RedisBus {
    /// A bus through the Redis at this address: `redis://[[user]:password@]host[:port]`, `rediss://` for
    /// TLS with the certificates that the system trusts, or `unix:path`. It connects when it is listened
    /// to. With TLS, if the process has not chosen a `CryptoProvider` of rustls by then, ring becomes it.
    ///
    /// What is published in Redis is heard in all of its databases, so the number of one in the address
    /// becomes a part of the [prefix](Self::prefix): systems that share a Redis need a number each.
    ///
    /// # Errors
    ///
    /// [`InvalidRedisUrl`].
    pub fn new(url: &str) -> Result<Self, InvalidRedisUrl> {
        let client = Client::open(url).map_err(|_| InvalidRedisUrl)?;
        let names = match client.get_connection_info().redis_settings().db() {
            0 => Names::new("presence"),
            number => Names::new(&format!("presence:{number}")),
        };
        Ok(Self { client, names, outbox: Arc::default() })
    }

    /// What the names of its channels begin with. Default `presence`, with `:` and the number of the
    /// database in the address unless that is 0: the channels are `presence:nodes`, and
    /// `presence:room:lobby` for the room `lobby`.
    #[must_use]
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> Self {
        self.names = Names::new(prefix.as_ref());
        self
    }
}

impl Bus for RedisBus {
    fn listen(&mut self, listener: Recipient<BusEvent>) {
        let (client, names) = (self.client.clone(), self.names.clone());
        link::provide_encryption(&client);
        let outbox = self.outbox.clone();
        let last_words = LastWords { outbox: outbox.clone(), listener: listener.clone() };
        let started = thread::Builder::new().name("presence-bus".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime.inspect_err(|error| tracing::error!(%error, "no bus")) else {
                return;
            };
            let thread = BusThread { client, names, outbox, inbox: Inbox::default() };
            runtime.block_on(thread.run(&listener));
            // Looking up a host may still be under way; nobody waits for it.
            runtime.shutdown_background();
            drop(last_words);
        });
        if let Err(error) = started {
            // What was given to it is dropped, and has told the listener.
            tracing::error!(%error, "no thread for the bus");
        }
    }

    fn subscribe(&mut self, channel: Channel) {
        self.outbox.ask(channel, true);
    }

    fn unsubscribe(&mut self, channel: Channel) {
        self.outbox.ask(channel, false);
    }

    fn publish(&mut self, envelope: &Envelope) -> Result<(), NotSent> {
        let encode = || (self.names.of(&envelope.channel()), envelope.encode());
        self.outbox.put(encode).inspect_err(|NotSent| {
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
        let address = self.client.get_connection_info().addr().to_string();
        f.debug_struct("RedisBus").field("address", &address).finish_non_exhaustive()
    }
}

/// Tells the listener if the thread ends by itself, or has never begun: it would wait for ever.
struct LastWords {
    outbox: Arc<Outbox>,
    listener: Recipient<BusEvent>,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        self.outbox.close();
        if !self.outbox.ended() {
            self.listener.do_send(BusEvent::Down("ended"));
        }
    }
}

/// What the thread of a bus works with.
struct BusThread {
    client: Client,
    names: Names,
    outbox: Arc<Outbox>,
    inbox: Inbox,
}

impl BusThread {
    /// Keeps connected, and tells the listener, until the bus is dropped or the listener stops.
    async fn run(&self, listener: &Recipient<BusEvent>) {
        tokio::select! {
            () = self.outbox.ended_and_sent() => {}
            () = self.tell_all(listener) => {}
            () = gone(listener) => {}
            () = self.keep_connected() => {}
        }
        gauge!("presence_bus_up").set(0.0);
    }

    async fn keep_connected(&self) {
        let mut pause = FIRST_PAUSE;
        let mut connected_before = false;
        loop {
            let started = Instant::now();
            let why = match link::connect(&self.client).await {
                Ok(connections) => {
                    self.up(connected_before);
                    connected_before = true;
                    Link::new(&self.names, &self.outbox, &self.inbox).run(connections).await
                }
                Err(why) => why,
            };
            self.down(why);
            if started.elapsed() > STEADY {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(with_chance(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn up(&self, again: bool) {
        // Who hears that it is up may publish at once.
        self.outbox.open();
        self.inbox.up();
        gauge!("presence_bus_up").set(1.0);
        counter!("presence_bus_reconnects_total").increment(u64::from(again));
        let address = self.client.get_connection_info().addr();
        tracing::info!(%address, "connected to the bus at {address}");
    }

    fn down(&self, why: &'static str) {
        self.outbox.close();
        gauge!("presence_bus_up").set(0.0);
        let address = self.client.get_connection_info().addr();
        // The server's own words may repeat the password, so they are in no log.
        if self.inbox.down(why) {
            tracing::warn!(%address, why, "not connected to the bus at {address}: {why}");
        } else {
            tracing::debug!(%address, why, "still not connected to the bus at {address}: {why}");
        }
    }

    /// Tells the listener one thing after the other, as it takes them, until it has stopped.
    async fn tell_all(&self, listener: &Recipient<BusEvent>) {
        let mut ahead = 0;
        loop {
            let told = match self.inbox.next().await {
                Untold::Up => BusEvent::Up,
                Untold::Down(why) => BusEvent::Down(why),
                Untold::Subscribed(channel) => BusEvent::Subscribed(channel),
                Untold::Message(message) => {
                    counter!("presence_bus_heard_total").increment(1);
                    let bytes = message.get_payload_bytes();
                    Envelope::decode(bytes).map_or_else(BusEvent::Unreadable, BusEvent::Received)
                }
            };
            let told = if ahead < MOST_AHEAD {
                ahead += 1;
                match listener.try_send(told) {
                    Ok(()) => continue,
                    Err(SendError::Full(told)) => told,
                    Err(SendError::Closed(_)) => return,
                }
            } else {
                told
            };
            ahead = 0;
            if listener.send(told).await.is_err() {
                return;
            }
        }
    }
}

/// Waits until the listener has stopped, also when there is nothing to tell.
async fn gone(listener: &Recipient<BusEvent>) {
    while listener.connected() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Half as long, or up to as long: nodes that were cut off together do not come back together.
fn with_chance(pause: Duration) -> Duration {
    let chance = Uuid::new_v4().as_fields().0;
    pause.mul_f64(0.5 + 0.5 * f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_looked_at_and_not_repeated() {
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
    fn a_pause_is_at_least_half_and_at_most_whole() {
        for _ in 0..100 {
            let pause = with_chance(FIRST_PAUSE);
            assert!(pause >= FIRST_PAUSE / 2 && pause <= FIRST_PAUSE, "{pause:?}");
        }
    }
}
