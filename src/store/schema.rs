//! The tables, for queries of an app that uses Diesel: here those of SQLite, in the form that `diesel
//! print-schema` gives them, in [`postgres`] those of PostgreSQL, which have more columns. Tests compare both
//! with the migrations.
//!
//! They are to be read: what an app writes into them is overwritten, or lost at the next start.
//!
//! ```
//! use actix_presence::store::schema::{nodes, presences, rooms};
//! use diesel::{dsl::now, prelude::*};
//!
//! /// Who is in a room, by the rows of nodes that live.
//! fn users(conn: &mut SqliteConnection, room: &str) -> QueryResult<Vec<Option<String>>> {
//!     presences::table
//!         .inner_join(rooms::table)
//!         .inner_join(nodes::table.on(nodes::id.eq(presences::node_id)))
//!         .filter(rooms::channel_name.eq(room))
//!         .filter(nodes::lease_expires_at.gt(now))
//!         .select(presences::user_id)
//!         .load(conn)
//! }
//! # let directory = tempfile::tempdir()?;
//! # let file = directory.path().join("presence.db");
//! # actix_presence::store::migrate(&format!("sqlite://{}", file.display()).parse()?)?;
//! # let mut conn = SqliteConnection::establish(file.to_str().unwrap_or_default())?;
//! # assert!(users(&mut conn, "lobby")?.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod postgres;

diesel::table! {
    /// Nodes that are, or were, alive.
    nodes (id) {
        /// Its name.
        id -> Text,
        /// When it started.
        started_at -> Timestamp,
        /// How long it vouches for its presences.
        lease_expires_at -> Timestamp,
    }
}

diesel::table! {
    /// One row for each connection in each room.
    presences (id) {
        /// Number of the row.
        id -> Integer,
        /// Which room.
        room_id -> Integer,
        /// Which connection.
        channel_name -> Text,
        /// Whose it is; null is anonymous.
        user_id -> Nullable<Text>,
        /// What the app attached, as JSON.
        info -> Text,
        /// When it joined the room.
        joined_at -> Timestamp,
        /// When it was last heard of.
        last_seen -> Timestamp,
        /// The node that holds the connection.
        node_id -> Text,
    }
}

diesel::table! {
    /// Rooms, also those that nobody is in any more.
    rooms (id) {
        /// Number of the row.
        id -> Integer,
        /// Its name.
        channel_name -> Text,
        /// When its row was made.
        created_at -> Timestamp,
    }
}

diesel::joinable!(presences -> rooms (room_id));

diesel::allow_tables_to_appear_in_same_query!(nodes, presences, rooms);
