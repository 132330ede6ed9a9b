//! What nodes learn of one another.

use std::thread;

use serde_json::json;

use super::{
    super::{Deed, LEASE, SharedBench, at, id, node, room, row, upserts, write, write_as},
    node_row, number, sorted_with_nodes, started,
};
use crate::{
    model::{Info, Occupancy, RoomSummary, UserId},
    store::{RoomRows, Row, SharedStore, Store, Whom},
};

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

/// Those asked for, if they are there.
pub fn connections_are_found_in_their_rooms<B: SharedBench>(mut bench: B) {
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

/// Each once, whatever other rooms their connections are in.
pub fn presences_are_found_by_room_and_connection<B: SharedBench>(mut bench: B) {
    let mut other = bench.another();
    let _ = started(&mut other, "m");
    let store = bench.store();
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
    let taken_over = Row { current_connection: Some(id(9)), ..row("b", 3, ada) };
    write_as("m", &mut other, &upserts([taken_over]));
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
    assert_eq!(connections(Whom::Connection(id(9))), [(id(3), node("m"))], "the one behind it");
    assert_eq!(connections(Whom::Connection(id(4))), []);
}
