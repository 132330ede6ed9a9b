//! The error that the calls of clients and connections share.

use actix_web::{HttpResponse, ResponseError, http::StatusCode};

use super::{FlushError, JoinError, PublishError, QueryError, statuses::answer};

/// Why a [`PresenceClient`](crate::PresenceClient) has no answer, or a [`Connection`](crate::Connection) could
/// not do something. In a handler `?` answers with a fitting status and with the error's text, without what the
/// database said: that is for the log.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// The registry has ended: the process is stopping, or a part of the system has crashed. 503.
    #[error("the presence system has ended")]
    Ended,
    /// The question cannot be answered now. 503.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Rows are not in the database. 503.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// A join is refused, or would be. 403, or 503 where another node may let it in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The sender of a message is not in the room (409), or may not publish there (403); or the name of its event
    /// is reserved (400).
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl ResponseError for PresenceError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Ended => StatusCode::SERVICE_UNAVAILABLE,
            Self::Query(error) => error.status_code(),
            Self::Flush(error) => error.status_code(),
            Self::Join(error) => error.status_code(),
            Self::Publish(error) => error.status_code(),
        }
    }

    fn error_response(&self) -> HttpResponse {
        answer(self.status_code(), self.client_text())
    }
}

impl PresenceError {
    /// The text for clients.
    pub(super) fn client_text(&self) -> String {
        match self {
            Self::Query(error) => error.without_cause(),
            Self::Flush(error) => error.without_cause(),
            error => error.to_string(),
        }
    }
}
