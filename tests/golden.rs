//! What django-channels-presence does, observed case by case, and what we do: a test for each.
//!
//! The sections below follow its API: add, remove, leave, touch, prune, names, frames, restarts.

mod common;

use actix::prelude::*;
use actix_presence::{testing::Probe, *};
use common::{Harness, room, secs, user};

// --- add -------------------------------------------------------------------------------------

#[actix::test]
async fn add_of_a_user_is_one_change_and_the_observer_finds_the_member_already_there() {
    let mut t = Harness::new().await;
    let mut ada = t.enter("lobby", Some("ada")).await;

    let change = t.change().await;
    assert_eq!(change.room, "lobby");
    assert_eq!(change.added().unwrap().user, Some(user("ada")));
    assert_eq!(change.added().unwrap().connection, ada.id);
    assert!(change.removed().is_none() && !change.bulk_change());
    assert_eq!(change.online(), [user("ada")]);
    assert_eq!(t.users("lobby").await, ["ada"]);
    assert_eq!(t.say("lobby", "hello").await, 1);
    assert_eq!(ada.frames().await, ["hello"]);
}

#[actix::test]
async fn add_without_a_user_is_a_lurker() {
    let mut t = Harness::new().await;
    t.enter("lobby", None).await;
    assert_eq!(t.change().await.added().unwrap().user, None);
    assert_eq!(t.anonymous("lobby").await, 1);
    assert!(t.users("lobby").await.is_empty());
}

#[actix::test]
async fn add_of_the_same_connection_and_user_changes_nothing_but_counts_as_a_touch() {
    let mut t = Harness::new().await;
    let ada = t.enter("lobby", Some("ada")).await;
    t.changes().await;

    t.clock.advance(secs(40));
    let again = t.join(&ada, "lobby", Some("ada")).await.unwrap();
    assert!(!again.changed);
    assert_eq!(again.snapshot.occupancy().connections, 1);
    assert!(t.changes().await.is_empty());

    t.clock.advance(secs(40));
    assert_eq!(t.prune().await.removed(), 0);
}

#[actix::test]
async fn add_of_the_same_connection_as_another_user_changes_its_user_in_one_change() {
    let mut t = Harness::new().await;
    let tab = t.enter("lobby", None).await;
    t.changes().await;

    for (before, after) in [(None, Some("ada")), (Some("ada"), Some("bob")), (Some("bob"), None)] {
        assert!(t.join(&tab, "lobby", after).await.unwrap().changed);
        let [change] = &t.changes().await[..] else { panic!("one change") };
        assert_eq!(change.updates().len(), 1);
        assert_eq!(change.updates()[0].after.user, after.map(user));
        assert_eq!(change.online(), after.map(user).as_slice());
        let offline: Vec<_> = change.offline().iter().map(|gone| gone.user.clone()).collect();
        assert_eq!(offline, before.map(user).as_slice());
        assert_eq!(t.users("lobby").await, after.as_slice());
        assert_eq!(t.anonymous("lobby").await, usize::from(after.is_none()));
    }
}

#[actix::test]
async fn a_second_connection_of_a_user_is_a_change_of_which_the_user_level_is_silent() {
    let mut t = Harness::new().await;
    t.enter("lobby", Some("ada")).await;
    t.enter("lobby", Some("ada")).await;

    let [_, second] = &t.changes().await[..] else { panic!("two changes") };
    assert!(second.added().is_some());
    assert!(second.online().is_empty() && second.offline().is_empty());
    assert_eq!(t.users("lobby").await, ["ada"]);
    let ada = t.snapshot("lobby").await.unwrap().user(&user("ada")).unwrap();
    assert_eq!(ada.connections, 2);
}

// --- remove and leave_all ----------------------------------------------------------------------

#[actix::test]
async fn remove_is_one_change_with_the_removed_presence_and_its_user() {
    let mut t = Harness::new().await;
    let mut ada = t.enter("lobby", Some("ada")).await;
    t.changes().await;

    assert!(t.leave(&ada, "lobby").await);
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert_eq!(change.removed().unwrap().user, Some(user("ada")));
    assert_eq!(change.cause(), Some(Cause::Left));
    assert!(change.added().is_none() && !change.bulk_change());
    assert_eq!(t.say("lobby", "hello").await, 0);
    assert!(ada.heard().await.is_empty());
}

#[actix::test]
async fn what_is_not_there_is_removed_left_and_touched_without_error_or_change() {
    let mut t = Harness::new().await;
    let ada = t.enter("lobby", Some("ada")).await;
    t.leave(&ada, "lobby").await;
    t.changes().await;

    assert!(!t.leave(&ada, "lobby").await);
    assert!(!t.leave(&ada, "no such room").await);
    assert_eq!(t.registry.send(LeaveAll::new(ada.id)).await.unwrap(), 0);
    t.registry.send(Touch::new(ada.id)).await.unwrap();
    assert!(t.changes().await.is_empty());
    assert!(t.snapshot("lobby").await.is_none());
}

