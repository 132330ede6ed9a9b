//! The kinds of the errors of SQLite.

use diesel::{SqliteConnection, result::DatabaseErrorInformation};

use crate::store::transaction::{Classify, Kind, kind_of};

/// Errors by their messages: Diesel gives no result codes. These are the texts of `sqlite3_errstr`, which
/// are as stable as the codes; what a trigger raises has its own text.
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

impl Classify for SqliteConnection {
    fn kind(info: &dyn DatabaseErrorInformation) -> Option<Kind> {
        let message = info.message();
        let unknown_column = message.contains(" has no column named ").then_some(Kind::Schema);
        kind_of(message, &SQLITE_MESSAGES).or(unknown_column)
    }
}
