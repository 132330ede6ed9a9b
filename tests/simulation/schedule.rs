//! What happens to the nodes and their clients.

use std::time::Duration;

use serde_json::value::RawValue;

use super::cluster::{Client, LEASE, World};
use crate::{
    messages::{CloseRoom, Kick, Leave, LeaveAll, Publish, Shutdown, UpdateInfo},
    model::{Cause, Info, RoomName},
    testing::MemoryLink,
};

/// Something that happens.
#[derive(Debug)]
pub enum Step {
    /// A client connects, to another node than before or the same.
    Connect {
        client: usize,
        node: usize,
    },
    /// It joins one more room.
    Join {
        client: usize,
        room: RoomName,
    },
    /// It leaves a room.
    Leave {
        client: usize,
    },
    /// Its connection ends, with a goodbye or without.
    Disconnect {
        client: usize,
        goodbye: bool,
    },
    /// It comes back to another node before the one before knows that it has gone.
    Roam {
        client: usize,
        node: usize,
    },
    Update {
        client: usize,
    },
    Say {
        client: usize,
    },
    Kick {
        node: usize,
        client: usize,
        user: bool,
    },
    Close {
        node: usize,
        room: RoomName,
    },
    /// Time goes by.
    Wait(Duration),
    CutBus {
        node: usize,
    },
    HealBus {
        node: usize,
    },
    HoldBus {
        node: usize,
    },
    ReleaseBus {
        node: usize,
    },
    Delay {
        from: usize,
        to: usize,
        by: Duration,
    },
    Duplicate {
        node: usize,
        envelopes: usize,
    },
    Lose {
        node: usize,
        envelopes: usize,
    },
    CutDatabase {
        node: usize,
    },
    MuteDatabase {
        node: usize,
    },
    HealDatabase {
        node: usize,
    },
    /// The node stands still for longer than its lease, as far as the others can tell.
    Isolate {
        node: usize,
    },
    Kill {
        node: usize,
    },
    Restart {
        node: usize,
        same_name: bool,
    },
    Shutdown {
        node: usize,
    },
    /// Somebody says something of a client on the bus in the name of a node.
    Forge {
        node: usize,
        client: usize,
    },
}

impl Step {
    /// How many kinds of steps there are.
    pub const KINDS: usize = 25;

    /// The name of its kind.
    pub fn kind(&self) -> String {
        let all = format!("{self:?}");
        all.split(['(', ' ']).next().unwrap_or_default().to_owned()
    }

    /// Draws what happens next.
    pub fn draw(world: &mut World) -> Self {
        let client = world.rng.usize(0..world.clients.len());
        let node = world.rng.usize(0..world.nodes.len());
        match world.rng.u32(0..100) {
            0..13 => Self::Connect { client, node },
            13..15 => Self::Forge { node, client },
            15..23 => Self::Join { client, room: world.room() },
            23..27 => Self::Leave { client },
            27..35 => Self::Disconnect { client, goodbye: world.rng.bool() },
            35..40 => Self::Roam { client, node },
            40..44 => Self::Update { client },
            44..48 => Self::Say { client },
            48..50 => Self::Kick { node, client, user: world.rng.bool() },
            50 => Self::Close { node, room: world.room() },
            51..69 => Self::Wait(Duration::from_millis(world.rng.u64(0..1500))),
            69..73 => Self::Wait(Duration::from_secs(world.rng.u64(2..30))),
            73..75 => Self::CutBus { node },
            75..77 => Self::HealBus { node },
            77 => Self::HoldBus { node },
            78..80 => Self::ReleaseBus { node },
            80..83 => {
                let (to, by) = (world.rng.usize(0..3), world.rng.u64(0..3000));
                Self::Delay { from: node, to, by: Duration::from_millis(by) }
            }
            83..85 => Self::Duplicate { node, envelopes: world.rng.usize(1..5) },
            85..87 => Self::Lose { node, envelopes: world.rng.usize(1..5) },
            87 => Self::CutDatabase { node },
            88 => Self::MuteDatabase { node },
            89..92 => Self::HealDatabase { node },
            92 => Self::Isolate { node },
            93..95 => Self::Kill { node },
            95..99 => Self::Restart { node, same_name: world.rng.bool() },
            _ => Self::Shutdown { node },
        }
    }

