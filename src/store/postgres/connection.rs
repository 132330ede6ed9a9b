//! Connections to PostgreSQL: their options, and their errors.

use std::time::Duration;

use diesel::{
    Connection, PgConnection, QueryableByName,
    connection::{InstrumentationEvent, SimpleConnection},
    result::Error as DieselError,
    sql_types::{Array, Bool, Text},
};

use super::{
    schema_name::SchemaName,
    statement::{SchemaConnection, statement},
};
use crate::store::{
    PostgresUrl, Pulse, Result, StoreError, answer_timeout,
    transaction::{Classify, Failure},
};

/// The timeouts of a `PostgresStore`, its schema and its clock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// How long connecting to a host may take. Default 5 s, at least 2 s.
    pub connect_timeout: Duration,
    /// How long the host may not answer before a connection is closed. Default 5 s.
    pub tcp_timeout: Duration,
    /// How long the database may not answer before a call counts as hanging, see [`Pulse`]. Default 5 s.
    pub answer_timeout: Duration,
    /// How long a statement may take: less than the answer timeout, so that a database that lives ends it by
    /// itself. Default 3.3 s.
    pub statement_timeout: Duration,
    /// How long a statement may take that may affect all rows of a node or of the table: to start,
    /// stop, reap, prune and list. Default 60 s.
    pub long_statement_timeout: Duration,
    /// How long a statement waits for locks. Default 2 s.
    pub lock_timeout: Duration,
    /// How long a transaction may be idle before the database ends it. Default 10 s.
    pub idle_transaction_timeout: Duration,
    /// How long opening waits for others that migrate the same database. Default 30 s.
    pub open_timeout: Duration,
    /// The schema that has the tables; created if it is missing. Default none: the schema that the
    /// connection's `search_path` says.
    pub schema: Option<SchemaName>,
    /// The clock by which leases are judged. Default [`LeaseClock::Database`].
    pub clock: LeaseClock,
}

/// The clock by which leases are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseClock {
    /// The clock of the database, which is the same for every node.
    Database,
    /// The time argument of each call, for tests.
    Given,
}

impl PostgresOptions {
    /// The timeouts of a node with this lease: a call is given up after a third of it, at least 2 s and at
    /// most 10 s, so that a lease of 6 s or more is renewed in time on another connection.
    #[must_use]
    pub fn for_lease(lease: Duration) -> Self {
        let answer_timeout = answer_timeout(lease);
        Self {
            connect_timeout: answer_timeout,
            tcp_timeout: answer_timeout,
            answer_timeout,
            statement_timeout: answer_timeout * 2 / 3,
            long_statement_timeout: Duration::from_secs(60),
            lock_timeout: answer_timeout * 2 / 5,
            idle_transaction_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(30),
            schema: None,
            clock: LeaseClock::Database,
        }
    }
}

impl Default for PostgresOptions {
    /// The timeouts for a lease of 15 s.
    fn default() -> Self {
        Self::for_lease(Duration::from_secs(15))
    }
}

/// Opens a connection; the pulse shows each answer on it.
pub(super) fn connect(
    url: &PostgresUrl,
    options: &PostgresOptions,
    pulse: &Pulse,
) -> Result<PgConnection> {
    let mut conn =
        PgConnection::establish(&with_options(url, options)).map_err(StoreError::unavailable)?;
    let pulse = pulse.clone();
    pulse.answered();
    conn.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::FinishQuery { .. } = event {
            pulse.answered();
        }
    });
    conn.batch_execute(&settings(options)).map_err(query_error)?;
    Ok(conn)
}

/// The URL with the options that libpq needs before it connects.
pub(super) fn with_options(url: &PostgresUrl, options: &PostgresOptions) -> String {
    // Keep-alives begin after half of the time, and there are three until its end.
    let tcp = options.tcp_timeout;
    let seconds = |duration: Duration| duration.as_secs().max(1).to_string();
    url.with_options(&[
        ("application_name", "actix-presence".to_owned()),
        ("connect_timeout", seconds(options.connect_timeout)),
        ("tcp_user_timeout", tcp.as_millis().to_string()),
        ("keepalives_idle", seconds(tcp / 2)),
        ("keepalives_interval", seconds(tcp / 6)),
        ("keepalives_count", "3".to_owned()),
    ])
}

