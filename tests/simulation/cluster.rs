//! The nodes and their clients.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use actix::prelude::*;
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::checks::look;
use crate::{
    clock::Clock,
    handle::{Backend, PresenceConfig},
    messages::{
        Dialect, Forwarded, GetSnapshot, Join, LeaveAll, PresenceChanged, RoomFilter, Scope,
        Subscribe,
    },
    mirror::{CloseStore, PruneRoomRows, Renew, Write, Writer},
    model::{Cause, ConnectionId, Info, Moment, NodeName, RoomName, SessionKey, Snapshot, UserId},
    registry::{Inherited, RoomRegistry},
    store::{
        Row, SharedStore, Started, Store,
        reader::{Query, ReaderHandle},
    },
    supervision::Supervisor,
    testing::{
        Heard, MemoryBus, MemoryConnection, MemoryDatabase, MemoryHub, MemoryLink, Probe, Seen,
    },
};

pub const LEASE: Duration = Duration::from_secs(15);
pub const GRACE: Duration = Duration::from_secs(10);
const NODES: usize = 3;
const CLIENTS: usize = 8;
const ROOMS: usize = 3;

pub struct World {
    pub rng: fastrand::Rng,
    pub hub: MemoryHub,
    pub database: MemoryDatabase,
    clock: Clock,
    /// The living, each in its place.
    pub nodes: Vec<Option<Node>>,
    pub clients: Vec<Client>,
    /// Connections that have ended without their nodes having seen it.
    pub broken: Vec<Connected>,
    pub said: usize,
    /// Presences of which somebody has said something untrue on the bus.
    pub forged: BTreeSet<ConnectionId>,
    lives: usize,
}

pub struct Node {
    pub name: NodeName,
    pub life: usize,
    pub registry: Addr<RoomRegistry>,
    pub bus: MemoryConnection,
    pub database: [MemoryLink; 2],
    pub stalled: Rc<Cell<bool>>,
    /// Who was there when it came to life.
    pub inherited: Vec<Row>,
    /// What an observer of the whole cluster hears here, and what one of this node does.
    pub changes: Seen<PresenceChanged>,
    pub own: Seen<PresenceChanged>,
}

/// A client that connects again and again.
pub struct Client {
    pub key: Option<SessionKey>,
    pub user: Option<UserId>,
    pub connection: Option<Connected>,
}

pub struct Connected {
    pub id: ConnectionId,
    pub node: usize,
    pub life: usize,
    probe: Addr<Probe<Heard>>,
    seen: Seen<Heard>,
    /// Joins under way, and the rooms it is in as far as it knows.
    pub joins: Vec<(RoomName, Rc<Cell<Option<bool>>>)>,
    pub rooms: BTreeSet<RoomName>,
    pub heard: BTreeMap<String, usize>,
    lists: Vec<String>,
}

/// The writer and the reader of a node, on the one thread there is; each call takes its time.
struct Inline<T> {
    inner: T,
    rng: fastrand::Rng,
    /// Whether a call takes far longer than anybody waits for it.
    stalled: Rc<Cell<bool>>,
}

impl<T> Inline<T> {
    fn pause(&mut self) -> Duration {
        match self.stalled.get() {
            true => LEASE * 100,
            false => Duration::from_millis(self.rng.u64(0..40)),
        }
    }
}

impl<T: Unpin + 'static> Actor for Inline<T> {
    type Context = Context<Self>;
}

macro_rules! answer_later {
    ($message:ty, $method:ident) => {
        impl Handler<$message> for Inline<Writer> {
            type Result = AtomicResponse<Self, <$message as Message>::Result>;

            fn handle(&mut self, msg: $message, _: &mut Context<Self>) -> Self::Result {
                let (before, after, writer) = (self.pause(), self.pause(), self.inner.clone());
                AtomicResponse::new(Box::pin(
                    async move {
                        tokio::time::sleep(before).await;
                        let answer = writer.$method(msg);
                        tokio::time::sleep(after).await;
                        answer
                    }
                    .into_actor(self),
                ))
            }
        }
    };
}
answer_later!(Write, write);
answer_later!(Renew, renew);
answer_later!(PruneRoomRows, prune_rooms);
answer_later!(CloseStore, close_store);

impl Handler<Query> for Inline<Box<dyn SharedStore>> {
    type Result = ();

