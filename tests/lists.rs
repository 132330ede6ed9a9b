//! Member lists: whole, as differences and as counts, and the changes that one list tells together.

mod common;

use std::time::Duration;

use actix_presence::{
    testing::{Heard, Probe},
    *,
};
use common::{Harness, Session, room, secs, stuck::stuck};
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

#[actix::test]
async fn a_phoenix_diff_is_what_became_of_each_connection_since_the_last_one() {
    let t = Harness::new().await;
    let mut ada = t.session();
    let join = ada.joining("lobby", Some("ada")).dialect(Dialect::Phoenix);
    t.registry.send(join).await.unwrap().unwrap();
    assert!(ada.next_frame().await.contains("presence_state"));
    // The first change is told at once, and those after it together.
    t.enter("lobby", Some("eve")).await;
    let first: Value = serde_json::from_str(&ada.next_frame().await).unwrap();
    assert_eq!((&first[4]["since"], &first[4]["v"]), (&1.into(), &2.into()));
    let bob = t.enter("lobby", Some("bob")).await;
    let passing = t.enter("lobby", None).await;
    t.leave(&passing, "lobby").await;
    t.clock.advance(secs(5));
    let diff: Value = serde_json::from_str(&ada.next_frame().await).unwrap();
    assert_eq!(
        (&diff[3], &diff[4]["since"], &diff[4]["v"]),
        (&"presence_diff".into(), &2.into(), &5.into())
    );
    let keys = |map: &Value| map.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&diff[4]["joins"]), ["bob"]);
    assert!(keys(&diff[4]["leaves"]).is_empty(), "who came and went in between is in neither");

    t.registry.send(Kick::Connection(bob.id)).await.unwrap();
    t.clock.advance(secs(5));
    let diff: Value = serde_json::from_str(&ada.next_frame().await).unwrap();
    assert_eq!(diff[4]["leaves"]["bob"]["metas"][0]["cause"], "kicked");
}

#[actix::test]
async fn a_member_that_takes_no_list_for_ten_seconds_is_removed_with_4003() {
    let mut t = Harness::new().await;
    let (slow, seen, _let_go) = stuck::<ForwardMessage>();
    let (closer, mut closed) = Probe::<Heard>::new();
    let join = Join::new(room("lobby"), ConnectionId::new(), slow.recipient())
        .dialect(Dialect::Json(Feed::Full))
        .disconnect(closer.recipient());
    t.registry.send(join).await.unwrap().unwrap();
    // It is stuck in this one, and at most one list waits for a connection.
    let list = seen.recv().unwrap();
    assert_eq!(list.kind, Forwarded::State);
    t.clock.advance(WINDOW);
    t.enter("lobby", Some("ada")).await;
    t.changes().await;
    t.clock.advance(secs(9));
    assert!(t.changes().await.is_empty(), "it may still take it");
    t.clock.advance(secs(2));
    assert_eq!(t.change().await.cause(), Some(Cause::SlowConsumer));
    let Some(Heard::Close(close)) = closed.next().await else { panic!("an order to close") };
    assert_eq!(close, Disconnect { code: 4003, cause: Cause::SlowConsumer });
}
