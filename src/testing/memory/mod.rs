//! A database in memory that several nodes share.

mod tables;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};

use self::tables::{Node, Tables};
use super::store_contract::{ManualChange, Verb};
use crate::{
    messages::Kick,
    model::{ConnectionId, Epoch, NodeName, RoomName, RoomSummary, UserId},
    store::{
        Applied, Batch, NodeLease, NodeRow, Reaped, Renewal, Result, RoomCounts, RoomRows, Row,
        SharedStore, Started, Store, StoreError,
    },
};

/// A database in memory, for tests of several nodes in one process. A clone is the same database.
///
/// Its clock is the time argument of each call, so that runs are reproducible.
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::{NodeName, store::{Store, StoreError}, testing::MemoryDatabase};
/// use chrono::DateTime;
///
/// let database = MemoryDatabase::new();
/// let mut store = database.store();
/// let link = store.link();
/// let (node, now) = (NodeName::new("a")?, DateTime::UNIX_EPOCH);
/// link.cut();
/// let refused = store.start(&node, now, Duration::from_secs(15));
/// assert!(matches!(refused, Err(StoreError::Unavailable { .. })));
/// link.heal();
/// let _ = store.start(&node, now, Duration::from_secs(15))?;
/// assert!(database.rows().is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryDatabase(Arc<Mutex<Tables>>);

impl MemoryDatabase {
    /// An empty database.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A store on it for one node, with a link of its own.
    #[must_use]
    pub fn store(&self) -> MemoryStore {
        MemoryStore {
            database: self.clone(),
            link: MemoryLink::default(),
            lease: NodeLease::default(),
        }
    }

    /// Every presence with the node that holds it, ordered by room and connection.
    #[must_use]
    pub fn rows(&self) -> Vec<(NodeName, Row)> {
        self.with(|tables| tables.presences.values().cloned().collect())
    }

