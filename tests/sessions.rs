//! Client sessions that outlive their connections: fading, coming back, taking over.

mod common;

use actix_presence::*;
use common::{Harness, Session, room, secs, user};
use serde_json::{Value, json};

const GRACE: u64 = 10;

async fn harness(grace: u64) -> Harness {
    Harness::with("sqlite::memory:", |config| config.grace(secs(grace))).await
}

fn key(key: &str) -> SessionKey {
    SessionKey::new(key).unwrap()
}

/// A connection of Ada's tab joins.
async fn enter(t: &Harness, session: &Session, name: &str) -> Result<Joined, JoinError> {
    let join = session.joining(name, Some("ada")).session(key("tab"));
    t.registry.send(join.dialect(Dialect::Phoenix)).await.unwrap()
}

async fn ends(t: &Harness, session: &Session, cause: Cause) {
    t.registry.send(LeaveAll::because(session.id, cause)).await.unwrap();
}

async fn states(t: &Harness, name: &str) -> Vec<(ConnectionId, &'static str)> {
    let all = ListPresences { room: room(name), after: None, limit: 10 };
    let page = t.registry.send(all).await.unwrap().unwrap().unwrap_or_default();
    page.iter().map(|seen| (seen.presence.connection, seen.state.as_str())).collect()
}

#[actix::test]
async fn who_comes_back_within_the_grace_was_never_away() {
    let mut t = harness(GRACE).await;
    let (mut old, mut new) = (t.session(), t.session());
    enter(&t, &old, "lobby").await.unwrap();
    let before = t.snapshot("lobby").await.unwrap();
    t.changes().await;

    ends(&t, &old, Cause::Disconnected).await;
    assert_eq!(states(&t, "lobby").await, [(old.id, "fading")]);
    assert_eq!(t.say("lobby", "to nobody").await, 0, "nobody takes what is sent meanwhile");
    t.clock.advance(secs(GRACE - 1));
    let joined = enter(&t, &new, "lobby").await.unwrap();
    assert!(!joined.changed);
    assert_eq!(joined.presence, old.id, "the presence keeps its id");
    assert_eq!(joined.snapshot, before, "not even the version has changed");
    assert_eq!(states(&t, "lobby").await, [(old.id, "live")]);

    t.clock.advance(secs(GRACE));
    t.prune().await;
    assert!(t.changes().await.is_empty());
    assert_eq!(t.say("lobby", "hello").await, 1);
    let frames = new.frames().await;
    assert!(frames[0].contains("presence_state"), "{frames:?}");
    assert!(frames.last().unwrap().contains("hello"), "{frames:?}");
    assert!(old.heard().await.iter().all(|heard| !format!("{heard:?}").contains("hello")));
}

#[actix::test]
async fn who_does_not_come_back_leaves_when_the_grace_is_over() {
    let mut t = harness(GRACE).await;
    let old = t.session();
    for name in ["a", "b"] {
        enter(&t, &old, name).await.unwrap();
    }
    t.changes().await;
    ends(&t, &old, Cause::Disconnected).await;
    t.clock.advance(secs(GRACE));
    t.prune().await;
    let mut rooms = Vec::new();
    for change in t.changes().await {
        assert_eq!(change.cause(), Some(Cause::Disconnected));
        assert_eq!(change.offline()[0].user, user("ada"));
        rooms.push(change.room.to_string());
    }
    assert_eq!(rooms, ["a", "b"]);
    let gone = Explain { room: room("a"), connection: old.id };
    let explained = t.registry.send(gone).await.unwrap().unwrap().unwrap();
    assert_eq!(explained.seen.activity, Activity::Disconnect);
    assert_eq!(explained.departed.unwrap().cause, Cause::Disconnected);
}

#[actix::test]
async fn a_goodbye_without_a_key_or_without_a_grace_is_immediate() {
    for (grace, keyed, cause) in [
        (GRACE, true, Cause::Left),
        (GRACE, false, Cause::Disconnected),
        (0, true, Cause::Disconnected),
    ] {
        let t = harness(grace).await;
        let old = t.session();
        match keyed {
            true => enter(&t, &old, "lobby").await.unwrap(),
            false => t.join(&old, "lobby", Some("ada")).await.unwrap(),
        };
        ends(&t, &old, cause).await;
        assert!(t.snapshot("lobby").await.is_none(), "{grace} {keyed} {cause}");
    }
}

