//! The log of the binary, which neither blocks nor panics, whatever stderr is.
//!
//! Nobody else writes to stderr while the server runs: the queue's thread may hold its lock for as long
//! as a reader stands still.

mod limit;
mod queue;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal, Write},
    panic::PanicHookInfo,
    sync::OnceLock,
    thread,
    time::Duration,
};

use tracing::Level;
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        format,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use self::{limit::ForeignLimit, queue::LogQueue};

/// How long the end of the process waits for lines that are not written yet.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// Logs to stderr from now on, also what others say through `log`, and panics.
///
/// # Errors
///
/// The error of the thread that could not be started.
pub(super) fn start(filter: &str) -> io::Result<()> {
    let queue = LogQueue::start(io::stderr())?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(queue.clone())
        .log_internal_errors(false);
    let logger = tracing_subscriber::registry()
        .with(EnvFilter::new(filter))
        .with(ForeignLimit::new(queue.clone()))
        .with(lines);
    if logger.try_init().is_err() {
        tracing::debug!("something else takes the log");
    }
    let panics = QUEUE.get_or_init(|| queue).clone();
    std::panic::set_hook(Box::new(move |panic| panics.push(panic_line(panic).as_bytes())));
    Ok(())
}

/// Says something on stderr that is no log line: through the queue if the log has been started.
pub(super) fn say(text: &str) {
    match QUEUE.get() {
        Some(queue) => queue.push(format!("{text}\n").as_bytes()),
        // Where stderr is closed, the exit code has to do.
        None => drop(writeln!(io::stderr(), "{text}")),
    }
}

/// Waits until the log is written, but not for a reader that stands still; for the end of the process.
pub(super) fn drain() {
    if let Some(queue) = QUEUE.get() {
        queue.drain(DRAIN_TIMEOUT);
    }
}

/// A line as `tracing_subscriber` formats one, for what is not logged through it.
fn line(level: Level, target: &str, text: &str) -> String {
    let mut time = String::new();
    // The time of a line may be missing; the line must not.
    let _ = SystemTime.format_time(&mut format::Writer::new(&mut time));
    format!("{time} {level:>5} {target}: {text}\n")
}

fn panic_line(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("no message");
    let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let thread = thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let mut text = line(
        Level::ERROR,
        env!("CARGO_CRATE_NAME"),
        &format!("thread '{thread}' panicked{place}: {message}"),
    );
    // As `RUST_BACKTRACE` says.
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        text.push_str(&trace.to_string());
    }
    text
}
