//! Who a WebSocket belongs to.

use std::sync::Arc;

use actix_web::{HttpRequest, http::header};
use chrono::Utc;
use serde_json::Value;

use super::{
    address::Query,
    error::ApiError,
    guard::{bearer, is_local},
    state::ServerState,
    token::{self, Claims},
};
use actix_presence::{
    PhoenixSession, WsSession,
    messages::{Admit, TakePlace},
    model::{Info, InvalidInfo, RoomName, SessionKey, UserId, is_shallow},
};

/// Who somebody is.
#[derive(Debug, Default)]
pub(super) struct Identity {
    user: Option<UserId>,
    info: Info,
    session: Option<SessionKey>,
    /// The token that says so: its info stays, and it may be good for some rooms only.
    token: Option<Arc<Claims>>,
}

impl Identity {
    /// Who makes this request; `token` is one that stands elsewhere than in query and header.
    pub fn of(
        req: &HttpRequest,
        query: &Query,
        token: Option<&str>,
        state: &ServerState,
    ) -> Result<Self, ApiError> {
        let options = state.options();
        let key = query.get("session")?.map(SessionKey::new).transpose().map_err(|error| {
            ApiError::bad_request("bad_session", format!("`session` is no key: {error}"))
        })?;
        let token = query.get("token")?.or(token).or_else(|| bearer(req));
        let identity = match token {
            Some(_) if options.secrets.is_empty() => {
                return Err(ApiError::unauthorized(
                    "no_secret",
                    "this server takes no tokens: it was started without a secret",
                ));
            }
            Some(token) => Self::of_token(token, state)?,
            None if options.secrets.is_empty() && options.believe_query && is_local(req) => {
                Self::of_query(query)?
            }
            None if options.secrets.is_empty() || options.allow_anonymous => Self::default(),
            None => return Err(ApiError::unauthorized("token_needed", "a token is needed")),
        };
        let session = identity.session.or(key);
        Ok(Self { session, ..identity })
    }

    fn of_token(token: &str, state: &ServerState) -> Result<Self, ApiError> {
        let bad = |message: String| ApiError::unauthorized("bad_token", message);
        let now = Utc::now().timestamp();
        let claims = token::verify(token, &state.options().secrets, now);
        let claims = claims.map_err(|e| bad(e.to_string()))?;
        let user = claims.sub.as_deref().map(UserId::new).transpose();
        let user = user.map_err(|e| bad(format!("the token's `sub` is no user's id: {e}")))?;
        let info = claims.info().map_err(|e| bad(format!("the token's `info` is none: {e}")))?;
        let session = claims.sid.as_deref().map(SessionKey::new).transpose();
        let session = session.map_err(|e| bad(format!("the token's `sid` is no key: {e}")))?;
        Ok(Self { user, info, session, token: Some(Arc::new(claims)) })
    }

    fn of_query(query: &Query) -> Result<Self, ApiError> {
        let user = query.get("user")?.map(UserId::new).transpose().map_err(ApiError::bad_user)?;
        let bad = |message: String| ApiError::bad_request("bad_info", message);
        let info = match query.get("info")? {
            // Deeper ones would be no JSON for the parser.
            Some(text) if !is_shallow(text) => return Err(bad(InvalidInfo::TooDeep.to_string())),
            Some(text) => {
                let value: Value = serde_json::from_str(text)
                    .map_err(|e| bad(format!("`info` is not JSON: {e}")))?;
                Info::new(value).map_err(|e| bad(e.to_string()))?
            }
            None => Info::EMPTY,
        };
        Ok(Self { user, info, ..Self::default() })
    }

    /// Whether it may enter the room.
    pub fn check(&self, room: &RoomName) -> Result<(), ApiError> {
        if self.token.as_ref().is_some_and(|token| !token.admit(room)) {
            let message = "the token is not good for this room";
            return Err(ApiError::forbidden("room_not_allowed", message));
        }
        Ok(())
    }

    /// The question whether the room would take whom this is.
    pub fn admit(&self, room: RoomName) -> Admit {
        let Self { user, info, session, .. } = self;
        Admit { room, user: user.clone(), info: info.clone(), session: session.clone() }
    }

    /// Asks for the place of an older connection of the client session, if this request is to become a
    /// WebSocket that enters these rooms.
    pub fn take_place(
        &self,
        req: &HttpRequest,
        enters: impl Fn(&RoomName) -> bool + Send + 'static,
    ) -> Option<TakePlace> {
        let session = self.session.clone().filter(|_| req.headers().contains_key(header::UPGRADE));
        let (user, info, token) = (self.user.clone(), self.info.clone(), self.token.clone());
        let admits = move |room: &RoomName| token.as_ref().is_none_or(|token| token.admit(room));
        let enters = Box::new(move |room: &RoomName| enters(room) && admits(room));
        Some(TakePlace { user, session: session?, info, enters })
    }

    /// Makes the session that of whom this is.
    pub fn own(self, session: WsSession) -> WsSession {
        let session = session.user(self.user).session(self.session);
        if self.token.is_some() { session.fixed_info(self.info) } else { session.info(self.info) }
    }

    /// Makes the session that of whom this is, with the rooms it may enter.
    pub fn own_phoenix(self, session: PhoenixSession) -> PhoenixSession {
        let session = session.user(self.user).session(self.session);
        match self.token {
            Some(token) => session.fixed_info(self.info).rooms(move |room| token.admit(room)),
            None => session.info(self.info),
        }
    }
}
