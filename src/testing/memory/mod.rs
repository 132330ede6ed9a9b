//! A database in memory that several nodes share.

mod store;
mod tables;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};

pub use self::store::MemoryStore;
use self::tables::{NodeEntry, Tables, new_identity};
use super::store_contract::{ManualChange, Verb};
use crate::{
    bus::ClusterIdentity,
    clock::Clock,
    model::{ConnectionId, Epoch, NodeName, RoomName},
    store::{NodeLease, Row},
};

/// A database in memory, for tests of several nodes in one process. A clone is the same database.
///
/// Its clock is the time argument of each call, so that runs are reproducible, unless it is
/// [given one](Self::with_clock).
///
/// A node is started on it by [`PresenceConfig::start_shared`](crate::PresenceConfig::start_shared): the guide's
/// [several nodes in one test](crate::guide::embedding#several-nodes-in-one-test) has a whole example.
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

    /// An empty database with a clock of its own, by which it judges leases.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        let database = Self::new();
        database.with(|tables| tables.clock = Some(clock));
        database
    }

    /// The time by its clock, given that of a node.
    fn time(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        // The clock may be that of a test that looks into the database.
        let clock = self.with(|tables| tables.clock.clone());
        clock.map_or(now, |clock| clock.now().utc())
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

    /// Gives the database another identity, as where its rows were read from a dump into another database.
    pub fn replace_identity(&self) {
        self.with(|tables| tables.identity = new_identity());
    }

    /// What its nodes have in common on the bus.
    #[must_use]
    pub fn identity(&self) -> ClusterIdentity {
        self.with(|tables| tables.identity.clone())
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
                let node = NodeName::new(name).expect("a valid name");
                let entry = NodeEntry::new(Epoch::new(), DateTime::UNIX_EPOCH, Duration::ZERO);
                tables.nodes.insert(node, entry);
            }
            ManualChange::DeleteNodes => tables.nodes.clear(),
            ManualChange::LowerHeads(number) => {
                tables.nodes.values_mut().for_each(|node| node.head = number);
            }
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
pub struct MemoryLink(Arc<Mutex<LinkState>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LinkState {
    #[default]
    Whole,
    Cut,
    Mute,
}

impl MemoryLink {
    /// Makes every call fail with [`StoreError::Unavailable`](crate::store::StoreError::Unavailable) without an effect.
    pub fn cut(&self) {
        self.set(LinkState::Cut);
    }

    /// Makes every call fail after it has taken effect: the answer is lost.
    pub fn mute(&self) {
        self.set(LinkState::Mute);
    }

    /// Makes calls succeed again.
    pub fn heal(&self) {
        self.set(LinkState::Whole);
    }

    fn set(&self, state: LinkState) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    fn state(&self) -> LinkState {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Renewal, SharedStore, Store, StoreError};
    use crate::testing::store_contract::{LEASE, at, node, row, upserts, write, write_as};

    crate::store_contract!(every_store, super::MemoryStore);
    crate::shared_store_contract!(shared_store, super::MemoryStore);

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

    #[test]
    fn a_further_store_writes_nothing_after_a_failed_renewal_and_goes_on_after_a_lost_answer() {
        let database = MemoryDatabase::new();
        let mut store = database.store();
        let _ = store.start(&node("n"), at(0), LEASE).unwrap();
        write_as("n", &mut store, &upserts([row("a", 1, None)]));
        let mut next = store.opener().unwrap()();
        store.link().cut();
        let _ = next.renew(&node("n"), at(1), LEASE).unwrap_err();
        store.link().heal();
        let batch = upserts([row("a", 2, None)]);
        let early = next.apply(&node("n"), &batch, at(1)).unwrap_err();
        assert!(matches!(early, StoreError::Lapsed), "{early:?}");
        store.link().mute();
        let _ = next.renew(&node("n"), at(1), LEASE).unwrap_err();
        store.link().heal();
        let renewal = next.renew(&node("n"), at(2), LEASE).unwrap();
        assert!(matches!(renewal, Renewal::Continued { .. }), "{renewal:?}");
        assert_eq!(database.rows().len(), 1, "no row was removed");
        let _ = next.apply(&node("n"), &batch, at(2)).unwrap();
    }
}
