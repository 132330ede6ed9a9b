//! The duties of a store that several nodes share. Each test panics if its store does not do one.

use std::{sync::Barrier, thread, time::Duration};

use chrono::TimeDelta;
use serde_json::json;

use super::{Deed, LEASE, SharedBench, at, id, node, room, row, upserts, write, write_as};
use crate::{
    Epoch, Info, NodeName, Occupancy, RoomSummary, SessionKey, UserId,
    mirror::store::{
        Applied, Batch, Burial, NodeRow, Renewal, RoomRows, Row, SharedStore, Started, Store,
        StoreError, Whom,
    },
};

/// The lease of a node that started at 0 and was not heard of since is over.
const LATE: i64 = 16;

fn started(store: &mut impl Store, name: &str) -> Started {
    store.start(&node(name), at(0), LEASE).unwrap()
}

fn number(number: u64, rows: impl IntoIterator<Item = Row>) -> Batch {
    Batch { number, ..upserts(rows) }
}

fn fading(row: Row) -> Row {
    Row { fading: Some(at(10)), ..row }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| key(a).cmp(&key(b)));
    rows
}

fn sorted_with_nodes(mut rows: Vec<(NodeName, Row)>) -> Vec<(NodeName, Row)> {
    rows.sort_by(|(_, a), (_, b)| key(a).cmp(&key(b)));
    rows
}

fn key(row: &Row) -> (&str, crate::ConnectionId) {
    (row.room.as_str(), row.presence.connection)
}

/// A node has no incarnation but the one its row says.
fn node_row(store: &mut impl SharedStore, name: &str) -> Option<NodeRow> {
    store.nodes(at(0)).unwrap().into_iter().find(|row| row.node == node(name))
}

