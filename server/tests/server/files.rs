//! What happens to the files of the database: who may not use them, what they may not grow to, who deletes
//! them.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use actix_presence::PresenceConfig;

use crate::harness::{
    Server, Somebody, finish, presence, run, stderr, success, until, until_within,
};

/// Three times as long as the log is left alone after an attempt to empty it.
const LONG: Duration = Duration::from_secs(60);

const COMMANDS: [&[&str]; 4] =
    [&["migrate"], &["rooms"], &["prune-rooms"], &["serve", "--bind", "127.0.0.1:0"]];

/// What a command says when it ends with code 1: the last line.
fn refusal(command: &mut Command) -> String {
    let output = finish(command);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

#[test]
fn files_that_may_not_be_used_are_named_with_the_error_of_the_system() {
    let Some(somebody) = Somebody::new() else { return };
    let (url, database) = (somebody.url(), somebody.database());
    let refused = |whose: &str| {
        for command in COMMANDS {
            let args = [command, &["--database", &url]].concat();
            let said = refusal(&mut somebody.run(&args));
            assert!(said.contains("Permission denied"), "{whose}, {command:?}: {said}");
            assert!(said.contains(somebody.path().to_str().unwrap()), "{whose}: {said}");
        }
    };
    let is = |mode| fs::set_permissions(&database, fs::Permissions::from_mode(mode)).unwrap();
    success(&["migrate", "--database", &url]);
    is(0o600);
    refused("a file of root's");
    is(0o644);
    let args = ["prune-rooms", "--database", &url];
    let said = refusal(&mut somebody.run(&args));
    assert!(said.contains("Permission denied") && said.contains("presence.db"), "{said}");
    is(0o666);
    for ending in ["-wal", "-shm", ".lock"] {
        let _ = fs::remove_file(beside(&database, ending));
    }
    chown(somebody.path(), Some(0), Some(0)).unwrap();
    refused("a directory of root's");
    somebody.mode(0o700);
    // Whether there is a file cannot be seen.
    let Some(stranger) = Somebody::new() else { return };
    for command in COMMANDS {
        let said = refusal(&mut stranger.run(&[command, &["--database", &url]].concat()));
        assert!(said.contains("Permission denied"), "{command:?}: {said}");
        assert!(said.contains(somebody.path().to_str().unwrap()), "{command:?}: {said}");
    }
}

#[tokio::test]
async fn a_file_that_has_reached_its_limit_is_a_full_disk_until_the_limit_is_raised() {
    let server = Server::start(&[]);
    let _ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    let limit = |bytes: &str| {
        let pid = server.pid().to_string();
        let fsize = format!("--fsize={bytes}:unlimited");
        assert!(Command::new("prlimit").args(["--pid", &pid, &fsize]).status().unwrap().success());
    };
    limit("1000");
    let _bob = server.ws("/ws/lobby?user=bob").await;
    until("it is said", async || {
        let ready = server.get("/readyz").await;
        (ready.status == 503 && ready.json()["database"]["state"] == "full").then_some(())
    })
    .await;
    limit("unlimited");
    until("the row", async || (server.database().count("presences") == 2).then_some(())).await;
    until("readiness", async || (server.get("/readyz").await.status == 200).then_some(())).await;
}

/// While somebody reads, the log can only grow; afterwards it must not stay full.
#[tokio::test]
async fn a_log_that_has_reached_its_limit_is_emptied_once_nobody_reads_it() {
    let server = Server::start(&[]);
    let mut ada = server.ws("/ws/lobby?user=ada&presence=none").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    let mut reader = server.database();
    reader.execute("BEGIN");
    assert_eq!(reader.count("presences"), 1);
    let pid = server.pid().to_string();
    let limited =
        Command::new("prlimit").args(["--pid", &pid, "--fsize=262144:unlimited"]).status();
    assert!(limited.unwrap().success());
    let mut number = 0;
    until_within(LONG, "it is full", async || {
        number += 1;
        let info = serde_json::json!({"number": number, "text": "x".repeat(3000)});
        ada.json(serde_json::json!({"type": "update", "info": info})).await;
        let ready = server.get("/readyz").await;
        (ready.status == 503 && ready.json()["database"]["state"] == "full").then_some(())
    })
    .await;
    reader.execute("COMMIT");
    until_within(LONG, "readiness", async || {
        (server.get("/readyz").await.status == 200).then_some(())
    })
    .await;
}

#[test]
fn a_command_at_the_limit_of_file_sizes_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("presence.db").display());
    for limit in ["0", "5000"] {
        let served = presence(&["migrate", "--database", &url]);
        let mut command = Command::new("prlimit");
        command.arg(format!("--fsize={limit}")).arg(served.get_program()).args(served.get_args());
        let said = refusal(&mut command);
        assert!(said.contains("ulimit -f"), "{said}");
    }
}