#[actix::test]
async fn two_removals_that_race_are_one_change() {
    let mut t = Harness::new().await;
    let ada = t.enter("lobby", Some("ada")).await;
    t.changes().await;

    let leave = || t.registry.send(Leave::new(room("lobby"), ada.id));
    let (one, other) = futures_util::join!(leave(), leave());
    assert_eq!([one.unwrap(), other.unwrap()].iter().filter(|left| **left).count(), 1);
    assert_eq!(t.changes().await.len(), 1);
}

#[actix::test]
async fn leave_all_is_one_change_a_room_and_empty_rooms_are_gone_from_memory() {
    let mut t = Harness::new().await;
    let ada = t.session();
    for name in ["a", "b", "c"] {
        t.join(&ada, name, Some("ada")).await.unwrap();
    }
    t.changes().await;

    assert_eq!(t.registry.send(LeaveAll::new(ada.id)).await.unwrap(), 3);
    let mut rooms: Vec<_> = t.changes().await.iter().map(|c| c.room.to_string()).collect();
    rooms.sort();
    assert_eq!(rooms, ["a", "b", "c"]);
    let list = t.registry.send(ListRooms { after: None, limit: 10 }).await.unwrap().unwrap();
    assert!(list.is_empty());
}

#[actix::test]
async fn prune_rooms_removes_the_rows_of_empty_rooms_without_a_change() {
    let mut t = Harness::new().await;
    let ada = t.session();
    t.join(&ada, "empty soon", Some("ada")).await.unwrap();
    let _stays = t.enter("stays", None).await;
    t.registry.send(Flush).await.unwrap().unwrap();
    t.leave(&ada, "empty soon").await;
    t.changes().await;
    t.registry.send(Flush).await.unwrap().unwrap();

    // The marker of `changes` has left a row of its own, if it was written in between.
    let pruned = t.registry.send(PruneRooms).await.unwrap().unwrap();
    assert!((1..=2).contains(&pruned), "{pruned}");
    assert!(t.changes().await.is_empty());
    assert!(t.snapshot("stays").await.is_some());
}

// --- touch and prune ---------------------------------------------------------------------------

#[actix::test]
async fn prune_is_one_bulk_change_a_room_that_names_everybody_it_removed() {
    let mut t = Harness::new().await;
    let [ada, bob, cyd] =
        [t.enter("lobby", Some("ada")).await, t.enter("lobby", None).await, t.session()];
    t.clock.advance(secs(61));
    t.join(&cyd, "lobby", Some("cyd")).await.unwrap();
    t.changes().await;

    let report = t.prune().await;
    assert_eq!(report.removed(), 2);
    let [change] = &t.changes().await[..] else { panic!("one change") };
    assert!(change.bulk_change() && change.added().is_none() && change.removed().is_none());
    let mut gone: Vec<_> = change.leaves().iter().map(|left| left.presence.connection).collect();
    gone.sort();
    assert_eq!(gone, [ada.id, bob.id]);
    assert!(change.leaves().iter().all(|left| left.cause == Cause::Expired));
    assert_eq!(t.users("lobby").await, ["cyd"]);
}

#[actix::test]
async fn a_bulk_change_of_one_is_still_a_bulk_change_that_names_it() {
    let mut t = Harness::new().await;
    let ada = t.enter("lobby", Some("ada")).await;
    t.clock.advance(secs(61));
    t.changes().await;
    t.prune().await;
    let changes = t.changes().await;
    assert!(changes[0].bulk_change() && changes[0].removed().is_none());
    assert_eq!(changes[0].leaves()[0].presence.connection, ada.id);
}

#[actix::test]
async fn a_pruned_client_is_out_of_the_group_at_once_and_told_to_close_with_4000() {
    let t = Harness::new().await;
    let mut ada = t.enter("lobby", Some("ada")).await;
    t.clock.advance(secs(61));
    let mut bob = t.enter("lobby", Some("bob")).await;
    t.prune().await;

    assert_eq!(t.say("lobby", "after").await, 1);
    assert_eq!(bob.frames().await, ["after"]);
    assert_eq!(ada.closed().await, Disconnect { code: 4000, cause: Cause::Expired });
    assert!(ada.heard().await.is_empty());
}

#[actix::test]
async fn a_touch_after_a_prune_does_not_bring_it_back_and_a_new_join_is_a_new_presence() {
    let mut t = Harness::new().await;
    let ada = t.enter("lobby", Some("ada")).await;
    t.clock.advance(secs(61));
    t.prune().await;
    t.changes().await;

    t.registry.send(Touch::new(ada.id)).await.unwrap();
    assert!(t.snapshot("lobby").await.is_none());
    assert!(t.changes().await.is_empty());

    t.join(&ada, "lobby", Some("ada")).await.unwrap();
    assert!(t.change().await.added().is_some());
}

#[actix::test]
async fn a_prune_with_nothing_stale_is_no_change_and_equal_age_stays() {
    let mut t = Harness::new().await;
    t.enter("lobby", Some("ada")).await;
    t.changes().await;
    t.clock.advance(secs(60));
    assert_eq!(t.prune().await, PruneReport::default());
    assert!(t.changes().await.is_empty());
}

