//! Apps that are asked to stop by real signals: their clients are told, their rows are written, and the
//! process ends in order.
//!
//! An app is a process of its own: this test program again, in which the test `signals::app` runs one of them.

/// The app of the README, on a free port.
mod readme_app {
    include!("readme_app.rs");

    pub fn start() -> ExitCode {
        main()
    }
}

use std::{fs, net::TcpListener, path::Path, process::ExitCode};

use diesel::{
    Connection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types::Text,
};
use rustix::process::Signal;

use crate::{
    chat_on_actix_ws, embed,
    process::{APP, Process, close, closed, connect},
};

/// The process of an app; the tests start it.
#[test]
#[ignore = "it is a part of the other tests"]
fn app() -> ExitCode {
    let Ok(name) = std::env::var(APP) else { return ExitCode::SUCCESS };
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let ended = match &*name {
        // Its own exit code is that of the process.
        "readme" => return readme_app::start(),
        "embed" => actix::System::new().block_on(embed::run(listener())),
        "actix-ws" => actix::System::new().block_on(chat_on_actix_ws::run(listener())),
        other => panic!("{other}"),
    };
    ended.unwrap();
    ExitCode::SUCCESS
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
    let (client, _) = connect(app.port().await, "/ws/lobby", "").await.unwrap();
    close(client).await;
}

#[actix::test]
async fn a_start_of_the_readmes_app_that_fails_says_why_in_one_line() {
    let mut first = Process::start("readme");
    first.port().await;
    let mut second = Process::command("readme");
    let second = second.current_dir(&first.directory).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    let why = said.lines().next().unwrap();
    assert!(why.starts_with("another server uses this database ("), "{said}");
    first.send(Signal::TERM);
    assert!(first.end().await.success());
}

/// Stops an app that has a client, and returns what its database has then, if it is in a file.
async fn stop_by(name: &str, signal: Signal) -> (Vec<String>, Vec<String>) {
    let mut app = Process::start(name);
    let (mut client, _) = connect(app.port().await, "/ws/lobby", "").await.unwrap();
    app.send(signal);
    assert_eq!(closed(&mut client).await, Some(1001), "{name}, {signal:?}");
    assert!(app.end().await.success(), "{name}, {signal:?}");
    rows(&app)
}

/// Rooms and presences in its database.
fn rows(app: &Process) -> (Vec<String>, Vec<String>) {
    #[derive(QueryableByName)]
    struct Name {
        #[diesel(sql_type = Text)]
        name: String,
    }
    let path = app.directory.path().join("presence.db");
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
