//! Nodes whose clocks differ: the times that they share are those of the database's clock.

mod common;

use std::time::Duration;

use actix::prelude::*;
use actix_presence::{
    store::{SharedStore, Store},
    testing::{Heard, ManualClock, MemoryDatabase, MemoryHub, Probe, Seen},
    *,
};
use chrono::{DateTime, TimeDelta, Utc};
use common::{room, secs, user};
use tokio::sync::{Mutex, MutexGuard};

/// The ids of connections are made by the database's clock, and there is one for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A database with a clock, and its bus.
struct World {
    _alone: MutexGuard<'static, ()>,
    database: MemoryDatabase,
    clock: ManualClock,
    hub: MemoryHub,
}

/// A node whose clock is ahead of the database's.
struct Node {
    presence: PresenceHandle,
    clock: ManualClock,
    changes: Seen<PresenceChanged>,
}

impl World {
    async fn new() -> Self {
        let _alone = ONE_AT_A_TIME.lock().await;
        let clock = ManualClock::new();
        let database = MemoryDatabase::with_clock(clock.clock());
        Self { _alone, database, clock, hub: MemoryHub::new() }
    }

    async fn node(&self, name: &str, ahead: TimeDelta) -> Node {
        self.node_with(name, ahead, self.database.store()).await
    }

    async fn node_with(
        &self,
        name: &str,
        ahead: TimeDelta,
        reader: impl SharedStore + 'static,
    ) -> Node {
        let clock = ManualClock::new();
        clock.set_wall(ahead);
        let presence = PresenceConfig::default()
            .node(name)
            .clock(clock.clock())
            .lease(secs(1))
            .start_shared(
                Box::new(self.database.store()),
                Box::new(reader),
                Box::new(self.hub.bus()),
            )
            .unwrap();
        let (observer, changes) = Probe::new();
        let subscribe = Subscribe::new(RoomFilter::Any, observer.recipient());
        presence.registry().send(subscribe.scope(Scope::Cluster)).await.unwrap();
        Node { presence, clock, changes }
    }

    /// Time passes, on all these nodes and in the database.
    fn pass(&self, nodes: [&Node; 2]) -> DateTime<Utc> {
        for clock in nodes.map(|node| &node.clock).into_iter().chain([&self.clock]) {
            clock.advance(secs(1));
        }
        self.clock.now()
    }
}

impl Node {
    /// Ada joins the lobby once more, with an info that says where. It lasts as long as what is returned.
    async fn ada(&self, info: &str) -> (ConnectionId, Addr<Probe<Heard>>) {
        let (session, _heard) = Probe::<Heard>::new();
        let id = ConnectionId::new();
        let join = Join::new(room("lobby"), id, session.clone().recipient())
            .user(user("ada"))
            .info(Info::new(serde_json::json!({ "at": info })).unwrap());
        self.presence.registry().send(join).await.unwrap().unwrap();
        (id, session)
    }

    /// What stands for ada here, once so many of her connections are known.
    async fn stands(&mut self, connections: usize) -> String {
        loop {
            let change = self.changes.next().await.expect("she is heard of");
            let ada = change.snapshot.user(&user("ada")).expect("she is there");
            if ada.connections == connections {
                return ada.info.as_json().to_owned();
            }
        }
    }

    async fn presences(&self) -> Vec<SeenPresence> {
        let all = ListPresences { room: room("lobby"), after: None, limit: 10 };
        self.presence.registry().send(all).await.unwrap().unwrap().unwrap()
    }

    async fn ahead(&self) -> Option<TimeDelta> {
        self.presence.registry().send(GetStatus).await.unwrap().clock_ahead
    }
}

