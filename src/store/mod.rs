//! The database: the only place that knows SQL.
//!
//! [`Store`] is the interface to a database, [`SharedStore`] that to one which several nodes share.
//! `SqliteStore` implements the first, `PostgresStore` both. A store blocks and may fail; it belongs on
//! a thread of its own (a writer's or a reader's), or in a command.

mod error;
#[cfg(any(test, feature = "postgres", feature = "testing"))]
mod lease;
#[cfg(feature = "postgres")]
mod postgres;
pub(crate) mod reader;
pub mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;
mod traits;
mod transaction;
mod url;
mod values;

#[cfg(any(test, feature = "testing"))]
pub(crate) use self::lease::{Incarnations, NodeLease};
pub(crate) use self::values::Committed;
pub use self::{
    error::{Result, Source, StoreError},
    traits::{SharedStore, Store},
    url::{DatabaseUrl, InvalidDatabaseUrl},
    values::{
        Applied, Batch, BatchEntry, DeadNode, NodeRow, Reaped, Renewal, RoomCounts, RoomRows, Row,
        SetAside, Started,
    },
};
#[cfg(feature = "postgres")]
pub use self::{
    postgres::{LeaseClock, PostgresOptions, PostgresStore},
    url::PostgresUrl,
};
#[cfg(feature = "sqlite")]
pub use self::{
    sqlite::{OwnerError, OwnerLock, SqliteOptions, SqliteStore},
    url::SqlitePath,
};
pub use crate::model::PresenceRecord;

/// Opens a database of any kind, creating and migrating it as needed.
///
/// # Errors
///
/// [`StoreError`].
pub fn open(url: &DatabaseUrl) -> Result<Box<dyn Store>> {
    match url {
        #[cfg(feature = "sqlite")]
        DatabaseUrl::SqliteMemory | DatabaseUrl::SqliteFile(_) => {
            Ok(Box::new(SqliteStore::open(url)?))
        }
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => Ok(Box::new(PostgresStore::open(url)?)),
    }
}

/// Migrates a database to this version, creating a SQLite database if there is none. Returns the number
/// of migrations applied.
///
/// Several processes may start at once on one database; they wait for one another, up to 30 seconds.
///
/// # Errors
///
/// [`StoreError`]; the migrations applied until then stay, each one is all or nothing.
pub fn migrate(url: &DatabaseUrl) -> Result<usize> {
    match url {
        #[cfg(feature = "sqlite")]
        DatabaseUrl::SqliteMemory | DatabaseUrl::SqliteFile(_) => {
            sqlite::migrate(url, SqliteOptions::default())
        }
        #[cfg(feature = "postgres")]
        DatabaseUrl::Postgres(url) => postgres::migrate(url, PostgresOptions::default()),
    }
}
