//! What every [`Store`] has to do, as tests to run on one.
//!
//! Whoever writes a store gives it a [`Bench`], and a module of tests with one of the macros:
//! [`store_contract!`](crate::store_contract) for what every store does;
//! [`shared_store_contract!`](crate::shared_store_contract) for a [`SharedStore`], on a
//! [`SharedBench`]; [`owned_store_contract!`](crate::owned_store_contract) for a store that belongs
//! to one process.
//!
//! ```
//! # #![allow(dead_code, reason = "tests are left out here")]
//! use actix_presence::{
//!     ConnectionId, NodeName,
//!     store::Row,
//!     testing::{
//!         MemoryDatabase, MemoryStore,
//!         store_contract::{Bench, Deed, Verb},
//!     },
//! };
//!
//! struct Memory(MemoryDatabase, MemoryStore);
//!
//! impl Bench for Memory {
//!     type Store = MemoryStore;
//!     fn new() -> Self {
//!         let database = MemoryDatabase::new();
//!         let store = database.store();
//!         Self(database, store)
//!     }
//!     fn store(&mut self) -> &mut MemoryStore {
//!         &mut self.1
//!     }
//!     fn by_hand(&mut self, deed: Deed<'_>) {
//!         self.0.by_hand(deed)
//!     }
//!     fn rows(&mut self) -> Vec<(NodeName, Row)> {
//!         self.0.rows()
//!     }
//!     fn refuse(&mut self, verb: Verb, connection: ConnectionId) {
//!         self.0.refuse(verb, connection)
//!     }
//! }
//!
//! actix_presence::store_contract!(memory, super::Memory);
//! ```

pub mod every;
pub mod shared;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    model::{ConnectionId, Info, NodeName, Presence, PresenceRecord, RoomName, UserId},
    store::{Applied, Batch, RoomCounts, Row, SharedStore, Store},
};

/// A store with a way to meddle with its database behind its back.
pub trait Bench {
    /// The store to test.
    type Store: Store;

    /// An empty database with the tables in it.
    fn new() -> Self;

    /// The store, always the same one.
    fn store(&mut self) -> &mut Self::Store;

    /// Does something as somebody with a shell would.
    fn by_hand(&mut self, deed: Deed<'_>);

    /// Every presence with the node that holds it, ordered by room (byte by byte) and connection.
    fn rows(&mut self) -> Vec<(NodeName, Row)>;

    /// Makes the database refuse every presence of a connection, with a reason that has the word
    /// "refused" in it.
    fn refuse(&mut self, verb: Verb, connection: ConnectionId);
}

/// A [`Bench`] whose database several stores share. Leases are judged by the time they are given.
pub trait SharedBench: Bench<Store: SharedStore> {
    /// Another store on the same database, as another node has it.
    fn another(&mut self) -> Self::Store;
}

/// What is done to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// It is made.
    Insert,
    /// It is changed.
    Update,
    /// It is removed.
    Delete,
}

