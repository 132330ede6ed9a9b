//! The log of the binary, which neither blocks nor panics, whatever happens to stderr.
//!
//! Nothing else writes to stderr while the server runs: the queue's thread may hold the lock of stderr
//! for as long as its reader does not read.

mod fields;
mod queue;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    collections::HashMap,
    io::{self, IsTerminal, Write},
    panic::PanicHookInfo,
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Event, Level, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::{
    EnvFilter,
    layer::{Context, Layer, SubscriberExt},
    util::SubscriberInitExt,
};

use self::{
    fields::QuotedFields,
    queue::{LogQueue, format_line},
};
use actix_presence::log_limit::LogLimit;

/// How long the end of the process waits until the last lines are written.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Starts to log to stderr, including panics and what other crates log through `log`.
///
/// # Errors
///
/// If the thread of the log cannot be started.
pub(super) fn start(filter: &str) -> io::Result<()> {
    let queue = LogQueue::start(io::stderr())?;
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(QuotedFields)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(queue.clone())
        .log_internal_errors(false);
    let logger = tracing_subscriber::registry()
        .with(EnvFilter::new(filter))
        .with(ForeignLimit::new(queue.clone()))
        .with(lines);
    if logger.try_init().is_err() {
        tracing::debug!("the process already has another logger");
    }
    let panics = QUEUE.get_or_init(|| queue).clone();
    std::panic::set_hook(Box::new(move |panic| panics.push(panic_line(panic).as_bytes())));
    Ok(())
}

/// Prints a line that is not a log line to stderr; through the queue if the log has been started.
pub(super) fn print(text: &str) {
    match QUEUE.get() {
        Some(queue) => queue.push(format!("{text}\n").as_bytes()),
        // If stderr is closed, the exit code has to do.
        None => drop(writeln!(io::stderr(), "{text}")),
    }
}

/// Waits until the log is written, but not long, because stderr may be blocked. For the end of the
/// process.
pub(super) fn drain() {
    if let Some(queue) = QUEUE.get() {
        queue.drain(DRAIN_TIMEOUT);
    }
}

fn panic_line(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("no message");
    let location = panic.location().map(|location| format!(" at {location}")).unwrap_or_default();
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let text = format!("thread '{thread}' panicked{location}: {message}");
    let mut line = format_line(Level::ERROR, env!("CARGO_CRATE_NAME"), &text);
    // If `RUST_BACKTRACE` asks for it.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        line.push_str(&trace.to_string());
    }
    line
}

/// Passes one warning or error per minute of each call site in other crates, because strangers can
/// cause them: actix logs each malformed request.
struct ForeignLimit {
    queue: LogQueue,
    limits: Mutex<HashMap<CallSite, LogLimit>>,
}

/// The target and the line in the code; `log` has nothing else to tell call sites apart.
type CallSite = (String, u32);

impl ForeignLimit {
    fn new(queue: LogQueue) -> Self {
        Self { queue, limits: Mutex::default() }
    }

    /// Asks the limit of a call site with `pass`.
    fn pass<T>(&self, site: CallSite, pass: impl FnOnce(&LogLimit) -> T) -> T {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        pass(limits.entry(site).or_default())
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
        // Lower levels are logged only if the filter asks for them: then all are wanted.
        if level > Level::WARN || is_own(target) {
            return true;
        }
        let site = (target.to_owned(), metadata.line().unwrap_or_default());
        match self.pass(site, LogLimit::pass) {
            None => false,
            Some(0) => true,
            Some(suppressed) => {
                let text = format!("{suppressed} lines like the next one were suppressed");
                self.queue.push(format_line(level, target, &text).as_bytes());
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Sends what is written to a test.
    struct LineSender(mpsc::Sender<String>);

    impl Write for LineSender {
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
        let queue = LogQueue::start(LineSender(sender)).unwrap();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(queue.clone());
        let logger = tracing_subscriber::registry().with(ForeignLimit::new(queue.clone()));
        tracing::subscriber::with_default(logger.with(layer), log);
        queue.drain(Duration::from_secs(10));
        lines.try_iter().collect()
    }

    #[test]
    fn one_error_of_each_call_site_in_another_crate_passes() {
        let lines = limited(|| {
            for n in 0..5 {
                tracing::error!(target: "actix_http::h1", "one {n}");
                tracing::warn!(target: "actix_http::h1", "two {n}");
                tracing::error!(target: "actix_server", "three {n}");
                // What the filter asks for, and what this crate limits by itself.
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
    fn a_minute_later_the_next_one_passes_with_the_number_of_suppressed_ones() {
        let (sender, _lines) = mpsc::channel();
        let limit = ForeignLimit::new(LogQueue::start(LineSender(sender)).unwrap());
        let site = || ("actix_http::h1".to_owned(), 7);
        let at = |secs| limit.pass(site(), |limit| limit.pass_at(Duration::from_secs(secs)));
        assert_eq!([0, 1, 59, 60].map(at), [Some(0), None, None, Some(2)]);
    }
}
