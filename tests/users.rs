//! Users over all their rooms: whose info stands, an update of all of a user's connections, and who comes online
//! anywhere and goes offline everywhere. On one node and on two.

mod common;

use std::collections::BTreeSet;

use actix_presence::{testing::Probe, *};
use chrono::TimeDelta;
use common::{Harness, Session, nodes::World, room, secs, user};
use serde_json::json;

fn info(status: &str) -> Info {
    Info::new(json!({ "status": status })).unwrap()
}

async fn enter(t: &Harness, name: &str, status: &str) -> Session {
    let session = t.session();
    let join = session.joining(name, Some("ada")).info(info(status));
    t.registry.send(join).await.unwrap().unwrap();
    session
}

async fn update(t: &Harness, session: &Session, status: &str) -> bool {
    let (room, connection, info) = (room("lobby"), session.id, info(status));
    t.registry.send(UpdateInfo { room, connection, info }).await.unwrap()
}

async fn stands(t: &Harness, name: &str) -> Info {
    t.snapshot(name).await.unwrap().user(&user("ada")).unwrap().info
}

fn listed(frame: &str) -> String {
    let frame: serde_json::Value = serde_json::from_str(frame).unwrap();
    frame["payload"]["members"][0]["info"]["status"].as_str().unwrap().to_owned()
}

#[actix::test]
async fn away_in_the_older_tab_shows_and_so_does_the_same_info_again() {
    let mut t = Harness::new().await;
    let older = enter(&t, "lobby", "here").await;
    let newer = enter(&t, "lobby", "here too").await;
    assert_eq!(stands(&t, "lobby").await, info("here too"));
    t.changes().await;
    assert!(update(&t, &older, "away").await);
    assert_eq!(stands(&t, "lobby").await, info("away"));
    let change = t.change().await;
    assert_eq!(change.updates()[0].after.connection, older.id);
    let joined = change.updates()[0].before.joined_at;
    assert_eq!(change.updates()[0].after.joined_at, joined);
    assert!(!update(&t, &older, "away").await, "it stands already");
    // What the newer tab says again is news, although it has said it before.
    assert!(update(&t, &newer, "here too").await);
    assert_eq!(stands(&t, "lobby").await, info("here too"));
    assert!(update(&t, &older, "away").await);
    // The list that a client gets has the same.
    let mut client = t.session();
    let join = client.joining("lobby", None).dialect(Dialect::Json(Feed::Full));
    t.registry.send(join).await.unwrap().unwrap();
    assert_eq!(listed(&client.next_frame().await), "away");
    // The one that stood has left.
    t.leave(&older, "lobby").await;
    assert_eq!(stands(&t, "lobby").await, info("here too"));
}

#[actix::test]
async fn who_comes_back_with_its_session_does_not_stand_for_that() {
    let t = Harness::with("sqlite::memory:", |config| config.grace(secs(10))).await;
    let join = |session: &Session, tab: &str, status: &str| {
        let join = session.joining("lobby", Some("ada")).info(info(status));
        t.registry.send(join.session(SessionKey::new(tab).unwrap()))
    };
    let (older, newer, back) = (t.session(), t.session(), t.session());
    join(&older, "one", "away").await.unwrap().unwrap();
    join(&newer, "two", "here").await.unwrap().unwrap();
    t.registry.send(LeaveAll::because(older.id, Cause::Disconnected)).await.unwrap();
    assert!(!join(&back, "one", "ignored").await.unwrap().unwrap().changed);
    assert_eq!(stands(&t, "lobby").await, info("here"));
    assert!(update(&t, &back, "away").await, "its presence is that of before");
    assert_eq!(stands(&t, "lobby").await, info("away"));
}

