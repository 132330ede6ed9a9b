//! What SQLite's errors mean.

use diesel::{SqliteConnection, result::Error as DieselError};

use crate::store::{
    StoreError,
    transaction::{Classify, Failure},
};

/// Errors by their messages: Diesel gives no result codes. These are the texts of `sqlite3_errstr`, one for
/// each code, which are never translated; what a trigger raises has its own text.
const SQLITE_MESSAGES: [(Kind, &[&str]); 6] = [
    (
        Kind::Locked,
        &[
            "database is locked",
            "database table is locked",
            "database schema is locked",
            "locking protocol",
        ],
    ),
    (Kind::Full, &["database or disk is full"]),
    (Kind::ReadOnly, &["attempt to write a readonly database"]),
    (
        Kind::Corrupt,
        &[
            "database disk image is malformed",
            "file is not a database",
            "malformed database schema",
        ],
    ),
    (
        Kind::Schema,
        &[
            "no such table",
            "no such column",
            "foreign key mismatch",
            "ON CONFLICT clause does not match",
        ],
    ),
    (
        Kind::Unavailable,
        &[
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
        ],
    ),
];

/// A failure that SQLite has a text for.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Locked,
    Full,
    ReadOnly,
    Corrupt,
    Schema,
    Unavailable,
}

fn kind(message: &str) -> Option<Kind> {
    let is = |texts: &[&str]| texts.iter().any(|text| message.starts_with(text));
    let known = SQLITE_MESSAGES.iter().find_map(|(kind, texts)| is(texts).then_some(*kind));
    known.or(message.contains(" has no column named ").then_some(Kind::Schema))
}

impl Classify for SqliteConnection {
    /// What has none of the texts is what a trigger raises: the fault of a row.
    fn classify(error: DieselError) -> Failure {
        let DieselError::DatabaseError(_, info) = &error else { return Failure::Query(error) };
        let Some(kind) = kind(info.message()) else {
            return Failure::Row(info.message().to_owned());
        };
        Failure::Store(match kind {
            Kind::Locked => StoreError::Locked,
            Kind::Full => StoreError::Full,
            Kind::ReadOnly => StoreError::ReadOnly,
            Kind::Corrupt => StoreError::Corrupt { source: error.into() },
            Kind::Schema => StoreError::Schema { source: error.into() },
            Kind::Unavailable => StoreError::unavailable(error),
        })
    }
}
