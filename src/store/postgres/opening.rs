//! What is checked when a database is opened, and its migrations.

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl,
    connection::SimpleConnection,
    migration::MigrationSource,
    pg::Pg,
    sql_query,
    sql_types::{Bool, Integer, Text},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::connection::{PostgresOptions, connect, millis, query_error, statement, with_options};
use crate::store::{PostgresUrl, Pulse, Result, StoreError, transaction::migration_error};

const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// Checks a database, and migrates its tables to this version. Returns the number of migrations applied.
pub(in crate::store) fn migrate(url: &PostgresUrl, options: PostgresOptions) -> Result<usize> {
    let (url, pulse) = (url.clone(), Pulse::default());
    pulse.clone().watch(move || {
        // Connecting has a timeout of its own, for each address of the host.
        let _waiting = pulse.begin(options.answer_timeout + options.connect_timeout * 4);
        refuse_transaction_pooler(&url, options)?;
        let mut conn = connect(&url, options, &pulse)?;
        check_encoding(&mut conn)?;
        // Checked first without the lock, and for roles that may not create tables.
        if is_up_to_date(&mut conn)? {
            return Ok(0);
        }
        pulse.allow(options.open_timeout.max(options.long_statement_timeout) * 2);
        // The connection is closed in any case, which releases the lock.
        let (locks, statements) =
            (millis(options.open_timeout), millis(options.long_statement_timeout));
        let settings = format!("SET lock_timeout = {locks}; SET statement_timeout = {statements}");
        conn.batch_execute(&settings).map_err(query_error)?;
        statement("SELECT pg_advisory_lock(hashtext('actix-presence: migrate'))")
            .execute(&mut conn)
            .map_err(query_error)?;
        let applied = conn
            .run_pending_migrations(POSTGRES_MIGRATIONS)
            .map_err(migration_error::<PgConnection>)?;
        Ok(applied.len())
    })
}

#[derive(QueryableByName)]
struct Backend {
    #[diesel(sql_type = Integer)]
    pid: i32,
}

/// The process of the server that a transaction of this connection is carried out by; `during` is run within
/// the transaction.
fn backend(conn: &mut PgConnection, during: impl FnOnce() -> Result<()>) -> Result<i32> {
    conn.batch_execute("BEGIN").map_err(query_error)?;
    let backend = sql_query("SELECT pg_backend_pid() AS pid").get_result(conn);
    let Backend { pid } = backend.map_err(query_error)?;
    during()?;
    conn.batch_execute("COMMIT").map_err(query_error)?;
    Ok(pid)
}

/// Refuses a pooler that gives each transaction another session: settings, prepared statements and locks are
/// those of a session. Nothing is set before, since others would get it.
///
/// While the first connection is idle, a pooler gives its session to the second one, and to the first
/// afterwards another one, or none if there is none left.
fn refuse_transaction_pooler(url: &PostgresUrl, options: PostgresOptions) -> Result<()> {
    let url = with_options(url, options);
    let connect = || PgConnection::establish(&url).map_err(StoreError::unavailable);
    let (mut first, mut second) = (connect()?, connect()?);
    let before = backend(&mut first, || Ok(()))?;
    let mut after = None;
    let other = backend(&mut second, || {
        let pulse = Pulse::default();
        let _waiting = pulse.begin(options.answer_timeout);
        after = match pulse.watch(move || backend(&mut first, || Ok(()))) {
            Err(StoreError::Stalled) => None,
            after => Some(after?),
        };
        Ok(())
    })?;
    if other != before && after.is_none() {
        return Err(StoreError::Stalled);
    }
    if other == before || after != Some(before) {
        let reason = "a connection pooler in between gives each transaction another session, as \
            PgBouncer does with `pool_mode = transaction`: use `pool_mode = session`, or connect to \
            the database itself";
        return Err(StoreError::Unsuitable { reason: reason.to_owned() });
    }
    Ok(())
}

#[derive(QueryableByName)]
struct Encoding {
    #[diesel(sql_type = Text)]
    encoding: String,
}

/// Names and infos are of all languages.
fn check_encoding(conn: &mut PgConnection) -> Result<()> {
    let encoding = sql_query("SELECT current_setting('server_encoding') AS encoding");
    let Encoding { encoding } = encoding.get_result(conn).map_err(query_error)?;
    if encoding == "UTF8" {
        return Ok(());
    }
    let reason = format!(
        "the encoding of the database is {encoding}, and has to be UTF8: create one with \
         `ENCODING 'UTF8' TEMPLATE template0`"
    );
    Err(StoreError::Unsuitable { reason })
}

#[derive(QueryableByName)]
struct Present {
    #[diesel(sql_type = Bool)]
    present: bool,
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Whether every migration has been applied; there may be those of a newer version.
fn is_up_to_date(conn: &mut PgConnection) -> Result<bool> {
    let table = "SELECT to_regclass('__diesel_schema_migrations') IS NOT NULL AS present";
    let Present { present } = sql_query(table).get_result(conn).map_err(query_error)?;
    if !present {
        return Ok(false);
    }
    let versions = sql_query("SELECT version FROM __diesel_schema_migrations").load(conn);
    let versions: Vec<Version> = versions.map_err(query_error)?;
    let known = MigrationSource::<Pg>::migrations(&POSTGRES_MIGRATIONS);
    let known = known.map_err(migration_error::<PgConnection>)?;
    let applied = |version: &str| versions.iter().any(|found| found.version == version);
    Ok(known.iter().all(|migration| applied(&migration.name().version().to_string())))
}
