//! Connections to PostgreSQL: their options, their errors, the migrations, and prepared statements.

use std::time::Duration;

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl,
    connection::SimpleConnection,
    expression::{AsExpression, TypedExpressionType},
    migration::MigrationSource,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    result::{DatabaseErrorInformation, Error as DieselError, QueryResult},
    sql_query,
    sql_types::{SingleValue, SqlType, Text, Untyped},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::store::{
    PostgresUrl, Result, StoreError,
    transaction::{Classify, Failure, Kind, kind_of, migration_error},
};

const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// The timeouts of a `PostgresStore`, and its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// How long connecting to a host may take. Default 5 s, at least 2 s.
    pub connect_timeout: Duration,
    /// How long the host may not answer before a connection is closed. Default 5 s.
    pub tcp_timeout: Duration,
    /// How long a statement may take. Default 5 s.
    pub statement_timeout: Duration,
    /// How long a statement may take that may affect all rows of a node or of the table: to start,
    /// stop, reap, prune and list. Default 60 s.
    pub long_statement_timeout: Duration,
    /// How long a statement waits for locks. Default 3 s.
    pub lock_timeout: Duration,
    /// How long a transaction may be idle before the database ends it. Default 10 s.
    pub idle_transaction_timeout: Duration,
    /// How long opening waits for others that migrate the same database. Default 30 s.
    pub open_timeout: Duration,
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

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            tcp_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
            long_statement_timeout: Duration::from_secs(60),
            lock_timeout: Duration::from_secs(3),
            idle_transaction_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(30),
            clock: LeaseClock::Database,
        }
    }
}

/// Opens a connection.
pub(super) fn connect(url: &PostgresUrl, options: PostgresOptions) -> Result<PgConnection> {
    let mut conn =
        PgConnection::establish(&with_options(url, options)).map_err(StoreError::unavailable)?;
    conn.batch_execute(&settings(options)).map_err(StoreError::unavailable)?;
    Ok(conn)
}

/// The URL with the options that libpq needs before it connects.
fn with_options(url: &PostgresUrl, options: PostgresOptions) -> String {
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
/// before it. A plan made when the tables were empty must not be cached. Only a superuser can ask for
/// messages in English.
fn settings(options: PostgresOptions) -> String {
    format!(
        "SET TIME ZONE 'UTC';
         SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;
         SET plan_cache_mode = force_custom_plan;
         SET statement_timeout = {};
         SET lock_timeout = {};
         SET idle_in_transaction_session_timeout = {};
         SELECT set_config('lc_messages', 'C', false) WHERE current_setting('is_superuser')::boolean",
        millis(options.statement_timeout),
        millis(options.lock_timeout),
        millis(options.idle_transaction_timeout),
    )
}

/// A timeout in milliseconds, where 0 would mean none.
pub(super) fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Errors by their messages: Diesel has a kind only for a few codes. These are the texts of the locale `C`,
/// which each connection asks for; only a superuser gets it, but the default of most servers is English.
const POSTGRES_MESSAGES: [(Kind, &[&str]); 7] = [
    (
        Kind::Locked,
        &[
            "canceling statement due to lock timeout",
            "canceling statement due to statement timeout",
            "could not obtain lock",
        ],
    ),
    (Kind::Conflict, &["deadlock detected", "could not serialize access"]),
    (Kind::Full, &["could not extend file"]),
    (Kind::ReadOnly, &["permission denied", "must be owner of"]),
    (
        Kind::Corrupt,
        &["invalid page in block", "could not read block", "missing chunk", "unexpected chunk"],
    ),
    (
        Kind::Unavailable,
        &[
            "canceling statement due to",
            "terminating connection",
            "server closed the connection",
            "no connection to the server",
            "lost synchronization with server",
            "could not receive data",
            "could not send data",
            "SSL ",
            "the database system is",
            "current transaction is aborted",
            "idle-in-transaction timeout",
            "out of memory",
            "out of shared memory",
            "too many ",
            "sorry, too many clients",
            "remaining connection slots",
            "temporary file size exceeds",
            "could not open file",
            "could not access",
            "could not write",
            "could not fsync",
            "prepared statement ",
        ],
    ),
    (
        Kind::Schema,
        &["there is no unique or exclusion constraint", "cached plan must not change result type"],
    ),
];

impl Classify for PgConnection {
    fn kind(info: &dyn DatabaseErrorInformation) -> Option<Kind> {
        const FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];
        const OBJECTS: [&str; 4] = ["relation ", "column ", "type ", "function "];
        let message = info.message();
        if FULL.iter().any(|text| message.contains(text)) {
            return Some(Kind::Full);
        }
        let missing = OBJECTS.iter().any(|object| message.starts_with(object))
            && message.ends_with(" does not exist");
        // A position in the statement is given for those that do not fit the tables: with the tables of
        // the migrations all of them do.
        let misfit = missing || info.statement_position().is_some();
        kind_of(message, &POSTGRES_MESSAGES).or(misfit.then_some(Kind::Schema))
    }
}

