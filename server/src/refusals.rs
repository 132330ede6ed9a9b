//! Refused requests are counted by reason, and logged with the flag to look at.

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

use crate::response::ApiError;
use actix_presence::log_limit::LogLimit;

pub(crate) const REFUSALS_TOTAL: &str = "presence_refusals_total";

/// A reason to refuse requests, and what the operator can do about it.
struct Refusal {
    /// The code of the [`ApiError`].
    code: &'static str,
    advice: &'static str,
    log: LogLimit,
}

const fn refusal(code: &'static str, advice: &'static str) -> Refusal {
    Refusal { code, advice, log: LogLimit::new() }
}

const MALFORMED: &str = "it is malformed";

static REFUSALS: [Refusal; 26] = [
    refusal(
        "foreign_origin",
        "allow the page's origin with --allow-origin; /api also needs --api-key",
    ),
    refusal(
        "loopback_only",
        "without --api-key only this machine is answered, and no pages of other origins",
    ),
    refusal("unauthorized", "it does not have the --api-key"),
    refusal(
        "token_needed",
        "it has no token, which --secret requires unless --allow-anonymous is given",
    ),
    refusal("bad_token", "its token is not signed with --secret, or not valid now"),
    refusal("no_secret", "it has a token, but the server was started without --secret"),
    refusal(
        "room_not_allowed",
        "its token or its identity is for other rooms (presence token --room)",
    ),
    refusal("identity_refused", "the app's identity hook refused it"),
    refusal("identity_unavailable", "the app's identity hook had no answer, or none in time"),
    refusal("bad_version", "a Phoenix client must ask for vsn=2.0.0"),
    refusal("too_many_connections", "all places of --max-connections are taken"),
    refusal("too_many_readers", "too many clients read the dashboard's live numbers"),
    refusal("room_full", "all places of --max-room-size are taken"),
    refusal("too_many_rooms", "the connection has reached its limit of rooms"),
    refusal("not_allowed", "the app's authorize hook denied it"),
    refusal("replaced", "a newer connection of its client session has replaced it"),
    refusal("withdrawn", "it left before it had joined"),
    refusal("shutting_down", "the server is stopping"),
    refusal("busy", "the room registry does not answer"),
    refusal("handshake", "it did not ask for a WebSocket; a proxy has to forward `Upgrade`"),
    refusal("bad_room_name", MALFORMED),
    refusal("bad_user_id", MALFORMED),
    refusal("bad_info", MALFORMED),
    refusal("bad_session", MALFORMED),
    refusal("bad_query", MALFORMED),
    refusal("bad_presence", MALFORMED),
];

/// For codes that are not among [`REFUSALS`].
static OTHER: Refusal = refusal("other", "its detail says why");

/// By origin, so that one that is refused all the time does not hide one that should be allowed.
static ORIGINS: KeyedLogLimit = KeyedLogLimit::new();

/// By error, so that expired tokens, which are ordinary, do not hide those of a wrong secret.
static TOKENS: KeyedLogLimit = KeyedLogLimit::new();

/// The values of the counter's label that are known in advance.
pub(crate) fn codes() -> impl Iterator<Item = &'static str> {
    REFUSALS.iter().map(|refusal| refusal.code)
}

/// Middleware that reports every error that a resource answers with.
pub(crate) async fn report_errors<B: MessageBody>(
    req: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let response = next.call(req).await?;
    if let Some(error) = response.response().error().and_then(|error| error.as_error()) {
        report(response.request(), error);
    }
    Ok(response)
}

/// Counts a refusal, and logs it unless the same was logged in the last minute.
///
/// The line contains neither the address nor the answer of an app's hook: there may be tokens and names
/// of users in them.
pub(crate) fn report(req: &HttpRequest, error: &ApiError) {
    let code = error.code();
    counter!(REFUSALS_TOTAL, "reason" => code).increment(1);
    let refusal = REFUSALS.iter().find(|refusal| refusal.code == code).unwrap_or(&OTHER);
    let origin = loggable(req, header::ORIGIN);
    let is_of_the_app = matches!(code, "not_allowed" | "identity_refused" | "identity_unavailable");
    let detail = if is_of_the_app { String::new() } else { error.to_string() };
    let passed = match code {
        "foreign_origin" => ORIGINS.pass(&origin),
        "bad_token" => TOKENS.pass(&detail),
        _ => refusal.log.pass(),
    };
    let Some(suppressed) = passed else { return };
    let host = loggable(req, header::HOST);
    let advice = refusal.advice;
    tracing::warn!(reason = code, origin, host, detail, suppressed, "refused a request: {advice}");
}

/// A header, for a field of the log, where it is quoted.
fn loggable(req: &HttpRequest, name: HeaderName) -> String {
    // The length of the longest host name.
    const MAX_CHARS: usize = 253;
    let value = req.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    value.map_or_else(|| "none".to_owned(), |value| value.chars().take(MAX_CHARS).collect())
}

/// A [`LogLimit`] by key: in each minute it passes the first line of each key, for at most
/// [`MAX_KEYS`](Self::MAX_KEYS) keys.
struct KeyedLogLimit(Mutex<Minute>);

/// The keys that have passed since the minute began.
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

    /// If a line about this key may be written now: how many were suppressed since the last one.
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
    fn each_key_passes_once_a_minute_up_to_a_number_of_keys() {
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
