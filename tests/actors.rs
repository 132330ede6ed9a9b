//! The actors together: delivery, coalesced member lists, observers, limits, the hook, the end.

mod common;

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use actix::prelude::*;
use actix_presence::{
    testing::{Heard, Probe, Seen},
    *,
};
use common::{Harness, Session, room, secs, user};
use serde_json::{Value, json};

/// Longer than any window that a busy machine makes of the 50 ms.
const WINDOW: Duration = Duration::from_secs(10);

async fn enter(t: &Harness, name: &str, who: Option<&str>, feed: Feed) -> Session {
    let session = t.session();
    let join = session.joining(name, who).dialect(Dialect::Json(feed));
    t.registry.send(join).await.unwrap().unwrap();
    session
}

async fn next(session: &mut Session) -> Value {
    serde_json::from_str(&session.next_frame().await).unwrap()
}

// --- member lists ------------------------------------------------------------------------------

#[actix::test]
async fn newcomers_are_told_at_once_who_is_there_and_the_others_of_a_storm_in_one_list() {
    for (feed, first) in [(Feed::Diff, "presence_state"), (Feed::Count, "presence_count")] {
        let t = Harness::new().await;
        let mut sessions = Vec::new();
        for n in 1..=1000 {
            let mut newcomer = enter(&t, "lobby", Some(&format!("user {n}")), feed).await;
            // It is there with the answer to the join, though the clock stands still.
            let told = newcomer.frames().await;
            let [list] = &told[..] else { panic!("{} frames", told.len()) };
            let list: Value = serde_json::from_str(list).unwrap();
            assert_eq!((&list["type"], &list["payload"]["version"]), (&json!(first), &json!(n)));
            sessions.push((n, newcomer));
        }
        // The second was a change when nothing had been told for long; the window is not over.
        let change = &sessions[0].1.frames().await[..];
        assert_eq!(change.len(), 1);
        t.clock.advance(WINDOW);
        for (came, session) in &mut sessions[..999] {
            let change = next(session).await;
            let since = change["payload"]["since"].as_u64();
            assert!(feed == Feed::Count || since == Some((*came).max(2)), "{came}: {since:?}");
            assert_eq!(change["payload"]["version"], 1000);
            assert!(session.frames().await.is_empty());
        }
        assert!(sessions[999].1.frames().await.is_empty(), "the last one knows all");
    }
}

#[actix::test]
async fn the_first_list_of_who_gets_it_whole_has_the_newcomer_in_it() {
    let t = Harness::new().await;
    for n in 1..=200 {
        let who = format!("user {n}");
        let mut newcomer = enter(&t, "lobby", Some(&who), Feed::Full).await;
        let list = match newcomer.frames().await.first() {
            Some(list) => serde_json::from_str(list).unwrap(),
            None => {
                // It waits until the room may take as long for another encoding.
                t.clock.advance(WINDOW);
                next(&mut newcomer).await
            }
        };
        let members = list["payload"]["members"].as_array().unwrap();
        assert!(members.iter().any(|member| member["id"] == *who), "{who}");
        t.clock.advance(Duration::from_micros(n * 50));
    }
}

#[actix::test]
async fn the_default_list_has_the_shape_of_the_originals_documentation() {
    let t = Harness::new().await;
    let mut ada = enter(&t, "lobby", Some("ada"), Feed::Full).await;
    assert_eq!(
        next(&mut ada).await,
        json!({"type": "presence", "payload": {
            "channel_name": "lobby", "lurkers": 0, "version": 1,
            "members": [{"id": "ada", "info": {}, "connections": 1}],
        }})
    );
}

