//! What can go wrong with a database, by what the caller can do about it.

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};

#[cfg(feature = "postgres")]
use super::postgres::error as postgres;

/// What lies under a [`StoreError`], for logs.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a store did not do what it was asked to. Nothing of it was done; all can be asked again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process held the database for longer than the store waits. Try again soon.
    #[error("the database is locked by another process")]
    Locked,
    /// There is no room left. Try again; it helps once somebody has made room.
    #[error("the database or its disk is full")]
    Full,
    /// The database may not be written. Try again; it helps once its permissions have changed.
    #[error("the database is read-only")]
    ReadOnly,
    /// The database was lost or exchanged, and another one is open. Call [`Store::start`], then
    /// write every row again. Told once.
    ///
    /// [`Store::start`]: super::Store::start
    #[error("the database was lost or exchanged, its rows have to be written again")]
    Gone,
    /// The database cannot be reached. Try again.
    #[error("the database cannot be reached")]
    Unavailable {
        /// What the database or the operating system says.
        source: Source,
    },
    /// The file is no database, or a damaged one. Trying again helps once somebody has exchanged it.
    #[error("the database is damaged, or no database")]
    Corrupt {
        /// What the database says.
        source: Source,
    },
    /// Tables or columns are missing that the migrations have made.
    #[error("the tables of the database are not those of this version")]
    Schema {
        /// What the database says.
        source: Source,
    },
    /// The node has no row any more in a database that others share, so nothing is written in its
    /// name. Renew its lease, then write every row again.
    #[error("the lease of this node has run out, and others have removed its rows")]
    Lapsed,
    /// Another process has taken the node's name. Trying again helps once it has ended.
    #[error("another process has taken the name of this node")]
    NameTaken,
    /// The store panicked, and was stopped from taking the writer with it. Try again.
    #[error("the store panicked")]
    Panicked,
    /// The writer has said goodbye and closed its store. Trying again does not help.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// A short label, for readiness and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Gone => "gone",
            Self::Unavailable { .. } => "unavailable",
            Self::Corrupt { .. } => "corrupt",
            Self::Schema { .. } => "schema",
            Self::Lapsed => "lapsed",
            Self::NameTaken => "name_taken",
            Self::Panicked => "panicked",
            Self::Closed => "closed",
        }
    }

    pub(crate) fn unavailable(source: impl Into<Source>) -> Self {
        Self::Unavailable { source: source.into() }
    }
}

/// A failed statement: the fault of a row, which would fail again, or of the database.
#[derive(Debug)]
pub(super) enum Failure {
    Row(String),
    Store(StoreError),
    /// The transaction was in another one's way, and would succeed now.
    Conflict,
}

impl Failure {
    /// The failure of a statement that writes no rows of a batch.
    pub(super) fn into_error(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Row(reason) => StoreError::unavailable(reason),
            Self::Conflict => StoreError::Locked,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<DieselError> for Failure {
    fn from(error: DieselError) -> Self {
        use DatabaseErrorKind::{
            CheckViolation, ClosedConnection, ExclusionViolation, ForeignKeyViolation,
            NotNullViolation, ReadOnlyTransaction, RestrictViolation, SerializationFailure,
            UnableToSendCommand, UniqueViolation,
        };
        match error {
            DieselError::DatabaseError(
                UniqueViolation | ForeignKeyViolation | NotNullViolation | CheckViolation
                | RestrictViolation | ExclusionViolation,
                info,
            ) => Self::Row(info.message().to_owned()),
            DieselError::DatabaseError(SerializationFailure, _) => Self::Conflict,
            DieselError::DatabaseError(ReadOnlyTransaction, _) => StoreError::ReadOnly.into(),
            DieselError::DatabaseError(ClosedConnection | UnableToSendCommand, _) => {
                StoreError::unavailable(error).into()
            }
            #[cfg(feature = "postgres")]
            DieselError::DatabaseError(_, ref info) if postgres::is_conflict(info.message()) => {
                Self::Conflict
            }
            DieselError::DatabaseError(_, ref info) => match of_info(&**info) {
                Some(kind) => Self::Store(kind(error.into())),
                None => Self::Row(info.message().to_owned()),
            },
            DieselError::RollbackErrorOnCommit { commit_error, .. } => Self::from(*commit_error),
            error => Self::Store(StoreError::unavailable(error)),
        }
    }
}

impl From<DieselError> for StoreError {
    fn from(error: DieselError) -> Self {
        Failure::from(error).into_error()
    }
}

/// Which failure of the database its words tell; `None` if none that is known.
fn of_info(info: &dyn DatabaseErrorInformation) -> Option<fn(Source) -> StoreError> {
    let known = of_message(info.message());
    #[cfg(feature = "postgres")]
    let known = known.or_else(|| postgres::of_info(info));
    known
}

/// Which failure of the database a message of SQLite tells; `None` if it is none.
///
/// Diesel gives no result codes. The texts are those of `sqlite3_errstr`, which are as stable as the
/// codes; what a trigger raises comes as its own text.
fn of_message(message: &str) -> Option<fn(Source) -> StoreError> {
    const LOCKED: [&str; 4] = [
        "database is locked",
        "database table is locked",
        "database schema is locked",
        "locking protocol",
    ];
    const CORRUPT: [&str; 3] =
        ["database disk image is malformed", "file is not a database", "malformed database schema"];
    const SCHEMA: [&str; 4] = [
        "no such table",
        "no such column",
        "foreign key mismatch",
        "ON CONFLICT clause does not match",
    ];
    const UNAVAILABLE: [&str; 12] = [
        "disk I/O error",
        "unable to open database file",
        "out of memory",
        "access permission denied",
        "authorization denied",
        "interrupted",
        "large file support is disabled",
        "bad parameter or other API misuse",
        "no such savepoint",
        "cannot commit",
        "cannot rollback",
        "cannot start a transaction",
    ];
    let is = |texts: &[&str]| texts.iter().any(|text| message.starts_with(text));
    if is(&LOCKED) {
        return Some(|_| StoreError::Locked);
    }
    if is(&["database or disk is full"]) {
        return Some(|_| StoreError::Full);
    }
    if is(&["attempt to write a readonly database"]) {
        return Some(|_| StoreError::ReadOnly);
    }
    if is(&CORRUPT) {
        return Some(|source| StoreError::Corrupt { source });
    }
    if is(&SCHEMA) || message.contains(" has no column named ") {
        return Some(|source| StoreError::Schema { source });
    }
    if is(&UNAVAILABLE) {
        return Some(|source| StoreError::Unavailable { source });
    }
    None
}
