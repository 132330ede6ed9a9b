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

use super::queues::{Inbox, Outbox, Outgoing, Overrun};
use crate::bus::Channel;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a silent connection is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Sending may take a second longer for each of these many bytes.
const BYTES_PER_SECOND: usize = 1024 * 1024;

/// Two connections that have answered.
pub(super) struct Connections {
    publish: MultiplexedConnection,
    receive: PubSub,
}

/// Connects; the error is a reason in one word.
pub(super) async fn connect(client: &Client) -> Result<Connections, &'static str> {
    let connect = async {
        // The timeouts are those of this file.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut publish = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut receive = client.get_async_pubsub().await?;
        // A Redis that hangs accepts connections, too, so an answer is required.
        redis::cmd("PING").exec_async(&mut publish).await?;
        receive.ping::<Value>().await?;
        Ok(Connections { publish, receive })
    };
    match timeout(CONNECT_TIMEOUT, connect).await {
        Ok(connected) => connected.map_err(|error: RedisError| {
            // Not text of the server, and the only place where errors of certificates show.
            if error.is_io_error() {
                tracing::debug!(%error, "not connected to the bus: {error}");
            }
            reason(&error, "unreachable")
        }),
        Err(_) => Err("timeout"),
    }
}

/// Installs a `CryptoProvider` for TLS unless the process has one: rustls would panic without.
pub(super) fn provide_encryption(client: &Client) {
    let tls = matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
    if tls && CryptoProvider::get_default().is_none() {
        // Another thread may have installed one just now.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// The reason in one word. The text of the error may contain a password.
fn reason(error: &RedisError, otherwise: &'static str) -> &'static str {
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

/// The names of channels in Redis.
#[derive(Clone, Debug)]
pub(super) struct ChannelNames {
    prefix: String,
    /// The prefix, escaped for a pattern.
    escaped: String,
}

impl ChannelNames {
    pub fn new(prefix: &str) -> Self {
        let mut escaped = String::new();
        for character in prefix.chars() {
            if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
                escaped.push('\\');
            }
            escaped.push(character);
        }
        Self { prefix: prefix.to_owned(), escaped }
    }

    /// The name of a channel; for [`Channel::Rooms`] the pattern that all rooms match.
    pub fn of(&self, channel: &Channel) -> String {
        match channel {
            Channel::Nodes => format!("{}:nodes", self.prefix),
            Channel::Room(room) => format!("{}:room:{room}", self.prefix),
            Channel::Rooms => format!("{}:room:*", self.escaped),
        }
    }
}

/// The work on the two connections.
pub(super) struct RedisLink<'a> {
    names: &'a ChannelNames,
    outbox: &'a Outbox,
    inbox: &'a Inbox,
    /// The subscriptions by their names in Redis. Updated before Redis gets the end of a subscription, and
    /// after it has confirmed a new one.
    subscribed: RefCell<HashSet<String>>,
    /// Whether all rooms are subscribed to: their pattern may also be the name of a room.
    all_rooms: Cell<bool>,
    /// When something was last received.
    last_received: Cell<Instant>,
}

impl<'a> RedisLink<'a> {
    pub fn new(names: &'a ChannelNames, outbox: &'a Outbox, inbox: &'a Inbox) -> Self {
        let last_received = Cell::new(Instant::now());
        let (subscribed, all_rooms) = (RefCell::default(), Cell::default());
        Self { names, outbox, inbox, subscribed, all_rooms, last_received }
    }

    /// Runs until one of the connections is lost; returns the reason.
    pub async fn run(self, connections: Connections) -> &'static str {
        let (sink, stream) = connections.receive.split();
        tokio::select! {
            reason = self.publish(connections.publish) => reason,
            reason = self.change_subscriptions(sink.clone()) => reason,
            reason = self.receive(stream) => reason,
            reason = self.ping(sink) => reason,
        }
    }

    /// Publishes what is queued, batch by batch, or pings.
    async fn publish(&self, mut connection: MultiplexedConnection) -> &'static str {
        loop {
            let batch = timeout(PING_INTERVAL, self.outbox.envelopes()).await.unwrap_or_default();
            let bytes: usize = batch.iter().map(|envelope| envelope.payload.len()).sum();
            let mut commands = redis::pipe();
            for Outgoing { channel, payload } in &batch {
                commands.cmd("PUBLISH").arg(channel).arg(payload).ignore();
            }
            if batch.is_empty() {
                commands.cmd("PING").ignore();
            }
            let limit = ANSWER_TIMEOUT + Duration::from_secs((bytes / BYTES_PER_SECOND) as u64);
            match timeout(limit, commands.exec_async(&mut connection)).await {
                Ok(Ok(())) => {
                    counter!("presence_bus_sent_total").increment(batch.len() as u64);
                    self.outbox.sent();
                }
                Ok(Err(error)) => return reason(&error, "lost"),
                Err(_) => return "timeout",
            }
        }
    }

    /// Changes the subscriptions. Whether Redis answers at all is checked by [`ping`](Self::ping).
    async fn change_subscriptions(&self, mut sink: PubSubSink) -> &'static str {
        loop {
            let requested = self.outbox.channels().await;
            if let Err(error) = self.subscribe(&mut sink, requested).await {
                return reason(&error, "lost");
            }
        }
    }

    async fn subscribe(
        &self,
        sink: &mut PubSubSink,
        requested: Vec<(Channel, bool)>,
    ) -> Result<(), RedisError> {
        let (begun, ended): (Vec<_>, Vec<_>) =
            requested.into_iter().partition(|(_, subscribe)| *subscribe);
        let (names, patterns) = self.names_of(&ended);
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

        let (names, patterns) = self.names_of(&begun);
        if !names.is_empty() {
            sink.subscribe(&names).await?;
            self.subscribed.borrow_mut().extend(names);
        }
        if !patterns.is_empty() {
            sink.psubscribe(patterns).await?;
            self.all_rooms.set(true);
        }
        begun.into_iter().for_each(|(channel, _)| self.inbox.subscribed(channel));
        Ok(())
    }

    /// The names of channels in Redis, and the patterns.
    fn names_of(&self, channels: &[(Channel, bool)]) -> (Vec<String>, Vec<String>) {
        let (patterns, names): (Vec<_>, Vec<_>) =
            channels.iter().partition(|(channel, _)| *channel == Channel::Rooms);
        let name = |(channel, _): &(Channel, bool)| self.names.of(channel);
        (names.into_iter().map(name).collect(), patterns.into_iter().map(name).collect())
    }

    /// Queues what is received.
    async fn receive(&self, mut stream: PubSubStream) -> &'static str {
        while let Some(message) = stream.next().await {
            self.last_received.set(Instant::now());
            if !self.is_subscribed(&message) {
                continue;
            }
            if let Err(Overrun) = self.inbox.message(message) {
                return "overrun";
            }
        }
        "lost"
    }

    fn is_subscribed(&self, message: &Msg) -> bool {
        if message.from_pattern() {
            self.all_rooms.get()
        } else {
            self.subscribed.borrow().contains(message.get_channel_name())
        }
    }

    /// Pings the receiving connection. Anything received meanwhile extends the timeout: the answer is queued
    /// behind it.
    async fn ping(&self, mut sink: PubSubSink) -> &'static str {
        loop {
            sleep(PING_INTERVAL).await;
            let sent = Instant::now();
            let mut answer = Box::pin(sink.ping::<Value>());
            loop {
                let since = self.last_received.get().max(sent);
                match timeout_at(since + ANSWER_TIMEOUT, &mut answer).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(error)) => return reason(&error, "lost"),
                    Err(_) if self.last_received.get() > since => {}
                    Err(_) => return "timeout",
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RoomName;

    #[test]
    fn only_the_prefix_of_a_pattern_is_escaped() {
        let room = Channel::Room(RoomName::new("a*").unwrap());
        let names = ChannelNames::new("a[1]*?\\");
        assert_eq!(names.of(&Channel::Nodes), "a[1]*?\\:nodes");
        assert_eq!(names.of(&room), "a[1]*?\\:room:a*");
        assert_eq!(names.of(&Channel::Rooms), "a\\[1\\]\\*\\?\\\\:room:*");
    }
}
