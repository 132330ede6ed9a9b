//! `/api`: rooms and their presences, messages, users and connections, for the app's backend.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        StatusCode,
        header::{self, ContentType, ETag, EntityTag},
    },
    web::{self, Bytes},
};
use serde::{Serialize, Serializer};
use serde_json::{json, value::RawValue};

use crate::{
    paging::{self, PageRequest},
    request,
    response::{self, ApiError, is_cached, rfc3339},
    state::ServerState,
};
use actix_presence::{
    Audience, CloseRoom, ConnectionId, Epoch, GetSnapshot, Info, Kick, KickFrom, Kicked,
    ListPresences, ListRooms, Member, NodeName, Occupancy, Publish, RoomName, RoomSummary,
    SeenPresence, Snapshot, UnfitJson, UserId, WhereIs, check_payload,
};

/// A room in a list.
#[derive(Serialize)]
pub(crate) struct RoomEntry {
    channel_name: RoomName,
    connections: usize,
    users: usize,
    anonymous: usize,
    version: u64,
}

impl From<RoomSummary> for RoomEntry {
    fn from(RoomSummary { room, occupancy, version }: RoomSummary) -> Self {
        let Occupancy { connections, users, anonymous } = occupancy;
        Self { channel_name: room, connections, users, anonymous, version }
    }
}

/// A user in a list; the info is written unread.
#[derive(Serialize)]
struct UserEntry {
    id: UserId,
    #[serde(serialize_with = "Info::serialize_raw")]
    info: Info,
    connections: usize,
}

impl From<Member> for UserEntry {
    fn from(Member { id, info, connections }: Member) -> Self {
        Self { id, info, connections }
    }
}

/// A connection in a list; the info is written unread.
#[derive(Serialize)]
struct PresenceEntry<'a> {
    channel_name: ConnectionId,
    user: &'a Option<UserId>,
    #[serde(serialize_with = "Info::serialize_raw")]
    info: &'a Info,
    joined_at: String,
    last_seen: String,
    node: &'a str,
    state: &'static str,
}

impl<'a> PresenceEntry<'a> {
    fn new(seen: &'a SeenPresence, this_node: &'a str) -> Self {
        Self {
            channel_name: seen.presence.connection,
            user: &seen.presence.user,
            info: &seen.presence.info,
            joined_at: rfc3339(seen.presence.joined_at),
            last_seen: rfc3339(seen.last_seen),
            node: seen.node.as_ref().map_or(this_node, NodeName::as_str),
            state: seen.state.as_str(),
        }
    }
}

/// `GET /api/rooms`: the rooms, ordered by name.
pub(crate) async fn list_rooms(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    #[derive(Serialize)]
    struct RoomPage {
        rooms: Vec<RoomEntry>,
        next: Option<String>,
    }
    let page = PageRequest::of(&req, paging::after_room)?;
    let mut rooms =
        state.ask(ListRooms { after: page.after.clone(), limit: page.limit() }).await??;
    let next = page.cut(&mut rooms, |last| paging::room_cursor(&last.room));
    let rooms = rooms.into_iter().map(RoomEntry::from).collect();
    Ok(response::json(StatusCode::OK, &RoomPage { rooms, next }))
}

