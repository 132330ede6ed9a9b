//! Warnings and errors of other crates, which strangers can cause: one a minute for each place.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tracing::{Event, Level, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::layer::{Context, Layer};

use super::{line, queue::LogQueue};
use actix_presence::log_limit::LogLimit;

/// Lets one warning or error a minute through for each place outside of this crate that logs, and says
/// how many were suppressed before it. (actix logs each request that is malformed.)
pub(super) struct ForeignLimit {
    queue: LogQueue,
    places: Mutex<HashMap<Place, LogLimit>>,
}

/// The target and the line of the code: `log` has no other name for a place.
type Place = (String, u32);

impl ForeignLimit {
    pub fn new(queue: LogQueue) -> Self {
        Self { queue, places: Mutex::default() }
    }

    /// Asks the limit of a place, which answers how many were suppressed if this line passes.
    fn pass<T>(&self, place: Place, pass: impl FnOnce(&LogLimit) -> T) -> T {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        pass(places.entry(place).or_default())
    }
}

fn is_own(target: &str) -> bool {
    matches!(target.split("::").next(), Some("presence_server" | "actix_presence"))
}

impl<S: Subscriber> Layer<S> for ForeignLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let (target, level) = (metadata.target(), *metadata.level());
        // Who has asked for more than warnings wants them all.
        if level > Level::WARN || is_own(target) {
            return true;
        }
        let place = (target.to_owned(), metadata.line().unwrap_or_default());
        match self.pass(place, LogLimit::pass) {
            None => false,
            Some(0) => true,
            Some(suppressed) => {
                let text = format!("{suppressed} lines like the next one were suppressed");
                self.queue.push(line(level, target, &text).as_bytes());
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::mpsc, time::Duration};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// A place where lines may be written.
    struct Lines(mpsc::Sender<String>);

    impl io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn limited(log: impl FnOnce()) -> Vec<String> {
        let (sender, lines) = mpsc::channel();
        let queue = LogQueue::start(Lines(sender)).unwrap();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(queue.clone());
        let logger = tracing_subscriber::registry().with(ForeignLimit::new(queue.clone()));
        tracing::subscriber::with_default(logger.with(layer), log);
        queue.drain(Duration::from_secs(10));
        lines.try_iter().collect()
    }

    #[test]
    fn of_the_errors_of_another_crate_one_of_each_place_passes() {
        let lines = limited(|| {
            for n in 0..5 {
                tracing::error!(target: "actix_http::h1", "one {n}");
                tracing::warn!(target: "actix_http::h1", "two {n}");
                tracing::error!(target: "actix_server", "three {n}");
                // What somebody has asked for, and what this crate limits by itself.
                tracing::info!(target: "actix_http::h1", "four {n}");
                tracing::error!("five {n}");
            }
        });
        let count = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
        assert_eq!(
            ["one", "two", "three", "four", "five"].map(count),
            [1, 1, 1, 5, 5],
            "{lines:?}"
        );
    }

    #[test]
    fn a_minute_later_the_next_one_passes_with_the_number_of_those_between() {
        let (sender, _lines) = mpsc::channel();
        let limit = ForeignLimit::new(LogQueue::start(Lines(sender)).unwrap());
        let place = || ("actix_http::h1".to_owned(), 7);
        let at = |secs| limit.pass(place(), |limit| limit.pass_at(Duration::from_secs(secs)));
        assert_eq!([0, 1, 59, 60].map(at), [Some(0), None, None, Some(2)]);
    }
}
