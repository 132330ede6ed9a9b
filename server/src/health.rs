//! `GET /healthz` and `GET /readyz`.

use std::time::Duration;

use actix_web::{HttpResponse, http::StatusCode, web};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use super::{api::reply, state::ServerState};
use actix_presence::{
    messages::{BusState, GetStatus, Status},
    model::NodeName,
};

/// Whether the server does all of its work, with the state of the database and the bus.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    /// `ready`, `degraded` or `closing`.
    status: &'static str,
    database: Database,
    bus: Bus,
    /// Other nodes that are not heard on the bus, and for how long. This one is ready all the same.
    unheard: Vec<Unheard>,
}

#[derive(Debug, Serialize)]
struct Unheard {
    node: NodeName,
    seconds: u64,
    /// The same in words.
    reason: String,
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
        let unheard = status.unheard.iter().map(|one| {
            let (node, seconds) = (one.node.clone(), one.silence.as_secs());
            Unheard { node, seconds, reason: format!("not heard for {seconds} s") }
        });
        Self { status: word, database, bus, unheard: unheard.collect() }
    }
}

/// A registry that has not answered for this long counts as dead.
const SILENCE: Duration = Duration::from_secs(10);
/// How long `/readyz` waits for the registry.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// `GET /healthz`. Asks nobody, so that it answers at once: the registry is asked every second anyway.
pub(super) async fn alive(state: web::Data<ServerState>) -> HttpResponse {
    match dead(&state) {
        None => reply(StatusCode::OK, &json!({"status": "ok"})),
        Some(reason) => unavailable("dead", &reason),
    }
}

/// Why the registry is dead, if it is.
fn dead(state: &ServerState) -> Option<String> {
    if let Some(crashed) = state.presence().crashed() {
        return Some(crashed.to_string());
    }
    let silence = state.presence().registry_silence();
    let seconds = silence.as_secs();
    (silence >= SILENCE).then(|| format!("the room registry has not answered for {seconds} s"))
}

/// `GET /readyz`.
pub(super) async fn ready(state: web::Data<ServerState>) -> HttpResponse {
    if let Some(reason) = dead(&state) {
        return unavailable("dead", &reason);
    }
    let status = match timeout(READY_TIMEOUT, state.registry().send(GetStatus)).await {
        Ok(Ok(status)) => status,
        Ok(Err(_)) => return unavailable("closing", "the room registry has stopped"),
        Err(_) if state.is_draining() => return unavailable("closing", "the server stops"),
        Err(_) => {
            let seconds = READY_TIMEOUT.as_secs();
            let reason = format!("the room registry has not answered within {seconds} s");
            return unavailable("busy", &reason);
        }
    };
    let mut health = Health::of(&status);
    if state.is_draining() {
        health.status = "closing";
    }
    let ready = health.status == "ready";
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(code, &health)
}

fn unavailable(status: &str, reason: &str) -> HttpResponse {
    reply(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": status, "reason": reason}))
}
