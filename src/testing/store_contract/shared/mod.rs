//! The duties of a store that several nodes share. Each test panics if its store does not do one.

mod leases;
mod reading;
mod writing;

pub use self::{leases::*, reading::*, writing::*};
use super::{Batch, LEASE, NodeName, Row, SharedStore, Store, at, node, upserts};
use crate::store::{NodeRow, Started};

/// The lease of a node that started at 0 and was not heard of since is over.
const LATE: i64 = 16;

fn started(store: &mut impl Store, name: &str) -> Started {
    store.start(&node(name), at(0), LEASE).unwrap()
}

fn number(number: u64, rows: impl IntoIterator<Item = Row>) -> Batch {
    Batch { number, ..upserts(rows) }
}

fn fading(row: Row) -> Row {
    Row { fading: Some(at(10)), ..row }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| key(a).cmp(&key(b)));
    rows
}

fn sorted_with_nodes(mut rows: Vec<(NodeName, Row)>) -> Vec<(NodeName, Row)> {
    rows.sort_by(|(_, a), (_, b)| key(a).cmp(&key(b)));
    rows
}

fn key(row: &Row) -> (&str, crate::ConnectionId) {
    (row.room.as_str(), row.presence.connection)
}

/// A node has no incarnation but the one its row says.
fn node_row(store: &mut impl SharedStore, name: &str) -> Option<NodeRow> {
    store.nodes(at(0)).unwrap().into_iter().find(|row| row.node == node(name))
}
