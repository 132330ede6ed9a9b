//! What observers hear: filters, times, differences of snapshots, and the end.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use actix::prelude::*;
use actix_presence::{
    testing::{MemoryDatabase, MemoryHub, Probe, Seen},
    *,
};
use chrono::{DateTime, TimeDelta, Utc};
use common::{Harness, room, secs, stuck::stuck, user};
use tokio::sync::{Semaphore, mpsc};

/// All that a probe has been sent by now.
fn all(seen: &mut Seen<PresenceChanged>) -> Vec<PresenceChanged> {
    std::iter::from_fn(|| seen.now()).collect()
}

/// An observer whose work on each event takes until there is a permit for it.
struct Slow {
    begun: mpsc::UnboundedSender<()>,
    permits: Arc<Semaphore>,
    handled: Arc<AtomicUsize>,
}

impl Actor for Slow {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Slow {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: PresenceChanged, _: &mut Context<Self>) -> Self::Result {
        // The test may have ended.
        let _ = self.begun.send(());
        let (permits, handled) = (self.permits.clone(), self.handled.clone());
        Box::pin(async move {
            permits.acquire().await.unwrap().forget();
            handled.fetch_add(1, Relaxed);
        })
    }
}

impl Slow {
    fn subscription() -> (Self, mpsc::UnboundedReceiver<()>, Arc<Semaphore>, Arc<AtomicUsize>) {
        let (begun, begins) = mpsc::unbounded_channel();
        let (permits, handled) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
        (
            Self { begun, permits: permits.clone(), handled: handled.clone() },
            begins,
            permits,
            handled,
        )
    }
}

#[actix::test]
async fn every_leave_of_a_shutdown_is_heard_before_it_returns() {
    let t = Harness::new().await;
    let (observer, mut seen) = Probe::new();
    t.presence.subscribe(RoomFilter::Any, observer.recipient()).await.unwrap();
    let (observer, mut users) = Probe::new();
    t.presence.client().subscribe_users(observer.recipient()).await.unwrap();
    let mut sessions = Vec::new();
    for n in 0..20 {
        sessions.push(t.enter(&format!("room {n}"), Some(&format!("user {n}"))).await);
    }
    t.presence.shutdown(secs(10)).await.unwrap();
    let events = all(&mut seen);
    let leaves = events.iter().flat_map(PresenceChanged::leaves);
    assert_eq!(leaves.filter(|left| left.cause == Cause::Shutdown).count(), 20);
    assert_eq!(events.len(), 40);
    let changes = std::iter::from_fn(|| users.now()).map(|event| event.change);
    let gone = changes.filter(|change| matches!(change, UserChange::Offline(_)));
    assert_eq!(gone.count(), 20);
}

#[actix::test]
async fn a_shutdown_waits_until_a_slow_observer_has_handled_the_last_event() {
    let t = Harness::new().await;
    let (slow, mut begins, permits, handled) = Slow::subscription();
    t.presence.subscribe(RoomFilter::Any, slow.start().recipient()).await.unwrap();
    let mut sessions = Vec::new();
    for n in 0..3 {
        sessions.push(t.enter(&format!("room {n}"), None).await);
    }
    let pace = actix::spawn(async move {
        while begins.recv().await.is_some() {
            permits.add_permits(1);
        }
    });
    t.presence.shutdown(secs(10)).await.unwrap();
    assert_eq!(handled.load(Relaxed), 6, "three joins and three leaves");
    pace.abort();
}

#[actix::test]
async fn a_shutdown_whose_observer_does_not_end_says_so_when_the_rows_are_written() {
    let t = Harness::new().await;
    let (slow, _begins, _permits, handled) = Slow::subscription();
    t.presence.subscribe(RoomFilter::Any, slow.start().recipient()).await.unwrap();
    let session = t.enter("lobby", None).await;
    t.leave(&session, "lobby").await;
    let error = t.presence.shutdown(secs(2)).await.unwrap_err();
    assert!(matches!(error, FlushError::Unobserved), "{error:?}");
    assert_eq!(handled.load(Relaxed), 0);
}

#[actix::test]
async fn a_shutdown_does_not_wait_for_observers_that_have_stopped_or_unsubscribed() {
    let t = Harness::new().await;
    let (slow, _begins, _permits, _) = Slow::subscription();
    let id = t.presence.subscribe(RoomFilter::Any, slow.start().recipient()).await.unwrap();
    let (slow, mut begins, permits, _) = Slow::subscription();
    let stopped = slow.start();
    t.presence.subscribe(RoomFilter::Any, stopped.clone().recipient()).await.unwrap();
    let _session = t.enter("lobby", None).await;
    begins.recv().await.unwrap();
    assert!(t.presence.unsubscribe(id).await.unwrap());
    let (ends, ended) = tokio::sync::oneshot::channel();
    stopped.send(Stop(ends)).await.unwrap();
    drop(stopped);
    ended.await.unwrap_err();
    let _another = t.enter("lobby", None).await;
    // What it has begun before it stopped ends now, and is waited for.
    permits.add_permits(1);
    t.presence.shutdown(secs(60)).await.unwrap();
}

