//! The rules of every store, and of one that belongs to a single process. Each test panics if its store
//! breaks one.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;

use super::{
    LEASE, ManualChange, StoreFixture, Verb, at, counts, id, node, room, row, seen, seen_at, start,
    upserts, write, write_as,
};
use crate::{
    model::Info,
    store::{Applied, Batch, BatchEntry, DeadNode, Renewal, Seen, Store, StoreError},
};

/// Names, info and times come back as they were, to the microsecond.
pub fn a_row_holds_what_was_written<B: StoreFixture>(mut fixture: B) {
    let mut full = row("café/\"7\" ' [1]", 1, Some("123"));
    let info = json!({"b": 1.50, "a": "\u{0}ü\"\\", "big": 1e300, "odd": 0.1 + 0.2});
    full.record.presence.info = Info::new(info).unwrap();
    full.record.presence.joined_at = at(0) + TimeDelta::microseconds(250_000);
    full.record.presence.updated_at = full.record.presence.joined_at;
    full.record.last_seen = at(1) + TimeDelta::microseconds(1);
    let rows = [full, row("null", 2, Some("null")), row("null", 3, None)];
    write(fixture.store(), &upserts(rows.clone()));
    assert_eq!(fixture.rows(), rows.map(|row| (node("n"), row)));
}

/// The second time changes nothing.
pub fn a_batch_can_be_given_twice<B: StoreFixture>(mut fixture: B) {
    write(fixture.store(), &upserts([row("a", 1, Some("ada")), row("a", 2, None)]));
    let batch = Batch {
        upserts: vec![row("a", 1, Some("bob")), row("b", 3, None)],
        deletes: vec![(room("a"), id(2)), (room("none"), id(2))],
        seen: vec![seen(1, 5), seen(9, 5)],
        ..Batch::default()
    };
    write(fixture.store(), &batch);
    let once = fixture.rows();
    assert_eq!(once.len(), 2);
    assert_eq!(once[0].1, seen_at(5, row("a", 1, Some("bob"))));
    write(fixture.store(), &batch);
    assert_eq!(fixture.rows(), once);
}

/// `last_seen` of a connection is that of every presence of it of the connection, but not those of other nodes.
pub fn being_seen_is_for_all_presences_of_this_node<B: StoreFixture>(mut fixture: B) {
    write(fixture.store(), &upserts([row("a", 1, None), row("b", 1, None), row("a", 2, None)]));
    write_as("m", fixture.store(), &upserts([row("c", 1, None)]));
    write(fixture.store(), &Batch { seen: vec![seen(1, 40)], ..Batch::default() });
    let seen: Vec<bool> =
        fixture.rows().iter().map(|(_, row)| row.record.last_seen == at(40)).collect();
    assert_eq!(seen, [true, false, true, false]);
}

/// Somebody else may have deleted rows.
pub fn a_connection_with_fewer_rows_than_it_should_have_is_named<B: StoreFixture>(mut fixture: B) {
    let rows = [row("a", 1, None), row("b", 1, None), row("a", 2, None), row("b", 3, None)];
    write(fixture.store(), &upserts(rows));
    write_as("m", fixture.store(), &upserts([row("c", 2, None)]));
    let batch = Batch {
        seen: [(1, 2), (2, 1), (3, 1), (4, 0)]
            .map(|(connection, rooms)| Seen { rooms, ..seen(connection, 5) })
            .to_vec(),
        ..Batch::default()
    };
    write(fixture.store(), &batch);
    fixture.change_manually(ManualChange::DeleteRoom("b"));
    let applied = fixture.store().apply(&node("n"), &batch, at(0)).unwrap();
    assert_eq!(applied, Applied { missing: vec![id(1), id(3)], ..Applied::default() });
    assert_eq!(fixture.rows()[0].1.record.last_seen, at(5), "those that are there are written");
}

/// Batches may be large.
pub fn more_than_one_chunk_is_written_and_deleted<B: StoreFixture>(mut fixture: B) {
    let rows = || (0..4321).map(|n| row(&format!("r{}", n % 7), n, None));
    write(fixture.store(), &upserts(rows()));
    assert_eq!(fixture.rows().len(), 4321);
    let deletes = rows().map(|row| (row.room, row.record.presence.connection)).collect();
    write(fixture.store(), &Batch { deletes, ..Batch::default() });
    assert_eq!(fixture.rows().len(), 0);
}

/// Rows are found by name.
pub fn rows_deleted_by_hand_come_back<B: StoreFixture>(mut fixture: B) {
    let batch = upserts([row("a", 1, Some("ada")), row("a", 2, None), row("b", 3, None)]);
    write(fixture.store(), &batch);
    let rows = fixture.rows();
    fixture.change_manually(ManualChange::DeletePresences);
    write(fixture.store(), &batch);
    assert_eq!(fixture.rows(), rows);
}

