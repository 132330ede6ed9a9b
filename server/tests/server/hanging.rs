//! A database that never answers holds up neither presence nor the end of the process.
//!
//! Opening a FIFO waits for its other end for ever, as a file system does whose server is gone.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::harness::{PATIENCE, Server, presence, until};

/// How long a stop may take, with some time for a busy machine.
const STOP_BOUND: Duration = Duration::from_secs(12);

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Whether the process handles SIGTERM by now.
fn handles_sigterm(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << 14) != 0)
}

#[tokio::test]
async fn a_signal_ends_a_server_whose_database_cannot_be_opened() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("presence.db");
    make_fifo(&directory.path().join("presence.db.lock"));
    let url = format!("sqlite://{}", database.display());
    let mut child = presence(&["serve", "--bind", "127.0.0.1:0", "--database", &url])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("it handles signals", async || handles_sigterm(child.id()).then_some(())).await;
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let end = Instant::now() + PATIENCE;
    let status = until("its end", async || {
        let status = child.try_wait().unwrap();
        if Instant::now() > end {
            child.kill().unwrap();
        }
        status
    })
    .await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(!database.exists());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_call_that_hangs() {
    let mut server = Server::start(&["--lease", "3s"]);
    let mut ada = server.ws("/ws/lobby?user=ada").await;
    until("the row", async || (server.database().count("presences") == 1).then_some(())).await;
    // The next call looks at the lock, and opens this one.
    let lock = server.directory().path().join("presence.db.lock");
    fs::remove_file(&lock).unwrap();
    make_fifo(&lock);
    let mut bob = server.ws("/ws/lobby?user=bob").await;
    ada.sees(&["ada", "bob"], 0).await;
    until("it is said", async || {
        let ready = server.get("/readyz").await;
        (ready.status == 503 && ready.json()["database"]["state"] != "ok").then_some(())
    })
    .await;
    ada.message("still here").await;
    bob.next_of("message").await;
    let sent = Instant::now();
    server.signal("TERM");
    assert_eq!(ada.closed().await.0, 1001);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(sent.elapsed() < STOP_BOUND, "{:?}", sent.elapsed());
    let _directory: Arc<_> = server.directory();
}
