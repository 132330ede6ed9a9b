//! Sessions on threads of their own: what is published reaches exactly the members of the room, through
//! the dispatcher of each thread.

mod common;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use actix::prelude::*;
use actix_presence::{
    testing::{Heard, Probe, Seen},
    *,
};
use bytestring::ByteString;
use common::{Harness, on, room, stuck::stall};

/// A session on some thread.
struct Guest {
    thread: ArbiterHandle,
    connection: Arc<Connection>,
    addr: Addr<Probe<Heard>>,
    heard: Seen<Heard>,
}

impl Guest {
    async fn new(t: &Harness, thread: &Arbiter) -> Self {
        let (registry, thread) = (t.registry.clone(), thread.handle());
        let (addr, heard) = on(&thread, Probe::new).await;
        Self { thread, connection: Arc::new(Connection::new(registry)), addr, heard }
    }

    /// Joins from its thread, as sessions do.
    async fn join(&self, t: &Harness, name: &'static str) {
        self.join_as(t, name, Dialect::Raw).await;
    }

    async fn join_as(&self, t: &Harness, name: &'static str, dialect: Dialect) {
        let (connection, addr) = (self.connection.clone(), self.addr.clone());
        let join = on(&self.thread, move || connection.join(room(name), addr)).await;
        t.registry.send(join.dialect(dialect)).await.unwrap().unwrap();
    }

    async fn leave(&self, t: &Harness, name: &str) {
        let leave = Leave::new(room(name), self.connection.id());
        t.registry.send(leave).await.unwrap();
    }

    /// What reached it since it was asked last.
    async fn messages(&mut self) -> Vec<String> {
        let payload = ByteString::from_static("marker");
        let marker = ForwardMessage::new(room("-"), Forwarded::Message, payload);
        // The mailbox is a queue: what was sent before is handled before.
        self.addr.send(marker).await.unwrap();
        let heard = std::iter::from_fn(|| self.heard.now());
        let frames = heard.filter_map(|heard| match heard {
            Heard::Frame(frame) if frame.room == "-" => None,
            Heard::Frame(ForwardMessage { kind: Forwarded::Closed { .. }, .. }) => None,
            Heard::Frame(frame) => Some(frame.payload.to_string()),
            _ => None,
        });
        frames.collect()
    }
}

/// Law 7, for sessions on three threads.
#[actix::test]
async fn exactly_the_members_of_a_room_get_its_messages() {
    const ROOMS: [&str; 2] = ["one", "two"];
    let t = Harness::new().await;
    let threads = [Arbiter::new(), Arbiter::new(), Arbiter::new()];
    let mut guests = Vec::new();
    for n in 0..9 {
        guests.push(Guest::new(&t, &threads[n % 3]).await);
    }
    let mut seed = fastrand::Rng::with_seed(7);
    let mut inside: HashSet<(&str, usize)> = HashSet::new();
    let mut expected: HashMap<usize, Vec<String>> = HashMap::new();
    for step in 0..600 {
        let (name, who) = (ROOMS[seed.usize(..2)], seed.usize(..guests.len()));
        let guest = &guests[who];
        match seed.u8(..10) {
            0..2 => {
                guest.join(&t, name).await;
                inside.insert((name, who));
            }
            2 => {
                guest.leave(&t, name).await;
                inside.remove(&(name, who));
            }
            3 => {
                t.registry.send(Kick::Connection(guest.connection.id())).await.unwrap();
                inside.retain(|(_, one)| *one != who);
            }
            4 if seed.u8(..4) == 0 => {
                t.registry.send(CloseRoom { room: room(name) }).await.unwrap();
                inside.retain(|(one, _)| *one != name);
            }
            _ => {
                let said = format!("{step} in {name}");
                let publish = Publish::new(room(name), said.clone());
                let except = seed.bool().then(|| guest.connection.id());
                let taken = t.registry.send(Publish { except, ..publish }).await.unwrap();
                let hears = |one: &usize| except.is_none() || *one != who;
                let mut hearers = 0;
                for (_, one) in inside.iter().filter(|(one, who)| *one == name && hears(who)) {
                    expected.entry(*one).or_default().push(said.clone());
                    hearers += 1;
                }
                assert_eq!(taken, Ok(hearers), "{said}");
            }
        }
    }
    let deliveries: usize = expected.values().map(Vec::len).sum();
    for (who, guest) in guests.iter_mut().enumerate() {
        assert_eq!(guest.messages().await, expected.remove(&who).unwrap_or_default(), "{who}");
    }
    let status = t.registry.send(GetStatus).await.unwrap();
    assert_eq!(status.counters.deliveries, deliveries as u64);
    assert!(deliveries > 500, "{deliveries}");
}

