//! A PostgreSQL of the tests' own: private, on a free loopback port, gone when the test process is.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl,
    connection::SimpleConnection,
    sql_query,
    sql_types::{Integer, Text},
};
use tempfile::TempDir;

/// A server of PostgreSQL with its files in a temporary directory.
///
/// Role `presence` owns the databases, and is no superuser; nobody needs a password.
pub struct Postgres {
    directory: TempDir,
    binaries: PathBuf,
    /// Whom it runs as, if the tests run as root: it refuses to be that.
    user: Option<(u32, u32)>,
    /// Beside those that are always the same.
    settings: &'static [&'static str],
    port: u16,
    postmaster: Mutex<Option<Child>>,
    databases: AtomicU32,
    guard: Mutex<Guard>,
}

/// A process that ends the server and removes its files when the test process is gone, whichever way.
struct Guard {
    child: Child,
    /// Open as long as the test process lives.
    alive: Option<ChildStdin>,
}

/// Waits for the end of its input, then ends the server of the directory, if it is still that.
const GUARD: &str = r#"
    cat >/dev/null
    pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
    if [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$1/data"; then
        kill -QUIT "$pid"
        kill -CONT "$pid"
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    fi
    rm -rf "$1"
"#;

impl Postgres {
    /// Starts a server for which nothing has to survive a power cut.
    pub fn start() -> Self {
        Self::with(&["fsync=off", "full_page_writes=off"])
    }

    /// Starts a server with these settings.
    pub fn with(settings: &'static [&'static str]) -> Self {
        let binaries = binaries();
        let directory = tempfile::Builder::new().prefix("presence-postgres-").tempdir().unwrap();
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // An interrupt from the keyboard is for the tests.
            .process_group(0)
            .spawn()
            .unwrap();
        let alive = guard.stdin.take();
        let mut postgres = Self {
            directory,
            binaries,
            user,
            settings,
            port: 0,
            postmaster: Mutex::new(None),
            databases: AtomicU32::new(0),
            guard: Mutex::new(Guard { child: guard, alive }),
        };
        postgres.initialise();
        // Somebody else may take the port before the server does.
        for _ in 0..5 {
            postgres.port = free_port();
            if postgres.try_start() {
                postgres.admin("CREATE ROLE presence LOGIN");
                return postgres;
            }
        }
        panic!("PostgreSQL does not start:\n{}", postgres.log());
    }

    /// The server that the tests of this process share, each in a database of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// The URL of a new, empty database.
    pub fn fresh_database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        self.admin(&format!("CREATE DATABASE presence_{number} OWNER presence TEMPLATE template0"));
        format!("postgres://presence@127.0.0.1:{}/presence_{number}", self.port)
    }

    /// The same URL for a superuser.
    pub fn as_superuser(url: &str) -> String {
        url.replace("://presence@", "://postgres@")
    }

    /// Stops the server at once, as a crash does.
    pub fn stop(&self) {
        let mut postmaster = self.postmaster();
        if let Some(mut child) = postmaster.take() {
            signal("QUIT", &[child.id()]);
            child.wait().unwrap();
        }
    }

    /// Starts the server again, where it was, with what it had.
    pub fn start_again(&self) {
        assert!(self.postmaster().is_none(), "it runs");
        assert!(self.try_start(), "PostgreSQL does not start again:\n{}", self.log());
    }

    /// Lets the server stand still: it takes connections, and answers nothing.
    pub fn pause(&self) {
        signal("STOP", &self.processes());
    }

    /// Lets the server go on.
    pub fn resume(&self) {
        signal("CONT", &self.processes());
    }

    /// Lets the processes stand still that serve the connections of this name. Returns how many.
    pub fn pause_backends(&self, application: &str) -> usize {
        #[derive(QueryableByName)]
        struct Backend {
            #[diesel(sql_type = Integer)]
            pid: i32,
        }
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        let backends: Vec<Backend> =
            sql_query("SELECT pid FROM pg_stat_activity WHERE application_name = $1")
                .bind::<Text, _>(application)
                .load(&mut PgConnection::establish(&url).unwrap())
                .unwrap();
        let backends: Vec<u32> = backends.into_iter().map(|one| one.pid as u32).collect();
        signal("STOP", &backends);
        backends.len()
    }

    /// Runs SQL in the database `postgres`, as superuser.
    pub fn admin(&self, sql: &str) {
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        PgConnection::establish(&url).unwrap().batch_execute(sql).unwrap();
    }

    /// What the server has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn postmaster(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's first process, and its children.
    fn processes(&self) -> Vec<u32> {
        let Some(first) = self.postmaster().as_ref().map(Child::id) else { return Vec::new() };
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        [first].into_iter().chain(children).collect()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A directory for the user that the server runs as.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, name: &str) -> Command {
        self.command_of(self.binaries.join(name))
    }

    /// A command that is run as the server is.
    pub fn command_of(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn initialise(&self) {
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(self.data());
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn try_start(&self) -> bool {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("unix_socket_directories={}", self.directory.path().display()),
            "shared_buffers=64MB",
            "max_connections=100",
        ] {
            command.arg("-c").arg(setting);
        }
        for setting in self.settings {
            command.arg("-c").arg(setting);
        }
        command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let mut child = command.spawn().unwrap();
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(30) {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if PgConnection::establish(&url).is_ok() {
                *self.postmaster() = Some(child);
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        signal("QUIT", &[child.id()]);
        child.wait().unwrap();
        false
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.resume();
        self.stop();
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard.alive = None;
        let _ = guard.child.wait();
    }
}

/// Where the programs are: in the path, or where Debian has them.
fn binaries() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    places.extend(versions.into_iter().rev());
    let has_both =
        |place: &PathBuf| ["initdb", "postgres"].iter().all(|name| place.join(name).exists());
    let place = places.into_iter().find(has_both);
    place.expect("these tests run a PostgreSQL: install the package `postgresql`")
}

/// A user and group that are not root's, if the tests run as root.
fn unprivileged() -> Option<(u32, u32)> {
    let id = |flags: &[&str]| {
        let output = Command::new("id").args(flags).output().unwrap();
        let id = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| id.trim().parse().unwrap())
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    ["postgres", "nobody"].iter().find_map(|user| Some((id(&["-u", user])?, id(&["-g", user])?)))
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn signal(name: &str, processes: &[u32]) {
    let mut kill = Command::new("kill");
    kill.arg(format!("-{name}")).args(processes.iter().map(u32::to_string));
    // Some may have ended by themselves.
    let _ = kill.stderr(Stdio::null()).status();
}
