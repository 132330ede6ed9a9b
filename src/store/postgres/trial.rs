//! Which failures are the fault of a row, and which are the database's trouble.

use std::time::{Duration, Instant};

use crate::store::transaction::{Failure, Judge};

/// The attempt to write those rows of a batch that the database accepts, after the whole batch has failed.
#[derive(Debug)]
pub(super) struct Trial {
    /// The number of rows that could be written.
    written: usize,
    /// How often something could not be written before something could.
    futile: u32,
    /// An error that may be the fault of a row.
    unknown: Option<Failure>,
    /// When no further rows are tried.
    end: Option<Instant>,
}

impl Trial {
    /// So many failures before the first success are the database's trouble, and not that of rows.
    const MAX_FUTILE: u32 = 16;

    /// A trial that ends after a time.
    pub fn within(time: Duration) -> Self {
        let end = Instant::now().checked_add(time);
        Self { written: 0, futile: 0, unknown: None, end }
    }

    fn is_late(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() > end)
    }

    /// The failure of a trial in which nothing could be written, though no row was at fault for certain.
    pub fn end(self) -> Result<(), Failure> {
        match self.unknown {
            Some(failure) if self.written == 0 => Err(failure),
            _ => Ok(()),
        }
    }
}

impl Judge for Trial {
    fn is_over(&self) -> bool {
        self.written > 0 && self.is_late()
    }

    fn wrote(&mut self, rows: usize) {
        self.written += rows;
    }

    fn judge(&mut self, failure: Failure) -> Result<String, Failure> {
        let reason = match failure {
            Failure::Row(reason) => return Ok(reason),
            Failure::Unknown(ref error) => error.to_string(),
            failure => return Err(failure),
        };
        self.futile += u32::from(self.written == 0);
        let is_futile = self.futile > Self::MAX_FUTILE || self.written == 0 && self.is_late();
        if is_futile {
            return Err(failure);
        }
        self.unknown = Some(failure);
        Ok(reason)
    }
}