/// The settings of a session. The statements depend on the isolation level: each sees what was committed
/// before it. A plan made when the tables were empty must not be cached.
fn settings(options: &PostgresOptions) -> String {
    format!(
        "SET TIME ZONE 'UTC';
         SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;
         SET plan_cache_mode = force_custom_plan;
         SET statement_timeout = {};
         SET lock_timeout = {};
         SET idle_in_transaction_session_timeout = {}",
        millis(options.statement_timeout),
        millis(options.lock_timeout),
        millis(options.idle_transaction_timeout),
    )
}

/// Limits the statements of the open transaction that follow.
pub(super) fn limit_statements(
    conn: &mut SchemaConnection<'_>,
    statements: Duration,
    locks: Duration,
) -> Result<(), Failure> {
    statement(
        "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)",
    )
    .bind::<Text>(millis(statements).to_string())
    .bind::<Text>(millis(locks).to_string())
    .execute(conn)?;
    Ok(())
}

/// A timeout in milliseconds, where 0 would mean none.
pub(super) fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1)
}

impl Classify for PgConnection {
    /// Diesel keeps the code of the error to itself, and its text is in whatever language.
    fn classify(error: DieselError) -> Failure {
        Failure::Unknown(error)
    }
}

pub(super) fn query_error(error: DieselError) -> StoreError {
    Failure::Query(error).into_error::<PgConnection>()
}

/// What an error of no known kind is about, by trial: whether the connection still answers, and whether the
/// tables are those that the statements are for.
pub(super) fn diagnose(conn: &mut SchemaConnection<'_>, error: DieselError) -> Failure {
    let (tables, columns): (Vec<_>, Vec<_>) =
        COLUMNS.into_iter().map(|(table, column)| (conn.table(table), column)).unzip();
    let fit = statement(FIT)
        .bind::<Array<Text>>(tables)
        .bind::<Array<Text>>(columns)
        .bind::<Text>(conn.table("rooms"))
        .bind::<Text>(conn.table("presences"));
    match fit.get_result(conn) {
        Ok(Fit { fit: true }) => Failure::Unknown(error),
        Ok(Fit { fit: false }) => StoreError::Schema { source: error.into() }.into(),
        // The first error says why.
        Err(_) => StoreError::unavailable(error).into(),
    }
}

/// The columns that the statements need, with their tables.
const COLUMNS: [(&str, &str); 22] = [
    ("rooms", "id"),
    ("rooms", "channel_name"),
    ("rooms", "created_at"),
    ("presences", "id"),
    ("presences", "room_id"),
    ("presences", "channel_name"),
    ("presences", "user_id"),
    ("presences", "info"),
    ("presences", "joined_at"),
    ("presences", "updated_at"),
    ("presences", "last_seen"),
    ("presences", "session_key"),
    ("presences", "fixed_info"),
    ("presences", "fading_until"),
    ("presences", "turn"),
    ("presences", "current_connection"),
    ("presences", "node_id"),
    ("nodes", "id"),
    ("nodes", "incarnation"),
    ("nodes", "head"),
    ("nodes", "leaving"),
    ("nodes", "lease_expires_at"),
];

/// Whether the tables have their columns, and those two unique keys that conflicts are resolved by. Takes no
/// lock on them.
const FIT: &str = "
    SELECT NOT EXISTS (
        SELECT FROM unnest($1, $2) AS known (table_name, column_name)
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute
            WHERE attrelid = to_regclass(known.table_name)
                AND attname = known.column_name AND NOT attisdropped))
    AND 2 = (
        SELECT count(DISTINCT indrelid) FROM pg_index
        WHERE indisunique AND indisvalid AND indpred IS NULL AND (
            indrelid = to_regclass($3) AND indnkeyatts = 1 AND indkey[0] <> (
                SELECT attnum FROM pg_attribute
                WHERE attrelid = to_regclass($3) AND attname = 'id')
            OR indrelid = to_regclass($4) AND indnkeyatts = 2)) AS fit";

#[derive(QueryableByName)]
struct Fit {
    #[diesel(sql_type = Bool)]
    fit: bool,
}
