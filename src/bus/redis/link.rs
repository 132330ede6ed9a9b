//! The two connections to Redis, while they last.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    time::Duration,
};

use futures_util::StreamExt;
use metrics::counter;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, Msg, RedisError, Value,
    aio::{MultiplexedConnection, PubSub, PubSubSink, PubSubStream},
};
use rustls::crypto::CryptoProvider;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    Channel,
    inbox::{Inbox, Overrun},
    names::Names,
    outbox::{Outbox, Outgoing},
};

/// Connecting takes at most so long.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How often a silent connection is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(2);

/// How long a sign of life may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What is sent takes at most a second longer for so many bytes.
const BYTES_PER_SECOND: usize = 1024 * 1024;

/// Connections that have answered.
pub(super) struct Connections {
    publish: MultiplexedConnection,
    hear: PubSub,
}

/// Connects; why not, in one word, if that fails.
pub(super) async fn connect(client: &Client) -> Result<Connections, &'static str> {
    let connect = async {
        // How long an answer may take is judged here.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut publish = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut hear = client.get_async_pubsub().await?;
        // The kernel connects to a Redis that hangs, too; an answer says more.
        redis::cmd("PING").exec_async(&mut publish).await?;
        hear.ping::<Value>().await?;
        Ok(Connections { publish, hear })
    };
    match timeout(CONNECT_WITHIN, connect).await {
        Ok(connected) => connected.map_err(|error: RedisError| {
            // These words are not the server's: they say what is wrong with its certificate.
            if error.is_io_error() {
                tracing::debug!(%error, "not connected to the bus: {error}");
            }
            why(&error, "unreachable")
        }),
        Err(_) => Err("timeout"),
    }
}

