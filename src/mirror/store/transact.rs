//! Transactions that tell why they failed.

use diesel::{Connection, SqliteConnection, result::Error};

use super::error::Failure;

/// Which kind of transaction.
pub(super) enum Depth {
    /// Takes the write lock at once: one that reads first may be refused later without waiting.
    Outer,
    /// A savepoint.
    Inner,
}

/// Runs `body` in a transaction, or savepoint, and keeps *its* failure.
///
/// SQLite ends a transaction by itself when its disk fails; undoing it then fails too, and Diesel
/// would answer that second failure.
pub(super) fn transact<T>(
    conn: &mut SqliteConnection,
    depth: Depth,
    body: impl FnOnce(&mut SqliteConnection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut why = None;
    let run = |conn: &mut SqliteConnection| {
        body(conn).map_err(|failure| {
            why = Some(failure);
            Error::RollbackTransaction
        })
    };
    let done = match depth {
        Depth::Outer => conn.immediate_transaction(run),
        Depth::Inner => conn.transaction(run),
    };
    done.map_err(|error| match (error, why) {
        (Error::RollbackTransaction, Some(failure)) => failure,
        (_, Some(Failure::Store(error))) => error.into(),
        (error, _) => error.into(),
    })
}
