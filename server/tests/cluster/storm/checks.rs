//! Whether everybody says the same.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    time::{Duration, Instant},
};

use actix_presence::{ListPresences, PresenceState, RoomName};
use serde_json::Value;

use super::{Storm, client};
use crate::{
    harness::{Server, until_within},
    nodes::Row,
};

/// How long it may take until everybody does.
const BOUND: Duration = Duration::from_secs(90);
const PAGE: usize = 1000;

impl Storm {
    /// Waits until all nodes say the same as the database and the clients, and asserts that nothing has
    /// happened meanwhile that must not.
    pub async fn settles(&self, after: &str) {
        let end = Instant::now() + BOUND;
        while let Some(difference) = self.difference().await {
            let faults = self.faults();
            assert!(Instant::now() < end, "after {after} they differ: {difference}\n{faults:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(self.faults(), [""; 0], "after {after}");
    }

    /// What must not be.
    fn faults(&self) -> Vec<String> {
        let mut faults = self.crowd.faults();
        faults.extend(self.observer.ledger().faults.iter().cloned());
        faults.truncate(20);
        faults
    }

    /// The first thing in which somebody differs.
    async fn difference(&self) -> Option<String> {
        let nodes: BTreeMap<SocketAddr, &Server> =
            self.nodes.iter().map(|node| (node.server.address(), &node.server)).collect();
        let expected = match self.expected() {
            Ok(expected) => expected,
            Err(away) => return Some(away),
        };
        let mut rows = self.cluster.rows();
        for row in &mut rows {
            // Its members in one order.
            row.info = serde_json::from_str::<Value>(&row.info).unwrap().to_string();
        }
        let mut people: Vec<_> =
            rows.iter().map(|row| Row { channel_name: String::new(), ..row.clone() }).collect();
        people.sort_unstable();
        if let Some(difference) = differ("the rows", &people, "the clients", &expected) {
            return Some(difference);
        }
        let mut rooms: Vec<&str> = rows.iter().map(|row| row.room.as_str()).collect();
        rooms.dedup();
        for node in &self.nodes {
            let mut seen = Vec::new();
            for room in &rooms {
                seen.extend(listed(&node.server, room).await);
            }
            seen.sort_unstable();
            if let Some(difference) = differ(&node.name, &seen, "the rows", &rows) {
                return Some(difference);
            }
        }
        let mut seen = Vec::new();
        for room in &rooms {
            seen.extend(self.observed(room).await);
        }
        seen.sort_unstable();
        if let Some(difference) = differ("the observer's node", &seen, "the rows", &rows) {
            return Some(difference);
        }
        let told = self.observer.ledger().members();
        let there: Vec<_> =
            rows.iter().map(|row| (row.room.clone(), row.channel_name.clone())).collect();
        if let Some(difference) = differ("what was told", &told, "the rows", &there) {
            return Some(difference);
        }
        let mut known: BTreeMap<(SocketAddr, &str), Value> = BTreeMap::new();
        for plan in &self.crowd.plans {
            let there = self.crowd.state(plan.number).node.clone();
            let Some((_, address)) = there else { return Some(format!("{plan:?} is away")) };
            let Some(node) = nodes.get(&address) else { return Some(format!("{plan:?} is lost")) };
            let place = (address, plan.room.as_str());
            if let Entry::Vacant(unknown) = known.entry(place) {
                let room = node.get(&format!("/api/rooms/{}", plan.room)).await.json();
                unknown.insert(room);
            }
            let state = self.crowd.state(plan.number);
            if let Some(difference) = state.belief.differs_from(&known[&place]) {
                return Some(format!("{plan:?} at {:?}: {difference}", state.node));
            }
        }
        None
    }

    /// Everybody, as the clients believe; a connection has no name for its client.
    fn expected(&self) -> Result<Vec<Row>, String> {
        let mut expected = Vec::new();
        for plan in &self.crowd.plans {
            let state = self.crowd.state(plan.number);
            let Some((node, _)) = &state.node else { return Err(format!("{plan:?} is away")) };
            expected.push(Row {
                room: plan.room.clone(),
                channel_name: String::new(),
                user: plan.user.clone(),
                info: client::info(plan.number, state.mood).to_string(),
                node: node.clone(),
            });
        }
        expected.sort_unstable();
        Ok(expected)
    }

    /// Who is in a room as the node of the observer knows.
    async fn observed(&self, room: &str) -> Vec<Row> {
        let list = ListPresences { room: RoomName::new(room).unwrap(), after: None, limit: PAGE };
        let list = self.observer.presence.registry().send(list).await.unwrap();
        let live = list
            .ok()
            .flatten()
            .into_iter()
            .flatten()
            .filter(|seen| seen.state == PresenceState::Live);
        let row = live.map(|seen| Row {
            room: room.to_owned(),
            channel_name: seen.presence.connection.to_string(),
            user: seen.presence.user.map(|user| user.to_string()),
            info: serde_json::from_str::<Value>(seen.presence.info.as_json()).unwrap().to_string(),
            node: seen.node.map(|node| node.to_string()).unwrap_or_default(),
        });
        row.collect()
    }

    /// Waits for something that shows in the storm.
    pub async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        until_within(BOUND, what, async || holds().then_some(())).await;
    }
}

/// Who is in a room as a node lists it; those that fade are not there.
async fn listed(node: &Server, room: &str) -> Vec<Row> {
    let page = node.get(&format!("/api/rooms/{room}/presences?limit={PAGE}")).await.json();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = page["presences"].as_array().cloned().unwrap_or_default();
    let live = list.iter().filter(|one| one["state"] == "live");
    let rows = live.map(|one| Row {
        room: room.to_owned(),
        channel_name: text(&one["channel_name"]).unwrap(),
        user: text(&one["user"]),
        info: one["info"].to_string(),
        node: text(&one["node"]).unwrap(),
    });
    rows.collect()
}

/// How two sorted lists differ.
fn differ<T: PartialEq + std::fmt::Debug>(
    one: &str,
    these: &[T],
    other: &str,
    those: &[T],
) -> Option<String> {
    if these == those {
        return None;
    }
    let more: Vec<_> = these.iter().filter(|this| !those.contains(this)).collect();
    let less: Vec<_> = those.iter().filter(|that| !these.contains(that)).collect();
    let some = |list: &[&T]| format!("{} {:?}", list.len(), &list[..list.len().min(3)]);
    Some(format!("only in {one}: {}; only in {other}: {}", some(&more), some(&less)))
}
