//! Rolling deploys: each node in turn is stopped, or killed, and started again under its name. Nobody
//! who comes back is seen to leave or join, and no message is lost between open sockets.

mod client;
mod record;

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use self::{client::Plan, record::Record};
use crate::{
    harness::{Server, until},
    nodes::{Cluster, meet},
};

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Kill,
}

/// So many clients in each of so many rooms, of whom the first `watchers` watch and the last speak.
fn plans(rooms: usize, clients: usize, watchers: usize, speakers: usize) -> Vec<Plan> {
    let plan = |number: usize| {
        let (room, place) = (number % rooms, number / rooms);
        let (watches, speaks) = (place < watchers, place >= clients - speakers);
        Plan { number, room, watches, speaks }
    };
    (0..rooms * clients).map(plan).collect()
}

/// The presences of all these as a node lists them, once all are live.
async fn presences(node: &Server, plans: &[Plan]) -> BTreeSet<String> {
    let rooms: BTreeSet<usize> = plans.iter().map(|plan| plan.room).collect();
    until("all are live", async || {
        let mut all = BTreeSet::new();
        for room in &rooms {
            let page = node.get(&format!("/api/rooms/room{room}/presences?limit=1000")).await;
            for one in page.json()["presences"].as_array()? {
                if one["state"] != "live" {
                    return None;
                }
                all.insert(format!("{room} {} {}", one["user"], one["channel_name"]));
            }
        }
        (all.len() == plans.len()).then_some(all)
    })
    .await
}

/// Waits until so many are connected, and have heard what the others have said by then.
async fn all_hear_all(record: &Record, count: usize) {
    until("all are there", async || (record.connected() == count).then_some(())).await;
    let said = record.said_so_far();
    until("all hear all", async || record.have_heard(&said).then_some(())).await;
}

fn come(plans: &[Plan], record: &Arc<Record>) -> Vec<JoinHandle<()>> {
    let come = |plan: &Plan| tokio::spawn(client::live(plan.clone(), record.clone()));
    plans.iter().map(come).collect()
}

fn go(clients: Vec<JoinHandle<()>>) {
    for client in clients {
        assert!(!client.is_finished(), "a client has panicked");
        client.abort();
    }
}

/// Stops a node as it should be stopped.
async fn stop(mut node: Server, name: &str, record: &Record) {
    // As a balancer does that has seen its `/readyz`.
    record.avoid(name);
    let started = Instant::now();
    node.signal("TERM");
    // The clients go on meanwhile.
    let status = until("it has stopped", async || node.has_ended()).await;
    println!("{name} has stopped after {:?}", started.elapsed());
    assert_eq!(status.code(), Some(0), "{}", node.log());
    assert!(!node.log().contains("ERROR"), "{}", node.log());
}

async fn rolling_deploy(end: End) {
    let cluster = Arc::new(Cluster::new(&[]));
    let mut nodes = Vec::from(cluster.nodes(NAMES).await);
    let record = Arc::new(Record::default());
    for (name, node) in NAMES.iter().zip(&nodes) {
        record.add_node(name, node.address());
    }
    let plans = plans(4, 12, 4, 3);
    let clients = come(&plans, &record);
    all_hear_all(&record, plans.len()).await;
    let before = presences(&nodes[0], &plans).await;
    until("all see all", async || record.all_see(&plans).then_some(())).await;
    record.settle(&plans);

    for (place, name) in NAMES.into_iter().enumerate() {
        let said = record.said_so_far();
        let node = nodes.remove(place);
        match end {
            End::Stop => stop(node, name, &record).await,
            End::Kill => {
                record.avoid(name);
                drop(node.kill());
            }
        }
        let again = cluster.clone();
        let node = spawn_blocking(move || again.node(name)).await.unwrap();
        // A balancer sends nobody to it before: what is said on a node whose bus is not up yet, others may not hear.
        until("it is ready", async || (node.get("/readyz").await.status == 200).then_some(()))
            .await;
        record.add_node(name, node.address());
        nodes.insert(place, node);
        all_hear_all(&record, plans.len()).await;
        if end == End::Stop {
            assert_eq!(record.lost(name, &said), Vec::<String>::new());
        }
        meet(&nodes.iter().collect::<Vec<_>>()).await;
        assert_eq!(record.faults(), Vec::<String>::new(), "{name}, {end:?}");
    }
    for node in &nodes {
        assert_eq!(presences(node, &plans).await, before);
    }
    until("the rows are those of the living", async || {
        let rows = cluster.rows();
        let users: BTreeSet<_> = rows.iter().map(|row| row.user.clone()).collect();
        (rows.len() == users.len() && users.len() == plans.len()).then_some(())
    })
    .await;
    assert!(record.all_see(&plans));
    assert_eq!(record.faults(), Vec::<String>::new());
    println!("{end:?}: back after its pause: {:?} (median)", record.median_return());
    go(clients);
}

#[tokio::test]
async fn nobody_sees_a_rolling_deploy_and_every_message_arrives() {
    rolling_deploy(End::Stop).await;
}

#[tokio::test]
async fn nobody_sees_three_nodes_killed_one_after_the_other() {
    rolling_deploy(End::Kill).await;
}

#[tokio::test]
async fn the_clients_of_many_batches_go_to_another_node_one_batch_after_the_other() {
    let cluster = Cluster::new(&[]);
    let [a, b] = cluster.nodes(["a", "b"]).await;
    let record = Arc::new(Record::default());
    let plans = plans(1, 400, 6, 1);
    let (witnesses, others) = plans.split_at(6);
    record.add_node("b", b.address());
    let mut clients = come(witnesses, &record);
    all_hear_all(&record, witnesses.len()).await;
    record.avoid("b");
    record.add_node("a", a.address());
    clients.extend(come(others, &record));
    all_hear_all(&record, others.len()).await;
    record.add_node("b", b.address());
    let before = presences(&b, &plans).await;
    until("all see all", async || record.all_see(&plans).then_some(())).await;
    record.settle(&plans);

    let said = record.said_so_far();
    stop(a, "a", &record).await;
    all_hear_all(&record, plans.len()).await;
    assert_eq!(record.lost("a", &said), Vec::<String>::new());
    assert_eq!(presences(&b, &plans).await, before);
    assert_eq!(record.faults(), Vec::<String>::new());
    go(clients);
}
