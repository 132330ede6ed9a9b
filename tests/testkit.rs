//! What a test may rely on: the manual clock, and that nothing has to be waited for.

mod common;

use std::time::Instant;

use actix::prelude::*;
use actix_presence::{
    testing::{Heard, ManualClock, Probe, Seen, settle},
    *,
};
use common::{room, secs, user};

struct Kit {
    clock: ManualClock,
    presence: PresenceHandle,
    changes: Seen<PresenceChanged>,
}

impl Kit {
    async fn with(options: impl FnOnce(PresenceConfig) -> PresenceConfig) -> Self {
        let clock = ManualClock::new();
        let config = PresenceConfig::new("sqlite::memory:").clock(clock.clock());
        let presence = options(config).start().unwrap();
        let (observer, changes) = Probe::new();
        presence.subscribe(RoomFilter::Any, observer.recipient()).await.unwrap();
        Self { clock, presence, changes }
    }

    async fn join(
        &self,
        who: &str,
        change: impl FnOnce(Join) -> Join,
    ) -> (Connection, Seen<Heard>) {
        let (session, heard) = Probe::new();
        let me = Connection::new(self.presence.registry());
        let join = change(me.join(room("lobby"), session).user(user(who)));
        self.presence.registry().send(join).await.unwrap().unwrap();
        (me, heard)
    }

    /// Who has left since the last call, and why.
    async fn left(&mut self) -> Vec<(String, Cause)> {
        let events = self.changes.settled(&self.presence).await;
        let leaves = events.iter().flat_map(PresenceChanged::leaves);
        let who =
            |left: &Left| left.presence.user.as_ref().map(UserId::to_string).unwrap_or_default();
        leaves.map(|left| (who(left), left.cause)).collect()
    }
}

#[actix::test]
async fn a_clock_that_is_advanced_prunes_at_once_whoever_was_silent_for_too_long() {
    let mut kit = Kit::with(|config| config).await;
    let (ada, _) = kit.join("ada", |join| join).await;
    let (_bob, mut heard) = kit.join("bob", |join| join).await;
    kit.clock.advance(secs(40));
    ada.touch();
    kit.clock.advance(secs(20));
    assert_eq!(kit.left().await, [], "60 s is not too long");
    kit.clock.advance(secs(1));
    assert_eq!(kit.left().await, [("bob".to_owned(), Cause::Expired)]);
    let heard = heard.settled(&kit.presence).await;
    let [Heard::Close(order)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((order.code, order.cause), (4000, Cause::Expired));
    kit.clock.advance(secs(3600));
    assert_eq!(kit.left().await, [("ada".to_owned(), Cause::Expired)]);
}

#[actix::test]
async fn what_is_asked_after_the_clock_was_advanced_is_answered_after_the_prune() {
    let kit = Kit::with(|config| config).await;
    let _ada = kit.join("ada", |join| join).await;
    kit.clock.advance(secs(61));
    assert!(kit.presence.snapshot(&room("lobby")).await.unwrap().is_none());
    assert_eq!(kit.presence.prune_presences(None).await.unwrap().removed(), 0);
}

#[actix::test]
async fn one_clock_moves_all_systems_that_have_it_and_outlives_them() {
    let clock = ManualClock::new();
    let start = || PresenceConfig::new("sqlite::memory:").clock(clock.clock()).start().unwrap();
    let (one, other) = (start(), start());
    let mut here = Vec::new();
    for presence in [&one, &other] {
        let (session, _) = Probe::<Heard>::new();
        here.push(Connection::new(presence.registry()));
        let join = here[here.len() - 1].join(room("lobby"), session);
        presence.registry().send(join).await.unwrap().unwrap();
    }
    clock.advance(secs(61));
    for presence in [&one, &other] {
        assert_eq!(presence.status().await.unwrap().presences, 0);
    }
    one.shutdown(secs(5)).await.unwrap();
    clock.advance(secs(61));
    assert_eq!(other.status().await.unwrap().presences, 0);
}

#[actix::test]
async fn a_grace_that_is_over_ends_a_presence_for_its_own_reason() {
    let mut kit = Kit::with(|config| config.grace(secs(10))).await;
    let key = SessionKey::new("tab").unwrap();
    let (me, _) = kit.join("ada", |join| join.session(key)).await;
    drop(me);
    kit.clock.advance(secs(9));
    assert_eq!(kit.left().await, []);
    kit.clock.advance(secs(3600));
    assert_eq!(kit.left().await, [("ada".to_owned(), Cause::Disconnected)]);
}

#[actix::test]
async fn lists_that_are_due_are_sent_when_the_clock_is_advanced() {
    let kit = Kit::with(|config| config).await;
    let listens = |join: Join| join.dialect(Dialect::Json(Feed::Full));
    let (_ada, mut heard) = kit.join("ada", listens).await;
    assert_eq!(heard.settled(&kit.presence).await.len(), 1);
    for n in 0..4 {
        let (session, _) = Probe::<Heard>::new();
        let guest = Connection::new(kit.presence.registry());
        kit.presence.registry().send(guest.join(room("lobby"), session)).await.unwrap().unwrap();
        kit.clock.advance(secs(2));
        assert!(!heard.settled(&kit.presence).await.is_empty(), "list {n}");
    }
}

#[actix::test]
async fn that_nothing_comes_is_known_at_once() {
    let kit = Kit::with(|config| config).await;
    let (_ada, mut heard) = kit.join("ada", |join| join).await;
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(heard.settled(&kit.presence).await.is_empty());
    }
    // An upper bound; one wait for a message that does not come would take longer.
    assert!(begun.elapsed() < secs(10));
}

#[actix::test]
async fn everything_has_been_delivered_when_it_has_settled_on_other_threads_too() {
    let kit = Kit::with(|config| config).await;
    let arbiter = Arbiter::new();
    let registry = kit.presence.registry();
    let mut all = Vec::new();
    for _ in 0..50 {
        let registry = registry.clone();
        let (me, heard, joining) = common::on(&arbiter.handle(), move || {
            let (session, heard) = Probe::<Heard>::new();
            let me = Connection::new(registry.clone());
            let joining = registry.send(me.join(room("lobby"), session));
            (me, heard, joining)
        })
        .await;
        joining.await.unwrap().unwrap();
        all.push((me, heard));
    }
    for _ in 0..20 {
        registry.do_send(Publish::new(room("lobby"), "hello"));
    }
    for (_, heard) in &mut all {
        assert_eq!(heard.settled(&kit.presence).await.len(), 20);
    }
}

#[actix::test]
async fn a_system_that_has_ended_has_settled() {
    let kit = Kit::with(|config| config).await;
    let client = kit.presence.client();
    kit.presence.shutdown(secs(5)).await.unwrap();
    settle(&client).await;
    kit.clock.advance(secs(1));
}