#[tokio::test]
async fn a_second_server_is_refused_also_after_the_files_were_deleted() {
    let server = Server::start(&["--lease", "1s"]);
    let _ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    let database = server.database_path();
    for ending in ["", "-wal", "-shm", ".lock"] {
        fs::remove_file(beside(&database, ending)).unwrap();
    }
    server.logs("a file of the database was deleted or replaced");
    until("the lock", async || {
        let lock = File::open(beside(&database, ".lock")).ok()?;
        lock.try_lock().is_err().then_some(())
    })
    .await;
    let second = run(&["serve", "--bind", "127.0.0.1:0", "--database", &server.database_url()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("another server uses this database"), "{}", stderr(&second));
    until("the row", async || {
        let rows = database.exists().then(|| server.database().try_presences().ok())??;
        (rows.len() == 1).then_some(())
    })
    .await;
}

#[test]
fn an_app_that_waits_for_the_lock_starts_when_the_server_before_it_has_stopped() {
    let server = Server::start(&[]);
    let (_directory, url) = (server.directory(), server.database_url());
    // The first line says that the lock is waited for.
    let stop = move || {
        server.signal("TERM");
        std::io::stderr()
    };
    let subscriber = tracing_subscriber::fmt().with_writer(stop).finish();
    actix::System::new().block_on(async {
        let start = || PresenceConfig::new(url).wait_for_lock(LONG).start();
        let presence = tracing::subscriber::with_default(subscriber, start).unwrap();
        presence.shutdown(Duration::from_secs(10)).await.unwrap();
    });
}

#[tokio::test]
async fn a_server_that_has_taken_the_file_is_named() {
    let server = Server::start(&["--lease", "1h"]);
    let _ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    fs::remove_file(beside(&server.database_path(), ".lock")).unwrap();
    // Before the first one looks again.
    let second = Server::start_in(server.directory(), &[]);
    let _bob = server.ws("/ws/lobby?user=bob").await;
    until("it is said", async || {
        let ready = server.get("/readyz").await;
        (ready.status == 503 && ready.json()["database"]["state"] == "taken").then_some(())
    })
    .await;
    server.logs("another server has taken the database");
    let _directory = second.kill();
    until("both rows", async || (server.database().count("presences") == 2).then_some(())).await;
}

#[tokio::test]
async fn a_deleted_log_is_noticed_and_made_up_for() {
    let server = Server::start(&["--lease", "1s"]);
    let _ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    fs::remove_file(beside(&server.database_path(), "-wal")).unwrap();
    server.logs("a file of the database was deleted or replaced");
    until("the row", async || {
        let rows = server.database().try_presences().ok()?;
        (rows.len() == 1).then_some(())
    })
    .await;
    until("readiness", async || (server.get("/readyz").await.status == 200).then_some(())).await;
}

#[test]
fn a_file_system_without_shared_memory_is_said_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("presence.db");
    // Nothing can be mapped here.
    fs::create_dir(beside(&database, "-shm")).unwrap();
    let url = format!("sqlite://{}", database.display());
    let said = refusal(&mut presence(&["serve", "--bind", "127.0.0.1:0", "--database", &url]));
    assert!(said.contains("shared memory") && said.contains("local disk"), "{said}");
}
