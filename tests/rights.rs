//! Who may join, publish and see names: the hooks of the app, and the rights that they give.

mod common;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use actix::prelude::*;
use actix_presence::*;
use common::{Harness, Session, dispatched, room, secs, user};
use futures_util::future::join_all;
use serde_json::{Value, json, value::to_raw_value};
use tokio::sync::Semaphore;

/// A hook whose answers for some rooms wait, and how often it was called.
#[derive(Clone, Default)]
struct Gates {
    gates: Arc<Mutex<HashMap<String, Arc<Semaphore>>>>,
    calls: Arc<Mutex<Vec<String>>>,
    dropped: Arc<AtomicUsize>,
}

impl Gates {
    fn close(&self, room: &str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.gates.lock().unwrap().insert(room.to_owned(), Arc::clone(&gate));
        gate
    }

    fn calls(&self, room: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|name| *name == room).count()
    }

    async fn ask(self, join: JoinRequest) -> Decision {
        struct Dropped(Arc<AtomicUsize>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let _dropped = Dropped(Arc::clone(&self.dropped));
        let name = join.room.as_str().to_owned();
        self.calls.lock().unwrap().push(name.clone());
        let gate = self.gates.lock().unwrap().get(&name).cloned();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        match (&*name, join.user.as_ref().map(UserId::as_str)) {
            ("boom", _) => panic!("the app's own fault"),
            ("down", _) => Decision::Undecided,
            ("closed", _) => Decision::Grant(Rights::NONE),
            ("staff", None) => Decision::deny("log in first"),
            (_, Some("reader")) => Decision::Grant(Rights { publish: false, ..Rights::ALL }),
            (_, Some("counter")) => Decision::Grant(Rights { members: false, ..Rights::ALL }),
            _ => Decision::Allow,
        }
    }

    async fn harness(&self) -> Harness {
        let hook = self.clone();
        Harness::with("sqlite::memory:", |config| {
            config.grace(secs(10)).authorize_async(move |join| hook.clone().ask(join))
        })
        .await
    }
}

fn send(t: &Harness, join: Join) -> Request<RoomRegistry, Join> {
    t.registry.send(join)
}

fn reason(joined: Result<Joined, JoinError>) -> String {
    match joined {
        Err(JoinError::Denied { reason }) => reason.into_owned(),
        other => panic!("not denied: {other:?}"),
    }
}

/// Waits until the registry has handled what was sent to it before.
async fn handled(t: &Harness) -> Status {
    t.registry.send(GetStatus).await.unwrap()
}

/// Waits until the hook was called so often for a room.
async fn called(gates: &Gates, room: &str, times: usize) {
    while gates.calls(room) < times {
        tokio::task::yield_now().await;
    }
}

#[actix::test]
async fn a_slow_answer_delays_its_own_join_and_no_other_one() {
    let gates = Gates::default();
    let gate = gates.close("gate");
    let t = gates.harness().await;
    let slow = t.session();
    let waiting = actix::spawn(send(&t, slow.joining("gate", Some("ada"))));
    called(&gates, "gate", 1).await;
    let sessions: Vec<_> = (0..20).map(|_| t.session()).collect();
    let joins = sessions.iter().map(|session| t.join(session, "lobby", None));
    assert!(join_all(joins).await.iter().all(Result::is_ok));
    // The same session, the same room: all go on.
    t.join(&slow, "lobby", Some("ada")).await.unwrap();
    assert_eq!(t.say("lobby", "hi").await, 21);
    assert!(!waiting.is_finished(), "it waits");
    assert!(t.snapshot("gate").await.is_none());
    gate.add_permits(1);
    assert!(waiting.await.unwrap().unwrap().unwrap().changed);
    assert_eq!(t.users("gate").await, ["ada"]);
}

