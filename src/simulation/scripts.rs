//! Short stories with an end that is known.

use std::{collections::BTreeMap, time::Duration};

use super::{
    cluster::{GRACE, LEASE, World},
    runtime, schedule,
};
use crate::{
    messages::{GetSnapshot, PresenceChanged},
    model::{Cause, ConnectionId, RoomName},
    testing::Seen,
};

pub(super) const MOMENT: Duration = Duration::from_secs(6);
/// Until a lease has run out, and somebody has looked.
pub(super) const LOST: Duration = LEASE.saturating_mul(2);

pub(super) fn story<F: Future<Output = ()>>(tell: impl FnOnce(World) -> F + 'static) {
    actix::System::with_tokio_rt(runtime).block_on(async {
        let world = World::new(1);
        // The nodes meet, and are in touch with the database for long enough to judge.
        tokio::time::sleep(LOST).await;
        tell(world).await;
    });
}

/// Client 0 and 1 have session keys, client 3 has none.
pub(super) fn enter(
    world: &mut World,
    client: usize,
    node: usize,
    room: &RoomName,
) -> ConnectionId {
    world.connect_to(client, node, room.clone());
    world.clients[client].connection.as_ref().unwrap().id
}

pub(super) fn lobby() -> RoomName {
    RoomName::new("lobby").unwrap()
}

/// What an observer has heard: who joined, and who left why.
pub(super) fn heard(changes: &mut Seen<PresenceChanged>) -> Vec<(ConnectionId, Option<Cause>)> {
    let mut heard = Vec::new();
    while let Some(change) = changes.now() {
        heard.extend(change.joins().iter().map(|join| (join.connection, None)));
        let left = change.leaves().iter();
        heard.extend(left.map(|left| (left.presence.connection, Some(left.cause))));
    }
    heard
}

/// What the observers of single nodes have heard, all together.
fn heard_once(world: &mut World) -> Vec<(ConnectionId, Option<Cause>)> {
    world.nodes.iter_mut().flatten().flat_map(|node| heard(&mut node.own)).collect()
}

#[test]
fn of_the_observers_on_all_nodes_one_hears_of_a_change_and_all_do_who_ask_for_it() {
    story(|mut world| async move {
        let me = enter(&mut world, 0, 1, &lobby());
        tokio::time::sleep(MOMENT).await;
        assert_eq!(heard_once(&mut world), [(me, None)]);
        for node in world.nodes.iter_mut().flatten() {
            assert_eq!(heard(&mut node.changes), [(me, None)], "{}", node.name);
        }
    });
}

#[test]
fn a_dead_node_is_named_once_with_one_change_for_each_room() {
    story(|mut world| async move {
        let gone = [0, 1, 3].map(|client| enter(&mut world, client, 0, &lobby()));
        let stays = enter(&mut world, 2, 1, &lobby());
        tokio::time::sleep(MOMENT).await;
        heard_once(&mut world);
        for node in world.nodes.iter_mut().flatten() {
            heard(&mut node.changes);
        }
        world.kill(0).await;
        tokio::time::sleep(LOST).await;
        let lost: BTreeMap<_, _> = heard_once(&mut world).into_iter().collect();
        assert_eq!(lost, gone.map(|one| (one, Some(Cause::NodeLost))).into());
        for node in world.nodes.iter_mut().flatten() {
            let change = node.changes.now().unwrap();
            assert_eq!((change.leaves().len(), change.node.as_str()), (3, "n0"));
            assert!(change.bulk_change());
            assert!(node.changes.now().is_none(), "one change for the room");
        }
        assert_eq!(world.database.rows().len(), 1);
        assert_eq!(world.database.rows()[0].1.record.presence.connection, stays);
    });
}

