//! `GET /metrics`: numbers for Prometheus.

use std::sync::{Mutex, PoisonError};

use actix_web::{HttpResponse, http::header, web};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::{
    connections,
    error::ApiError,
    refusals::{self, REFUSALS_TOTAL},
    state::ServerState,
};
use actix_presence::{messages::GetStatus, model::Cause};

const COUNTERS: [(&str, &str); 26] = [
    ("presence_joins_total", "Presences that began."),
    ("presence_leaves_total", "Presences that ended, by cause."),
    ("presence_touches_total", "Signs of life of connections that are in some room."),
    ("presence_sessions_resumed_total", "Connections that took the place of an older one."),
    ("presence_messages_total", "Messages published to rooms."),
    ("presence_deliveries_total", "Messages taken by members."),
    ("presence_fan_out_microseconds_total", "Time spent handing messages to members."),
    ("presence_slow_consumers_total", "Members put out because they took nothing."),
    ("presence_changes_coalesced_total", "Changes that went out with a later one."),
    ("presence_lists_sent_total", "Frames about who is there, each encoded once and shared."),
    (
        "presence_lists_truncated_total",
        "Rooms whose list became too large for one of its dialects.",
    ),
    ("presence_observer_conflations_total", "Observers that fell behind and get states instead."),
    ("presence_rows_written_total", "Rows of presences written or deleted."),
    ("presence_rows_refused_total", "Rows that the database refuses as they are."),
    ("presence_database_failures_total", "Batches and leases not written, by reason."),
    ("presence_bus_sent_total", "Envelopes sent to other nodes."),
    ("presence_bus_heard_total", "Envelopes heard, one's own among them."),
    ("presence_bus_refused_total", "Envelopes not sent because the bus was down or full."),
    ("presence_bus_reconnects_total", "Connections to the bus that were made again."),
    ("presence_bus_unreadable_total", "Envelopes that this version does not understand."),
    ("presence_bus_gaps_total", "Rooms read again because something of them was missed."),
    (REFUSALS_TOTAL, "Requests refused, by reason."),
    ("presence_connections_ended_total", "TCP connections ended by the server, by reason."),
    ("presence_sockets_closed_total", "WebSockets closed by the server, by reason."),
    ("presence_bus_contradictions_total", "Presences heard of that were not so in the database."),
    ("presence_log_lines_dropped_total", "Log lines that stderr did not take in time."),
];

const GAUGES: [(&str, &str); 17] = [
    ("presence_connections", "Connections of this node that are in some room."),
    ("presence_presences", "Connections of this node in rooms, each counted once per room."),
    ("presence_view_rooms", "Rooms with somebody in them, as far as this node follows them."),
    ("presence_view_presences", "Connections in those rooms, of all nodes, once per room."),
    ("presence_view_users", "Users in those rooms, of all nodes, each counted once."),
    ("presence_observer_lag", "Events that wait for the observer furthest behind."),
    ("presence_sockets_open", "WebSockets that are open."),
    ("presence_rows_unwritten", "Presences whose row is not yet what memory says."),
    ("presence_lease_age_seconds", "For how long this node's lease has not been renewed."),
    ("presence_nodes", "Nodes that live and stay, this one included."),
    ("presence_nodes_unheard", "Nodes of which two beats or more are missing on the bus."),
    ("presence_bus_up", "Whether other nodes are heard."),
    ("presence_database_up", "Whether the database takes rows."),
    ("presence_database_lag_seconds", "For how long the database has not taken rows."),
    ("presence_connections_open", "TCP connections that are open, WebSockets and others."),
    ("presence_descriptors_limit", "File descriptors that the process may open."),
    ("presence_sockets_limit", "WebSockets for which there are file descriptors."),
];

static INSTALLED: Mutex<Option<Metrics>> = Mutex::new(None);

/// The numbers of this process, collected for Prometheus. A clone is the same.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

/// Something else collects the metrics of this process already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metrics of this process are collected by something else")]
pub struct MetricsTaken;

impl Metrics {
    /// Begins to collect what the crate reports through [`metrics`](::metrics); there is one such
    /// collector in a process, and asking again gives the same.
    ///
    /// An app with a recorder of its own does not need this: it has the numbers already.
    ///
    /// # Errors
    ///
    /// [`MetricsTaken`] if there is another recorder.
    pub fn install() -> Result<Self, MetricsTaken> {
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = &*installed {
            return Ok(metrics.clone());
        }
        let handle = PrometheusBuilder::new().install_recorder().map_err(|_| MetricsTaken)?;
        for (name, help) in COUNTERS {
            describe_counter!(name, help);
            match name {
                "presence_leaves_total" => {
                    for cause in Cause::ALL {
                        counter!(name, "cause" => cause.as_str()).increment(0);
                    }
                }
                REFUSALS_TOTAL => {
                    for reason in refusals::codes() {
                        counter!(name, "reason" => reason).increment(0);
                    }
                }
                "presence_connections_ended_total" => {
                    for reason in connections::REASONS {
                        counter!(name, "reason" => reason).increment(0);
                    }
                }
                // By reason, which is not known before.
                "presence_database_failures_total" | "presence_sockets_closed_total" => {}
                _ => counter!(name).increment(0),
            }
        }
        for (name, help) in GAUGES {
            describe_gauge!(name, help);
        }
        Ok(installed.insert(Self(handle)).clone())
    }

    fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) async fn metrics(state: web::Data<ServerState>) -> Result<HttpResponse, ApiError> {
    let Some(metrics) = &state.options().metrics else {
        return Err(ApiError::not_found("not_found", "metrics are not collected here"));
    };
    let status = state.ask(GetStatus).await?;
    gauge!("presence_connections").set(status.connections as f64);
    gauge!("presence_presences").set(status.held as f64);
    gauge!("presence_view_rooms").set(status.rooms as f64);
    gauge!("presence_view_presences").set(status.presences as f64);
    gauge!("presence_view_users").set(status.users as f64);
    gauge!("presence_observer_lag").set(status.observer_lag as f64);
    gauge!("presence_lease_age_seconds").set(status.lease_age.as_secs_f64());
    gauge!("presence_sockets_open").set(state.open_sockets() as f64);
    gauge!("presence_rows_unwritten").set(status.unwritten as f64);
    gauge!("presence_nodes").set(status.nodes as f64);
    gauge!("presence_nodes_unheard").set(status.unheard.len() as f64);
    gauge!("presence_database_up").set(f64::from(u8::from(status.database.is_none())));
    gauge!("presence_database_lag_seconds").set(status.lag.as_secs_f64());
    connections::report();
    Ok(HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(metrics.render()))
}