#[actix::test]
async fn both_hooks_decide_and_after_a_panic_or_silence_nobody_knows() {
    let gates = Gates::default();
    let gate = gates.close("gate");
    let (hook, asked) = (gates.clone(), Arc::<AtomicUsize>::default());
    let count = Arc::clone(&asked);
    let t = Harness::with("sqlite::memory:", |config| {
        config
            .authorize(move |room, _, _| match room.as_str() {
                "lobby" => {
                    count.fetch_add(1, SeqCst);
                    Decision::Allow
                }
                "never" => Decision::deny("never"),
                "quiet" => Decision::Grant(Rights { publish: false, ..Rights::ALL }),
                _ => Decision::Allow,
            })
            .authorize_async(move |join| hook.clone().ask(join))
            .authorize_timeout(secs(3600))
    })
    .await;
    let session = t.session();
    assert_eq!(reason(t.join(&session, "never", None).await), "never");
    assert_eq!(gates.calls("never"), 0, "the other hook need not be asked");
    assert_eq!(reason(t.join(&session, "staff", None).await), "log in first");
    assert_eq!(reason(t.join(&session, "closed", None).await), "unauthorized");
    for unknown in ["boom", "down"] {
        assert_eq!(t.join(&session, unknown, None).await.unwrap_err(), JoinError::Undecided);
    }
    let joined = t.join(&session, "quiet", Some("counter")).await.unwrap();
    assert_eq!(joined.rights, Rights { publish: false, members: false, join: true });
    let admit = |name| Admit { room: room(name), user: None, info: Info::EMPTY, session: None };
    assert!(t.registry.send(admit("staff")).await.unwrap().is_err());
    assert!(t.registry.send(admit("lobby")).await.unwrap().is_ok());
    assert_eq!((asked.load(SeqCst), gates.calls("lobby")), (1, 1), "each once");

    let waiting = actix::spawn(send(&t, session.joining("gate", None)));
    called(&gates, "gate", 1).await;
    t.clock.advance(secs(3601));
    t.join(&session, "lobby", None).await.unwrap();
    assert_eq!((asked.load(SeqCst), gates.calls("lobby")), (2, 2), "each once");
    assert_eq!(waiting.await.unwrap().unwrap().unwrap_err(), JoinError::Undecided);
    gate.add_permits(1);
    handled(&t).await;
    assert!(t.snapshot("gate").await.is_none(), "an answer that comes late is ignored");
}

#[actix::test]
async fn a_call_that_is_given_up_is_dropped() {
    let gates = Gates::default();
    let _gate = gates.close("gate");
    let hook = gates.clone();
    let t = Harness::with("sqlite::memory:", |config| {
        config
            .authorize_async(move |join| hook.clone().ask(join))
            .authorize_timeout(std::time::Duration::from_millis(1))
    })
    .await;
    let session = t.session();
    assert_eq!(t.join(&session, "gate", None).await.unwrap_err(), JoinError::Undecided);
    while gates.dropped.load(SeqCst) < gates.calls("gate") {
        tokio::task::yield_now().await;
    }
}

#[actix::test]
async fn a_join_that_waits_is_found_by_leaves_and_kicks() {
    let gates = Gates::default();
    let gate = gates.close("gate");
    let t = gates.harness().await;
    for number in 0..6 {
        let session = t.session();
        let waiting = actix::spawn(send(&t, session.joining("gate", Some("ada"))));
        called(&gates, "gate", number + 1).await;
        let expected = match number {
            0 => {
                assert!(!t.leave(&session, "gate").await);
                JoinError::Withdrawn
            }
            1 => {
                assert_eq!(t.registry.send(LeaveAll::new(session.id)).await.unwrap(), 0);
                JoinError::Withdrawn
            }
            _ => {
                let whom = match number {
                    2 | 4 => Kick::Connection(session.id),
                    _ => Kick::User(user("ada")),
                };
                let kicked = if number < 4 {
                    t.registry.send(whom).await
                } else {
                    t.registry.send(KickFrom { room: room("gate"), whom }).await
                };
                assert_eq!(kicked.unwrap().connections, 1);
                JoinError::Denied { reason: "kicked".into() }
            }
        };
        assert_eq!(waiting.await.unwrap().unwrap().unwrap_err(), expected);
    }
    gate.add_permits(6);
    handled(&t).await;
    assert!(t.snapshot("gate").await.is_none());
}

#[actix::test]
async fn who_is_kicked_from_a_room_takes_only_its_own_joins_along() {
    let gates = Gates::default();
    let gate = gates.close("gate");
    let t = gates.harness().await;
    let session = t.session();
    let joins =
        ["ada", "bob", "ada"].map(|who| actix::spawn(send(&t, session.joining("gate", Some(who)))));
    called(&gates, "gate", 1).await;
    handled(&t).await;
    let kick = KickFrom { room: room("gate"), whom: Kick::User(user("ada")) };
    assert_eq!(t.registry.send(kick).await.unwrap().connections, 1, "one with two joins");
    // While the call for the first one hangs.
    called(&gates, "gate", 2).await;
    gate.add_permits(2);
    let [first, second, third] = joins;
    for refused in [first, third] {
        assert_eq!(reason(refused.await.unwrap().unwrap()), "kicked");
    }
    assert!(second.await.unwrap().unwrap().unwrap().changed);
    assert_eq!(t.users("gate").await, ["bob"]);
}