#[test]
fn a_node_that_was_taken_for_dead_lives_on_and_its_members_never_notice() {
    story(|mut world| async move {
        let [here, there] =
            [(0, 0), (2, 1)].map(|(client, node)| enter(&mut world, client, node, &lobby()));
        tokio::time::sleep(MOMENT).await;
        heard_once(&mut world);
        world.observe(0);
        world.lists(0);
        schedule::Step::Isolate { node: 0 }.take(&mut world).await;
        tokio::time::sleep(MOMENT).await;
        assert_eq!(heard_once(&mut world), [(here, None), (here, Some(Cause::NodeLost))]);
        assert_eq!(world.database.rows().len(), 2);
        world.observe(0);
        // A new version, and nothing that is different.
        let nothing = |list: &String| list.contains(r#""joins":{},"leaves":{}"#);
        assert!(world.lists(0).iter().all(nothing));
        let all: Vec<_> =
            world.database.rows().iter().map(|row| row.1.record.presence.connection).collect();
        assert_eq!(all, [here, there]);
    });
}

/// What nodes have heard of who left, after they have met a node that has started again.
async fn heard_after_a_start(world: &mut World) -> Vec<Vec<(ConnectionId, Option<Cause>)>> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.nodes.iter_mut().flatten().map(|node| heard(&mut node.changes)).collect()
}

#[test]
fn who_has_no_session_key_ends_at_once_when_a_node_starts_again_under_its_name() {
    story(|mut world| async move {
        let [keyed, keyless] = [0, 3].map(|client| enter(&mut world, client, 0, &lobby()));
        tokio::time::sleep(MOMENT).await;
        heard_after_a_start(&mut world).await;
        world.kill(0).await;
        world.start(0, true);
        for heard in heard_after_a_start(&mut world).await {
            assert_eq!(heard, [(keyless, Some(Cause::NodeLost))]);
        }
        for place in 0..3 {
            assert_eq!(world.seen(place, &lobby()).await, [keyed], "on n{place}");
        }
        tokio::time::sleep(GRACE).await;
        for heard in heard_after_a_start(&mut world).await {
            assert_eq!(heard, [(keyed, Some(Cause::NodeLost))]);
        }
    });
}

#[test]
fn who_asks_for_a_room_sees_nobody_there_whom_nobody_can_resume() {
    story(|mut world| async move {
        enter(&mut world, 3, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        world.kill(0).await;
        world.start(0, true);
        let registry = &world.nodes[0].as_ref().unwrap().registry;
        let lobby = registry.send(GetSnapshot { room: lobby() }).await.unwrap();
        assert!(lobby.is_none_or(|room| room.connections().next().is_none()));
    });
}

#[test]
fn a_node_that_starts_again_after_it_has_stopped_in_order_goes_on_with_what_is_left_of_the_grace() {
    story(|mut world| async move {
        let [keyed, _keyless] = [0, 3].map(|client| enter(&mut world, client, 0, &lobby()));
        tokio::time::sleep(MOMENT).await;
        schedule::shut_down(&mut world, 0).await;
        tokio::time::sleep(GRACE / 2).await;
        heard_after_a_start(&mut world).await;
        world.start(0, true);
        for heard in heard_after_a_start(&mut world).await {
            assert_eq!(heard, []);
        }
        tokio::time::sleep(GRACE / 2).await;
        for heard in heard_after_a_start(&mut world).await {
            assert_eq!(heard, [(keyed, Some(Cause::Shutdown))]);
        }
    });
}

#[test]
fn in_a_rolling_restart_who_comes_back_has_never_left_and_who_does_not_leaves_once() {
    story(|mut world| async move {
        let [back, away, keyless] = [0, 1, 3].map(|client| enter(&mut world, client, 0, &lobby()));
        tokio::time::sleep(MOMENT).await;
        heard_once(&mut world);
        schedule::shut_down(&mut world, 0).await;
        enter(&mut world, 0, 1, &lobby());
        tokio::time::sleep(MOMENT).await;
        let others: Vec<_> =
            world.nodes.iter_mut().flatten().map(|n| heard(&mut n.changes)).collect();
        for heard in others {
            assert!(heard.contains(&(keyless, Some(Cause::Shutdown))));
            assert!(!heard.iter().any(|(one, cause)| *one != keyless && cause.is_some()));
        }
        tokio::time::sleep(GRACE + LOST).await;
        for node in world.nodes.iter_mut().flatten() {
            assert_eq!(heard(&mut node.changes), [(away, Some(Cause::Shutdown))], "{}", node.name);
        }
        let rows = world.database.rows();
        let rows: Vec<_> =
            rows.iter().map(|(n, row)| (n.as_str(), row.record.presence.connection)).collect();
        assert_eq!(rows, [("n1", back)]);
    });
}
