//! Transactions that report why they failed, and batches in which single rows may fail.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use diesel::{
    Connection,
    result::{DatabaseErrorKind, Error as DieselError, QueryResult},
};

use super::{Source, StoreError};

/// Why a statement or a transaction failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The database refuses a row for this reason, and would refuse it again.
    Row(String),
    Store(StoreError),
    /// Another transaction was in the way; this one would succeed now.
    Conflict,
    /// The database reports an error of which neither Diesel nor the database gives a kind: it may be the
    /// fault of a row. A [`Trial`] shows.
    #[cfg(feature = "postgres")]
    Unknown(DieselError),
    /// An error of Diesel, until [`classified`](Self::classified).
    Query(DieselError),
}

/// A connection to a kind of database.
pub(super) trait Classify: Connection {
    /// The failure behind an error for which Diesel has no kind.
    fn classify(error: DieselError) -> Failure;
}

impl Failure {
    /// The failure with its kind.
    pub fn classified<C: Classify>(self) -> Self {
        use DatabaseErrorKind::{
            CheckViolation, ClosedConnection, ExclusionViolation, ForeignKeyViolation,
            NotNullViolation, ReadOnlyTransaction, RestrictViolation, SerializationFailure,
            UnableToSendCommand, UniqueViolation,
        };
        let Self::Query(error) = self else { return self };
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
            DieselError::DatabaseError(..) => C::classify(error),
            DieselError::RollbackErrorOnCommit { commit_error, .. } => {
                Self::Query(*commit_error).classified::<C>()
            }
            error => StoreError::unavailable(error).into(),
        }
    }

    /// The error of a call that writes no rows of a batch.
    pub fn into_error<C: Classify>(self) -> StoreError {
        match self.classified::<C>() {
            Self::Store(error) => error,
            Self::Row(reason) => StoreError::Failed { source: reason.into() },
            Self::Conflict => StoreError::Locked,
            #[cfg(feature = "postgres")]
            Self::Unknown(error) => StoreError::Failed { source: error.into() },
            Self::Query(error) => StoreError::unavailable(error),
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
        Self::Query(error)
    }
}

/// The error of a migration.
pub(super) fn migration_error<C: Classify>(source: Source) -> StoreError {
    match source.downcast::<DieselError>().map(|error| Failure::Query(*error).classified::<C>()) {
        Ok(Failure::Row(reason)) => StoreError::Schema { source: reason.into() },
        Ok(failure) => failure.into_error::<C>(),
        Err(source) => StoreError::Schema { source },
    }
}

/// Runs `body` in a transaction, or in a savepoint of the open one, and returns the failure of *`body`*.
///
/// A database ends a transaction by itself when its disk or its connection fails. The rollback then
/// fails as well, and Diesel would return that second error.
pub(super) fn transact<C: Classify, T>(
    conn: &mut C,
    body: impl FnOnce(&mut C) -> Result<T, Failure>,
) -> Result<T, Failure> {
    transact_by(body, |run| conn.transaction(run))
}

/// As [`transact`], in a transaction of the kind that `transaction` opens.
pub(super) fn transact_by<C: Classify, T>(
    body: impl FnOnce(&mut C) -> Result<T, Failure>,
    transaction: impl FnOnce(&mut dyn FnMut(&mut C) -> QueryResult<T>) -> QueryResult<T>,
) -> Result<T, Failure> {
    let (mut body, mut failure) = (Some(body), None);
    let mut run = |conn: &mut C| {
        let body = body.take().ok_or(DieselError::AlreadyInTransaction)?;
        body(conn).map_err(|failed| {
            failure = Some(failed.classified::<C>());
            DieselError::RollbackTransaction
        })
    };
    transaction(&mut run).map_err(|error| match (error, failure) {
        (DieselError::RollbackTransaction, Some(failure)) => failure,
        (_, Some(Failure::Store(error))) => error.into(),
        (error, _) => Failure::Query(error).classified::<C>(),
    })
}

/// A count in SQL, which is never negative.
pub(super) fn to_count(count: i64) -> usize {
    usize::try_from(count).unwrap_or(0)
}

/// The time since which a presence was seen that is not older than this age, if there is one.
pub(crate) fn oldest(now: DateTime<Utc>, max_age: Duration) -> Option<DateTime<Utc>> {
    now.checked_sub_signed(TimeDelta::from_std(max_age).ok()?)
}

/// The attempt to write those rows of a batch that the database accepts, after the whole batch has failed.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// The number of rows that could be written.
    pub written: usize,
    /// How often something could not be written before something could.
    #[cfg(feature = "postgres")]
    futile: u32,
    /// An error that may be the fault of a row.
    #[cfg(feature = "postgres")]
    unknown: Option<Failure>,
    /// When no further rows are tried.
    end: Option<Instant>,
}

impl Trial {
    /// So many failures before the first success are the database's trouble, and not that of rows.
    #[cfg(feature = "postgres")]
    const MAX_FUTILE: u32 = 16;

    /// A trial that ends after a time.
    #[cfg(feature = "postgres")]
    pub fn within(time: Duration) -> Self {
        Self { end: Instant::now().checked_add(time), ..Self::default() }
    }

    fn is_over(&self) -> bool {
        self.written > 0 && self.end.is_some_and(|end| Instant::now() > end)
    }

    /// Notes a failure, and returns the reason if it may be the fault of a row.
    fn failed(&mut self, failure: Failure) -> Result<String, Failure> {
        match failure {
            Failure::Row(reason) => Ok(reason),
            #[cfg(feature = "postgres")]
            Failure::Unknown(error) => {
                let reason = error.to_string();
                self.futile += u32::from(self.written == 0);
                if self.futile > Self::MAX_FUTILE {
                    return Err(Failure::Unknown(error));
                }
                self.unknown = Some(Failure::Unknown(error));
                Ok(reason)
            }
            failure => Err(failure),
        }
    }

    /// The failure of a trial in which nothing could be written, though no row was at fault for certain.
    #[cfg(feature = "postgres")]
    pub fn end(self) -> Result<(), Failure> {
        match self.unknown {
            Some(failure) if self.written == 0 => Err(failure),
            _ => Ok(()),
        }
    }
}

/// Writes rows in chunks, each in a savepoint. A chunk that fails because of a row is halved until that
/// row is alone: a bad row costs a few statements more, not one for each good row.
pub(super) fn write_chunks<C: Classify, T>(
    conn: &mut C,
    trial: &mut Trial,
    rows: &[T],
    chunk: usize,
    write: impl Fn(&mut C, &[T]) -> Result<(), Failure>,
    mut set_aside: impl FnMut(&T, String),
) -> Result<(), Failure> {
    let mut todo: Vec<&[T]> = rows.chunks(chunk).rev().collect();
    while let Some(chunk) = todo.pop() {
        if trial.is_over() {
            chunk.iter().for_each(|row| set_aside(row, "not tried: others took too long".into()));
            continue;
        }
        let Err(failure) = transact(conn, |conn| write(conn, chunk)) else {
            trial.written += chunk.len();
            continue;
        };
        let reason = trial.failed(failure)?;
        if let [row] = chunk {
            set_aside(row, reason);
        } else {
            let (first, second) = chunk.split_at(chunk.len() / 2);
            todo.extend([second, first]);
        }
    }
    Ok(())
}
