//! `GET /api/stats`: how the server is, in numbers; what the dashboard polls.

use actix_web::{HttpResponse, http::StatusCode, web};
use serde::{Serialize, Serializer};

use super::{reply, rooms};
use crate::{
    Cause, Counters, Epoch, GetStatus, ListRooms,
    server::{error::ApiError, health::Health, ranking, state::ServerState},
};

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
    counters: Totals<'a>,
    largest: Largest,
}

#[derive(Serialize)]
struct Totals<'a> {
    joins: u64,
    #[serde(serialize_with = "by_cause")]
    leaves: &'a [(Cause, u64)],
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
}

fn by_cause<S: Serializer>(leaves: &[(Cause, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(leaves.iter().map(|(cause, count)| (cause.as_str(), count)))
}

/// One question about counts, which is O(1), and at most twice a second one for 1,000 rooms: what it
/// costs does not grow with the rooms.
pub(super) async fn stats(state: web::Data<ServerState>) -> Result<HttpResponse, ApiError> {
    let status = state.ask(GetStatus).await?;
    let due = state.ranking().due(status.uptime);
    if let Some(after) = due {
        let piece = state.ask(ListRooms { after: after.clone(), limit: ranking::PIECE }).await?;
        state.ranking().take(after.as_ref(), piece);
    }
    let largest = {
        let ranking = state.ranking();
        let rooms = ranking.largest().iter().cloned().map(rooms::Entry::from).collect();
        Largest { rooms, complete: ranking.is_complete() }
    };
    let Counters { joins, ref leaves, messages, deliveries, lists_sent, rows_written } =
        status.counters;
    let stats = Stats {
        node: state.node(),
        epoch: status.epoch,
        uptime_seconds: status.uptime.as_secs_f64(),
        health: Health::of(&status),
        sockets: state.open_sockets(),
        rooms: status.rooms,
        connections: status.connections,
        presences: status.presences,
        users: status.users,
        counters: Totals { joins, leaves, messages, deliveries, lists_sent, rows_written },
        largest,
    };
    Ok(reply(StatusCode::OK, &stats))
}
