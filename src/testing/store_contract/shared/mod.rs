//! The rules for a store that several nodes share: leases, and the presences of dead nodes. Each test panics
//! if its store breaks one.

mod rows;

use std::{sync::Barrier, thread, time::Duration};

use super::{
    LEASE, ManualChange, SharedStoreFixture, at, id, node, room, row, seen_at, upserts, write,
    write_as,
};
use crate::{
    model::{ConnectionId, Epoch, NodeName, PresenceRecord},
    store::{
        Applied, Batch, NodeRow, Reaped, Renewal, Row, SharedStore, Started, Store, StoreError,
    },
};

pub use self::rows::*;

/// A time at which the lease of a node has expired that started at 0 and did nothing since.
const LATE: i64 = 16;

fn started(store: &mut impl Store, name: &str) -> Started {
    store.start(&node(name), at(0), LEASE).unwrap()
}

fn number(number: u64, rows: impl IntoIterator<Item = Row>) -> Batch {
    Batch { number, ..upserts(rows) }
}

fn fading(row: Row) -> Row {
    Row { record: PresenceRecord { fading: Some(at(10)), ..row.record }, ..row }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| key(a).cmp(&key(b)));
    rows
}

fn sorted_with_nodes(mut rows: Vec<(NodeName, Row)>) -> Vec<(NodeName, Row)> {
    rows.sort_by(|(_, a), (_, b)| key(a).cmp(&key(b)));
    rows
}

fn key(row: &Row) -> (&str, ConnectionId) {
    (row.room.as_str(), row.record.presence.connection)
}

/// A node has no incarnation but the one its row says.
fn node_row(store: &mut impl SharedStore, name: &str) -> Option<NodeRow> {
    store.nodes(at(0)).unwrap().into_iter().find(|row| row.node == node(name))
}

/// Nodes correct their clocks by it; the stores of the contract go by the time that they are given.
pub fn the_time_is_that_by_which_leases_are_judged<B: SharedStoreFixture>(mut fixture: B) {
    let store = fixture.store();
    let _ = started(store, "n");
    for (now, expired) in [(LATE - 1, false), (LATE, true)] {
        let time = store.time(at(now)).unwrap();
        assert_eq!(time > at(0) + LEASE, expired);
        assert_eq!(store.nodes(time).unwrap()[0].expired, expired);
        assert_eq!(time, at(now));
    }
}

/// Others have removed what it had written, so it must not go on as if they had not.
pub fn a_node_whose_row_is_gone_writes_nothing_until_it_has_renewed<B: SharedStoreFixture>(
    mut fixture: B,
) {
    let Started { incarnation, .. } = started(fixture.store(), "n");
    fixture.change_manually(ManualChange::DeleteNodes);
    let batch = number(1, [row("a", 1, None)]);
    for _ in 0..2 {
        let lapsed = fixture.store().apply(&node("n"), &batch, at(1)).unwrap_err();
        assert!(matches!(lapsed, StoreError::Lapsed), "{lapsed:?}");
    }
    assert_eq!(fixture.rows(), []);
    assert_eq!(fixture.store().rooms(at(0)).unwrap(), [], "not even a room");
    let renewal = fixture.store().renew(&node("n"), at(2), LEASE).unwrap();
    let Renewal::Lapsed { incarnation: next } = renewal else { panic!("{renewal:?}") };
    assert_ne!(next, incarnation);
    let found = node_row(fixture.store(), "n").unwrap();
    assert_eq!((found.incarnation, found.head, found.leaving), (next, 0, false));
    write(fixture.store(), &batch);
    assert_eq!(node_row(fixture.store(), "n").unwrap().head, 1);
    assert_eq!(fixture.rows().len(), 1);
    assert_eq!(fixture.store().renew(&node("n"), at(3), LEASE).unwrap(), Renewal::Held);
}

