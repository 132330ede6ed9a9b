//! Apps that are asked to stop by real signals: their clients are told, their rows are written, and the
//! process ends in order.
//!
//! An app is a process of its own: this test program again, in which the test `app` runs one of them.

#[path = "../../examples/actix_ws.rs"]
mod chat_on_actix_ws;
#[path = "../../examples/embed.rs"]
mod embed;
/// The app of the README, on a free port.
mod readme_app {
    include!("readme_app.rs");

    pub fn run() -> Result<(), Box<dyn std::error::Error>> {
        main()
    }
}

use std::{
    fs, io,
    net::TcpListener,
    path::Path,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types::Text,
};
use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

/// Less than the 30 seconds for which actix-server waits for sockets that nobody closes.
const SOON: Duration = Duration::from_secs(15);

/// Which app the process is to run.
const APP: &str = "PRESENCE_TEST_APP";

/// The process of an app; the tests start it.
#[test]
#[ignore = "it is a part of the other tests"]
fn app() {
    let Ok(name) = std::env::var(APP) else { return };
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let ended = match &*name {
        "readme" => readme_app::run(),
        "embed" => actix::System::new().block_on(embed::run(listener())),
        "actix-ws" => actix::System::new().block_on(chat_on_actix_ws::run(listener())),
        other => panic!("{other}"),
    };
    ended.unwrap();
}

#[test]
fn the_app_of_the_readme_is_the_one_that_is_tested_here() {
    let tested =
        include_str!("readme_app.rs").replace("(\"127.0.0.1\", 0)", "(\"127.0.0.1\", 8080)");
    for page in ["README.md", "docs/embedding.md"] {
        let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
        let text = fs::read_to_string(Path::new(&root).join(page)).unwrap();
        assert!(text.contains(&format!("```rust,no_run\n{tested}```\n")), "{page}");
    }
}

#[actix::test]
async fn sigterm_closes_the_sockets_of_the_readmes_app_and_writes_its_rows() {
    let rows = stop_by("readme", Signal::TERM).await;
    assert_eq!(rows, (vec!["lobby".to_owned()], Vec::new()), "rooms and presences");
}

#[actix::test]
async fn sigint_closes_the_sockets_of_the_readmes_app_and_writes_its_rows() {
    let rows = stop_by("readme", Signal::INT).await;
    assert_eq!(rows, (vec!["lobby".to_owned()], Vec::new()), "rooms and presences");
}

#[actix::test]
async fn sigterm_and_sigint_close_the_sockets_of_each_example() {
    for name in ["embed", "actix-ws"] {
        for signal in [Signal::TERM, Signal::INT] {
            stop_by(name, signal).await;
        }
    }
}

#[actix::test]
async fn the_readmes_app_answers_a_close_with_its_code() {
    let app = Process::start("readme");
    let mut client = connect(app.port().await).await;
    let bye = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    client.send(Message::Close(Some(bye))).await.unwrap();
    assert_eq!(closed(&mut client).await, Some(1000));
}

/// Stops an app that has a client, and returns what its database has then, if it is in a file.
async fn stop_by(name: &str, signal: Signal) -> (Vec<String>, Vec<String>) {
    let mut app = Process::start(name);
    let mut client = connect(app.port().await).await;
    app.send(signal);
    assert_eq!(closed(&mut client).await, Some(1001), "{name}, {signal:?}");
    assert!(app.end().await.success(), "{name}, {signal:?}");
    app.rows()
}

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A client that is in the lobby, and has been told so.
async fn connect(port: u16) -> Client {
    let connecting = connect_async(format!("ws://127.0.0.1:{port}/ws/lobby"));
    let (mut client, _) = timeout(SOON, connecting).await.unwrap().unwrap();
    let first = timeout(SOON, client.next()).await.unwrap().unwrap().unwrap();
    assert!(first.is_text(), "{first}");
    client
}

/// The code with which the server closes; none if the connection just breaks off, which browsers call 1006.
async fn closed(client: &mut Client) -> Option<u16> {
    loop {
        match timeout(SOON, client.next()).await.expect("it is closed in time")? {
            Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// An app in a process and a directory of its own, killed when it is dropped.
struct Process {
    child: Child,
    directory: tempfile::TempDir,
}

impl Process {
    fn start(app: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["app", "--exact", "--ignored", "--nocapture"]).env(APP, app);
        let child = command.current_dir(&directory).spawn().unwrap();
        Self { child, directory }
    }

    /// The port on which it listens, as soon as it does.
    async fn port(&self) -> u16 {
        let listening = async {
            loop {
                if let Ok(Some(port)) = listening_port(self.child.id()) {
                    return port;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, listening).await.expect("it listens in time")
    }

    fn send(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    async fn end(&mut self) -> ExitStatus {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, ended).await.expect("it ends in time")
    }

    /// Rooms and presences in its database.
    fn rows(&self) -> (Vec<String>, Vec<String>) {
        #[derive(QueryableByName)]
        struct Name {
            #[diesel(sql_type = Text)]
            name: String,
        }
        let path = self.directory.path().join("presence.db");
        if !path.exists() {
            return (Vec::new(), Vec::new());
        }
        let mut database = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        let mut names = |query: &str| {
            let rows: Vec<Name> = sql_query(query).load(&mut database).unwrap();
            rows.into_iter().map(|row| row.name).collect()
        };
        let rooms = names("SELECT channel_name AS name FROM rooms");
        (rooms, names("SELECT channel_name AS name FROM presences"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The TCP port on which a process listens, as Linux tells it.
fn listening_port(process: u32) -> io::Result<Option<u16>> {
    let sockets: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{process}/net/tcp"))?;
    Ok(table.lines().skip(1).find_map(|line| {
        // Number, own address, other address, state (0A: it listens), and the inode as the tenth.
        let columns: Vec<_> = line.split_whitespace().collect();
        let is_ours = columns.get(3) == Some(&"0A")
            && sockets.iter().any(|it| columns.get(9) == Some(&&**it));
        let (_, port) = columns.get(1)?.split_once(':')?;
        is_ours.then(|| u16::from_str_radix(port, 16).ok())?
    }))
}
