//! What a refused request is answered: `{"error":{"code":…,"message":…}}` with the fitting status.

use std::borrow::Cow;

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use serde_json::json;

use actix_presence::{
    WsSessionError,
    messages::JoinError,
    model::{InvalidName, LimitReached},
};

/// A refusal with its HTTP status.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct ApiError {
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

    /// The same refusal with 403, for clients that know no other.
    pub fn refuse(self) -> Self {
        Self { status: StatusCode::FORBIDDEN, ..self }
    }

    pub fn not_found(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub fn unavailable(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    /// What kind of error it is, for programs.
    pub fn code(&self) -> &'static str {
        self.code
    }

    pub fn bad_room(error: InvalidName) -> Self {
        Self::bad_request("bad_room_name", format!("this is no name of a room: {error}"))
    }

    pub fn bad_user(error: InvalidName) -> Self {
        Self::bad_request("bad_user_id", format!("this is no id of a user: {error}"))
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        response
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        if self.code == "handshake" {
            response.insert_header((header::SEC_WEBSOCKET_VERSION, "13"));
        }
        response.json(json!({"error": {"code": self.code, "message": self.message}}))
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
            JoinError::ShuttingDown => Self::unavailable("shutting_down", message),
            _ => Self::forbidden("not_allowed", message),
        }
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
