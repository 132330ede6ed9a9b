//! What every store has to do, written once as tests; `store_contract!` runs them on a backend.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::{Applied, Batch, Change, DeadNode, Renewal, RoomCounts, Row, Store, StoreError};
use crate::{ConnectionId, Info, NodeName, Presence, RoomName, UserId};

/// A store with a way to meddle with its database behind its back.
pub(crate) trait Bench {
    type Store: Store;
    /// An empty database with the tables in it.
    fn new() -> Self;
    fn store(&mut self) -> &mut Self::Store;
    /// Runs SQL as somebody with a shell would.
    fn by_hand(&mut self, sql: &str);
    /// The presences as `room connection user info joined_at last_seen node`, ordered.
    fn rows(&mut self) -> Vec<String>;
    /// Makes the database refuse every row of a connection: what is one of INSERT, UPDATE, DELETE.
    fn refuse(&mut self, what: &str, connection: ConnectionId);
}

pub(crate) const LEASE: Duration = Duration::from_secs(15);

pub(crate) fn at(seconds: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
    start + TimeDelta::seconds(seconds)
}

pub(crate) fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

pub(crate) fn room(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

pub(crate) fn id(number: u128) -> ConnectionId {
    ConnectionId::from_u128(number)
}

pub(crate) fn row(name: &str, connection: u128, user: Option<&str>) -> Row {
    let presence = Presence {
        connection: id(connection),
        user: user.map(|user| UserId::new(user).unwrap()),
        info: Info::EMPTY,
        joined_at: at(0),
    };
    let (room, last_seen, session, fading, turn) = (room(name), at(0), None, None, 0);
    Row { room, presence, last_seen, session, fading, turn }
}

pub(crate) fn upserts(rows: impl IntoIterator<Item = Row>) -> Batch {
    Batch { upserts: rows.into_iter().collect(), ..Batch::default() }
}

pub(crate) fn write(store: &mut impl Store, batch: &Batch) {
    assert_eq!(store.apply(&node("n"), batch, at(0)).unwrap(), Applied::default());
}

fn counts(name: &str, connections: usize, users: usize, anonymous: usize) -> RoomCounts {
    RoomCounts { channel_name: name.to_owned(), connections, users, anonymous }
}

pub(crate) fn a_row_holds_what_was_written<B: Bench>(mut bench: B) {
    let mut full = row("café/\"7\" ' [1]", 1, Some("123"));
    full.presence.info = Info::new(json!({"b": 1.50, "a": "\u{0}ü\"\\", "big": 1e300})).unwrap();
    full.presence.joined_at = at(0) + TimeDelta::microseconds(250_000);
    full.last_seen = at(1) + TimeDelta::microseconds(1);
    let info = full.presence.info.as_json().to_owned();
    write(bench.store(), &upserts([full, row("null", 2, Some("null")), row("null", 3, None)]));
    assert_eq!(
        bench.rows(),
        [
            format!(
                "café/\"7\" ' [1] {} 123 {info} 2023-11-14 22:13:20.250000 2023-11-14 22:13:21.000001 n",
                id(1)
            ),
            format!("null {} null {{}} 2023-11-14 22:13:20 2023-11-14 22:13:20 n", id(2)),
            format!("null {} - {{}} 2023-11-14 22:13:20 2023-11-14 22:13:20 n", id(3)),
        ]
    );
}

pub(crate) fn a_batch_can_be_given_twice<B: Bench>(mut bench: B) {
    write(bench.store(), &upserts([row("a", 1, Some("ada")), row("a", 2, None)]));
    let batch = Batch {
        upserts: vec![row("a", 1, Some("bob")), row("b", 3, None)],
        deletes: vec![(room("a"), id(2)), (room("none"), id(2))],
        seen: vec![(id(1), at(5)), (id(9), at(5))],
        ..Batch::default()
    };
    write(bench.store(), &batch);
    let once = bench.rows();
    assert_eq!(once.len(), 2);
    assert!(once[0].contains("bob") && once[0].contains("22:13:25 n"), "{once:?}");
    write(bench.store(), &batch);
    assert_eq!(bench.rows(), once);
}

pub(crate) fn a_sign_of_life_is_for_all_presences_of_this_node<B: Bench>(mut bench: B) {
    write(bench.store(), &upserts([row("a", 1, None), row("b", 1, None), row("a", 2, None)]));
    let other = upserts([row("c", 1, None)]);
    let _ = bench.store().apply(&node("m"), &other, at(0)).unwrap();
    write(bench.store(), &Batch { seen: vec![(id(1), at(40))], ..Batch::default() });
    let seen: Vec<bool> = bench.rows().iter().map(|row| row.contains("22:14:00")).collect();
    assert_eq!(seen, [true, false, true, false]);
}

pub(crate) fn more_than_one_chunk_is_written_and_deleted<B: Bench>(mut bench: B) {
    let rows = || (0..4321).map(|n| row(&format!("r{}", n % 7), n, None));
    write(bench.store(), &upserts(rows()));
    assert_eq!(bench.rows().len(), 4321);
    let deletes = rows().map(|row| (row.room, row.presence.connection)).collect();
    write(bench.store(), &Batch { deletes, ..Batch::default() });
    assert_eq!(bench.rows().len(), 0);
}

pub(crate) fn rows_deleted_by_hand_come_back<B: Bench>(mut bench: B) {
    let batch = upserts([row("a", 1, Some("ada")), row("a", 2, None), row("b", 3, None)]);
    write(bench.store(), &batch);
    let rows = bench.rows();
    bench.by_hand("DELETE FROM presences");
    write(bench.store(), &batch);
    assert_eq!(bench.rows(), rows);
}

pub(crate) fn a_room_deleted_by_hand_takes_its_rows_and_comes_back<B: Bench>(mut bench: B) {
    let batch = upserts([row("a", 1, Some("ada")), row("b", 3, None)]);
    write(bench.store(), &batch);
    let rows = bench.rows();
    bench.by_hand("DELETE FROM rooms WHERE channel_name = 'b'");
    assert_eq!(bench.rows(), rows[..1]);
    // A room that may get the number of the deleted one inherits nothing.
    write(bench.store(), &upserts([row("c", 4, None)]));
    let names: Vec<_> = bench.store().rooms().unwrap();
    assert_eq!(names, [counts("a", 1, 1, 0), counts("c", 1, 0, 1)]);
    write(bench.store(), &batch);
    assert_eq!(bench.rows()[..2], rows);
}

pub(crate) fn a_row_that_cannot_be_written_is_set_aside<B: Bench>(mut bench: B) {
    write(bench.store(), &upserts([row("a", 100, None), row("a", 101, None), row("a", 102, None)]));
    bench.refuse("INSERT", id(3));
    bench.refuse("INSERT", id(40));
    bench.refuse("DELETE", id(100));
    bench.refuse("UPDATE", id(102));
    let batch = Batch {
        upserts: (0..50).map(|n| row("a", n, None)).chain([row("only 3", 3, None)]).collect(),
        deletes: vec![(room("a"), id(100)), (room("a"), id(101))],
        seen: vec![(id(102), at(1)), (id(1), at(1))],
        ..Batch::default()
    };
    let Applied { set_aside } = bench.store().apply(&node("n"), &batch, at(0)).unwrap();
    let changes: Vec<_> = set_aside.iter().map(|aside| aside.change.clone()).collect();
    let expected = [
        Change::Delete(room("a"), id(100)),
        Change::Upsert(room("a"), id(3)),
        Change::Upsert(room("a"), id(40)),
        Change::Upsert(room("only 3"), id(3)),
        Change::Seen(id(102)),
    ];
    assert_eq!(changes, expected);
    assert!(set_aside.iter().all(|aside| aside.reason.contains("refused")), "{set_aside:?}");
    // 48 of 50, and 100 and 102; nothing is left of the room that only had a bad row.
    assert_eq!(bench.store().rooms().unwrap(), [counts("a", 50, 0, 50)]);
    assert!(bench.rows()[1].contains("22:13:21"));
}

pub(crate) fn starting_removes_and_names_the_dead<B: Bench>(mut bench: B) {
    let store = bench.store();
    assert_eq!(store.start(&node("n"), at(0), LEASE).unwrap().dead, []);
    write(store, &upserts([row("a", 1, None), row("b", 1, None), row("a", 2, None)]));
    let _ = store.apply(&node("gone"), &upserts([row("a", 3, None)]), at(0)).unwrap();
    bench.by_hand(
        "INSERT INTO nodes (id, started_at, lease_expires_at) \
         VALUES ('idle', '2020-01-01 00:00:00', '2020-01-01 00:00:15')",
    );
    let dead = |node: &str, presences| DeadNode { node: node.to_owned(), presences };
    // A lease of the dead one's still ran: with the same name, or in SQLite, that does not matter.
    let found = bench.store().start(&node("n"), at(1), LEASE).unwrap().dead;
    assert_eq!(found, [dead("gone", 1), dead("idle", 0), dead("n", 3)]);
    assert!(bench.rows().is_empty());
    assert_eq!(bench.store().renew(&node("n"), at(2), LEASE).unwrap(), Renewal::Held);
}

pub(crate) fn a_lease_lapses_when_it_is_over_or_gone<B: Bench>(mut bench: B) {
    let store = bench.store();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    assert_eq!(store.renew(&node("n"), at(15), LEASE).unwrap(), Renewal::Held);
    let late = at(30) + TimeDelta::microseconds(1);
    assert!(matches!(store.renew(&node("n"), late, LEASE).unwrap(), Renewal::Lapsed { .. }));
    assert_eq!(store.renew(&node("n"), late, LEASE).unwrap(), Renewal::Held);
    bench.by_hand("DELETE FROM nodes");
    assert!(matches!(
        bench.store().renew(&node("n"), late, LEASE).unwrap(),
        Renewal::Lapsed { .. }
    ));
    assert_eq!(bench.store().renew(&node("n"), late, LEASE).unwrap(), Renewal::Held);
}

pub(crate) fn pruning_spares_equal_age_and_living_owners<B: Bench>(mut bench: B) {
    let age = Duration::from_secs(60);
    let store = bench.store();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    write(store, &upserts([row("a", 1, None), row("a", 2, None)]));
    let _ = store.apply(&node("dead"), &upserts([row("b", 3, None)]), at(0)).unwrap();
    assert_eq!(store.prune_presences(at(60), age).unwrap(), 0, "equal age stays");
    assert!(matches!(store.renew(&node("n"), at(100), LEASE).unwrap(), Renewal::Lapsed { .. }));
    let past = at(60) + TimeDelta::microseconds(1);
    assert_eq!(store.prune_presences(past, age).unwrap(), 1, "the living owner's stay");
    assert_eq!(store.prune_presences(at(115), age).unwrap(), 0, "the lease runs to its end");
    write(store, &Batch { seen: vec![(id(2), at(60))], ..Batch::default() });
    assert_eq!(store.prune_presences(at(116), age).unwrap(), 1, "the lease is over");
    assert_eq!(store.prune_presences(at(116), Duration::MAX).unwrap(), 0);
    assert_eq!(bench.rows().len(), 1);
}

pub(crate) fn pruning_rooms_removes_the_empty_ones<B: Bench>(mut bench: B) {
    write(bench.store(), &upserts([row("a", 1, None), row("b", 2, None), row("c", 3, None)]));
    let deletes = vec![(room("a"), id(1)), (room("c"), id(3))];
    write(bench.store(), &Batch { deletes, ..Batch::default() });
    assert_eq!(bench.store().rooms().unwrap().len(), 3);
    assert_eq!(bench.store().prune_rooms().unwrap(), 2);
    assert_eq!(bench.store().prune_rooms().unwrap(), 0);
    assert_eq!(bench.store().rooms().unwrap(), [counts("b", 1, 0, 1)]);
}

pub(crate) fn rooms_count_users_once_and_the_anonymous_each<B: Bench>(mut bench: B) {
    assert_eq!(bench.store().rooms().unwrap(), []);
    write(
        bench.store(),
        &upserts([
            row("b", 1, Some("ada")),
            row("b", 2, Some("ada")),
            row("b", 3, Some("bob")),
            row("b", 4, None),
            row("b", 5, None),
            row("a", 1, Some("ada")),
        ]),
    );
    bench.by_hand(
        "INSERT INTO rooms (channel_name, created_at) VALUES ('c', '2024-01-01 00:00:00')",
    );
    let expected = [counts("a", 1, 1, 0), counts("b", 5, 2, 2), counts("c", 0, 0, 0)];
    assert_eq!(bench.store().rooms().unwrap(), expected);
}

pub(crate) fn stopping_takes_what_is_ones_own<B: Bench>(mut bench: B) {
    let store = bench.store();
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
    write(store, &upserts([row("a", 1, None), row("b", 2, None)]));
    let _ = store.apply(&node("m"), &upserts([row("b", 3, None)]), at(0)).unwrap();
    assert_eq!(store.stop(&node("n")).unwrap(), 2);
    assert_eq!(store.stop(&node("n")).unwrap(), 0);
    assert!(matches!(store.renew(&node("n"), at(0), LEASE).unwrap(), Renewal::Lapsed { .. }));
    assert_eq!(bench.rows().len(), 1);
}

pub(crate) fn a_store_answers_after_a_failed_call<B: Bench>(mut bench: B) {
    bench.by_hand("ALTER TABLE nodes RENAME TO hidden");
    let failed = bench.store().renew(&node("n"), at(0), LEASE).unwrap_err();
    assert!(matches!(failed, StoreError::Schema { .. }), "{failed:?}");
    bench.by_hand("ALTER TABLE hidden RENAME TO nodes");
    assert!(matches!(
        bench.store().renew(&node("n"), at(0), LEASE).unwrap(),
        Renewal::Lapsed { .. }
    ));
}

/// Runs the contract on a [`Bench`], as a module of tests.
macro_rules! store_contract {
    ($module:ident, $bench:ty) => {
        crate::mirror::store::contract::store_contract! { $module, $bench:
            a_row_holds_what_was_written
            a_batch_can_be_given_twice
            a_sign_of_life_is_for_all_presences_of_this_node
            more_than_one_chunk_is_written_and_deleted
            rows_deleted_by_hand_come_back
            a_room_deleted_by_hand_takes_its_rows_and_comes_back
            a_row_that_cannot_be_written_is_set_aside
            starting_removes_and_names_the_dead
            a_lease_lapses_when_it_is_over_or_gone
            pruning_spares_equal_age_and_living_owners
            pruning_rooms_removes_the_empty_ones
            rooms_count_users_once_and_the_anonymous_each
            stopping_takes_what_is_ones_own
            a_store_answers_after_a_failed_call
        }
    };
    ($module:ident, $bench:ty: $($test:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    use crate::mirror::store::contract;
                    contract::$test(<$bench as contract::Bench>::new());
                }
            )*
        }
    };
}
pub(crate) use store_contract;
