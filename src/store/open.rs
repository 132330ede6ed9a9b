//! Any database.

use super::{DatabaseUrl, SqliteStore, Store, StoreError};

/// Opens a database, whichever it is, making and migrating it as needed.
///
/// # Errors
///
/// [`StoreError`].
pub fn open(url: &DatabaseUrl) -> Result<Box<dyn Store>, StoreError> {
    #[cfg(feature = "postgres")]
    if let DatabaseUrl::Postgres(url) = url {
        return Ok(Box::new(super::PostgresStore::open(url)?));
    }
    Ok(Box::new(SqliteStore::open(url)?))
}