    /// Does it.
    pub async fn take(self, world: &mut World) {
        for client in 0..world.clients.len() {
            world.observe(client);
        }
        match self {
            Self::Connect { client, node } => {
                if world.clients[client].connection.is_none() {
                    world.connect(client, node);
                }
            }
            Self::Join { client, room } => world.join(client, room),
            Self::Leave { client } => leave(world, client),
            Self::Disconnect { client, goodbye } => disconnect(world, client, goodbye),
            Self::Roam { client, node } => {
                if world.clients[client].key.is_some() {
                    // The old socket breaks, and its node sees that long after.
                    world.broken.extend(world.clients[client].connection.take());
                    world.connect(client, node);
                } else {
                    disconnect(world, client, false);
                }
            }
            Self::Update { client } => update(world, client),
            Self::Say { client } => say(world, client),
            Self::Kick { node, client, user } => kick(world, node, client, user).await,
            Self::Close { node, room } => {
                if let Some(node) = &world.nodes[node] {
                    let _ = node.registry.send(CloseRoom { room }).await;
                }
            }
            Self::Wait(time) => tokio::time::sleep(time).await,
            Self::CutBus { node } => with_bus(world, node, |bus| bus.cut()),
            Self::HealBus { node } => with_bus(world, node, |bus| bus.heal()),
            Self::HoldBus { node } => with_bus(world, node, |bus| bus.hold()),
            Self::ReleaseBus { node } => with_bus(world, node, |bus| bus.release()),
            Self::Delay { from, to, by } => {
                if let (Some(from), Some(to)) = (&world.nodes[from], &world.nodes[to]) {
                    from.bus.delay_to(&to.bus, by);
                }
            }
            Self::Duplicate { node, envelopes } => {
                with_bus(world, node, |bus| bus.duplicate_next(envelopes));
            }
            Self::Lose { node, envelopes } => with_bus(world, node, |bus| bus.lose_next(envelopes)),
            Self::CutDatabase { node } => with_database(world, node, MemoryLink::cut),
            Self::MuteDatabase { node } => with_database(world, node, MemoryLink::mute),
            Self::HealDatabase { node } => with_database(world, node, MemoryLink::heal),
            Self::Isolate { node } => {
                with_bus(world, node, |bus| bus.cut());
                with_database(world, node, MemoryLink::cut);
                tokio::time::sleep(LEASE * 3).await;
                with_bus(world, node, |bus| bus.heal());
                with_database(world, node, MemoryLink::heal);
            }
            Self::Kill { node } => world.kill(node).await,
            Self::Restart { node, same_name } => {
                world.kill(node).await;
                world.start(node, same_name);
            }
            Self::Shutdown { node } => shut_down(world, node).await,
            Self::Forge { node, client } => super::forgeries::at_random(world, node, client),
        }
    }
}

fn with_bus(world: &World, node: usize, what: impl FnOnce(&crate::testing::MemoryConnection)) {
    if let Some(node) = &world.nodes[node] {
        what(&node.bus);
    }
}

fn with_database(world: &World, node: usize, what: impl Fn(&MemoryLink)) {
    if let Some(node) = &world.nodes[node] {
        node.database.iter().for_each(what);
    }
}

fn leave(world: &mut World, client: usize) {
    let Some(connection) = &mut world.clients[client].connection else { return };
    let Some(room) = connection.rooms.pop_first() else { return };
    connection.joins.retain(|(joining, _)| *joining != room);
    if let Some(node) = &world.nodes[connection.node] {
        node.registry.do_send(Leave::new(room, connection.id));
    }
}

fn disconnect(world: &mut World, client: usize, goodbye: bool) {
    let Some(connection) = world.clients[client].connection.take() else { return };
    let cause = if goodbye { Cause::Left } else { Cause::Disconnected };
    if let Some(node) = &world.nodes[connection.node] {
        node.registry.do_send(LeaveAll::because(connection.id, cause));
    }
}

fn update(world: &mut World, client: usize) {
    let info = Info::new(serde_json::json!({"updated": world.rng.u8(0..5)})).unwrap();
    let Some(connected) = &world.clients[client].connection else { return };
    let (Some(room), Some(node)) = (connected.rooms.first(), &world.nodes[connected.node]) else {
        return;
    };
    let (room, connection) = (room.clone(), connected.id);
    node.registry.do_send(UpdateInfo { room, connection, info });
}

fn say(world: &mut World, client: usize) {
    let Some(connected) = &world.clients[client].connection else { return };
    let (Some(room), Some(node)) = (connected.rooms.first(), &world.nodes[connected.node]) else {
        return;
    };
    world.said += 1;
    let payload = RawValue::from_string(world.said.to_string()).unwrap();
    node.registry.do_send(Publish::json(room.clone(), payload).sent_by(connected.id));
}

async fn kick(world: &mut World, node: usize, client: usize, user: bool) {
    let Client { user: who, connection, .. } = &world.clients[client];
    let whom = match (who, connection) {
        (Some(who), _) if user => Kick::User(who.clone()),
        (_, Some(connected)) => Kick::Connection(connected.id),
        _ => return,
    };
    if let Some(node) = &world.nodes[node] {
        let _ = node.registry.send(whom).await;
    }
}

/// The node ends in order; its clients are told to come back.
pub async fn shut_down(world: &mut World, place: usize) {
    let Some(node) = &world.nodes[place] else { return };
    let done = node.registry.send(Shutdown);
    let _ = tokio::time::timeout(Duration::from_secs(5), done).await;
    world.kill(place).await;
}
