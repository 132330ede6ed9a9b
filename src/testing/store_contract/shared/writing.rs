//! Who writes what.

use std::{sync::Barrier, thread};

use chrono::TimeDelta;
use serde_json::json;

use super::{
    super::{SharedBench, at, id, node, room, row, upserts, write, write_as},
    LATE, number, started,
};
use crate::{
    model::{Info, SessionKey},
    store::{Batch, NodeRow, Row, SharedStore, Started, Store},
};

/// So the next node knows whose place a client takes, what of its info is fixed, and how long to wait.
pub fn a_row_holds_its_session_its_fading_and_its_turn<B: SharedBench>(mut bench: B) {
    let full = Row {
        session: Some(SessionKey::new("tab \" 1").unwrap()),
        fixed: Info::new(json!({"role": "admin"})).unwrap(),
        fading: Some(at(3) + TimeDelta::microseconds(1)),
        generation: 7,
        current_connection: Some(id(2)),
        ..row("a", 1, Some("ada"))
    };
    let rows = [full, row("a", 2, None)].map(|row| (node("n"), row));
    write(bench.store(), &upserts(rows.clone().map(|(_, row)| row)));
    assert_eq!(bench.rows(), rows);
    let bare = row("a", 1, None);
    write(bench.store(), &upserts([bare.clone()]));
    assert_eq!(bench.rows()[0].1, bare);
}

/// The head says which batches are in the rows; a node that writes lives.
pub fn a_batch_raises_the_head_and_extends_the_lease<B: SharedBench>(mut bench: B) {
    let store = bench.store();
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

/// When a client comes to another node, both may have its presence for a while.
pub fn the_higher_turn_holds_a_presence_and_then_the_later_name<B: SharedBench>(mut bench: B) {
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
        let claimed = Row { generation, ..row("a", 1, Some(&format!("{name} {generation}"))) };
        let other = row(&format!("b {number}"), 2, None);
        write_as(name, bench.store(), &upserts([claimed.clone(), other]));
        if wins {
            held = Some((node(name), claimed));
        }
        let rows = bench.rows();
        assert_eq!(rows.first(), held.as_ref());
        assert_eq!(rows.len(), 1 + number, "what is outranked keeps nothing else out");
    }
}

/// Each presence has one writer.
pub fn the_rows_of_others_are_not_deleted_and_not_touched<B: SharedBench>(mut bench: B) {
    write_as("m", &mut bench.another(), &upserts([row("a", 1, None)]));
    let batch =
        Batch { deletes: vec![(room("a"), id(1))], seen: vec![(id(1), at(9))], ..Batch::default() };
    write_as("n", bench.store(), &batch);
    assert_eq!(bench.rows(), [(node("m"), row("a", 1, None))]);
}

/// Each writes in its own order, with presences that both claim, while rooms are pruned.
pub fn two_nodes_that_write_the_same_rooms_do_not_lock_one_another_out<B: SharedBench>(
    mut bench: B,
) {
    const BATCHES: u64 = 20;
    const ROWS: u128 = 300;
    let barrier = &Barrier::new(3);
    let batch = |seed: u64, batch: u64| {
        // Each an order of its own: a step that has no factor in common with the number of rows.
        let step = [7, 11, 13, 17][(seed + batch) as usize % 4];
        let own = u128::from(seed) * 1000;
        let rows = (0..ROWS).map(|n| n * step % ROWS).map(|n| {
            let connection = if n % 3 == 0 { n } else { n + own };
            Row {
                generation: batch as u32,
                ..row(&format!("{batch} {}", n % 50), connection, None)
            }
        });
        let deletes = (0..ROWS).map(|n| n * step % ROWS).map(|n| {
            let connection = if n % 3 == 0 { n } else { n + own };
            (room(&format!("{} {}", batch.wrapping_sub(1), n % 50)), id(connection))
        });
        Batch { deletes: deletes.collect(), ..number(batch, rows) }
    };
    thread::scope(|scope| {
        for (name, seed) in [("n", 1), ("m", 2)] {
            let mut store = bench.another();
            scope.spawn(move || {
                let _ = started(&mut store, name);
                barrier.wait();
                for number in 1..=BATCHES {
                    write_as(name, &mut store, &batch(seed, number));
                }
            });
        }
        let store = bench.store();
        barrier.wait();
        for _ in 0..BATCHES {
            store.prune_rooms().unwrap();
        }
    });
    let rows = bench.rows();
    let last = format!("{BATCHES} ");
    let both = rows.iter().filter(|(_, row)| row.room.as_str().starts_with(&last));
    assert_eq!(both.count(), 100 + 2 * 200);
}

/// A room may be empty when it is looked at, and not any more when it is removed.
pub fn a_room_that_somebody_enters_is_not_pruned<B: SharedBench>(mut bench: B) {
    const ROOMS: usize = 40;
    let mut writer = bench.another();
    let _ = started(&mut writer, "n");
    let names: Vec<_> = (0..ROOMS).map(|n| format!("r{n}")).collect();
    thread::scope(|scope| {
        let names = &names;
        let entering = scope.spawn(move || {
            for _ in 0..40 {
                write(&mut writer, &upserts(names.iter().map(|name| row(name, 1, None))));
                let rooms: Vec<_> = names.iter().map(|name| room(name)).collect();
                let rows = writer.read(&rooms, at(0)).unwrap().rows;
                assert_eq!(rows.len(), ROOMS);
                let deletes = rooms.into_iter().map(|room| (room, id(1))).collect();
                write(&mut writer, &Batch { deletes, ..Batch::default() });
            }
        });
        while !entering.is_finished() {
            bench.store().prune_rooms().unwrap();
        }
    });
}
