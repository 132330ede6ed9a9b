//! `GET /api/stats`: how the server is, in numbers; `GET /api/stats/live`: the same as server-sent
//! events, one a second, for the dashboard.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::{self, Bytes},
};
use futures_util::stream;
use serde::{Serialize, Serializer};
use tokio::time::{MissedTickBehavior, interval};

use super::{reply, rooms};
use crate::{error::ApiError, health::Health, ranking, refusals, state::ServerState};
use actix_presence::{
    messages::{Counters, GetStatus, ListRooms},
    model::{Cause, Epoch},
};

/// How often the live numbers go out.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct Stats<'a> {
    node: &'a str,
    epoch: Epoch,
    uptime_seconds: f64,
    #[serde(flatten)]
    health: Health,
    sockets: usize,
    rooms: usize,
    connections: usize,
    presences: usize,
    users: usize,
    counters: Totals,
    largest: Largest,
}

#[derive(Serialize)]
struct Totals {
    joins: u64,
    #[serde(serialize_with = "by_cause")]
    leaves: Vec<(Cause, u64)>,
    messages: u64,
    deliveries: u64,
    lists_sent: u64,
    rows_written: u64,
}

#[derive(Serialize)]
struct Largest {
    rooms: Vec<rooms::Entry>,
    /// Whether every room was looked at.
    complete: bool,
    /// How many rooms there were in the last look at all of them, of all nodes.
    all: Option<usize>,
}

fn by_cause<S: Serializer>(leaves: &[(Cause, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(leaves.iter().map(|(cause, count)| (cause.as_str(), count)))
}

pub(super) async fn stats(state: web::Data<ServerState>) -> Result<HttpResponse, ApiError> {
    Ok(reply(StatusCode::OK, &read(&state).await?))
}

/// The stream ends when the registry does, or when nobody reads it any more.
pub(super) async fn live(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let seat = state.seat().inspect_err(|error| refusals::report(&req, error))?;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = stream::unfold((state, ticks, seat), |(state, mut ticks, seat)| async move {
        ticks.tick().await;
        let stats = serde_json::to_string(&read(&state).await.ok()?).ok()?;
        let event = Ok::<_, actix_web::Error>(Bytes::from(format!("data: {stats}\n\n")));
        Some((event, (state, ticks, seat)))
    });
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        // nginx would hold the events back.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events))
}

/// One question about counts, which is O(1), and at most twice a second one for 1,000 rooms: what it
/// costs does not grow with the rooms.
async fn read(state: &ServerState) -> Result<Stats<'_>, ApiError> {
    let status = state.ask(GetStatus).await?;
    let due = state.ranking().due(status.uptime);
    if let Some(after) = due {
        let piece = state.ask(ListRooms { after: after.clone(), limit: ranking::PIECE }).await?;
        state.ranking().take(after.as_ref(), piece);
    }
    let largest = {
        let ranking = state.ranking();
        let rooms = ranking.largest().iter().cloned().map(rooms::Entry::from).collect();
        Largest { rooms, complete: ranking.all().is_some(), all: ranking.all() }
    };
    let health = Health::of(&status);
    let Counters { joins, leaves, messages, deliveries, lists_sent, rows_written, .. } =
        status.counters;
    Ok(Stats {
        node: state.node(),
        epoch: status.epoch,
        uptime_seconds: status.uptime.as_secs_f64(),
        health,
        sockets: state.open_sockets(),
        rooms: status.rooms,
        connections: status.connections,
        presences: status.presences,
        users: status.users,
        counters: Totals { joins, leaves, messages, deliveries, lists_sent, rows_written },
        largest,
    })
}
