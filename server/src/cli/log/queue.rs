//! A bounded queue of log lines for a writer that may block or fail.
//!
//! (`tracing-appender` has one that is bounded in lines, whose size is unbounded, and that does not report
//! how many it drops.)

use std::{
    io::{self, ErrorKind, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::Level;
use tracing_subscriber::fmt::{
    MakeWriter, format,
    time::{FormatTime, SystemTime},
};

/// How many bytes may be queued, including those that are being written.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;
/// How soon to retry a non-blocking writer that is not ready.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Queues lines without waiting; a thread of its own writes them. Clones share one queue.
///
/// Lines that do not fit, or that cannot be written, are dropped and counted; a line reports the number
/// as soon as it can be written.
#[derive(Clone)]
pub(super) struct LogQueue(Arc<QueueInner>);

#[derive(Default)]
struct QueueInner {
    lines: Mutex<QueuedLines>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct QueuedLines {
    waiting: Vec<u8>,
    /// Bytes that the thread is writing.
    writing: usize,
    /// Dropped lines that have not been reported yet.
    dropped: u64,
    /// Whether the last line could not be written: then the report waits for the next one.
    failing: bool,
}

impl LogQueue {
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Self(Arc::default());
        let writer = queue.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.write(out))?;
        Ok(queue)
    }

    /// Queues one or more lines, or drops them if they do not fit.
    pub fn push(&self, text: &[u8]) {
        let mut lines = self.lock();
        if lines.waiting.len() + lines.writing + text.len() > MAX_QUEUED_BYTES {
            lines.dropped += 1;
            drop(lines);
            count_dropped(1);
            return;
        }
        lines.waiting.extend_from_slice(text);
        drop(lines);
        self.0.filled.notify_one();
    }

    /// Waits until every line is written or dropped, for at most `timeout`.
    pub fn drain(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut lines = self.lock();
        while !lines.waiting.is_empty() || lines.writing > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.0.written.wait_timeout(lines, left);
            lines = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueuedLines> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut out: impl Write) {
        loop {
            let (lines, dropped) = self.take();
            // One by one, so that a line that fails does not lose the others.
            let mut lost = 0;
            let mut failing = false;
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                failing = write_line(&mut out, line).is_err();
                lost += u64::from(failing);
            }
            // The report comes in the place of the dropped lines: after what was queued before them.
            let reported = dropped == 0 || !failing && report_dropped(&mut out, dropped);
            let unreported = if reported { 0 } else { dropped };
            self.finish(lost + unreported, failing || !reported);
            if lost > 0 {
                count_dropped(lost);
            }
        }
    }

    /// Waits for lines, and takes them all, with the number of lines that were dropped after them.
    fn take(&self) -> (Vec<u8>, u64) {
        let mut queued = self.lock();
        while queued.waiting.is_empty() && (queued.dropped == 0 || queued.failing) {
            queued = self.0.filled.wait(queued).unwrap_or_else(PoisonError::into_inner);
        }
        let lines = std::mem::take(&mut queued.waiting);
        queued.writing = lines.len();
        (lines, std::mem::take(&mut queued.dropped))
    }

    fn finish(&self, dropped: u64, failing: bool) {
        let mut lines = self.lock();
        lines.writing = 0;
        lines.dropped += dropped;
        lines.failing = failing;
        drop(lines);
        self.0.written.notify_all();
    }
}

/// Writes a line, also to a non-blocking writer.
fn write_line(out: &mut impl Write, line: &[u8]) -> io::Result<()> {
    let mut rest = line;
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY_INTERVAL),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn report_dropped(out: &mut impl Write, dropped: u64) -> bool {
    let text =
        format!("{dropped} log lines were dropped: stderr is too slow, or cannot be written");
    let line = format_line(Level::ERROR, env!("CARGO_CRATE_NAME"), &text);
    write_line(out, line.as_bytes()).is_ok()
}

/// A line as `tracing_subscriber` formats one, for what is not logged through it.
pub(super) fn format_line(level: Level, target: &str, text: &str) -> String {
    let mut time = String::new();
    // A line without its time is better than none.
    let _ = SystemTime.format_time(&mut format::Writer::new(&mut time));
    format!("{time} {level:>5} {target}: {text}\n")
}

fn count_dropped(lines: u64) {
    metrics::counter!("presence_log_lines_dropped_total").increment(lines);
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Each call is a whole line.
impl Write for &LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// How long a test waits for the thread of the queue.
    const SOON: Duration = Duration::from_secs(10);

    /// Writes or fails as the test says.
    struct ScriptedWriter {
        results: mpsc::Receiver<io::Result<()>>,
        lines: mpsc::Sender<String>,
    }

    impl Write for ScriptedWriter {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Fails when the test has ended.
            self.results.recv().unwrap_or(Err(ErrorKind::BrokenPipe.into()))?;
            let _ = self.lines.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct QueueTest {
        queue: LogQueue,
        results: mpsc::Sender<io::Result<()>>,
        lines: mpsc::Receiver<String>,
    }

    impl QueueTest {
        fn new() -> Self {
            let (results, receiver) = mpsc::channel();
            let (sender, lines) = mpsc::channel();
            let out = ScriptedWriter { results: receiver, lines: sender };
            Self { queue: LogQueue::start(out).unwrap(), results, lines }
        }

        fn let_pass(&self) {
            self.results.send(Ok(())).unwrap();
        }

        fn fail(&self, error: ErrorKind) {
            self.results.send(Err(error.into())).unwrap();
        }

        fn next(&self) -> String {
            self.lines.recv_timeout(SOON).unwrap()
        }
    }

    #[test]
    fn a_blocked_writer_blocks_nobody_and_the_queue_is_bounded_in_bytes() {
        let log = QueueTest::new();
        let line = [vec![b'x'; 1023], vec![b'\n']].concat();
        let fit = MAX_QUEUED_BYTES / line.len();
        for _ in 0..fit + 7 {
            log.queue.push(&line);
        }
        let state = log.queue.lock();
        assert_eq!((state.waiting.len() + state.writing, state.dropped), (MAX_QUEUED_BYTES, 7));
        drop(state);
        // Nor does the end of the process wait for it.
        let begun = Instant::now();
        log.queue.drain(Duration::from_millis(10));
        assert!(begun.elapsed() < SOON);

        for _ in 0..fit {
            log.let_pass();
            assert_eq!(log.next().len(), line.len());
        }
        log.let_pass();
        let notice = log.next();
        assert!(
            notice.contains("ERROR") && notice.contains(": 7 log lines were dropped"),
            "{notice}"
        );
    }

    #[test]
    fn lines_that_cannot_be_written_are_reported_after_the_next_that_can() {
        let log = QueueTest::new();
        for error in [ErrorKind::StorageFull, ErrorKind::BrokenPipe] {
            log.fail(error);
            log.queue.push(b"lost\n");
            log.queue.drain(SOON);
        }
        for _ in 0..2 {
            log.let_pass();
        }
        log.queue.push(b"written\n");
        assert_eq!(log.next(), "written\n");
        assert!(log.next().contains(": 2 log lines were dropped"));
    }

    #[test]
    fn a_non_blocking_writer_is_retried_and_loses_nothing() {
        let log = QueueTest::new();
        log.fail(ErrorKind::WouldBlock);
        log.fail(ErrorKind::Interrupted);
        log.let_pass();
        log.queue.push(b"one\n");
        assert_eq!(log.next(), "one\n");
    }
}
