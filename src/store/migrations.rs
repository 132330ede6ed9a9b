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

/// What a migration creates: columns, and whatever it gives a name.
///
/// Keys and sequences without a name are not among them: the database finds them names that are free.
#[derive(Debug)]
pub(super) struct Created {
    pub kind: Kind,
    /// Its name, or for columns alone that of their table.
    pub name: &'static str,
    /// The version of the migration.
    pub version: &'static str,
    /// The columns that the migration creates in the table.
    pub columns: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Table,
    /// Columns in a table of an earlier migration.
    #[cfg(feature = "postgres")]
    Columns,
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

    #[cfg(feature = "postgres")]
    pub const fn columns(
        table: &'static str,
        version: &'static str,
        columns: &'static [&'static str],
    ) -> Self {
        Self { kind: Kind::Columns, name: table, version, columns }
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

/// A database, or a schema of it, in which migrations may be recorded.
pub(super) trait Inspect {
    /// What the migrations create.
    const CREATED: &'static [Created];

    /// Whether there is a table of this name with the columns of a record of migrations.
    fn has_record(&mut self, table: &str) -> Result<bool, Failure>;

    /// Whether there is a table of this name with these columns.
    fn has_columns(&mut self, table: &str, columns: &[&str]) -> Result<bool, Failure>;

    /// The versions in a record.
    fn versions(&mut self, record: &str) -> Result<Vec<String>, Failure>;
}

/// Which migrations of this library are recorded, and where.
///
/// Numbers prove nothing: an app may have entries of the same ones in Diesel's table, or a table of its own
/// with the name of the library's. What the migrations create has to be there as well.
#[derive(Default)]
pub(super) struct Record {
    /// The library's own table, or that of Diesel where an earlier version has recorded them.
    pub table: Option<&'static str>,
    pub versions: Vec<String>,
}

impl Record {
    pub fn find<D: Inspect>(database: &mut D) -> Result<Self, Failure> {
        // Rows may be nobody else's business: they are read only where some of them may be ours.
        if database.has_record(RECORD)? && has_a_first_table(database)? {
            let versions = database.versions(RECORD)?;
            if has_first(&versions) {
                return Ok(Self { table: Some(RECORD), versions });
            }
        }
        if database.has_record(DIESEL_RECORD)? && is_applied(database, FIRST)? {
            let mut versions = Vec::new();
            for version in database.versions(DIESEL_RECORD)? {
                if is_applied(database, &version)? {
                    versions.push(version);
                }
            }
            if has_first(&versions) {
                return Ok(Self { table: Some(DIESEL_RECORD), versions });
            }
        }
        Ok(Self::default())
    }

    /// Whether it is in the library's own table.
    pub fn is_own(&self) -> bool {
        self.table == Some(RECORD)
    }
}

fn has_first(versions: &[String]) -> bool {
    versions.iter().any(|version| version == FIRST)
}

/// Whether one of the tables of the first migration is there. If others are missing somebody has dropped them,
/// which statements report.
fn has_a_first_table<D: Inspect>(database: &mut D) -> Result<bool, Failure> {
    for table in D::CREATED.iter().filter(|it| it.kind == Kind::Table && it.version == FIRST) {
        if database.has_columns(table.name, table.columns)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the library's own table is there without entries: it is not created again, and it says nothing
/// about migrations.
pub(super) fn has_empty_record<D: Inspect>(database: &mut D) -> Result<bool, Failure> {
    Ok(database.has_record(RECORD)? && database.versions(RECORD)?.is_empty())
}

/// Whether a migration of this library has this version, and the tables and columns that it creates are there.
fn is_applied<D: Inspect>(database: &mut D, version: &str) -> Result<bool, Failure> {
    let mut is_applied = false;
    for created in D::CREATED.iter().filter(|it| it.version == version && !it.columns.is_empty()) {
        if !database.has_columns(created.name, created.columns)? {
            return Ok(false);
        }
        is_applied = true;
    }
    Ok(is_applied)
}

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

/// Versions with kinds and names, and the columns of each.
#[cfg(test)]
type Inventory = std::collections::BTreeMap<(String, Kind, String), Vec<String>>;

/// What the SQL of a directory creates.
#[cfg(test)]
pub(super) fn created_by(directory: &str) -> Inventory {
    let mut found = Inventory::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().replace('-', "");
        let (version, _) = name.split_once('_').unwrap();
        let key = |kind, name: &str| (version.to_owned(), kind, name.to_owned());
        let mut table = None;
        for line in std::fs::read_to_string(path.join("up.sql")).unwrap().lines() {
            let line = line.split("--").next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["CREATE", "TABLE", name, "("] => table = Some(key(Kind::Table, name)),
                [");"] => table = None,
                #[cfg(feature = "postgres")]
                ["ALTER", "TABLE", table, "ADD", "COLUMN", column, ..] => {
                    let columns: &mut Vec<_> = found.entry(key(Kind::Columns, table)).or_default();
                    columns.push(column.to_owned());
                }
                ["CREATE", "INDEX", name, "ON", ..]
                | ["CREATE", "UNIQUE", "INDEX", name, "ON", ..] => {
                    found.insert(key(Kind::Index, name), Vec::new());
                }
                #[cfg(feature = "sqlite")]
                ["CREATE", "TRIGGER", name, ..] => {
                    found.insert(key(Kind::Trigger, name), Vec::new());
                }
                [column, ..] if table.is_some() && column.starts_with(char::is_lowercase) => {
                    let columns = found.entry(table.clone().unwrap()).or_default();
                    columns.push(column.to_owned());
                }
                _ => {
                    let makes = |word: &&str| {
                        ["CREATE", "RENAME", "ADD"].iter().any(|it| word.eq_ignore_ascii_case(it))
                    };
                    assert!(!words.iter().any(makes), "what is there after this? {line}");
                }
            }
        }
    }
    found
}

/// The same of what the code knows.
#[cfg(test)]
pub(super) fn known(created: &[Created]) -> Inventory {
    let known = created.iter().map(|it| {
        let columns = it.columns.iter().map(|&column| column.to_owned()).collect();
        ((it.version.to_owned(), it.kind, it.name.to_owned()), columns)
    });
    known.collect()
}
