//! The errors of messages and of values as answers to HTTP requests.

use actix_web::{
    HttpResponse, ResponseError,
    http::{StatusCode, header::ContentType},
};

use super::{FlushError, JoinError, PublishError, QueryError};
use crate::model::{InvalidConnectionId, InvalidEpoch, InvalidInfo, InvalidName, UnfitJson};

/// 503 where another node or a later request may succeed, 403 otherwise.
impl ResponseError for JoinError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Withdrawn | Self::ShuttingDown | Self::Busy | Self::Undecided => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Limit(_) | Self::Denied { .. } | Self::Superseded(_) => StatusCode::FORBIDDEN,
        }
    }
}

/// 409: the sender has left the room; 403: it may not publish there; 400: the event's name is reserved.
impl ResponseError for PublishError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::NotAMember => StatusCode::CONFLICT,
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::ReservedEvent => StatusCode::BAD_REQUEST,
        }
    }
}

/// 503: a later request may be answered. The client is not told what the database said.
impl ResponseError for QueryError {
    fn status_code(&self) -> StatusCode {
        StatusCode::SERVICE_UNAVAILABLE
    }

    fn error_response(&self) -> HttpResponse {
        answer(self.status_code(), self.without_cause())
    }
}

/// 503: the rows may be written later. The client is not told what the database said.
impl ResponseError for FlushError {
    fn status_code(&self) -> StatusCode {
        StatusCode::SERVICE_UNAVAILABLE
    }

    fn error_response(&self) -> HttpResponse {
        answer(self.status_code(), self.without_cause())
    }
}

/// The answer of an error with this text, as actix-web makes it.
pub(super) fn answer(status: StatusCode, text: String) -> HttpResponse {
    HttpResponse::build(status).content_type(ContentType::plaintext()).body(text)
}

/// An error that is always answered with the same status.
macro_rules! status {
    ($(#[$doc:meta] $error:ident => $status:ident)*) => {
        $(
            #[$doc]
            impl ResponseError for $error {
                fn status_code(&self) -> StatusCode {
                    StatusCode::$status
                }
            }
        )*
    };
}

status! {
    /// 400.
    InvalidName => BAD_REQUEST
    /// 400.
    InvalidInfo => BAD_REQUEST
    /// 400.
    InvalidConnectionId => BAD_REQUEST
    /// 400.
    InvalidEpoch => BAD_REQUEST
    /// 400.
    UnfitJson => BAD_REQUEST
}
