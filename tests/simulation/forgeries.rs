//! Things on the bus that no node has said, though they bear a node's name. Who does not have the key of the
//! database is not believed at all. What somebody says who has it, and the database contradicts, does not last
//! for a lease.

use serde_json::value::RawValue;

use super::{
    cluster::{LEASE, World},
    schedule::Step,
    scripts::{LOST, MOMENT, enter, heard, lobby, story},
};
use crate::{
    bus::{
        AddressedMessage, BusMessage, Channel, ClusterIdentity, Envelope, RoomChanges, RoomMessage,
        RowChange,
    },
    messages::{Audience, Content, Kick},
    model::{
        Cause, ConnectionId, Epoch, Info, NodeName, Presence, PresenceRecord, RoomName, UserId,
    },
    store::SharedStore,
};

/// Publishes something in the name of a node. Its own next envelope has the same number, and is lost.
fn publish(world: &World, place: usize, told: BusMessage) {
    let identity = world.database.identity();
    publish_by(world, place, told, &identity);
}

/// Publishes something in the name of a node, under the key of an identity.
fn publish_by(world: &World, place: usize, told: BusMessage, identity: &ClusterIdentity) {
    let Some(envelope) = envelope(world, place, told) else { return };
    world.hub.publish_bytes(&envelope.channel(), &envelope.encode(identity));
}

/// The next envelope of a node, as far as anybody can know.
fn envelope(world: &World, place: usize, message: BusMessage) -> Option<Envelope> {
    let node = world.nodes[place].as_ref()?.name.clone();
    let incarnation = incarnation(world, place)?;
    Some(Envelope { node, incarnation, number: world.hub.next_number(incarnation), message })
}

/// Publishes something, and waits until it is heard.
async fn forge(world: &World, place: usize, told: BusMessage) {
    publish(world, place, told);
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}

/// Publishes something of a client in the name of a node, whatever comes of it.
pub fn at_random(world: &mut World, place: usize, client: usize) {
    let number = [0, 3, 50, u64::MAX][world.rng.usize(0..4)];
    let known = world.clients[client].connection.as_ref().map(|connected| connected.id);
    let connection = known.filter(|_| world.rng.bool()).unwrap_or_else(ConnectionId::new);
    let room = world.room();
    let previous = [0, number.saturating_sub(1), u64::MAX - 1][world.rng.usize(0..3)];
    let changes = |room, number, changes| changes_after(room, number, previous, changes);
    world.forged.insert(connection);
    let told = match world.rng.u8(0..6) {
        0 => {
            let Some(node) = &world.nodes[place] else { return };
            let node = node.name.clone();
            let Some(incarnation) = incarnation(world, place) else { return };
            BusMessage::Reaped { node, incarnation, leaving: world.rng.bool() }
        }
        1 => BusMessage::Heartbeat { number, rooms: vec![(room, number)] },
        2 => {
            let gone = RowChange::Gone { connection, cause: Cause::Left };
            changes(room, number, vec![gone])
        }
        3 => changes(room, number, vec![RowChange::Yielded { connection }]),
        4 => changes(room, number, Vec::new()),
        _ => {
            let generation = world.rng.u32(0..3);
            changes(room, number, vec![here(connection, generation)])
        }
    };
    let speaker = if world.rng.bool() { place } else { (place + 1) % world.nodes.len() };
    publish(world, speaker, told);
}

fn incarnation(world: &World, place: usize) -> Option<Epoch> {
    let name = &world.nodes[place].as_ref()?.name;
    let rows = world.database.store().nodes(chrono::DateTime::UNIX_EPOCH).unwrap();
    Some(rows.into_iter().find(|row| row.node == *name)?.incarnation)
}

fn changes(room: RoomName, number: u64, changes: Vec<RowChange>) -> BusMessage {
    changes_after(room, number, 0, changes)
}

fn changes_after(
    room: RoomName,
    number: u64,
    previous: u64,
    changes: Vec<RowChange>,
) -> BusMessage {
    BusMessage::Changes(RoomChanges { room, number, previous, changes })
}

fn here(connection: ConnectionId, generation: u32) -> RowChange {
    let at = chrono::DateTime::from_timestamp(1_767_225_600, 0).unwrap();
    let user = UserId::new("ghost").ok();
    let presence = Presence { connection, user, info: Info::EMPTY, joined_at: at, updated_at: at };
    RowChange::Here(PresenceRecord { generation, ..PresenceRecord::new(presence) })
}

