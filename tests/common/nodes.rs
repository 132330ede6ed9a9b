//! Nodes in one process that share a database and a bus in memory, each with a clock of its own.

use std::time::Duration;

use actix::prelude::*;
use actix_presence::{
    testing::{
        Heard, ManualClock, MemoryDatabase, MemoryHub, MemoryLink, MemoryStore, Probe, Seen,
    },
    *,
};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{Mutex, MutexGuard};

use super::{room, secs, user};

/// The ids of connections are made by the database's clock, and there is one correction for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A database with a clock, and a bus.
pub struct World {
    _alone: MutexGuard<'static, ()>,
    pub database: MemoryDatabase,
    pub clock: ManualClock,
    hub: MemoryHub,
    lease: Duration,
}

/// A node, with an observer of all rooms of the cluster. Its sessions last as long as it.
pub struct Node {
    pub presence: PresenceHandle,
    pub clock: ManualClock,
    /// Cuts what the node asks of the database, but not what it writes.
    pub link: MemoryLink,
    changes: Seen<PresenceChanged>,
    sessions: Vec<Addr<Probe<Heard>>>,
}

impl World {
    pub async fn new() -> Self {
        Self::with_lease(secs(15)).await
    }

    /// A world whose nodes renew their leases, and measure their clocks, three times in this time.
    pub async fn with_lease(lease: Duration) -> Self {
        let _alone = ONE_AT_A_TIME.lock().await;
        let clock = ManualClock::new();
        let database = MemoryDatabase::with_clock(clock.clock());
        Self { _alone, database, clock, hub: MemoryHub::new(), lease }
    }

    /// A node whose clock is so far ahead of the database's.
    pub async fn node(&self, name: &str, ahead: TimeDelta) -> Node {
        self.node_with(name, ahead, self.database.store()).await
    }

    /// A node that asks this store, whose link may be cut from the start.
    pub async fn node_with(&self, name: &str, ahead: TimeDelta, reader: MemoryStore) -> Node {
        let clock = ManualClock::new();
        clock.set_wall(ahead);
        let link = reader.link();
        let config = PresenceConfig::default().clock(clock.clock());
        let presence = self.start(name, reader, config);
        let (observer, changes) = Probe::new();
        let subscribe = Subscribe::new(RoomFilter::Any, observer.recipient());
        presence.registry().send(subscribe.scope(Scope::Cluster)).await.unwrap();
        Node { presence, clock, link, changes, sessions: Vec::new() }
    }

    /// A node that follows the rooms of its members alone.
    pub fn start(&self, name: &str, reader: MemoryStore, config: PresenceConfig) -> PresenceHandle {
        let (store, bus) = (self.database.store(), self.hub.bus());
        let config = config.node(name).lease(self.lease);
        config.start_shared(Box::new(store), Box::new(reader), Box::new(bus)).unwrap()
    }

    /// A second passes in the database and on these nodes. Returns the time of the database.
    pub fn pass<const N: usize>(&self, nodes: [&Node; N]) -> DateTime<Utc> {
        for clock in nodes.map(|node| &node.clock).into_iter().chain([&self.clock]) {
            clock.advance(secs(1));
        }
        self.clock.now()
    }
}

impl Node {
    /// A new session joins a room as this user.
    pub async fn enter(&mut self, name: &str, who: &str, info: Info) -> ConnectionId {
        let (session, _heard) = Probe::<Heard>::new();
        let id = ConnectionId::new();
        let join =
            Join::new(room(name), id, session.clone().recipient()).user(user(who)).info(info);
        self.presence.registry().send(join).await.unwrap().unwrap();
        self.sessions.push(session);
        id
    }

    /// Waits for a change after which the room is as wanted, and returns the room.
    pub async fn sees(&mut self, name: &str, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        loop {
            let change = self.changes.next().await.expect("it becomes so");
            if change.room == *name && wanted(&change.snapshot) {
                return change.snapshot;
            }
        }
    }

    /// The presences in a room, in the order of joining.
    pub async fn presences(&self, name: &str) -> Vec<SeenPresence> {
        let all = ListPresences { room: room(name), after: None, limit: 10 };
        self.presence.registry().send(all).await.unwrap().unwrap().unwrap()
    }
}