/// What a client knows of a room after these frames: the version, if all of them follow each other.
fn version(frames: &[String], mut known: Option<u64>) -> Option<u64> {
    for frame in frames {
        let frame: serde_json::Value = serde_json::from_str(frame).unwrap();
        let (kind, payload) = (&frame["type"], &frame["payload"]);
        if kind == "presence_diff" {
            assert_eq!(payload["since"].as_u64(), known, "{frame}");
        } else {
            assert_eq!(kind, "presence_state");
        }
        known = payload["version"].as_u64();
    }
    known
}

#[actix::test]
async fn lists_arrive_in_order_on_every_thread_until_all_know_the_room() {
    let t = Harness::new().await;
    let threads = [Arbiter::new(), Arbiter::new(), Arbiter::new()];
    let mut guests = Vec::new();
    for n in 0..9 {
        guests.push((Guest::new(&t, &threads[n % 3]).await, None));
    }
    let mut seed = fastrand::Rng::with_seed(11);
    let mut inside = [false; 9];
    for _ in 0..150 {
        let who = seed.usize(..guests.len());
        let (guest, known) = &mut guests[who];
        inside[who] = seed.u8(..3) > 0;
        if inside[who] {
            guest.join_as(&t, "lobby", Dialect::Json(Feed::Diff)).await;
        } else {
            guest.leave(&t, "lobby").await;
            *known = version(&guest.messages().await, *known);
        }
        if seed.bool() {
            t.clock.advance(common::secs(1));
            t.prune().await;
        }
    }
    let snapshot = t.snapshot("lobby").await.unwrap();
    for (who, (guest, known)) in guests.iter_mut().enumerate().filter(|(who, _)| inside[*who]) {
        let mut tries = 0;
        while *known != Some(snapshot.version()) {
            tries += 1;
            assert!(tries < 1000, "{who} knows {known:?} of {}", snapshot.version());
            t.clock.advance(common::secs(1));
            t.prune().await;
            *known = version(&guest.messages().await, *known);
        }
    }
}

/// A session with the mailbox that actors have by themselves.
struct Small(tokio::sync::mpsc::UnboundedSender<()>);

impl Actor for Small {
    type Context = Context<Self>;
}

impl Handler<ForwardMessage> for Small {
    type Result = ();

    fn handle(&mut self, _: ForwardMessage, _: &mut Context<Self>) {
        let _ = self.0.send(());
    }
}

impl Handler<Disconnect> for Small {
    type Result = ();

    fn handle(&mut self, msg: Disconnect, _: &mut Context<Self>) {
        panic!("removed: {msg:?}");
    }
}

