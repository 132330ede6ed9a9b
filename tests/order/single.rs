//! One rule of the order each.

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use actix::prelude::*;
use actix_presence::{
    testing::{Heard, Probe},
    *,
};

use crate::{
    common::{Harness, on, room, secs, stuck::stall},
    guests::{Guest, Place, Threads},
};

#[actix::test]
async fn the_joins_of_a_full_turn_are_all_answered_at_its_end() {
    const TURN: usize = 64;
    let (open, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    // The registry waits there until all joins are in its mailbox.
    let authorize = move |name: &RoomName, _: Option<&UserId>, _: &Info| {
        if *name == *"gate" {
            _ = gate.lock().unwrap().recv();
            return Decision::Deny("closed".into());
        }
        Decision::Allow
    };
    let t = Harness::with("sqlite::memory:", |config| config.authorize(authorize)).await;
    let sessions: Vec<_> = (0..TURN).map(|_| t.session()).collect();
    t.registry.do_send(t.session().joining("gate", None));
    let joins = sessions.iter().map(|session| t.registry.send(session.joining(LOBBY, None)));
    let joins: Vec<_> = joins.collect();
    drop(open);
    // Nothing comes that would begin another turn.
    for (number, join) in joins.into_iter().enumerate() {
        let joined = tokio::time::timeout(secs(2), join).await;
        joined.unwrap_or_else(|_| panic!("join {number}")).unwrap().unwrap();
    }
}

const LOBBY: &str = "lobby";

/// A room in which nobody has to be told anything until time passes, as a list has just gone out: with a
/// listener, and others who do not listen. Of all but the first of them it does not know yet.
struct Lobby {
    t: Harness,
    threads: Threads,
    listener: Guest,
    others: Vec<Guest>,
}

impl Lobby {
    async fn with(unknown: usize) -> Self {
        let t = Harness::new().await;
        let threads = Threads::new(&t, 1).await;
        let place = Place::Thread(threads.handles[0].clone());
        let listener = Guest::new(&t, place, Dialect::Json(Feed::Diff)).await;
        listener.join(&t, LOBBY, "listener").await;
        let mut lobby = Self { t, threads, listener, others: Vec::new() };
        for n in 0..=unknown {
            lobby.enter().await;
            let news = lobby.heard().await;
            assert_eq!(news, ["* *", ""][n.min(1)], "the state, and that the first has come");
        }
        lobby
    }

    async fn enter(&mut self) {
        let place = Place::Thread(self.threads.handles[0].clone());
        let guest = Guest::new(&self.t, place, Dialect::Raw).await;
        guest.join(&self.t, LOBBY, &format!("user {}", self.others.len())).await;
        self.others.push(guest);
    }

    fn say(&self, who: usize, text: &str) {
        self.others[who].say(&self.t, LOBBY, text);
    }

    /// What the listener has heard since this was asked, with `*` for each list.
    async fn heard(&mut self) -> String {
        self.threads.sync(&self.t).await;
        self.threads.sync(&self.t).await;
        heard(&mut self.listener).await
    }

    /// The same, when so much time has passed that a list may go out.
    async fn heard_later(&mut self) -> String {
        let before = self.heard().await;
        assert_eq!(before, "", "everything waits");
        self.t.clock.advance(secs(2));
        self.heard().await
    }
}

async fn heard(guest: &mut Guest) -> String {
    let frames = guest.frames().await.into_iter();
    let texts = frames.map(|frame| match frame.kind {
        Forwarded::Message => frame.payload.to_string(),
        _ => "*".to_owned(),
    });
    texts.collect::<Vec<_>>().join(" ")
}

#[actix::test]
async fn who_is_known_is_heard_at_once_and_who_is_not_after_the_list() {
    let mut lobby = Lobby::with(1).await;
    lobby.say(1, "unknown");
    lobby.say(0, "known");
    lobby.say(1, "again");
    assert_eq!(lobby.heard().await, "known");
    assert_eq!(lobby.heard_later().await, "* unknown again");
}

#[actix::test]
async fn messages_of_several_who_are_not_known_share_one_list() {
    let mut lobby = Lobby::with(3).await;
    for (who, text) in [(1, "a"), (3, "b"), (2, "c"), (1, "d")] {
        lobby.say(who, text);
    }
    assert_eq!(lobby.heard_later().await, "* a b c d");
}

#[actix::test]
async fn where_one_left_before_another_came_there_are_several_lists_each_with_its_messages() {
    let mut lobby = Lobby::with(1).await;
    for (who, text) in [(1, "one"), (2, "two"), (3, "three")] {
        lobby.say(who, text);
        lobby.others[who].leave(&lobby.t, LOBBY).await;
        lobby.enter().await;
    }
    assert_eq!(lobby.heard_later().await, "* one * two * three *");
}

#[actix::test]
async fn no_more_than_a_mebibyte_of_messages_waits() {
    let mut lobby = Lobby::with(1).await;
    let text = "x".repeat(100 * 1024);
    for _ in 0..10 {
        lobby.say(1, &text);
        assert_eq!(lobby.heard().await, "");
    }
    lobby.say(1, &text);
    let heard = lobby.heard().await;
    assert_eq!(heard, format!("*{}", format!(" {text}").repeat(11)));
}

#[actix::test]
async fn what_one_says_in_a_row_stays_in_order_when_the_last_listener_leaves_meanwhile() {
    let mut lobby = Lobby::with(1).await;
    assert_eq!(heard(&mut lobby.others[0]).await, "");
    lobby.say(1, "first");
    // In one turn.
    lobby.t.registry.do_send(Leave::new(room(LOBBY), lobby.listener.id()));
    lobby.say(1, "second");
    lobby.threads.sync(&lobby.t).await;
    assert_eq!(heard(&mut lobby.others[0]).await, "first second");
}

#[actix::test]
async fn a_message_waits_no_longer_than_a_second_for_a_thread_that_stands_still() {
    let mut lobby = Lobby::with(0).await;
    let still = Arbiter::new();
    let place = Place::Thread(still.handle());
    let mut other = Guest::new(&lobby.t, place, Dialect::Json(Feed::Diff)).await;
    other.join(&lobby.t, LOBBY, "other").await;
    assert_eq!(lobby.heard_later().await, "*");
    lobby.t.clock.advance(secs(2));
    // What comes of that list has come from both threads.
    for _ in 0..10 {
        on(&still.handle(), || ()).await;
    }
    lobby.say(0, "begin");
    assert_eq!(lobby.heard().await, "begin");
    assert_eq!(other.next().await.kind, Forwarded::State);
    assert_eq!(other.next().await.payload, "begin");

    let let_go = stall(&still.handle()).await;
    lobby.enter().await;
    assert_eq!(lobby.heard().await, "*", "which is under way to the other");
    lobby.enter().await;
    lobby.say(2, "hello");
    lobby.t.clock.advance(Duration::from_millis(999));
    assert_eq!(lobby.heard().await, "");
    lobby.t.clock.advance(Duration::from_millis(1));
    assert_eq!(lobby.heard().await, "* hello");
    drop(let_go);
    on(&still.handle(), || ()).await;
    lobby.heard().await;
    assert_eq!(heard(&mut other).await, "* * hello");
}

#[actix::test]
async fn who_has_refused_a_list_hears_of_one_who_has_left_before_the_next_list() {
    let mut lobby = Lobby::with(0).await;
    lobby.t.clock.advance(secs(2));
    let slow = Arbiter::new().handle();
    let still = Arbiter::new().handle();
    // Its join is made on this thread, which goes on while the session's own is stopped.
    let (probe, listener) = on(&slow, Probe::<Heard>::new).await;
    let mut listener = (ConnectionId::new(), listener);
    let join = Join::new(room(LOBBY), listener.0, probe.clone().recipient());
    let join = join.dialect(Dialect::Json(Feed::Full));
    let place = Place::Thread(still.clone());
    let other = Guest::new(&lobby.t, place, Dialect::Json(Feed::Diff)).await;
    other.join(&lobby.t, LOBBY, "other").await;
    assert_eq!(lobby.heard().await, "*");
    lobby.t.clock.advance(secs(2));

    let (slow_goes_on, still_goes_on) = (stall(&slow).await, stall(&still).await);
    lobby.t.registry.send(join).await.unwrap().unwrap();
    lobby.heard().await;
    lobby.t.clock.advance(secs(2));
    // Of this one it is not told, as its state has not been taken; and the list is under way.
    lobby.enter().await;
    lobby.enter().await;
    lobby.say(2, "bye");
    lobby.others[2].leave(&lobby.t, LOBBY).await;
    drop(slow_goes_on);
    assert!(listener.1.next().await.is_some(), "its state");
    on(&slow, || ()).await;
    lobby.t.clock.advance(Duration::from_millis(60));
    lobby.heard().await;
    lobby.t.clock.advance(secs(1));
    lobby.heard().await;
    drop(still_goes_on);

    let mut list = String::new();
    loop {
        let Some(Heard::Frame(frame)) = listener.1.next().await else { panic!("no frame") };
        if frame.kind == Forwarded::Message {
            assert_eq!(frame.payload, "bye");
            break;
        }
        list = frame.payload.to_string();
    }
    assert!(list.contains("\"user 2\""), "{list}");
}

/// More than a slice has at most.
const MEMBERS: usize = 1500;

type Book = Arc<Mutex<Vec<(usize, Forwarded)>>>;

/// Waits until all have got a frame of this kind.
async fn everybody_has(t: &Harness, threads: &mut Threads, book: &Book, kind: Forwarded) {
    let count = || book.lock().unwrap().iter().filter(|(_, one)| *one == kind).count();
    for _ in 0..1000 {
        t.clock.advance(Duration::from_millis(10));
        threads.sync(t).await;
        if count() >= MEMBERS {
            return;
        }
    }
    panic!("{} of {MEMBERS}", count());
}

/// A session that notes in a common book what it gets.
struct Scribe(usize, Book);

impl Actor for Scribe {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(4096);
    }
}

