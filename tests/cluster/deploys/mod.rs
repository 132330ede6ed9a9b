//! Rolling deploys: each node in turn is stopped, or killed, and started again under its name. Nobody
//! who comes back is seen to leave or join, and no message is lost between open sockets.

mod client;
mod record;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use tokio::task::spawn_blocking;

use self::{client::Plan, record::Record};
use crate::{
    harness::{Server, until},
    nodes::{Cluster, meet},
};

const NAMES: [&str; 3] = ["a", "b", "c"];
const ROOMS: usize = 4;
/// In each room: clients, of which the first watch and the last speak.
const CLIENTS: usize = 12;
const WATCHERS: usize = 4;
const SPEAKERS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Kill,
}

fn plans() -> Vec<Plan> {
    let plan = |number: usize| {
        let (room, place) = (number % ROOMS, number / ROOMS);
        let (watches, speaks) = (place < WATCHERS, place >= CLIENTS - SPEAKERS);
        Plan { number, room, watches, speaks }
    };
    (0..ROOMS * CLIENTS).map(plan).collect()
}

/// The presences of all rooms as a node lists them, once all are live.
async fn presences(node: &Server) -> BTreeSet<String> {
    until("all are live", async || {
        let mut all = BTreeSet::new();
        for room in 0..ROOMS {
            let page = node.get(&format!("/api/rooms/room{room}/presences?limit=100")).await;
            for one in page.json()["presences"].as_array()? {
                if one["state"] != "live" {
                    return None;
                }
                all.insert(format!("{room} {} {}", one["user"], one["channel_name"]));
            }
        }
        (all.len() == ROOMS * CLIENTS).then_some(all)
    })
    .await
}

/// Waits until everybody is connected, and has heard what the others have said by then.
async fn all_hear_all(record: &Record) {
    until("all are back", async || (record.connected() == ROOMS * CLIENTS).then_some(())).await;
    let said = record.said_so_far();
    until("all hear all", async || record.have_heard(&said).then_some(())).await;
}

async fn restart(
    cluster: &Arc<Cluster>,
    node: Server,
    name: &str,
    end: End,
    record: &Record,
) -> Server {
    let before = record.said_so_far();
    // As a balancer does that has seen its `/readyz`, or its death.
    record.avoid(name);
    let started = Instant::now();
    let mut node = node;
    match end {
        End::Stop => {
            node.signal("TERM");
            // The clients go on meanwhile.
            let status = until("it has stopped", async || node.has_ended()).await;
            assert_eq!(status.code(), Some(0), "{}", node.log());
            assert!(!node.log().contains("ERROR"), "{}", node.log());
            println!("{name} has stopped after {:?}", started.elapsed());
        }
        End::Kill => drop(node.kill()),
    }
    let (cluster, own_name) = (cluster.clone(), name.to_owned());
    let node = spawn_blocking(move || cluster.node(&own_name)).await.unwrap();
    record.add_node(name, node.address());
    all_hear_all(record).await;
    if end == End::Stop {
        assert_eq!(record.lost(name, &before), Vec::<String>::new());
    }
    node
}

async fn rolling_deploy(end: End) {
    let cluster = Arc::new(Cluster::new(&[]));
    let mut nodes = Vec::from(cluster.nodes(NAMES).await);
    let record = Arc::new(Record::default());
    for (name, node) in NAMES.iter().zip(&nodes) {
        record.add_node(name, node.address());
    }
    let plans = plans();
    let clients: Vec<_> =
        plans.iter().map(|plan| tokio::spawn(client::live(plan.clone(), record.clone()))).collect();
    all_hear_all(&record).await;
    let mut before = BTreeSet::new();
    for node in &nodes {
        before = presences(node).await;
    }
    until("all see all", async || record.all_see(&plans).then_some(())).await;
    record.settle(&plans);

    for (place, name) in NAMES.iter().enumerate() {
        let node = nodes.remove(place);
        let node = restart(&cluster, node, name, end, &record).await;
        nodes.insert(place, node);
        meet(&nodes.iter().collect::<Vec<_>>()).await;
        assert_eq!(record.faults(), Vec::<String>::new(), "{name}, {end:?}");
    }
    for node in &nodes {
        assert_eq!(presences(node).await, before);
    }
    until("the rows are those of the living", async || {
        let rows = cluster.rows();
        let users: BTreeSet<_> = rows.iter().map(|row| row.user.clone()).collect();
        (rows.len() == users.len() && users.len() == ROOMS * CLIENTS).then_some(())
    })
    .await;
    assert!(record.all_see(&plans));
    assert_eq!(record.faults(), Vec::<String>::new());
    println!("{end:?}: back after its pause: {:?} (median)", record.median_return());
    for client in &clients {
        assert!(!client.is_finished(), "a client has panicked");
        client.abort();
    }
}

#[tokio::test]
async fn nobody_sees_a_rolling_deploy_and_every_message_arrives() {
    rolling_deploy(End::Stop).await;
}

#[tokio::test]
async fn nobody_sees_three_nodes_killed_one_after_the_other() {
    rolling_deploy(End::Kill).await;
}