#[actix::test]
async fn a_burst_of_messages_does_not_fill_the_mailbox_of_a_session_that_takes_them() {
    const SESSIONS: usize = 50;
    const BURST: usize = 500;
    let t = Harness::new().await;
    let thread = Arbiter::new();
    let (sender, mut taken) = tokio::sync::mpsc::unbounded_channel();
    let mut connections = Vec::new();
    for _ in 0..SESSIONS {
        let connection = Arc::new(Connection::new(t.registry.clone()));
        connections.push(connection.clone());
        let session = Small(sender.clone());
        let join = move || connection.join(room("lobby"), session.start());
        let join = on(&thread.handle(), join).await;
        t.registry.send(join).await.unwrap().unwrap();
    }
    for _ in 0..BURST {
        t.registry.do_send(Publish::new(room("lobby"), "burst"));
    }
    for _ in 0..SESSIONS * BURST {
        let next = tokio::time::timeout(common::secs(10), taken.recv());
        next.await.expect("the next one within ten seconds").unwrap();
    }
    assert_eq!(t.snapshot("lobby").await.unwrap().anonymous_count(), SESSIONS);
}

#[actix::test]
async fn a_stalled_thread_delays_only_its_own_sessions() {
    let t = Harness::new().await;
    let [still, moving] = [Arbiter::new(), Arbiter::new()];
    let [mut one, mut other] = [Guest::new(&t, &still).await, Guest::new(&t, &moving).await];
    for guest in [&one, &other] {
        guest.join(&t, "lobby").await;
    }
    let let_go = stall(&still.handle()).await;

    assert_eq!(t.say("lobby", "hello").await, 1, "who took it in time");
    assert_eq!(other.messages().await, ["hello"]);
    drop(let_go);
    assert_eq!(t.say("lobby", "again").await, 2);
    assert_eq!(one.messages().await, ["hello", "again"], "it was only late");
}

#[actix::test]
async fn sessions_of_a_thread_that_is_stalled_for_too_long_are_removed() {
    let mut t = Harness::new().await;
    let [still, moving] = [Arbiter::new(), Arbiter::new()];
    let [one, mut other] = [Guest::new(&t, &still).await, Guest::new(&t, &moving).await];
    for guest in [&one, &other] {
        guest.join(&t, "lobby").await;
    }
    t.changes().await;
    let let_go = stall(&still.handle()).await;
    for said in 0..300 {
        t.registry.do_send(Publish::new(room("lobby"), said.to_string()));
    }
    assert!(t.changes().await.is_empty(), "it may go on yet");
    t.clock.advance(common::secs(11));
    assert_eq!(t.say("lobby", "still?").await, 1);
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!(change.cause(), Some(Cause::SlowConsumer));
    assert_eq!(change.removed().unwrap().connection, one.connection.id());
    assert_eq!(other.messages().await.len(), 301);
    drop(let_go);
}

/// A session that handles nothing after its first frame, on a thread that goes on.
struct Busy(tokio::sync::mpsc::UnboundedSender<Disconnect>);

impl Actor for Busy {
    type Context = Context<Self>;
}

impl Handler<ForwardMessage> for Busy {
    type Result = ();

    fn handle(&mut self, _: ForwardMessage, ctx: &mut Context<Self>) {
        ctx.wait(std::future::pending().into_actor(self));
    }
}

impl Handler<Disconnect> for Busy {
    type Result = ();

    fn handle(&mut self, msg: Disconnect, _: &mut Context<Self>) {
        let _ = self.0.send(msg);
    }
}

#[actix::test]
async fn a_member_on_another_thread_that_takes_nothing_is_removed_once() {
    let mut t = Harness::new().await;
    let thread = Arbiter::new();
    let (sender, _closed) = tokio::sync::mpsc::unbounded_channel();
    let connection = Arc::new(Connection::new(t.registry.clone()));
    let busy = connection.clone();
    let join = on(&thread.handle(), move || busy.join(room("lobby"), Busy(sender).start())).await;
    t.registry.send(join).await.unwrap().unwrap();
    let mut healthy = Guest::new(&t, &thread).await;
    healthy.join(&t, "lobby").await;
    t.changes().await;

    let mut said = 0;
    while t.snapshot("lobby").await.unwrap().anonymous_count() == 2 {
        said += 1;
        assert!(said < 1000, "a bounded number of messages");
        t.say("lobby", "flood").await;
    }
    assert_eq!(healthy.messages().await.len(), said);
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!(change.cause(), Some(Cause::SlowConsumer));
    let slow = change.removed().unwrap().connection;
    assert_eq!(slow, connection.id());
}