/// A node without a row has no presences, so those it wrote in its next life are all it has.
pub fn what_a_node_without_a_row_had_left_is_gone_when_it_renews<B: SharedStoreFixture>(
    mut fixture: B,
) {
    let _ = started(fixture.store(), "n");
    write(fixture.store(), &upserts([row("a", 1, None)]));
    write_as("m", &mut fixture.another(), &upserts([row("a", 2, None)]));
    fixture.change_manually(ManualChange::DeleteNodes);
    let renewal = fixture.store().renew(&node("n"), at(2), LEASE).unwrap();
    assert!(matches!(renewal, Renewal::Lapsed { .. }));
    assert_eq!(fixture.rows(), [(node("m"), row("a", 2, None))]);
}

/// A database that was away must not make everybody write everything.
pub fn an_expired_lease_is_held_again_unless_the_node_was_reaped<B: SharedStoreFixture>(
    mut fixture: B,
) {
    let _ = started(fixture.store(), "n");
    assert_eq!(fixture.store().renew(&node("n"), at(100), LEASE).unwrap(), Renewal::Held);
    assert!(!fixture.store().nodes(at(115)).unwrap()[0].expired);
    let batch = number(1, [row("a", 1, None)]);
    assert_eq!(
        fixture.store().apply(&node("n"), &batch, at(200)).unwrap(),
        Applied::default(),
        "a batch does so too"
    );
    assert!(!fixture.store().nodes(at(215)).unwrap()[0].expired);
}

/// Two processes of one name would undo each other's work.
pub fn a_name_that_another_process_has_taken_is_reported<B: SharedStoreFixture>(mut fixture: B) {
    let mut second = fixture.another();
    let first = fixture.store();
    let _ = started(first, "n");
    write(first, &number(1, [row("a", 1, None)]));
    let taken = started(&mut second, "n");
    let lapsed = first.apply(&node("n"), &number(2, [row("a", 2, None)]), at(1)).unwrap_err();
    assert!(matches!(lapsed, StoreError::Lapsed), "{lapsed:?}");
    let refused = first.renew(&node("n"), at(1), LEASE).unwrap_err();
    assert!(matches!(refused, StoreError::NameTaken), "{refused:?}");
    assert_eq!(first.stop(&node("n")).unwrap(), 0, "nothing is its own");
    assert_eq!(first.hand_over(&node("n"), at(1), LEASE).unwrap(), 0);
    let found = node_row(first, "n").unwrap();
    assert_eq!((found.incarnation, found.leaving), (taken.incarnation, false));
    assert_eq!(second.stop(&node("n")).unwrap(), 1);
    let renewal = first.renew(&node("n"), at(2), LEASE).unwrap();
    assert!(matches!(renewal, Renewal::Lapsed { .. }), "the name is free again");
}

/// In a database put back to a backup a node may have the row of an earlier process of its name.
pub fn a_name_whose_lease_is_over_is_taken_with_nothing_of_its_rows<B: SharedStoreFixture>(
    mut fixture: B,
) {
    let mut earlier = fixture.another();
    let _ = started(&mut earlier, "n");
    write(&mut earlier, &number(7, [row("a", 1, None)]));
    let store = fixture.store();
    let refused = store.renew(&node("n"), at(15), LEASE).unwrap_err();
    assert!(matches!(refused, StoreError::NameTaken), "{refused:?}");
    let renewal = store.renew(&node("n"), at(LATE), LEASE).unwrap();
    let Renewal::Lapsed { incarnation } = renewal else { panic!("{renewal:?}") };
    let found = node_row(store, "n").unwrap();
    assert_eq!((found.incarnation, found.head, found.leaving), (incarnation, 0, false));
    let refused = earlier.apply(&node("n"), &number(8, []), at(LATE)).unwrap_err();
    assert!(matches!(refused, StoreError::Lapsed), "{refused:?}");
    assert_eq!(fixture.rows(), []);
}

