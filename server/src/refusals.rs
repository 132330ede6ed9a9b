//! Refused requests leave a trace: a counter by reason, and a warning that names the flag to look at.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use actix_web::{
    HttpRequest,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderName},
    middleware::Next,
};
use metrics::counter;

use super::error::ApiError;
use actix_presence::log_limit::LogLimit;

pub(super) const REFUSALS_TOTAL: &str = "presence_refusals_total";

/// A reason to refuse a request, with what the operator can do about it.
struct Reason {
    /// The `code` of the error that the client is answered.
    code: &'static str,
    advice: &'static str,
    log: LogLimit,
}

const fn reason(code: &'static str, advice: &'static str) -> Reason {
    Reason { code, advice, log: LogLimit::new() }
}

const MALFORMED: &str = "it is malformed";

static REASONS: [Reason; 24] = [
    reason(
        "foreign_origin",
        "name the page's origin with --allow-origin; `*` opens WebSockets only, /api needs it in full",
    ),
    reason(
        "loopback_only",
        "without --api-key only this machine is answered, and no pages of other origins",
    ),
    reason("unauthorized", "it did not bring the --api-key"),
    reason("token_needed", "it has no token, which --secret asks for unless --allow-anonymous"),
    reason("bad_token", "its token was not signed with --secret, or is not good now"),
    reason("no_secret", "it has a token, and the server was started without --secret"),
    reason("room_not_allowed", "the `rooms` of its token (presence token --room) are others"),
    reason("bad_version", "a Phoenix client has to ask for vsn=2.0.0"),
    reason("too_many_connections", "all places of --max-connections are taken"),
    reason("too_many_readers", "too many read the dashboard's live numbers"),
    reason("room_full", "all places of --max-room-size are taken"),
    reason("too_many_rooms", "the limit of rooms is reached"),
    reason("not_allowed", "the app's authorize hook said no"),
    reason("replaced", "a newer connection of its client session has taken its place"),
    reason("withdrawn", "it left before it could join"),
    reason("shutting_down", "the server stops"),
    reason("busy", "the registry does not answer"),
    reason("handshake", "it did not ask for a WebSocket; a proxy has to pass `Upgrade` on"),
    reason("bad_room_name", MALFORMED),
    reason("bad_user_id", MALFORMED),
    reason("bad_info", MALFORMED),
    reason("bad_session", MALFORMED),
    reason("bad_query", MALFORMED),
    reason("bad_presence", MALFORMED),
];

/// For codes that are not among [`REASONS`].
static OTHER: Reason = reason("other", "its detail says why");

/// An origin that somebody tries all the time must not hide the one that is to be allowed.
static ORIGINS: KeyedLogLimit = KeyedLogLimit::new();

/// Expired tokens, which are ordinary, must not hide those of a wrong secret.
static TOKENS: KeyedLogLimit = KeyedLogLimit::new();

/// The known values of the counter's label.
pub(super) fn codes() -> impl Iterator<Item = &'static str> {
    REASONS.iter().map(|reason| reason.code)
}

/// Middleware that reports each error a resource answers with.
pub(super) async fn report_errors<B: MessageBody>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let response = next.call(req).await?;
    if let Some(error) = response.response().error().and_then(|error| error.as_error()) {
        report(response.request(), error);
    }
    Ok(response)
}

/// Counts a refusal, and writes a line about it unless there was one lately.
///
/// The line has nothing of the address, nor what an app's hook answered: there may be tokens and names
/// of users in them.
pub(super) fn report(req: &HttpRequest, error: &ApiError) {
    let code = error.code();
    counter!(REFUSALS_TOTAL, "reason" => code).increment(1);
    let reason = REASONS.iter().find(|reason| reason.code == code).unwrap_or(&OTHER);
    let origin = shown(req, header::ORIGIN);
    let detail = if code == "not_allowed" { String::new() } else { error.to_string() };
    let passed = match code {
        "foreign_origin" => ORIGINS.pass(&origin),
        "bad_token" => TOKENS.pass(&detail),
        _ => reason.log.pass(),
    };
    let Some(suppressed) = passed else { return };
    let host = shown(req, header::HOST);
    let advice = reason.advice;
    tracing::warn!(reason = code, origin, host, detail, suppressed, "refused a request: {advice}");
}

/// A header for the log, where it is quoted.
fn shown(req: &HttpRequest, name: HeaderName) -> String {
    // As many as the longest name of a host has.
    const MAX_CHARS: usize = 253;
    let value = req.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    value.map_or_else(|| "none".to_owned(), |value| value.chars().take(MAX_CHARS).collect())
}

/// As [`LogLimit`], but lines about different things do not suppress each other: of each minute it lets
/// the first line of each key pass, for [`MAX_KEYS`](Self::MAX_KEYS) keys.
struct KeyedLogLimit(Mutex<Minute>);

/// The keys let through since the minute began.
struct Minute {
    began: Option<Instant>,
    keys: Vec<String>,
    suppressed: u64,
}

impl KeyedLogLimit {
    const INTERVAL: Duration = Duration::from_secs(60);
    const MAX_KEYS: usize = 8;

    const fn new() -> Self {
        Self(Mutex::new(Minute { began: None, keys: Vec::new(), suppressed: 0 }))
    }

    /// Whether a line about this key may be written now: how many were suppressed since the last one.
    fn pass(&self, key: &str) -> Option<u64> {
        self.pass_at(key, Instant::now())
    }

    fn pass_at(&self, key: &str, now: Instant) -> Option<u64> {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.began.is_none_or(|began| now.duration_since(began) >= Self::INTERVAL) {
            minute.began = Some(now);
            minute.keys.clear();
        }
        if minute.keys.len() == Self::MAX_KEYS || minute.keys.iter().any(|known| known == key) {
            minute.suppressed += 1;
            return None;
        }
        minute.keys.push(key.to_owned());
        Some(std::mem::take(&mut minute.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_different_keys_pass_up_to_a_bound_and_each_key_once_a_minute() {
        let limit = KeyedLogLimit::new();
        let start = Instant::now();
        let at = |secs, key: &str| limit.pass_at(key, start + Duration::from_secs(secs));
        assert_eq!(at(0, "a"), Some(0));
        assert_eq!(at(1, "a"), None);
        assert_eq!(at(2, "b"), Some(1));
        let others = (0..100).filter(|n| at(3, &n.to_string()).is_some()).count();
        assert_eq!(others, KeyedLogLimit::MAX_KEYS - 2);
        assert_eq!(at(59, "a"), None);
        assert_eq!(at(60, "a"), Some(95));
    }
}