#[actix::test]
async fn a_prune_with_age_zero_removes_everybody_seen_before_now() {
    let t = Harness::new().await;
    t.enter("lobby", Some("ada")).await;
    let zero = PrunePresences { age: Some(secs(0)) };
    assert_eq!(t.registry.send(zero).await.unwrap().removed(), 0, "seen just now");
    t.clock.advance(std::time::Duration::from_micros(1));
    assert_eq!(t.registry.send(zero).await.unwrap().removed(), 1);
}

#[actix::test]
async fn the_age_of_a_prune_is_a_typed_argument_that_counts() {
    let t = Harness::new().await;
    t.enter("lobby", Some("ada")).await;
    t.clock.advance(secs(6));
    assert_eq!(t.prune().await.removed(), 0);
    let five = PrunePresences { age: Some(secs(5)) };
    assert_eq!(t.registry.send(five).await.unwrap().removed(), 1);
}

// --- observers -----------------------------------------------------------------------------------

/// An observer that panics at the first change of one room.
struct Faulty(&'static str);

impl Actor for Faulty {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Faulty {
    type Result = ();
    fn handle(&mut self, event: PresenceChanged, _: &mut Context<Self>) {
        assert_ne!(event.room.as_str(), self.0, "an observer's own fault");
    }
}

async fn subscribe_faulty(t: &Harness, panics_at: &'static str) {
    // On a thread of its own: a panic ends its arbiter.
    let faulty = Faulty::start_in_arbiter(&Arbiter::new().handle(), move |_| Faulty(panics_at));
    t.presence.subscribe(RoomFilter::Any, faulty.recipient()).await.unwrap();
}

#[actix::test]
async fn an_observer_that_fails_during_add_is_not_noticed_by_the_joiner_nor_by_another() {
    let mut t = Harness::new().await;
    subscribe_faulty(&t, "lobby").await;
    let ada = t.session();
    assert!(t.join(&ada, "lobby", Some("ada")).await.is_ok());
    assert!(t.change().await.added().is_some());
    t.enter("lobby", Some("bob")).await;
    assert_eq!(t.change().await.version, 2);
}

#[actix::test]
async fn an_observer_that_fails_for_the_second_of_three_rooms_stops_none_of_them() {
    let mut t = Harness::new().await;
    let ada = t.session();
    for name in ["a", "b", "c"] {
        t.join(&ada, name, Some("ada")).await.unwrap();
    }
    t.changes().await;
    subscribe_faulty(&t, "b").await;

    t.clock.advance(secs(61));
    assert_eq!(t.prune().await.removed(), 3);
    let rooms: Vec<_> = t.changes().await.iter().map(|c| c.room.to_string()).collect();
    assert_eq!(rooms, ["a", "b", "c"]);
}

// --- names ---------------------------------------------------------------------------------------

#[test]
fn a_name_is_refused_before_anything_happens_and_blanks_and_signs_are_fine() {
    for good in ["x".repeat(99), "x".repeat(255), " ".into(), "a/b:c!".into(), "日本 ☕".into()]
    {
        assert!(RoomName::new(good).is_ok());
    }
    for bad in [String::new(), "x".repeat(256), "a\0b".into(), "trailing\n".into()] {
        assert!(RoomName::new(bad).is_err());
    }
}

#[actix::test]
async fn rooms_that_differ_in_case_are_two_rooms() {
    let t = Harness::new().await;
    t.enter("Abc", Some("ada")).await;
    t.enter("abc", Some("bob")).await;
    assert_eq!(t.users("Abc").await, ["ada"]);
    assert_eq!(t.users("abc").await, ["bob"]);
}

// --- frames --------------------------------------------------------------------------------------

#[actix::test]
async fn a_heartbeat_touches_and_is_not_handled_and_one_with_a_blank_is_handled() {
    let t = Harness::new().await;
    let me = Connection::new(t.registry.clone());
    let (addr, _heard) = Probe::<testing::Heard>::new();
    t.registry.send(me.join(room("lobby"), addr)).await.unwrap().unwrap();

    for text in ["\"heartbeat\"", " \"heartbeat\""] {
        t.clock.advance(secs(40));
        let given_back = me.text(text);
        assert_eq!(given_back, (text != "\"heartbeat\"").then_some(text));
        // The touch is in the mailbox before the prune.
        assert_eq!(t.prune().await.removed(), 0, "both are signs of life");
    }
}

#[actix::test]
async fn the_second_tab_that_closes_is_a_change_of_which_the_user_level_is_silent() {
    let mut t = Harness::new().await;
    let first = t.enter("lobby", Some("ada")).await;
    let second = t.enter("lobby", Some("ada")).await;
    t.changes().await;

    t.leave(&first, "lobby").await;
    t.leave(&second, "lobby").await;
    let [one, other] = &t.changes().await[..] else { panic!("two changes") };
    assert!(one.removed().is_some() && one.offline().is_empty());
    assert_eq!(other.offline()[0].user, user("ada"));
}
