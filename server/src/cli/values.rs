//! How the values of flags are read, and why they may be refused.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

use actix_presence::{InvalidName, RoomName};
use tracing_subscriber::EnvFilter;

use crate::{
    origin::{AllowedOrigin, InvalidOrigin},
    token::{EmptySecret, Secret},
};

/// The shortest duration: no clock here is more precise.
const MIN_DURATION: Duration = Duration::from_millis(1);
/// The longest duration, ten years: longer than anything here lasts, and far from every overflow.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A [duration], or 0.
pub(super) fn duration_or_zero(text: &str) -> Result<Duration, &'static str> {
    if text == "0" || text == "0s" { Ok(Duration::ZERO) } else { duration(text) }
}

/// A number of seconds, or a number with a unit.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    const TOO_LONG: &str = "a duration must be at most 10 years";
    let malformed = "a duration must be `60s`, `2m`, `500ms` or a number of seconds";
    let seconds = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let duration = if seconds {
        let seconds = text.parse().map_err(|_| malformed)?;
        Duration::try_from_secs_f64(seconds).map_err(|_| TOO_LONG)?
    } else {
        humantime::parse_duration(text).map_err(|error| match error {
            humantime::DurationError::NumberOverflow => TOO_LONG,
            _ => malformed,
        })?
    };
    match duration {
        short if short < MIN_DURATION => Err("a duration must be at least 1 ms"),
        long if long > MAX_DURATION => Err(TOO_LONG),
        duration => Ok(duration),
    }
}

/// An origin, or a pattern of origins.
pub(super) fn origin(text: &str) -> Result<AllowedOrigin, InvalidOrigin> {
    text.trim().parse()
}

/// The addresses that one `ADDR` resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BindFlag(pub Vec<SocketAddr>);

/// The addresses of `HOST:PORT`, looked up now.
pub(super) fn bind(text: &str) -> Result<BindFlag, String> {
    let addresses: Vec<SocketAddr> = match text.trim().to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            return Err(format!("an address must be HOST:PORT, such as 127.0.0.1:8080: {error}"));
        }
    };
    if addresses.is_empty() {
        return Err("this host has no address".to_owned());
    }
    Ok(BindFlag(addresses))
}

/// A secret, which is not empty.
pub(super) fn secret(text: &str) -> Result<Secret, EmptySecret> {
    Secret::new(text)
}

/// The name of a room, or a prefix followed by `*`.
pub(super) fn pattern(text: &str) -> Result<String, InvalidName> {
    RoomName::new(text).map(|name| name.as_str().to_owned())
}

/// A log level, or levels by module.
pub(super) fn log(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |part: &str| LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level));
    // `EnvFilter` takes any other word for a module, of which it logs everything.
    let known = |part: &str| is_level(part.rsplit('=').next().unwrap_or_default().trim());
    if !text.split(',').all(known) || EnvFilter::try_new(text).is_err() {
        return Err("a level must be off, error, warn, info, debug or trace".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_may_differ_by_module() {
        for good in ["info", "WARN", "off", "info,actix_web=debug", "presence_server=trace"] {
            assert_eq!(log(good).as_deref(), Ok(good));
        }
        for bad in ["", "loud", "info,", "info,loud", "a=b=c", "5x"] {
            assert!(log(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_or_is_in_seconds() {
        for (text, millis) in [
            ("60s", 60_000),
            ("2m", 120_000),
            ("500ms", 500),
            ("1ms", 1),
            ("60", 60_000),
            ("1.5", 1500),
            ("0.001", 1),
            ("1h 30m", 5_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn malformed_and_extreme_durations_are_refused() {
        for text in
            ["", " ", "s", "x", "-1", "-1s", "1e3", "NaN", "inf", "1.2.3", ".", "60 parsecs"]
        {
            assert!(duration(text).is_err_and(|why| why.contains("`60s`")), "{text}");
        }
        for text in ["0", "0s", "0.0", "1us", "0.0001"] {
            assert!(duration(text).is_err_and(|why| why.contains("1 ms")), "{text}");
        }
        let digits = "9".repeat(400);
        for text in ["11y", "1000000000", "18446744073709551616s", "999999999999999999y", &digits] {
            assert!(duration(text).is_err_and(|why| why.contains("10 years")), "{text}");
        }
    }
}