/// Rooms are found by name, too.
pub fn a_room_deleted_by_hand_takes_its_rows_and_comes_back<B: StoreFixture>(mut fixture: B) {
    start(fixture.store());
    let batch = upserts([row("a", 1, Some("ada")), row("b", 3, None)]);
    write(fixture.store(), &batch);
    let rows = fixture.rows();
    fixture.change_manually(ManualChange::DeleteRoom("b"));
    assert_eq!(fixture.rows(), rows[..1]);
    // A room that may get the number of the deleted one inherits nothing.
    write(fixture.store(), &upserts([row("c", 4, None)]));
    let names: Vec<_> = fixture.store().rooms(at(0)).unwrap();
    assert_eq!(names, [counts("a", 1, 1, 0), counts("c", 1, 0, 1)]);
    write(fixture.store(), &batch);
    assert_eq!(fixture.rows()[..2], rows);
}

/// A refused row does not block the others.
pub fn a_row_that_cannot_be_written_is_set_aside<B: StoreFixture>(mut fixture: B) {
    start(fixture.store());
    write(
        fixture.store(),
        &upserts([row("a", 100, None), row("a", 101, None), row("a", 102, None)]),
    );
    fixture.refuse(Verb::Insert, id(3));
    fixture.refuse(Verb::Insert, id(40));
    fixture.refuse(Verb::Delete, id(100));
    fixture.refuse(Verb::Update, id(102));
    let batch = Batch {
        upserts: (0..50).map(|n| row("a", n, None)).chain([row("only 3", 3, None)]).collect(),
        deletes: vec![(room("a"), id(100)), (room("a"), id(101))],
        seen: vec![seen(102, 1), seen(1, 1)],
        ..Batch::default()
    };
    let Applied { set_aside, .. } = fixture.store().apply(&node("n"), &batch, at(0)).unwrap();
    let changes: Vec<_> = set_aside.iter().map(|aside| aside.change.clone()).collect();
    let expected = [
        BatchEntry::Delete(room("a"), id(100)),
        BatchEntry::Upsert(room("a"), id(3)),
        BatchEntry::Upsert(room("a"), id(40)),
        BatchEntry::Upsert(room("only 3"), id(3)),
        BatchEntry::Seen(id(102)),
    ];
    assert_eq!(changes, expected);
    assert!(set_aside.iter().all(|aside| aside.reason.contains("refused")), "{set_aside:?}");
    // 48 of 50, and 100 and 102; nothing is left of the room that only had a bad row.
    assert_eq!(fixture.store().rooms(at(0)).unwrap(), [counts("a", 50, 0, 50)]);
    assert_eq!(fixture.rows()[1].1.record.last_seen, at(1));
}

/// A lease that was deleted has lapsed.
pub fn a_lease_that_is_gone_lapses<B: StoreFixture>(mut fixture: B) {
    let store = fixture.store();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    assert_eq!(store.renew(&node("n"), at(15), LEASE).unwrap(), Renewal::Held);
    fixture.change_manually(ManualChange::DeleteNodes);
    let renewal = fixture.store().renew(&node("n"), at(16), LEASE).unwrap();
    assert!(matches!(renewal, Renewal::Lapsed { .. }));
    assert_eq!(fixture.store().renew(&node("n"), at(16), LEASE).unwrap(), Renewal::Held);
}

/// Presences older than the age are pruned, if the lease of their node has expired.
pub fn pruning_spares_equal_age_and_living_owners<B: StoreFixture>(mut fixture: B) {
    let age = Duration::from_secs(60);
    let store = fixture.store();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    write(store, &upserts([row("a", 1, None), row("a", 2, None)]));
    write_as("dead", store, &upserts([row("b", 3, None)]));
    assert_eq!(store.prune_presences(at(60), age).unwrap(), 0, "equal age stays");
    let _ = store.renew(&node("n"), at(100), LEASE).unwrap();
    let past = at(60) + TimeDelta::microseconds(1);
    assert_eq!(store.prune_presences(past, age).unwrap(), 1, "the living owner's stay");
    assert_eq!(store.prune_presences(at(115), age).unwrap(), 0, "the lease runs to its end");
    write(store, &Batch { seen: vec![seen(2, 60)], ..Batch::default() });
    assert_eq!(store.prune_presences(at(116), age).unwrap(), 1, "the lease is over");
    assert_eq!(store.prune_presences(at(116), Duration::MAX).unwrap(), 0);
    assert_eq!(fixture.rows().len(), 1);
}

/// Rooms with presences stay.
pub fn pruning_rooms_removes_the_empty_ones<B: StoreFixture>(mut fixture: B) {
    start(fixture.store());
    write(fixture.store(), &upserts([row("a", 1, None), row("b", 2, None), row("c", 3, None)]));
    let deletes = vec![(room("a"), id(1)), (room("c"), id(3))];
    write(fixture.store(), &Batch { deletes, ..Batch::default() });
    assert_eq!(fixture.store().rooms(at(0)).unwrap().len(), 3);
    assert_eq!(fixture.store().prune_rooms().unwrap(), 2);
    assert_eq!(fixture.store().prune_rooms().unwrap(), 0);
    assert_eq!(fixture.store().rooms(at(0)).unwrap(), [counts("b", 1, 0, 1)]);
}

