//! What can go wrong with a database, by what the caller can do about it.

/// The cause of a [`StoreError`].
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// The result of a call of a store.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why a call of a store failed. Nothing of the call was done; every call can be repeated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process held a lock for longer than the store waits. Try again soon.
    #[error("the database is locked by another process")]
    Locked,
    /// There is no space left. Try again once there is.
    #[error("the database or its disk is full")]
    Full,
    /// The database cannot be written. Try again once its permissions have changed.
    #[error("the database is read-only")]
    ReadOnly,
    /// The database was lost or replaced, and another one is open. Call [`Store::start`], then write
    /// every row again. Reported once.
    ///
    /// [`Store::start`]: super::Store::start
    #[error("the database was lost or replaced, its rows have to be written again")]
    Gone,
    /// The database cannot be reached. Try again.
    #[error("the database cannot be reached")]
    Unavailable {
        /// The error of the database or the operating system.
        source: Source,
    },
    /// The file is damaged or not a database. Try again once it has been replaced.
    #[error("the database is damaged, or not a database")]
    Corrupt {
        /// The error of the database.
        source: Source,
    },
    /// Tables or columns of the migrations are missing.
    #[error("the tables of the database are not those of this version; run its migrations")]
    Schema {
        /// The error of the database.
        source: Source,
    },
    /// The node has no row any more in a shared database, so nothing is written in its name. Renew
    /// its lease, then write every row again.
    #[error("the lease of this node has expired, and other nodes have removed its rows")]
    Lapsed,
    /// Another process uses the node's name. Try again once it has ended.
    #[error("another process uses the name of this node")]
    NameTaken,
    /// The store panicked; the panic was caught. Try again.
    #[error("the store panicked")]
    Panicked,
    /// The writer has closed its store. Trying again does not help.
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
