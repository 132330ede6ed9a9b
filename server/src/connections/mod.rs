//! TCP connections that carry no WebSocket: none waits for its client for ever, and all together never
//! take the descriptors that WebSockets and health checks need.
//!
//! [`Connections`] is wrapped around the app and follows each request on its connection; [`opened`]
//! enters a connection into the table of its worker, which looks at those that wait once a second.
//! What is ended is ended by `shutdown(2)`, since actix-web does not run a connection whose client
//! does not read, and has no timer for a second head, a body or a response.

mod body;
mod connection;
mod middleware;
mod table;

use std::sync::{OnceLock, atomic::Ordering::Relaxed};

use metrics::gauge;

pub(super) use self::{
    middleware::{Connections, KEEP_ALIVE},
    table::opened,
};
use super::descriptors::Limits;

/// The reasons of `presence_connections_ended_total`.
pub(super) const REASONS: [&str; 4] =
    ["half_request", "unread_response", "crowded", "overdue_close"];

static LIMITS: OnceLock<Limits> = OnceLock::new();

/// Makes the limits of this process known to its metrics.
pub(super) fn publish(limits: Limits) {
    let _ = LIMITS.set(limits);
}

/// How many TCP connections are open, WebSockets and others. Counted where [`opened`] is called.
pub(super) fn open() -> usize {
    table::OPEN.load(Relaxed)
}

/// Sets the gauges, unless the connections belong to somebody else's server.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) fn report() {
    let Some(limits) = LIMITS.get() else { return };
    gauge!("presence_connections_open").set(open() as f64);
    if let Some(descriptors) = limits.descriptors {
        gauge!("presence_descriptors_limit").set(descriptors as f64);
        gauge!("presence_sockets_limit").set(limits.all_websockets() as f64);
    }
}
