//! The tables of PostgreSQL as migrations, embedded in the binary.

use diesel::{
    PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection,
    migration::MigrationSource, pg::Pg, sql_query, sql_types::Text,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{
    PostgresOptions, PostgresUrl,
    connect::{connect, millis},
    statement::statement,
};
use crate::store::{StoreError, migrate::migration_error};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// Brings the tables up to this version. Answers how many migrations that took.
pub(in crate::store) fn migrate(
    url: &PostgresUrl,
    options: PostgresOptions,
) -> Result<usize, StoreError> {
    let mut conn = connect(url, options)?;
    // Asked first as somebody who may not make tables, and without the lock.
    if is_up_to_date(&mut conn)? {
        return Ok(0);
    }
    // Given back with the connection, whatever happens.
    let patience = millis(options.open_timeout);
    conn.batch_execute(&format!("SET lock_timeout = {patience}; SET statement_timeout = 0"))?;
    statement("SELECT pg_advisory_lock(hashtext('actix-presence: migrate'))").execute(&mut conn)?;
    let applied = conn.run_pending_migrations(MIGRATIONS).map_err(migration_error)?;
    Ok(applied.len())
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Whether every migration was done; not so if there is no table that says so.
fn is_up_to_date(conn: &mut PgConnection) -> Result<bool, StoreError> {
    let versions = sql_query("SELECT version FROM __diesel_schema_migrations").load(conn);
    let versions: Vec<Version> = match versions.map_err(StoreError::from) {
        Err(StoreError::Schema { .. }) => return Ok(false),
        versions => versions?,
    };
    let known = MigrationSource::<Pg>::migrations(&MIGRATIONS).map_err(migration_error)?;
    let done = |version: &str| versions.iter().any(|found| found.version == version);
    Ok(known.iter().all(|migration| done(&migration.name().version().to_string())))
}
