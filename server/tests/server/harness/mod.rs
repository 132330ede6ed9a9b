//! Starting the binary, and asking it.

mod http;
mod raw;
mod rows;
mod somebody;
mod view;
mod ws;

use std::{
    fs,
    future::Future,
    io::Read,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub use self::{
    http::Answer,
    raw::{Raw, TEXT, frame},
    rows::{Database, PresenceRow},
    somebody::Somebody,
    view::{Dialect, Listener},
    ws::{Ws, arrival, ending, leave_of, members},
};

/// How long a condition may take to come true.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary with these arguments, and nothing of this process's options.
pub fn presence<S: AsRef<str>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_presence"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PRESENCE_") {
            command.env_remove(name);
        }
    }
    command.args(args.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    command
}

/// Runs a command of the binary to its end.
pub fn run<S: AsRef<str>>(args: &[S]) -> Output {
    finish(&mut presence(args))
}

/// Runs a command that ends by itself; one that does not in time is killed.
pub fn finish(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if !ends(&mut child) {
        panic!("did not end: {command:?}\n{}", stderr(&child.wait_with_output().unwrap()));
    }
    child.wait_with_output().unwrap()
}

/// Runs a command whose output is the test's business to its end, and answers its code.
pub fn code_of(command: &mut Command) -> Option<i32> {
    let mut child = command.spawn().unwrap();
    assert!(ends(&mut child), "did not end: {command:?}");
    child.wait().unwrap().code()
}

/// Whether it ends by itself in time; else it is killed.
fn ends(child: &mut Child) -> bool {
    let end = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command that must succeed, and answers what it prints.
pub fn success<S: AsRef<str>>(args: &[S]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim_end().to_owned()
}

/// Runs a command that must fail with this code, saying why and without a panic.
pub fn failure<S: AsRef<str>>(code: i32, args: &[S]) -> String {
    let output = run(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(!said.trim().is_empty());
    said
}

/// What a server has written to stderr so far.
#[derive(Default)]
struct Log {
    text: Mutex<(String, bool)>,
    more: Condvar,
}

impl Log {
    /// Waits for text that has what is wanted; `None` if the process ended without.
    fn wait<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        let end = Instant::now() + PATIENCE;
        let mut text = self.text.lock().unwrap();
        loop {
            if let Some(found) = wanted(&text.0) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if text.1 || left.is_zero() {
                return None;
            }
            text = self.more.wait_timeout(text, left).unwrap().0;
        }
    }
}

/// A running server, killed when it is dropped.
pub struct Server {
    child: Child,
    log: Arc<Log>,
    address: SocketAddr,
    directory: Arc<TempDir>,
}

impl Server {
    /// Starts a server with these further flags.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), flags)
    }

    /// Starts a server on the database of this directory.
    pub fn start_in(directory: Arc<TempDir>, flags: &[&str]) -> Self {
        Self::start_with(directory, flags, &[])
    }

    /// Starts a server with these further environment variables.
    pub fn start_with(directory: Arc<TempDir>, flags: &[&str], env: &[(&str, &str)]) -> Self {
        let url = url_in(&directory);
        let mut command = presence(&["serve", "--bind", "127.0.0.1:0", "--workers", "2"]);
        command.args(["--database", &url]).args(flags).envs(env.iter().copied());
        Self::spawn(directory, command)
    }

    /// Starts a server as the command says, which has its database in this directory.
    pub fn spawn(directory: Arc<TempDir>, mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::<Log>::default();
        let mut pipe = child.stderr.take().unwrap();
        let heard = log.clone();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            loop {
                let n = pipe.read(&mut bytes).unwrap_or(0);
                let mut text = heard.text.lock().unwrap();
                text.0.push_str(&String::from_utf8_lossy(&bytes[..n]));
                text.1 = n == 0;
                heard.more.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        let address = log.wait(|text| {
            let line = text.lines().find_map(|line| line.split_once("listening on http://"))?;
            line.1.trim().parse().ok()
        });
        let Some(address) = address else {
            let _ = child.kill();
            panic!("the server does not listen:\n{}", log.text.lock().unwrap().0)
        };
        Self { child, log, address, directory }
    }

    /// Starts a server as the command says, on this address, whose stderr is the test's business.
    pub fn spawn_unheard(
        directory: Arc<TempDir>,
        mut command: Command,
        address: SocketAddr,
    ) -> Self {
        let child = command.spawn().unwrap();
        let server = Self { child, log: Arc::default(), address, directory };
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "the server does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn directory(&self) -> Arc<TempDir> {
        self.directory.clone()
    }

    pub fn database(&self) -> Database {
        Database::open(&self.database_path())
    }

    pub fn database_path(&self) -> PathBuf {
        self.directory.path().join("presence.db")
    }

    pub fn database_url(&self) -> String {
        url_in(&self.directory)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.text.lock().unwrap().0.clone()
    }

    /// Waits until it has logged the text.
    pub fn logs(&self, text: &str) {
        let found = self.log.wait(|log| log.contains(text).then_some(()));
        assert!(found.is_some(), "{text} is not in the log:\n{}", self.log());
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("sh").args(["-c", "kill -$0 $1", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// How it has ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(Instant::now() < end, "the server does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it as a power cut would.
    pub fn kill(mut self) -> Arc<TempDir> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.directory()
    }

    /// How many connections it has a file descriptor of.
    pub fn connections(&self) -> usize {
        let links = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let target = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
        let inode = |link: PathBuf| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        };
        let sockets: Vec<String> = links.filter_map(target).filter_map(inode).collect();
        // Tokio's threads have sockets among themselves.
        let local = fs::read_to_string("/proc/net/unix").unwrap();
        let local: Vec<_> = local.lines().filter_map(|l| l.split_whitespace().nth(6)).collect();
        let foreign = sockets.iter().filter(|inode| !local.contains(&inode.as_str())).count();
        foreign.checked_sub(1).expect("the socket that listens")
    }

    /// Its resident memory, in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}

fn url_in(directory: &TempDir) -> String {
    format!("sqlite://{}", directory.path().join("presence.db").display())
}

/// Waits until the question is answered, asking again and again.
pub async fn until<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, ask).await
}

/// As [`until`], with a bound of its own.
pub async fn until_within<T>(
    bound: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + bound;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < end, "it did not come to be: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Bounds what waits for the server.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("it did not come: {what}"),
    }
}
