//! The gauges, for whatever recorder of [`metrics`] the app has installed.

use metrics::{Label, gauge};

use crate::messages::{BusState, Status};

/// Reports the state of one registry.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    /// Tells several systems of a process apart, whose gauges would replace each other's values.
    labels: Vec<Label>,
}

impl Gauges {
    /// The gauges of a system, with its name as the label `system` if it has one.
    pub fn of(system: Option<String>) -> Self {
        Self { labels: system.into_iter().map(|system| Label::new("system", system)).collect() }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn report(&self, status: &Status) {
        self.set("presence_connections", status.connections as f64);
        self.set("presence_presences", status.held as f64);
        self.set("presence_view_rooms", status.rooms as f64);
        self.set("presence_view_presences", status.presences as f64);
        self.set("presence_view_users", status.users as f64);
        self.set("presence_observer_lag", status.observer_lag as f64);
        self.set("presence_rows_unwritten", status.unwritten as f64);
        self.set("presence_lease_age_seconds", status.lease_age.as_secs_f64());
        self.set("presence_nodes", status.nodes as f64);
        self.set("presence_nodes_unheard", status.unheard.len() as f64);
        self.set("presence_database_up", f64::from(u8::from(status.database.is_none())));
        self.set("presence_database_lag_seconds", status.lag.as_secs_f64());
        if let Some(ahead) = status.clock_ahead {
            self.set("presence_clock_offset_seconds", ahead.as_seconds_f64());
        }
        match status.bus {
            BusState::Local => {}
            BusState::Up => self.set("presence_bus_up", 1.0),
            BusState::Down(_) => self.set("presence_bus_up", 0.0),
        }
    }

    fn set(&self, name: &'static str, value: f64) {
        gauge!(name, self.labels.clone()).set(value);
    }
}
