//! A node in the process of the test, and an observer of everything on it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use actix::prelude::*;
use actix_presence::{
    Cause, Change, ConnectionId, Presence, PresenceChanged, PresenceConfig, PresenceHandle,
    RoomFilter, RoomName, Scope, Subscribe,
};
use serde_json::Value;

/// What the observer has been told.
#[derive(Debug, Default)]
pub struct Ledger {
    rooms: HashMap<RoomName, (u64, HashMap<ConnectionId, Presence>)>,
    /// Every leave: the number of the client, and why.
    pub leaves: Vec<(usize, Cause)>,
    pub events: usize,
    pub faults: Vec<String>,
}

impl Ledger {
    fn take(&mut self, event: &PresenceChanged) {
        self.events += 1;
        let PresenceChanged { room, version, snapshot, change, .. } = event;
        let Change::Diff(diff) = change else {
            return self.faults.push(format!("{room}: changes were conflated"));
        };
        let (last, here) = self.rooms.entry(room.clone()).or_default();
        if !here.is_empty() && *version != *last + 1 {
            self.faults.push(format!("{room}: version {version} after {last}"));
        }
        *last = *version;
        for left in &diff.leaves {
            let presence = &left.presence;
            if here.remove(&presence.connection).is_none() {
                self.faults.push(format!("{room}: left and was not there: {left:?}"));
            }
            self.leaves.push((number(presence), left.cause));
        }
        for joined in &diff.joins {
            if here.insert(joined.connection, joined.clone()).is_some() {
                self.faults.push(format!("{room}: joined and was there: {joined:?}"));
            }
        }
        for update in &diff.updates {
            if here.insert(update.after.connection, update.after.clone()).is_none() {
                self.faults.push(format!("{room}: updated and was not there: {update:?}"));
            }
        }
        if snapshot.version() != *version {
            self.faults.push(format!("{room}: {version}, snapshot {}", snapshot.version()));
        }
        let members = snapshot.presences().count();
        let known = |one: &Presence| here.get(&one.connection) == Some(one);
        if members != here.len() || !snapshot.presences().all(|one| known(&one)) {
            self.faults.push(format!("{room}: {members} in the snapshot, {} told", here.len()));
        }
        if here.is_empty() {
            self.rooms.remove(room);
        }
    }

    /// Everybody who is there as far as was told: room, connection.
    pub fn members(&self) -> Vec<(String, String)> {
        let mut members: Vec<_> = self
            .rooms
            .iter()
            .flat_map(|(room, (_, here))| {
                here.keys().map(|one| (room.to_string(), one.to_string()))
            })
            .collect();
        members.sort_unstable();
        members
    }
}

/// Which client it is, as it says.
fn number(presence: &Presence) -> usize {
    let info: Value = serde_json::from_str(presence.info.as_json()).unwrap();
    usize::try_from(info["n"].as_u64().unwrap()).unwrap()
}

struct Listener(Arc<Mutex<Ledger>>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Listener {
    type Result = ();

    fn handle(&mut self, event: PresenceChanged, _: &mut Context<Self>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(&event);
    }
}

pub struct Observer {
    pub presence: PresenceHandle,
    ledger: Arc<Mutex<Ledger>>,
    arbiter: Arbiter,
}

impl Observer {
    /// Joins the cluster as a node that nobody is connected to.
    pub async fn start(database: &str, redis: &str, lease: Duration) -> Self {
        let config = PresenceConfig::new(database).redis(redis).node("observer").lease(lease);
        // Conflated events could not be checked.
        let presence = config.observer_queue(1_000_000).start().unwrap();
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let arbiter = Arbiter::new();
        let listener = Listener(ledger.clone());
        let listener = Listener::start_in_arbiter(&arbiter.handle(), |_| listener);
        let everything = Subscribe::new(RoomFilter::Any, listener.recipient());
        presence.registry().send(everything.scope(Scope::Cluster)).await.unwrap();
        Self { presence, ledger, arbiter }
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn stop(self) {
        self.presence.shutdown(Duration::from_secs(30)).await.unwrap();
        self.arbiter.stop();
    }
}
