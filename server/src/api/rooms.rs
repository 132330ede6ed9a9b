//! `GET /api/rooms` and `GET /api/rooms/{room}`.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        StatusCode,
        header::{self, ContentType, ETag, EntityTag},
    },
    web,
};
use serde::{Serialize, Serializer};

use super::{cursor, cut, limit, reply};
use crate::{
    address::{self, Query},
    error::ApiError,
    pages::is_known,
    state::ServerState,
};
use actix_presence::{
    messages::{GetSnapshot, ListRooms},
    model::{Epoch, Occupancy, RoomName, RoomSummary, Snapshot},
    wire::json,
};

/// A room in a list.
#[derive(Serialize)]
pub(super) struct Entry {
    channel_name: RoomName,
    connections: usize,
    users: usize,
    anonymous: usize,
    version: u64,
}

impl From<RoomSummary> for Entry {
    fn from(RoomSummary { room, occupancy, version }: RoomSummary) -> Self {
        let Occupancy { connections, users, anonymous } = occupancy;
        Self { channel_name: room, connections, users, anonymous, version }
    }
}

/// The rooms in the order of their names.
pub(super) async fn list(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    #[derive(Serialize)]
    struct Page {
        rooms: Vec<Entry>,
        next: Option<String>,
    }
    let query = Query::of(&req)?;
    let limit = limit(&query)?;
    let after = query.get("after")?.map(cursor::room).transpose()?;
    let rooms = state.ask(ListRooms { after, limit: limit + 1 }).await?;
    let (rooms, more) = cut(rooms, limit);
    let next = rooms.last().filter(|_| more).map(|last| cursor::after_room(&last.room));
    Ok(reply(StatusCode::OK, &Page { rooms: rooms.into_iter().map(Entry::from).collect(), next }))
}

/// Who is in a room, at one version of it.
pub(super) async fn show(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    #[derive(Serialize)]
    struct Room<'a> {
        channel_name: &'a RoomName,
        epoch: Epoch,
        version: u64,
        connections: usize,
        anonymous: usize,
        #[serde(serialize_with = "users")]
        users: Option<&'a Snapshot>,
        /// Whether the users are left out, as they would be too many bytes.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    }
    fn users<S: Serializer>(room: &Option<&Snapshot>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(room.iter().flat_map(|snapshot| snapshot.users()))
    }
    let room = address::room(&req, 0)?;
    let snapshot = state.ask(GetSnapshot { room }).await?.ok_or_else(nobody)?;
    let (epoch, version) = (snapshot.epoch(), snapshot.version());
    let tag = EntityTag::new_strong(format!("{epoch}-{version}"));
    let known = is_known(&req, &tag);
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header(ETag(tag))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    if known {
        return Ok(response.finish());
    }
    let occupancy = snapshot.occupancy();
    let body = |users: Option<&Snapshot>, limit| {
        let room = Room {
            channel_name: snapshot.room(),
            epoch,
            version,
            connections: occupancy.connections,
            anonymous: occupancy.anonymous,
            users,
            truncated: users.is_none(),
        };
        json::encode_within(limit, &room)
    };
    let limit = state.options().max_list_size;
    let body = body(Some(&snapshot), limit).or_else(|| body(None, usize::MAX));
    Ok(response.content_type(ContentType::json()).body(body.unwrap_or_default()))
}

/// A room exists as long as somebody is in it.
pub(super) fn nobody() -> ApiError {
    ApiError::not_found("unknown_room", "nobody is in a room of this name")
}
