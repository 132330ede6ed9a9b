//! Three nodes with a crowd on them, and everything that may go wrong with nodes, database and bus.
//! After each trouble all nodes, the database, the clients and an observer have to say the same.

mod belief;
mod checks;
mod client;
mod crowd;
mod observer;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_presence::Cause;

use self::{client::Directory, crowd::Crowd, observer::Observer};
use crate::{
    harness::{Server, until},
    nodes::Cluster,
    postgres::Postgres,
};

const CLIENTS: usize = 600;
/// Clients that do something while something goes wrong.
const STIRRED: usize = 200;
const LEASE: Duration = Duration::from_secs(3);

struct Node {
    name: String,
    server: Server,
}

struct Storm {
    crowd: Crowd,
    observer: Observer,
    nodes: Vec<Node>,
    cluster: Cluster,
    postgres: Postgres,
}

impl Storm {
    async fn begin() -> Self {
        let postgres = Postgres::start();
        // Clients that come back by themselves are back in time.
        let cluster = Cluster::on(&postgres, &["--lease", "3s", "--grace", "60s"]);
        let directory = Arc::new(Directory::default());
        let nodes: Vec<_> = ["a", "b", "c"]
            .map(|name| Node { name: name.to_owned(), server: cluster.node(name) })
            .into();
        for node in &nodes {
            directory.add(&node.name, node.server.address());
        }
        let observer = Observer::start(&cluster.database, &cluster.redis.url(), LEASE).await;
        let crowd = Crowd::start(CLIENTS, directory);
        Self { crowd, observer, nodes, cluster, postgres }
    }

    /// Takes a node out of the directory; answers its place and the clients that are on it.
    fn give_up(&self, name: &str) -> (usize, Vec<usize>) {
        let place = self.nodes.iter().position(|node| node.name == name).unwrap();
        let address = self.nodes[place].server.address();
        let clients = self.crowd.at(address);
        self.crowd.directory.give_up(name, address);
        (place, clients)
    }

    /// Starts a node under a name.
    fn start(&mut self, name: &str) {
        let server = self.cluster.node(name);
        self.crowd.directory.add(name, server.address());
        self.nodes.push(Node { name: name.to_owned(), server });
    }

    fn address(&self, name: &str) -> SocketAddr {
        self.nodes.iter().find(|node| node.name == name).unwrap().server.address()
    }

    fn stir(&mut self) {
        self.crowd.stir(STIRRED, None);
    }

    /// Waits until the observer has heard that these clients have left, and says so if one has for
    /// another reason.
    async fn leave(&self, since: usize, clients: &[usize], why: Cause) {
        self.until(&format!("{} clients leave: {why:?}", clients.len()), || {
            let ledger = self.observer.ledger();
            let leaves = &ledger.leaves[since..];
            clients.iter().all(|client| leaves.iter().any(|(left, _)| left == client))
        })
        .await;
        let ledger = self.observer.ledger();
        let leaves = ledger.leaves[since..].iter();
        let first = |client: usize| leaves.clone().find(|(left, _)| *left == client);
        let wrong: Vec<_> = clients.iter().filter_map(|client| first(*client)).collect();
        let wrong: Vec<_> = wrong.into_iter().filter(|(_, cause)| *cause != why).collect();
        assert!(wrong.is_empty(), "{} of {} not {why:?}: {wrong:?}", wrong.len(), clients.len());
    }

    /// Those of the clients that have no key.
    fn keyless(&self, clients: &[usize]) -> Vec<usize> {
        clients.iter().copied().filter(|client| !self.crowd.plans[*client].has_key).collect()
    }

    /// How many leaves the observer has heard of.
    fn leaves(&self) -> usize {
        self.observer.ledger().leaves.len()
    }

    /// Waits until every node says that it has this bus, or not.
    async fn bus(&self, works: bool) {
        for node in &self.nodes {
            until("all nodes know of the bus", async || {
                let ready = node.server.get("/readyz").await.json();
                ((ready["bus"]["state"] == "ok") == works).then_some(())
            })
            .await;
        }
    }

    async fn killed(&mut self) {
        let since = self.leaves();
        let (place, clients) = self.give_up("a");
        let node = self.nodes.remove(place);
        node.server.kill();
        self.leave(since, &self.keyless(&clients), Cause::NodeLost).await;
    }

