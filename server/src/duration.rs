//! Durations as people write them: `60s`, `2m`, `500ms`, or a bare number of seconds.

use std::time::Duration;

/// The shortest: what is timed here has no finer grain.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest, ten years: far more than anything here is good for, and far from every overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadDuration {
    #[error("a duration is `60s`, `2m`, `500ms` or a number of seconds")]
    Form,
    #[error("a duration is at least 1 ms")]
    TooShort,
    #[error("a duration is at most 10 years")]
    TooLong,
}

/// Reads a duration that may be zero.
pub(super) fn parse_or_zero(text: &str) -> Result<Duration, BadDuration> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => parse(text),
    }
}

/// Reads a duration.
pub(super) fn parse(text: &str) -> Result<Duration, BadDuration> {
    let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let duration = if bare {
        let seconds: f64 = text.parse().map_err(|_| BadDuration::Form)?;
        Duration::try_from_secs_f64(seconds).map_err(|_| BadDuration::TooLong)?
    } else {
        humantime::parse_duration(text).map_err(|error| match error {
            humantime::DurationError::NumberOverflow => BadDuration::TooLong,
            _ => BadDuration::Form,
        })?
    };
    match duration {
        duration if duration < SHORTEST => Err(BadDuration::TooShort),
        duration if duration > LONGEST => Err(BadDuration::TooLong),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn nothing_garbage_and_what_no_clock_can_count_are_refused() {
        for text in
            ["", " ", "s", "x", "-1", "-1s", "1e3", "NaN", "inf", "1.2.3", ".", "60 parsecs"]
        {
            assert_eq!(parse(text), Err(BadDuration::Form), "{text}");
        }
        for text in ["0", "0s", "0.0", "1us", "0.0001"] {
            assert_eq!(parse(text), Err(BadDuration::TooShort), "{text}");
        }
        let digits = "9".repeat(400);
        for text in ["11y", "1000000000", "18446744073709551616s", "999999999999999999y", &digits] {
            assert_eq!(parse(text), Err(BadDuration::TooLong), "{text}");
        }
    }
}
