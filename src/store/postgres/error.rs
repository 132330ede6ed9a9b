//! What PostgreSQL says when it fails.
//!
//! Diesel gives a kind only for a few of its codes, so the rest is told by the texts. They are those of
//! the locale `C`, which each connection asks for; only a superuser is given it, but the default of
//! most servers is English. A text that is not known is taken for the fault of a row.

use diesel::result::DatabaseErrorInformation;

use crate::store::{StoreError, error::Source};

/// Whether a transaction was ended because it was in another one's way.
pub(in crate::store) fn is_conflict(message: &str) -> bool {
    message == "deadlock detected" || message.starts_with("could not serialize access")
}

/// Which failure of the database its words tell; `None` if it is none.
pub(in crate::store) fn of_info(
    info: &dyn DatabaseErrorInformation,
) -> Option<fn(Source) -> StoreError> {
    // Where in a statement an error is, is said of those that make no sense to the database; all of
    // them do, with the tables that the migrations have made.
    let of_position = info.statement_position().map(|_| schema as fn(Source) -> StoreError);
    of_message(info.message()).or(of_position)
}

fn of_message(message: &str) -> Option<fn(Source) -> StoreError> {
    const LOCKED: [&str; 3] = [
        "canceling statement due to lock timeout",
        "canceling statement due to statement timeout",
        "could not obtain lock",
    ];
    const FULL: [&str; 1] = ["could not extend file"];
    const FULL_WITHIN: [&str; 2] = ["No space left on device", "Disk quota exceeded"];
    const READ_ONLY: [&str; 2] = ["permission denied", "must be owner of"];
    const SCHEMA: [&str; 2] =
        ["there is no unique or exclusion constraint", "cached plan must not change result type"];
    const CORRUPT: [&str; 4] =
        ["invalid page in block", "could not read block", "missing chunk", "unexpected chunk"];
    const UNAVAILABLE: [&str; 22] = [
        "canceling statement due to",
        "terminating connection",
        "server closed the connection",
        "no connection to the server",
        "lost synchronization with server",
        "could not receive data",
        "could not send data",
        "SSL ",
        "the database system is",
        "current transaction is aborted",
        "idle-in-transaction timeout",
        "out of memory",
        "out of shared memory",
        "too many ",
        "sorry, too many clients",
        "remaining connection slots",
        "temporary file size exceeds",
        "could not open file",
        "could not access",
        "could not write",
        "could not fsync",
        "prepared statement ",
    ];
    let begins = |texts: &[&str]| texts.iter().any(|text| message.starts_with(text));
    if begins(&LOCKED) {
        return Some(|_| StoreError::Locked);
    }
    if begins(&FULL) || FULL_WITHIN.iter().any(|text| message.contains(text)) {
        return Some(|_| StoreError::Full);
    }
    if begins(&READ_ONLY) {
        return Some(|_| StoreError::ReadOnly);
    }
    if begins(&CORRUPT) {
        return Some(|source| StoreError::Corrupt { source });
    }
    if begins(&UNAVAILABLE) {
        return Some(|source| StoreError::Unavailable { source });
    }
    let missing = ["relation ", "column ", "type ", "function "];
    if begins(&SCHEMA) || (begins(&missing) && message.ends_with(" does not exist")) {
        return Some(schema);
    }
    None
}

fn schema(source: Source) -> StoreError {
    StoreError::Schema { source }
}