/// A call of the first store hangs: it was given up, and may still be carried out.
pub fn a_further_store_of_the_process_goes_on_without_an_end<B: SharedStoreFixture>(
    mut fixture: B,
) {
    let Some(open) = fixture.store().opener() else { return };
    let [mut second, mut third] = [open(), open()];
    let before = started(fixture.store(), "n").incarnation;
    write(fixture.store(), &number(4, [row("a", 1, None), row("b", 2, None)]));
    let n = node("n");
    let early = second.apply(&n, &number(5, [row("a", 3, None)]), at(1)).unwrap_err();
    assert!(matches!(early, StoreError::Lapsed), "it renews the lease first: {early:?}");
    let renewal = second.renew(&n, at(1), LEASE).unwrap();
    let Renewal::Continued { incarnation } = renewal else { panic!("{renewal:?}") };
    assert_ne!(incarnation, before);
    let found = node_row(fixture.store(), "n").unwrap();
    assert_eq!((found.incarnation, found.head, found.leaving), (incarnation, 4, false));
    assert_eq!(fixture.rows().len(), 2, "no row is removed");
    let late = fixture.store().apply(&n, &number(5, [row("a", 9, None)]), at(2)).unwrap_err();
    assert!(matches!(late, StoreError::Lapsed), "{late:?}");
    let applied = second.apply(&n, &number(6, [row("a", 3, None)]), at(2)).unwrap();
    assert_eq!(applied, Applied::default());
    assert_eq!(second.renew(&n, at(3), LEASE).unwrap(), Renewal::Held);
    assert!(matches!(third.renew(&n, at(3), LEASE).unwrap(), Renewal::Continued { .. }));
    assert_eq!(third.stop(&n).unwrap(), 3, "what another store of the process wrote is its own");
}

/// Rows that were committed are gone, and others are back.
pub fn an_earlier_state_of_the_database_is_noticed<B: SharedStoreFixture>(mut fixture: B) {
    let before = started(fixture.store(), "n").incarnation;
    write(fixture.store(), &number(1, [row("a", 1, None)]));
    write(fixture.store(), &number(5, [row("a", 2, None)]));
    fixture.change_manually(ManualChange::LowerHeads(1));
    let batch = number(6, [row("a", 3, None)]);
    let lapsed = fixture.store().apply(&node("n"), &batch, at(1)).unwrap_err();
    assert!(matches!(lapsed, StoreError::Lapsed), "{lapsed:?}");
    let renewal = fixture.store().renew(&node("n"), at(1), LEASE).unwrap();
    let Renewal::Continued { incarnation } = renewal else { panic!("{renewal:?}") };
    assert_ne!(incarnation, before);
    write(fixture.store(), &batch);
    let mut places = fixture.store().places(&node("n")).unwrap();
    places.sort();
    assert_eq!(places, [1, 2, 3].map(|n| (room("a"), id(n))));
}

/// A process that is back before its lease is over goes on with what it had.
pub fn a_start_inherits_what_an_earlier_life_left<B: SharedStoreFixture>(mut fixture: B) {
    let before = started(fixture.store(), "n");
    assert_eq!((before.dead, before.inherited, before.stopped), (vec![], vec![], false));
    let left = [fading(row("a", 1, Some("ada"))), row("b", 1, Some("ada"))];
    write(fixture.store(), &number(5, left.clone()));
    let mut other = fixture.another();
    let _ = started(&mut other, "m");
    write_as("m", &mut other, &upserts([row("a", 3, None)]));
    let _ = other.hand_over(&node("n"), at(0), LEASE).unwrap();
    write(fixture.store(), &number(6, left.clone()));

    let mut again = fixture.another();
    let after = again.start(&node("n"), at(1), LEASE).unwrap();
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!((after.dead, after.stopped), (vec![], true), "it had handed over");
    assert!(!again.start(&node("n"), at(1), LEASE).unwrap().stopped, "this one had not");
    let after = again.start(&node("n"), at(1), LEASE).unwrap();
    assert_eq!(sorted(after.inherited), left);
    assert_eq!(fixture.rows().len(), 3, "they stay, and so do those of others");
    let found = node_row(&mut again, "n").unwrap();
    let is = (found.incarnation, found.head, found.leaving, found.expired);
    assert_eq!(is, (after.incarnation, 0, false, false));
}

