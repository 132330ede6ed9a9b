//! The rules for a store that several nodes share: what each reads and writes.

use std::{sync::Barrier, thread};

use chrono::TimeDelta;
use serde_json::json;

use super::{
    super::{
        LEASE, ManualChange, SharedStoreFixture, at, id, node, room, row, seen, upserts, write,
        write_as,
    },
    LATE, node_row, number, sorted_with_nodes, started,
};
use crate::{
    messages::Kick,
    model::{Info, Occupancy, PresenceRecord, RoomSummary, SessionKey, UserId},
    store::{Batch, NodeRow, RoomRows, Row, SharedStore, Started, Store},
};

/// Who reads a head of 7 has the rows of batch 7, and none of batch 8.
pub fn the_head_and_the_rows_are_of_one_moment<B: SharedStoreFixture>(mut fixture: B) {
    const BATCHES: u64 = 200;
    let mut writer = fixture.another();
    let _ = started(&mut writer, "n");
    let (a, b) = (room("a"), room("b"));
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            for batch in 1..=BATCHES {
                let numbered = |name| {
                    let mut row = row(name, 1, None);
                    row.record.presence.info = Info::new(json!({"batch": batch})).unwrap();
                    row
                };
                let rows = [numbered("a"), numbered("b")];
                write_as("n", &mut writer, &number(batch, rows));
            }
        });
        let store = fixture.store();
        let mut heads = Vec::new();
        while !writing.is_finished() {
            let RoomRows { nodes, rows } = store.read(&[a.clone(), b.clone()], at(0)).unwrap();
            heads.push(nodes[0].head);
            assert_eq!(rows.len(), if nodes[0].head == 0 { 0 } else { 2 });
            for (_, row) in rows {
                assert_eq!(row.record.presence.info.to_value()["batch"], nodes[0].head);
            }
        }
        assert!(heads.is_sorted());
    });
    assert_eq!(node_row(fixture.store(), "n").unwrap().head, BATCHES);
}

/// Also of rooms with names that mean something to SQL or sort oddly.
pub fn what_is_read_is_of_the_rooms_asked_for_and_of_nodes_that_have_a_row<
    B: SharedStoreFixture,
>(
    mut fixture: B,
) {
    let odd = ["'; --", "{a,b}", "NULL", "\\", "\"", "%_", "é", "e\u{301}", "😀", " "];
    let _ = started(fixture.store(), "n");
    write(fixture.store(), &upserts(odd.iter().zip(1..).map(|(name, n)| row(name, n, Some(name)))));
    let mut other = fixture.another();
    write_as("m", &mut other, &upserts([row("é", 99, None), row("other", 98, None)]));
    let store = fixture.store();
    for (name, n) in odd.iter().zip(1..) {
        let RoomRows { nodes, rows } = store.read(&[room(name)], at(0)).unwrap();
        assert_eq!(rows, [(node("n"), row(name, n, Some(name)))], "m has no row");
        assert_eq!(nodes.len(), 1);
    }
    let _ = other.renew(&node("x"), at(0), LEASE).unwrap();
    let found = store.read(&[room("é"), room("none"), room(" "), room("é")], at(0)).unwrap();
    let rows = sorted_with_nodes(found.rows);
    let expected = [(" ", 10), ("é", 7)];
    assert_eq!(rows, expected.map(|(name, n)| (node("n"), row(name, n, Some(name)))));
    let nodes: Vec<_> = found.nodes.iter().map(|row| row.node.clone()).collect();
    assert_eq!(nodes, [node("n"), node("x")], "all, by name");
    assert_eq!(store.read(&[], at(0)).unwrap().rows, []);
}

/// Those asked for, if they are there.
pub fn connections_are_found_in_their_rooms<B: SharedStoreFixture>(mut fixture: B) {
    let mut other = fixture.another();
    let _ = started(&mut other, "m");
    let store = fixture.store();
    let _ = started(store, "n");
    write(store, &upserts([row("a", 1, Some("ada")), row("a", 2, None), row("b", 3, None)]));
    write_as("m", &mut other, &upserts([row("a", 4, None)]));
    write_as("none", &mut other, &upserts([row("a", 5, None)]));
    let asked = [1, 3, 4, 4, 5, 6].map(id);
    let found = sorted_with_nodes(store.find(&room("a"), &asked).unwrap());
    let expected = [(node("n"), row("a", 1, Some("ada"))), (node("m"), row("a", 4, None))];
    assert_eq!(found, expected);
    assert_eq!(store.find(&room("a"), &[]).unwrap(), []);
    assert_eq!(store.find(&room("none"), &[id(1)]).unwrap(), []);
}