#[actix::test]
async fn a_room_that_is_closed_takes_the_joins_along_that_wait_for_it() {
    let gates = Gates::default();
    let gate = gates.close("gate");
    let t = gates.harness().await;
    gate.add_permits(1);
    let member = t.enter("gate", Some("ada")).await;
    let (stranger, other) = (t.session(), t.session());
    let joins = [&member, &stranger, &stranger]
        .map(|one| actix::spawn(send(&t, one.joining("gate", None))));
    called(&gates, "gate", 3).await;
    let lobby = actix::spawn(send(&t, other.joining("lobby", None)));
    let close = CloseRoom { room: room("gate") };
    // The member and the stranger.
    assert_eq!(t.registry.send(close.clone()).await.unwrap().connections, 2);
    for join in joins {
        assert_eq!(reason(join.await.unwrap().unwrap()), "room_closed");
    }
    assert!(lobby.await.unwrap().unwrap().is_ok());
    gate.add_permits(3);
    handled(&t).await;
    assert!(t.snapshot("gate").await.is_none());
    assert_eq!(t.registry.send(close).await.unwrap().connections, 0);
    // Nobody is banned.
    assert!(t.join(&stranger, "gate", None).await.unwrap().changed);
}

#[actix::test]
async fn joins_of_one_connection_to_one_room_are_decided_in_their_order() {
    let gates = Gates::default();
    let gate = gates.close("gate");
    let t = gates.harness().await;
    let session = t.session();
    let joins: Vec<_> = ["ada", "reader", "bob"]
        .map(|who| actix::spawn(send(&t, session.joining("gate", Some(who)))))
        .into_iter()
        .collect();
    called(&gates, "gate", 1).await;
    handled(&t).await;
    assert_eq!(gates.calls("gate"), 1, "the later ones wait");
    gate.add_permits(3);
    let mut rights = Vec::new();
    for join in joins {
        rights.push(join.await.unwrap().unwrap().unwrap().rights.publish);
    }
    assert_eq!(rights, [true, false, true]);
    assert_eq!(t.users("gate").await, ["bob"]);
}

#[actix::test]
async fn calls_and_waiting_joins_are_bounded_and_a_stop_refuses_all() {
    let gates = Gates::default();
    let _gate = gates.close("gate");
    let t = gates.harness().await;
    let session = t.session();
    let admit = || Admit { room: room("gate"), user: None, info: Info::EMPTY, session: None };
    let mut waiting = Vec::new();
    for number in 0..16_384 {
        waiting.push(actix::spawn(t.registry.send(admit())));
        if number % 1024 == 0 {
            tokio::task::yield_now().await;
            handled(&t).await;
        }
    }
    tokio::task::yield_now().await;
    handled(&t).await;
    assert_eq!(t.join(&session, "lobby", None).await.unwrap_err(), JoinError::Busy);
    called(&gates, "gate", 256).await;
    handled(&t).await;
    assert_eq!(gates.calls("gate"), 256, "the others wait for their turn");
    let stopped = t.presence.clone().shutdown(secs(5)).await;
    stopped.unwrap();
    for answer in waiting {
        assert_eq!(answer.await.unwrap().unwrap(), Err(JoinError::ShuttingDown));
    }
}

// --- what rights give ----------------------------------------------------------------------------

async fn says(t: &Harness, session: &Session, name: &str) -> Result<usize, PublishError> {
    let hello = to_raw_value(&json!("hello")).unwrap();
    t.registry.send(Publish::json(room(name), hello).sent_by(session.id)).await.unwrap()
}

