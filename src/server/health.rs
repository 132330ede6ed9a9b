//! `GET /healthz` and `GET /readyz`.

use actix_web::{HttpResponse, http::StatusCode, web};
use serde::Serialize;
use serde_json::json;

use super::{api::reply, state::ServerState};
use crate::{BusState, GetStatus, NodeName, Status};

/// Whether the server does all of its work, with the state of the database and the bus.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    /// `ready`, `degraded` or `closing`.
    status: &'static str,
    database: Database,
    bus: Bus,
    /// Other nodes that live by the database and are not heard on the bus. This one is as good as they.
    unheard: Vec<NodeName>,
}

#[derive(Debug, Serialize)]
struct Database {
    /// `ok`, or why it takes no rows.
    state: &'static str,
    unwritten: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Bus {
    /// `local` where there are no other nodes, `ok`, or why they are not heard.
    state: &'static str,
    /// Nodes that live and stay, this one included.
    nodes: usize,
}

impl Health {
    pub fn of(status: &Status) -> Self {
        let bus = match status.bus {
            BusState::Local => "local",
            BusState::Up => "ok",
            BusState::Down(why) => why,
        };
        let away = status.database.is_some() || matches!(status.bus, BusState::Down(_));
        let word = match (status.closing, away) {
            (true, _) => "closing",
            (false, true) => "degraded",
            (false, false) => "ready",
        };
        let database = Database {
            state: status.database.unwrap_or("ok"),
            unwritten: status.unwritten,
            lag_seconds: status.database.map(|_| status.lag.as_secs_f64()),
        };
        let bus = Bus { state: bus, nodes: status.nodes };
        Self { status: word, database, bus, unheard: status.unheard.clone() }
    }
}

/// The process answers; nothing else is asked.
pub(super) async fn alive() -> HttpResponse {
    reply(StatusCode::OK, &json!({"status": "ok"}))
}

pub(super) async fn ready(state: web::Data<ServerState>) -> HttpResponse {
    let Ok(status) = state.ask(GetStatus).await else {
        // The registry has stopped, or does not get to answer.
        return reply(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "closing"}));
    };
    let health = Health::of(&status);
    let ready = health.status == "ready";
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(code, &health)
}