/// Each once, whatever other rooms their connections are in.
pub fn presences_are_found_by_room_and_connection<B: SharedStoreFixture>(mut fixture: B) {
    let mut other = fixture.another();
    let _ = started(&mut other, "m");
    let store = fixture.store();
    let _ = started(store, "n");
    write(store, &upserts([row("a", 1, Some("ada")), row("b", 1, None), row("c", 1, None)]));
    write(store, &upserts([row("a", 2, None), row("b", 3, None)]));
    write_as("m", &mut other, &upserts([row("a", 4, None)]));
    write_as("none", &mut other, &upserts([row("a", 5, None)]));
    let asked = [("a", 1), ("a", 3), ("a", 4), ("a", 4), ("a", 5), ("b", 1), ("d", 1)];
    let found = store.held(&asked.map(|(name, one)| (room(name), id(one)))).unwrap();
    let expected = [
        (node("n"), row("a", 1, Some("ada"))),
        (node("m"), row("a", 4, None)),
        (node("n"), row("b", 1, None)),
    ];
    assert_eq!(sorted_with_nodes(found), expected);
    assert_eq!(store.held(&[]).unwrap(), []);
}

/// A page ends where the next begins, in the order that every node sorts by.
pub fn rooms_are_listed_by_their_bytes_a_page_at_a_time<B: SharedStoreFixture>(mut fixture: B) {
    let mut names = ["b", "B", "a b", "a", "Z", "é", "z", "_", "~", "ab", "a-b", "😀", "\u{ffff}"];
    let store = fixture.store();
    let _ = started(store, "n");
    write(store, &upserts(names.map(|name| row(name, 1, Some("ada")))));
    write(store, &upserts([row("a", 2, Some("ada")), row("a", 3, Some("bob")), row("a", 4, None)]));
    write_as("none", &mut fixture.another(), &upserts([row("a", 5, None), row("nobody", 6, None)]));
    fixture.change_manually(ManualChange::AddRoom("c"));
    names.sort_unstable();
    let store = fixture.store();
    let (mut after, mut listed) = (None, Vec::<RoomSummary>::new());
    loop {
        let page = store.list(after.as_ref(), 4).unwrap();
        assert!(page.len() <= 4);
        let Some(last) = page.last() else { break };
        after = Some(last.room.clone());
        listed.extend(page);
    }
    let found: Vec<_> = listed.iter().map(|summary| summary.room.as_str()).collect();
    assert_eq!(found, names);
    for summary in listed {
        let (connections, users, anonymous) =
            if summary.room == "a" { (4, 2, 1) } else { (1, 1, 0) };
        assert_eq!(summary.occupancy, Occupancy { connections, users, anonymous });
        assert_eq!(summary.version, 0);
    }
    assert_eq!(store.list(None, 0).unwrap(), []);
    assert_eq!(store.list(None, usize::MAX).unwrap().len(), names.len());
}

/// Wherever those connections are held.
pub fn a_user_is_where_their_connections_are<B: SharedStoreFixture>(mut fixture: B) {
    let mut other = fixture.another();
    let _ = started(&mut other, "m");
    let store = fixture.store();
    let _ = started(store, "n");
    let ada = Some("ada");
    write(store, &upserts([row("b", 1, ada), row("B", 1, ada), row("b", 2, Some("bob"))]));
    write_as("m", &mut other, &upserts([row("b", 3, ada), row("b", 4, None)]));
    write_as("none", &mut other, &upserts([row("c", 5, ada)]));
    let user = |name| UserId::new(name).unwrap();
    assert_eq!(store.where_is(&user("ada")).unwrap(), [(room("B"), 1), (room("b"), 2)]);
    assert_eq!(store.where_is(&user("eve")).unwrap(), []);
}

