//! Transactions that tell why they failed.

use diesel::{
    Connection, SqliteConnection,
    result::{Error, QueryResult},
};

use super::error::Failure;

/// Runs `body` in a transaction, or in a savepoint of the one that is open, and keeps *its* failure.
///
/// A database ends a transaction by itself when its disk or its connection fails; undoing it then
/// fails too, and Diesel would answer that second failure.
pub(super) fn transact<C: Connection, T>(
    conn: &mut C,
    body: impl FnOnce(&mut C) -> Result<T, Failure>,
) -> Result<T, Failure> {
    keep_failure(body, |run| conn.transaction(run))
}

/// The same with SQLite's write lock from the beginning: a transaction that reads first may be
/// refused the lock later, without waiting.
pub(super) fn transact_locked<T>(
    conn: &mut SqliteConnection,
    body: impl FnOnce(&mut SqliteConnection) -> Result<T, Failure>,
) -> Result<T, Failure> {
    keep_failure(body, |run| conn.immediate_transaction(run))
}

fn keep_failure<C, T>(
    body: impl FnOnce(&mut C) -> Result<T, Failure>,
    transaction: impl FnOnce(&mut dyn FnMut(&mut C) -> QueryResult<T>) -> QueryResult<T>,
) -> Result<T, Failure> {
    let (mut body, mut why) = (Some(body), None);
    let mut run = |conn: &mut C| {
        let body = body.take().ok_or(Error::AlreadyInTransaction)?;
        body(conn).map_err(|failure| {
            why = Some(failure);
            Error::RollbackTransaction
        })
    };
    transaction(&mut run).map_err(|error| match (error, why) {
        (Error::RollbackTransaction, Some(failure)) => failure,
        (_, Some(Failure::Store(error))) => error.into(),
        (error, _) => error.into(),
    })
}
