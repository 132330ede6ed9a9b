//! Health of a registry that is blocked or dead.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};

use actix_presence::{
    Clock,
    testing::{MemoryDatabase, MemoryHub},
};
use chrono::TimeDelta;

use super::*;

/// Three times what the server takes to notice.
const SILENCE: Duration = Duration::from_secs(3 * 10);
const READY_TIMEOUT: Duration = Duration::from_secs(3 * 2);

/// A presence system whose hook blocks the registry until the sender is dropped.
fn stalled() -> (PresenceHandle, mpsc::Sender<()>) {
    let (release, hook) = mpsc::channel();
    let hook = Mutex::new(hook);
    let config = PresenceConfig::new("sqlite::memory:").authorize(move |_, _, _| {
        let _ = hook.lock().unwrap().recv();
        Decision::Allow
    });
    (config.start().unwrap(), release)
}

#[actix::test]
async fn a_blocked_registry_is_not_ready_at_once_and_dead_after_ten_seconds() {
    let (presence, release) = stalled();
    let app = app!(presence);
    assert_eq!(send(&app, get("/healthz")).await.status, 200);
    let (probe, _) = Probe::<Heard>::new();
    let room = RoomName::new("lobby").unwrap();
    presence.registry().do_send(Join::new(room, ConnectionId::new(), probe.recipient()));

    let begun = Instant::now();
    let answer = send(&app, get("/readyz")).await;
    assert!(begun.elapsed() < READY_TIMEOUT, "{:?}", begun.elapsed());
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (503, &json!("busy")));
    assert!(answer.json()["reason"].as_str().unwrap().contains("within 2 s"));

    let answer = loop {
        let asked = Instant::now();
        let answer = send(&app, get("/healthz")).await;
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        if answer.status == 503 {
            break answer;
        }
        assert!(begun.elapsed() < SILENCE, "it is not told");
        actix::clock::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(answer.json()["status"], "dead");
    assert!(answer.json()["reason"].as_str().unwrap().contains("has not answered for 1"));

    drop(release);
    let begun = Instant::now();
    while send(&app, get("/healthz")).await.status != 200 {
        assert!(begun.elapsed() < SILENCE, "it lives again");
        actix::clock::sleep(Duration::from_millis(100)).await;
    }
}

#[actix::test]
async fn a_registry_that_has_panicked_is_dead_at_once() {
    let (panics, clock) = (Arc::<AtomicBool>::default(), Clock::system());
    let doom = panics.clone();
    let clock = Clock::from_fn(move || {
        assert!(!doom.load(SeqCst), "as the test says");
        clock.now()
    });
    let presence = PresenceConfig::new("sqlite::memory:").clock(clock).start().unwrap();
    let app = app!(presence);
    panics.store(true, SeqCst);
    presence.closed().await.unwrap_err();
    for path in ["/healthz", "/readyz"] {
        let answer = send(&app, get(path)).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (503, &json!("dead")));
        assert!(answer.json()["reason"].as_str().unwrap().contains("registry"));
    }
}

/// The times of presences are corrected, so it is nothing to take the node out of service for.
#[actix::test]
async fn a_clock_that_differs_from_the_databases_is_shown_and_does_not_make_the_node_unready() {
    let (clock, database_clock) = (ManualClock::new(), ManualClock::new());
    clock.set_wall(TimeDelta::minutes(3));
    let database = MemoryDatabase::with_clock(database_clock.clock());
    let [writer, reader] = [(); 2].map(|()| Box::new(database.store()));
    let config = PresenceConfig::default().clock(clock.clock());
    let bus = Box::new(MemoryHub::new().bus());
    let presence = config.start_shared(writer, reader, bus).unwrap();
    let metrics = Some(Metrics::install().unwrap());
    let app = app!(presence, ServerOptions { metrics, ..options() });
    let begun = Instant::now();
    let ready = loop {
        let answer = send(&app, get("/readyz")).await;
        if answer.status == 200 {
            break answer.json();
        }
        assert!(begun.elapsed() < SILENCE, "{}", answer.json());
        actix::clock::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(ready["clock"], json!({"ahead_seconds": 180.0}));
    let shown = String::from_utf8(send(&app, get("/metrics")).await.body).unwrap();
    assert!(shown.contains("\npresence_clock_offset_seconds 180\n"), "{shown}");
}