/// So that each of them can be told to go.
pub fn connections_are_each_named_once_with_their_node<B: SharedStoreFixture>(mut fixture: B) {
    let mut other = fixture.another();
    let _ = started(&mut other, "m");
    let store = fixture.store();
    let _ = started(store, "n");
    let ada = Some("ada");
    write(store, &upserts([row("a", 1, ada), row("b", 1, ada), row("b", 2, Some("bob"))]));
    let mut taken_over = row("b", 3, ada);
    taken_over.record.current_connection = Some(id(9));
    write_as("m", &mut other, &upserts([taken_over]));
    write_as("none", &mut other, &upserts([row("c", 4, ada)]));
    let mut connections = |whom| {
        let mut found = store.connections(&whom).unwrap();
        found.sort();
        found
    };
    let user = |name| Kick::User(UserId::new(name).unwrap());
    assert_eq!(connections(user("ada")), [(id(1), node("n")), (id(3), node("m"))]);
    assert_eq!(connections(user("eve")), []);
    assert_eq!(connections(Kick::Connection(id(1))), [(id(1), node("n"))]);
    assert_eq!(connections(Kick::Connection(id(9))), [(id(3), node("m"))], "its current one");
    assert_eq!(connections(Kick::Connection(id(4))), []);

    // A message reaches its current connections, and nobody who is away.
    let mut away = row("d", 5, ada);
    away.record.fading = Some(at(3));
    let mut again = row("e", 6, ada);
    again.record.current_connection = Some(id(9));
    write_as("m", &mut other, &upserts([away, again]));
    let mut receivers = |whom| {
        let mut found = store.receivers(&whom).unwrap();
        found.sort();
        found
    };
    assert_eq!(receivers(user("ada")), [(id(1), node("n")), (id(9), node("m"))]);
    assert_eq!(receivers(user("eve")), []);
    for id in [3, 6, 9].map(id) {
        assert_eq!(receivers(Kick::Connection(id)).len(), 1);
    }
    assert_eq!(receivers(Kick::Connection(id(5))), []);
}

/// So the next node knows whose place a client takes, what of its info is fixed, and how long to wait.
pub fn a_row_holds_its_session_its_grace_and_its_generation<B: SharedStoreFixture>(mut fixture: B) {
    let mut full = row("a", 1, Some("ada"));
    full.record = PresenceRecord {
        session: Some(SessionKey::new("tab \" 1").unwrap()),
        fixed: Info::new(json!({"role": "admin"})).unwrap(),
        fading: Some(at(3) + TimeDelta::microseconds(1)),
        generation: 7,
        current_connection: Some(id(2)),
        ..full.record
    };
    full.record.presence.updated_at = at(2);
    let rows = [full, row("a", 2, None)].map(|row| (node("n"), row));
    write(fixture.store(), &upserts(rows.clone().map(|(_, row)| row)));
    assert_eq!(fixture.rows(), rows);
    let bare = row("a", 1, None);
    write(fixture.store(), &upserts([bare.clone()]));
    assert_eq!(fixture.rows()[0].1, bare);
}

/// The head says which batches are in the rows; a node that writes lives.
pub fn a_batch_raises_the_head_and_extends_the_lease<B: SharedStoreFixture>(mut fixture: B) {
    let store = fixture.store();
    let Started { incarnation, .. } = started(store, "n");
    let row_at = |store: &mut B::Store, time| store.nodes(at(time)).unwrap();
    let is =
        |head, expired| NodeRow { node: node("n"), incarnation, head, expired, leaving: false };
    assert_eq!(row_at(store, 15), [is(0, false)], "equal stays");
    assert_eq!(row_at(store, LATE), [is(0, true)]);
    let _ = store.apply(&node("n"), &number(3, [row("a", 1, None)]), at(10)).unwrap();
    assert_eq!(row_at(store, 25), [is(3, false)]);
    let _ = store.apply(&node("n"), &number(9, []), at(20)).unwrap();
    assert_eq!(row_at(store, 35), [is(9, false)], "a batch of nothing");
    assert_eq!(row_at(store, 36), [is(9, true)]);
}

fn of_generation(generation: u32, mut row: Row) -> Row {
    row.record.generation = generation;
    row
}

