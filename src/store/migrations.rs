//! The migrations of a database: which ones there are, what they create, and which ones are to be
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

/// What a migration creates under a name that it gives.
///
/// Keys and sequences without one are not among them: the database finds them names that are free.
#[derive(Debug)]
pub(super) struct Created {
    pub kind: Kind,
    pub name: &'static str,
    /// The version of the migration.
    pub version: &'static str,
    /// The columns that a table has then.
    pub columns: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Table,
    Index,
    #[cfg(feature = "sqlite")]
    Trigger,
}

impl Created {
    pub const fn table(
        name: &'static str,
        version: &'static str,
        columns: &'static [&'static str],
    ) -> Self {
        Self { kind: Kind::Table, name, version, columns }
    }

    pub const fn index(name: &'static str, version: &'static str) -> Self {
        Self { kind: Kind::Index, name, version, columns: &[] }
    }

    #[cfg(feature = "sqlite")]
    pub const fn trigger(name: &'static str, version: &'static str) -> Self {
        Self { kind: Kind::Trigger, name, version, columns: &[] }
    }
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

/// Whether one of these migrations has this version.
pub(super) fn includes<DB: Backend>(
    migrations: &[Box<dyn Migration<DB>>],
    version: &'static str,
) -> bool {
    migrations.iter().any(|migration| self::version(&**migration) == version)
}

/// The error where somebody else has something of this name. `what` is its kind with an article, `place` says
/// where it is, and `way_out` what to do.
pub(super) fn foreign(what: &str, name: &str, place: &str, way_out: &str) -> StoreError {
    let reason = format!(
        "{place} has {what} `{name}` that is not one of actix-presence, which needs that name: {way_out}"
    );
    StoreError::Unsuitable { reason }
}

/// What the SQL of a directory creates: kinds, names and versions.
#[cfg(test)]
pub(super) fn created_by(directory: &str) -> std::collections::BTreeSet<(Kind, String, String)> {
    let mut found = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().replace('-', "");
        let (version, _) = name.split_once('_').unwrap();
        for line in std::fs::read_to_string(path.join("up.sql")).unwrap().lines() {
            let line = line.split("--").next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let (kind, name) = match words[..] {
                ["CREATE", "TABLE", name, "("] => (Kind::Table, name),
                ["CREATE", "INDEX", name, "ON", ..]
                | ["CREATE", "UNIQUE", "INDEX", name, "ON", ..] => (Kind::Index, name),
                #[cfg(feature = "sqlite")]
                ["CREATE", "TRIGGER", name, ..] => (Kind::Trigger, name),
                _ => {
                    let names = |word: &&str| {
                        ["CREATE", "RENAME"].iter().any(|it| word.eq_ignore_ascii_case(it))
                    };
                    assert!(!words.iter().any(names), "what has which name after this? {line}");
                    continue;
                }
            };
            found.insert((kind, name.to_owned(), version.to_owned()));
        }
    }
    found
}

/// The same of what the code knows.
#[cfg(test)]
pub(super) fn known(created: &[Created]) -> std::collections::BTreeSet<(Kind, String, String)> {
    let known = created.iter();
    known.map(|it| (it.kind, it.name.to_owned(), it.version.to_owned())).collect()
}
