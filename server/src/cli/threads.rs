//! Threads: whether the process may start as many as it needs.
//!
//! Actix panics where a thread cannot be started, and so does the pool of the SQLite store. So all are
//! tried before the first one is needed.

use std::{
    io,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// The threads besides those of the workers, and besides the main thread and that of the log: of the
/// acceptor, of the registry, of the writer, of the two readers or of the connections to SQLite, of the bus
/// and its look-ups of names, of the memory, and the one that waits for the database at the start.
const OWN_THREADS: usize = 9;

/// The system allows fewer threads than the server needs.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot start a thread: {needed} are needed beside the main one, and {allowed} are allowed; raise the \
     limit of threads (`ulimit -u`, `TasksMax=`, the pids limit of the container), or start fewer --workers"
)]
pub(super) struct TooFewThreads {
    allowed: usize,
    needed: usize,
    source: io::Error,
}

impl TooFewThreads {
    /// Not even the thread of the log can be started.
    pub fn none(workers: usize, source: io::Error) -> Self {
        Self { allowed: 0, needed: needed(workers), source }
    }
}

/// How many threads a server needs, with that of the log.
fn needed(workers: usize) -> usize {
    workers + OWN_THREADS + 1
}

/// Tries to start as many threads as a server with these workers needs, beside that of the log, which
/// runs; ends them again.
pub(super) fn check(workers: usize) -> Result<(), TooFewThreads> {
    let needed = needed(workers);
    try_threads(needed - 1).map_err(|(started, source)| TooFewThreads {
        allowed: started + 1,
        needed,
        source,
    })
}

/// Starts threads that wait until all of them run. The error has how many could be started.
fn try_threads(count: usize) -> Result<(), (usize, io::Error)> {
    let before = running();
    let mut started = Vec::with_capacity(count);
    let failed = (0..count).find_map(|_| match wait_for_end() {
        Ok(thread) => {
            started.push(thread);
            None
        }
        Err(error) => Some(error),
    });
    let allowed = started.len();
    for (end, thread) in started {
        drop(end);
        // It only waits, so it does not panic.
        let _ = thread.join();
    }
    wait_until(|| running() <= before);
    match failed {
        Some(error) => Err((allowed, error)),
        None => Ok(()),
    }
}

/// Starts a thread that ends when the sender is dropped.
fn wait_for_end() -> io::Result<(mpsc::Sender<()>, thread::JoinHandle<()>)> {
    let (end, ended): (_, Receiver<()>) = mpsc::channel();
    let thread = thread::Builder::new().name("trial".to_owned()).spawn(move || {
        let _ = ended.recv();
    })?;
    Ok((end, thread))
}

/// The threads of this process that count: the system counts a thread for a moment after it was joined.
fn running() -> Option<usize> {
    std::fs::read_dir("/proc/self/task").ok().map(Iterator::count)
}

/// Waits, but not for long, since another thread may have been started meanwhile.
fn wait_until(condition: impl Fn() -> bool) {
    const PATIENCE: Duration = Duration::from_millis(200);
    const PAUSE: Duration = Duration::from_millis(1);
    let begun = Instant::now();
    while !condition() && begun.elapsed() < PATIENCE {
        thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_how_many_are_needed_and_why_there_are_fewer() {
        check(4).unwrap();
        let source = || io::Error::from(io::ErrorKind::WouldBlock);
        let error = TooFewThreads::none(4, source());
        let text = error.to_string();
        assert!(text.contains(" 14 are needed") && text.contains(" 0 are allowed"), "{text}");
        assert!(std::error::Error::source(&error).is_some());
    }
}