impl Verb {
    /// The verb in SQL.
    #[must_use]
    pub fn as_sql(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// Something that is done to a database by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed<'a> {
    /// All presences are deleted.
    DeletePresences,
    /// A room is deleted, and so are its presences.
    DeleteRoom(&'a str),
    /// A room is made.
    AddRoom(&'a str),
    /// A node is made whose lease has run out long ago.
    AddDeadNode(&'a str),
    /// All nodes are deleted.
    DeleteNodes,
    /// The table of the nodes is taken away.
    HideNodes,
    /// The table of the nodes is there again.
    ShowNodes,
}

impl Deed<'_> {
    /// The deed in SQL, for names without quotes.
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
            Self::HideNodes => "ALTER TABLE nodes RENAME TO hidden".to_owned(),
            Self::ShowNodes => "ALTER TABLE hidden RENAME TO nodes".to_owned(),
        }
    }
}

/// The lease in these tests.
pub const LEASE: Duration = Duration::from_secs(15);

/// A time, so many seconds after some start.
///
/// # Panics
///
/// Never with a number of seconds that makes sense.
#[must_use]
pub fn at(seconds: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
    start + TimeDelta::seconds(seconds)
}

/// The name of a node.
///
/// # Panics
///
/// If it is none.
#[must_use]
pub fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

/// The name of a room.
///
/// # Panics
///
/// If it is none.
#[must_use]
pub fn room(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

/// The id with a number.
#[must_use]
pub fn id(number: u128) -> ConnectionId {
    ConnectionId::from_u128(number)
}

/// A row of a presence that joined and was heard of at the start.
///
/// # Panics
///
/// If a name is none.
#[must_use]
pub fn row(name: &str, connection: u128, user: Option<&str>) -> Row {
    let presence = Presence {
        connection: id(connection),
        user: user.map(|user| UserId::new(user).unwrap()),
        info: Info::EMPTY,
        joined_at: at(0),
    };
    Row { room: room(name), record: PresenceRecord::new(presence) }
}

/// The row with a sign of life at this time.
#[must_use]
pub fn seen_at(seconds: i64, mut row: Row) -> Row {
    row.record.last_seen = at(seconds);
    row
}

/// A batch that only adds presences.
#[must_use]
pub fn upserts(rows: impl IntoIterator<Item = Row>) -> Batch {
    Batch { upserts: rows.into_iter().collect(), ..Batch::default() }
}

/// Writes a batch as node `n`, all of it.
///
/// # Panics
///
/// If the store does not.
pub fn write(store: &mut impl Store, batch: &Batch) {
    write_as("n", store, batch);
}

/// Writes a batch as some node, all of it.
///
/// # Panics
///
/// If the store does not.
pub fn write_as(name: &str, store: &mut impl Store, batch: &Batch) {
    assert_eq!(store.apply(&node(name), batch, at(0)).unwrap(), Applied::default());
}

fn counts(name: &str, connections: usize, users: usize, anonymous: usize) -> RoomCounts {
    RoomCounts { channel_name: name.to_owned(), connections, users, anonymous }
}

/// Makes a module of tests: the duties of every [`Store`](crate::store::Store), on a
/// [`Bench`](crate::testing::store_contract::Bench).
///
/// The type is named as seen from that module, so with `super::`.
#[macro_export]
macro_rules! store_contract {
    ($module:ident, $bench:ty) => {
        $crate::store_contract! { $module, $bench, every:
            a_row_holds_what_was_written
            a_batch_can_be_given_twice
            a_sign_of_life_is_for_all_presences_of_this_node
            more_than_one_chunk_is_written_and_deleted
            rows_deleted_by_hand_come_back
            a_room_deleted_by_hand_takes_its_rows_and_comes_back
            a_row_that_cannot_be_written_is_set_aside
            a_lease_that_is_gone_lapses
            pruning_spares_equal_age_and_living_owners
            pruning_rooms_removes_the_empty_ones
            rooms_count_users_once_and_the_anonymous_each
            stopping_takes_what_is_ones_own
            a_store_answers_after_a_failed_call
        }
    };
    ($module:ident, $bench:ty, $part:ident: $($test:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $test() {
                    use $crate::testing::store_contract::{Bench, $part};
                    $part::$test(<$bench as Bench>::new());
                }
            )*
        }
    };
}

/// Makes a module of tests: the duties of a [`SharedStore`](crate::store::SharedStore)
/// besides those of every store, on a [`SharedBench`](crate::testing::store_contract::SharedBench).
#[macro_export]
macro_rules! shared_store_contract {
    ($module:ident, $bench:ty) => {
        $crate::store_contract! { $module, $bench, shared:
            a_row_holds_its_session_its_fading_and_its_turn
            a_batch_raises_the_head_and_extends_the_lease
            a_node_whose_row_is_gone_writes_nothing_until_it_has_renewed
            what_a_node_without_a_row_had_left_is_gone_when_it_renews
            a_lease_that_is_over_is_held_again_if_nobody_has_buried_the_node
            a_name_that_another_process_has_taken_is_told
            a_start_inherits_what_an_earlier_life_left
            the_higher_turn_holds_a_presence_and_then_the_later_name
            the_rows_of_others_are_not_deleted_and_not_touched
            the_head_and_the_rows_are_of_one_moment
            what_is_read_is_of_the_rooms_asked_for_and_of_nodes_that_have_a_row
            a_node_is_buried_once_its_lease_is_over
            of_two_who_bury_at_once_one_does
            a_node_is_buried_or_goes_on_but_not_both
            a_node_that_hands_over_leaves_what_fades
            connections_are_found_in_their_rooms
            presences_are_found_by_room_and_connection
            rooms_are_listed_by_their_bytes_a_page_at_a_time
            a_user_is_where_their_connections_are
            connections_are_each_named_once_with_their_node
            two_nodes_that_write_the_same_rooms_do_not_lock_one_another_out
            a_room_that_somebody_enters_is_not_pruned
            a_node_whose_presences_are_pruned_hears_of_it
        }
    };
}

/// Makes a module of tests: the duties of a [`Store`](crate::store::Store) that belongs to
/// one process, besides those of every store, on a [`Bench`](crate::testing::store_contract::Bench).
#[macro_export]
macro_rules! owned_store_contract {
    ($module:ident, $bench:ty) => {
        $crate::store_contract! { $module, $bench, every:
            starting_removes_and_names_the_dead
            a_lease_lapses_when_it_is_over
        }
    };
}
