//! Why the server closes a socket, as its peer, the log and the metrics are told.

use actix_http::ws::CloseReason;

use crate::{
    log_limit::LogLimit,
    messages::Disconnect,
    model::{Cause, ConnectionId},
};

/// Why the server closes a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// The registry has put the connection out of its last room.
    Ordered(Disconnect),
    /// A message has more bytes than are allowed.
    MessageTooBig,
    /// The client sends more frames than are allowed.
    TooManyMessages,
    /// Only text is taken.
    BinaryFrame,
    /// A text is not UTF-8.
    InvalidUtf8,
    /// What came is no frame of a WebSocket.
    MalformedFrame,
    /// A text is no message of the Phoenix protocol.
    MalformedMessage,
    /// Nothing came from a socket that is in no room.
    Silent,
    /// The server ends, and the socket is in no room.
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

    /// Why the connection leaves its rooms with it.
    pub fn cause(self) -> Cause {
        match self {
            Self::Ordered(order) => order.cause,
            Self::TooManyMessages => Cause::Kicked,
            Self::Silent => Cause::Expired,
            Self::ServerStops => Cause::Shutdown,
            _ => Cause::Disconnected,
        }
    }

    /// The frame that says so.
    pub fn frame(self) -> CloseReason {
        CloseReason { code: self.code().into(), description: Some(self.text().to_owned()) }
    }

    /// Counts it, and warns of a limit that a client has met.
    pub fn note(self, connection: ConnectionId) {
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