#[actix::test]
async fn all_connections_of_a_user_are_updated_in_one_change_for_each_room() {
    let mut t = Harness::new().await;
    let one = enter(&t, "lobby", "here").await;
    let _two = enter(&t, "lobby", "here").await;
    t.join(&one, "attic", Some("ada")).await.unwrap();
    t.enter("lobby", Some("bob")).await;
    t.changes().await;
    let away = UpdateUser { user: user("ada"), info: info("away") };
    let updated = t.registry.send(away.clone()).await.unwrap();
    assert_eq!((updated.connections, updated.partial), (2, false));
    let changes = t.changes().await;
    let rooms: Vec<_> = changes.iter().map(|change| change.room.to_string()).collect();
    assert_eq!(rooms, ["attic", "lobby"]);
    assert_eq!(changes[1].updates().len(), 2);
    assert_eq!(stands(&t, "attic").await, info("away"));
    t.registry.send(away).await.unwrap();
    assert!(t.changes().await.is_empty(), "the second time nothing changes");
    enter(&t, "lobby", "new").await;
    assert_eq!(stands(&t, "lobby").await, info("new"), "who joins later brings its own");
    let nobody = UpdateUser { user: user("cyd"), info: info("away") };
    assert_eq!(t.registry.send(nobody).await.unwrap().connections, 0);
}

#[actix::test]
async fn a_user_is_online_with_the_first_room_and_offline_with_the_last() {
    let t = Harness::new().await;
    let bob = t.enter("lobby", Some("bob")).await;
    let (observer, mut seen) = Probe::<UserChanged>::new();
    let subscribe = SubscribeUsers { observer: observer.recipient() };
    let subscribed = t.registry.send(subscribe).await.unwrap();
    assert_eq!(subscribed.online, [user("bob")]);
    let ada = t.enter("lobby", Some("ada")).await;
    let phone = t.enter("attic", Some("ada")).await;
    t.join(&ada, "cellar", Some("ada")).await.unwrap();
    t.leave(&ada, "lobby").await;
    // Nobody else is anonymous, and a room more or less is no event.
    t.enter("lobby", None).await;
    t.registry.send(LeaveAll::because(phone.id, Cause::Disconnected)).await.unwrap();
    t.join(&ada, "attic", Some("ada")).await.unwrap();
    t.registry.send(Kick::User(user("ada"))).await.unwrap();
    // A connection that goes on as another user.
    t.join(&bob, "lobby", Some("cyd")).await.unwrap();
    let offline = |who, cause| UserChange::Offline(Offline { user: user(who), cause });
    let expected = [
        UserChange::Online(user("ada")),
        offline("ada", Cause::Kicked),
        UserChange::Online(user("cyd")),
        offline("bob", Cause::Left),
    ];
    for change in expected {
        let event = seen.next().await.unwrap();
        assert_eq!(event.change, change);
        assert_eq!(event.at, t.clock.now());
    }
    assert!(t.registry.send(Unsubscribe { id: subscribed.id }).await.unwrap());
    assert!(!t.registry.send(Unsubscribe { id: subscribed.id }).await.unwrap());
    t.enter("lobby", Some("dan")).await;
    assert!(seen.now().is_none());
}

// --- two nodes -----------------------------------------------------------------------------------

fn shows(who: &'static str, status: &'static str) -> impl Fn(&Snapshot) -> bool {
    move |room| room.user(&user(who)).is_some_and(|member| member.info == info(status))
}