impl Handler<ForwardMessage> for Scribe {
    type Result = ();

    fn handle(&mut self, frame: ForwardMessage, _: &mut Context<Self>) {
        self.1.lock().unwrap().push((self.0, frame.kind));
    }
}

impl Handler<Disconnect> for Scribe {
    type Result = ();

    fn handle(&mut self, msg: Disconnect, _: &mut Context<Self>) {
        panic!("put out: {msg:?}");
    }
}

#[actix::test]
async fn a_message_waits_for_a_list_in_slices_and_the_state_of_a_newcomer_passes_both() {
    let t = Harness::new().await;
    let mut threads = Threads::new(&t, 1).await;
    let thread = threads.handles[0].clone();
    let book = Arc::new(Mutex::new(Vec::new()));
    let (registry, written) = (t.registry.clone(), Arc::clone(&book));
    let sessions = on(&thread, move || {
        let sessions = (0..=MEMBERS).map(|number| {
            let connection = Connection::new(registry.clone());
            let scribe = Scribe(number, Arc::clone(&written)).start();
            let join = connection.join(room(LOBBY), scribe);
            (connection, join.dialect(Dialect::Json(Feed::Diff)))
        });
        sessions.collect::<Vec<_>>()
    });
    let (connections, mut joins): (Vec<_>, Vec<_>) = sessions.await.into_iter().unzip();
    let newcomer = joins.pop().unwrap();
    for join in joins {
        t.registry.send(join).await.unwrap().unwrap();
    }
    let last = connections[MEMBERS - 1].id();
    t.registry.do_send(Publish::new(room(LOBBY), "marker").sent_by(last));
    // It comes after all lists.
    everybody_has(&t, &mut threads, &book, Forwarded::Message).await;
    book.lock().unwrap().clear();

    let let_go = stall(&thread).await;
    let speaker = Guest::new(&t, Place::Here, Dialect::Raw).await;
    speaker.join(&t, LOBBY, "speaker").await;
    speaker.say(&t, LOBBY, "hello");
    let joined = t.registry.send(newcomer);
    // The registry has sent everything.
    t.registry.send(GetOccupancy { room: room(LOBBY) }).await.unwrap().unwrap();
    drop(let_go);
    joined.await.unwrap().unwrap();
    everybody_has(&t, &mut threads, &book, Forwarded::Message).await;

    let book = book.lock().unwrap();
    assert_eq!(book.len(), 2 * MEMBERS + 1, "a list and the message each, and one state");
    let state = book.iter().position(|one| *one == (MEMBERS, Forwarded::State)).unwrap();
    let last_list = book.iter().rposition(|(_, kind)| *kind == Forwarded::Diff).unwrap();
    assert!(state < last_list, "{state} after {last_list}");
    for member in 0..MEMBERS {
        let got = book.iter().filter(|(one, _)| *one == member).map(|(_, kind)| *kind);
        let got: Vec<_> = got.collect();
        assert_eq!(got, [Forwarded::Diff, Forwarded::Message], "{member}");
    }
}
