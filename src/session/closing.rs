//! Why the server closes a socket, for the close frame, the log and the metrics.

use actix_http::ws::CloseReason;

use crate::{
    log_limit::LogLimit,
    messages::Disconnect,
    model::{Cause, ConnectionId},
};

/// Why the server closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// The registry has told the session to close.
    Ordered(Disconnect),
    /// A message is too large.
    MessageTooBig,
    /// The client has exceeded the rate limit.
    TooManyMessages,
    /// Only text frames are accepted.
    BinaryFrame,
    /// A text is not UTF-8.
    InvalidUtf8,
    /// A frame is malformed.
    MalformedFrame,
    /// A text is no Phoenix message.
    MalformedMessage,
    /// A client in no room was silent for too long.
    Silent,
    /// The server stops, and the client is in no room.
    ServerStops,
    /// The registry does not answer any more.
    RegistryStopped,
}

impl Closing {
    /// The close code (RFC 6455, section 7.4.1, and the codes of [`close_code`](crate::close_code)).
    pub fn code(self) -> u16 {
        match self {
            Self::Ordered(order) => order.code,
            Self::MessageTooBig => 1009,
            Self::TooManyMessages => 1008,
            Self::BinaryFrame => 1003,
            Self::InvalidUtf8 | Self::MalformedMessage => 1007,
            Self::MalformedFrame => 1002,
            Self::Silent | Self::ServerStops => 1001,
            Self::RegistryStopped => 1011,
        }
    }

    /// The reason in the close frame.
    pub fn text(self) -> &'static str {
        match self {
            Self::Ordered(order) => order.cause.as_str(),
            Self::MessageTooBig => "message too big",
            Self::TooManyMessages => "too many messages",
            Self::BinaryFrame => "binary frames are not taken",
            Self::InvalidUtf8 => "text is not UTF-8",
            Self::MalformedFrame => "malformed frame",
            Self::MalformedMessage => "malformed message",
            Self::Silent => "silent for too long",
            Self::ServerStops => "shutdown",
            Self::RegistryStopped => "internal error",
        }
    }

    /// The cause with which the connection leaves its rooms.
    pub fn cause(self) -> Cause {
        match self {
            Self::Ordered(order) => order.cause,
            Self::TooManyMessages => Cause::Kicked,
            Self::Silent => Cause::Expired,
            Self::ServerStops => Cause::Shutdown,
            _ => Cause::Disconnected,
        }
    }

    /// The close frame.
    pub fn frame(self) -> CloseReason {
        CloseReason { code: self.code().into(), description: Some(self.text().to_owned()) }
    }

    /// Counts it, and warns if a client has met a limit.
    pub fn record(self, connection: ConnectionId) {
        metrics::counter!("presence_sockets_closed_total", "reason" => self.text()).increment(1);
        let (limit, option) = match self {
            Self::MessageTooBig => (&MESSAGE_TOO_BIG, "--max-frame-size"),
            Self::TooManyMessages => (&TOO_MANY_MESSAGES, "--max-rate"),
            _ => {
                tracing::debug!(%connection, code = self.code(), reason = self.text(), "closing a socket");
                return;
            }
        };
        if let Some(suppressed) = limit.pass() {
            let reason = self.text();
            tracing::warn!(%connection, reason, option, suppressed, "closing a socket: {reason} ({option})");
        }
    }
}

static MESSAGE_TOO_BIG: LogLimit = LogLimit::new();
static TOO_MANY_MESSAGES: LogLimit = LogLimit::new();