#[actix::test]
async fn diffs_chain_without_a_gap_from_the_state_to_the_latest_version() {
    let t = Harness::new().await;
    let mut ada = enter(&t, "lobby", Some("ada"), Feed::Diff).await;
    let state = next(&mut ada).await;
    assert_eq!(state["type"], "presence_state");
    assert_eq!(state["payload"]["epoch"].as_str().map(str::len), Some(16));
    let mut version = state["payload"]["version"].clone();

    for step in 0..5 {
        t.clock.advance(WINDOW);
        let bob = enter(&t, "lobby", Some("bob"), Feed::Diff).await;
        let lurker = enter(&t, "lobby", None, Feed::None).await;
        t.clock.advance(WINDOW);
        for session in [bob, lurker] {
            assert!(t.leave(&session, "lobby").await);
        }
        t.clock.advance(WINDOW);
        let last = 1 + 4 * (step + 1);
        while version != last {
            let diff = next(&mut ada).await;
            assert_eq!(diff["type"], "presence_diff");
            assert_eq!(diff["payload"]["since"], version);
            version = diff["payload"]["version"].clone();
        }
    }
}

#[actix::test]
async fn a_user_who_leaves_and_comes_back_within_the_window_was_never_away() {
    let t = Harness::new().await;
    let mut ada = enter(&t, "lobby", Some("ada"), Feed::Diff).await;
    next(&mut ada).await;
    t.clock.advance(WINDOW);
    let bob = enter(&t, "lobby", Some("bob"), Feed::None).await;
    let joined = next(&mut ada).await;
    assert_eq!(joined["payload"]["joins"][0]["id"], "bob");

    t.leave(&bob, "lobby").await;
    t.join(&bob, "lobby", Some("bob")).await.unwrap();
    t.clock.advance(WINDOW);
    let diff = next(&mut ada).await;
    assert_eq!(diff["payload"]["since"], 2);
    assert_eq!(diff["payload"]["version"], 4);
    assert_eq!((&diff["payload"]["joins"], &diff["payload"]["leaves"]), (&json!([]), &json!([])));
}

#[actix::test]
async fn a_diff_says_why_the_last_connection_of_a_user_went() {
    let t = Harness::new().await;
    let bob = enter(&t, "lobby", Some("bob"), Feed::None).await;
    t.clock.advance(secs(61));
    let mut ada = enter(&t, "lobby", Some("ada"), Feed::Diff).await;
    next(&mut ada).await;
    t.clock.advance(WINDOW);
    assert_eq!(t.prune().await.removed(), 1);
    let gone = &next(&mut ada).await["payload"]["leaves"];
    assert_eq!(*gone, json!([{"id": "bob", "info": {}, "cause": "expired"}]), "{}", bob.id);
}

#[actix::test]
async fn counts_are_told_as_counts_and_none_as_nothing() {
    let t = Harness::new().await;
    let mut silent = enter(&t, "lobby", Some("silent"), Feed::None).await;
    let mut counting = enter(&t, "lobby", None, Feed::Count).await;
    assert_eq!(
        next(&mut counting).await,
        json!({"type": "presence_count", "payload":
            {"channel_name": "lobby", "users": 1, "lurkers": 1, "version": 2}})
    );
    t.clock.advance(WINDOW);
    t.enter("lobby", Some("bob")).await;
    assert_eq!(next(&mut counting).await["payload"]["users"], 2);
    assert!(silent.frames().await.is_empty());
}

// --- messages ----------------------------------------------------------------------------------

#[actix::test]
async fn a_message_reaches_exactly_the_members_each_in_its_dialect() {
    let t = Harness::new().await;
    let mut raw = t.enter("lobby", Some("raw")).await;
    let mut json = enter(&t, "lobby", Some("json"), Feed::None).await;
    let mut left = t.enter("lobby", Some("left")).await;
    let mut elsewhere = t.enter("elsewhere", None).await;
    t.leave(&left, "lobby").await;

    let payload = serde_json::value::to_raw_value(&json!({"text": "hi"})).unwrap();
    let publish = Publish::json(room("lobby"), payload).sent_by(json.id);
    assert_eq!(t.registry.send(publish).await.unwrap(), Ok(2));
    assert_eq!(raw.frames().await, [r#"{"text":"hi"}"#]);
    let framed: Value = serde_json::from_str(&json.frames().await[0]).unwrap();
    assert_eq!(
        framed,
        json!({"type": "message", "payload": {"text": "hi"},
            "from": {"id": "json", "connection": json.id.to_string()}})
    );
    assert!(left.heard().await.is_empty() && elsewhere.heard().await.is_empty());
}

#[actix::test]
async fn only_a_member_may_send_in_its_own_name_and_the_sender_can_be_left_out() {
    let t = Harness::new().await;
    let mut ada = t.enter("lobby", Some("ada")).await;
    let stranger = t.enter("elsewhere", Some("eve")).await;
    let publish = || Publish::new(room("lobby"), "hi");
    assert_eq!(
        t.registry.send(publish().sent_by(stranger.id)).await.unwrap(),
        Err(PublishError::NotAMember)
    );
    assert_eq!(t.registry.send(publish().except(ada.id)).await.unwrap(), Ok(0));
    assert!(ada.heard().await.is_empty());
}

/// A session or an observer that is stuck in its handler until it is let go.
struct Stuck<M: Send + 'static> {
    entered: Sender<M>,
    go: Receiver<()>,
}

impl<M: Send + Unpin + 'static> Actor for Stuck<M> {
    type Context = Context<Self>;
}

