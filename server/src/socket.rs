//! The WebSockets: `GET /ws/{room}` for JSON, `GET /socket/websocket` for Phoenix.

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderMap},
    web,
};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};

use super::{
    address::{self, Query},
    error::ApiError,
    guard,
    identity::Identity,
    state::ServerState,
};
use actix_presence::{
    PhoenixSession, WsOptions, WsSession, WsSessionError,
    messages::{Admit, Feed},
};

/// Everything that can be refused is refused before the handshake is looked at: a browser does not
/// tell a page why a WebSocket failed, but the same address without the upgrade says so.
pub(super) async fn enter(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    guard::check_socket_page(&req, &state)?;
    let room = address::room(&req, 0)?;
    let query = Query::of(&req)?;
    let identity = Identity::of(&req, &query, None, &state)?;
    identity.check(&room)?;
    let feed = feed(&query)?;
    let this = room.clone();
    let place = state.place(identity.take_place(&req, move |room| *room == this)).await?;

    let admit = identity.admit(room.clone());
    let session = WsSession::new(state.registry().clone(), room).feed(feed);
    let session = session.options(bounds(&state).place(place));
    match identity.own(session).start(&req, body).await {
        Ok(response) => Ok(response),
        Err(error @ WsSessionError::Handshake(_)) => {
            state.ask::<Admit>(admit).await??;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Everything that can be refused here is refused with 403, as Phoenix does; which rooms somebody
/// may enter is asked when they are joined.
pub(super) async fn phoenix(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    guard::check_socket_page(&req, &state)?;
    let query = Query::of(&req)?;
    if query.get("vsn")? != Some("2.0.0") {
        let message = "`vsn=2.0.0` is what is spoken here";
        return Err(ApiError::forbidden("bad_version", message));
    }
    let token = auth_token(req.headers());
    let identity = Identity::of(&req, &query, token.as_deref(), &state);
    let identity = identity.map_err(ApiError::refuse)?;
    let place = state.place(identity.take_place(&req, |_| true)).await?;
    let session = PhoenixSession::new(state.registry().clone()).until(state.stop_signal());
    let session = identity.own_phoenix(session.options(bounds(&state).place(place)));
    Ok(session.start(&req, body)?)
}

/// The token among the subprotocols that a client of Phoenix offers: the unpadded base64 of it.
fn auth_token(headers: &HeaderMap) -> Option<String> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let mut offered = offered.filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
    let token = offered.find_map(|one| one.trim().strip_prefix("base64url.bearer.phx."))?;
    // It says base64url, and is not: take both alphabets.
    let token = token.replace('-', "+").replace('_', "/");
    String::from_utf8(BASE64_STANDARD_NO_PAD.decode(token).ok()?).ok()
}

/// The bounds of every session.
fn bounds(state: &ServerState) -> WsOptions {
    let options = state.options();
    WsOptions::default()
        .max_frame_size(options.max_frame_size)
        .max_rate(options.max_rate)
        .ping_interval(options.ping_interval)
}

fn feed(query: &Query) -> Result<Feed, ApiError> {
    match query.get("presence")? {
        None | Some("full") => Ok(Feed::Full),
        Some("diff") => Ok(Feed::Diff),
        Some("count") => Ok(Feed::Count),
        Some("none") => Ok(Feed::None),
        Some(_) => Err(ApiError::bad_request(
            "bad_presence",
            "`presence` is `full`, `diff`, `count` or `none`",
        )),
    }
}