/// Not before, not twice, and not if it is another life.
pub fn a_node_is_reaped_once_its_lease_has_expired<B: SharedStoreFixture>(mut fixture: B) {
    let mut dying = fixture.another();
    let Started { incarnation, .. } = started(&mut dying, "n");
    let left = [row("a", 1, Some("ada")), fading(row("b", 1, Some("ada"))), row("b", 2, None)];
    write(&mut dying, &number(1, left.clone()));
    let store = fixture.store();
    let _ = started(store, "m");
    write_as("m", store, &number(1, [row("a", 3, None)]));

    let n = node("n");
    assert_eq!(store.reap(&n, incarnation, at(15)).unwrap(), Reaped::Alive, "equal stays");
    assert_eq!(store.reap(&n, Epoch::new(), at(LATE)).unwrap(), Reaped::Alive, "another life");
    assert_eq!(store.reap(&node("none"), incarnation, at(LATE)).unwrap(), Reaped::Gone);
    match store.reap(&n, incarnation, at(LATE)).unwrap() {
        Reaped::Removed { rows, leaving: false } => assert_eq!(sorted(rows), left),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.reap(&n, incarnation, at(LATE)).unwrap(), Reaped::Gone);
    assert_eq!(node_row(store, "n"), None);
    assert_eq!(fixture.rows(), [(node("m"), row("a", 3, None))]);
    let lapsed = dying.apply(&n, &number(2, [row("a", 1, None)]), at(LATE)).unwrap_err();
    assert!(matches!(lapsed, StoreError::Lapsed), "{lapsed:?}");
}

/// All nodes see at the same time that one is dead.
pub fn of_two_that_reap_at_once_one_does<B: SharedStoreFixture>(mut fixture: B) {
    for round in 0..20 {
        let mut dead = fixture.another();
        let Started { incarnation, .. } = started(&mut dead, "n");
        write(&mut dead, &upserts((0..50).map(|n| row("a", n, None))));
        let barrier = Barrier::new(2);
        let results = thread::scope(|scope| {
            let reapers = [fixture.another(), fixture.another()].map(|mut store| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    store.reap(&node("n"), incarnation, at(LATE)).unwrap()
                })
            });
            reapers.map(|reaper| reaper.join().unwrap())
        });
        let reaped =
            |result: &&Reaped| matches!(result, Reaped::Removed { rows, .. } if rows.len() == 50);
        let idle = |result: &&Reaped| matches!(result, Reaped::Gone | Reaped::Alive);
        assert_eq!(results.iter().filter(reaped).count(), 1, "round {round}: {results:?}");
        assert_eq!(results.iter().filter(idle).count(), 1, "round {round}: {results:?}");
    }
}

/// A node that was only slow either keeps all, or knows that it has lost all.
pub fn a_node_is_reaped_or_goes_on_but_not_both<B: SharedStoreFixture>(mut fixture: B) {
    for round in 0..20 {
        let mut slow = fixture.another();
        let Started { incarnation, .. } = started(&mut slow, "n");
        write(&mut slow, &number(1, (0..50).map(|n| row("a", n, None))));
        let mut reaper = fixture.another();
        let barrier = Barrier::new(2);
        let (result, wrote) = thread::scope(|scope| {
            let reaping = scope.spawn(|| {
                barrier.wait();
                reaper.reap(&node("n"), incarnation, at(LATE)).unwrap()
            });
            barrier.wait();
            let wrote = match round % 2 {
                0 => slow.apply(&node("n"), &number(2, [row("b", 1, None)]), at(LATE)).map(drop),
                _ => match slow.renew(&node("n"), at(LATE), LEASE).unwrap() {
                    Renewal::Held => Ok(()),
                    Renewal::Continued { .. } | Renewal::Lapsed { .. } => Err(StoreError::Lapsed),
                },
            };
            (reaping.join().unwrap(), wrote)
        });
        let rows = fixture.rows().len();
        match (&result, wrote) {
            (Reaped::Alive, Ok(())) => assert!(rows >= 50, "round {round}"),
            (Reaped::Removed { .. }, Err(StoreError::Lapsed)) => assert_eq!(rows, 0),
            (_, wrote) => panic!("round {round}: {result:?}, {wrote:?}"),
        }
        let _ = slow.stop(&node("n")).unwrap();
        fixture.change_manually(ManualChange::DeletePresences);
    }
}