/// Chooses how TLS encrypts, if an address asks for it and nobody has chosen in this process: rustls would
/// panic.
pub(super) fn provide_encryption(client: &Client) {
    let tls = matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
    if tls && CryptoProvider::get_default().is_none() {
        // Somebody else may have chosen just now.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// What an error means, in one word. Its text may have a password in it.
fn why(error: &RedisError, otherwise: &'static str) -> &'static str {
    let denied = [Some("NOAUTH"), Some("WRONGPASS"), Some("NOPERM")];
    if error.kind() == ErrorKind::AuthenticationFailed || denied.contains(&error.code()) {
        "denied"
    } else if error.is_connection_refusal() {
        "refused"
    } else if error.is_timeout() {
        "timeout"
    } else if error.is_io_error() {
        otherwise
    } else {
        "error"
    }
}

/// What happens on the connections.
pub(super) struct Link<'a> {
    names: &'a Names,
    outbox: &'a Outbox,
    inbox: &'a Inbox,
    /// What the listener is to hear, by its name in Redis. It changes before Redis knows of the end of a
    /// subscription, and after it knows of the begin.
    subscribed: RefCell<HashSet<String>>,
    /// Whether it is to hear all rooms: their pattern is also the name of a room.
    all_rooms: Cell<bool>,
    /// When something last came from the connection that hears.
    last_heard: Cell<Instant>,
}

impl<'a> Link<'a> {
    pub fn new(names: &'a Names, outbox: &'a Outbox, inbox: &'a Inbox) -> Self {
        let last_heard = Cell::new(Instant::now());
        let (subscribed, all_rooms) = (RefCell::default(), Cell::default());
        Self { names, outbox, inbox, subscribed, all_rooms, last_heard }
    }

    /// Works until one of the connections is lost; why, in one word.
    pub async fn run(self, connections: Connections) -> &'static str {
        let (sink, stream) = connections.hear.split();
        tokio::select! {
            why = self.publish(connections.publish) => why,
            why = self.ask(sink.clone()) => why,
            why = self.hear(stream) => why,
            why = self.ping(sink) => why,
        }
    }

    /// Publishes what waits, as much as there is at once; or asks for a sign of life.
    async fn publish(&self, mut connection: MultiplexedConnection) -> &'static str {
        loop {
            let batch = timeout(PING_EVERY, self.outbox.envelopes()).await.unwrap_or_default();
            let bytes: usize = batch.iter().map(|envelope| envelope.payload.len()).sum();
            let mut commands = redis::pipe();
            for Outgoing { channel, payload } in &batch {
                commands.cmd("PUBLISH").arg(channel).arg(payload).ignore();
            }
            if batch.is_empty() {
                commands.cmd("PING").ignore();
            }
            let within = ANSWER_WITHIN + Duration::from_secs((bytes / BYTES_PER_SECOND) as u64);
            match timeout(within, commands.exec_async(&mut connection)).await {
                Ok(Ok(())) => {
                    counter!("presence_bus_sent_total").increment(batch.len() as u64);
                    self.outbox.sent();
                }
                Ok(Err(error)) => return why(&error, "lost"),
                Err(_) => return "timeout",
            }
        }
    }

    /// Asks to hear channels, and not to. Whether Redis answers at all is left to [`ping`](Self::ping).
    async fn ask(&self, mut sink: PubSubSink) -> &'static str {
        loop {
            let asked = self.outbox.channels().await;
            if let Err(error) = self.ask_for(&mut sink, asked).await {
                return why(&error, "lost");
            }
        }
    }

    async fn ask_for(
        &self,
        sink: &mut PubSubSink,
        asked: Vec<(Channel, bool)>,
    ) -> Result<(), RedisError> {
        let (hear, unhear): (Vec<_>, Vec<_>) = asked.into_iter().partition(|(_, hear)| *hear);
        let (names, patterns) = self.names_of(&unhear);
        for name in &names {
            self.subscribed.borrow_mut().remove(name);
        }
        if !names.is_empty() {
            sink.unsubscribe(names).await?;
        }
        if !patterns.is_empty() {
            self.all_rooms.set(false);
            sink.punsubscribe(patterns).await?;
        }

        let (names, patterns) = self.names_of(&hear);
        if !names.is_empty() {
            sink.subscribe(&names).await?;
            self.subscribed.borrow_mut().extend(names);
        }
        if !patterns.is_empty() {
            sink.psubscribe(patterns).await?;
            self.all_rooms.set(true);
        }
        hear.into_iter().for_each(|(channel, _)| self.inbox.subscribed(channel));
        Ok(())
    }

    /// What channels are called in Redis: those with a name, and those with a pattern.
    fn names_of(&self, channels: &[(Channel, bool)]) -> (Vec<String>, Vec<String>) {
        let (patterns, names): (Vec<_>, Vec<_>) =
            channels.iter().partition(|(channel, _)| *channel == Channel::Rooms);
        let name = |(channel, _): &(Channel, bool)| self.names.of(channel);
        (names.into_iter().map(name).collect(), patterns.into_iter().map(name).collect())
    }

    /// Puts what comes before the listener.
    async fn hear(&self, mut stream: PubSubStream) -> &'static str {
        while let Some(message) = stream.next().await {
            self.last_heard.set(Instant::now());
            if !self.concerns(&message) {
                continue;
            }
            if let Err(Overrun) = self.inbox.message(message) {
                return "overrun";
            }
        }
        "lost"
    }

    fn concerns(&self, message: &Msg) -> bool {
        if message.from_pattern() {
            self.all_rooms.get()
        } else {
            self.subscribed.borrow().contains(message.get_channel_name())
        }
    }

    /// Asks for a sign of life again and again, and takes what comes meanwhile for one, too: the answer
    /// is behind it.
    async fn ping(&self, mut sink: PubSubSink) -> &'static str {
        loop {
            sleep(PING_EVERY).await;
            let asked = Instant::now();
            let mut answer = Box::pin(sink.ping::<Value>());
            loop {
                let since = self.last_heard.get().max(asked);
                match timeout_at(since + ANSWER_WITHIN, &mut answer).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(error)) => return why(&error, "lost"),
                    Err(_) if self.last_heard.get() > since => {}
                    Err(_) => return "timeout",
                }
            }
        }
    }
}