    /// The number of reads of rooms.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.with(|tables| tables.reads)
    }

    /// Makes the database refuse every row of a connection.
    pub fn refuse(&self, verb: Verb, connection: ConnectionId) {
        self.with(|tables| tables.refused.insert((verb, connection)));
    }

    /// Changes the database from outside.
    ///
    /// # Panics
    ///
    /// If a name is invalid.
    pub fn change_manually(&self, change: ManualChange<'_>) {
        self.with(|tables| match change {
            ManualChange::DeletePresences => tables.presences.clear(),
            ManualChange::DeleteRoom(name) => {
                tables.rooms.retain(|room| room != name);
                tables.presences.retain(|(room, _), _| room != name);
            }
            ManualChange::AddRoom(name) => {
                tables.rooms.insert(RoomName::new(name).expect("a valid name"));
            }
            ManualChange::AddDeadNode(name) => {
                let node = Node {
                    incarnation: Epoch::new(),
                    head: 0,
                    lease_expires_at: DateTime::UNIX_EPOCH,
                    leaving: false,
                };
                tables.nodes.insert(NodeName::new(name).expect("a valid name"), node);
            }
            ManualChange::DeleteNodes => tables.nodes.clear(),
            ManualChange::HideNodes => tables.hidden = true,
            ManualChange::ShowNodes => tables.hidden = false,
        });
    }

    fn with<T>(&self, call: impl FnOnce(&mut Tables) -> T) -> T {
        call(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The link between a [`MemoryStore`] and its database. A clone is the same link.
#[derive(Clone, Debug, Default)]
pub struct MemoryLink(Arc<Mutex<State>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Whole,
    Cut,
    Mute,
}

impl MemoryLink {
    /// Makes every call fail with [`StoreError::Unavailable`] without an effect.
    pub fn cut(&self) {
        self.set(State::Cut);
    }

    /// Makes every call fail after it has taken effect: the answer is lost.
    pub fn mute(&self) {
        self.set(State::Mute);
    }

    /// Makes calls succeed again.
    pub fn heal(&self) {
        self.set(State::Whole);
    }

    fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn state(&self) -> State {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A [`SharedStore`] on a [`MemoryDatabase`].
#[derive(Debug)]
pub struct MemoryStore {
    database: MemoryDatabase,
    link: MemoryLink,
    lease: NodeLease,
}

impl MemoryStore {
    /// The link to the database.
    #[must_use]
    pub fn link(&self) -> MemoryLink {
        self.link.clone()
    }

    fn call<T>(&self, call: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        let cut = || Err(StoreError::Unavailable { source: "the link is cut".into() });
        let state = self.link.state();
        if state == State::Cut {
            return cut();
        }
        let answer = self.database.with(|tables| match tables.hidden {
            true => Err(StoreError::Schema { source: "a table is missing".into() }),
            false => call(tables),
        });
        if state == State::Mute { cut() } else { answer }
    }
}

impl Store for MemoryStore {
    fn apply(&mut self, node: &NodeName, batch: &Batch, now: DateTime<Utc>) -> Result<Applied> {
        let fence = self.lease.fence(node);
        self.call(|tables| tables.apply(node, fence, batch, now))
    }

    fn start(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Started> {
        let next = self.lease.set(node, lease).next;
        let started = self.call(|tables| Ok(tables.start(node, next, now, lease)))?;
        self.lease.begin();
        Ok(started)
    }

    fn renew(&mut self, node: &NodeName, now: DateTime<Utc>, lease: Duration) -> Result<Renewal> {
        let incarnations = self.lease.set(node, lease);
        let renewal = self.call(|tables| tables.renew(node, incarnations, now, lease))?;
        if matches!(renewal, Renewal::Lapsed { .. }) {
            self.lease.begin();
        }
        Ok(renewal)
    }

    fn stop(&mut self, node: &NodeName) -> Result<usize> {
        let own = self.lease.incarnation(node);
        self.call(|tables| Ok(tables.stop(node, own)))
    }

    fn hand_over(&mut self, node: &NodeName, now: DateTime<Utc>, grace: Duration) -> Result<usize> {
        let own = self.lease.incarnation(node);
        self.call(|tables| Ok(tables.hand_over(node, own, now, grace)))
    }

    fn prune_presences(&mut self, now: DateTime<Utc>, max_age: Duration) -> Result<usize> {
        self.call(|tables| Ok(tables.prune_presences(now, max_age)))
    }

    fn prune_rooms(&mut self) -> Result<usize> {
        self.call(|tables| Ok(tables.prune_rooms()))
    }

    fn rooms(&mut self) -> Result<Vec<RoomCounts>> {
        self.call(|tables| Ok(tables.rooms()))
    }
}

impl SharedStore for MemoryStore {
    fn read(&mut self, rooms: &[RoomName], now: DateTime<Utc>) -> Result<RoomRows> {
        self.call(|tables| Ok(tables.read(rooms, now)))
    }

    fn nodes(&mut self, now: DateTime<Utc>) -> Result<Vec<NodeRow>> {
        self.call(|tables| Ok(tables.nodes(now)))
    }

    fn reap(&mut self, node: &NodeName, incarnation: Epoch, now: DateTime<Utc>) -> Result<Reaped> {
        self.call(|tables| Ok(tables.reap(node, incarnation, now)))
    }

    fn find(
        &mut self,
        room: &RoomName,
        connections: &[ConnectionId],
    ) -> Result<Vec<(NodeName, Row)>> {
        self.call(|tables| Ok(tables.find(room, connections)))
    }

    fn held(&mut self, presences: &[(RoomName, ConnectionId)]) -> Result<Vec<(NodeName, Row)>> {
        self.call(|tables| Ok(tables.held(presences)))
    }

    fn list(&mut self, after: Option<&RoomName>, limit: usize) -> Result<Vec<RoomSummary>> {
        self.call(|tables| Ok(tables.list(after, limit)))
    }

    fn where_is(&mut self, user: &UserId) -> Result<Vec<(RoomName, usize)>> {
        self.call(|tables| Ok(tables.where_is(user)))
    }

    fn connections(&mut self, kick: &Kick) -> Result<Vec<(ConnectionId, NodeName)>> {
        self.call(|tables| Ok(tables.connections(kick)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::store_contract::{
        LEASE, SharedStoreFixture, StoreFixture, at, node, row, upserts, write,
    };

    struct Memory(MemoryDatabase, MemoryStore);

    impl StoreFixture for Memory {
        type Store = MemoryStore;

        fn new() -> Self {
            let database = MemoryDatabase::new();
            let store = database.store();
            Self(database, store)
        }

        fn store(&mut self) -> &mut MemoryStore {
            &mut self.1
        }

        fn change_manually(&mut self, change: ManualChange<'_>) {
            self.0.change_manually(change);
        }

        fn rows(&mut self) -> Vec<(NodeName, Row)> {
            self.0.rows()
        }

        fn refuse(&mut self, verb: Verb, connection: ConnectionId) {
            self.0.refuse(verb, connection);
        }
    }

    impl SharedStoreFixture for Memory {
        fn another(&mut self) -> MemoryStore {
            self.0.store()
        }
    }

    crate::store_contract!(every_store, super::Memory);
    crate::shared_store_contract!(shared_store, super::Memory);

    #[test]
    fn a_cut_link_does_nothing_and_a_mute_one_does_it_without_saying_so() {
        let database = MemoryDatabase::new();
        let mut store = database.store();
        let link = store.link();
        link.cut();
        let batch = upserts([row("a", 1, None)]);
        let _ = store.apply(&node("n"), &batch, at(0)).unwrap_err();
        assert_eq!(database.rows().len(), 0);
        link.mute();
        let _ = store.apply(&node("n"), &batch, at(0)).unwrap_err();
        assert_eq!(database.rows().len(), 1);
        link.heal();
        write(&mut store, &batch);
    }

    #[test]
    fn a_node_whose_renewal_was_not_answered_finds_its_own_row() {
        let database = MemoryDatabase::new();
        let mut store = database.store();
        let _ = store.start(&node("n"), at(0), LEASE).unwrap();
        database.change_manually(ManualChange::DeleteNodes);
        store.link().mute();
        let _ = store.renew(&node("n"), at(1), LEASE).unwrap_err();
        store.link().heal();
        let Renewal::Lapsed { incarnation } = store.renew(&node("n"), at(2), LEASE).unwrap() else {
            panic!("it has never heard of its new incarnation")
        };
        assert_eq!(store.nodes(at(2)).unwrap()[0].incarnation, incarnation);
        assert_eq!(store.renew(&node("n"), at(3), LEASE).unwrap(), Renewal::Held);
    }
}