#[actix::test]
async fn the_newest_connection_of_a_user_stands_on_every_node_whose_clock_is_ahead_or_behind() {
    for minutes in [-7, 7] {
        let world = World::new().await;
        let mut a = world.node("a", TimeDelta::minutes(minutes)).await;
        let mut b = world.node("b", TimeDelta::zero()).await;
        assert_eq!(a.ahead().await, Some(TimeDelta::minutes(minutes)));
        assert_eq!(b.ahead().await, Some(TimeDelta::zero()));
        let mut sessions = Vec::new();
        let mut times = Vec::new();
        for (number, place) in ["a", "b", "a", "b"].into_iter().enumerate() {
            times.push(world.pass([&a, &b]));
            let node = if place == "a" { &a } else { &b };
            let info = format!("{place}{number}");
            sessions.push(node.ada(&info).await);
            let expected = format!(r#"{{"at":"{info}"}}"#);
            for node in [&mut a, &mut b] {
                assert_eq!(node.stands(number + 1).await, expected, "{minutes} minutes");
            }
        }
        for node in [&a, &b] {
            let presences = node.presences().await;
            let joined: Vec<_> = presences.iter().map(|seen| seen.presence.joined_at).collect();
            assert_eq!(joined, times, "by the database's clock");
            let order: Vec<_> = presences.iter().map(|seen| seen.presence.connection).collect();
            assert_eq!(order, sessions.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        }
        for (_, row) in world.database.rows() {
            assert!(times.contains(&row.record.presence.joined_at));
            assert!(row.record.last_seen <= world.clock.now());
        }
    }
}

#[actix::test]
async fn a_clock_that_is_set_while_the_node_runs_is_measured_with_the_next_renewal() {
    let world = World::new().await;
    let a = world.node("a", TimeDelta::zero()).await;
    let (first, _session) = a.ada("before").await;
    let joined = world.clock.now();
    a.clock.set_wall(TimeDelta::minutes(-5));
    tokio::time::timeout(Duration::from_secs(20), async {
        while a.ahead().await != Some(TimeDelta::minutes(-5)) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is measured");
    for clock in [&a.clock, &world.clock] {
        clock.advance(secs(1));
    }
    let (second, _session) = a.ada("after").await;
    let presences = a.presences().await;
    let order: Vec<_> = presences.iter().map(|seen| seen.presence.connection).collect();
    assert_eq!(order, [first, second]);
    let times: Vec<_> = presences.iter().map(|seen| seen.presence.joined_at).collect();
    assert_eq!(times, [joined, world.clock.now()]);
}

/// Otherwise the newer connection of a client session, on a node whose clock is behind, would be taken for
/// the older one and be closed.
#[actix::test]
async fn ids_of_connections_are_made_by_the_clock_of_the_database_and_ascend_on_a_node() {
    let made_at = |id: ConnectionId| {
        let millis = i64::from_str_radix(&id.to_string()[..12], 16).unwrap();
        DateTime::from_timestamp_millis(millis).unwrap()
    };
    let mut last = ConnectionId::new();
    for (hours, expected) in [(1, 1), (3, 3), (-2, 3)] {
        let world = World::new().await;
        let now = Utc::now();
        world.clock.set_wall(now + TimeDelta::hours(hours) - world.clock.now());
        let _node = world.node("a", TimeDelta::zero()).await;
        let id = ConnectionId::new();
        let off = made_at(id) - (now + TimeDelta::hours(expected));
        assert!(off.abs() < TimeDelta::seconds(10), "{hours} hours: {off}");
        assert!(id > last, "they ascend, though the clock was set back");
        last = id;
    }
}

#[actix::test]
async fn a_clock_that_cannot_be_measured_does_not_keep_a_node_from_starting() {
    let world = World::new().await;
    let reader = world.database.store();
    let link = reader.link();
    link.cut();
    let a = world.node_with("a", TimeDelta::minutes(3), reader).await;
    let (_, _session) = a.ada("here").await;
    assert_eq!(a.ahead().await, None);
    link.heal();
    tokio::time::timeout(Duration::from_secs(20), async {
        while a.ahead().await != Some(TimeDelta::minutes(3)) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is measured later");
    // The correction steps back, and the newest connection stands all the same.
    let (newest, _session) = a.ada("there").await;
    let presences = a.presences().await;
    assert_eq!(presences.last().unwrap().presence.connection, newest);
}

#[test]
fn a_single_node_has_nothing_to_measure() {
    actix::System::new().block_on(async {
        let presence = PresenceConfig::new("sqlite::memory:").start().unwrap();
        assert_eq!(presence.registry().send(GetStatus).await.unwrap().clock_ahead, None);
    });
    let mut store = MemoryDatabase::new().store();
    let now = DateTime::UNIX_EPOCH;
    assert_eq!(store.time(now).unwrap(), now, "without a clock of its own it goes by the nodes'");
    assert_eq!(store.rooms(now).unwrap(), []);
}