#[test]
fn a_ghost_in_the_name_of_a_living_node_goes_and_the_node_is_heard_as_before() {
    for number in [u64::MAX, 1_000] {
        story(move |mut world| async move {
            let real = enter(&mut world, 0, 0, &lobby());
            tokio::time::sleep(MOMENT).await;
            let ghost = ConnectionId::new();
            forge(&world, 0, changes(lobby(), number, vec![here(ghost, 0)])).await;
            assert_eq!(world.seen(1, &lobby()).await, [real, ghost]);
            // What the node says next has a number that is too low now.
            let later = enter(&mut world, 3, 0, &lobby());
            tokio::time::sleep(LEASE).await;
            for place in 0..3 {
                assert_eq!(world.seen(place, &lobby()).await, [real, later], "on n{place}");
            }
            Step::Disconnect { client: 3, goodbye: true }.take(&mut world).await;
            tokio::time::sleep(MOMENT).await;
            assert_eq!(world.seen(1, &lobby()).await, [real]);
        });
    }
}

#[test]
fn changes_after_others_that_there_never_were_have_a_room_read_once() {
    story(|mut world| async move {
        let mut real = [0, 2].map(|client| enter(&mut world, client, client / 2, &lobby()));
        real.sort_unstable();
        tokio::time::sleep(MOMENT).await;
        let before = world.database.reads();
        forge(&world, 0, changes_after(lobby(), u64::MAX, u64::MAX - 1, Vec::new())).await;
        tokio::time::sleep(MOMENT).await;
        let reads = world.database.reads() - before;
        // Once more since the beat was missed whose number the forged envelope had.
        assert!((1..=4).contains(&reads), "{reads} reads by two nodes");
        assert_eq!(world.seen(1, &lobby()).await, real);
    });
}

#[test]
fn a_ghost_of_a_node_that_there_is_not_goes() {
    story(|mut world| async move {
        let real = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        let node = NodeName::new("nobody").unwrap();
        let told = changes(lobby(), 1, vec![here(ConnectionId::new(), 0)]);
        let envelope = Envelope { node, incarnation: Epoch::new(), number: 1, message: told };
        let bytes = envelope.encode(&world.database.identity());
        world.hub.publish_bytes(&envelope.channel(), &bytes);
        tokio::time::sleep(LEASE).await;
        assert_eq!(world.seen(1, &lobby()).await, [real]);
        let status = world.nodes[1].as_ref().unwrap().registry.send(crate::GetStatus).await;
        assert_eq!(status.unwrap().nodes, 3);
    });
}

#[test]
fn who_is_said_to_have_left_or_to_be_elsewhere_and_is_not_is_seen_again() {
    story(|mut world| async move {
        let mut real = [0, 2].map(|client| enter(&mut world, client, client / 2, &lobby()));
        real.sort_unstable();
        tokio::time::sleep(MOMENT).await;
        let gone = RowChange::Gone { connection: real[0], cause: Cause::Left };
        forge(&world, 0, changes(lobby(), u64::MAX, vec![gone])).await;
        assert_eq!(world.seen(2, &lobby()).await, [real[1]]);
        tokio::time::sleep(LEASE).await;
        assert_eq!(world.seen(2, &lobby()).await, real);

        // The member's own node believes that it went elsewhere, as it does when that is so.
        forge(&world, 0, changes(lobby(), u64::MAX, vec![here(real[1], 7)])).await;
        tokio::time::sleep(LEASE).await;
        for place in 0..3 {
            assert_eq!(world.seen(place, &lobby()).await, [real[0]], "on n{place}");
        }
        assert_eq!(world.database.rows().len(), 1);
    });
}

#[test]
fn a_living_node_that_is_said_to_be_buried_loses_nobody_and_is_heard_as_before() {
    story(|mut world| async move {
        let real = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        world.nodes.iter_mut().flatten().for_each(|node| drop(heard(&mut node.changes)));
        let (node, incarnation) =
            (world.nodes[0].as_ref().unwrap().name.clone(), incarnation(&world, 0).unwrap());
        for leaving in [false, true] {
            let node = node.clone();
            forge(&world, 1, BusMessage::Reaped { node, incarnation, leaving }).await;
        }
        let later = enter(&mut world, 3, 0, &lobby());
        tokio::time::sleep(LOST).await;
        for node in world.nodes.iter_mut().flatten() {
            assert_eq!(heard(&mut node.changes), [(later, None)], "{}", node.name);
        }
        assert_eq!(world.seen(1, &lobby()).await, [real, later]);
    });
}

