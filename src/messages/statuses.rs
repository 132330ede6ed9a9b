//! The errors of messages and of values as answers to HTTP requests.

use actix_web::{ResponseError, http::StatusCode};

use super::{FlushError, JoinError, PublishError, QueryError};
use crate::model::{InvalidConnectionId, InvalidEpoch, InvalidInfo, InvalidName, UnfitJson};

/// 503 where another node or a later request may succeed, 403 otherwise.
impl ResponseError for JoinError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Withdrawn | Self::ShuttingDown | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Limit(_) | Self::Denied { .. } | Self::Superseded(_) => StatusCode::FORBIDDEN,
        }
    }
}

/// 409: the sender has left the room; 403: it may not publish there.
impl ResponseError for PublishError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::NotAMember => StatusCode::CONFLICT,
            Self::NotAllowed => StatusCode::FORBIDDEN,
        }
    }
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
    /// 503: a later request may be answered.
    QueryError => SERVICE_UNAVAILABLE
    /// 503: the rows may be written later.
    FlushError => SERVICE_UNAVAILABLE
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
