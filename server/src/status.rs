//! The state of the server: `/healthz`, `/readyz`, and its numbers for `/api/stats` and `/metrics`.

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::{self, Bytes},
};
use futures_util::stream;
use metrics::gauge;
use serde::{Serialize, Serializer};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    api::RoomEntry,
    ranking::{self, TopRooms},
    refusals,
    response::{self, ApiError},
    state::ServerState,
};
use actix_presence::{BusState, Cause, Counters, Epoch, GetStatus, ListRooms, NodeName, Status};

/// A registry that has not answered for this long counts as dead.
const REGISTRY_DEAD_AFTER: Duration = Duration::from_secs(10);
/// How long `/readyz` waits for the registry.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// How often live numbers are sent.
const LIVE_INTERVAL: Duration = Duration::from_secs(1);

/// Whether the server does all of its work, with the state of the database and the bus.
#[derive(Debug, Serialize)]
struct Health {
    /// `ready`, `degraded` or `closing`.
    status: &'static str,
    database: DatabaseHealth,
    bus: BusHealth,
    /// This node's clock beside that of a database which it shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock: Option<ClockHealth>,
    /// Other nodes that are not heard on the bus. They do not make this node unready.
    unheard: Vec<UnheardPeer>,
}

#[derive(Debug, Serialize)]
struct DatabaseHealth {
    /// `ok`, or why rows cannot be written.
    state: &'static str,
    /// The error behind that, with its sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    unwritten: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_seconds: Option<f64>,
    /// Why it did not answer the last question. That alone does not make the node unready.
    #[serde(skip_serializing_if = "Option::is_none")]
    unanswered: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct BusHealth {
    /// `local` on a single node, `ok`, or why other nodes are not heard.
    state: &'static str,
    /// Live nodes that are not stopping, this one included.
    nodes: usize,
}

#[derive(Debug, Serialize)]
struct ClockHealth {
    /// How much it is ahead; times of presences are corrected by it. It does not make the node unready.
    ahead_seconds: f64,
}

#[derive(Debug, Serialize)]
struct UnheardPeer {
    node: NodeName,
    seconds: u64,
    reason: String,
}

impl Health {
    fn of(status: &Status) -> Self {
        let bus = match status.bus {
            BusState::Local => "local",
            BusState::Up => "ok",
            BusState::Down(why) => why,
        };
        let degraded = status.database.is_some() || matches!(status.bus, BusState::Down(_));
        let word = match (status.closing, degraded) {
            (true, _) => "closing",
            (false, true) => "degraded",
            (false, false) => "ready",
        };
        let database = DatabaseHealth {
            state: status.database.unwrap_or("ok"),
            cause: status.database_cause.clone(),
            unwritten: status.unwritten,
            lag_seconds: status.database.map(|_| status.lag.as_secs_f64()),
            unanswered: status.unanswered,
        };
        let bus = BusHealth { state: bus, nodes: status.nodes };
        let unheard = status.unheard.iter().map(|peer| {
            let (node, seconds) = (peer.node.clone(), peer.silence.as_secs());
            UnheardPeer { node, seconds, reason: format!("not heard for {seconds} s") }
        });
        let clock = status.clock_ahead.map(|ahead| ahead.as_seconds_f64());
        let clock = clock.map(|ahead_seconds| ClockHealth { ahead_seconds });
        Self { status: word, database, bus, clock, unheard: unheard.collect() }
    }
}

/// `GET /healthz`. Does not ask the registry, so that it answers at once: the registry is asked every
/// second anyway.
pub(crate) async fn healthz(state: web::Data<ServerState>) -> HttpResponse {
    match cause_of_death(&state) {
        None => response::json(StatusCode::OK, &json!({"status": "ok"})),
        Some(reason) => unavailable("dead", &reason),
    }
}

/// Why the registry is dead, if it is.
fn cause_of_death(state: &ServerState) -> Option<String> {
    if let Some(crashed) = state.presence().crashed() {
        return Some(crashed.to_string());
    }
    let silence = state.presence().registry_silence();
    let seconds = silence.as_secs();
    (silence >= REGISTRY_DEAD_AFTER)
        .then(|| format!("the room registry has not answered for {seconds} s"))
}

/// `GET /readyz`.
pub(crate) async fn readyz(state: web::Data<ServerState>) -> HttpResponse {
    if let Some(reason) = cause_of_death(&state) {
        return unavailable("dead", &reason);
    }
    let status = match timeout(READY_TIMEOUT, state.registry().send(GetStatus)).await {
        Ok(Ok(status)) => status,
        Ok(Err(_)) => return unavailable("closing", "the room registry has stopped"),
        Err(_) if state.is_draining() => return unavailable("closing", "the server is stopping"),
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
    response::json(code, &health)
}

fn unavailable(status: &str, reason: &str) -> HttpResponse {
    response::json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": status, "reason": reason}))
}

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
    counters: CounterTotals,
    largest: LargestRooms,
}

#[derive(Serialize)]
struct CounterTotals {
    joins: u64,
    #[serde(serialize_with = "by_cause")]
    leaves: Vec<(Cause, u64)>,
    messages: u64,
    deliveries: u64,
    lists_sent: u64,
    rows_written: u64,
}

#[derive(Serialize)]
struct LargestRooms {
    rooms: Vec<RoomEntry>,
    /// Whether every room has been scanned.
    complete: bool,
    /// How many rooms there were in the last complete scan, of all nodes.
    all: Option<usize>,
    /// Why the scan cannot go on, if so: what is known is shown as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

impl From<&TopRooms> for LargestRooms {
    fn from(top: &TopRooms) -> Self {
        let rooms = top.largest().iter().cloned().map(RoomEntry::from).collect();
        let (all, trouble) = (top.all(), top.trouble().map(str::to_owned));
        Self { rooms, complete: all.is_some(), all, trouble }
    }
}

fn by_cause<S: Serializer>(leaves: &[(Cause, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(leaves.iter().map(|(cause, count)| (cause.as_str(), count)))
}

/// `GET /api/stats`.
pub(crate) async fn stats(state: web::Data<ServerState>) -> Result<HttpResponse, ApiError> {
    Ok(response::json(StatusCode::OK, &read_stats(&state).await?))
}

/// `GET /api/stats/live`: the same as server-sent events, one a second, for the dashboard. The stream
/// ends with the registry, or when its reader goes away.
pub(crate) async fn live_stats(
    req: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let permit = state.live_reader().inspect_err(|error| refusals::report(&req, error))?;
    let mut ticks = interval(LIVE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let events = stream::unfold((state, ticks, permit), |(state, mut ticks, permit)| async move {
        ticks.tick().await;
        let stats = serde_json::to_string(&read_stats(&state).await.ok()?).ok()?;
        let event = Ok::<_, actix_web::Error>(Bytes::from(format!("data: {stats}\n\n")));
        Some((event, (state, ticks, permit)))
    });
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        // Keeps nginx from buffering the events.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events))
}

/// Asks the registry for its counts, which is O(1), and at most twice a second for the next
/// [`ranking::BATCH_LEN`] rooms, so the cost does not grow with the number of rooms.
async fn read_stats(state: &ServerState) -> Result<Stats<'_>, ApiError> {
    let status = state.ask(GetStatus).await?;
    let due = state.top_rooms().next_batch(status.uptime);
    if let Some(after) = due {
        let batch =
            state.ask(ListRooms { after: after.clone(), limit: ranking::BATCH_LEN }).await?;
        match batch {
            Ok(batch) => state.top_rooms().add(after.as_ref(), batch),
            Err(error) => state.top_rooms().interrupted(error.to_string()),
        }
    }
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
        counters: CounterTotals { joins, leaves, messages, deliveries, lists_sent, rows_written },
        largest: LargestRooms::from(&*state.top_rooms()),
    })
}

/// `GET /metrics`, for Prometheus.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(crate) async fn metrics(state: web::Data<ServerState>) -> Result<HttpResponse, ApiError> {
    let Some(metrics) = &state.options().metrics else {
        return Err(ApiError::not_found("not_found", "this server does not collect metrics"));
    };
    // The registry reports its gauges when it is asked.
    state.ask(GetStatus).await?;
    gauge!("presence_sockets_open").set(state.open_sockets() as f64);
    Ok(HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(metrics.render()))
}
