//! Who a WebSocket belongs to.

use actix_web::HttpRequest;
use serde_json::Value;

use super::{
    address::Query,
    error::ApiError,
    guard::{bearer, is_local},
    state::ServerState,
    token,
};
use crate::{Admit, Info, RoomName, UserId, WsSession};

/// Who somebody is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    user: Option<UserId>,
    info: Info,
    /// Whether the info is that of a token: then its keys stay.
    fixed: bool,
}

impl Identity {
    /// Who makes this request, if it may enter the room.
    pub fn of(
        req: &HttpRequest,
        query: &Query,
        room: &RoomName,
        state: &ServerState,
    ) -> Result<Self, ApiError> {
        let options = state.options();
        if let Some(token) = query.get("token")?.or_else(|| bearer(req)) {
            if options.secrets.is_empty() {
                return Err(ApiError::unauthorized(
                    "no_secret",
                    "this server takes no tokens: it was started without a secret",
                ));
            }
            return Self::of_token(token, room, state);
        }
        if !options.secrets.is_empty() {
            return match options.allow_anonymous {
                true => Ok(Self::default()),
                false => Err(ApiError::unauthorized("token_needed", "a token is needed")),
            };
        }
        if options.believe_query && is_local(req) {
            return Self::of_query(query);
        }
        Ok(Self::default())
    }

    fn of_token(token: &str, room: &RoomName, state: &ServerState) -> Result<Self, ApiError> {
        let bad = |message: String| ApiError::unauthorized("bad_token", message);
        let claims =
            token::verify(token, &state.options().secrets).map_err(|e| bad(e.to_string()))?;
        let user = claims.sub.as_deref().map(UserId::new).transpose();
        let user = user.map_err(|e| bad(format!("the token's `sub` is no user's id: {e}")))?;
        let info = claims.info().map_err(|e| bad(format!("the token's `info` is none: {e}")))?;
        if !claims.admit(room) {
            return Err(ApiError::forbidden(
                "room_not_allowed",
                "the token is not good for this room",
            ));
        }
        Ok(Self { user, info, fixed: true })
    }

    fn of_query(query: &Query) -> Result<Self, ApiError> {
        let user = query.get("user")?.map(UserId::new).transpose().map_err(ApiError::bad_user)?;
        let bad = |message: String| ApiError::bad_request("bad_info", message);
        let info = match query.get("info")? {
            Some(text) => {
                let value: Value = serde_json::from_str(text)
                    .map_err(|e| bad(format!("`info` is not JSON: {e}")))?;
                Info::new(value).map_err(|e| bad(e.to_string()))?
            }
            None => Info::EMPTY,
        };
        Ok(Self { user, info, fixed: false })
    }

    /// The question whether the room would take whom this is.
    pub fn admit(&self, room: RoomName) -> Admit {
        Admit { room, user: self.user.clone(), info: self.info.clone() }
    }

    /// Makes the session that of whom this is.
    pub fn own(self, session: WsSession) -> WsSession {
        let session = session.user(self.user);
        if self.fixed { session.fixed_info(self.info) } else { session.info(self.info) }
    }
}
