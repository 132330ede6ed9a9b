//! The WebSockets, `GET /ws/{room}` for JSON and `GET /socket/websocket` for Phoenix, and who may open
//! them.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderMap},
    web,
};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use chrono::Utc;
use serde::Deserialize;

use crate::{
    guard::{self, bearer, is_local},
    identity::Identity,
    request,
    response::ApiError,
    state::ServerState,
    token,
};
use actix_presence::{
    Admit, Feed, Info, PhoenixSession, RoomName, SessionKey, TakePlace, UserId, WsOptions,
    WsSession, WsSessionError,
};

/// `GET /ws/{room}`.
///
/// Every reason to refuse is checked before the handshake: a browser does not tell a page why a
/// WebSocket failed, but a plain GET of the same address does.
pub(crate) async fn json(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    guard::check_socket_origin(&req, &state)?;
    let room = request::room(&req, 0)?;
    let identity = identify(&req, None, &state).await?;
    if !identity.admits(&room) {
        let message = match state.options().identity {
            Some(_) => "the app does not let you into this room",
            None => "the token is not valid in this room",
        };
        return Err(ApiError::forbidden("room_not_allowed", message));
    }
    let feed = feed(&req)?;
    let only = room.clone();
    let place = state.place(take_place(&identity, &req, move |room| *room == only)).await?;

    let admit = admit(&identity, room.clone());
    let session = WsSession::new(state.registry().clone(), room).feed(feed);
    let session = session.options(options(&state).place(place));
    let session = session.user(identity.user).session(identity.session);
    let session = match identity.is_info_fixed {
        true => session.fixed_info(identity.info),
        false => session.info(identity.info),
    };
    match session.start(&req, body).await {
        Ok(response) => Ok(response),
        Err(error @ WsSessionError::Handshake(_)) => {
            state.ask::<Admit>(admit).await??;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// `GET /socket/websocket`.
///
/// Refuses with 403, as Phoenix does. Which rooms a client may enter is checked when it joins them.
pub(crate) async fn phoenix(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    #[derive(Deserialize)]
    struct VersionQuery {
        vsn: Option<String>,
    }
    guard::check_socket_origin(&req, &state)?;
    let query: VersionQuery = request::query(&req)?;
    if query.vsn.as_deref() != Some("2.0.0") {
        return Err(ApiError::forbidden("bad_version", "`vsn` must be `2.0.0`"));
    }
    let token = phoenix_token(req.headers());
    let identity = identify(&req, token, &state).await.map_err(ApiError::into_forbidden)?;
    let place = state.place(take_place(&identity, &req, |_| true)).await?;
    let session = PhoenixSession::new(state.registry().clone());
    let session = session.options(options(&state).place(place));
    let Identity { user, session: key, info, is_info_fixed, .. } = identity.clone();
    let session = session.user(user).session(key);
    let session = if is_info_fixed { session.fixed_info(info) } else { session.info(info) };
    Ok(session.rooms(move |room| identity.admits(room)).start(&req, body)?)
}

/// The token that a Phoenix client offers as a subprotocol: unpadded base64.
fn phoenix_token(headers: &HeaderMap) -> Option<String> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let mut offered = offered.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    let token = offered.find_map(|one| one.trim().strip_prefix("base64url.bearer.phx."))?;
    // Despite its name the `phoenix` package uses the standard alphabet: accept both.
    let token = token.replace('-', "+").replace('_', "/");
    String::from_utf8(BASE64_STANDARD_NO_PAD.decode(token).ok()?).ok()
}

fn options(state: &ServerState) -> WsOptions {
    let options = state.options();
    WsOptions::default()
        .max_frame_size(options.max_frame_size)
        .max_rate(options.max_rate)
        .ping_interval(options.ping_interval)
}

/// What the client wants to hear of the room's presences.
fn feed(req: &HttpRequest) -> Result<Feed, ApiError> {
    #[derive(Deserialize)]
    struct FeedQuery {
        presence: Option<String>,
    }
    match request::query::<FeedQuery>(req)?.presence.as_deref() {
        None | Some("full") => Ok(Feed::Full),
        Some("diff") => Ok(Feed::Diff),
        Some("count") => Ok(Feed::Count),
        Some("none") => Ok(Feed::None),
        Some(_) => Err(ApiError::bad_request(
            "bad_presence",
            "`presence` must be `full`, `diff`, `count` or `none`",
        )),
    }
}

/// Who sends a request: as the app's hook says, if there is one; else a token in the query comes before
/// `offered`, and that before the `Authorization` header.
async fn identify(
    req: &HttpRequest,
    offered: Option<String>,
    state: &ServerState,
) -> Result<Identity, ApiError> {
    #[derive(Deserialize)]
    struct TokenQuery {
        session: Option<String>,
        token: Option<String>,
    }
    let options = state.options();
    let query: TokenQuery = request::query(req)?;
    let session = query.session.map(SessionKey::new).transpose().map_err(|error| {
        ApiError::bad_request("bad_session", format!("invalid `session`: {error}"))
    })?;
    let token = query.token.or(offered);
    let identity = match (&options.identity, token.as_deref().or_else(|| bearer(req))) {
        (Some(hook), _) => hook.ask(req).await?,
        (None, Some(_)) if options.secrets.is_empty() => {
            return Err(ApiError::unauthorized(
                "no_secret",
                "tokens cannot be verified: the server was started without a secret",
            ));
        }
        (None, Some(token)) => from_token(token, state)?,
        (None, None) if options.secrets.is_empty() && options.believe_query && is_local(req) => {
            from_query(req)?
        }
        (None, None) if options.secrets.is_empty() || options.allow_anonymous => {
            Identity::anonymous()
        }
        (None, None) => return Err(ApiError::unauthorized("token_needed", "a token is required")),
    };
    Ok(Identity { session: identity.session.or(session), ..identity })
}

fn from_token(token: &str, state: &ServerState) -> Result<Identity, ApiError> {
    let bad = |message: String| ApiError::unauthorized("bad_token", message);
    let now = Utc::now().timestamp();
    let claims = token::verify(token, &state.options().secrets, now);
    let claims = claims.map_err(|error| bad(error.to_string()))?;
    let user = claims.sub.as_deref().map(UserId::new).transpose();
    let user = user.map_err(|e| bad(format!("invalid `sub` in token: {e}")))?;
    let info = claims.info();
    let info = info.map_err(|e| bad(format!("invalid `info` in token: {e}")))?;
    let session = claims.sid.as_deref().map(SessionKey::new).transpose();
    let session = session.map_err(|e| bad(format!("invalid `sid` in token: {e}")))?;
    let rooms = claims.rooms.map(Into::into);
    Ok(Identity { user, info, is_info_fixed: true, session, rooms })
}

fn from_query(req: &HttpRequest) -> Result<Identity, ApiError> {
    #[derive(Deserialize)]
    struct UserQuery {
        user: Option<String>,
        info: Option<String>,
    }
    let query: UserQuery = request::query(req)?;
    let user = query.user.map(UserId::new).transpose();
    let user = user.map_err(ApiError::bad_user)?;
    let info = query.info.as_deref().map_or(Ok(Info::EMPTY), parse_info)?;
    Ok(Identity { user, info, ..Identity::anonymous() })
}

/// Asks whether the room would accept this identity.
fn admit(identity: &Identity, room: RoomName) -> Admit {
    let Identity { user, info, session, .. } = identity.clone();
    Admit::new(room).user(user).info(info).session(session)
}

/// Asks for the place of an older connection of the client session, if this request is to become a
/// WebSocket that enters the rooms for which `enters` is true.
fn take_place(
    identity: &Identity,
    req: &HttpRequest,
    enters: impl Fn(&RoomName) -> bool + Send + 'static,
) -> Option<TakePlace> {
    if !req.headers().contains_key(header::UPGRADE) {
        return None;
    }
    let identity = identity.clone();
    let (user, session, info) =
        (identity.user.clone(), identity.session.clone()?, identity.info.clone());
    let enters = Box::new(move |room: &RoomName| enters(room) && identity.admits(room));
    Some(TakePlace { user, session, info, enters })
}

/// Reads `info` of the query.
fn parse_info(text: &str) -> Result<Info, ApiError> {
    let bad = |message: String| ApiError::bad_request("bad_info", message);
    Info::parse(text).map_err(|error| bad(error.to_string()))
}
