//! Nodes on one database and one bus, and what a test asks of them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, sql_query,
    sql_types::{Nullable, Text},
};
use futures_util::future::join_all;
use serde_json::Value;

use crate::{
    harness::{Server, Ws, presence, until},
    postgres::Postgres,
    redis::Redis,
};

/// What several nodes share.
pub struct Cluster {
    pub redis: Redis,
    pub database: String,
    /// Flags of every node.
    flags: Vec<String>,
}

/// A presence as its row says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, QueryableByName)]
pub struct Row {
    #[diesel(sql_type = Text)]
    pub room: String,
    #[diesel(sql_type = Text)]
    pub channel_name: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub user: Option<String>,
    #[diesel(sql_type = Text)]
    pub info: String,
    #[diesel(sql_type = Text)]
    pub node: String,
}

impl Cluster {
    /// A new database on the shared PostgreSQL, and a Redis of its own; these flags are for every node.
    pub fn new(flags: &[&str]) -> Self {
        Self::on(Postgres::shared(), flags)
    }

    /// A new database on this PostgreSQL, and a Redis of its own.
    pub fn on(postgres: &Postgres, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        Self { redis: Redis::start(), database: postgres.fresh_database(), flags }
    }

    /// Starts a node, whatever it finds.
    pub fn node(&self, name: &str) -> Server {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        node(&self.database, Some(&self.redis.url()), name, &flags)
    }

    /// Starts nodes of these names that have met.
    pub async fn nodes<const N: usize>(&self, names: [&str; N]) -> [Server; N] {
        let nodes = names.map(|name| self.node(name));
        meet(&nodes.each_ref()).await;
        nodes
    }

    /// Every presence in the database, by room and connection.
    pub fn rows(&self) -> Vec<Row> {
        rows(&self.database).unwrap()
    }
}

/// Starts a node on this database.
pub fn node(database: &str, redis: Option<&str>, name: &str, flags: &[&str]) -> Server {
    let mut command = presence(&["serve", "--bind", "127.0.0.1:0", "--workers", "2"]);
    command.args(["--database", database, "--node", name]);
    command.args(redis.iter().flat_map(|redis| ["--redis", redis])).args(flags);
    Server::spawn(Arc::new(tempfile::tempdir().unwrap()), command)
}

/// The rows of a database that can be reached.
pub fn rows(database: &str) -> diesel::QueryResult<Vec<Row>> {
    let away = |error: diesel::ConnectionError| {
        diesel::result::Error::QueryBuilderError(error.to_string().into())
    };
    let mut conn = PgConnection::establish(database).map_err(away)?;
    sql_query(
        "SELECT r.channel_name AS room, p.channel_name, p.user_id AS user, p.info, \
            p.node_id AS node \
        FROM presences p JOIN rooms r ON r.id = p.room_id ORDER BY 1, 2",
    )
    .load(&mut conn)
}

/// Waits until all these nodes are ready and know of each other, and of nobody else.
pub async fn meet(nodes: &[&Server]) {
    for node in nodes {
        until("the nodes have met", async || {
            let ready = node.get("/readyz").await;
            let bus = &ready.json()["bus"];
            (ready.status == 200 && bus["state"] == "ok" && bus["nodes"] == nodes.len())
                .then_some(())
        })
        .await;
    }
}

/// A client in the lobby that hears of every change, and has heard its own arrival.
pub async fn witness(node: &Server) -> Ws {
    let [witness] = witnesses([node]).await;
    witness
}

/// Such a client on each of these nodes, which have heard of each other.
pub async fn witnesses<const N: usize>(nodes: [&Server; N]) -> [Ws; N] {
    static WITNESSES: AtomicU32 = AtomicU32::new(0);
    let names = nodes.map(|_| format!("witness{}", WITNESSES.fetch_add(1, Ordering::Relaxed)));
    let opening = nodes.iter().zip(&names).map(|(node, name)| async move {
        node.ws(&format!("/ws/lobby?user={name}&presence=diff")).await
    });
    let mut witnesses = join_all(opening).await;
    for witness in &mut witnesses {
        let mut missing: Vec<&str> = names.iter().map(String::as_str).collect();
        while !missing.is_empty() {
            let frame = witness.next().await;
            let lists = ["members", "joins"].map(|list| frame["payload"][list].as_array());
            let listed = lists.into_iter().flatten().flatten();
            let ids: Vec<&str> = listed.filter_map(|one| one["id"].as_str()).collect();
            missing.retain(|name| !ids.contains(name));
        }
    }
    witnesses.try_into().unwrap_or_else(|_| unreachable!("one for each node"))
}

/// The presence of a user in the lobby as a node lists it, once it is as wanted.
pub async fn listed(node: &Server, user: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(&format!("{user} is listed as wanted"), async || {
        let page = node.get("/api/rooms/lobby/presences").await.json();
        let list = page["presences"].as_array()?.clone();
        list.into_iter().find(|one| one["user"] == user && wanted(one))
    })
    .await
}

/// Has somebody join on each of these nodes, and asserts that a witness has heard of nobody else until
/// it has heard of all these. What happened on a node before is heard of before.
pub async fn only_hears_of_markers(witness: &mut Ws, nodes: &[&Server]) {
    static MARKERS: AtomicU32 = AtomicU32::new(0);
    let mut markers = Vec::new();
    for node in nodes {
        let user = format!("marker{}", MARKERS.fetch_add(1, Ordering::Relaxed));
        let ws = node.ws(&format!("/ws/lobby?user={user}&presence=none")).await;
        markers.push((user, ws));
    }
    let mut missing: Vec<&str> = markers.iter().map(|(user, _)| user.as_str()).collect();
    while !missing.is_empty() {
        let frame = witness.next_of("presence_diff").await;
        let ids = |list: &str| -> Vec<String> {
            let list = frame["payload"][list].as_array().unwrap();
            list.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
        };
        let others = [ids("joins"), ids("leaves")].concat();
        assert!(others.iter().all(|id| id.starts_with("marker")), "{frame}");
        missing.retain(|marker| !ids("joins").iter().any(|id| id == marker));
    }
}