/// Users are counted once, anonymous connections each.
pub fn rooms_count_users_once_and_the_anonymous_each<B: StoreFixture>(mut fixture: B) {
    assert_eq!(fixture.store().rooms(at(0)).unwrap(), []);
    start(fixture.store());
    write(
        fixture.store(),
        &upserts([
            row("b", 1, Some("ada")),
            row("b", 2, Some("ada")),
            row("b", 3, Some("bob")),
            row("b", 4, None),
            row("b", 5, None),
            row("a", 1, Some("ada")),
        ]),
    );
    fixture.change_manually(ManualChange::AddRoom("c"));
    let expected = [counts("a", 1, 1, 0), counts("b", 5, 2, 2), counts("c", 0, 0, 0)];
    assert_eq!(fixture.store().rooms(at(0)).unwrap(), expected);
}

/// What a node without a running lease has left does not count, and its rooms are listed.
pub fn rooms_count_the_presences_of_live_nodes<B: StoreFixture>(mut fixture: B) {
    let store = fixture.store();
    start(store);
    write(store, &upserts([row("a", 1, Some("ada")), row("b", 2, None)]));
    write_as("unknown", store, &upserts([row("a", 3, Some("bob")), row("c", 4, None)]));
    let alive = [counts("a", 1, 1, 0), counts("b", 1, 0, 1), counts("c", 0, 0, 0)];
    assert_eq!(store.rooms(at(15)).unwrap(), alive, "the lease runs to its end");
    let late = at(15) + TimeDelta::microseconds(1);
    let dead = ["a", "b", "c"].map(|room| counts(room, 0, 0, 0));
    assert_eq!(store.rooms(late).unwrap(), dead);
    let _ = store.renew(&node("n"), late, LEASE).unwrap();
    assert_eq!(store.rooms(late).unwrap(), alive);
}

/// Presences of other nodes stay.
pub fn stopping_removes_the_presences_of_the_node<B: StoreFixture>(mut fixture: B) {
    let store = fixture.store();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    write(store, &upserts([row("a", 1, None), row("b", 2, None)]));
    write_as("m", store, &upserts([row("b", 3, None)]));
    assert_eq!(store.stop(&node("n")).unwrap(), 2);
    assert_eq!(store.stop(&node("n")).unwrap(), 0);
    assert!(matches!(store.renew(&node("n"), at(0), LEASE).unwrap(), Renewal::Lapsed { .. }));
    assert_eq!(fixture.rows().len(), 1);
}

/// A failure has its kind, and ends with its reason.
pub fn a_store_answers_after_a_failed_call<B: StoreFixture>(mut fixture: B) {
    fixture.change_manually(ManualChange::HideNodes);
    let failed = fixture.store().renew(&node("n"), at(0), LEASE).unwrap_err();
    assert!(matches!(failed, StoreError::Schema { .. }), "{failed:?}");
    fixture.change_manually(ManualChange::ShowNodes);
    assert!(matches!(
        fixture.store().renew(&node("n"), at(0), LEASE).unwrap(),
        Renewal::Lapsed { .. }
    ));
}

/// The node that starts is the only one.
pub fn starting_removes_and_names_the_dead<B: StoreFixture>(mut fixture: B) {
    let store = fixture.store();
    assert_eq!(store.start(&node("n"), at(0), LEASE).unwrap().dead, []);
    write(store, &upserts([row("a", 1, None), row("b", 1, None), row("a", 2, None)]));
    write_as("gone", store, &upserts([row("a", 3, None)]));
    fixture.change_manually(ManualChange::AddDeadNode("idle"));
    let dead = |node: &str, presences| DeadNode { node: node.to_owned(), presences };
    // A lease of the dead one's still ran: with the same name, or in SQLite, that does not matter.
    let found = fixture.store().start(&node("n"), at(1), LEASE).unwrap().dead;
    assert_eq!(found, [dead("gone", 1), dead("idle", 0), dead("n", 3)]);
    assert!(fixture.rows().is_empty());
    assert_eq!(fixture.store().renew(&node("n"), at(2), LEASE).unwrap(), Renewal::Held);
}

/// Others may have removed its rows.
pub fn a_lease_lapses_when_it_is_over<B: StoreFixture>(mut fixture: B) {
    let store = fixture.store();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    assert_eq!(store.renew(&node("n"), at(15), LEASE).unwrap(), Renewal::Held);
    let late = at(30) + TimeDelta::microseconds(1);
    assert!(matches!(store.renew(&node("n"), late, LEASE).unwrap(), Renewal::Lapsed { .. }));
    assert_eq!(store.renew(&node("n"), late, LEASE).unwrap(), Renewal::Held);
}