/// `GET /api/rooms/{room}`: the users in a room, at one version of it.
pub(crate) async fn show_room(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    #[derive(Serialize)]
    struct RoomState<'a> {
        channel_name: &'a RoomName,
        epoch: Epoch,
        version: u64,
        connections: usize,
        anonymous: usize,
        #[serde(serialize_with = "users")]
        users: Option<&'a Snapshot>,
        /// Whether the users are left out because the list would be too large.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    }
    fn users<S: Serializer>(room: &Option<&Snapshot>, serializer: S) -> Result<S::Ok, S::Error> {
        let users = room.iter().flat_map(|snapshot| snapshot.users());
        serializer.collect_seq(users.map(UserEntry::from))
    }
    let room = request::room(&req, 0)?;
    let snapshot = state.ask(GetSnapshot { room }).await??.ok_or_else(unknown_room)?;
    let (epoch, version) = (snapshot.epoch(), snapshot.version());
    let tag = EntityTag::new_strong(format!("{epoch}-{version}"));
    let cached = is_cached(&req, &tag);
    let mut response = if cached { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header(ETag(tag))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"));
    if cached {
        return Ok(response.finish());
    }
    let Occupancy { connections, anonymous, .. } = snapshot.occupancy();
    let body = |users: Option<&Snapshot>, limit| {
        let (channel_name, truncated) = (snapshot.room(), users.is_none());
        response::encode_within(
            limit,
            &RoomState { channel_name, epoch, version, connections, anonymous, users, truncated },
        )
    };
    let limit = state.options().max_list_size;
    let body = body(Some(&snapshot), limit).or_else(|| body(None, usize::MAX));
    Ok(response.content_type(ContentType::json()).body(body.unwrap_or_default()))
}

/// A room exists as long as there is a connection in it.
fn unknown_room() -> ApiError {
    ApiError::not_found("unknown_room", "nobody is in a room of this name")
}

/// `GET /api/rooms/{room}/presences`: every connection in a room, the anonymous ones first, then by
/// user, each in the order of joining.
pub(crate) async fn list_presences(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    #[derive(Serialize)]
    struct PresencePage<'a> {
        presences: Vec<PresenceEntry<'a>>,
        next: Option<String>,
    }
    let room = request::room(&req, 1)?;
    let page = PageRequest::of(&req, paging::after_presence)?;
    let (after, limit) = (page.after.clone(), page.limit());
    let presences = state.ask(ListPresences { room, after, limit }).await??;
    let mut presences = presences.ok_or_else(unknown_room)?;
    let next = page.cut(&mut presences, |last| paging::presence_cursor(&last.presence));
    let presences = presences.iter().map(|seen| PresenceEntry::new(seen, state.node()));
    let page = PresencePage { presences: presences.collect(), next };
    Ok(response::json(StatusCode::OK, &page))
}

/// `POST /api/rooms/{room}/messages`: sends the body to every member of the room, byte for byte.
pub(crate) async fn publish(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let room = request::room(&req, 1)?;
    publish_to(room.into(), &req, body, &state).await
}

/// `POST /api/users/{id}/messages`: the same to every connection of a user.
pub(crate) async fn publish_to_user(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let user = request::user(&req, 1)?;
    publish_to(user.into(), &req, body, &state).await
}

/// `POST /api/connections/{channel_name}/messages`: the same to one connection.
pub(crate) async fn publish_to_connection(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let connection = request::connection(&req, 1)?;
    publish_to(connection.into(), &req, body, &state).await
}

async fn publish_to(
    to: Audience,
    req: &HttpRequest,
    body: web::Payload,
    state: &ServerState,
) -> Result<HttpResponse, ApiError> {
    let except = request::except(req)?;
    let body = read(req, body, state.options().max_frame_size).await?;
    let payload: Box<RawValue> = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("bad_json", format!("not JSON: {error}")))?;
    check_payload(payload.get()).map_err(|unfit| {
        let code = if unfit == UnfitJson::TooDeep { "too_deep" } else { "bad_json" };
        ApiError::bad_request(code, unfit.to_string())
    })?;
    let published = state.ask(Publish { except, ..Publish::json(to, payload) }).await?;
    let recipients = published.map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })?;
    Ok(response::json(StatusCode::OK, &json!({"recipients": recipients})))
}

/// Reads a body of at most `limit` bytes.
async fn read(req: &HttpRequest, body: web::Payload, limit: usize) -> Result<Bytes, ApiError> {
    let encoding = req.headers().get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let message = "a message must not be compressed (`Content-Encoding`)";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::new(status, "unsupported_encoding", message));
    }
    let too_large = || ApiError::too_large(format!("a message may have at most {limit} bytes"));
    let announced = req.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok());
    if announced.and_then(|len| len.parse::<u64>().ok()).is_some_and(|len| len > limit as u64) {
        return Err(too_large());
    }
    let body = body.to_bytes_limited(limit).await.map_err(|_| too_large())?;
    body.map_err(|error| ApiError::bad_request("bad_body", format!("unreadable body: {error}")))
}