/// So the next node knows whose place a client takes, and how long to wait for it.
pub fn a_row_holds_its_session_its_fading_and_its_turn<B: SharedBench>(mut bench: B) {
    let full = Row {
        session: Some(SessionKey::new("tab \" 1").unwrap()),
        fading: Some(at(3) + TimeDelta::microseconds(1)),
        turn: 7,
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

/// Others have removed what it had written, so it must not go on as if they had not.
pub fn a_node_whose_row_is_gone_writes_nothing_until_it_has_renewed<B: SharedBench>(mut bench: B) {
    let Started { incarnation, .. } = started(bench.store(), "n");
    bench.by_hand(Deed::DeleteNodes);
    let batch = number(1, [row("a", 1, None)]);
    for _ in 0..2 {
        let lapsed = bench.store().apply(&node("n"), &batch, at(1)).unwrap_err();
        assert!(matches!(lapsed, StoreError::Lapsed), "{lapsed:?}");
    }
    assert_eq!(bench.rows(), []);
    assert_eq!(bench.store().rooms().unwrap(), [], "not even a room");
    let renewal = bench.store().renew(&node("n"), at(2), LEASE).unwrap();
    let Renewal::Lapsed { incarnation: next } = renewal else { panic!("{renewal:?}") };
    assert_ne!(next, incarnation);
    let found = node_row(bench.store(), "n").unwrap();
    assert_eq!((found.incarnation, found.head, found.leaving), (next, 0, false));
    write(bench.store(), &batch);
    assert_eq!(node_row(bench.store(), "n").unwrap().head, 1);
    assert_eq!(bench.rows().len(), 1);
    assert_eq!(bench.store().renew(&node("n"), at(3), LEASE).unwrap(), Renewal::Held);
}

/// A node without a row has no presences, so those it wrote in its next life are all it has.
pub fn what_a_node_without_a_row_had_left_is_gone_when_it_renews<B: SharedBench>(mut bench: B) {
    let _ = started(bench.store(), "n");
    write(bench.store(), &upserts([row("a", 1, None)]));
    write_as("m", &mut bench.another(), &upserts([row("a", 2, None)]));
    bench.by_hand(Deed::DeleteNodes);
    let renewal = bench.store().renew(&node("n"), at(2), LEASE).unwrap();
    assert!(matches!(renewal, Renewal::Lapsed { .. }));
    assert_eq!(bench.rows(), [(node("m"), row("a", 2, None))]);
}

/// A database that was away must not make everybody write everything.
pub fn a_lease_that_is_over_is_held_again_if_nobody_has_buried_the_node<B: SharedBench>(
    mut bench: B,
) {
    let _ = started(bench.store(), "n");
    assert_eq!(bench.store().renew(&node("n"), at(100), LEASE).unwrap(), Renewal::Held);
    assert!(!bench.store().nodes(at(115)).unwrap()[0].expired);
    let batch = number(1, [row("a", 1, None)]);
    assert_eq!(
        bench.store().apply(&node("n"), &batch, at(200)).unwrap(),
        Applied::default(),
        "a batch does so too"
    );
    assert!(!bench.store().nodes(at(215)).unwrap()[0].expired);
}

/// Two processes of one name would undo each other's work.
pub fn a_name_that_another_process_has_taken_is_told<B: SharedBench>(mut bench: B) {
    let mut second = bench.another();
    let first = bench.store();
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

/// A process that is back before its lease is over goes on with what it had.
pub fn a_start_inherits_what_an_earlier_life_left<B: SharedBench>(mut bench: B) {
    let before = started(bench.store(), "n");
    assert_eq!((before.dead, before.inherited), (vec![], vec![]));
    let left = [fading(row("a", 1, Some("ada"))), row("b", 1, Some("ada"))];
    write(bench.store(), &number(5, left.clone()));
    let mut other = bench.another();
    let _ = started(&mut other, "m");
    write_as("m", &mut other, &upserts([row("a", 3, None)]));
    let _ = other.hand_over(&node("n"), at(0), LEASE).unwrap();
    write(bench.store(), &number(6, left.clone()));

    let mut again = bench.another();
    let after = again.start(&node("n"), at(1), LEASE).unwrap();
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!(after.dead, []);
    assert_eq!(sorted(after.inherited), left);
    assert_eq!(bench.rows().len(), 3, "they stay, and so do those of others");
    let found = node_row(&mut again, "n").unwrap();
    let is = (found.incarnation, found.head, found.leaving, found.expired);
    assert_eq!(is, (after.incarnation, 0, false, false));
}

/// When a client comes to another node, both may have its presence for a while.
pub fn the_higher_turn_holds_a_presence_and_then_the_later_name<B: SharedBench>(mut bench: B) {
    let mut held = None;
    for (number, (name, turn, wins)) in (1..).zip([
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
        let claimed = Row { turn, ..row("a", 1, Some(&format!("{name} {turn}"))) };
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

/// Who reads a head of 7 has the rows of batch 7, and none of batch 8.
pub fn the_head_and_the_rows_are_of_one_moment<B: SharedBench>(mut bench: B) {
    const BATCHES: u64 = 200;
    let mut writer = bench.another();
    let _ = started(&mut writer, "n");
    let (a, b) = (room("a"), room("b"));
    thread::scope(|scope| {
        let writing = scope.spawn(move || {
            for batch in 1..=BATCHES {
                let numbered = |name| {
                    let mut row = row(name, 1, None);
                    row.presence.info = Info::new(json!({"batch": batch})).unwrap();
                    row
                };
                let rows = [numbered("a"), numbered("b")];
                write_as("n", &mut writer, &number(batch, rows));
            }
        });
        let store = bench.store();
        let mut heads = Vec::new();
        while !writing.is_finished() {
            let RoomRows { nodes, rows } = store.read(&[a.clone(), b.clone()], at(0)).unwrap();
            heads.push(nodes[0].head);
            assert_eq!(rows.len(), if nodes[0].head == 0 { 0 } else { 2 });
            for (_, row) in rows {
                assert_eq!(row.presence.info.to_value()["batch"], nodes[0].head);
            }
        }
        assert!(heads.is_sorted());
    });
    assert_eq!(node_row(bench.store(), "n").unwrap().head, BATCHES);
}

/// Also of rooms with names that mean something to SQL or sort oddly.
pub fn what_is_read_is_of_the_rooms_asked_for_and_of_nodes_that_have_a_row<B: SharedBench>(
    mut bench: B,
) {
    let odd = ["'; --", "{a,b}", "NULL", "\\", "\"", "%_", "é", "e\u{301}", "😀", " "];
    let _ = started(bench.store(), "n");
    write(bench.store(), &upserts(odd.iter().zip(1..).map(|(name, n)| row(name, n, Some(name)))));
    let mut other = bench.another();
    write_as("m", &mut other, &upserts([row("é", 99, None), row("other", 98, None)]));
    let store = bench.store();
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

/// Not before, not twice, and not if it is another life.
pub fn a_node_is_buried_once_its_lease_is_over<B: SharedBench>(mut bench: B) {
    let mut dying = bench.another();
    let Started { incarnation, .. } = started(&mut dying, "n");
    let left = [row("a", 1, Some("ada")), fading(row("b", 1, Some("ada"))), row("b", 2, None)];
    write(&mut dying, &number(1, left.clone()));
    let store = bench.store();
    let _ = started(store, "m");
    write_as("m", store, &number(1, [row("a", 3, None)]));

    let n = node("n");
    assert_eq!(store.bury(&n, incarnation, at(15)).unwrap(), Burial::Alive, "equal stays");
    assert_eq!(store.bury(&n, Epoch::new(), at(LATE)).unwrap(), Burial::Alive, "another life");
    assert_eq!(store.bury(&node("none"), incarnation, at(LATE)).unwrap(), Burial::Gone);
    match store.bury(&n, incarnation, at(LATE)).unwrap() {
        Burial::Buried { rows, leaving: false } => assert_eq!(sorted(rows), left),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.bury(&n, incarnation, at(LATE)).unwrap(), Burial::Gone);
    assert_eq!(node_row(store, "n"), None);
    assert_eq!(bench.rows(), [(node("m"), row("a", 3, None))]);
    let lapsed = dying.apply(&n, &number(2, [row("a", 1, None)]), at(LATE)).unwrap_err();
    assert!(matches!(lapsed, StoreError::Lapsed), "{lapsed:?}");
}

/// All nodes see at the same time that one is dead.
pub fn of_two_who_bury_at_once_one_does<B: SharedBench>(mut bench: B) {
    for round in 0..20 {
        let mut dead = bench.another();
        let Started { incarnation, .. } = started(&mut dead, "n");
        write(&mut dead, &upserts((0..50).map(|n| row("a", n, None))));
        let barrier = Barrier::new(2);
        let burials = thread::scope(|scope| {
            let diggers = [bench.another(), bench.another()].map(|mut store| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    store.bury(&node("n"), incarnation, at(LATE)).unwrap()
                })
            });
            diggers.map(|digger| digger.join().unwrap())
        });
        let buried =
            |burial: &&Burial| matches!(burial, Burial::Buried { rows, .. } if rows.len() == 50);
        let gone = |burial: &&Burial| matches!(burial, Burial::Gone);
        assert_eq!(burials.iter().filter(buried).count(), 1, "round {round}: {burials:?}");
        assert_eq!(burials.iter().filter(gone).count(), 1, "round {round}: {burials:?}");
    }
}

/// A node that was only slow either keeps all, or knows that it has lost all.
pub fn a_node_is_buried_or_goes_on_but_not_both<B: SharedBench>(mut bench: B) {
    for round in 0..20 {
        let mut slow = bench.another();
        let Started { incarnation, .. } = started(&mut slow, "n");
        write(&mut slow, &number(1, (0..50).map(|n| row("a", n, None))));
        let mut digger = bench.another();
        let barrier = Barrier::new(2);
        let (burial, wrote) = thread::scope(|scope| {
            let digging = scope.spawn(|| {
                barrier.wait();
                digger.bury(&node("n"), incarnation, at(LATE)).unwrap()
            });
            barrier.wait();
            let wrote = match round % 2 {
                0 => slow.apply(&node("n"), &number(2, [row("b", 1, None)]), at(LATE)).map(drop),
                _ => match slow.renew(&node("n"), at(LATE), LEASE).unwrap() {
                    Renewal::Held => Ok(()),
                    Renewal::Lapsed { .. } => Err(StoreError::Lapsed),
                },
            };
            (digging.join().unwrap(), wrote)
        });
        let rows = bench.rows().len();
        match (&burial, wrote) {
            (Burial::Alive, Ok(())) => assert!(rows >= 50, "round {round}"),
            (Burial::Buried { .. }, Err(StoreError::Lapsed)) => assert_eq!(rows, 0),
            (_, wrote) => panic!("round {round}: {burial:?}, {wrote:?}"),
        }
        let _ = slow.stop(&node("n")).unwrap();
        bench.by_hand(Deed::DeletePresences);
    }
}

/// Their clients are on their way to another node; if they do not arrive, somebody says so.
pub fn a_node_that_hands_over_leaves_what_fades<B: SharedBench>(mut bench: B) {
    let mut leaving = bench.another();
    let Started { incarnation, .. } = started(&mut leaving, "n");
    let left = fading(row("a", 1, Some("ada")));
    write(&mut leaving, &number(1, [left.clone(), row("a", 2, None), row("b", 3, None)]));
    let store = bench.store();
    write_as("m", store, &upserts([row("a", 9, None)]));
    let grace = Duration::from_secs(5);
    assert_eq!(leaving.hand_over(&node("n"), at(20), grace).unwrap(), 2);
    assert_eq!(leaving.hand_over(&node("n"), at(20), grace).unwrap(), 0, "twice is once");
    let found = store.nodes(at(25)).unwrap().remove(0);
    assert_eq!((found.head, found.expired, found.leaving), (1, false, true));
    assert_eq!(store.bury(&node("n"), incarnation, at(25)).unwrap(), Burial::Alive);
    let expected = Burial::Buried { rows: vec![left], leaving: true };
    assert_eq!(store.bury(&node("n"), incarnation, at(26)).unwrap(), expected);
    assert_eq!(bench.rows().len(), 1);
}

/// Those asked for, if they are there.
pub fn connections_are_found_in_their_room<B: SharedBench>(mut bench: B) {
    let mut other = bench.another();
    let _ = started(&mut other, "m");
    let store = bench.store();
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

/// A page ends where the next begins, in the order that every node sorts by.
pub fn rooms_are_listed_by_their_bytes_a_page_at_a_time<B: SharedBench>(mut bench: B) {
    let mut names = ["b", "B", "a b", "a", "Z", "é", "z", "_", "~", "ab", "a-b", "😀", "\u{ffff}"];
    let store = bench.store();
    let _ = started(store, "n");
    write(store, &upserts(names.map(|name| row(name, 1, Some("ada")))));
    write(store, &upserts([row("a", 2, Some("ada")), row("a", 3, Some("bob")), row("a", 4, None)]));
    write_as("none", &mut bench.another(), &upserts([row("a", 5, None), row("nobody", 6, None)]));
    bench.by_hand(Deed::AddRoom("c"));
    names.sort_unstable();
    let store = bench.store();
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
pub fn a_user_is_where_their_connections_are<B: SharedBench>(mut bench: B) {
    let mut other = bench.another();
    let _ = started(&mut other, "m");
    let store = bench.store();
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
pub fn connections_are_each_named_once_with_their_node<B: SharedBench>(mut bench: B) {
    let mut other = bench.another();
    let _ = started(&mut other, "m");
    let store = bench.store();
    let _ = started(store, "n");
    let ada = Some("ada");
    write(store, &upserts([row("a", 1, ada), row("b", 1, ada), row("b", 2, Some("bob"))]));
    write_as("m", &mut other, &upserts([row("b", 3, ada)]));
    write_as("none", &mut other, &upserts([row("c", 4, ada)]));
    let mut connections = |whom| {
        let mut found = store.connections(&whom).unwrap();
        found.sort();
        found
    };
    let user = |name| Whom::User(UserId::new(name).unwrap());
    assert_eq!(connections(user("ada")), [(id(1), node("n")), (id(3), node("m"))]);
    assert_eq!(connections(user("eve")), []);
    assert_eq!(connections(Whom::Connection(id(1))), [(id(1), node("n"))]);
    assert_eq!(connections(Whom::Connection(id(4))), []);
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
            Row { turn: batch as u32, ..row(&format!("{batch} {}", n % 50), connection, None) }
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

/// Otherwise it would go on, and its rows would not come back.
pub fn a_node_whose_presences_are_pruned_hears_of_it<B: SharedBench>(mut bench: B) {
    let age = Duration::from_secs(60);
    let mut other = bench.another();
    let _ = started(&mut other, "m");
    let store = bench.store();
    let _ = started(store, "n");
    write(store, &number(1, [row("a", 1, None)]));
    let fresh = Row { last_seen: at(100), ..row("a", 2, None) };
    write_as("m", &mut other, &number(1, [fresh.clone()]));
    assert_eq!(store.prune_presences(at(100), age).unwrap(), 1);
    assert_eq!(bench.rows(), [(node("m"), fresh)]);
    let lapsed = bench.store().apply(&node("n"), &number(2, []), at(100)).unwrap_err();
    assert!(matches!(lapsed, StoreError::Lapsed), "{lapsed:?}");
    assert_eq!(other.renew(&node("m"), at(100), LEASE).unwrap(), Renewal::Held, "it lost nothing");
}