#[actix::test]
async fn a_member_without_the_right_to_publish_reads_and_updates_its_info() {
    let t = Gates::default().harness().await;
    let (mut reader, writer) =
        (t.enter("lobby", Some("reader")).await, t.enter("lobby", None).await);
    assert_eq!(says(&t, &reader, "lobby").await, Err(PublishError::NotAllowed));
    assert_eq!(says(&t, &writer, "lobby").await, Ok(2));
    assert_eq!(reader.frames().await, [r#""hello""#]);
    let info = Info::new(json!({"status": "away"})).unwrap();
    let (connection, lobby) = (reader.id, room("lobby"));
    let update = UpdateInfo { room: lobby, connection, info };
    assert!(t.registry.send(update).await.unwrap());
    // Another room, another right: and its newest join decides.
    t.join(&reader, "lobby", Some("ada")).await.unwrap();
    assert_eq!(says(&t, &reader, "lobby").await, Ok(2));
    t.join(&reader, "lobby", Some("reader")).await.unwrap();
    assert_eq!(says(&t, &reader, "lobby").await, Err(PublishError::NotAllowed));
    t.leave(&reader, "lobby").await;
    assert_eq!(says(&t, &reader, "lobby").await, Err(PublishError::NotAMember));
}

#[actix::test]
async fn a_resumed_session_has_the_rights_of_its_newest_join() {
    let may_publish = Arc::new(AtomicUsize::new(0));
    let hook = Arc::clone(&may_publish);
    let t = Harness::with("sqlite::memory:", |config| {
        config.grace(secs(10)).authorize_async(move |_| {
            let publish = hook.load(SeqCst) > 0;
            async move { Decision::Grant(Rights { publish, ..Rights::ALL }) }
        })
    })
    .await;
    let join = |session: &Session| {
        let key = SessionKey::new("tab").unwrap();
        send(&t, session.joining("lobby", Some("ada")).session(key))
    };
    let (old, new, last) = (t.session(), t.session(), t.session());
    join(&old).await.unwrap().unwrap();
    assert_eq!(says(&t, &old, "lobby").await, Err(PublishError::NotAllowed));
    t.registry.send(LeaveAll::because(old.id, Cause::Disconnected)).await.unwrap();
    assert_eq!(join(&new).await.unwrap().unwrap().presence, old.id);
    assert_eq!(says(&t, &new, "lobby").await, Err(PublishError::NotAllowed));
    may_publish.store(1, SeqCst);
    assert_eq!(join(&last).await.unwrap().unwrap().presence, old.id);
    assert_eq!(says(&t, &last, "lobby").await, Ok(1));
}

fn payload(frame: &str) -> Value {
    serde_json::from_str(frame).unwrap()
}

#[actix::test]
async fn a_member_without_the_right_to_see_members_gets_counts_in_every_dialect() {
    let t = Gates::default().harness().await;
    let ada = t.enter("lobby", Some("ada")).await;
    let dialects = [
        Dialect::Json(Feed::Full),
        Dialect::Json(Feed::Diff),
        Dialect::Json(Feed::None),
        Dialect::Phoenix,
        Dialect::Raw,
    ];
    let mut sessions = Vec::new();
    for dialect in dialects {
        let session = t.session();
        let join = session.joining("lobby", Some("counter")).dialect(dialect);
        let joined = t.registry.send(join).await.unwrap().unwrap();
        assert_eq!(joined.snapshot.users().count(), 0, "no names");
        assert_eq!(joined.snapshot.occupancy().users, 2);
        assert_eq!(joined.snapshot.occupancy().connections, sessions.len() + 2);
        assert!(!joined.snapshot.is_empty());
        sessions.push((dialect, session));
    }
    t.leave(&ada, "lobby").await;
    t.clock.advance(secs(1));
    t.enter("lobby", Some("bob")).await;
    // A list of his join alone is due a little later.
    t.clock.advance(secs(1));
    dispatched().await;
    for (dialect, mut session) in sessions {
        let mut frames = session.frames().await;
        while frames.iter().all(|frame| !frame.contains(r#""version":8"#))
            && !matches!(dialect, Dialect::Raw | Dialect::Json(Feed::None))
        {
            frames.push(session.next_frame().await);
        }
        assert!(frames.iter().all(|frame| !frame.contains("truncated")), "{frames:?}");
        assert!(frames.iter().all(|frame| !frame.contains("ada") && !frame.contains("bob")));
        match dialect {
            Dialect::Raw | Dialect::Json(Feed::None) => assert!(frames.is_empty(), "{frames:?}"),
            Dialect::Phoenix => {
                let frames: Vec<_> = frames.iter().map(|frame| payload(frame)).collect();
                assert_eq!((&frames[0][3], &frames[0][4]), (&json!("presence_state"), &json!({})));
                let counts = &frames[1..];
                assert!(counts.iter().all(|frame| frame[3] == "presence_count"), "{frames:?}");
                let expected = json!({"users": 2, "lurkers": 0, "version": 8});
                assert_eq!(counts.last().unwrap()[4], expected);
            }
            _ => {
                let counts = frames.iter().map(|frame| payload(frame)["type"].clone());
                assert!(counts.clone().all(|kind| kind == "presence_count"), "{frames:?}");
                let last = payload(frames.last().unwrap());
                let expected = json!({
                    "channel_name": "lobby", "users": 2, "lurkers": 0, "version": 8,
                });
                assert_eq!(last["payload"], expected);
            }
        }
    }
}
