//! The store on a [`MemoryDatabase`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};

use super::{
    LinkState, MemoryDatabase, MemoryLink,
    tables::{NodeEntry, Tables, after, occupancy},
};
use crate::{
    bus::ClusterIdentity,
    messages::Kick,
    model::{ConnectionId, Epoch, NodeName, Occupancy, RoomName, RoomSummary, UserId},
    store::{
        Applied, Batch, Fence, NodeLease, NodeRow, Reaped, Renewal, Result, RoomCounts, RoomRows,
        Row, SharedStore, Started, Store, StoreError, StoreOpener, oldest,
    },
    testing::store_contract::{ManualChange, SharedStoreFixture, StoreFixture, Verb},
};

/// A [`SharedStore`] on a [`MemoryDatabase`].
#[derive(Debug)]
pub struct MemoryStore {
    pub(super) database: MemoryDatabase,
    pub(super) link: MemoryLink,
    pub(super) lease: NodeLease,
}

impl MemoryStore {
    /// The link to the database.
    #[must_use]
    pub fn link(&self) -> MemoryLink {
        self.link.clone()
    }

    /// Calls the database over the link, whose answer may get lost.
    fn try_call<T>(&self, call: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        let cut = || Err(StoreError::Unavailable { source: "the link is cut".into() });
        let state = self.link.state();
        if state == LinkState::Cut {
            return cut();
        }
        let answer = self.database.with(|tables| match tables.hidden {
            true => Err(StoreError::Schema { source: "a table is missing".into() }),
            false => call(tables),
        });
        if state == LinkState::Mute { cut() } else { answer }
    }

    fn call<T>(&self, call: impl FnOnce(&mut Tables) -> T) -> Result<T> {
        self.try_call(|tables| Ok(call(tables)))
    }
}

impl Store for MemoryStore {
    fn apply(&mut self, node: &NodeName, batch: &Batch, now: DateTime<Utc>) -> Result<Applied> {
        let now = self.database.time(now);
        let fence = self.lease.fence(node)?;
        let applied = self.try_call(|tables| {
            if let Some(Fence { incarnation, lease, head }) = fence {
                let row = tables.nodes.get_mut(node);
                let row = row.filter(|row| row.incarnation == incarnation && row.head >= head);
                let row = row.ok_or(StoreError::Lapsed)?;
                row.head = row.head.max(batch.number);
                row.lease_expires_at = row.lease_expires_at.max(after(now, lease));
            }
            let mut set_aside = Vec::new();
            for (room, connection) in &batch.deletes {
                set_aside.extend(tables.delete(node, room, *connection));
            }
            for row in &batch.upserts {
                set_aside.extend(tables.upsert(node, row));
            }
            let mut missing = Vec::new();
            for seen in &batch.seen {
                set_aside.extend(tables.seen(node, seen.connection, seen.at));
                if tables.rows_of(node, seen.connection).count() < seen.rooms {
                    missing.push(seen.connection);
                }
            }
            Ok(Applied { set_aside, missing })
        })?;
        self.lease.committed(batch.number);
        Ok(applied)
    }

