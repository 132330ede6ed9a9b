//! The rules of every [`Store`], as tests.
//!
//! An implementation of a store gets a [`StoreFixture`], as [`MemoryStore`](super::MemoryStore) has one, and a
//! module of tests with one of the macros:
//! [`store_contract!`](crate::store_contract) for every store;
//! [`shared_store_contract!`](crate::shared_store_contract) for a [`SharedStore`], on a
//! [`SharedStoreFixture`]; [`owned_store_contract!`](crate::owned_store_contract) for a store that belongs
//! to one process.
//!
//! ```
//! # #![allow(dead_code, reason = "tests are left out here")]
//! use actix_presence::testing::MemoryStore;
//!
//! actix_presence::store_contract!(every_rule, MemoryStore);
//! actix_presence::shared_store_contract!(shared_rules, MemoryStore);
//! # fn main() {}
//! ```

pub mod every;
pub mod shared;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    model::{ConnectionId, Info, NodeName, Presence, PresenceRecord, RoomName, UserId},
    store::{Applied, Batch, RoomCounts, Row, Seen, SharedStore, Store},
};

/// A store, with access to its database from outside.
pub trait StoreFixture {
    /// The store to test.
    type Store: Store;

    /// An empty database with the tables in it.
    fn new() -> Self;

    /// The store; always the same one.
    fn store(&mut self) -> &mut Self::Store;

    /// Changes the database as an administrator would with a shell.
    fn change_manually(&mut self, change: ManualChange<'_>);

    /// Every presence with the node that holds it, ordered by room (byte by byte) and connection.
    fn rows(&mut self) -> Vec<(NodeName, Row)>;

    /// Makes the database refuse every presence of a connection, with a message that contains "refused".
    fn refuse(&mut self, verb: Verb, connection: ConnectionId);
}

/// A [`StoreFixture`] whose database several stores share. Leases are judged by the time argument.
pub trait SharedStoreFixture: StoreFixture<Store: SharedStore> {
    /// Another store on the same database, for another node.
    fn another(&mut self) -> Self::Store;
}

/// The kind of a statement on a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// It is inserted.
    Insert,
    /// It is updated.
    Update,
    /// It is deleted.
    Delete,
}

