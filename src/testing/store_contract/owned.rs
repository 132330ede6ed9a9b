//! The duties of a store that belongs to one process. Each test panics if its store does not do one.

use chrono::TimeDelta;

use super::{Bench, Deed, LEASE, at, node, row, upserts, write, write_as};
use crate::store::{DeadNode, Renewal, Store};

/// Who starts is the only one there.
pub fn starting_removes_and_names_the_dead<B: Bench>(mut bench: B) {
    let store = bench.store();
    assert_eq!(store.start(&node("n"), at(0), LEASE).unwrap().dead, []);
    write(store, &upserts([row("a", 1, None), row("b", 1, None), row("a", 2, None)]));
    write_as("gone", store, &upserts([row("a", 3, None)]));
    bench.by_hand(Deed::AddDeadNode("idle"));
    let dead = |node: &str, presences| DeadNode { node: node.to_owned(), presences };
    // A lease of the dead one's still ran: with the same name, or in SQLite, that does not matter.
    let found = bench.store().start(&node("n"), at(1), LEASE).unwrap().dead;
    assert_eq!(found, [dead("gone", 1), dead("idle", 0), dead("n", 3)]);
    assert!(bench.rows().is_empty());
    assert_eq!(bench.store().renew(&node("n"), at(2), LEASE).unwrap(), Renewal::Held);
}

/// Others may have taken its rows away.
pub fn a_lease_lapses_when_it_is_over<B: Bench>(mut bench: B) {
    let store = bench.store();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    assert_eq!(store.renew(&node("n"), at(15), LEASE).unwrap(), Renewal::Held);
    let late = at(30) + TimeDelta::microseconds(1);
    assert!(matches!(store.renew(&node("n"), late, LEASE).unwrap(), Renewal::Lapsed { .. }));
    assert_eq!(store.renew(&node("n"), late, LEASE).unwrap(), Renewal::Held);
}
