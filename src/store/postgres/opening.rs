//! What is checked when a database is opened.

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl,
    connection::SimpleConnection,
    sql_query,
    sql_types::{Integer, Text},
};

use super::{
    connection::{PostgresOptions, connect, millis, query_error, with_options},
    migrate::Place,
    rights::create_schema,
};
use crate::store::{
    PostgresUrl, Pulse, Result, StoreError,
    transaction::{Failure, transact},
};

/// Checks a database, and migrates its tables to this version. Returns the number of migrations applied.
pub(in crate::store) fn migrate(url: &PostgresUrl, options: &PostgresOptions) -> Result<usize> {
    let (url, options, pulse) = (url.clone(), options.clone(), Pulse::default());
    pulse.clone().watch(move || {
        // Connecting has a timeout of its own, for each address of the host.
        let _waiting = pulse.begin(options.answer_timeout + options.connect_timeout * 4);
        refuse_transaction_pooler(&url, &options)?;
        let mut conn = connect(&url, &options, &pulse)?;
        check_encoding(&mut conn)?;
        migrate_on(&mut conn, &options, &pulse).map_err(Failure::into_error::<PgConnection>)
    })
}

fn migrate_on(
    conn: &mut PgConnection,
    options: &PostgresOptions,
    pulse: &Pulse,
) -> Result<usize, Failure> {
    let schema = options.schema.as_ref();
    // Checked first without the lock, and for roles that may not create tables.
    let is_up_to_date = Place::find(conn, schema)?.is_up_to_date()?;
    if is_up_to_date { Ok(0) } else { migrate_locked(conn, options, pulse) }
}

/// Migrates while no other process does, in one transaction: what is refused on the way leaves nothing behind.
fn migrate_locked(
    conn: &mut PgConnection,
    options: &PostgresOptions,
    pulse: &Pulse,
) -> Result<usize, Failure> {
    let schema = options.schema.as_ref();
    pulse.allow(options.open_timeout.max(options.long_statement_timeout) * 2);
    // The connection is closed in any case, which releases the lock.
    let (locks, statements) =
        (millis(options.open_timeout), millis(options.long_statement_timeout));
    let settings = format!("SET lock_timeout = {locks}; SET statement_timeout = {statements}");
    conn.batch_execute(&settings)?;
    sql_query("SELECT pg_advisory_lock(hashtext('actix-presence: migrate'))").execute(conn)?;
    transact(conn, |conn| {
        if let Some(schema) = schema {
            create_schema(conn, schema)?;
        }
        // Another process may have migrated meanwhile.
        Place::find(conn, schema)?.migrate(conn)
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
fn refuse_transaction_pooler(url: &PostgresUrl, options: &PostgresOptions) -> Result<()> {
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