    fn handle(&mut self, query: Query, ctx: &mut Context<Self>) {
        let pause = tokio::time::sleep(self.pause()).into_actor(self);
        ctx.wait(pause.map(|(), reader, _| query.run(&mut *reader.inner)));
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let start = Instant::now();
        let epoch: DateTime<Utc> = DateTime::from_timestamp(1_767_225_600, 0).unwrap();
        let clock = Clock::from_fn(move || {
            let elapsed = start.elapsed();
            Moment::new(elapsed, epoch + elapsed)
        });
        // The last two are sockets of one client session.
        let clients = (0..CLIENTS).map(|number| number.min(CLIENTS - 2)).map(|number| Client {
            // Some cannot come back unnoticed, some are nobody.
            key: (number % 4 != 3).then(|| SessionKey::new(format!("tab {number}")).unwrap()),
            user: (number % 5 != 4).then(|| UserId::new(format!("user {}", number / 2)).unwrap()),
            connection: None,
        });
        let mut world = Self {
            rng: fastrand::Rng::with_seed(seed),
            hub: MemoryHub::new(),
            database: MemoryDatabase::new(),
            clock,
            nodes: (0..NODES).map(|_| None).collect(),
            clients: clients.collect(),
            broken: Vec::new(),
            said: 0,
            forged: BTreeSet::new(),
            lives: 0,
        };
        for place in 0..NODES {
            world.start(place, true);
        }
        world
    }

    pub fn rooms() -> impl Iterator<Item = RoomName> {
        (0..ROOMS).map(|number| RoomName::new(format!("room {number}")).unwrap())
    }

    pub fn room(&mut self) -> RoomName {
        let number = self.rng.usize(0..ROOMS);
        Self::rooms().nth(number).unwrap()
    }

    /// A node comes to life, with the name of the one that was in its place before or a new one. It
    /// does not if the database is away, which is up to the caller.
    pub fn start(&mut self, place: usize, same_name: bool) {
        self.lives += 1;
        let life = self.lives;
        let name = if same_name { format!("n{place}") } else { format!("n{place}-{life}") };
        let node = NodeName::new(name).unwrap();
        let (mut store, reader) = (self.database.store(), self.database.store());
        let database = [store.link(), reader.link()];
        let now = self.clock.now().utc();
        let Started { incarnation, inherited, stopped, .. } =
            store.start(&node, now, LEASE).unwrap();
        let rng = self.rng.fork();
        let writer = Writer::new(Box::new(store), node.clone(), LEASE);
        let stalled = Rc::new(Cell::new(false));
        let writer = Inline { inner: writer, rng: rng.clone(), stalled: stalled.clone() }.start();
        let reader: Box<dyn SharedStore> = Box::new(reader);
        let reader = ReaderHandle::new(
            Inline { inner: reader, rng, stalled: stalled.clone() }.start().recipient(),
        );
        let bus: MemoryBus = self.hub.bus();
        let connection = bus.connection();
        let rows = inherited.clone();
        let backend = Backend {
            node: node.clone(),
            incarnation,
            inherited: Inherited { rows, stopped },
            writer: writer.into(),
            readers: Some([reader.clone(), reader]),
            bus: Some(Box::new(bus)),
            supervisor: Supervisor::default(),
        };
        let config = PresenceConfig::default()
            .clock(self.clock.clone())
            .lease(LEASE)
            .grace(GRACE)
            .max_age(Duration::from_secs(3600));
        let presence = config.run(backend, &Arbiter::current()).unwrap();
        let registry = presence.registry();
        let (observer, changes) = Probe::new();
        let subscribe = Subscribe::new(RoomFilter::Any, observer.recipient());
        registry.do_send(subscribe.scope(Scope::Cluster));
        let (observer, own) = Probe::new();
        registry.do_send(Subscribe::new(RoomFilter::Any, observer.recipient()));
        let (bus, name) = (connection, node);
        self.nodes[place] =
            Some(Node { name, life, registry, bus, database, stalled, inherited, changes, own });
    }

    /// A node ends without a word, and its sockets with it.
    pub async fn kill(&mut self, place: usize) {
        let Some(node) = self.nodes[place].take() else { return };
        // Who runs on this thread cannot be killed, but can be cut off and stopped.
        node.bus.cut();
        node.database.iter().for_each(MemoryLink::cut);
        look(&node.registry, |_, ctx| ctx.stop()).await;
        for client in &mut self.clients {
            if client.connection.as_ref().is_some_and(|c| c.node == place && c.life == node.life) {
                client.connection = None;
            }
        }
    }

    /// Who is in a room, as a node sees it; if it could not read the room, who is there of its own.
    pub async fn seen(&self, place: usize, room: &RoomName) -> Vec<ConnectionId> {
        let Some(node) = &self.nodes[place] else { return Vec::new() };
        let asked = node.registry.send(GetSnapshot { room: room.clone() }).await.unwrap();
        let snapshot = match asked {
            Ok(snapshot) => snapshot,
            Err(_) => {
                let room = room.clone();
                let look =
                    look(&node.registry, move |registry, _| registry.rooms.room(&room).cloned());
                look.await.unwrap()
            }
        };
        let mut seen: Vec<_> = snapshot.iter().flat_map(Snapshot::connections).collect();
        seen.sort_unstable();
        seen
    }