#[actix::test]
async fn a_connection_that_is_still_open_is_replaced_closed_and_heard_no_more() {
    for grace in [GRACE, 0] {
        let mut t = harness(grace).await;
        let (mut old, mut new) = (t.session(), t.session());
        enter(&t, &old, "lobby").await.unwrap();
        t.changes().await;
        assert!(!enter(&t, &new, "lobby").await.unwrap().changed);
        assert_eq!(old.closed().await, Disconnect { code: 4002, cause: Cause::Replaced });

        // What the old one still sends, its end included, is ignored.
        assert!(!t.leave(&old, "lobby").await);
        ends(&t, &old, Cause::Left).await;
        let info = Info::new(serde_json::json!({"late": true})).unwrap();
        let late = UpdateInfo { room: room("lobby"), connection: old.id, info };
        assert!(!t.registry.send(late.clone()).await.unwrap());
        // Somebody else means the presence that is listed so.
        let UpdateInfo { room: lobby, connection, info } = late;
        assert!(t.presence.update_info(&lobby, connection, info).await.unwrap());
        assert!(t.presence.update_info(&lobby, new.id, Info::EMPTY).await.unwrap());
        assert_eq!(t.changes().await.len(), 2);
        let late = Publish::new(room("lobby"), "late").sent_by(old.id);
        assert_eq!(t.registry.send(late).await.unwrap(), Err(PublishError::NotAMember));
        let superseded = JoinError::Superseded(Superseded);
        assert_eq!(enter(&t, &old, "lobby").await.unwrap_err(), superseded);
        let without_key = t.join(&old, "lobby", Some("ada")).await;
        assert_eq!(without_key.unwrap_err(), superseded, "its id is shown there");
        assert!(t.changes().await.is_empty());

        assert_eq!(t.say("lobby", "hello").await, 1);
        assert!(new.frames().await.last().unwrap().contains("hello"));
        let to_others = Publish::new(room("lobby"), "to others").sent_by(new.id).except(new.id);
        assert_eq!(t.registry.send(to_others).await.unwrap(), Ok(0));
        let but_one = Publish::new(room("lobby"), "but one").except(old.id);
        assert_eq!(t.registry.send(but_one).await.unwrap(), Ok(0), "as it is shown");
        ends(&t, &new, Cause::Left).await;
        assert!(t.snapshot("lobby").await.is_none());
    }
}

#[actix::test]
async fn of_several_rooms_each_is_taken_over_when_it_is_joined_and_the_others_go_on() {
    let mut t = harness(GRACE).await;
    let (mut old, mut new) = (t.session(), t.session());
    for name in ["a", "b", "c"] {
        enter(&t, &old, name).await.unwrap();
    }
    t.changes().await;
    old.heard().await;
    for name in ["a", "b"] {
        enter(&t, &new, name).await.unwrap();
        let heard = old.heard().await;
        let [testing::Heard::Frame(closed)] = &heard[..] else { panic!("one message: {heard:?}") };
        let replaced = Forwarded::Closed { cause: Cause::Replaced };
        assert_eq!((closed.kind, closed.room.as_str()), (replaced, name));
    }
    for name in ["a", "b", "c"] {
        assert_eq!(states(&t, name).await, [(old.id, "live")], "{name}");
        assert_eq!(t.say(name, name).await, 1);
    }
    let last = |frames: Vec<String>| frames.last().cloned().unwrap_or_default();
    assert!(last(new.frames().await).contains("\"payload\":\"b\""));
    assert!(last(old.frames().await).contains("\"payload\":\"c\""));
    // It may enter rooms still, in which nobody has taken its place.
    assert!(enter(&t, &old, "d").await.unwrap().changed);
    t.changes().await;

    // Each is judged by its own silence.
    t.clock.advance(secs(50));
    t.registry.send(Touch::new(old.id)).await.unwrap();
    t.clock.advance(secs(11));
    let pruned: Vec<_> = t.prune().await.rooms.into_iter().map(|one| one.room).collect();
    assert_eq!(pruned, ["a", "b"]);
    assert_eq!(new.closed().await.cause, Cause::Expired);
    let newer = t.session();
    for name in ["c", "d"] {
        assert!(!enter(&t, &newer, name).await.unwrap().changed);
    }
    assert_eq!(old.closed().await, Disconnect { code: 4002, cause: Cause::Replaced });
    ends(&t, &old, Cause::Replaced).await;
    assert_eq!(states(&t, "c").await, [(old.id, "live")]);
}