#[actix::test]
async fn the_sessions_of_a_thread_that_has_ended_are_removed_and_another_thread_takes_its_place() {
    let mut t = Harness::new().await;
    for round in 0..3 {
        let thread = Arbiter::new();
        let guest = Guest::new(&t, &thread).await;
        guest.join(&t, "lobby").await;
        assert_eq!(t.say("lobby", "hello").await, 1, "round {round}");
        thread.stop();
        thread.join().unwrap();
        // Nobody is there to take it, or to acknowledge it.
        assert_eq!(t.say("lobby", "hello?").await, 0, "round {round}");
        drop(guest);
        t.changes().await;
        assert!(t.snapshot("lobby").await.is_none());
    }
}

#[actix::test]
async fn a_join_made_by_hand_is_served_by_the_dispatcher_of_the_thread_it_was_made_on() {
    let t = Harness::new().await;
    let thread = Arbiter::new();
    let mut guest = Guest::new(&t, &thread).await;
    let (id, session) = (guest.connection.id(), guest.addr.clone().recipient());
    let join = on(&guest.thread, move || Join::new(room("lobby"), id, session)).await;
    t.registry.send(join).await.unwrap().unwrap();
    let let_go = stall(&guest.thread).await;

    assert_eq!(t.say("lobby", "hello").await, 0, "its thread is stalled");
    drop(let_go);
    assert_eq!(t.say("lobby", "again").await, 1);
    assert_eq!(guest.messages().await, ["hello", "again"]);
}

#[actix::test]
async fn a_burst_does_not_fill_the_mailbox_of_a_session_that_joined_by_hand() {
    const BURST: usize = 500;
    let t = Harness::new().await;
    let thread = Arbiter::new();
    let (sender, mut taken) = tokio::sync::mpsc::unbounded_channel();
    let join = || {
        let session = Small(sender).start();
        let join = Join::new(room("lobby"), ConnectionId::new(), session.clone().recipient());
        join.disconnect(session.recipient())
    };
    let join = on(&thread.handle(), join).await;
    t.registry.send(join).await.unwrap().unwrap();
    for _ in 0..BURST {
        t.registry.do_send(Publish::new(room("lobby"), "burst"));
    }
    for _ in 0..BURST {
        let next = tokio::time::timeout(common::secs(10), taken.recv());
        next.await.expect("the next one within ten seconds").unwrap();
    }
}

#[actix::test]
async fn a_join_made_where_no_arbiter_runs_is_served_as_well() {
    let t = Harness::new().await;
    let mut guest = Guest::new(&t, &Arbiter::new()).await;
    let (id, session) = (guest.connection.id(), guest.addr.clone().recipient());
    let make = move || Join::new(room("lobby"), id, session);
    let join = std::thread::spawn(make).join().unwrap();
    t.registry.send(join).await.unwrap().unwrap();
    assert_eq!(t.say("lobby", "hello").await, 1);
    assert_eq!(guest.messages().await, ["hello"]);
}

#[actix::test]
async fn a_join_whose_thread_has_ended_is_served_as_well() {
    let t = Harness::new().await;
    let mut guest = Guest::new(&t, &Arbiter::new()).await;
    let (id, session) = (guest.connection.id(), guest.addr.clone().recipient());
    let ended = Arbiter::new();
    let join = on(&ended.handle(), move || Join::new(room("lobby"), id, session)).await;
    ended.stop();
    ended.join().unwrap();
    t.registry.send(join).await.unwrap().unwrap();
    assert_eq!(t.say("lobby", "hello").await, 1);
    assert_eq!(guest.messages().await, ["hello"]);
}
