//! Why a command fails, and how its process ends then.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use super::{descriptors::TooFewDescriptors, environment, log, threads::TooFewThreads};
use crate::{error_chain::error_chain, signing::SignError};
use actix_presence::{
    Crashed, InvalidInfo, InvalidName, InvalidNodeName, StartError,
    store::{InvalidDatabaseUrl, StoreError},
};

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    #[error("invalid --database")]
    DatabaseUrl(#[from] InvalidDatabaseUrl),
    #[cfg(feature = "sqlite")]
    #[error("invalid --database: a database in memory ends with its server; name a file")]
    InMemory,
    #[error("invalid --redis")]
    Redis(#[source] StartError),
    #[error("invalid --node")]
    Node(#[from] InvalidNodeName),
    #[error("invalid --user")]
    User(#[source] InvalidName),
    #[error("invalid --info: it must be JSON")]
    InfoJson(#[source] serde_json::Error),
    #[error("invalid --info")]
    Info(#[from] InvalidInfo),
    #[error("invalid --session")]
    Session(#[source] InvalidName),
    #[error("invalid --api-key: it must be visible ASCII, because it is sent in a header")]
    ApiKey,
    #[error("there is no database at `{}`", path.display())]
    NoDatabase { path: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Start(StartError),
    #[error("cannot listen on {address}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    #[error(transparent)]
    Threads(#[from] TooFewThreads),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("the database has not answered for {0:?}")]
    Unanswered(Duration),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("the HTTP server failed")]
    Serve(#[source] io::Error),
    #[error(transparent)]
    Crashed(#[from] Crashed),
    #[error("the task `{0}` of the server ended unexpectedly")]
    Task(&'static str),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("cannot write to stdout")]
    Output(#[from] io::Error),
}

impl From<StartError> for CommandError {
    fn from(error: StartError) -> Self {
        match error {
            // Named by its flag, as for all commands.
            StartError::Url(error) => Self::DatabaseUrl(error),
            StartError::Node(error) => Self::Node(error),
            StartError::InvalidRedisUrl
            | StartError::RedisNotInThisBuild
            | StartError::RedisWithoutSharedDatabase => Self::Redis(error),
            error => Self::Start(error),
        }
    }
}

impl CommandError {
    /// The exit code: 2 for a mistake in the command line, 70 (`EX_SOFTWARE`) for a crash, after which
    /// the process should be started again, and 1 for everything else.
    pub fn code(&self) -> u8 {
        match self {
            Self::DatabaseUrl(_) | Self::Redis(_) | Self::User(_) | Self::InfoJson(_) => 2,
            Self::Info(_) | Self::Session(_) | Self::ApiKey | Self::Node(_) => 2,
            #[cfg(feature = "sqlite")]
            Self::InMemory => 2,
            #[cfg(feature = "sqlite")]
            Self::Start(StartError::Owner(_)) => 1,
            Self::Start(StartError::Store(_) | StartError::Thread(_)) => 1,
            Self::Start(_) => 2,
            Self::Crashed(_) | Self::Task(_) => 70,
            _ => 1,
        }
    }

    /// Prints the error to stderr, and returns the exit code.
    pub fn report(&self) -> u8 {
        let text = format!("error: {}", error_chain(self));
        log::print(&environment::name_variable(&text));
        log::drain();
        self.code()
    }

    /// Ends the process at once, because what still runs may hang.
    pub fn abort(&self) -> ! {
        std::process::exit(self.report().into())
    }
}