/// When a client comes to another node, both may have its presence for a while.
pub fn the_higher_generation_holds_a_presence_and_then_the_later_name<B: SharedStoreFixture>(
    mut fixture: B,
) {
    let mut held = None;
    for (number, (name, generation, wins)) in (1..).zip([
        ("m", 1, true),
        ("z", 0, false),
        ("b", 1, false),
        ("M", 1, false),
        ("n", 1, true),
        ("m", 1, false),
        ("a", 2, true),
        ("z", 1, false),
        ("a", 0, true), // its own, whatever the turn
        ("b", 0, true),
    ]) {
        let claimed = row("a", 1, Some(&format!("{name} {generation}")));
        let claimed = of_generation(generation, claimed);
        let other = row(&format!("b {number}"), 2, None);
        write_as(name, fixture.store(), &upserts([claimed.clone(), other]));
        if wins {
            held = Some((node(name), claimed));
        }
        let rows = fixture.rows();
        assert_eq!(rows.first(), held.as_ref());
        assert_eq!(rows.len(), 1 + number, "what is outranked keeps nothing else out");
    }
}

/// Each presence has one writer.
pub fn the_rows_of_others_are_not_deleted_and_not_touched<B: SharedStoreFixture>(mut fixture: B) {
    write_as("m", &mut fixture.another(), &upserts([row("a", 1, None)]));
    let batch =
        Batch { deletes: vec![(room("a"), id(1))], seen: vec![seen(1, 9)], ..Batch::default() };
    write_as("n", fixture.store(), &batch);
    assert_eq!(fixture.rows(), [(node("m"), row("a", 1, None))]);
}

/// Each writes in its own order, with presences that both claim, while rooms are pruned.
pub fn two_nodes_that_write_the_same_rooms_do_not_lock_one_another_out<B: SharedStoreFixture>(
    mut fixture: B,
) {
    const ROUNDS: u64 = 20;
    const ROWS: u128 = 300;
    let barrier = &Barrier::new(3);
    let batch = |seed: u64, batch: u64| {
        // Each an order of its own: a step that has no factor in common with the number of rows.
        let step = [7, 11, 13, 17][(seed + batch) as usize % 4];
        let own = u128::from(seed) * 1000;
        let rows = (0..ROWS).map(|n| n * step % ROWS).map(|n| {
            let connection = if n % 3 == 0 { n } else { n + own };
            of_generation(batch as u32, row(&format!("{batch} {}", n % 50), connection, None))
        });
        let deletes = (0..ROWS).map(|n| n * step % ROWS).map(|n| {
            let connection = if n % 3 == 0 { n } else { n + own };
            (room(&format!("{} {}", batch.wrapping_sub(1), n % 50)), id(connection))
        });
        Batch { deletes: deletes.collect(), ..number(batch, rows) }
    };
    thread::scope(|scope| {
        for (name, seed) in [("n", 1), ("m", 2)] {
            let mut store = fixture.another();
            scope.spawn(move || {
                let _ = started(&mut store, name);
                barrier.wait();
                for number in 1..=ROUNDS {
                    write_as(name, &mut store, &batch(seed, number));
                }
            });
        }
        let store = fixture.store();
        barrier.wait();
        for _ in 0..ROUNDS {
            store.prune_rooms().unwrap();
        }
    });
    let rows = fixture.rows();
    let last = format!("{ROUNDS} ");
    let both = rows.iter().filter(|(_, row)| row.room.as_str().starts_with(&last));
    assert_eq!(both.count(), 100 + 2 * 200);
}

/// A room may be empty when it is looked at, and not any more when it is removed.
pub fn a_room_that_is_entered_is_not_pruned<B: SharedStoreFixture>(mut fixture: B) {
    const ROOM_COUNT: usize = 40;
    let mut writer = fixture.another();
    let _ = started(&mut writer, "n");
    let names: Vec<_> = (0..ROOM_COUNT).map(|n| format!("r{n}")).collect();
    thread::scope(|scope| {
        let names = &names;
        let entering = scope.spawn(move || {
            for _ in 0..40 {
                write(&mut writer, &upserts(names.iter().map(|name| row(name, 1, None))));
                let rooms: Vec<_> = names.iter().map(|name| room(name)).collect();
                let rows = writer.read(&rooms, at(0)).unwrap().rows;
                assert_eq!(rows.len(), ROOM_COUNT);
                let deletes = rooms.into_iter().map(|room| (room, id(1))).collect();
                write(&mut writer, &Batch { deletes, ..Batch::default() });
            }
        });
        while !entering.is_finished() {
            fixture.store().prune_rooms().unwrap();
        }
    });
}
