//! `GET /api/rooms/{room}/presences`.

use std::borrow::Cow;

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

use super::{cursor, cut, limit, reply, rooms::nobody};
use crate::{
    address::{self, Query},
    error::ApiError,
    state::ServerState,
};
use actix_presence::{
    messages::ListPresences,
    model::{ConnectionId, Info, Presence, SeenPresence, UserId},
};

#[derive(Serialize)]
struct Page<'a> {
    presences: Vec<Entry<'a>>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Entry<'a> {
    channel_name: ConnectionId,
    user: Option<UserId>,
    info: Info,
    #[serde(serialize_with = "rfc3339")]
    joined_at: DateTime<Utc>,
    #[serde(serialize_with = "rfc3339")]
    last_seen: DateTime<Utc>,
    node: Cow<'a, str>,
    state: &'static str,
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// Every connection in a room: the anonymous first, then by user, each in order of joining.
pub(super) async fn list(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let room = address::room(&req, 1)?;
    let query = Query::of(&req)?;
    let limit = limit(&query)?;
    let after = query.get("after")?.map(cursor::presence).transpose()?;
    let presences = state.ask(ListPresences { room, after, limit: limit + 1 }).await?;
    let (presences, more) = cut(presences.ok_or_else(nobody)?, limit);
    let next = presences.last().filter(|_| more).map(|last| cursor::after_presence(&last.presence));
    let entry = |SeenPresence { presence, last_seen, state: here, node, .. }| {
        let Presence { connection, user, info, joined_at } = presence;
        let state_of = here.as_str();
        let node = match node {
            Some(node) => Cow::Owned(node.as_str().to_owned()),
            None => Cow::Borrowed(state.node()),
        };
        Entry { channel_name: connection, user, info, joined_at, last_seen, node, state: state_of }
    };
    let page = Page { presences: presences.into_iter().map(entry).collect(), next };
    Ok(reply(StatusCode::OK, &page))
}
