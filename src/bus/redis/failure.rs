//! Why the bus is down, and what the log says of it.

use std::cell::{Cell, RefCell};

use redis::{ErrorKind, RedisError};

use crate::log_limit::LogLimit;

/// Why there is no connection any more, or none yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// In one word.
    pub reason: &'static str,
    /// The code of Redis' error. Its text may repeat a password.
    pub code: Option<String>,
}

impl From<&'static str> for Failure {
    fn from(reason: &'static str) -> Self {
        Self { reason, code: None }
    }
}

impl Failure {
    /// What the answer to a login means: that it was refused, unless the connection broke.
    pub fn of_login(error: RedisError) -> Self {
        let is_broken = error.is_io_error() || error.is_connection_dropped();
        let failure = Self::of(error, "unreachable");
        if is_broken { failure } else { Self { reason: "denied", ..failure } }
    }

    /// What an error means that broke a connection, or with `otherwise` as the reason where it did not say.
    pub fn of(error: RedisError, otherwise: &'static str) -> Self {
        const DENIED: [&str; 3] = ["NOAUTH", "WRONGPASS", "NOPERM"];
        // Not text of the server, and the only place where errors of certificates show.
        if error.is_io_error() {
            tracing::debug!(%error, "not connected to the bus: {error}");
        }
        let is_login = error.kind() == ErrorKind::AuthenticationFailed;
        let (refused, timeout) = (error.is_connection_refusal(), error.is_timeout());
        let lost = error.is_io_error() || error.is_connection_dropped();
        let errors = error.into_server_errors();
        let mut codes =
            errors.iter().flat_map(|errors| errors.iter()).map(|(_, error)| error.code());
        // What comes from a server is shown only if it looks like a code.
        let code = codes.find(|code| code.bytes().all(|byte| byte.is_ascii_uppercase()));
        let reason = match code {
            _ if is_login => "denied",
            Some(code) if DENIED.contains(&code) => "denied",
            _ if refused => "refused",
            _ if timeout => "timeout",
            _ if lost => otherwise,
            _ => "error",
        };
        Self { reason, code: code.map(str::to_owned) }
    }
}

/// What the log says of the connection: at most one line a minute that it is down, with the present reason.
pub(super) struct ConnectionLog {
    address: String,
    limit: LogLimit,
    /// What was logged since the bus was up.
    logged: RefCell<Option<Failure>>,
    /// Whether it has been up.
    was_up: Cell<bool>,
}

impl ConnectionLog {
    pub fn new(address: String) -> Self {
        let (logged, was_up) = (RefCell::default(), Cell::default());
        Self { address, limit: LogLimit::new(), logged, was_up }
    }

    pub fn up(&self) {
        let address = &self.address;
        let is_told = self.logged.take().is_some() || !self.was_up.replace(true);
        if is_told {
            tracing::info!(address, "the bus is up");
        } else {
            tracing::debug!(address, "the bus is up again");
        }
    }

    /// Called for each failure, so that a reason is logged when the minute of another one is over.
    pub fn down(&self, failure: &Failure) {
        let (address, Failure { reason, code }) = (&self.address, failure);
        let code = code.as_deref();
        let is_news = self.logged.borrow().as_ref() != Some(failure);
        if is_news && let Some(suppressed) = self.limit.pass() {
            self.logged.replace(Some(failure.clone()));
            tracing::warn!(
                address,
                reason,
                code,
                suppressed,
                "the bus is down: not receiving from other nodes"
            );
        } else {
            tracing::debug!(address, reason, code, "the bus is still down");
        }
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    #[test]
    fn the_code_of_an_error_is_kept_and_its_text_is_not() {
        for (answer, reason, code) in [
            ("NOPERM No permissions to access a channel", "denied", Some("NOPERM")),
            ("NOAUTH Authentication required.", "denied", Some("NOAUTH")),
            ("WRONGPASS invalid username-password pair: secret", "denied", Some("WRONGPASS")),
            ("LOADING Redis is loading the dataset in memory", "error", Some("LOADING")),
            ("ERR unknown command", "error", Some("ERR")),
            ("pass:secret is it", "error", None),
        ] {
            let error = redis::parse_redis_value(format!("-{answer}\r\n").as_bytes());
            let error = error.and_then(Value::extract_error).unwrap_err();
            let expected = Failure { reason, code: code.map(str::to_owned) };
            assert_eq!(Failure::of(error, "lost"), expected, "{answer}");
        }
    }
}