/// Their clients are on their way to another node; if they do not arrive, somebody says so.
pub fn a_node_that_hands_over_leaves_what_fades<B: SharedStoreFixture>(mut fixture: B) {
    let mut leaving = fixture.another();
    let Started { incarnation, .. } = started(&mut leaving, "n");
    let left = fading(row("a", 1, Some("ada")));
    write(&mut leaving, &number(1, [left.clone(), row("a", 2, None), row("b", 3, None)]));
    let store = fixture.store();
    write_as("m", store, &upserts([row("a", 9, None)]));
    let grace = Duration::from_secs(5);
    assert_eq!(leaving.hand_over(&node("n"), at(20), grace).unwrap(), 2);
    assert_eq!(leaving.hand_over(&node("n"), at(20), grace).unwrap(), 0, "twice is once");
    let found = store.nodes(at(25)).unwrap().remove(0);
    assert_eq!((found.head, found.expired, found.leaving), (1, false, true));
    assert_eq!(store.reap(&node("n"), incarnation, at(25)).unwrap(), Reaped::Alive);
    let expected = Reaped::Removed { rows: vec![left], leaving: true };
    assert_eq!(store.reap(&node("n"), incarnation, at(26)).unwrap(), expected);
    assert_eq!(fixture.rows().len(), 1);
}

/// Otherwise it would go on, and its rows would not come back.
pub fn a_node_whose_presences_are_pruned_notices<B: SharedStoreFixture>(mut fixture: B) {
    let age = Duration::from_secs(60);
    let mut other = fixture.another();
    let _ = started(&mut other, "m");
    let store = fixture.store();
    let _ = started(store, "n");
    write(store, &number(1, [row("a", 1, None)]));
    let fresh = seen_at(100, row("a", 2, None));
    write_as("m", &mut other, &number(1, [fresh.clone()]));
    assert_eq!(store.prune_presences(at(100), age).unwrap(), 1);
    assert_eq!(fixture.rows(), [(node("m"), fresh)]);
    let lapsed = fixture.store().apply(&node("n"), &number(2, []), at(100)).unwrap_err();
    assert!(matches!(lapsed, StoreError::Lapsed), "{lapsed:?}");
    assert_eq!(other.renew(&node("m"), at(100), LEASE).unwrap(), Renewal::Held, "it lost nothing");
}

/// Whoever has the identity can speak on the bus for every node of the database.
pub fn all_stores_of_a_database_have_one_identity<B: SharedStoreFixture>(mut fixture: B) {
    let first = fixture.store().identity().unwrap();
    assert_eq!(fixture.store().identity().unwrap(), first, "it stays");
    let mut another = fixture.another();
    let _ = another.start(&node("n"), at(0), LEASE).unwrap();
    assert_eq!(another.identity().unwrap(), first);
    assert_eq!(another.stop(&node("n")).unwrap(), 0);
    assert_eq!(fixture.store().identity().unwrap(), first, "it is of no node");
}

/// Nodes that start together on a new database hear each other.
pub fn of_those_that_make_an_identity_at_once_all_have_the_same<B: SharedStoreFixture>(
    mut fixture: B,
) where
    B::Store: Send,
{
    const STORES: usize = 4;
    let barrier = Barrier::new(STORES);
    let stores: Vec<_> = (0..STORES).map(|_| fixture.another()).collect();
    let identities: Vec<_> = thread::scope(|scope| {
        let make = |mut store: B::Store| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                store.identity().unwrap()
            })
        };
        let threads: Vec<_> = stores.into_iter().map(make).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(identities.iter().all(|one| *one == identities[0]), "{identities:?}");
}

/// Two systems on one bus are two.
pub fn two_databases_have_two_identities<B: SharedStoreFixture>(mut fixture: B) {
    let (mut other, one) = (B::new(), fixture.store().identity().unwrap());
    let other = other.store().identity().unwrap();
    assert_ne!(one, other);
    assert_ne!(one.channel(), other.channel());
}
