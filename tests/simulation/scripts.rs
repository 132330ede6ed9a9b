//! Short stories with an end that is known.

use std::{collections::BTreeMap, time::Duration};

use actix::prelude::*;

use super::{
    cluster::{GRACE, LEASE, World},
    runtime, schedule,
};
use crate::{
    messages::{CloseRoom, Explain, GetSnapshot, Join, JoinError, Kick, LeaveAll, PresenceChanged},
    model::{Cause, ConnectionId, RoomName, Snapshot, UserId},
    registry::RoomRegistry,
    testing::{Heard, MemoryLink, Probe, Seen},
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
        let mut folded: Option<Snapshot> = None;
        while let Some(change) = world.nodes[0].as_mut().unwrap().changes.now() {
            let mut before = folded.replace(change.snapshot.clone());
            before.iter_mut().for_each(|before| before.apply(change.diff().unwrap()));
            assert!(before.is_none_or(|now| now == change.snapshot), "as it is after the change");
        }
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
        let lobby = registry.send(GetSnapshot { room: lobby() }).await.unwrap().unwrap();
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

/// The database does not answer on a node, or does again.
fn with_database(world: &World, place: usize, what: impl Fn(&MemoryLink)) {
    world.nodes[place].as_ref().unwrap().database.iter().for_each(what);
}

/// A client moves to a node, with a new socket; the one before stays half open.
async fn roam(world: &mut World, client: usize, node: usize) -> ConnectionId {
    world.broken.extend(world.clients[client].connection.take());
    let connection = enter(world, client, node, &lobby());
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.observe(client);
    connection
}

/// The client is where it is, whatever the nodes learn of where it was.
async fn keeps_its_socket(mut world: World, client: usize, shown: ConnectionId) {
    (0..3).for_each(|place| with_database(&world, place, MemoryLink::heal));
    tokio::time::sleep(LOST).await;
    world.observe(client);
    let connected = world.clients[client].connection.as_ref().unwrap();
    assert!(connected.rooms.contains(&lobby()));
    for place in 0..3 {
        assert_eq!(world.seen(place, &lobby()).await, [shown], "on n{place}");
    }
}

#[test]
fn who_goes_to_another_node_and_comes_back_while_the_database_is_away_keeps_the_newest_socket() {
    story(|mut world| async move {
        (0..3).for_each(|place| with_database(&world, place, MemoryLink::cut));
        // Each node lets it in by what it knows, which is nothing: there are two presences.
        let founded = roam(&mut world, 0, 0).await;
        roam(&mut world, 0, 1).await;
        roam(&mut world, 0, 0).await;
        keeps_its_socket(world, 0, founded).await;
    });
}

#[test]
fn who_takes_its_presence_to_another_node_and_back_unnoticed_keeps_the_newest_socket() {
    for visits in [[1, 0].as_slice(), &[1, 1, 0], &[1, 2, 0], &[2, 1, 2, 1]] {
        story(move |mut world| async move {
            let founded = roam(&mut world, 0, 0).await;
            (0..3).for_each(|place| with_database(&world, place, MemoryLink::cut));
            for node in visits {
                roam(&mut world, 0, *node).await;
            }
            keeps_its_socket(world, 0, founded).await;
        });
    }
}

/// A join on the node `n0`, with its answer to come.
fn join(world: &World, connection: ConnectionId, room: RoomName) -> Request<RoomRegistry, Join> {
    let (probe, _) = Probe::<Heard>::new();
    let join = Join::new(room, connection, probe.recipient());
    world.nodes[0].as_ref().unwrap().registry.send(join.user(UserId::new("ada").ok()))
}

fn cellar() -> RoomName {
    RoomName::new("cellar").unwrap()
}

#[test]
fn a_connection_that_ends_takes_back_the_joins_that_wait_and_none_that_comes_after() {
    story(|world| async move {
        let registry = world.nodes[0].as_ref().unwrap().registry.clone();
        world.nodes[0].as_ref().unwrap().stalled.set(true);
        let connection = ConnectionId::new();
        let first = join(&world, connection, lobby());
        registry.do_send(LeaveAll::new(connection));
        let second = join(&world, connection, cellar());
        let begun = tokio::time::Instant::now();
        assert_eq!(first.await.unwrap().unwrap_err(), JoinError::Withdrawn);
        assert_eq!(begun.elapsed(), Duration::ZERO, "it need not wait to be told so");
        assert!(second.await.unwrap().is_ok());
        assert!(begun.elapsed() >= Duration::from_secs(2), "nothing is known of the room");
        let seen = [world.seen(0, &lobby()).await, world.seen(0, &cellar()).await];
        assert_eq!(seen, [vec![], vec![connection]]);
    });
}

#[test]
fn who_is_kicked_or_told_to_close_does_not_enter_by_a_join_that_waits() {
    for (kick, refusal) in [
        (Some(true), JoinError::Denied { reason: "kicked".into() }),
        (Some(false), JoinError::Denied { reason: "kicked".into() }),
        (None, JoinError::Withdrawn),
    ] {
        story(move |world| async move {
            let registry = world.nodes[0].as_ref().unwrap().registry.clone();
            let connection = ConnectionId::new();
            if kick.is_none() {
                join(&world, connection, cellar()).await.unwrap().unwrap();
            }
            world.nodes[0].as_ref().unwrap().stalled.set(true);
            let waits = join(&world, connection, lobby());
            tokio::time::sleep(Duration::from_millis(100)).await;
            match kick {
                Some(true) => registry.do_send(Kick::User(UserId::new("ada").unwrap())),
                Some(false) => registry.do_send(Kick::Connection(connection)),
                None => registry.do_send(CloseRoom { room: cellar() }),
            }
            assert_eq!(waits.await.unwrap().unwrap_err(), refusal);
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(world.seen(0, &lobby()).await.is_empty());
        });
    }
}

#[test]
fn on_another_node_a_connection_is_named_by_its_own_id_though_it_took_a_presence_over() {
    story(|mut world| async move {
        let founded = roam(&mut world, 0, 0).await;
        let current = roam(&mut world, 0, 0).await;
        tokio::time::sleep(MOMENT).await;
        let registry = world.nodes[1].as_ref().unwrap().registry.clone();
        let explain = Explain { room: lobby(), connection: current };
        let explained = registry.send(explain).await.unwrap().unwrap().unwrap();
        assert_eq!(explained.seen.presence.connection, founded);
        assert_eq!(registry.send(Kick::Connection(current)).await.unwrap().connections, 1);
        tokio::time::sleep(MOMENT).await;
        assert!(world.seen(1, &lobby()).await.is_empty());
    });
}