/// `GET /api/users/{id}`: the rooms that a user is in.
pub(crate) async fn find_user(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    #[derive(Serialize)]
    struct UserRooms {
        id: UserId,
        rooms: Vec<UserRoom>,
    }
    #[derive(Serialize)]
    struct UserRoom {
        channel_name: RoomName,
        connections: usize,
    }
    let id = request::user(&req, 0)?;
    let rooms = state.ask(WhereIs { user: id.clone() }).await??.into_iter();
    let entry = |(channel_name, connections)| UserRoom { channel_name, connections };
    Ok(response::json(StatusCode::OK, &UserRooms { id, rooms: rooms.map(entry).collect() }))
}

/// `DELETE /api/connections/{channel_name}`: removes a connection from all its rooms, and closes its
/// socket with 4001. Where the database cannot be asked whether another node has it, the answer says so.
pub(crate) async fn kick(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let id = request::connection(&req, 0)?;
    let kicked = state.ask(Kick::Connection(id)).await?;
    match kicked.connections {
        0 if kicked.partial => Ok(removed(kicked)),
        0 => Err(ApiError::not_found("unknown_connection", "no such connection is in any room")),
        _ => Ok(HttpResponse::NoContent().finish()),
    }
}

/// `DELETE /api/users/{id}`: removes every connection of a user from all its rooms.
pub(crate) async fn kick_user(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let id = request::user(&req, 0)?;
    Ok(removed(state.ask(Kick::User(id)).await?))
}

/// `DELETE /api/rooms/{room}/users/{id}`: removes every connection of a user from one room.
pub(crate) async fn kick_from_room(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let (room, user) = (request::room(&req, 2)?, request::user(&req, 0)?);
    Ok(removed(state.ask(KickFrom { room, whom: Kick::User(user) }).await?))
}

/// `DELETE /api/rooms/{room}`: removes everybody from a room.
pub(crate) async fn close_room(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let room = request::room(&req, 0)?;
    Ok(removed(state.ask(CloseRoom { room }).await?))
}

/// How many connections were removed, and whether others may have been.
fn removed(Kicked { connections, partial, .. }: Kicked) -> HttpResponse {
    #[derive(Serialize)]
    struct Removed {
        connections: usize,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        partial: bool,
    }
    response::json(StatusCode::OK, &Removed { connections, partial })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infos_in_lists_are_written_unread() {
        let seen: SeenPresence = serde_json::from_value(json!({
            "channel_name": ConnectionId::new(), "user": "ada", "info": {"name": "Ada"},
            "joined_at": "2026-01-01T00:00:00Z", "last_seen": "2026-01-01T00:00:00Z",
            "activity": "frame", "joined_version": 1, "state": "live", "node": null,
        }))
        .unwrap();
        let presence = PresenceEntry::new(&seen, "a");
        let (id, info) = (UserId::new("ada").unwrap(), seen.presence.info.clone());
        let user = UserEntry::from(Member { id, info, connections: 1 });
        let json = [serde_json::to_string(&presence), serde_json::to_string(&user)];
        // The JSON does not tell it from one that was read; another format has the text, under a key of serde_json.
        let other = [rmp_serde::to_vec_named(&presence), rmp_serde::to_vec_named(&user)];
        for (json, other) in json.into_iter().zip(other) {
            let (json, other) =
                (json.unwrap(), String::from_utf8_lossy(&other.unwrap()).into_owned());
            assert!(json.contains(r#""info":{"name":"Ada"}"#), "{json}");
            assert!(other.contains("$serde_json::private::RawValue"), "{other}");
            assert!(other.contains(r#"{"name":"Ada"}"#), "{other}");
        }
    }
}
