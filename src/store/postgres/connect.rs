//! Connections to PostgreSQL.

use std::{convert::Infallible, thread, time::Duration};

use diesel::{
    Connection, PgConnection,
    connection::SimpleConnection,
    r2d2::{ManageConnection, NopErrorHandler, Pool},
};

use super::PostgresUrl;
use crate::store::{StoreError, error::Source};

/// How long a `PostgresStore` waits, and whose clock it goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// How long connecting to a host may take. Default 5 s, at least 2 s.
    pub connect_timeout: Duration,
    /// After how long without an answer of its host a connection is given up. Default 5 s.
    pub tcp_timeout: Duration,
    /// How long a statement may take. Default 5 s.
    pub statement_timeout: Duration,
    /// How long a statement may take that may be about all rows there are, of a node or of the table:
    /// to start, stop, bury, prune, and list. Default 60 s.
    pub long_statement_timeout: Duration,
    /// How long a statement waits for what others hold. Default 3 s.
    pub lock_timeout: Duration,
    /// After how long the database ends a transaction whose process stands still. Default 10 s.
    pub idle_transaction_timeout: Duration,
    /// How long opening waits for others that migrate the same database. Default 30 s.
    pub open_timeout: Duration,
    /// Whose clock leases go by. Default [`LeaseClock::Database`].
    pub clock: LeaseClock,
}

/// Whose clock leases go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseClock {
    /// The database's, which is the same one for every node.
    Database,
    /// The time that each call is given, for tests.
    Given,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            tcp_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(5),
            long_statement_timeout: Duration::from_secs(60),
            lock_timeout: Duration::from_secs(3),
            idle_transaction_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(30),
            clock: LeaseClock::Database,
        }
    }
}

/// Makes one connection.
pub(super) fn connect(
    url: &PostgresUrl,
    options: PostgresOptions,
) -> Result<PgConnection, StoreError> {
    let mut conn =
        PgConnection::establish(&with_options(url, options)).map_err(StoreError::unavailable)?;
    conn.batch_execute(&settings(options))?;
    Ok(conn)
}

/// The URL with the options of the client's side, which have to be there before it is connected.
fn with_options(url: &PostgresUrl, options: PostgresOptions) -> String {
    // Signs of life are asked for after half of the time, and three times until it is over.
    let tcp = options.tcp_timeout;
    let seconds = |duration: Duration| duration.as_secs().max(1).to_string();
    url.with_options(&[
        ("application_name", "actix-presence".to_owned()),
        ("connect_timeout", seconds(options.connect_timeout)),
        ("tcp_user_timeout", tcp.as_millis().to_string()),
        ("keepalives_idle", seconds(tcp / 2)),
        ("keepalives_interval", seconds(tcp / 6)),
        ("keepalives_count", "3".to_owned()),
    ])
}

/// What is set in the session. The statements depend on the isolation: each sees what was committed
/// before it. A plan that was made when the tables were empty must not be kept. A superuser may have
/// messages in English; others have them as the server is set up.
fn settings(options: PostgresOptions) -> String {
    format!(
        "SET TIME ZONE 'UTC';
         SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;
         SET plan_cache_mode = force_custom_plan;
         SET statement_timeout = {};
         SET lock_timeout = {};
         SET idle_in_transaction_session_timeout = {};
         SELECT set_config('lc_messages', 'C', false) WHERE current_setting('is_superuser')::boolean",
        millis(options.statement_timeout),
        millis(options.lock_timeout),
        millis(options.idle_transaction_timeout),
    )
}

/// A timeout as the database takes it, where 0 would be none.
pub(super) fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// A connection, or why there is none, as the pool hands it out.
///
/// A pool of `r2d2` tries again and again, and keeps who asks waiting; here the call fails at once,
/// and the next one tries again.
pub(super) struct Session {
    conn: Result<PgConnection, Source>,
    broken: bool,
}

impl Session {
    /// The connection.
    pub(super) fn conn(&mut self) -> Result<&mut PgConnection, StoreError> {
        match &mut self.conn {
            Ok(conn) => Ok(conn),
            Err(source) => {
                let source = std::mem::replace(source, "the connection has failed".into());
                Err(StoreError::Unavailable { source })
            }
        }
    }

    /// Lets the pool throw it away.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
    }
}

pub(super) struct Manager {
    url: PostgresUrl,
    options: PostgresOptions,
}

impl Manager {
    /// A pool of one connection, which is made when it is needed.
    pub(super) fn pool(url: &PostgresUrl, options: PostgresOptions) -> Pool<Self> {
        // Beyond the time to connect: to resolve the host's name, and to set up the session.
        const MORE: Duration = Duration::from_secs(5);
        Pool::builder()
            .max_size(1)
            .min_idle(Some(0))
            .max_lifetime(None)
            .idle_timeout(None)
            .test_on_check_out(false)
            .connection_timeout(options.connect_timeout + MORE)
            .error_handler(Box::new(NopErrorHandler))
            .build_unchecked(Self { url: url.clone(), options })
    }
}

impl ManageConnection for Manager {
    type Connection = Session;
    type Error = Infallible;

    fn connect(&self) -> Result<Session, Infallible> {
        let conn = connect(&self.url, self.options).map_err(|error| match error {
            StoreError::Unavailable { source } => source,
            error => error.into(),
        });
        Ok(Session { conn, broken: false })
    }

    fn is_valid(&self, _: &mut Session) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.broken || session.conn.is_err() || thread::panicking()
    }
}