fn query_error(error: DieselError) -> StoreError {
    Failure::Query(error).into_error::<PgConnection>()
}

/// Migrates the tables to this version. Returns the number of migrations applied.
pub(in crate::store) fn migrate(url: &PostgresUrl, options: PostgresOptions) -> Result<usize> {
    let mut conn = connect(url, options)?;
    // Checked first without the lock, and for roles that may not create tables.
    if is_up_to_date(&mut conn)? {
        return Ok(0);
    }
    // The connection is closed in any case, which releases the lock.
    let timeout = millis(options.open_timeout);
    let settings = format!("SET lock_timeout = {timeout}; SET statement_timeout = 0");
    conn.batch_execute(&settings).map_err(query_error)?;
    statement("SELECT pg_advisory_lock(hashtext('actix-presence: migrate'))")
        .execute(&mut conn)
        .map_err(query_error)?;
    let applied = conn
        .run_pending_migrations(POSTGRES_MIGRATIONS)
        .map_err(migration_error::<PgConnection>)?;
    Ok(applied.len())
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Whether every migration has been applied; not so if the table of migrations is missing.
fn is_up_to_date(conn: &mut PgConnection) -> Result<bool> {
    let versions = sql_query("SELECT version FROM __diesel_schema_migrations").load(conn);
    let versions: Vec<Version> = match versions.map_err(query_error) {
        Err(StoreError::Schema { .. }) => return Ok(false),
        versions => versions?,
    };
    let known = MigrationSource::<Pg>::migrations(&POSTGRES_MIGRATIONS);
    let known = known.map_err(migration_error::<PgConnection>)?;
    let applied = |version: &str| versions.iter().any(|found| found.version == version);
    Ok(known.iter().all(|migration| applied(&migration.name().version().to_string())))
}

/// SQL in which `$1`, `$2`, … are the bound values in their order; the result is read by column name.
///
/// Unlike `diesel::sql_query`, it is prepared once for each connection.
pub(super) struct Statement<'a> {
    sql: &'static str,
    values: Vec<Box<dyn QueryFragment<Pg> + 'a>>,
}

/// A statement without values yet.
pub(super) fn statement<'a>(sql: &'static str) -> Statement<'a> {
    Statement { sql, values: Vec::new() }
}

impl<'a> Statement<'a> {
    /// Adds the next value.
    pub(super) fn bind<T>(
        mut self,
        value: impl AsExpression<T, Expression: QueryFragment<Pg> + 'a>,
    ) -> Self
    where
        T: SqlType + TypedExpressionType + SingleValue,
    {
        self.values.push(Box::new(value.as_expression()));
        self
    }
}

impl QueryFragment<Pg> for Statement<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut rest = self.sql;
        for (number, value) in (1..).zip(&self.values) {
            let mark = format!("${number}");
            if let Some((before, after)) = rest.split_once(mark.as_str()) {
                out.push_sql(before);
                value.walk_ast(out.reborrow())?;
                rest = after;
            }
        }
        out.push_sql(rest);
        Ok(())
    }
}

impl QueryId for Statement<'_> {
    type QueryId = ();
    // Diesel caches the prepared statement by its text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement<'_> {
    type SqlType = Untyped;
}

impl<C> RunQueryDsl<C> for Statement<'_> {}
