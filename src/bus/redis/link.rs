//! The two connections to Redis, while they last.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    time::Duration,
};

use futures_util::StreamExt;
use metrics::counter;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, Msg, ProtocolVersion, RedisConnectionInfo,
    RedisError, Value,
    aio::{MultiplexedConnection, PubSub, PubSubSink, PubSubStream},
};
use rustls::crypto::CryptoProvider;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    failure::Failure,
    names::ChannelNames,
    queues::{Inbox, Outbox, Outgoing, Overrun},
};
use crate::bus::Channel;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a silent connection is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Sending may take a second longer for each of these many bytes.
const BYTES_PER_SECOND: usize = 1024 * 1024;

/// Where Redis is, and as whom to log in.
#[derive(Clone)]
pub(super) struct Server {
    /// Logs in by itself.
    client: Client,
    /// Does not.
    bare: Client,
    /// The arguments of `AUTH`, if it is needed.
    login: Vec<String>,
}

impl Server {
    /// The server of a URL, and the number of the database in it. Nothing is stored in a database, so none is
    /// selected: that would be one more right to have.
    pub fn new(url: &str) -> Result<(Self, i64), RedisError> {
        let info = Client::open(url)?.get_connection_info().clone();
        let settings = info.redis_settings();
        let (number, username) = (settings.db(), settings.username());
        let password = settings.password();
        let login = password.map(|password| username.into_iter().chain([password]));
        let login = login.into_iter().flatten().map(str::to_owned).collect();
        let without_number = settings.clone().set_db(0).set_protocol(ProtocolVersion::RESP2);
        let client = Client::open(info.clone().set_redis_settings(without_number))?;
        let nobody = RedisConnectionInfo::default().set_skip_set_lib_name();
        let bare = Client::open(info.set_redis_settings(nobody))?;
        Ok((Self { client, bare, login }, number))
    }

    pub fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }
}

/// Two connections that have answered.
pub(super) struct Connections {
    publish: MultiplexedConnection,
    receive: PubSub,
}

/// Connects.
pub(super) async fn connect(server: &Server) -> Result<Connections, Failure> {
    let publish = within(connect_to_publish(server), "unreachable").await??;
    let receive = async {
        let mut receive = server.client.get_async_pubsub().await?;
        receive.ping::<Value>().await?;
        Ok(receive)
    };
    Ok(Connections { publish, receive: within(receive, "unreachable").await? })
}

/// The client would log in by itself, and not tell a wrong password from any other refusal. A Redis that
/// hangs accepts connections, too, so an answer is required.
async fn connect_to_publish(
    server: &Server,
) -> Result<Result<MultiplexedConnection, Failure>, RedisError> {
    // The timeouts are those of this file.
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let mut publish = server.bare.get_multiplexed_async_connection_with_config(&config).await?;
    let answer = redis::cmd("PING").exec_async(&mut publish).await;
    if let Err(error) = answer {
        // It wants to know first who asks, or lets nobody ask who does not say.
        let wants_login = matches!(error.code(), Some("NOAUTH" | "NOPERM"));
        if !wants_login || server.login.is_empty() {
            return Err(error);
        }
    }
    if !server.login.is_empty() {
        let login = redis::cmd("AUTH").arg(&server.login).exec_async(&mut publish).await;
        if let Err(error) = login {
            return Ok(Err(Failure::of_login(error)));
        }
        redis::cmd("PING").exec_async(&mut publish).await?;
    }
    Ok(Ok(publish))
}

/// Waits for Redis as long as connecting may take.
async fn within<T>(
    work: impl Future<Output = Result<T, RedisError>>,
    otherwise: &'static str,
) -> Result<T, Failure> {
    match timeout(CONNECT_TIMEOUT, work).await {
        Ok(done) => done.map_err(|error| Failure::of(error, otherwise)),
        Err(_) => Err("timeout".into()),
    }
}

