//! The gauges reach the recorder that an app has installed.

mod common;

use std::{collections::HashMap, sync::Arc};

use actix_presence::{
    testing::{Heard, Probe},
    *,
};
use common::{room, secs};
use metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use tokio::{sync::watch, time::timeout};

/// Records gauges, and nothing else.
#[derive(Clone, Default)]
struct Gauges(watch::Sender<HashMap<Key, f64>>);

struct One(Gauges, Key);

impl GaugeFn for One {
    fn increment(&self, by: f64) {
        self.0.0.send_modify(|all| *all.entry(self.1.clone()).or_default() += by);
    }

    fn decrement(&self, by: f64) {
        self.increment(-by);
    }

    fn set(&self, value: f64) {
        self.0.0.send_modify(|all| {
            all.insert(self.1.clone(), value);
        });
    }
}

impl metrics::Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(One(self.clone(), key.clone())))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

impl Gauges {
    /// Waits until a gauge of a system has a value.
    async fn wait_for(&self, name: &str, system: Option<&'static str>, value: f64) {
        let labels = system.map(|system| metrics::Label::new("system", system));
        let key = Key::from_parts(name.to_owned(), labels.into_iter().collect::<Vec<_>>());
        let mut all = self.0.subscribe();
        let has = |all: &HashMap<Key, f64>| all.get(&key) == Some(&value);
        let seen = timeout(secs(10), all.wait_for(has)).await;
        assert!(seen.is_ok(), "{key} is not {value}: {:?}", self.0.borrow().get(&key));
    }
}

async fn join(presence: &PresenceHandle, name: &str) -> Connection {
    let me = Connection::new(presence.registry());
    let (session, _) = Probe::<Heard>::new();
    presence.registry().send(me.join(room(name), session)).await.unwrap().unwrap();
    me
}

#[actix::test]
async fn the_recorder_of_an_app_has_all_gauges_of_each_system_without_asking() {
    let gauges = Gauges::default();
    metrics::set_global_recorder(gauges.clone()).unwrap();
    let start = |config: PresenceConfig| config.start().unwrap();
    let one = start(PresenceConfig::new("sqlite::memory:"));
    let other = start(PresenceConfig::new("sqlite::memory:").metrics_label("other"));
    let me = [join(&one, "a").await, join(&other, "a").await, join(&other, "b").await];
    gauges.wait_for("presence_connections", None, 1.0).await;
    gauges.wait_for("presence_connections", Some("other"), 2.0).await;
    gauges.wait_for("presence_view_rooms", Some("other"), 2.0).await;
    for name in [
        "presence_connections",
        "presence_presences",
        "presence_view_rooms",
        "presence_view_presences",
        "presence_view_users",
        "presence_observer_lag",
        "presence_rows_unwritten",
        "presence_lease_age_seconds",
        "presence_nodes",
        "presence_nodes_unheard",
        "presence_database_up",
        "presence_database_lag_seconds",
    ] {
        assert!(gauges.0.borrow().contains_key(&Key::from_name(name)), "{name}");
    }
    drop(me);
    one.shutdown(secs(5)).await.unwrap();
    other.shutdown(secs(5)).await.unwrap();
    gauges.wait_for("presence_connections", None, 0.0).await;
    gauges.wait_for("presence_connections", Some("other"), 0.0).await;
}
