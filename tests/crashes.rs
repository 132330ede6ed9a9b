//! A part that ends by itself ends the presence system, and that is told.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use actix_presence::*;
use common::secs;
use tokio::time::timeout;

/// How long it may take until a crash is told, on a busy machine.
const SOON: Duration = secs(10);

/// A system whose actors panic from a moment on.
fn doomed() -> (PresenceHandle, Arc<AtomicBool>) {
    let panics = Arc::<AtomicBool>::default();
    let (clock, doom) = (Clock::system(), panics.clone());
    let clock = Clock::from_fn(move || {
        assert!(!doom.load(SeqCst), "as the test says");
        clock.now()
    });
    let presence = PresenceConfig::new("sqlite::memory:").clock(clock).start().unwrap();
    (presence, panics)
}

#[actix::test]
async fn a_registry_that_panics_is_told_and_answers_nobody() {
    let (presence, panics) = doomed();
    assert_eq!(presence.crashed(), None);
    let waiting = presence.clone();
    let closed = actix::spawn(async move { waiting.closed().await });
    panics.store(true, SeqCst);
    assert!(presence.registry().send(GetStatus).await.is_err());
    let closed = timeout(SOON, closed).await.unwrap().unwrap();
    assert_eq!(closed, Err(Crashed::Registry));
    assert_eq!(presence.crashed(), Some(Crashed::Registry));
    // A shutdown that comes too late changes nothing about it.
    assert!(presence.clone().shutdown(secs(5)).await.is_err());
    assert_eq!(presence.closed().await, Err(Crashed::Registry));
}

#[actix::test]
async fn a_system_that_was_shut_down_is_closed_in_order() {
    let (presence, _) = doomed();
    let waiting = presence.clone();
    let closed = actix::spawn(async move { waiting.closed().await });
    presence.shutdown(secs(5)).await.unwrap();
    assert_eq!(timeout(SOON, closed).await.unwrap().unwrap(), Ok(()));
}
