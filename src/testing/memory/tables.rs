//! The tables of a [`MemoryDatabase`](super::MemoryDatabase), and what each call does with them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    messages::Kick,
    model::{ConnectionId, Epoch, NodeName, Occupancy, RoomName, RoomSummary, UserId},
    store::{
        Applied, Batch, BatchEntry, NodeRow, OwnIncarnations, Reaped, Renewal, RoomCounts,
        RoomRows, Row, SetAside, Started, StoreError,
    },
    testing::store_contract::Verb,
};

type Key = (RoomName, ConnectionId);

#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub rooms: BTreeSet<RoomName>,
    pub presences: BTreeMap<Key, (NodeName, Row)>,
    pub nodes: BTreeMap<NodeName, Node>,
    /// What is refused, as by a trigger.
    pub refused: BTreeSet<(Verb, ConnectionId)>,
    /// Whether a table is missing.
    pub hidden: bool,
    /// The number of reads of rooms.
    pub reads: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub incarnation: Epoch,
    pub head: u64,
    pub lease_expires_at: DateTime<Utc>,
    pub leaving: bool,
}

/// The end of a lease, or the last time there is.
fn after(now: DateTime<Utc>, lease: Duration) -> DateTime<Utc> {
    let lease = TimeDelta::from_std(lease).ok();
    lease.and_then(|lease| now.checked_add_signed(lease)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

impl Tables {
    /// The presences of a room, ordered.
    fn of_room(&self, room: &RoomName) -> impl Iterator<Item = &(NodeName, Row)> {
        let (first, last) = (ConnectionId::from_u128(0), ConnectionId::from_u128(u128::MAX));
        let range = (room.clone(), first)..=(room.clone(), last);
        self.presences.range(range).map(|(_, held)| held)
    }

    /// The presences whose node has a row: others do not count.
    fn vouched<'a>(
        &'a self,
        held: impl Iterator<Item = &'a (NodeName, Row)>,
    ) -> impl Iterator<Item = &'a (NodeName, Row)> {
        held.filter(|(node, _)| self.nodes.contains_key(node))
    }

    /// Removes the matching presences, and returns them.
    fn take(&mut self, is: impl Fn(&NodeName, &Row) -> bool) -> Vec<Row> {
        let mut taken = Vec::new();
        self.presences.retain(|_, (node, row)| {
            let is = is(node, row);
            taken.extend(is.then(|| row.clone()));
            !is
        });
        taken
    }

    fn refusal(
        &self,
        verb: Verb,
        connection: ConnectionId,
        change: BatchEntry,
    ) -> Option<SetAside> {
        let refused = self.refused.contains(&(verb, connection));
        refused.then(|| SetAside { change, reason: "refused".to_owned() })
    }

    pub fn apply(
        &mut self,
        node: &NodeName,
        fence: Option<(Epoch, Duration)>,
        batch: &Batch,
        now: DateTime<Utc>,
    ) -> Result<Applied, StoreError> {
        if let Some((incarnation, lease)) = fence {
            let row = self.nodes.get_mut(node).filter(|row| row.incarnation == incarnation);
            let row = row.ok_or(StoreError::Lapsed)?;
            row.head = row.head.max(batch.number);
            row.lease_expires_at = row.lease_expires_at.max(after(now, lease));
        }
        let mut set_aside = Vec::new();
        for (room, connection) in &batch.deletes {
            let key = (room.clone(), *connection);
            if self.presences.get(&key).is_none_or(|(holder, _)| holder != node) {
                continue;
            }
            let change = BatchEntry::Delete(room.clone(), *connection);
            match self.refusal(Verb::Delete, *connection, change) {
                Some(refusal) => set_aside.push(refusal),
                None => drop(self.presences.remove(&key)),
            }
        }
        for row in &batch.upserts {
            set_aside.extend(self.upsert(node, row));
        }
        for &(connection, at) in &batch.seen {
            set_aside.extend(self.seen(node, connection, at));
        }
        Ok(Applied { set_aside })
    }

    fn upsert(&mut self, node: &NodeName, row: &Row) -> Option<SetAside> {
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

    fn seen(
        &mut self,
        node: &NodeName,
        connection: ConnectionId,
        at: DateTime<Utc>,
    ) -> Option<SetAside> {
        let mut rows: Vec<_> = self
            .presences
            .values_mut()
            .filter(|(holder, row)| holder == node && row.record.presence.connection == connection)
            .collect();
        if rows.is_empty() {
            return None;
        }
        if self.refused.contains(&(Verb::Update, connection)) {
            let reason = "refused".to_owned();
            return Some(SetAside { change: BatchEntry::Seen(connection), reason });
        }
        for (_, row) in &mut rows {
            row.record.last_seen = at;
        }
        None
    }

    pub fn start(
        &mut self,
        node: &NodeName,
        next: Epoch,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Started {
        let lease_expires_at = after(now, lease);
        let row = Node { incarnation: next, head: 0, lease_expires_at, leaving: false };
        let before = self.nodes.insert(node.clone(), row);
        let own = self.presences.values().filter(|(holder, _)| holder == node);
        let inherited = own.map(|(_, row)| row.clone()).collect();
        let stopped = before.is_some_and(|before| before.leaving);
        Started { incarnation: next, dead: Vec::new(), inherited, stopped }
    }

    pub fn renew(
        &mut self,
        node: &NodeName,
        incarnations: OwnIncarnations,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Renewal, StoreError> {
        let OwnIncarnations { current, next: incarnation } = incarnations;
        let lease_expires_at = after(now, lease);
        match self.nodes.get_mut(node) {
            Some(row) if Some(row.incarnation) == current => {
                row.lease_expires_at = lease_expires_at;
                Ok(Renewal::Held)
            }
            Some(row) if row.incarnation == incarnation => {
                row.lease_expires_at = lease_expires_at;
                Ok(Renewal::Lapsed { incarnation })
            }
            Some(_) => Err(StoreError::NameTaken),
            None => {
                self.take(|holder, _| holder == node);
                let row = Node { incarnation, head: 0, lease_expires_at, leaving: false };
                self.nodes.insert(node.clone(), row);
                Ok(Renewal::Lapsed { incarnation })
            }
        }
    }

    /// Whether the row of the node belongs to another incarnation.
    fn has_been_taken(&self, node: &NodeName, own: Option<Epoch>) -> bool {
        let row = self.nodes.get(node);
        own.is_some_and(|own| row.is_some_and(|row| row.incarnation != own))
    }

    pub fn stop(&mut self, node: &NodeName, own: Option<Epoch>) -> usize {
        if self.has_been_taken(node, own) {
            return 0;
        }
        self.nodes.remove(node);
        self.take(|holder, _| holder == node).len()
    }

    pub fn hand_over(
        &mut self,
        node: &NodeName,
        own: Option<Epoch>,
        now: DateTime<Utc>,
        grace: Duration,
    ) -> usize {
        if self.has_been_taken(node, own) {
            return 0;
        }
        if let Some(row) = self.nodes.get_mut(node) {
            row.leaving = true;
            row.lease_expires_at = after(now, grace);
        }
        self.take(|holder, row| holder == node && row.record.fading.is_none()).len()
    }

    pub fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> usize {
        let age = TimeDelta::from_std(max_age).ok();
        let Some(oldest) = age.and_then(|age| now.checked_sub_signed(age)) else { return 0 };
        let dead = |node: &Node| node.lease_expires_at < now;
        let dead: BTreeSet<NodeName> = self
            .presences
            .values()
            .map(|(node, _)| node)
            .filter(|node| self.nodes.get(*node).is_none_or(dead))
            .cloned()
            .collect();
        let pruned: Vec<_> = self
            .presences
            .iter()
            .filter(|(_, (node, row))| row.record.last_seen < oldest && dead.contains(node))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &pruned {
            // Its node has to notice that when it comes back.
            if let Some((node, _)) = self.presences.remove(key) {
                self.nodes.remove(&node);
            }
        }
        pruned.len()
    }

    pub fn prune_rooms(&mut self) -> usize {
        let empty: Vec<RoomName> =
            self.rooms.iter().filter(|room| self.of_room(room).next().is_none()).cloned().collect();
        self.rooms.retain(|room| !empty.contains(room));
        empty.len()
    }

    pub fn rooms(&self) -> Vec<RoomCounts> {
        let counts = |room| {
            let Occupancy { connections, users, anonymous } = occupancy(self.of_room(room));
            RoomCounts { channel_name: room.to_string(), connections, users, anonymous }
        };
        self.rooms.iter().map(counts).collect()
    }

    pub fn nodes(&self, now: DateTime<Utc>) -> Vec<NodeRow> {
        let row = |(name, node): (&NodeName, &Node)| NodeRow {
            node: name.clone(),
            incarnation: node.incarnation,
            head: node.head,
            expired: node.lease_expires_at < now,
            leaving: node.leaving,
        };
        self.nodes.iter().map(row).collect()
    }

    pub fn read(&mut self, rooms: &[RoomName], now: DateTime<Utc>) -> RoomRows {
        self.reads += 1;
        let rooms: BTreeSet<_> = rooms.iter().collect();
        let held = rooms.into_iter().flat_map(|room| self.of_room(room));
        RoomRows { nodes: self.nodes(now), rows: self.vouched(held).cloned().collect() }
    }

    pub fn reap(&mut self, node: &NodeName, incarnation: Epoch, now: DateTime<Utc>) -> Reaped {
        let Some(row) = self.nodes.get(node) else { return Reaped::Gone };
        let leaving = row.leaving;
        if row.incarnation != incarnation || row.lease_expires_at >= now {
            return Reaped::Alive;
        }
        self.nodes.remove(node);
        Reaped::Removed { rows: self.take(|holder, _| holder == node), leaving }
    }

    pub fn find(&self, room: &RoomName, connections: &[ConnectionId]) -> Vec<(NodeName, Row)> {
        let connections: BTreeSet<_> = connections.iter().collect();
        let keys = connections.into_iter().map(|connection| (room.clone(), *connection));
        self.vouched(keys.filter_map(|key| self.presences.get(&key))).cloned().collect()
    }

    pub fn held(&self, presences: &[Key]) -> Vec<(NodeName, Row)> {
        let presences: BTreeSet<_> = presences.iter().collect();
        let found = presences.into_iter().filter_map(|key| self.presences.get(key));
        self.vouched(found).cloned().collect()
    }

    pub fn list(&self, after: Option<&RoomName>, limit: usize) -> Vec<RoomSummary> {
        let summary = |room: &RoomName| {
            let occupancy = occupancy(self.vouched(self.of_room(room)));
            let summary = RoomSummary { room: room.clone(), occupancy, version: 0 };
            (occupancy.connections > 0).then_some(summary)
        };
        let later = self.rooms.iter().filter(|room| after.is_none_or(|after| *room > after));
        later.filter_map(summary).take(limit).collect()
    }

    pub fn where_is(&self, user: &UserId) -> Vec<(RoomName, usize)> {
        let mut rooms: BTreeMap<RoomName, usize> = BTreeMap::new();
        for (_, row) in self.vouched(self.presences.values()) {
            if row.record.presence.user.as_ref() == Some(user) {
                *rooms.entry(row.room.clone()).or_default() += 1;
            }
        }
        rooms.into_iter().collect()
    }

    pub fn connections(&self, kick: &Kick) -> Vec<(ConnectionId, NodeName)> {
        let is_meant = |row: &Row| match kick {
            Kick::Connection(connection) => row.record.presence.connection == *connection,
            Kick::User(user) => row.record.presence.user.as_ref() == Some(user),
        };
        let mut found = BTreeMap::new();
        for (node, row) in self.vouched(self.presences.values()) {
            if is_meant(row) {
                let holder = found.entry(row.record.presence.connection).or_insert(node);
                *holder = (*holder).min(node);
            }
        }
        found.into_iter().map(|(connection, node)| (connection, node.clone())).collect()
    }
}

fn occupancy<'a>(held: impl Iterator<Item = &'a (NodeName, Row)>) -> Occupancy {
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