impl<M: Message<Result = ()> + Send + Unpin + 'static> Handler<M> for Stuck<M> {
    type Result = ();
    fn handle(&mut self, msg: M, _: &mut Context<Self>) {
        let _ = self.entered.send(msg);
        let _ = self.go.recv();
    }
}

/// Starts one on a thread of its own; dropping the sender lets it go for good.
fn stuck<M: Message<Result = ()> + Send + Unpin + 'static>()
-> (Addr<Stuck<M>>, Receiver<M>, Sender<()>) {
    stuck_on(&Arbiter::new())
}

fn stuck_on<M: Message<Result = ()> + Send + Unpin + 'static>(
    arbiter: &Arbiter,
) -> (Addr<Stuck<M>>, Receiver<M>, Sender<()>) {
    let ((entered, seen), (let_go, go)) = (channel(), channel());
    let start = move |_: &mut Context<Stuck<M>>| Stuck { entered, go };
    (Stuck::start_in_arbiter(&arbiter.handle(), start), seen, let_go)
}

#[actix::test]
async fn a_member_that_takes_nothing_is_put_out_with_4003_and_the_others_get_everything() {
    let mut t = Harness::new().await;
    let (slow, seen, let_go) = stuck::<ForwardMessage>();
    let (closer, mut closed) = Probe::<Heard>::new();
    let id = ConnectionId::new();
    let join = Join::new(room("lobby"), id, slow.recipient()).disconnect(closer.recipient());
    t.registry.send(join).await.unwrap().unwrap();
    let mut healthy = t.enter("lobby", Some("healthy")).await;
    t.changes().await;

    let mut said = 0;
    while t.snapshot("lobby").await.unwrap().anonymous_count() == 1 {
        said += 1;
        assert!(said < 1000, "a bounded number of messages");
        t.say("lobby", "flood").await;
    }
    assert_eq!(healthy.frames().await.len(), said);
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!(change.cause(), Some(Cause::SlowConsumer));
    let Some(Heard::Close(close)) = closed.next().await else { panic!("an order to close") };
    assert_eq!(close, Disconnect { code: 4003, cause: Cause::SlowConsumer });
    drop((let_go, seen));
}

#[actix::test]
async fn a_member_whose_actor_has_stopped_is_found_out_and_leaves() {
    let mut t = Harness::new().await;
    let arbiter = Arbiter::new();
    let (gone, _, _) = stuck_on::<ForwardMessage>(&arbiter);
    let id = ConnectionId::new();
    let join = Join::new(room("lobby"), id, gone.clone().recipient());
    t.registry.send(join).await.unwrap().unwrap();
    t.changes().await;
    arbiter.stop();
    arbiter.join().unwrap();

    t.say("lobby", "hello?").await;
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!(
        (change.cause(), change.removed().unwrap().connection),
        (Some(Cause::Disconnected), id)
    );
}

// --- observers -----------------------------------------------------------------------------------

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

// --- limits, the hook, putting out ---------------------------------------------------------------

