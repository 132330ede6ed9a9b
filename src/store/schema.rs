//! The tables, in the form `diesel print-schema` gives them; a test compares them with the migrations.

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