#[actix::test]
async fn a_connection_is_named_by_its_own_id_or_by_the_one_that_is_shown() {
    for by_own in [false, true] {
        let mut t = harness(GRACE).await;
        let (mut old, mut new) = (t.session(), t.session());
        enter(&t, &old, "lobby").await.unwrap();
        enter(&t, &new, "lobby").await.unwrap();
        assert_eq!(old.closed().await.code, 4002);
        enter(&t, &new, "cellar").await.unwrap();
        let id = if by_own { new.id } else { old.id };
        let asked = Explain { room: room("lobby"), connection: id };
        let explained = t.registry.send(asked).await.unwrap().unwrap().unwrap();
        assert_eq!(explained.seen.presence.connection, old.id);
        t.changes().await;
        assert_eq!(t.registry.send(Kick::Connection(id)).await.unwrap().connections, 1);
        assert_eq!(new.closed().await.code, 4001);
        assert_eq!(t.changes().await.len(), 2, "out of all its rooms");
        assert_eq!(t.registry.send(Kick::Connection(id)).await.unwrap().connections, 0);
    }
    let t = harness(GRACE).await;
    let (old, new) = (t.session(), t.session());
    for session in [&old, &new] {
        enter(&t, session, "lobby").await.unwrap();
    }
    assert_eq!(t.registry.send(Kick::User(user("ada"))).await.unwrap().connections, 1);
    assert!(t.snapshot("lobby").await.is_none());
}

fn info(value: Value) -> Info {
    Info::new(value).unwrap()
}

async fn info_of(t: &Harness, name: &str) -> Value {
    let snapshot = t.snapshot(name).await.unwrap();
    snapshot.users().next().unwrap().info.to_value()
}

#[actix::test]
async fn a_resumed_session_keeps_its_info_but_for_what_the_token_fixes() {
    let mut t = harness(GRACE).await;
    let join = |session: &Session, wanted: Value, fixed: Value| {
        let join = session.joining("lobby", Some("ada")).session(key("tab"));
        t.registry.send(join.info(info(wanted)).fixed_info(info(fixed)))
    };
    let old = t.session();
    let fixed = json!({"role": "admin", "team": "red"});
    join(&old, json!({"role": "admin", "team": "red", "status": "online"}), fixed)
        .await
        .unwrap()
        .unwrap();
    let away = info(json!({"role": "admin", "team": "red", "status": "away"}));
    let update = UpdateInfo { room: room("lobby"), connection: old.id, info: away };
    assert!(t.registry.send(update).await.unwrap());
    ends(&t, &old, Cause::Disconnected).await;

    let second = t.session();
    let wanted = json!({"role": "guest", "status": "online"});
    let joined = join(&second, wanted, json!({"role": "guest"})).await.unwrap().unwrap();
    assert!(joined.changed);
    assert_eq!(info_of(&t, "lobby").await, json!({"role": "guest", "status": "away"}));
    let third = t.session();
    let joined = join(&third, json!({}), json!({})).await.unwrap().unwrap();
    assert!(joined.changed, "while the second is open");
    assert_eq!(info_of(&t, "lobby").await, json!({"status": "away"}));
    // A second join on the same connection says what it wants.
    let joined = join(&third, json!({"status": "here"}), json!({})).await.unwrap().unwrap();
    assert!(joined.changed);
    assert_eq!(info_of(&t, "lobby").await, json!({"status": "here"}));
    ends(&t, &third, Cause::Left).await;
    let fourth = t.session();
    join(&fourth, json!({"status": "new"}), json!({})).await.unwrap().unwrap();
    assert_eq!(info_of(&t, "lobby").await, json!({"status": "new"}));
    drop(t.changes().await);
}

