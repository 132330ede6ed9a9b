//! What concerns one user, one message or one connection.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::{self, Bytes},
};
use serde::Serialize;
use serde_json::{json, value::RawValue};

use super::reply;
use crate::{address, error::ApiError, state::ServerState};
use actix_presence::{
    messages::{Kick, Publish, WhereIs},
    model::{MAX_DEPTH, RoomName, UserId, is_shallow},
};

/// `GET /api/users/{id}`: the rooms a user is in.
pub(super) async fn where_is(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    #[derive(Serialize)]
    struct User<'a> {
        id: &'a UserId,
        rooms: Vec<Entry>,
    }
    #[derive(Serialize)]
    struct Entry {
        channel_name: RoomName,
        connections: usize,
    }
    let user = address::user(&req)?;
    let rooms = state.ask(WhereIs { user: user.clone() }).await?.into_iter();
    let entry = |(channel_name, connections)| Entry { channel_name, connections };
    Ok(reply(StatusCode::OK, &User { id: &user, rooms: rooms.map(entry).collect() }))
}

/// `POST /api/rooms/{room}/messages`: the body goes to everybody in the room, as it is.
pub(super) async fn publish(
    req: HttpRequest,
    body: web::Payload,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let room = address::room(&req, 1)?;
    let body = read(&req, body, state.options().max_frame_size).await?;
    let payload: Box<RawValue> = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad_request("bad_json", format!("not JSON: {error}")))?;
    if !is_shallow(payload.get()) {
        let message = format!("a message may be nested at most {MAX_DEPTH} deep");
        return Err(ApiError::bad_request("too_deep", message));
    }
    let published = state.ask(Publish::json(room, payload)).await?;
    let recipients = published.map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    })?;
    Ok(reply(StatusCode::OK, &json!({"recipients": recipients})))
}

/// Reads a body of at most so many bytes.
async fn read(req: &HttpRequest, body: web::Payload, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("a message has at most {limit} bytes"),
        )
    };
    let announced = req.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok());
    if announced.and_then(|len| len.parse::<u64>().ok()).is_some_and(|len| len > limit as u64) {
        return Err(too_large());
    }
    let body = body.to_bytes_limited(limit).await.map_err(|_| too_large())?;
    body.map_err(|error| ApiError::bad_request("bad_body", format!("unreadable body: {error}")))
}

/// `DELETE /api/connections/{channel_name}`: leaves all its rooms, and closes with 4001.
pub(super) async fn kick(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let id = address::connection(&req, 0)?;
    match state.ask(Kick::Connection(id)).await? {
        0 => Err(ApiError::not_found("unknown_connection", "no such connection is in any room")),
        _ => Ok(HttpResponse::NoContent().finish()),
    }
}
