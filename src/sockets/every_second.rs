//! A task of a worker's thread that runs once a second.

use std::time::Duration;

use actix_web::rt::{self, task::JoinHandle};
use tokio::time::{MissedTickBehavior, interval};

const PERIOD: Duration = Duration::from_secs(1);

/// Starts its task when first asked to, and again if the runtime that ran it has ended.
#[derive(Debug, Default)]
pub struct EverySecond(Option<JoinHandle<()>>);

impl EverySecond {
    /// A task that does not run yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(None)
    }

    /// Makes sure that the task runs. To be called on a thread that has an actix runtime.
    pub fn run(&mut self, sweep: fn()) {
        if self.0.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.0 = Some(rt::spawn(async move {
            let mut ticks = interval(PERIOD);
            // After a pause of the process, seconds are not caught up with.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is at once.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                sweep();
            }
        }));
    }
}
