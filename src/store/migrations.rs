//! The migrations of a database: which ones there are, which tables they create, and which ones are to be
//! recorded in the library's own table instead of Diesel's.
//!
//! Diesel records the migrations of an app in `__diesel_schema_migrations`, and takes every entry there for
//! one of the app: with those of the library among them `diesel migration revert` fails. So they are recorded
//! in [`RECORD`]. An earlier version of the library recorded them in Diesel's table; they are moved.

use diesel::{
    backend::Backend,
    migration::{Migration, MigrationSource},
};
use diesel_migrations::EmbeddedMigrations;

use super::{
    StoreError,
    transaction::{Classify, Failure, migration_error},
};

/// The table in which the migrations of this library are recorded.
pub(super) const RECORD: &str = "presence_migrations";

/// The table of Diesel, which is the app's.
pub(super) const DIESEL_RECORD: &str = "__diesel_schema_migrations";

/// A table that a migration creates.
#[derive(Debug)]
pub(super) struct CreatedTable {
    pub name: &'static str,
    /// The version of the migration.
    pub version: &'static str,
    /// Its columns then.
    pub columns: &'static [&'static str],
}

/// The version of the migration that every database of this library has.
pub(super) const FIRST: &str = "20250101000000";

/// The migrations in their order.
pub(super) fn all<C: Classify>(
    source: &EmbeddedMigrations,
) -> Result<Vec<Box<dyn Migration<C::Backend>>>, Failure> {
    let mut migrations = MigrationSource::<C::Backend>::migrations(source)
        .map_err(|error| Failure::from(migration_error::<C>(error)))?;
    migrations.sort_by_key(|migration| version(&**migration));
    Ok(migrations)
}

/// The version of a migration, as it is recorded.
pub(super) fn version<DB: Backend>(migration: &dyn Migration<DB>) -> String {
    migration.name().version().to_string()
}

/// Those that are not among the recorded versions; there may be records of a newer version of the library.
pub(super) fn pending<DB: Backend>(
    migrations: Vec<Box<dyn Migration<DB>>>,
    recorded: &[String],
) -> Vec<Box<dyn Migration<DB>>> {
    let is_pending = |migration: &dyn Migration<DB>| !recorded.contains(&version(migration));
    migrations.into_iter().filter(|migration| is_pending(&**migration)).collect()
}

/// The error where somebody else has a table of this name. `place` says where, and `way_out` what to do.
pub(super) fn foreign(table: &str, place: &str, way_out: &str) -> StoreError {
    let reason = format!(
        "{place} has a table `{table}` that is not one of actix-presence, which needs that name: {way_out}"
    );
    StoreError::Unsuitable { reason }
}

/// The tables with the versions that create them, as the SQL of a directory has them.
#[cfg(test)]
pub(super) fn tables_of(directory: &str) -> std::collections::BTreeSet<(String, String)> {
    let mut found = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().replace('-', "");
        let (version, _) = name.split_once('_').unwrap();
        for line in std::fs::read_to_string(path.join("up.sql")).unwrap().lines() {
            if let Some(table) = line.strip_prefix("CREATE TABLE ") {
                found.insert((table.trim_end_matches(" (").to_owned(), version.to_owned()));
            }
        }
    }
    found
}

/// The same of those that the code knows.
#[cfg(test)]
pub(super) fn tables_in(created: &[CreatedTable]) -> std::collections::BTreeSet<(String, String)> {
    created.iter().map(|table| (table.name.to_owned(), table.version.to_owned())).collect()
}
