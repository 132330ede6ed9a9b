//! Why a presence system does not start.

use std::{io, time::Duration};

#[cfg(feature = "postgres")]
use crate::store::InvalidSchemaName;
#[cfg(feature = "sqlite")]
use crate::store::OwnerError;
use crate::{
    error_chain::error_chain,
    model::InvalidNodeName,
    store::{InvalidDatabaseUrl, StoreError},
};

/// Why a presence system did not start. The text has the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The options name no database.
    #[error("no database: name one with `PresenceConfig::new`")]
    NoDatabase,
    /// The options name a database, and stores are given as well.
    #[error("two databases: use `PresenceConfig::default` where stores are given")]
    TwoDatabases,
    /// The URL of the database is invalid.
    #[error(transparent)]
    Url(#[from] InvalidDatabaseUrl),
    /// The name of the schema is invalid.
    #[cfg(feature = "postgres")]
    #[error(transparent)]
    Schema(#[from] InvalidSchemaName),
    /// The options name a schema, and a database that is not PostgreSQL.
    #[error("only PostgreSQL has schemas: use `postgres://…`, or no `schema`")]
    SchemaWithoutPostgres,
    /// The name of the node is invalid.
    #[error(transparent)]
    Node(#[from] InvalidNodeName),
    /// An option must be longer than zero.
    #[error("{option} must be longer than zero")]
    Zero {
        /// The option.
        option: &'static str,
    },
    /// Presences would be pruned too seldom for their age, and silent ones stay for long.
    #[error("the prune interval ({prune_every:?}) must not be longer than max-age ({max_age:?})")]
    PrunedTooSeldom {
        /// The interval.
        prune_every: Duration,
        /// The age.
        max_age: Duration,
    },
    /// The URL of Redis is invalid.
    #[error("invalid Redis URL: it is `redis://[[user]:password@]host[:port][/number]`")]
    InvalidRedisUrl,
    /// The options name Redis, which this build does not support.
    #[error("this build does not support Redis: enable the feature `redis`")]
    RedisNotInThisBuild,
    /// The options name Redis, and a database that only one node can use.
    #[error("nodes on one Redis have to share a database: use `postgres://…`")]
    RedisWithoutSharedDatabase,
    /// Another server uses the database file, also after [`crate::PresenceConfig::wait_for_lock`]; or its lock cannot
    /// be taken.
    #[cfg(feature = "sqlite")]
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// No actix system runs on this thread, so there is nothing that could run the actors.
    #[error(
        "no actix system runs on this thread: put `#[actix_web::main]` or `#[actix::main]` in place of \
         `#[tokio::main]`, or start in `actix::System::new().block_on(…)`"
    )]
    NoSystem,
    /// The system allows no further thread.
    #[error(
        "cannot start a thread: raise the limit (`ulimit -u`, the pids limit of the container): {}",
        error_chain(.0)
    )]
    Thread(io::Error),
    /// The database cannot be used.
    #[error("the database cannot be used: {0}")]
    Store(StoreError),
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
