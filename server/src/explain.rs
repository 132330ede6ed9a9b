//! `GET /api/rooms/{room}/presences/{channel_name}/explain`: why a presence is in a room, or why not.

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    request,
    response::{self, ApiError, rfc3339},
    state::ServerState,
};
use actix_presence::{
    Activity, Cause, ConnectionId, Departed, Explain, Explained, NodeName, PresenceState, RoomName,
    UserId,
};

#[derive(Serialize)]
struct Explanation<'a> {
    text: String,
    room: &'a RoomName,
    channel_name: ConnectionId,
    user: Option<&'a UserId>,
    /// `live`, `fading` or `gone`.
    state: &'static str,
    joined_at: String,
    joined_version: u64,
    node: &'a str,
    last_seen: String,
    last_sign: Activity,
    /// When and why it will be removed, and what would prevent it; null if it is gone.
    removal: Option<FutureRemoval>,
    /// When and why it left; null if it is in the room.
    left: Option<PastLeave>,
}

#[derive(Serialize)]
struct FutureRemoval {
    at: String,
    cause: Cause,
    unless: &'static str,
}

#[derive(Serialize)]
struct PastLeave {
    at: String,
    cause: Cause,
    version: u64,
}

pub(crate) async fn explain(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let room = request::room(&req, 3)?;
    let connection = request::connection(&req, 1)?;
    let explained = state.ask(Explain { room: room.clone(), connection }).await??;
    let explained = explained.ok_or_else(|| {
        let message =
            "this presence is unknown: it never joined, or left more than ten minutes ago";
        ApiError::not_found("unknown_presence", message)
    })?;
    let node = explained.seen.node.as_ref().map_or(state.node(), NodeName::as_str);
    Ok(response::json(StatusCode::OK, &explanation(&room, &explained, node)))
}

fn explanation<'a>(room: &'a RoomName, explained: &'a Explained, node: &'a str) -> Explanation<'a> {
    let seen = &explained.seen;
    let presence = &seen.presence;
    let removal = removal(explained);
    let left = explained.departed.map(|Departed { at, cause, version }| PastLeave {
        at: rfc3339(at),
        cause,
        version,
    });
    let state = if left.is_some() { "gone" } else { seen.state.as_str() };
    Explanation {
        text: text(room, explained, node),
        room,
        channel_name: presence.connection,
        user: presence.user.as_ref(),
        state,
        joined_at: rfc3339(presence.joined_at),
        joined_version: seen.joined_version,
        node,
        last_seen: rfc3339(seen.last_seen),
        last_sign: seen.activity,
        removal: removal.map(|(at, cause, unless)| FutureRemoval {
            at: rfc3339(at),
            cause,
            unless,
        }),
        left,
    }
}

fn removal(explained: &Explained) -> Option<(DateTime<Utc>, Cause, &'static str)> {
    if explained.departed.is_some() {
        return None;
    }
    match explained.seen.state {
        PresenceState::Live => {
            let at = explained.seen.last_seen + explained.max_age;
            Some((at, Cause::Expired, "it is heard before"))
        }
        PresenceState::Fading { until } => {
            let unless = "its client reconnects before";
            match explained.seen.last_seen + explained.max_age {
                expires if expires < until => Some((expires, Cause::Expired, unless)),
                _ => Some((until, Cause::Disconnected, unless)),
            }
        }
    }
}

/// The explanation in prose.
fn text(room: &RoomName, explained: &Explained, node: &str) -> String {
    let Explained { seen, now, max_age, departed } = explained;
    let presence = &seen.presence;
    let who = match &presence.user {
        Some(user) => format!("{user}'s connection {}", presence.connection),
        None => format!("the anonymous connection {}", presence.connection),
    };
    let joined = format!(
        "{who} joined {room} at {} (version {}) on node {node}",
        rfc3339(presence.joined_at),
        seen.joined_version,
    );
    let activity = match seen.activity {
        Activity::Join => "its join",
        Activity::Heartbeat => "a heartbeat",
        Activity::Message => "a message",
        Activity::Frame => "another frame",
        Activity::Disconnect => "the end of its connection",
        _ => "activity that its own node saw",
    };
    let ago = |at: DateTime<Utc>| {
        format!("{:.1} s", (*now - at).num_milliseconds().max(0) as f64 / 1000.0)
    };
    let last = format!("it was last heard {} ago, by {activity}", ago(seen.last_seen));
    match (departed, seen.state) {
        (Some(Departed { at, cause, version }), _) => format!(
            "{joined}. It left {} ago, at {} (version {version}): {}. Before that {last}.",
            ago(*at),
            rfc3339(*at),
            because(*cause),
        ),
        (None, PresenceState::Live) => format!(
            "{joined}, and is live: {last}. It expires after {max_age:?} of silence, so the first \
             prune after {} removes it, unless it is heard before.",
            rfc3339(seen.last_seen + *max_age),
        ),
        (None, PresenceState::Fading { until }) => format!(
            "{joined}. Its connection broke, so it is fading: {last}. It leaves at {}, unless its client \
             reconnects before with the same session key.",
            rfc3339(until.min(seen.last_seen + *max_age)),
        ),
    }
}

fn because(cause: Cause) -> &'static str {
    match cause {
        Cause::Left => "it left",
        Cause::Disconnected => "its connection broke",
        Cause::Expired => "it was silent for longer than max-age",
        Cause::Replaced => "another connection of its session replaced it",
        Cause::Kicked => "it was kicked",
        Cause::SlowConsumer => "it did not read what it was sent",
        Cause::RoomClosed => "the room was closed",
        Cause::NodeLost => "its node was lost",
        Cause::Shutdown => "the server stopped",
        other => other.as_str(),
    }
}