impl Verb {
    /// The keyword in SQL.
    #[must_use]
    pub fn as_sql(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// A change made in the database by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManualChange<'a> {
    /// All presences are deleted.
    DeletePresences,
    /// A room is deleted, and so are its presences.
    DeleteRoom(&'a str),
    /// A room is inserted.
    AddRoom(&'a str),
    /// A node is inserted whose lease expired long ago.
    AddDeadNode(&'a str),
    /// All nodes are deleted.
    DeleteNodes,
    /// The number of the last batch of each node is this one, as in an earlier state of the database.
    LowerHeads(u64),
    /// The table of the nodes is renamed.
    HideNodes,
    /// The table of the nodes has its name again.
    ShowNodes,
}

impl ManualChange<'_> {
    /// The change in SQL, for names without quotes.
    #[must_use]
    pub fn to_sql(self) -> String {
        match self {
            Self::DeletePresences => "DELETE FROM presences".to_owned(),
            Self::DeleteRoom(name) => format!("DELETE FROM rooms WHERE channel_name = '{name}'"),
            Self::AddRoom(name) => format!(
                "INSERT INTO rooms (channel_name, created_at) VALUES ('{name}', '2024-01-01 00:00:00')"
            ),
            Self::AddDeadNode(name) => format!(
                "INSERT INTO nodes (id, started_at, lease_expires_at)
                 VALUES ('{name}', '2020-01-01 00:00:00', '2020-01-01 00:00:15')"
            ),
            Self::DeleteNodes => "DELETE FROM nodes".to_owned(),
            Self::LowerHeads(number) => format!("UPDATE nodes SET head = {number}"),
            Self::HideNodes => "ALTER TABLE nodes RENAME TO hidden".to_owned(),
            Self::ShowNodes => "ALTER TABLE hidden RENAME TO nodes".to_owned(),
        }
    }
}

/// The duration of leases in these tests.
pub const LEASE: Duration = Duration::from_secs(15);

/// A time, in seconds after some start.
#[must_use]
pub fn at(seconds: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
    start + TimeDelta::seconds(seconds)
}

/// The name of a node.
#[must_use]
pub fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

/// The name of a room.
#[must_use]
pub fn room(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

/// The id with a number.
#[must_use]
pub fn id(number: u128) -> ConnectionId {
    ConnectionId::from_u128(number)
}

/// A row of a presence that joined at the start.
#[must_use]
pub fn row(name: &str, connection: u128, user: Option<&str>) -> Row {
    let presence = Presence {
        connection: id(connection),
        user: user.map(|user| UserId::new(user).unwrap()),
        info: Info::EMPTY,
        joined_at: at(0),
        updated_at: at(0),
    };
    Row { room: room(name), record: PresenceRecord::new(presence) }
}

/// The row, last seen at this time.
#[must_use]
pub fn seen_at(seconds: i64, mut row: Row) -> Row {
    row.record.last_seen = at(seconds);
    row
}

/// A connection that was seen at this time, whose rows are not counted.
#[must_use]
pub fn seen(connection: u128, seconds: i64) -> Seen {
    Seen { connection: id(connection), at: at(seconds), rooms: 0 }
}

/// A batch that only adds presences.
#[must_use]
pub fn upserts(rows: impl IntoIterator<Item = Row>) -> Batch {
    Batch { upserts: rows.into_iter().collect(), ..Batch::default() }
}

/// Starts node `n` with a lease from the start on.
pub fn start(store: &mut impl Store) {
    let _ = store.start(&node("n"), at(0), LEASE).unwrap();
}

/// Writes a batch as node `n`.
pub fn write(store: &mut impl Store, batch: &Batch) {
    write_as("n", store, batch);
}

/// Writes a batch as this node.
pub fn write_as(name: &str, store: &mut impl Store, batch: &Batch) {
    assert_eq!(store.apply(&node(name), batch, at(0)).unwrap(), Applied::default());
}

fn counts(name: &str, connections: usize, users: usize, anonymous: usize) -> RoomCounts {
    RoomCounts { channel_name: name.to_owned(), connections, users, anonymous }
}

/// Creates a module with tests for the rules of every [`Store`](crate::store::Store), on a
/// [`StoreFixture`](crate::testing::store_contract::StoreFixture).
///
#[macro_export]
macro_rules! store_contract {
    ($module:ident, $fixture:ty) => {
        $crate::store_contract! { $module, $fixture, every:
            a_row_holds_what_was_written
            a_batch_can_be_given_twice
            being_seen_is_for_all_presences_of_this_node
            a_connection_with_fewer_rows_than_it_should_have_is_named
            more_than_one_chunk_is_written_and_deleted
            rows_deleted_by_hand_come_back
            a_room_deleted_by_hand_takes_its_rows_and_comes_back
            a_row_that_cannot_be_written_is_set_aside
            a_lease_that_is_gone_lapses
            pruning_spares_equal_age_and_living_owners
            pruning_rooms_removes_the_empty_ones
            rooms_count_users_once_and_the_anonymous_each
            rooms_count_the_presences_of_live_nodes
            stopping_removes_the_presences_of_the_node
            a_store_answers_after_a_failed_call
        }
    };
    ($module:ident, $fixture:ty, $part:ident: $($test:ident)*) => {
        mod $module {
            #[allow(unused_imports, reason = "the fixture may be named with its path")]
            use super::*;

            $(
                #[test]
                fn $test() {
                    use $crate::testing::store_contract::{StoreFixture, $part};
                    $part::$test(<$fixture as StoreFixture>::new());
                }
            )*
        }
    };
}

/// Creates a module with tests for the rules of a [`SharedStore`](crate::store::SharedStore)
/// besides those of every store, on a [`SharedStoreFixture`](crate::testing::store_contract::SharedStoreFixture).
#[macro_export]
macro_rules! shared_store_contract {
    ($module:ident, $fixture:ty) => {
        $crate::store_contract! { $module, $fixture, shared:
            the_time_is_that_by_which_leases_are_judged
            a_row_holds_its_session_its_grace_and_its_generation
            a_batch_raises_the_head_and_extends_the_lease
            a_node_whose_row_is_gone_writes_nothing_until_it_has_renewed
            what_a_node_without_a_row_had_left_is_gone_when_it_renews
            an_expired_lease_is_held_again_unless_the_node_was_reaped
            a_name_that_another_process_has_taken_is_reported
            a_name_whose_lease_is_over_is_taken_with_nothing_of_its_rows
            a_further_store_of_the_process_goes_on_without_an_end
            an_earlier_state_of_the_database_is_noticed
            a_start_inherits_what_an_earlier_life_left
            the_higher_generation_holds_a_presence_and_then_the_later_name
            the_rows_of_others_are_not_deleted_and_not_touched
            the_head_and_the_rows_are_of_one_moment
            what_is_read_is_of_the_rooms_asked_for_and_of_nodes_that_have_a_row
            a_node_is_reaped_once_its_lease_has_expired
            of_two_that_reap_at_once_one_does
            a_node_is_reaped_or_goes_on_but_not_both
            a_node_that_hands_over_leaves_what_fades
            connections_are_found_in_their_rooms
            presences_are_found_by_room_and_connection
            rooms_are_listed_by_their_bytes_a_page_at_a_time
            a_user_is_where_their_connections_are
            connections_are_each_named_once_with_their_node
            two_nodes_that_write_the_same_rooms_do_not_lock_one_another_out
            a_room_that_is_entered_is_not_pruned
            a_node_whose_presences_are_pruned_notices
            all_stores_of_a_database_have_one_identity
            of_those_that_make_an_identity_at_once_all_have_the_same
            two_databases_have_two_identities
        }
    };
}

/// Creates a module with tests for the rules of a [`Store`](crate::store::Store) that belongs to
/// one process, besides those of every store, on a [`StoreFixture`](crate::testing::store_contract::StoreFixture).
#[macro_export]
macro_rules! owned_store_contract {
    ($module:ident, $fixture:ty) => {
        $crate::store_contract! { $module, $fixture, every:
            starting_removes_and_names_the_dead
            a_lease_lapses_when_it_is_over
        }
    };
}