#[actix::test]
async fn what_is_stored_gives_way_where_it_does_not_fit_beside_what_is_fixed() {
    let t = harness(GRACE).await;
    let (old, new) = (t.session(), t.session());
    let large = info(json!({"text": "x".repeat(MAX_INFO_BYTES - 20)}));
    let join = old.joining("lobby", Some("ada")).session(key("tab")).info(large);
    t.registry.send(join).await.unwrap().unwrap();
    let fixed = info(json!({"role": "an administrator"}));
    let join = new.joining("lobby", Some("ada")).session(key("tab"));
    t.registry.send(join.info(fixed.clone()).fixed_info(fixed)).await.unwrap().unwrap();
    assert_eq!(info_of(&t, "lobby").await, json!({"role": "an administrator"}));
}

#[actix::test]
async fn signs_of_life_of_the_new_connection_keep_the_presence() {
    let t = harness(GRACE).await;
    let (old, new) = (t.session(), t.session());
    enter(&t, &old, "lobby").await.unwrap();
    ends(&t, &old, Cause::Disconnected).await;
    enter(&t, &new, "lobby").await.unwrap();
    for touched in [true, false] {
        t.clock.advance(secs(40));
        if touched {
            t.registry.send(Touch::heartbeat(new.id)).await.unwrap();
        }
        t.registry.send(Touch::new(old.id)).await.unwrap();
    }
    t.clock.advance(secs(20));
    assert_eq!(t.prune().await.removed(), 0, "60 s after the heartbeat");
    t.clock.advance(secs(1));
    assert_eq!(t.prune().await.removed(), 1);
}

#[actix::test]
async fn a_join_that_is_refused_takes_nobodys_place() {
    let t = Harness::with("sqlite::memory:", |config| {
        config.grace(secs(GRACE)).authorize(|_, _, info| match info.is_empty() {
            true => Decision::Allow,
            false => Decision::deny("no info here"),
        })
    })
    .await;
    let (mut old, new) = (t.session(), t.session());
    enter(&t, &old, "lobby").await.unwrap();
    let info = Info::new(serde_json::json!({"a": 1})).unwrap();
    let join = new.joining("lobby", Some("ada")).session(key("tab")).info(info);
    assert!(matches!(t.registry.send(join).await.unwrap(), Err(JoinError::Denied { .. })));
    assert!(old.heard().await.iter().all(|heard| !matches!(heard, testing::Heard::Close(_))));
    assert_eq!(states(&t, "lobby").await, [(old.id, "live")]);
}

#[actix::test]
async fn connections_of_one_session_in_several_rooms_live_side_by_side() {
    let t = harness(GRACE).await;
    let (lobby, cellar) = (t.session(), t.session());
    enter(&t, &lobby, "lobby").await.unwrap();
    enter(&t, &cellar, "cellar").await.unwrap();
    ends(&t, &cellar, Cause::Disconnected).await;
    assert_eq!(states(&t, "lobby").await, [(lobby.id, "live")]);
    assert_eq!(states(&t, "cellar").await, [(cellar.id, "fading")]);
    let again = t.session();
    assert!(!enter(&t, &again, "cellar").await.unwrap().changed);
    assert_eq!(states(&t, "cellar").await, [(cellar.id, "live")]);
}

#[actix::test]
async fn who_comes_back_to_a_full_room_has_its_place() {
    let t = Harness::with("sqlite::memory:", |config| config.grace(secs(GRACE)).room_size(1)).await;
    let (old, new) = (t.session(), t.session());
    enter(&t, &old, "lobby").await.unwrap();
    ends(&t, &old, Cause::Disconnected).await;
    let admit = |session: Option<SessionKey>| {
        let (room, user) = (room("lobby"), Some(user("ada")));
        t.registry.send(Admit { room, user, info: Info::EMPTY, session })
    };
    let full = JoinError::Limit(LimitReached::RoomFull { limit: 1 });
    assert_eq!(admit(None).await.unwrap(), Err(full));
    assert_eq!(admit(Some(key("tab"))).await.unwrap(), Ok(()));
    assert!(!enter(&t, &new, "lobby").await.unwrap().changed);
}
