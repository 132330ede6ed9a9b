//! The tables on PostgreSQL, for queries of an app that finds them by its `search_path`. For tables in a
//! schema that the app's path does not have there is [`postgres_tables!`](crate::postgres_tables).

/// Declares the tables on PostgreSQL, as `diesel::table!`s, in the module that it is called in: those of the
/// schema that it is given, or without one those that the `search_path` finds. The caller depends on `diesel`.
///
/// ```
/// use diesel::prelude::*;
///
/// mod realtime {
///     actix_presence::postgres_tables!(realtime);
/// }
///
/// use realtime::{presences, rooms};
///
/// let members = presences::table
///     .inner_join(rooms::table)
///     .filter(rooms::channel_name.eq("lobby"))
///     .select(presences::user_id);
/// # #[cfg(feature = "postgres")] {
/// let sql = diesel::debug_query::<diesel::pg::Pg, _>(&members).to_string();
/// assert!(sql.contains(r#""realtime"."presences" INNER JOIN "realtime"."rooms""#), "{sql}");
/// # }
/// ```
#[macro_export]
macro_rules! postgres_tables {
    ($($schema:ident)?) => {
        diesel::table! {
            /// Nodes that are, or were, alive.
            $($schema.)? nodes (id) {
                /// Its name.
                id -> Text,
                /// When it started.
                started_at -> Timestamp,
                /// How long it vouches for its presences.
                lease_expires_at -> Timestamp,
                /// Which life of a process of this name it is.
                incarnation -> Text,
                /// The number of its last batch.
                head -> BigInt,
                /// Whether it stops in order.
                leaving -> Bool,
            }
        }

        diesel::table! {
            /// One row for each connection in each room.
            $($schema.)? presences (id) {
                /// Number of the row.
                id -> BigInt,
                /// Which room.
                room_id -> BigInt,
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
                /// The key of its client session.
                session_key -> Nullable<Text>,
                /// How long it stays after its connection was lost; null while there is one.
                fading_until -> Nullable<Timestamp>,
                /// Which of the connections of its client session holds it: the higher wins.
                turn -> Integer,
                /// The part of the info that a token fixes, as JSON.
                fixed_info -> Text,
                /// The connection behind it, if that is another one than `channel_name`.
                current_connection -> Nullable<Text>,
                /// When it joined or its info was set last; null is the time of the join.
                updated_at -> Nullable<Timestamp>,
            }
        }

        diesel::table! {
            /// Rooms, also those that nobody is in any more.
            $($schema.)? rooms (id) {
                /// Number of the row.
                id -> BigInt,
                /// Its name.
                channel_name -> Text,
                /// When its row was made.
                created_at -> Timestamp,
            }
        }

        diesel::joinable!(presences -> rooms (room_id));

        diesel::allow_tables_to_appear_in_same_query!(nodes, presences, rooms);
    };
}

postgres_tables!();
