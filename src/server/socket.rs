//! `GET /ws/{room}`: the JSON WebSocket.

use actix_web::{HttpRequest, HttpResponse, web};

use super::{
    address::{self, Query},
    error::ApiError,
    identity::Identity,
    origin,
    state::ServerState,
};
use crate::{Admit, Feed, WsSession, WsSessionError};

/// Everything that can be refused is refused before the handshake is looked at: a browser does not
/// tell a page why a WebSocket failed, but the same address without the upgrade says so.
pub(super) async fn enter(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let options = state.options();
    origin::check(req.headers(), &options.allowed_origins)?;
    let room = address::room(&req, 0)?;
    let query = Query::of(&req)?;
    let identity = Identity::of(&req, &query, &room, &state)?;
    let feed = feed(&query)?;
    let place = state.place()?;

    let admit = identity.admit(room.clone());
    let mut session = WsSession::new(state.registry().clone(), room)
        .feed(feed)
        .max_frame_size(options.max_frame_size)
        .place(place);
    if let Some(frames) = options.max_rate {
        session = session.max_rate(frames);
    }
    if let Some(interval) = options.ping_interval {
        session = session.ping_interval(interval);
    }
    match identity.own(session).start(&req, body).await {
        Ok(response) => Ok(response),
        Err(error @ WsSessionError::Handshake(_)) => {
            state.ask::<Admit>(admit).await??;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
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
