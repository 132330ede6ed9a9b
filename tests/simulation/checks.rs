//! What has to be true when all is healed.

use std::collections::{BTreeMap, BTreeSet};

use actix::prelude::*;

use super::cluster::World;
use crate::{
    messages::{Change, GetSnapshot, GetStatus},
    model::{ConnectionId, Info, NodeName, Presence, RoomName, Snapshot},
    registry::RoomRegistry,
};

/// Looks into a registry, or changes something there.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Look(Box<Looking>);

type Looking = dyn FnOnce(&mut RoomRegistry, &mut Context<RoomRegistry>) + Send;

impl Handler<Look> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, look: Look, ctx: &mut Context<Self>) {
        (look.0)(self, ctx);
    }
}

/// Looks into a registry.
pub async fn look<T: Send + 'static>(
    registry: &Addr<RoomRegistry>,
    look: impl FnOnce(&mut RoomRegistry, &mut Context<RoomRegistry>) -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    registry.do_send(Look(Box::new(move |registry, ctx| {
        let _ = sender.send(look(registry, ctx));
    })));
    receiver.await.ok()
}

/// Who holds a presence, and what of its info is fixed.
type HeldPresences = BTreeMap<(RoomName, ConnectionId), (NodeName, Presence, Info)>;

/// The presences that a registry holds.
fn held(registry: &RoomRegistry) -> Vec<(RoomName, Presence, Info)> {
    let stays = registry.rooms.held_presences();
    let presence = |(room, one): (&RoomName, _)| {
        let fixed = registry.sessions.fixed(room, one);
        Some((room.clone(), registry.rooms.presence(room, one)?.presence, fixed))
    };
    stays.filter_map(presence).collect()
}

pub async fn everybody_agrees(world: &mut World) {
    for client in 0..world.clients.len() {
        world.observe(client);
    }
    let mut all = HeldPresences::new();
    for node in world.nodes.iter().flatten() {
        let held = look(&node.registry, |registry, _| held(registry)).await.unwrap();
        for (room, presence, fixed) in held {
            let place = (room, presence.connection);
            let twice = all.insert(place.clone(), (node.name.clone(), presence, fixed));
            assert!(twice.is_none(), "{place:?} is held by {twice:?} and {}", node.name);
        }
    }
    nobody_is_lost_or_there_twice(world, &all).await;
    rows_are_memory(world, &all);
    observers_have_heard_it(world, &all);
    views_are_equal(world, &all).await;
    nothing_is_said_twice(world);
    everybody_is_heard_and_counted(world).await;
}

/// The counts of what nodes hold add up, and nobody is named.
async fn everybody_is_heard_and_counted(world: &World) {
    for node in world.nodes.iter().flatten() {
        let held = look(&node.registry, |registry, _| held(registry).len()).await.unwrap();
        let status = node.registry.send(GetStatus).await.unwrap();
        assert_eq!((status.held, status.unheard), (held, Vec::new()), "on {}", node.name);
    }
}

/// Exactly those are there who are connected.
async fn nobody_is_lost_or_there_twice(world: &World, all: &HeldPresences) {
    let mut expected = BTreeSet::new();
    for (number, client) in world.clients.iter().enumerate() {
        let Some(connected) = &client.connection else { continue };
        let node = world.nodes[connected.node].as_ref().unwrap();
        assert_eq!(node.life, connected.life);
        assert!(connected.joins.is_empty(), "a join is not answered");
        for room in &connected.rooms {
            let (id, name) = (connected.id, room.clone());
            let presence =
                look(&node.registry, move |registry, _| registry.rooms.presence_of(&name, id));
            let presence = presence.await.flatten();
            let place = presence.map(|presence| (room.clone(), presence));
            let place = place.filter(|place| all.get(place).is_some_and(|(n, ..)| *n == node.name));
            let place = place.unwrap_or_else(|| {
                panic!("client {number} ({id}, {presence:?}) is lost in {room} on {}", node.name)
            });
            assert!(expected.insert(place), "client {number} shares a presence");
        }
    }
    let there: BTreeSet<_> = all.keys().cloned().collect();
    let ghosts: Vec<_> = there.difference(&expected).map(|place| (place, &all[place])).collect();
    assert!(ghosts.is_empty(), "nobody speaks for {ghosts:?}");
}

/// Law 8.
fn rows_are_memory(world: &World, all: &HeldPresences) {
    let rows = world.database.rows().into_iter().map(|(node, row)| {
        ((row.room, row.record.presence.connection), (node, row.record.presence, row.record.fixed))
    });
    assert_eq!(rows.collect::<HeldPresences>(), *all, "rows and memory");
}

/// Law 10.
async fn views_are_equal(world: &World, all: &HeldPresences) {
    for room in World::rooms() {
        let here = all.iter().filter(|((name, _), _)| *name == room);
        let expected: BTreeMap<_, _> = here
            .map(|((_, connection), (_, presence, _))| (*connection, presence.clone()))
            .collect();
        for node in world.nodes.iter().flatten() {
            let snapshot =
                node.registry.send(GetSnapshot { room: room.clone() }).await.unwrap().unwrap();
            let found: BTreeMap<_, _> =
                snapshot.iter().flat_map(Snapshot::presences).map(|p| (p.connection, p)).collect();
            assert_eq!(found, expected, "{room} on {}", node.name);
        }
    }
}

/// An observer of the cluster has heard one join and one leave of each presence, in turn, and what it
/// has heard in all is who is there.
fn observers_have_heard_it(world: &mut World, all: &HeldPresences) {
    for node in world.nodes.iter_mut().flatten() {
        let inherited = node.inherited.iter().map(|row| {
            ((row.room.clone(), row.record.presence.connection), row.record.presence.clone())
        });
        let mut there: BTreeMap<(RoomName, ConnectionId), Presence> = inherited.collect();
        let mut versions: BTreeMap<RoomName, u64> = BTreeMap::new();
        while let Some(changed) = node.changes.now() {
            let Change::Diff(diff) = &changed.change else { panic!("conflated: {changed:?}") };
            let room = &diff.room;
            let before = versions.insert(room.clone(), diff.version).unwrap_or(0);
            assert!(diff.version > before, "{room} went from {before} to {}", diff.version);
            // Empty rooms are not kept, so neither are their versions.
            let snapshot = &changed.snapshot;
            assert!(snapshot.is_empty() || snapshot.version() == diff.version, "{changed:?}");
            for left in &diff.leaves {
                let place = (room.clone(), left.presence.connection);
                let was = there.remove(&place);
                assert!(was.is_some(), "{place:?} left {} twice ({})", node.name, left.cause);
            }
            for update in &diff.updates {
                let place = (room.clone(), update.after.connection);
                let was = there.insert(place.clone(), update.after.clone());
                assert_eq!(was.as_ref(), Some(&update.before), "{place:?} on {}", node.name);
            }
            for join in &diff.joins {
                let place = (room.clone(), join.connection);
                let was = there.insert(place.clone(), join.clone());
                assert!(was.is_none(), "{place:?} joined {} twice", node.name);
            }
        }
        let expected: BTreeMap<_, _> =
            all.iter().map(|(place, (_, presence, _))| (place.clone(), presence.clone())).collect();
        assert_eq!(there, expected, "what the observer on {} has heard", node.name);
    }
}

/// Messages cross the bus at most once.
fn nothing_is_said_twice(world: &World) {
    for client in &world.clients {
        let Some(connected) = &client.connection else { continue };
        let twice: Vec<_> = connected.heard.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }
}