#[actix::test]
async fn a_join_over_a_limit_is_refused_and_changes_nothing() {
    let mut t = Harness::with("sqlite::memory:", |c| c.room_size(1).rooms_per_connection(2)).await;
    let ada = t.enter("a", Some("ada")).await;
    let bob = t.session();
    let full = JoinError::Limit(LimitReached::RoomFull { limit: 1 });
    assert_eq!(t.join(&bob, "a", None).await.unwrap_err(), full);
    let admit = Admit { room: room("a"), user: None, info: Info::EMPTY, session: None };
    assert_eq!(t.registry.send(admit).await.unwrap(), Err(full));
    assert!(t.join(&ada, "a", Some("ada2")).await.is_ok(), "who is in may change its user");
    t.join(&ada, "b", None).await.unwrap();
    let many = JoinError::Limit(LimitReached::TooManyRooms { limit: 2 });
    assert_eq!(t.join(&ada, "c", None).await.unwrap_err(), many);
    assert_eq!(t.changes().await.len(), 3);
    assert_eq!(t.say("a", "hi").await, 1);
}

#[actix::test]
async fn the_authorize_hook_decides_and_its_panic_denies_but_ends_nothing() {
    let t = Harness::with("sqlite::memory:", |config| {
        config.authorize(|room, user, info| match room.as_str() {
            "staff" if user.is_none() => Decision::deny("staff only"),
            "vip" if info.is_empty() => Decision::deny("say who you are"),
            "boom" => panic!("the app's own fault"),
            _ => Decision::Allow,
        })
    })
    .await;
    let denied = |result: Result<Joined, JoinError>| match result {
        Err(JoinError::Denied { reason }) => reason.into_owned(),
        other => panic!("not denied: {other:?}"),
    };
    let session = t.session();
    assert_eq!(denied(t.join(&session, "staff", None).await), "staff only");
    assert_eq!(denied(t.join(&session, "vip", Some("ada")).await), "say who you are");
    assert_eq!(denied(t.join(&session, "boom", Some("ada")).await), "authorization failed");
    assert!(t.join(&session, "staff", Some("ada")).await.unwrap().changed);
}

#[actix::test]
async fn a_kick_puts_a_connection_or_all_of_a_user_out_of_every_room() {
    let mut t = Harness::new().await;
    let mut tab = t.enter("a", Some("ada")).await;
    t.join(&tab, "b", Some("ada")).await.unwrap();
    let mut phone = t.enter("a", Some("ada")).await;
    let mut bob = t.enter("a", Some("bob")).await;
    t.changes().await;

    assert_eq!(t.registry.send(Kick::User(user("ada"))).await.unwrap().connections, 2);
    assert_eq!(t.registry.send(Kick::User(user("ada"))).await.unwrap().connections, 0);
    assert_eq!(t.users("a").await, ["bob"]);
    let kicked = Disconnect { code: 4001, cause: Cause::Kicked };
    assert_eq!([tab.closed().await, phone.closed().await], [kicked; 2]);
    assert_eq!(t.changes().await.len(), 3);

    assert_eq!(t.registry.send(Kick::Connection(bob.id)).await.unwrap().connections, 1);
    assert_eq!(bob.closed().await, kicked);
    let nobody = Kick::Connection(ConnectionId::new());
    assert_eq!(t.registry.send(nobody).await.unwrap(), Kicked::default());
}

#[actix::test]
async fn closing_a_room_is_one_change_and_closes_those_who_are_nowhere_else() {
    let mut t = Harness::new().await;
    let mut only_here = t.enter("a", Some("ada")).await;
    let mut elsewhere_too = t.enter("a", Some("bob")).await;
    t.join(&elsewhere_too, "b", Some("bob")).await.unwrap();
    t.changes().await;

    assert_eq!(t.registry.send(CloseRoom { room: room("a") }).await.unwrap().connections, 2);
    assert_eq!(only_here.closed().await, Disconnect { code: 4004, cause: Cause::RoomClosed });
    let heard = elsewhere_too.heard().await;
    let [Heard::Frame(closed)] = &heard[..] else { panic!("one message: {heard:?}") };
    let room_closed = Forwarded::Closed { cause: Cause::RoomClosed };
    assert_eq!((closed.kind, closed.room.as_str()), (room_closed, "a"));
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!((change.leaves().len(), change.bulk_change()), (2, true));
    t.join(&only_here, "a", None).await.unwrap();
    assert!(t.change().await.version > change.version, "versions go on above the old ones");
}