/// Stops the observer, which drops the sender then.
#[derive(Message)]
#[rtype(result = "()")]
struct Stop(tokio::sync::oneshot::Sender<()>);

impl Handler<Stop> for Slow {
    type Result = ();

    fn handle(&mut self, stop: Stop, ctx: &mut Context<Self>) {
        ctx.terminate();
        drop(stop.0);
    }
}

/// Panics at what it hears of one room.
struct Fragile(mpsc::UnboundedSender<RoomName>);

impl Actor for Fragile {
    type Context = SyncContext<Self>;
}

impl Handler<PresenceChanged> for Fragile {
    type Result = ();

    fn handle(&mut self, event: PresenceChanged, _: &mut SyncContext<Self>) {
        assert!(event.room != "boom", "the app's own fault");
        // The test may have ended.
        let _ = self.0.send(event.room);
    }
}

#[actix::test]
async fn an_observer_of_which_a_thread_is_left_goes_on_after_a_panic() {
    let t = Harness::new().await;
    let (sender, mut heard) = mpsc::unbounded_channel();
    let observer = SyncArbiter::start(2, move || Fragile(sender.clone()));
    t.presence.subscribe(RoomFilter::Any, observer.recipient()).await.unwrap();
    for name in ["a", "boom", "b"] {
        t.enter(name, None).await;
    }
    assert_eq!(heard.recv().await.unwrap(), *"a");
    assert_eq!(heard.recv().await.unwrap(), *"b");
    // The other thread dies, too: it hears nothing more, and holds up no shutdown.
    t.enter("boom", Some("ada")).await;
    t.presence.shutdown(secs(60)).await.unwrap();
}

#[actix::test]
async fn a_stuck_observer_stalls_nobody_and_is_told_what_it_missed() {
    let mut t = Harness::with("sqlite::memory:", |config| config.observer_queue(2)).await;
    let (observer, seen, let_go) = stuck::<PresenceChanged>();
    t.presence.subscribe(RoomFilter::Any, observer.recipient()).await.unwrap();

    let first = t.enter("lobby", Some("first")).await;
    assert_eq!(seen.recv().unwrap().version, 1); // it is stuck in this one now
    assert_eq!(t.change().await.version, 1);
    for version in 2..=10 {
        t.enter("lobby", None).await;
        assert_eq!(t.change().await.version, version, "the other observer hears everything");
    }
    drop(let_go);
    assert_eq!([seen.recv().unwrap().version, seen.recv().unwrap().version], [2, 3]);
    let resync = seen.recv().unwrap();
    assert!(matches!(resync.change, Change::Resync));
    assert!(resync.bulk_change() && resync.added().is_none() && resync.joins().is_empty());
    assert_eq!(
        (resync.version, resync.snapshot.version(), resync.snapshot.anonymous_count()),
        (10, 10, 9)
    );

    t.leave(&first, "lobby").await;
    let after = seen.recv().unwrap();
    assert_eq!((after.version, after.removed().unwrap().connection), (11, first.id));
}

#[actix::test]
async fn an_observer_hears_of_its_room_alone_until_it_unsubscribes() {
    let t = Harness::new().await;
    let (observer, mut seen): (_, Seen<PresenceChanged>) = Probe::new();
    let filter = RoomFilter::Room(room("one"));
    let id = t.presence.subscribe(filter, observer.clone().recipient()).await.unwrap();
    t.enter("other", None).await;
    t.enter("one", None).await;
    assert_eq!(seen.next().await.unwrap().room, "one");

    assert!(t.registry.send(Unsubscribe { id }).await.unwrap());
    assert!(!t.registry.send(Unsubscribe { id }).await.unwrap());
    let other = t.presence.subscribe(RoomFilter::Any, observer.recipient()).await.unwrap();
    assert_ne!(id, other);
    t.enter("one", None).await;
    assert_eq!(seen.next().await.unwrap().version, 2);
    assert!(seen.now().is_none(), "told once");
}

#[actix::test]
async fn an_observer_of_a_prefix_hears_of_the_rooms_that_begin_so() {
    let t = Harness::new().await;
    let (observer, mut seen) = Probe::new();
    let filter = RoomFilter::Prefix("team:".to_owned());
    t.presence.subscribe(filter, observer.recipient()).await.unwrap();
    let mut sessions = Vec::new();
    for name in ["team:red", "team", "lobby", "Team:blue", "team:", "a team:"] {
        sessions.push(t.enter(name, None).await);
    }
    t.presence.shutdown(secs(10)).await.unwrap();
    let mut rooms: Vec<_> = all(&mut seen).into_iter().map(|event| event.room).collect();
    rooms.sort();
    assert_eq!(rooms, ["team:", "team:", "team:red", "team:red"]);
}