#[actix::test]
async fn the_last_update_stands_on_every_node_whichever_clock_is_ahead() {
    for minutes in [-7, 7] {
        let world = World::new().await;
        let mut a = world.node("a", TimeDelta::minutes(minutes)).await;
        let mut b = world.node("b", TimeDelta::zero()).await;
        let older = a.enter("lobby", "ada", info("older")).await;
        b.sees("lobby", shows("ada", "older")).await;
        let newer = b.enter("lobby", "ada", info("newer")).await;
        a.sees("lobby", shows("ada", "newer")).await;
        for (status, from) in [("away", 0), ("back", 1), ("away", 0), ("away", 1), ("gone", 0)] {
            world.pass([&a, &b]);
            let (node, connection) = if from == 0 { (&a, older) } else { (&b, newer) };
            let update = UpdateInfo { room: room("lobby"), connection, info: info(status) };
            assert!(node.presence.registry().send(update).await.unwrap(), "{status}");
            for node in [&mut a, &mut b] {
                let last = |room: &Snapshot| {
                    let last = room.presences().max_by_key(|one| (one.updated_at, one.connection));
                    last.is_some_and(|last| last.connection == connection)
                        && shows("ada", status)(room)
                };
                node.sees("lobby", last).await;
            }
        }
        a.presence.registry().send(Flush).await.unwrap().unwrap();
        for (_, row) in world.database.rows() {
            let presence = row.record.presence;
            assert!(presence.updated_at > presence.joined_at);
            assert!(presence.updated_at <= world.clock.now());
        }
    }
}

#[actix::test]
async fn an_update_of_a_user_reaches_the_connections_on_other_nodes_and_counts_those_that_are_heard()
 {
    let world = World::new().await;
    let mut a = world.node("a", TimeDelta::zero()).await;
    let mut b = world.node("b", TimeDelta::zero()).await;
    a.enter("lobby", "ada", info("here")).await;
    b.enter("lobby", "ada", info("here")).await;
    b.enter("attic", "ada", info("here")).await;
    b.enter("attic", "bob", info("here")).await;
    for node in [&mut a, &mut b] {
        node.sees("attic", |room| room.occupancy().users == 2).await;
    }
    let update = |status| UpdateUser { user: user("ada"), info: info(status) };
    let updated = a.presence.registry().send(update("away")).await.unwrap();
    assert_eq!((updated.connections, updated.partial), (3, false));
    for node in [&mut a, &mut b] {
        node.sees("attic", |room| shows("ada", "away")(room) && shows("bob", "here")(room)).await;
    }
    // Without the database it is done all the same, and not counted.
    a.link.cut();
    let updated = a.presence.registry().send(update("back")).await.unwrap();
    assert_eq!((updated.connections, updated.partial), (1, true));
    b.sees("attic", shows("ada", "back")).await;
}

#[actix::test]
async fn a_user_alternates_for_each_observer_over_all_nodes() {
    let world = World::new().await;
    let mut a = world.node("a", TimeDelta::zero()).await;
    let mut b = world.node("b", TimeDelta::zero()).await;
    let here = a.enter("lobby", "ada", info("here")).await;
    a.presence.registry().send(Flush).await.unwrap().unwrap();
    let mut observers = Vec::new();
    for node in [&a, &b] {
        let (observer, seen) = Probe::<UserChanged>::new();
        let subscribe = SubscribeUsers { observer: observer.recipient() };
        let subscribed = node.presence.registry().send(subscribe).await.unwrap();
        observers.push((seen, BTreeSet::from_iter(subscribed.online)));
    }
    let there = b.enter("attic", "ada", info("there")).await;
    a.sees("attic", |room| room.occupancy().users == 1).await;
    // A node need not hear of who was in a room before its bus was up, and has left.
    b.sees("lobby", |room| room.occupancy().users == 1).await;
    a.presence.registry().do_send(LeaveAll::new(here));
    b.sees("lobby", Snapshot::is_empty).await;
    b.presence.registry().do_send(LeaveAll::new(there));
    b.enter("cellar", "end", info("here")).await;
    for (mut seen, mut online) in observers {
        // Whether she was known at first or is learned of: she comes once, and goes once.
        let mut offline = 0;
        loop {
            match seen.next().await.unwrap().change {
                UserChange::Online(one) => {
                    assert!(online.insert(one.clone()), "{one} is online");
                    if one == "end" {
                        break;
                    }
                }
                UserChange::Offline(gone) => {
                    assert!(online.remove(&gone.user), "{} is offline", gone.user);
                    offline += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(offline, 1);
        assert_eq!(online, BTreeSet::from([user("end")]));
    }
}
