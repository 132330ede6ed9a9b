//! Sockets after the registry has crashed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use actix_presence::{Clock, Crashed, GetStatus, PresenceConfig};
use serde_json::json;

use crate::sockets::{Client, serve};

#[actix::test]
async fn clients_are_told_that_the_registry_has_crashed_whether_or_not_they_say_something() {
    let crashes = Arc::<AtomicBool>::default();
    let (clock, crash) = (Clock::system(), Arc::clone(&crashes));
    let clock = Clock::from_fn(move || {
        assert!(!crash.load(SeqCst), "as the test says");
        clock.now()
    });
    let presence = PresenceConfig::new("sqlite::memory:").clock(clock).start().unwrap();
    let (url, server) = serve(&presence);
    let mut listener = Client::open(&format!("{url}/ws/lobby?presence=none")).await;
    let mut phoenix = Client::open(&format!("{url}/socket/websocket?vsn=2.0.0")).await;
    phoenix.say(json!(["1", "1", "lobby", "phx_join", {}])).await;
    phoenix.until(|frame| frame[3] == "presence_state").await;
    let mut nowhere = Client::open(&format!("{url}/socket/websocket?vsn=2.0.0")).await;
    nowhere.say(json!([null, "1", "phoenix", "heartbeat", {}])).await;
    nowhere.until(|frame| frame[1] == "1").await;
    crashes.store(true, SeqCst);
    assert!(presence.registry().send(GetStatus).await.is_err());
    assert_eq!(presence.closed().await, Err(Crashed::Registry));
    for client in [&mut listener, &mut phoenix, &mut nowhere] {
        let close = loop {
            if let Err(close) = client.next().await {
                break close.unwrap();
            }
        };
        assert_eq!((u16::from(close.code), &*close.reason), (1011, "internal error"));
    }
    server.stop(false).await;
}