    /// A client connects to a node and joins some rooms.
    pub fn connect(&mut self, client: usize, place: usize) {
        self.open(client, place);
        for _ in 0..self.rng.usize(1..3) {
            let room = self.room();
            self.join(client, room);
        }
    }

    /// A client connects to a node and joins this room.
    pub fn connect_to(&mut self, client: usize, place: usize, room: RoomName) {
        self.open(client, place);
        self.join(client, room);
    }

    fn open(&mut self, client: usize, place: usize) {
        let Some(node) = &self.nodes[place] else { return };
        let (probe, seen) = Probe::new();
        let id = ConnectionId::new();
        let (joins, rooms, heard) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        let lists = Vec::new();
        let (node, life) = (place, node.life);
        let connection = Connected { id, node, life, probe, seen, joins, rooms, heard, lists };
        self.clients[client].connection = Some(connection);
    }

    /// What the client was told of who is there, since it was asked last.
    pub fn lists(&mut self, client: usize) -> Vec<String> {
        let connection = self.clients[client].connection.as_mut();
        connection.map(|connection| std::mem::take(&mut connection.lists)).unwrap_or_default()
    }

    pub fn join(&mut self, client: usize, room: RoomName) {
        let (n, fixed) = (self.rng.u8(0..3), self.rng.u8(0..2));
        let info = serde_json::json!({"n": n, "fixed": fixed});
        let fixed = serde_json::json!({"fixed": fixed});
        let Client { key, user, connection } = &mut self.clients[client];
        let Some(connection) = connection else { return };
        if connection.rooms.contains(&room) {
            return;
        }
        let Some(node) = &self.nodes[connection.node] else { return };
        let probe = connection.probe.clone();
        let join = Join::new(room.clone(), connection.id, probe.clone().recipient())
            .disconnect(probe.recipient())
            .dialect(Dialect::Phoenix)
            .user(user.clone())
            .session(key.clone())
            .info(Info::new(info).unwrap())
            .fixed_info(Info::new(fixed).unwrap());
        let done = Rc::new(Cell::new(None));
        connection.joins.push((room, done.clone()));
        let joining = node.registry.send(join);
        actix::spawn(async move {
            let joined = joining.await;
            done.set(Some(matches!(joined, Ok(Ok(_)))));
        });
    }

    /// What its client sees of a connection; it ends when it is told to.
    pub fn observe(&mut self, client: usize) {
        let Some(connection) = &mut self.clients[client].connection else { return };
        for (room, done) in std::mem::take(&mut connection.joins) {
            match done.get() {
                Some(true) => drop(connection.rooms.insert(room)),
                Some(false) => {}
                None => connection.joins.push((room, done)),
            }
        }
        let mut closed = None;
        while let Some(heard) = connection.seen.now() {
            match heard {
                Heard::Close(order) => closed = Some(order.cause),
                Heard::Frame(frame) if matches!(frame.kind, Forwarded::Closed { .. }) => {
                    connection.rooms.remove(&frame.room);
                }
                Heard::Frame(frame) if frame.kind == Forwarded::Message => {
                    *connection.heard.entry(frame.payload.to_string()).or_default() += 1;
                }
                Heard::Frame(frame) => connection.lists.push(frame.payload.to_string()),
            }
        }
        if let Some(cause) = closed {
            // Nobody else has the key of its session: its only socket is the newest.
            let may_be_replaced = client >= CLIENTS - 2 || self.forged.contains(&connection.id);
            assert!(
                cause != Cause::Replaced || may_be_replaced,
                "client {client} was told not to come back on {}, its only socket",
                connection.id
            );
            // As every session does.
            if let Some(node) = &self.nodes[connection.node] {
                node.registry.do_send(LeaveAll::because(connection.id, cause));
            }
            self.clients[client].connection = None;
        }
    }

    /// Nothing is broken any more.
    pub fn heal(&mut self) {
        for client in 0..self.clients.len() {
            self.observe(client);
        }
        for connection in std::mem::take(&mut self.broken) {
            let node = self.nodes[connection.node].as_ref();
            if let Some(node) = node.filter(|node| node.life == connection.life) {
                let cause = Cause::Disconnected;
                node.registry.do_send(LeaveAll::because(connection.id, cause));
            }
        }
        for place in 0..self.nodes.len() {
            if self.nodes[place].is_none() {
                self.start(place, true);
            }
        }
        let nodes: Vec<_> = self.nodes.iter().flatten().collect();
        for node in &nodes {
            node.bus.heal();
            node.bus.release();
            node.bus.lose_next(0);
            node.bus.duplicate_next(0);
            node.database.iter().for_each(MemoryLink::heal);
            for other in &nodes {
                node.bus.delay_to(&other.bus, Duration::ZERO);
            }
        }
    }
}