    fn start(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Started> {
        let now = self.database.time(now);
        let incarnation = self.lease.set(node, lease).next.life;
        let started = self.call(|tables| {
            let before = tables.nodes.insert(node.clone(), NodeEntry::new(incarnation, now, lease));
            let own = tables.presences.values().filter(|(holder, _)| holder == node);
            let inherited = own.map(|(_, row)| row.clone()).collect();
            let stopped = before.is_some_and(|before| before.leaving);
            Started { incarnation, dead: Vec::new(), inherited, stopped }
        })?;
        self.lease.begin(incarnation);
        Ok(started)
    }

    fn renew(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Renewal> {
        let now = self.database.time(now);
        let own = self.lease.set(node, lease);
        let incarnation = own.next.life;
        let renewal = self.try_call(|tables| {
            if let Some(row) = tables.nodes.get_mut(node) {
                let end = after(now, lease);
                if Some(row.incarnation) == own.current && row.head >= own.head {
                    row.lease_expires_at = end;
                    return Ok(Renewal::Held);
                }
                if own.own.contains(&row.incarnation) {
                    let incarnation = own.next.continued;
                    (row.incarnation, row.lease_expires_at) = (incarnation, end);
                    return Ok(Renewal::Continued { incarnation });
                }
                if row.incarnation != incarnation && row.lease_expires_at >= now {
                    return Err(StoreError::NameTaken);
                }
            }
            tables.take(|holder, _| holder == node);
            tables.nodes.insert(node.clone(), NodeEntry::new(incarnation, now, lease));
            Ok(Renewal::Lapsed { incarnation })
        })?;
        if let Renewal::Continued { incarnation } | Renewal::Lapsed { incarnation } = renewal {
            self.lease.begin(incarnation);
        }
        Ok(renewal)
    }

    fn stop(&mut self, node: &NodeName) -> Result<usize> {
        let own = self.lease.own_of(node);
        self.call(|tables| {
            if tables.has_been_taken(node, &own) {
                return 0;
            }
            tables.nodes.remove(node);
            tables.take(|holder, _| holder == node).len()
        })
    }

    fn hand_over(&mut self, node: &NodeName, now: DateTime<Utc>, grace: Duration) -> Result<usize> {
        let now = self.database.time(now);
        let own = self.lease.own_of(node);
        self.call(|tables| {
            if tables.has_been_taken(node, &own) {
                return 0;
            }
            if let Some(row) = tables.nodes.get_mut(node) {
                row.leaving = true;
                row.lease_expires_at = after(now, grace);
            }
            tables.take(|holder, row| holder == node && row.record.fading.is_none()).len()
        })
    }

    fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> Result<usize> {
        let Some(oldest) = oldest(now, max_age) else { return Ok(0) };
        let now = self.database.time(now);
        self.call(|tables| {
            let live = |node: &&NodeEntry| node.lease_expires_at >= now;
            let nodes = &tables.nodes;
            let stale = |node: &NodeName, row: &Row| {
                row.record.last_seen < oldest && nodes.get(node).filter(live).is_none()
            };
            let before = tables.presences.len();
            let mut pruned = BTreeSet::new();
            tables.presences.retain(|_, (node, row)| {
                let stale = stale(node, row);
                pruned.extend(stale.then(|| node.clone()));
                !stale
            });
            // Such a node has to notice it when it comes back.
            tables.nodes.retain(|node, _| !pruned.contains(node));
            before - tables.presences.len()
        })
    }

    fn prune_rooms(&mut self) -> Result<usize> {
        self.call(|tables| {
            let occupied: BTreeSet<_> = tables.presences.keys().map(|(room, _)| room).collect();
            let before = tables.rooms.len();
            tables.rooms.retain(|room| occupied.contains(room));
            before - tables.rooms.len()
        })
    }

    fn rooms(&mut self, now: DateTime<Utc>) -> Result<Vec<RoomCounts>> {
        let now = self.database.time(now);
        self.call(|tables| {
            let lives = |held: &&(NodeName, Row)| {
                tables.nodes.get(&held.0).is_some_and(|node| node.lease_expires_at >= now)
            };
            let counts = |room| {
                let Occupancy { connections, users, anonymous } =
                    occupancy(tables.of_room(room).filter(lives));
                RoomCounts { channel_name: room.to_string(), connections, users, anonymous }
            };
            tables.rooms.iter().map(counts).collect()
        })
    }
}

impl SharedStore for MemoryStore {
    fn time(&mut self, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
        let time = self.database.time(now);
        self.call(|_| time)
    }

    fn identity(&mut self) -> Result<ClusterIdentity> {
        self.call(|tables| tables.identity.clone())
    }

    fn read(&mut self, rooms: &[RoomName], now: DateTime<Utc>) -> Result<RoomRows> {
        let now = self.database.time(now);
        self.call(|tables| {
            tables.reads += 1;
            let rooms: BTreeSet<_> = rooms.iter().collect();
            let held = rooms.into_iter().flat_map(|room| tables.of_room(room));
            RoomRows { nodes: tables.node_rows(now), rows: tables.vouched(held).cloned().collect() }
        })
    }

    fn nodes(&mut self, now: DateTime<Utc>) -> Result<Vec<NodeRow>> {
        let now = self.database.time(now);
        self.call(|tables| tables.node_rows(now))
    }

    fn reap(&mut self, node: &NodeName, incarnation: Epoch, now: DateTime<Utc>) -> Result<Reaped> {
        let now = self.database.time(now);
        self.call(|tables| {
            let Some(row) = tables.nodes.get(node) else { return Reaped::Gone };
            let leaving = row.leaving;
            if row.incarnation != incarnation || row.lease_expires_at >= now {
                return Reaped::Alive;
            }
            tables.nodes.remove(node);
            Reaped::Removed { rows: tables.take(|holder, _| holder == node), leaving }
        })
    }

    fn find(
        &mut self,
        room: &RoomName,
        connections: &[ConnectionId],
    ) -> Result<Vec<(NodeName, Row)>> {
        let keys: Vec<_> = connections.iter().map(|one| (room.clone(), *one)).collect();
        self.held(&keys)
    }

    fn held(&mut self, presences: &[(RoomName, ConnectionId)]) -> Result<Vec<(NodeName, Row)>> {
        self.call(|tables| {
            let presences: BTreeSet<_> = presences.iter().collect();
            let found = presences.into_iter().filter_map(|key| tables.presences.get(key));
            tables.vouched(found).cloned().collect()
        })
    }

    fn list(&mut self, after: Option<&RoomName>, limit: usize) -> Result<Vec<RoomSummary>> {
        self.call(|tables| {
            let summary = |room: &RoomName| {
                let occupancy = occupancy(tables.vouched(tables.of_room(room)));
                let summary = RoomSummary { room: room.clone(), occupancy, version: 0 };
                (occupancy.connections > 0).then_some(summary)
            };
            let later = tables.rooms.iter().filter(|room| after.is_none_or(|after| *room > after));
            later.filter_map(summary).take(limit).collect()
        })
    }

    fn where_is(&mut self, user: &UserId) -> Result<Vec<(RoomName, usize)>> {
        self.call(|tables| {
            let mut rooms: BTreeMap<RoomName, usize> = BTreeMap::new();
            for (_, row) in tables.vouched(tables.presences.values()) {
                if row.record.presence.user.as_ref() == Some(user) {
                    *rooms.entry(row.room.clone()).or_default() += 1;
                }
            }
            rooms.into_iter().collect()
        })
    }

    fn connections(&mut self, kick: &Kick) -> Result<Vec<(ConnectionId, NodeName)>> {
        self.call(|tables| {
            let mut found = BTreeMap::new();
            for (node, row) in tables.vouched(tables.presences.values()) {
                if is_meant(kick, row) {
                    let holder = found.entry(row.record.presence.connection).or_insert(node);
                    *holder = (*holder).min(node);
                }
            }
            found.into_iter().map(|(connection, node)| (connection, node.clone())).collect()
        })
    }

    fn receivers(&mut self, of: &Kick) -> Result<Vec<(ConnectionId, NodeName)>> {
        self.call(|tables| {
            let mut found = BTreeMap::new();
            for (node, Row { record, .. }) in tables
                .vouched(tables.presences.values())
                .filter(|(_, row)| is_meant(of, row) && row.record.fading.is_none())
            {
                let connection = record.current_connection.unwrap_or(record.presence.connection);
                let holder = found.entry(connection).or_insert(node);
                *holder = (*holder).min(node);
            }
            found.into_iter().map(|(connection, node)| (connection, node.clone())).collect()
        })
    }

    fn places(&mut self, node: &NodeName) -> Result<Vec<(RoomName, ConnectionId)>> {
        self.call(|tables| {
            let held = tables.presences.iter().filter(|(_, (holder, _))| holder == node);
            held.map(|(place, _)| place.clone()).collect()
        })
    }

    fn opener(&self) -> Option<StoreOpener> {
        let (database, link) = (self.database.clone(), self.link.clone());
        let lease = self.lease.successor();
        Some(Arc::new(move || {
            let (database, link) = (database.clone(), link.clone());
            Box::new(Self { database, link, lease: lease.successor() })
        }))
    }
}

impl StoreFixture for MemoryStore {
    type Store = Self;

    fn new() -> Self {
        MemoryDatabase::new().store()
    }

    fn store(&mut self) -> &mut Self {
        self
    }

    fn change_manually(&mut self, change: ManualChange<'_>) {
        self.database.change_manually(change);
    }

    fn rows(&mut self) -> Vec<(NodeName, Row)> {
        self.database.rows()
    }

    fn refuse(&mut self, verb: Verb, connection: ConnectionId) {
        self.database.refuse(verb, connection);
    }
}

impl SharedStoreFixture for MemoryStore {
    fn another(&mut self) -> Self {
        self.database.store()
    }
}

/// Whether a row is one of the connection or of the user.
fn is_meant(kick: &Kick, row: &Row) -> bool {
    match kick {
        Kick::Connection(connection) => {
            row.record.presence.connection == *connection
                || row.record.current_connection == Some(*connection)
        }
        Kick::User(user) => row.record.presence.user.as_ref() == Some(user),
    }
}