#[actix::test]
async fn who_is_where_is_told_by_user_by_room_and_in_pages() {
    let t = Harness::new().await;
    let ada = t.enter("b", Some("ada")).await;
    t.join(&ada, "a", Some("ada")).await.unwrap();
    t.enter("b", Some("ada")).await;
    t.enter("c", None).await;

    let rooms = t.registry.send(WhereIs { user: user("ada") }).await.unwrap().unwrap();
    assert_eq!(rooms, [(room("a"), 1), (room("b"), 2)]);
    let page =
        |after: Option<&str>| t.registry.send(ListRooms { after: after.map(room), limit: 2 });
    let names = |page: Vec<RoomSummary>| -> Vec<String> {
        page.into_iter().map(|summary| summary.room.to_string()).collect()
    };
    assert_eq!(names(page(None).await.unwrap().unwrap()), ["a", "b"]);
    assert_eq!(names(page(Some("b")).await.unwrap().unwrap()), ["c"]);
    let presences = |after| t.registry.send(ListPresences { room: room("b"), after, limit: 1 });
    let first = presences(None).await.unwrap().unwrap().unwrap().remove(0);
    assert_eq!((first.presence.connection, first.last_seen), (ada.id, t.clock.now()));
    let second = presences(Some(first.presence.clone())).await.unwrap().unwrap().unwrap().remove(0);
    assert_ne!(second.presence.connection, ada.id);
    assert_eq!(presences(Some(second.presence)).await.unwrap().unwrap(), Some(vec![]));
}

#[actix::test]
async fn a_shutdown_says_goodbye_to_everybody_and_lets_nobody_in_any_more() {
    let mut t = Harness::new().await;
    let mut ada = t.enter("lobby", Some("ada")).await;
    let bob = t.enter("lobby", Some("bob")).await;
    t.changes().await;
    t.registry.send(Shutdown).await.unwrap().unwrap();
    assert_eq!(ada.closed().await, Disconnect { code: 1001, cause: Cause::Shutdown });
    let change = t.change().await;
    assert_eq!((change.leaves().len(), change.cause()), (2, Some(Cause::Shutdown)));
    assert_eq!(t.join(&bob, "lobby", None).await.unwrap_err(), JoinError::ShuttingDown);
    assert!(t.registry.send(GetStatus).await.unwrap().closing);
}

#[actix::test]
async fn a_member_whose_actor_has_ended_leaves_as_the_others_do_once_a_stop_has_told_it_to_close() {
    let mut t = Harness::new().await;
    let arbiter = Arbiter::new();
    let (gone, _, _) = stuck_on::<ForwardMessage>(&arbiter);
    let id = ConnectionId::new();
    t.registry.send(Join::new(room("lobby"), id, gone.recipient())).await.unwrap().unwrap();
    let mut ada = t.enter("lobby", Some("ada")).await;
    t.changes().await;
    arbiter.stop();
    arbiter.join().unwrap();

    let stopping = t.registry.send(Shutdown);
    assert_eq!(ada.closed().await.cause, Cause::Shutdown);
    // All have been told. Ada stays a little, so this finds out who does not take it.
    t.say("lobby", "hello?").await;
    let change = t.change().await;
    assert_eq!(change.leaves()[0].presence.connection, id);
    assert_eq!(change.cause(), Some(Cause::Shutdown));
    stopping.await.unwrap().unwrap();
}

// --- the session helper --------------------------------------------------------------------------

#[actix::test]
async fn dropping_a_connection_leaves_every_room_with_the_cause_it_was_given() {
    let mut t = Harness::new().await;
    for (goodbye, cause) in [(false, Cause::Disconnected), (true, Cause::Left)] {
        let mut me = Connection::new(t.registry.clone());
        let (addr, _heard) = Probe::<Heard>::new();
        for name in ["a", "b"] {
            t.registry.send(me.join(room(name), addr.clone())).await.unwrap().unwrap();
        }
        t.changes().await;
        if goodbye {
            me.goodbye();
        }
        drop(me);
        let changes = t.changes().await;
        assert_eq!(changes.len(), 2);
        assert!(changes.iter().all(|change| change.cause() == Some(cause)));
    }
}
