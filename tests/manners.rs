//! A start that the process does not allow is an error in words, and no panic.
#![cfg(target_os = "linux")]

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    process::Command,
    time::Duration,
};

use actix_presence::{
    PresenceConfig, StartError,
    testing::{MemoryDatabase, MemoryHub},
};

#[test]
fn without_an_actix_system_a_start_says_what_to_write() {
    let refused = PresenceConfig::new("sqlite::memory:").start().unwrap_err();
    assert!(matches!(refused, StartError::NoSystem), "{refused:?}");
    let text = refused.to_string();
    for part in ["#[actix_web::main]", "#[tokio::main]", "System::new().block_on"] {
        assert!(text.contains(part), "{text}");
    }
    let database = MemoryDatabase::new();
    let [writer, reader] = [(); 2].map(|()| Box::new(database.store()));
    let bus = Box::new(MemoryHub::new().bus());
    let refused = PresenceConfig::default().start_shared(writer, reader, bus);
    assert!(matches!(refused, Err(StartError::NoSystem)));
}

#[tokio::test]
async fn under_tokio_alone_nothing_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("presence.db");
    let refused = PresenceConfig::new(format!("sqlite://{}", file.display())).start();
    assert!(matches!(refused, Err(StartError::NoSystem)));
    assert!(!file.exists());
}

/// Names the database to the process that has a limit of threads.
const DATABASE: &str = "DATABASE_OF_THE_TEST";

/// A limit counts the threads of a user, and not those of root: only root can become somebody else.
#[test]
fn a_limit_of_threads_is_an_error_until_there_are_enough() {
    if let Ok(database) = env::var(DATABASE) {
        return start_and_say(&database);
    }
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (path, user) = (directory.path(), 0x5000_0000 + std::process::id());
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let binary = path.join("binary");
    // A copy made by this process could not be run while another thread starts a process.
    let copied = Command::new("cp").arg(env::current_exe().unwrap()).arg(&binary).status().unwrap();
    assert!(copied.success());
    chown(path, Some(user), Some(user)).unwrap();
    let said = |threads: usize| {
        let output = Command::new("setpriv")
            .args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"])
            .args(["prlimit", &format!("--nproc={threads}")])
            .arg(&binary)
            .args(["--exact", "a_limit_of_threads_is_an_error_until_there_are_enough"])
            .args(["--nocapture", "--test-threads=1"])
            .env(DATABASE, format!("sqlite://{}", path.join("presence.db").display()))
            .current_dir(path)
            .output()
            .unwrap();
        let said =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        let said = said.concat();
        assert!(output.status.success() && !said.contains("panicked"), "{threads}: {said}");
        said
    };
    let enough = (1..20).find(|threads| {
        let said = said(*threads);
        let started = said.contains("it started");
        assert!(started || said.contains("refused: cannot start a thread"), "{threads}: {said}");
        assert!(started || said.contains("ulimit -u"), "{threads}: {said}");
        started
    });
    assert!(enough.is_some_and(|threads| threads > 2), "{enough:?}");
}

/// Starts a system, and says on stdout what came of it.
fn start_and_say(database: &str) {
    actix::System::new().block_on(async {
        match PresenceConfig::new(database).start() {
            Ok(presence) => {
                presence.shutdown(Duration::from_secs(5)).await.unwrap();
                println!("it started");
            }
            Err(refused) => println!("refused: {refused}"),
        }
    });
}