#[actix::test]
async fn an_observer_of_a_prefix_hears_of_the_rooms_of_other_nodes() {
    let (database, hub) = (MemoryDatabase::new(), MemoryHub::new());
    let node = |name: &str| {
        let [writer, reader] = [(); 2].map(|()| Box::new(database.store()));
        let config = PresenceConfig::default().node(name);
        config.start_shared(writer, reader, Box::new(hub.bus())).unwrap()
    };
    let (here, there) = (node("here"), node("there"));
    let (observer, mut seen) = Probe::new();
    let filter = RoomFilter::Prefix("team:".to_owned());
    let subscribe = Subscribe::new(filter, observer.recipient()).scope(Scope::Cluster);
    here.subscribe_with(subscribe).await.unwrap();
    let me = Connection::new(there.registry());
    for name in ["lobby", "team:red"] {
        let (session, _) = Probe::<testing::Heard>::new();
        there.registry().send(me.join(room(name), session)).await.unwrap().unwrap();
    }
    let event = seen.next().await.unwrap();
    assert_eq!((event.room.as_str(), event.node.as_str()), ("team:red", "there"));
}

#[actix::test]
async fn an_event_has_the_time_of_its_change_however_late_it_is_heard() {
    // One event is in flight, one is queued, and the changes of a room after that are conflated.
    let t = Harness::with("sqlite::memory:", |config| config.observer_queue(1)).await;
    let (times, mut heard) = mpsc::unbounded_channel();
    let (open, gate) = tokio::sync::watch::channel(false);
    let late = Late { gate, times }.start();
    t.presence.subscribe(RoomFilter::Any, late.recipient()).await.unwrap();
    let mut changes = Vec::new();
    let mut sessions = Vec::new();
    for _ in 0..4 {
        changes.push(t.clock.now());
        sessions.push(t.enter("lobby", None).await);
        t.clock.advance(secs(1));
        if sessions.len() == 1 {
            while t.presence.status().await.unwrap().observer_lag > 0 {}
        }
    }
    open.send(true).unwrap();
    for at in [changes[0], changes[1], changes[3]] {
        assert_eq!(heard.recv().await, Some(at));
    }
}

/// Says when changes were made, once a gate is open.
struct Late {
    gate: tokio::sync::watch::Receiver<bool>,
    times: mpsc::UnboundedSender<DateTime<Utc>>,
}

impl Actor for Late {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Late {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, event: PresenceChanged, _: &mut Context<Self>) -> Self::Result {
        let (mut gate, times) = (self.gate.clone(), self.times.clone());
        Box::pin(async move {
            gate.wait_for(|open| *open).await.unwrap();
            times.send(event.at).unwrap();
        })
    }
}

#[actix::test]
async fn two_snapshots_tell_what_was_conflated() {
    let t = Harness::new().await;
    let ada = t.enter("lobby", Some("ada")).await;
    let bob = t.enter("lobby", Some("bob")).await;
    let guest = t.enter("lobby", None).await;
    let before = t.snapshot("lobby").await.unwrap();
    assert!(before.since(&before).is_empty());

    let second = t.enter("lobby", Some("bob")).await;
    let cyd = t.enter("lobby", Some("cyd")).await;
    t.leave(&ada, "lobby").await;
    t.leave(&guest, "lobby").await;
    t.clock.advance(secs(1));
    t.join(&guest, "lobby", None).await.unwrap();
    let info = Info::new(serde_json::json!({ "status": "away" })).unwrap();
    t.presence.update_info(&room("lobby"), bob.id, info.clone()).await.unwrap();
    let after = t.snapshot("lobby").await.unwrap();

    let changes = after.since(&before);
    assert_eq!(
        (&changes.online[..], &changes.offline[..]),
        (&[user("cyd")][..], &[user("ada")][..])
    );
    let ids =
        |presences: &[Presence]| presences.iter().map(|one| one.connection).collect::<Vec<_>>();
    assert_eq!(ids(&changes.joins), [guest.id, second.id, cyd.id]);
    assert_eq!(ids(&changes.leaves), [guest.id, ada.id]);
    assert_eq!(changes.leaves[0].joined_at + TimeDelta::seconds(1), changes.joins[0].joined_at);
    let [update] = &changes.updates[..] else { panic!("{:?}", changes.updates) };
    assert_eq!((update.after.connection, &update.after.info), (bob.id, &info));
    // Backwards it is the reverse.
    let back = before.since(&after);
    assert_eq!((back.joins, back.online), (changes.leaves, changes.offline));
}
