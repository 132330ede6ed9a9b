//! `GET /api/rooms/{room}/presences/{channel_name}/explain`: why a presence is here, or no longer.

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::reply;
use crate::{
    messages::{Departed, Explain, Explained},
    model::{Activity, Cause, ConnectionId, NodeName, PresenceState, RoomName, UserId},
    server::{address, error::ApiError, state::ServerState},
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
    /// When it will be removed and why, unless what; none if it is gone.
    removal: Option<Removal>,
    /// When it left and why; none if it is here.
    left: Option<Leave>,
}

#[derive(Serialize)]
struct Removal {
    at: String,
    cause: Cause,
    unless: &'static str,
}

#[derive(Serialize)]
struct Leave {
    at: String,
    cause: Cause,
    version: u64,
}

pub(super) async fn explain(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let room = address::room(&req, 3)?;
    let connection = address::connection(&req, 1)?;
    let explained = state.ask(Explain { room: room.clone(), connection }).await?;
    let explained = explained.ok_or_else(|| {
        let message =
            "nothing is known of this presence: it never was, or left over ten minutes ago";
        ApiError::not_found("unknown_presence", message)
    })?;
    let node = explained.seen.node.as_ref().map_or(state.node(), NodeName::as_str);
    Ok(reply(StatusCode::OK, &explanation(&room, &explained, node)))
}

fn explanation<'a>(room: &'a RoomName, explained: &'a Explained, node: &'a str) -> Explanation<'a> {
    let seen = &explained.seen;
    let presence = &seen.presence;
    let removal = removal(explained);
    let left = explained.departed.map(|Departed { at, cause, version }| Leave {
        at: time(at),
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
        joined_at: time(presence.joined_at),
        joined_version: seen.joined_version,
        node,
        last_seen: time(seen.last_seen),
        last_sign: seen.activity,
        removal: removal.map(|(at, cause, unless)| Removal { at: time(at), cause, unless }),
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
            Some((at, Cause::Expired, "it gives a sign of life before"))
        }
        PresenceState::Fading { until } => {
            let unless = "its client comes back before";
            match explained.seen.last_seen + explained.max_age {
                expires if expires < until => Some((expires, Cause::Expired, unless)),
                _ => Some((until, Cause::Disconnected, unless)),
            }
        }
    }
}

/// The same in a paragraph for people.
fn text(room: &RoomName, explained: &Explained, node: &str) -> String {
    let Explained { seen, now, max_age, departed } = explained;
    let presence = &seen.presence;
    let who = match &presence.user {
        Some(user) => format!("{user}'s connection {}", presence.connection),
        None => format!("the anonymous connection {}", presence.connection),
    };
    let joined = format!(
        "{who} joined {room} at {} (version {}) on node {node}",
        time(presence.joined_at),
        seen.joined_version,
    );
    let activity = match seen.activity {
        Activity::Join => "its join",
        Activity::Heartbeat => "a heartbeat",
        Activity::Message => "a message",
        Activity::Frame => "a frame that was neither heartbeat nor message",
        Activity::Disconnect => "the end of its connection",
        Activity::Elsewhere => "a sign of life that its own node noted",
    };
    let ago = |at: DateTime<Utc>| {
        format!("{:.1} s", (*now - at).num_milliseconds().max(0) as f64 / 1000.0)
    };
    let last = format!("the last that was heard of it was {activity}, {} ago", ago(seen.last_seen));
    match (departed, seen.state) {
        (Some(Departed { at, cause, version }), _) => format!(
            "{joined}. It left {} ago, at {} (version {version}): {}. Before that, {last}.",
            ago(*at),
            time(*at),
            because(*cause),
        ),
        (None, PresenceState::Live) => format!(
            "{joined}, and is live: {last}. It expires after {max_age:?} of silence, so the first \
             prune after {} removes it, unless it gives a sign of life before.",
            time(seen.last_seen + *max_age),
        ),
        (None, PresenceState::Fading { until }) => format!(
            "{joined}. Its connection ended without a goodbye, so it is fading: {last}. It leaves \
             at {}, unless its client comes back before with the same session key.",
            time(until.min(seen.last_seen + *max_age)),
        ),
    }
}

fn because(cause: Cause) -> &'static str {
    match cause {
        Cause::Left => "it said goodbye",
        Cause::Disconnected => "its connection ended without a goodbye",
        Cause::Expired => "it was silent for longer than max-age",
        Cause::Replaced => "another connection of its session took its place",
        Cause::Kicked => "it was put out",
        Cause::SlowConsumer => "it did not take what it was sent",
        Cause::RoomClosed => "the room was closed",
        Cause::NodeLost => "its node was lost",
        Cause::Shutdown => "the server stopped",
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}
