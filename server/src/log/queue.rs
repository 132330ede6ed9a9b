//! Lines on their way to a writer that may block or fail.
//!
//! (`tracing-appender` has a queue like this, but bounds it in lines, which have no largest size, and
//! says nothing of those that it drops.)

use std::{
    io::{self, ErrorKind, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

use super::line;

/// Bytes of lines that may wait to be written, those that are being written included.
const QUEUE_BYTES: usize = 1024 * 1024;
/// How soon to try again where the writer takes nothing and does not block.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Takes lines without waiting, and has them written by a thread of its own. A clone is the same.
///
/// Lines that find no room, and those that the writer does not take, are dropped and counted; the
/// number is written as a line when there is room again.
#[derive(Clone)]
pub(super) struct LogQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Bytes that the thread has taken and not finished with.
    writing: usize,
    /// Lines dropped of which no line says so yet.
    dropped: u64,
    /// The last line could not be written: that lines were dropped is said with the next one.
    fails: bool,
}

impl LogQueue {
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Self(Arc::default());
        let writer = queue.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.write(out))?;
        Ok(queue)
    }

    /// Takes a line, or several, unless there is no room.
    pub fn push(&self, lines: &[u8]) {
        let mut state = self.lock();
        if state.waiting.len() + state.writing + lines.len() > QUEUE_BYTES {
            state.dropped += 1;
            drop(state);
            count_dropped(1);
            return;
        }
        state.waiting.extend_from_slice(lines);
        drop(state);
        self.0.filled.notify_one();
    }

    /// Waits until every line is written or given up, but no longer than this.
    pub fn drain(&self, at_most: Duration) {
        let end = Instant::now() + at_most;
        let mut state = self.lock();
        while !state.waiting.is_empty() || state.writing > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.0.written.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut out: impl Write) {
        loop {
            let (lines, dropped) = self.take();
            // One by one, so that one that fails takes no other along.
            let mut lost = 0;
            let mut fails = false;
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                fails = write_line(&mut out, line).is_err();
                lost += u64::from(fails);
            }
            // All that waited before the first line was dropped is written, and nothing after it.
            let unsaid =
                if dropped > 0 && (fails || !say_dropped(&mut out, dropped)) { dropped } else { 0 };
            self.done(lost + unsaid, fails || unsaid > 0);
            if lost > 0 {
                count_dropped(lost);
            }
        }
    }

    /// Waits for lines, and takes them all, with the number of those that were dropped after them.
    fn take(&self) -> (Vec<u8>, u64) {
        let mut state = self.lock();
        while state.waiting.is_empty() && (state.dropped == 0 || state.fails) {
            state = self.0.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let lines = std::mem::take(&mut state.waiting);
        state.writing = lines.len();
        (lines, std::mem::take(&mut state.dropped))
    }

    fn done(&self, dropped: u64, fails: bool) {
        let mut state = self.lock();
        state.writing = 0;
        state.dropped += dropped;
        state.fails = fails;
        drop(state);
        self.0.written.notify_all();
    }
}

/// Writes a line, also where the writer refuses to block.
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

fn say_dropped(out: &mut impl Write, dropped: u64) -> bool {
    let text =
        format!("{dropped} log lines were dropped: stderr took them too slowly, or not at all");
    write_line(out, line(Level::ERROR, env!("CARGO_CRATE_NAME"), &text).as_bytes()).is_ok()
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

    /// How long a test waits for the queue's thread.
    const SOON: Duration = Duration::from_secs(10);

    /// Takes a line whenever the test says what is to become of it.
    struct Scripted {
        fates: mpsc::Receiver<io::Result<()>>,
        lines: mpsc::Sender<String>,
    }

    impl Write for Scripted {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Without a test to ask, nothing is written.
            self.fates.recv().unwrap_or(Err(ErrorKind::BrokenPipe.into()))?;
            let _ = self.lines.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Harness {
        queue: LogQueue,
        fates: mpsc::Sender<io::Result<()>>,
        lines: mpsc::Receiver<String>,
    }

    impl Harness {
        fn new() -> Self {
            let (fates, receiver) = mpsc::channel();
            let (sender, lines) = mpsc::channel();
            let out = Scripted { fates: receiver, lines: sender };
            Self { queue: LogQueue::start(out).unwrap(), fates, lines }
        }

        fn let_pass(&self) {
            self.fates.send(Ok(())).unwrap();
        }

        fn fail(&self, error: ErrorKind) {
            self.fates.send(Err(error.into())).unwrap();
        }

        fn next(&self) -> String {
            self.lines.recv_timeout(SOON).unwrap()
        }
    }

    #[test]
    fn a_writer_that_stands_still_holds_nobody_up_and_the_queue_is_bounded_in_bytes() {
        let log = Harness::new();
        let line = [vec![b'x'; 1023], vec![b'\n']].concat();
        let fit = QUEUE_BYTES / line.len();
        for _ in 0..fit + 7 {
            log.queue.push(&line);
        }
        let state = log.queue.lock();
        assert_eq!((state.waiting.len() + state.writing, state.dropped), (QUEUE_BYTES, 7));
        drop(state);
        // The end of the process does not wait for it either.
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
    fn lines_that_cannot_be_written_are_counted_and_the_number_is_said_with_the_next_that_can() {
        let log = Harness::new();
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
    fn a_writer_that_does_not_block_is_tried_again_and_loses_nothing() {
        let log = Harness::new();
        log.fail(ErrorKind::WouldBlock);
        log.fail(ErrorKind::Interrupted);
        log.let_pass();
        log.queue.push(b"one\n");
        assert_eq!(log.next(), "one\n");
    }
}
