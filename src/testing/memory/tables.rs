//! The tables of the database in memory, and the statements on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    bus::ClusterIdentity,
    clock::Clock,
    model::{ConnectionId, Epoch, NodeName, Occupancy, RoomName},
    store::{BatchEntry, NodeRow, Row, SetAside},
    testing::store_contract::Verb,
};

/// The tables of a [`MemoryDatabase`].
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub identity: ClusterIdentity,
    pub rooms: BTreeSet<RoomName>,
    pub presences: BTreeMap<(RoomName, ConnectionId), (NodeName, Row)>,
    pub nodes: BTreeMap<NodeName, NodeEntry>,
    /// Whose rows are refused, as by a trigger.
    pub refused: BTreeSet<(Verb, ConnectionId)>,
    /// Whether a table is missing.
    pub hidden: bool,
    /// The number of reads of rooms.
    pub reads: usize,
    /// The clock of the database, if it has one of its own.
    pub clock: Option<Clock>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            identity: new_identity(),
            rooms: BTreeSet::new(),
            presences: BTreeMap::new(),
            nodes: BTreeMap::new(),
            refused: BTreeSet::new(),
            hidden: false,
            reads: 0,
            clock: None,
        }
    }
}

/// An identity that no other database of this process has.
pub(super) fn new_identity() -> ClusterIdentity {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    let (mut key, mut channel) = ([0; 32], [0; 16]);
    key[..8].copy_from_slice(&number.to_be_bytes());
    channel[..8].copy_from_slice(&number.to_be_bytes());
    ClusterIdentity::new(key, channel)
}

/// The row of a node.
#[derive(Clone, Debug)]
pub(super) struct NodeEntry {
    pub incarnation: Epoch,
    pub head: u64,
    pub lease_expires_at: DateTime<Utc>,
    pub leaving: bool,
}

impl NodeEntry {
    pub fn new(incarnation: Epoch, now: DateTime<Utc>, lease: Duration) -> Self {
        Self { incarnation, head: 0, lease_expires_at: after(now, lease), leaving: false }
    }
}

/// The end of a lease that begins now; at most the last time there is.
pub(super) fn after(now: DateTime<Utc>, lease: Duration) -> DateTime<Utc> {
    let lease = TimeDelta::from_std(lease).ok();
    lease.and_then(|lease| now.checked_add_signed(lease)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

impl Tables {
    /// The presences of a room, ordered.
    pub fn of_room(&self, room: &RoomName) -> impl Iterator<Item = &(NodeName, Row)> {
        let (first, last) = (ConnectionId::from_u128(0), ConnectionId::from_u128(u128::MAX));
        let range = (room.clone(), first)..=(room.clone(), last);
        self.presences.range(range).map(|(_, held)| held)
    }

    /// The presences whose node has a row: others do not count.
    pub fn vouched<'a>(
        &'a self,
        held: impl Iterator<Item = &'a (NodeName, Row)>,
    ) -> impl Iterator<Item = &'a (NodeName, Row)> {
        held.filter(|(node, _)| self.nodes.contains_key(node))
    }

    /// All nodes, with leases as they are now.
    pub fn node_rows(&self, now: DateTime<Utc>) -> Vec<NodeRow> {
        let row = |(name, node): (&NodeName, &NodeEntry)| NodeRow {
            node: name.clone(),
            incarnation: node.incarnation,
            head: node.head,
            expired: node.lease_expires_at < now,
            leaving: node.leaving,
        };
        self.nodes.iter().map(row).collect()
    }

    /// Removes the matching presences, and returns them.
    pub fn take(&mut self, is: impl Fn(&NodeName, &Row) -> bool) -> Vec<Row> {
        let taken = self.presences.extract_if(.., |_, (node, row)| is(node, row));
        taken.map(|(_, (_, row))| row).collect()
    }

    /// Whether the row of the node belongs to another process.
    pub fn has_been_taken(&self, node: &NodeName, own: &[Epoch]) -> bool {
        let row = self.nodes.get(node);
        !own.is_empty() && row.is_some_and(|row| !own.contains(&row.incarnation))
    }

    /// What is reported of a change that the database refuses.
    fn refusal(
        &self,
        verb: Verb,
        connection: ConnectionId,
        change: BatchEntry,
    ) -> Option<SetAside> {
        let refused = self.refused.contains(&(verb, connection));
        refused.then(|| SetAside { change, reason: "refused".to_owned() })
    }

    /// Deletes the row of a presence if this node holds it.
    pub fn delete(
        &mut self,
        node: &NodeName,
        room: &RoomName,
        connection: ConnectionId,
    ) -> Option<SetAside> {
        let key = (room.clone(), connection);
        self.presences.get(&key).filter(|(holder, _)| holder == node)?;
        let change = BatchEntry::Delete(room.clone(), connection);
        let refusal = self.refusal(Verb::Delete, connection, change);
        if refusal.is_none() {
            self.presences.remove(&key);
        }
        refusal
    }

    /// Writes the row of a presence, unless that of another node outranks it: by its generation, then by
    /// the node's name.
    pub fn upsert(&mut self, node: &NodeName, row: &Row) -> Option<SetAside> {
        let connection = row.record.presence.connection;
        let key = (row.room.clone(), connection);
        let held = self.presences.get(&key);
        // SQL tries to insert first.
        let verbs = [Some(Verb::Insert), held.map(|_| Verb::Update)];
        let change = || BatchEntry::Upsert(row.room.clone(), connection);
        let refusal =
            verbs.into_iter().flatten().find_map(|verb| self.refusal(verb, connection, change()));
        if refusal.is_some() {
            return refusal;
        }
        let outranked = held.is_some_and(|(holder, held)| {
            holder != node && (held.record.generation, holder) >= (row.record.generation, node)
        });
        if !outranked {
            self.rooms.insert(row.room.clone());
            self.presences.insert(key, (node.clone(), row.clone()));
        }
        None
    }

    /// The rows of a connection that this node holds.
    pub fn rows_of(&self, node: &NodeName, connection: ConnectionId) -> impl Iterator<Item = &Row> {
        let held = self.presences.values();
        let of_connection = move |(holder, row): &&(NodeName, Row)| {
            holder == node && row.record.presence.connection == connection
        };
        held.filter(of_connection).map(|(_, row)| row)
    }

    /// Writes when a connection was last seen, in all its rows that this node holds.
    pub fn seen(
        &mut self,
        node: &NodeName,
        connection: ConnectionId,
        at: DateTime<Utc>,
    ) -> Option<SetAside> {
        let refusal = self.refusal(Verb::Update, connection, BatchEntry::Seen(connection));
        let of_connection = |(holder, row): &&mut (NodeName, Row)| {
            holder == node && row.record.presence.connection == connection
        };
        let mut rows = self.presences.values_mut().filter(of_connection).peekable();
        rows.peek()?;
        if refusal.is_none() {
            rows.for_each(|(_, row)| row.record.last_seen = at);
        }
        refusal
    }
}

/// Counts connections and users.
pub(super) fn occupancy<'a>(held: impl Iterator<Item = &'a (NodeName, Row)>) -> Occupancy {
    let mut users = BTreeSet::new();
    let mut occupancy = Occupancy::default();
    for (_, row) in held {
        occupancy.connections += 1;
        match &row.record.presence.user {
            Some(user) => drop(users.insert(user)),
            None => occupancy.anonymous += 1,
        }
    }
    occupancy.users = users.len();
    occupancy
}
