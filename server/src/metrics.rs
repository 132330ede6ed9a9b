//! The metrics of the process: what they are called, what they mean, and the collector for Prometheus.

use std::sync::{Mutex, PoisonError};

use metrics::{counter, describe_counter, describe_gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::refusals::{self, REFUSALS_TOTAL};
use actix_presence::Cause;

const COUNTERS: [(&str, &str); 33] = [
    ("presence_joins_total", "Presences that joined a room."),
    ("presence_leaves_total", "Presences that left a room, by cause."),
    ("presence_touches_total", "Touches of connections that are in some room."),
    ("presence_sessions_resumed_total", "Connections that replaced an older one of their session."),
    ("presence_messages_total", "Messages published to rooms."),
    ("presence_deliveries_total", "Messages delivered to members."),
    ("presence_fan_out_microseconds_total", "Time spent handing messages to members."),
    ("presence_denials_total", "Joins and messages that were not allowed, by kind."),
    ("presence_slow_consumers_total", "Members disconnected because they did not read."),
    ("presence_changes_coalesced_total", "Changes sent together with a later one."),
    ("presence_lists_sent_total", "Member lists and diffs sent, each encoded once and shared."),
    (
        "presence_lists_truncated_total",
        "Times that the list of a room became too large to be sent whole.",
    ),
    (
        "presence_observer_conflations_total",
        "Times that an observer fell behind and was sent states instead.",
    ),
    (
        "presence_observer_events_lost_total",
        "Events that an observer has panicked at, or given up.",
    ),
    ("presence_rows_written_total", "Rows of presences written or deleted."),
    ("presence_rows_refused_total", "Rows that the database rejects."),
    ("presence_database_failures_total", "Batches and leases not written, by reason."),
    ("presence_database_hung_total", "Connections to the database that were given up."),
    ("presence_queries_unanswered_total", "Questions not answered by the database, by reason."),
    ("presence_bus_sent_total", "Envelopes sent to other nodes."),
    ("presence_bus_heard_total", "Envelopes received, this node's own included."),
    ("presence_bus_refused_total", "Envelopes not sent because the bus was down or full."),
    ("presence_bus_reconnects_total", "Reconnects to the bus."),
    ("presence_bus_unreadable_total", "Envelopes that this version does not understand."),
    ("presence_bus_unverified_total", "Envelopes that no node of this database has published."),
    ("presence_bus_repeated_total", "Envelopes that came again, or after a later one."),
    ("presence_bus_old_nodes_total", "Messages of nodes that do not authenticate theirs."),
    ("presence_bus_gaps_total", "Rooms read again because messages about them were missed."),
    (REFUSALS_TOTAL, "Requests refused, by reason."),
    ("presence_connections_ended_total", "TCP connections ended by the server, by reason."),
    ("presence_sockets_closed_total", "WebSockets closed by the server, by reason."),
    (
        "presence_bus_contradictions_total",
        "Presences that the bus and the database disagreed about.",
    ),
    (
        "presence_log_lines_dropped_total",
        "Log lines dropped because stderr was too slow or failed.",
    ),
];

const GAUGES: [(&str, &str); 18] = [
    ("presence_connections", "Connections of this node that are in some room."),
    ("presence_presences", "Connections of this node in rooms, each counted once per room."),
    ("presence_view_rooms", "Rooms that are not empty, among those that this node follows."),
    ("presence_view_presences", "Connections in those rooms, of all nodes, once per room."),
    ("presence_view_users", "Users in those rooms, of all nodes, each counted once."),
    ("presence_observer_lag", "Events queued for the observer that is furthest behind."),
    ("presence_sockets_open", "WebSockets that are open."),
    ("presence_rows_unwritten", "Presences whose row is not up to date yet."),
    ("presence_lease_age_seconds", "Seconds since this node's lease was renewed."),
    ("presence_clock_offset_seconds", "How much this node's clock is ahead of the database's."),
    ("presence_nodes", "Live nodes that are not stopping, this one included."),
    ("presence_nodes_unheard", "Nodes of which two beats or more are missing on the bus."),
    ("presence_bus_up", "Whether other nodes are heard."),
    ("presence_database_up", "Whether rows can be written to the database."),
    ("presence_database_lag_seconds", "For how long rows could not be written to the database."),
    ("presence_connections_open", "TCP connections that are open, WebSockets and others."),
    ("presence_descriptors_limit", "File descriptors that the process may open."),
    ("presence_sockets_limit", "WebSockets for which there are file descriptors."),
];

/// The kinds of `presence_denials_total`.
const DENIALS: [&str; 6] = ["join", "publish", "undecided", "panic", "timeout", "busy"];

/// The reasons of `presence_connections_ended_total`.
pub(crate) const END_REASONS: [&str; 4] =
    ["half_request", "unread_response", "crowded", "overdue_close"];

static INSTALLED: Mutex<Option<Metrics>> = Mutex::new(None);

/// The metrics of this process, collected for Prometheus. Clones share one collector.
#[derive(Clone, Debug)]
pub struct Metrics(PrometheusHandle);

/// Another recorder already collects the metrics of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another recorder already collects the metrics of this process")]
pub struct MetricsTaken;

impl Metrics {
    /// Starts to collect what this crate and actix-presence report through [`metrics`](::metrics). A
    /// process has one such collector; further calls return it.
    ///
    /// An app with a recorder of its own does not need this: its recorder has the metrics already.
    ///
    /// # Errors
    ///
    /// [`MetricsTaken`] if the process already has another recorder.
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
                    start_at_zero(name, "cause", Cause::ALL.iter().map(|cause| cause.as_str()));
                }
                "presence_denials_total" => start_at_zero(name, "kind", DENIALS),
                REFUSALS_TOTAL => start_at_zero(name, "reason", refusals::codes()),
                "presence_connections_ended_total" => start_at_zero(name, "reason", END_REASONS),
                // Their reasons are not known in advance.
                "presence_database_failures_total"
                | "presence_queries_unanswered_total"
                | "presence_sockets_closed_total" => {}
                _ => counter!(name).increment(0),
            }
        }
        for (name, help) in GAUGES {
            describe_gauge!(name, help);
        }
        Ok(installed.insert(Self(handle)).clone())
    }

    /// The values in the text format of Prometheus.
    pub(crate) fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}

fn start_at_zero(
    name: &'static str,
    label: &'static str,
    values: impl IntoIterator<Item = &'static str>,
) {
    for value in values {
        counter!(name, label => value).increment(0);
    }
}
