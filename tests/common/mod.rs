//! A presence system for tests: manual clock, probes for sessions and observers.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod nodes;
pub mod stuck;

use std::time::Duration;

use actix::prelude::*;
use actix_presence::{
    testing::{Heard, ManualClock, Probe, Seen, settle},
    *,
};
use bytestring::ByteString;

pub struct Harness {
    pub clock: ManualClock,
    pub presence: PresenceHandle,
    pub registry: Addr<RoomRegistry>,
    changes: Seen<PresenceChanged>,
}

/// A session that took part.
pub struct Session {
    pub id: ConnectionId,
    addr: Addr<Probe<Heard>>,
    heard: Seen<Heard>,
}

pub fn room(name: &str) -> RoomName {
    RoomName::new(name).unwrap()
}

pub fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

/// Does something on a thread, and waits for it.
pub async fn on<T: Send + 'static>(
    thread: &ArbiterHandle,
    what: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, answer) = tokio::sync::oneshot::channel();
    assert!(thread.spawn_fn(move || drop(done.send(what()))), "the thread has ended");
    answer.await.unwrap()
}

/// Waits until the dispatcher of this thread has carried out the orders that were sent to it before.
pub async fn dispatched() {
    for _ in 0..10 {
        on(&Arbiter::current(), || ()).await;
    }
}

pub const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

impl Harness {
    pub async fn new() -> Self {
        Self::with("sqlite::memory:", |config| config).await
    }

    pub async fn with(
        database: &str,
        options: impl FnOnce(PresenceConfig) -> PresenceConfig,
    ) -> Self {
        let clock = ManualClock::new();
        // Its tests prune themselves, to see the report.
        let config = PresenceConfig::new(database).clock(clock.clock_alone());
        let presence = options(config).start().unwrap();
        let (observer, changes) = Probe::new();
        presence.subscribe(RoomFilter::Any, observer.recipient()).await.unwrap();
        let registry = presence.registry();
        Self { clock, presence, registry, changes }
    }

    pub fn session(&self) -> Session {
        let (addr, heard) = Probe::new();
        Session { id: ConnectionId::new(), addr, heard }
    }

    /// A new session joins as the user, or anonymously.
    pub async fn enter(&self, name: &str, who: Option<&str>) -> Session {
        let session = self.session();
        self.join(&session, name, who).await.unwrap();
        session
    }

    pub async fn join(
        &self,
        session: &Session,
        name: &str,
        who: Option<&str>,
    ) -> Result<Joined, JoinError> {
        self.registry.send(session.joining(name, who)).await.unwrap()
    }

    pub async fn leave(&self, session: &Session, name: &str) -> bool {
        self.registry.send(Leave::new(room(name), session.id)).await.unwrap()
    }

    pub async fn say(&self, name: &str, text: &'static str) -> usize {
        let publish = Publish::new(room(name), ByteString::from_static(text));
        self.registry.send(publish).await.unwrap().unwrap()
    }

    /// Prunes. What else is due by the clock has happened when this returns.
    pub async fn prune(&self) -> PruneReport {
        let report = self.registry.send(PrunePresences { age: None }).await.unwrap();
        settle(&self.presence).await;
        report
    }

    pub async fn snapshot(&self, name: &str) -> Option<Snapshot> {
        self.registry.send(GetSnapshot { room: room(name) }).await.unwrap().unwrap()
    }

    pub async fn users(&self, name: &str) -> Vec<String> {
        let snapshot = self.snapshot(name).await;
        snapshot.iter().flat_map(Snapshot::users).map(|member| member.id.to_string()).collect()
    }

    pub async fn anonymous(&self, name: &str) -> usize {
        self.registry.send(GetOccupancy { room: room(name) }).await.unwrap().unwrap().anonymous
    }

    /// The next change there is.
    pub async fn change(&mut self) -> PresenceChanged {
        self.changes.next().await.expect("a change within ten seconds")
    }

    /// Every change announced up to now: those before the arrival of a stranger elsewhere.
    pub async fn changes(&mut self) -> Vec<PresenceChanged> {
        let marker = self.enter("marker", None).await;
        let mut changes = Vec::new();
        loop {
            let change = self.change().await;
            if change.room == "marker" {
                break;
            }
            changes.push(change);
        }
        self.leave(&marker, "marker").await;
        assert_eq!(self.change().await.room, "marker");
        changes
    }
}

impl Session {
    pub fn joining(&self, name: &str, who: Option<&str>) -> Join {
        Join::new(room(name), self.id, self.addr.clone().recipient())
            .disconnect(self.addr.clone().recipient())
            .user(who.map(user))
    }

    /// Everything sent to it up to now.
    pub async fn heard(&mut self) -> Vec<Heard> {
        dispatched().await;
        let payload = ByteString::from_static("marker");
        // The mailbox is a queue: what was sent before is handled before.
        self.addr
            .send(ForwardMessage::new(room("marker"), Forwarded::Message, payload))
            .await
            .unwrap();
        let mut all: Vec<_> = std::iter::from_fn(|| self.heard.now()).collect();
        all.pop();
        all
    }

    pub async fn frames(&mut self) -> Vec<String> {
        let heard = self.heard().await;
        let frame = |heard| match heard {
            Heard::Frame(frame) => Some(frame.payload.to_string()),
            Heard::Close(_) => None,
        };
        heard.into_iter().filter_map(frame).collect()
    }

    /// The next frame, waiting for it.
    pub async fn next_frame(&mut self) -> String {
        match self.heard.next().await {
            Some(Heard::Frame(frame)) => frame.payload.to_string(),
            other => panic!("no frame but {other:?}"),
        }
    }

    /// The next order to close, waiting for it; frames before it are passed over.
    pub async fn closed(&mut self) -> Disconnect {
        loop {
            match self.heard.next().await.expect("an order to close within ten seconds") {
                Heard::Close(close) => return close,
                Heard::Frame(_) => {}
            }
        }
    }
}
