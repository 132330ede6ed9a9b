//! Nodes whose clocks differ: the times that they share are those of the database's clock.

mod common;

use std::time::Duration;

use actix_presence::{
    store::{SharedStore, Store},
    testing::MemoryDatabase,
    *,
};
use chrono::{DateTime, TimeDelta, Utc};
use common::{
    nodes::{Node, World},
    secs, user,
};

/// Ada joins the lobby once more, with an info that says where.
async fn ada(node: &mut Node, place: &str) -> ConnectionId {
    node.enter("lobby", "ada", at(place)).await
}

fn at(place: &str) -> Info {
    Info::new(serde_json::json!({ "at": place })).unwrap()
}

async fn ahead(node: &Node) -> Option<TimeDelta> {
    node.presence.registry().send(GetStatus).await.unwrap().clock_ahead
}

/// Waits until the node has measured that its clock is so far ahead.
async fn measured(node: &Node, expected: TimeDelta) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while ahead(node).await != Some(expected) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is measured");
}

#[actix::test]
async fn the_newest_connection_of_a_user_stands_on_every_node_whose_clock_is_ahead_or_behind() {
    for minutes in [-7, 7] {
        let world = World::new().await;
        let mut a = world.node("a", TimeDelta::minutes(minutes)).await;
        let mut b = world.node("b", TimeDelta::zero()).await;
        assert_eq!(ahead(&a).await, Some(TimeDelta::minutes(minutes)));
        assert_eq!(ahead(&b).await, Some(TimeDelta::zero()));
        let mut ids = Vec::new();
        let mut times = Vec::new();
        for (number, place) in ["a", "b", "a", "b"].into_iter().enumerate() {
            times.push(world.pass([&a, &b]));
            let node = if place == "a" { &mut a } else { &mut b };
            let place = format!("{place}{number}");
            ids.push(ada(node, &place).await);
            for node in [&mut a, &mut b] {
                let all_known = |room: &Snapshot| room.occupancy().connections == number + 1;
                let lobby = node.sees("lobby", all_known).await;
                assert_eq!(lobby.user(&user("ada")).unwrap().info, at(&place), "{minutes} minutes");
            }
        }
        for node in [&a, &b] {
            let presences = node.presences("lobby").await;
            let joined: Vec<_> = presences.iter().map(|seen| seen.presence.joined_at).collect();
            assert_eq!(joined, times, "by the database's clock");
            let order: Vec<_> = presences.iter().map(|seen| seen.presence.connection).collect();
            assert_eq!(order, ids);
        }
        for (_, row) in world.database.rows() {
            assert!(times.contains(&row.record.presence.joined_at));
            assert!(row.record.last_seen <= world.clock.now());
        }
    }
}

#[actix::test]
async fn a_clock_that_is_set_while_the_node_runs_is_measured_with_the_next_renewal() {
    let world = World::with_lease(secs(1)).await;
    let mut a = world.node("a", TimeDelta::zero()).await;
    let first = ada(&mut a, "before").await;
    let joined = world.clock.now();
    a.clock.set_wall(TimeDelta::minutes(-5));
    measured(&a, TimeDelta::minutes(-5)).await;
    world.pass([&a]);
    let second = ada(&mut a, "after").await;
    let presences = a.presences("lobby").await;
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
    let world = World::with_lease(secs(1)).await;
    let reader = world.database.store();
    reader.link().cut();
    let mut a = world.node_with("a", TimeDelta::minutes(3), reader).await;
    ada(&mut a, "here").await;
    assert_eq!(ahead(&a).await, None);
    a.link.heal();
    measured(&a, TimeDelta::minutes(3)).await;
    // The correction steps back, and the newest connection stands all the same.
    let newest = ada(&mut a, "there").await;
    let presences = a.presences("lobby").await;
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