    async fn stands_still(&mut self) {
        let since = self.leaves();
        let address = self.address("b");
        let clients = self.crowd.at(address);
        self.crowd.directory.avoid("b");
        self.nodes.iter().find(|node| node.name == "b").unwrap().server.signal("STOP");
        self.crowd.stir(STIRRED, Some(address));
        // Its clients have noticed nothing.
        self.leave(since, &clients, Cause::NodeLost).await;
        self.crowd.stir(STIRRED, Some(address));
        self.nodes.iter().find(|node| node.name == "b").unwrap().server.signal("CONT");
        self.crowd.directory.add("b", address);
    }

    async fn without_database(&mut self) {
        self.postgres.stop();
        let away = Instant::now();
        self.stir();
        for node in &self.nodes {
            until("it is noticed", async || {
                (node.server.get("/readyz").await.json()["database"]["state"] != "ok").then_some(())
            })
            .await;
        }
        self.stir();
        tokio::time::sleep(LEASE.saturating_sub(away.elapsed())).await;
        self.postgres.start_again();
    }

    async fn without_redis(&mut self) {
        self.cluster.redis.stop();
        self.stir();
        self.bus(false).await;
        self.stir();
        self.cluster.redis.start_again();
        self.bus(true).await;
    }

    async fn with_a_redis_that_hangs(&mut self) {
        self.cluster.redis.pause();
        let away = Instant::now();
        self.stir();
        self.bus(false).await;
        self.stir();
        tokio::time::sleep(Duration::from_secs(20).saturating_sub(away.elapsed())).await;
        self.cluster.redis.resume();
        self.bus(true).await;
    }

    /// Restarts a node in order; nobody with a key is missed.
    async fn restarts(&mut self, name: &str) {
        let since = self.leaves();
        let (place, clients) = self.give_up(name);
        let mut node = self.nodes.remove(place);
        node.server.signal("TERM");
        self.leave(since, &self.keyless(&clients), Cause::Shutdown).await;
        assert_eq!(node.server.wait().code(), Some(0), "{}", node.server.log());
        self.start(name);
        self.settles(&format!("{name} was restarted")).await;
        let ledger = self.observer.ledger();
        let missed = ledger.leaves[since..].iter().filter(|(n, _)| self.crowd.plans[*n].has_key);
        let missed: Vec<_> = missed.map(|(n, why)| (&self.crowd.plans[*n], why)).collect();
        assert!(missed.is_empty(), "clients with keys that left: {missed:?}");
        let keyless = ledger.leaves.len() - since;
        assert_eq!(keyless, self.keyless(&clients).len(), "others were closed");
    }
}

#[actix::test]
async fn whatever_fails_all_agree_afterwards_and_nobody_is_lost_who_need_not_be() {
    let begun = Instant::now();
    let mut storm = Storm::begin().await;
    let report = |storm: &Storm, what: &str| {
        let events = storm.observer.ledger().events;
        eprintln!("{:>5.1} s, {events} events: {what}", begun.elapsed().as_secs_f32());
    };
    storm.settles("all came").await;
    report(&storm, "all are there");
    storm.stir();
    storm.settles("some came and went").await;
    report(&storm, "some came and went");

    storm.killed().await;
    storm.settles("a node was killed").await;
    report(&storm, "a node was killed");
    storm.start("a");
    storm.stir();
    storm.settles("it was started again").await;
    report(&storm, "and started again");

    storm.stands_still().await;
    storm.settles("a node stood still").await;
    report(&storm, "a node stood still");

    storm.without_database().await;
    storm.settles("the database was away").await;
    report(&storm, "the database was away");

    storm.without_redis().await;
    storm.settles("Redis was away").await;
    report(&storm, "Redis was away");

    storm.with_a_redis_that_hangs().await;
    storm.settles("Redis hung").await;
    report(&storm, "Redis hung");

    for name in ["c", "a", "b"] {
        storm.restarts(name).await;
        report(&storm, "a node was restarted in order");
    }
    let Storm { crowd, observer, .. } = storm;
    drop(crowd);
    observer.stop().await;
}
