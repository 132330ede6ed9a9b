//! What requests are answered with: JSON that no cache keeps, and errors with a code and a message.

use std::{borrow::Cow, fmt::Display};

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{self, EntityTag, Header, IfNoneMatch},
    },
    web::{BufMut, Bytes, BytesMut},
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::json;

use actix_presence::{JoinError, LimitReached, QueryError, WsSessionError};

/// A JSON body that no cache keeps.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .json(body)
}

/// The JSON text of a value, unless that has more bytes than the limit.
pub(crate) fn encode_within(limit: usize, body: &impl Serialize) -> Option<Bytes> {
    let mut text = BytesMut::new().limit(limit).writer();
    serde_json::to_writer(&mut text, body).ok()?;
    Some(text.into_inner().into_inner().freeze())
}

/// A time in JSON.
pub(crate) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Whether the client already has the representation with this tag (`If-None-Match`). A proxy that compresses
/// marks the tag as weak, or with the name of its encoding (`"…-gzip"`, as Apache does).
pub(crate) fn is_cached(req: &HttpRequest, tag: &EntityTag) -> bool {
    if !req.headers().contains_key(header::IF_NONE_MATCH) {
        return false;
    }
    match IfNoneMatch::parse(req) {
        Ok(IfNoneMatch::Any) => true,
        Ok(IfNoneMatch::Items(tags)) => tags.iter().any(|cached| is_same(cached.tag(), tag.tag())),
        Err(_) => false,
    }
}

fn is_same(cached: &str, tag: &str) -> bool {
    const ENCODINGS: [&str; 5] = ["", "-gzip", "-br", "-zstd", "-deflate"];
    cached.strip_prefix(tag).is_some_and(|mark| ENCODINGS.contains(&mark))
}

/// Why a request is refused, answered as `{"error":{"code":…,"message":…}}`.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
}

impl ApiError {
    pub fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status, code, message: message.into() }
    }

    pub fn bad_request(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub fn unauthorized(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, code, message)
    }

    pub fn forbidden(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    pub fn not_found(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub fn too_large(message: String) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    pub fn unavailable(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    pub fn unknown_route() -> Self {
        Self::not_found("not_found", "there is nothing at this address")
    }

    pub fn bad_room(error: impl Display) -> Self {
        Self::bad_request("bad_room_name", format!("invalid room name: {error}"))
    }

    pub fn bad_user(error: impl Display) -> Self {
        Self::bad_request("bad_user_id", format!("invalid user id: {error}"))
    }

    /// The same error with status 403, the only one that Phoenix clients know, unless it is the server's.
    pub fn into_forbidden(self) -> Self {
        let is_ours = self.status.is_server_error();
        Self { status: if is_ours { self.status } else { StatusCode::FORBIDDEN }, ..self }
    }

    /// The kind of error, for programs.
    pub fn code(&self) -> &'static str {
        self.code
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let body = json!({"error": {"code": self.code, "message": self.message}});
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if self.code == "handshake" {
            headers.insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
        }
        response
    }
}

impl From<JoinError> for ApiError {
    fn from(error: JoinError) -> Self {
        let message = error.to_string();
        match error {
            JoinError::Limit(LimitReached::RoomFull { .. }) => {
                Self::forbidden("room_full", message)
            }
            JoinError::Limit(LimitReached::TooManyRooms { .. }) => {
                Self::forbidden("too_many_rooms", message)
            }
            JoinError::Superseded(_) => Self::forbidden("replaced", message),
            JoinError::Withdrawn => Self::unavailable("withdrawn", message),
            JoinError::Undecided => Self::unavailable("undecided", message),
            JoinError::Busy => Self::unavailable("busy", message),
            JoinError::ShuttingDown => Self::unavailable("shutting_down", message),
            _ => Self::forbidden("not_allowed", message),
        }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let code = match error {
            QueryError::Closed => "shutting_down",
            _ => "database_unavailable",
        };
        Self::unavailable(code, error.to_string())
    }
}

impl From<WsSessionError> for ApiError {
    fn from(error: WsSessionError) -> Self {
        match error {
            WsSessionError::Join(error) => error.into(),
            WsSessionError::Handshake(_) => Self::bad_request("handshake", error.to_string()),
            _ => Self::unavailable("shutting_down", error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_a_proxy_has_marked_matches() {
        for cached in ["5-7", "5-7-gzip", "5-7-br"] {
            assert!(is_same(cached, "5-7"), "{cached}");
        }
        for other in ["5-70", "5-7-x", "5", "", "gzip"] {
            assert!(!is_same(other, "5-7"), "{other}");
        }
    }
}
