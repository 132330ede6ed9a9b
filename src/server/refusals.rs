//! Refused requests leave a trace: a counter by reason, and a warning that names the flag to look at.

use std::fmt;

use actix_web::{
    HttpRequest,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderName},
    middleware::Next,
};
use metrics::counter;

use super::error::ApiError;
use crate::log_limit::LogLimit;

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

/// Counts a refusal, and writes at most one line a minute about those with the same reason.
///
/// Neither has anything of the address or of what an app's hook answered: there may be tokens and
/// names of users in them.
pub(super) fn report(req: &HttpRequest, error: &ApiError) {
    let code = error.code();
    counter!(REFUSALS_TOTAL, "reason" => code).increment(1);
    let reason = REASONS.iter().find(|reason| reason.code == code).unwrap_or(&OTHER);
    let Some(suppressed) = reason.log.pass() else { return };
    let detail = if code == "not_allowed" { String::new() } else { error.to_string() };
    let (origin, host) = (Shown::of(req, header::ORIGIN), Shown::of(req, header::HOST));
    let advice = reason.advice;
    tracing::warn!(reason = code, %origin, %host, detail, suppressed, "refused a request: {advice}");
}

/// A header as it stands in the log: quoted, and not longer than need be.
struct Shown(Option<String>);

impl Shown {
    /// As many characters as the longest name of a host has.
    const MAX_CHARS: usize = 253;

    fn of(req: &HttpRequest, name: HeaderName) -> Self {
        let value = req.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        Self(value.map(|value| value.chars().take(Self::MAX_CHARS).collect()))
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => write!(f, "{value:?}"),
            None => f.write_str("none"),
        }
    }
}
