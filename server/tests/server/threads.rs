//! A limit of threads is one line on stderr, and no panic.

use crate::harness::{Server, Somebody, finish, stderr};

/// What it says when it ends with code 1.
fn refusal(somebody: &Somebody, threads: usize, args: &[&str]) -> String {
    let output = finish(&mut somebody.run_with(threads, args));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{threads} threads: {said}");
    assert!(!said.contains("panicked"), "{threads} threads: {said}");
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{threads} threads: {said}");
    assert!(errors[0].contains("cannot start a thread"), "{threads} threads: {said}");
    assert!(errors[0].contains("ulimit -u"), "{threads} threads: {said}");
    errors[0].to_owned()
}

#[tokio::test]
async fn a_server_with_too_few_threads_says_how_many_it_needs_and_starts_with_them() {
    let Some(somebody) = Somebody::new() else { return };
    let url = somebody.url();
    let args = ["serve", "--bind", "127.0.0.1:0", "--workers", "2", "--database", &url];
    let said = refusal(&somebody, 1, &args);
    let needed = said.split_once(" are needed").unwrap().0.rsplit(' ').next().unwrap();
    let needed: usize = needed.parse().unwrap();
    for threads in 2..=needed {
        refusal(&somebody, threads, &args);
        assert!(!somebody.database().exists(), "nothing was begun");
    }
    // And the main thread.
    let command = somebody.run_with(needed + 1, &args);
    let mut server = Server::spawn(somebody.directory(), command);
    let mut ada = server.ws("/ws/lobby?user=ada").await;
    ada.sees(&["ada"], 0).await;
    let readiness = server.get("/readyz").await;
    assert_eq!(readiness.status, 200, "{}", readiness.body);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_command_that_cannot_start_a_thread_says_so() {
    let Some(somebody) = Somebody::new() else { return };
    let url = somebody.url();
    refusal(&somebody, 1, &["migrate", "--database", &url]);
    assert!(finish(&mut somebody.run_with(2, &["migrate", "--database", &url])).status.success());
    for command in ["rooms", "prune-rooms", "prune-presences"] {
        refusal(&somebody, 1, &[command, "--database", &url]);
    }
}
