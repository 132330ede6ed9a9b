//! What the close frame of a session says: of an order to close, and of a refusal.

use actix_http::ws::{CloseCode, CloseReason};

use super::{Disconnect, GOING_AWAY, JoinError, PresenceError, close_code};
use crate::model::Cause;

/// Policy violation, and try again later (RFC 6455, section 7.4.1, and its registry).
const POLICY: u16 = 1008;
const TRY_AGAIN_LATER: u16 = 1013;

/// How many bytes of text a close frame has space for: a control frame has at most 125 (RFC 6455, section 5.5), two
/// of them for the code.
const MAX_REASON_BYTES: usize = 123;

impl From<Disconnect> for CloseReason {
    /// The close frame of a session that is told to close.
    ///
    /// ```
    /// # use actix::prelude::*;
    /// # use actix_presence::Disconnect;
    /// # use actix_web_actors::ws;
    /// # struct Session;
    /// # impl Actor for Session { type Context = ws::WebsocketContext<Self>; }
    /// impl Handler<Disconnect> for Session {
    ///     type Result = ();
    ///     fn handle(&mut self, order: Disconnect, ctx: &mut Self::Context) {
    ///         ctx.close(Some(order.into()));
    ///         ctx.stop();
    ///     }
    /// }
    /// ```
    fn from(order: Disconnect) -> Self {
        close_reason(order.code, order.reason())
    }
}

impl From<PresenceError> for CloseReason {
    /// The close frame of a session that cannot go on, such as one whose join is refused. The code says whether the
    /// client should come back: at once (1001, the server stops), after a pause (1013), or not by itself (1008,
    /// 4002). The reason is the error's text, shortened to what a close frame has space for.
    fn from(error: PresenceError) -> Self {
        let text = error.client_text();
        match error {
            PresenceError::Ended | PresenceError::Join(JoinError::ShuttingDown) => {
                GOING_AWAY.into()
            }
            PresenceError::Join(JoinError::Superseded(_)) => {
                close_reason(close_code(Cause::Replaced).unwrap_or(POLICY), &text)
            }
            PresenceError::Join(JoinError::Busy | JoinError::Undecided | JoinError::Withdrawn)
            | PresenceError::Query(_)
            | PresenceError::Flush(_) => close_reason(TRY_AGAIN_LATER, &text),
            PresenceError::Join(_) | PresenceError::Publish(_) => close_reason(POLICY, &text),
        }
    }
}

fn close_reason(code: u16, text: &str) -> CloseReason {
    let end = text.floor_char_boundary(MAX_REASON_BYTES);
    CloseReason { code: CloseCode::from(code), description: Some(text[..end].to_owned()) }
}