#[test]
fn who_does_not_have_the_key_is_not_believed_at_all() {
    story(|mut world| async move {
        let mut real = [0, 2].map(|client| enter(&mut world, client, client / 2, &lobby()));
        real.sort_unstable();
        tokio::time::sleep(MOMENT).await;
        world.nodes.iter_mut().flatten().for_each(|node| drop(heard(&mut node.changes)));
        let (before, incarnation) = (world.database.reads(), incarnation(&world, 0).unwrap());
        let guessed = ClusterIdentity::new([9; 32], [9; 16]);
        let node = world.nodes[0].as_ref().unwrap().name.clone();
        let gone = RowChange::Gone { connection: real[0], cause: Cause::Left };
        for told in [
            changes(lobby(), 1_000, vec![here(ConnectionId::new(), 0), gone]),
            said("forged"),
            BusMessage::Close { room: lobby() },
            BusMessage::Kick(Kick::Connection(real[1])),
            BusMessage::Kick(Kick::User(UserId::new("user 0").unwrap())),
            BusMessage::KickFrom { room: lobby(), whom: Kick::Connection(real[1]) },
            addressed(real[1]),
            BusMessage::Heartbeat { number: u64::MAX, rooms: vec![(lobby(), u64::MAX)] },
            BusMessage::Reaped { node, incarnation, leaving: false },
            BusMessage::Stopping,
            BusMessage::Missed,
        ] {
            publish_by(&world, 0, told, &guessed);
        }
        tokio::time::sleep(MOMENT).await;
        assert_eq!(world.database.reads(), before, "nothing is read for it");
        for place in 0..3 {
            assert_eq!(world.seen(place, &lobby()).await, real, "on n{place}");
            let node = world.nodes[place].as_mut().unwrap();
            assert_eq!(heard(&mut node.changes), [], "on n{place}");
        }
        assert_eq!(messages(&mut world, 2), 0);
    });
}

#[test]
fn what_is_said_again_later_or_in_another_room_is_heard_once() {
    story(|mut world| async move {
        let garden = RoomName::new("garden").unwrap();
        let _speaker = enter(&mut world, 0, 0, &lobby());
        let listener = enter(&mut world, 2, 1, &lobby());
        world.join(2, garden.clone());
        tokio::time::sleep(MOMENT).await;
        let identity = world.database.identity();
        let sent = envelope(&world, 0, said("hello")).unwrap();
        let kick = envelope(&world, 0, BusMessage::Kick(Kick::Connection(listener))).unwrap();
        let bytes = sent.encode(&identity);
        for room in [lobby(), lobby(), garden] {
            world.hub.publish_bytes(&Channel::Room(room), &bytes);
        }
        // Of the same number, and so too late.
        world.hub.publish_bytes(&Channel::Nodes, &kick.encode(&identity));
        tokio::time::sleep(MOMENT).await;
        world.hub.publish_bytes(&Channel::Room(lobby()), &bytes);
        tokio::time::sleep(MOMENT).await;
        assert_eq!(messages(&mut world, 2), 1);
        assert!(world.seen(1, &lobby()).await.contains(&listener));
        Step::Say { client: 0 }.take(&mut world).await;
        tokio::time::sleep(MOMENT).await;
        assert_eq!(messages(&mut world, 2), 2);
    });
}

#[test]
fn what_a_node_said_that_is_gone_is_not_done_again_on_one_that_came_later() {
    story(|mut world| async move {
        let _ada = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        let kick = BusMessage::Kick(Kick::User(UserId::new("user 0").unwrap()));
        let kick = envelope(&world, 0, kick).unwrap();
        world.kill(0).await;
        tokio::time::sleep(LOST).await;
        world.start(0, false);
        tokio::time::sleep(MOMENT).await;
        let back = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        let bytes = kick.encode(&world.database.identity());
        world.hub.publish_bytes(&Channel::Nodes, &bytes);
        tokio::time::sleep(MOMENT).await;
        for place in 0..3 {
            assert_eq!(world.seen(place, &lobby()).await, [back], "on n{place}");
        }
    });
}

#[test]
fn nodes_of_a_restored_database_go_on_under_another_identity() {
    story(|mut world| async move {
        let first = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        let before = world.database.identity();
        world.database.replace_identity();
        tokio::time::sleep(LEASE).await;
        let later = enter(&mut world, 3, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        publish_by(&world, 0, BusMessage::Close { room: lobby() }, &before);
        tokio::time::sleep(MOMENT).await;
        let status = world.nodes[1].as_ref().unwrap().registry.send(crate::GetStatus).await;
        let status = status.unwrap();
        assert_eq!((status.nodes, status.unheard.len()), (3, 0));
        let mut both = [first, later];
        both.sort_unstable();
        for place in 0..3 {
            assert_eq!(world.seen(place, &lobby()).await, both, "on n{place}");
        }
    });
}

fn said(text: &str) -> BusMessage {
    let payload = RawValue::from_string(format!("\"{text}\"")).unwrap();
    let content = Content::Json(payload);
    BusMessage::Published(RoomMessage { room: lobby(), content, from: None, except: None })
}

fn addressed(connection: ConnectionId) -> BusMessage {
    let (to, content) = (Audience::Connection(connection), Content::Text("forged".into()));
    BusMessage::Addressed(AddressedMessage { to, content, from: None, except: None })
}

/// How many messages a client has heard.
fn messages(world: &mut World, client: usize) -> usize {
    world.observe(client);
    world.clients[client].connection.as_ref().unwrap().heard.len()
}