/// Installs a `CryptoProvider` for TLS unless the process has one: rustls would panic without.
pub(super) fn provide_encryption(server: &Server) {
    let tls = matches!(server.client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
    if tls && CryptoProvider::get_default().is_none() {
        // Another thread may have installed one just now.
        let _ = rustls::crypto::ring::default_provider().install_default();
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
    /// Whether a node of an earlier version was heard.
    old_nodes: &'a Cell<bool>,
}

impl<'a> RedisLink<'a> {
    pub fn new(
        names: &'a ChannelNames,
        outbox: &'a Outbox,
        inbox: &'a Inbox,
        old_nodes: &'a Cell<bool>,
    ) -> Self {
        let last_received = Cell::new(Instant::now());
        let (subscribed, all_rooms) = (RefCell::default(), Cell::default());
        Self { names, outbox, inbox, subscribed, all_rooms, last_received, old_nodes }
    }

    /// Finds out whether Redis allows what a node does: to subscribe to the nodes and to all rooms, and to
    /// publish. Subscribes to the channel of earlier versions, if that is allowed.
    pub async fn try_out(&self, connections: &mut Connections) -> Result<(), Failure> {
        let Connections { publish, receive } = connections;
        let trial = async {
            // What comes before the node has asked for it is dropped.
            receive.subscribe(self.names.of(&Channel::Nodes)).await?;
            receive.psubscribe(self.names.of(&Channel::Rooms)).await?;
            receive.punsubscribe(self.names.of(&Channel::Rooms)).await?;
            redis::cmd("PUBLISH").arg(self.names.trial()).arg("").exec_async(publish).await?;
            match receive.subscribe(self.names.old()).await {
                Err(error) if error.is_io_error() || error.is_connection_dropped() => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        };
        within(trial, "lost").await
    }

    /// Runs until one of the connections is lost.
    pub async fn run(self, connections: Connections) -> Failure {
        let (sink, stream) = connections.receive.split();
        tokio::select! {
            failure = self.publish(connections.publish) => failure,
            failure = self.change_subscriptions(sink.clone()) => failure,
            failure = self.receive(stream) => failure,
            failure = self.ping(sink) => failure,
        }
    }

    /// Publishes what is queued, batch by batch, or pings.
    async fn publish(&self, mut connection: MultiplexedConnection) -> Failure {
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
                Ok(Err(error)) => return Failure::of(error, "lost"),
                Err(_) => return "timeout".into(),
            }
        }
    }

    /// Changes the subscriptions. Whether Redis answers at all is checked by [`ping`](Self::ping).
    async fn change_subscriptions(&self, mut sink: PubSubSink) -> Failure {
        loop {
            let requested = self.outbox.channels().await;
            if let Err(error) = self.subscribe(&mut sink, requested).await {
                return Failure::of(error, "lost");
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
    async fn receive(&self, mut stream: PubSubStream) -> Failure {
        while let Some(message) = stream.next().await {
            self.last_received.set(Instant::now());
            if message.get_channel_name() == self.names.old() {
                self.hears_old_node();
            } else if self.is_asked_for(&message)
                && let Err(Overrun) = self.inbox.message(message)
            {
                return "overrun".into();
            }
        }
        "lost".into()
    }

    /// Whether a message is of a subscription of the node. What two of them match is taken once.
    fn is_asked_for(&self, message: &Msg) -> bool {
        let channel = message.get_channel_name();
        let by_name = self.subscribed.borrow().contains(channel);
        if message.from_pattern() {
            self.all_rooms.get() && !by_name && channel != self.names.trial()
        } else {
            by_name
        }
    }

    /// A node of a version that does not authenticate its envelopes uses the same Redis. It hears nothing of
    /// this one, nor this one of it.
    fn hears_old_node(&self) {
        counter!("presence_bus_old_nodes_total").increment(1);
        if !self.old_nodes.replace(true) {
            tracing::warn!(
                channel = self.names.old(),
                "nodes of an earlier version are on this Redis: those of the same database do not hear \
                 this one; stop all nodes before the first of this version starts"
            );
        }
    }

    /// Pings the receiving connection. Anything received meanwhile extends the timeout: the answer is queued
    /// behind it.
    async fn ping(&self, mut sink: PubSubSink) -> Failure {
        loop {
            sleep(PING_INTERVAL).await;
            let sent = Instant::now();
            let mut answer = Box::pin(sink.ping::<Value>());
            loop {
                let since = self.last_received.get().max(sent);
                match timeout_at(since + ANSWER_TIMEOUT, &mut answer).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(error)) => return Failure::of(error, "lost"),
                    Err(_) if self.last_received.get() > since => {}
                    Err(_) => return "timeout".into(),
                }
            }
        }
    }
}
