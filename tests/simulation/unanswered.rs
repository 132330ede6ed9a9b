//! Questions that the database does not answer, and what is done without its answer.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    cluster::{Node, World},
    scripts::{LOST, MOMENT, enter, lobby, story},
};
use crate::{
    messages::{
        CloseRoom, Explain, GetOccupancy, GetSnapshot, GetStatus, Heard, Join, JoinError, Kick,
        KickFrom, Kicked, ListPresences, ListRooms, Publish, QueryError, WhereIs,
    },
    model::{ConnectionId, RoomName, UserId},
    testing::{MemoryLink, Probe},
};

/// A room that no node follows.
fn attic() -> RoomName {
    RoomName::new("attic").unwrap()
}

fn all_rooms() -> ListRooms {
    ListRooms { after: None, limit: 10 }
}

fn node(world: &World, place: usize) -> &Node {
    world.nodes[place].as_ref().unwrap()
}

/// The database does not answer this node any more.
fn cut(world: &World, place: usize) {
    node(world, place).database.iter().for_each(MemoryLink::cut);
}

fn heal(world: &World, place: usize) {
    node(world, place).database.iter().for_each(MemoryLink::heal);
}

/// Why a question has no answer.
#[track_caller]
fn reason<T: std::fmt::Debug>(answer: Result<T, QueryError>) -> &'static str {
    answer.unwrap_err().reason()
}

/// Who is not on this node, and in no room that it has read.
fn user() -> UserId {
    UserId::new("user 0").unwrap()
}

#[test]
fn a_question_about_all_rooms_is_answered_by_the_database_or_not_at_all() {
    story(|mut world| async move {
        enter(&mut world, 0, 0, &lobby());
        enter(&mut world, 2, 1, &lobby());
        tokio::time::sleep(MOMENT).await;
        let registry = node(&world, 1).registry.clone();
        cut(&world, 1);
        let rooms = registry.send(all_rooms()).await.unwrap();
        assert_eq!(reason(rooms), "unavailable");
        let places = registry.send(WhereIs { user: user() }).await.unwrap();
        let error = places.unwrap_err();
        assert!(error.to_string().ends_with(": the link is cut"), "{error}");
        assert_eq!(registry.send(GetStatus).await.unwrap().unanswered, Some("unavailable"));
        heal(&world, 1);
        tokio::time::sleep(LOST).await;
        let rooms = registry.send(all_rooms()).await.unwrap().unwrap();
        assert_eq!(rooms[0].occupancy.connections, 2);
        let places = registry.send(WhereIs { user: user() }).await.unwrap().unwrap();
        assert_eq!(places, [(lobby(), 1)]);
        assert_eq!(registry.send(GetStatus).await.unwrap().unanswered, None);
    });
}

#[test]
fn a_question_does_not_wait_for_ever_for_a_database_that_hangs() {
    story(|mut world| async move {
        enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        let Node { registry, stalled, .. } = node(&world, 0);
        stalled.set(true);
        let begun = Instant::now();
        assert_eq!(reason(registry.send(all_rooms()).await.unwrap()), "timeout");
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        let snapshot = registry.send(GetSnapshot { room: attic() }).await.unwrap();
        assert_eq!(reason(snapshot), "timeout");
        assert!(begun.elapsed() < Duration::from_secs(8));
        // A presence of another node is there, whether or not the database can say when it was seen.
        let Node { registry, stalled, .. } = node(&world, 1);
        stalled.set(true);
        let begun = Instant::now();
        let all = ListPresences { room: lobby(), after: None, limit: 10 };
        let page = registry.send(all).await.unwrap().unwrap().unwrap();
        assert_eq!((page.len(), begun.elapsed()), (1, Duration::from_secs(2)));
    });
}

#[test]
fn a_room_that_cannot_be_read_is_not_called_empty() {
    story(|mut world| async move {
        let ada = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        let registry = node(&world, 1).registry.clone();
        cut(&world, 1);
        let (room, connection) = (attic(), ConnectionId::new());
        let snapshot = registry.send(GetSnapshot { room: room.clone() }).await.unwrap();
        assert_eq!(reason(snapshot), "unavailable");
        let occupancy = registry.send(GetOccupancy { room: room.clone() }).await.unwrap();
        assert_eq!(reason(occupancy), "unavailable");
        let page = ListPresences { room: room.clone(), after: None, limit: 10 };
        assert_eq!(reason(registry.send(page).await.unwrap()), "unavailable");
        let explain = Explain { room: room.clone(), connection };
        assert_eq!(reason(registry.send(explain).await.unwrap()), "unavailable");
        // Who joins it goes on with what this node knows, which is less than who is there.
        enter(&mut world, 2, 1, &room);
        tokio::time::sleep(MOMENT).await;
        let snapshot = registry.send(GetSnapshot { room: room.clone() }).await.unwrap();
        assert_eq!(reason(snapshot), "unavailable");
        let explain = Explain { room: room.clone(), connection: world.seen(1, &room).await[0] };
        assert!(registry.send(explain).await.unwrap().unwrap().is_some(), "it is here");
        // A room that was read before is known.
        let snapshot = registry.send(GetSnapshot { room: lobby() }).await.unwrap().unwrap();
        assert_eq!(snapshot.unwrap().connections().collect::<Vec<_>>(), [ada]);
        heal(&world, 1);
        tokio::time::sleep(LOST).await;
        let snapshot = registry.send(GetSnapshot { room }).await.unwrap().unwrap();
        assert_eq!(snapshot.unwrap().occupancy().connections, 1);
    });
}

#[test]
fn a_kick_from_a_room_on_another_node_refuses_the_joins_that_wait_there() {
    story(|world| async move {
        tokio::time::sleep(MOMENT).await;
        let Node { registry, stalled, .. } = node(&world, 1);
        stalled.set(true);
        let (session, _heard) = Probe::<Heard>::new();
        let join = |room: RoomName, name: &str| {
            let join = Join::new(room, ConnectionId::new(), session.clone().recipient());
            actix::spawn(registry.send(join.user(UserId::new(name).unwrap())))
        };
        let begun = Instant::now();
        let kicked = join(attic(), "user 0");
        let others = [join(attic(), "user 1"), join(RoomName::new("loft").unwrap(), "user 0")];
        tokio::time::sleep(Duration::from_millis(500)).await;
        let kick = KickFrom { room: attic(), whom: Kick::User(user()) };
        let answer = node(&world, 0).registry.send(kick).await.unwrap();
        assert_eq!(answer, Kicked { connections: 0, partial: false }, "none is known there");
        let refused = kicked.await.unwrap().unwrap().unwrap_err();
        assert_eq!(refused, JoinError::Denied { reason: "kicked".into() });
        assert!(begun.elapsed() < Duration::from_secs(2));
        for other in others {
            assert!(other.await.unwrap().unwrap().is_ok());
        }
    });
}

#[test]
fn a_kick_that_waits_for_its_room_refuses_the_joins_before_it_and_none_after_it() {
    story(|world| async move {
        tokio::time::sleep(MOMENT).await;
        let Node { registry, stalled, .. } = node(&world, 1);
        stalled.set(true);
        let (session, _heard) = Probe::<Heard>::new();
        let join = |name: &str| {
            let join = Join::new(attic(), ConnectionId::new(), session.clone().recipient());
            registry.send(join.user(UserId::new(name).unwrap()))
        };
        let kick = KickFrom { room: attic(), whom: Kick::User(user()) };
        let close = CloseRoom { room: attic() };
        let (first, kicked, second, other, closed, last) = tokio::join!(
            join("user 0"),
            registry.send(kick),
            join("user 0"),
            join("user 1"),
            registry.send(close),
            join("user 1"),
        );
        assert_eq!((kicked.unwrap().connections, closed.unwrap().connections), (1, 2));
        for joined in [first, second, other, last] {
            assert!(joined.unwrap().is_ok());
        }
        assert_eq!(world.seen(1, &attic()).await.len(), 1);
    });
}

#[test]
fn a_message_goes_on_and_is_counted_by_what_is_known() {
    story(|mut world| async move {
        let ada = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        let registry = node(&world, 1).registry.clone();
        let to_user = || Publish::new(user(), "hello");
        let to_connection = || Publish::new(ada, "hello");
        assert_eq!(registry.send(to_user()).await.unwrap(), Ok(1));
        assert_eq!(registry.send(to_connection()).await.unwrap(), Ok(1));
        cut(&world, 1);
        assert_eq!(registry.send(to_user()).await.unwrap(), Ok(1), "by the rooms that it follows");
        assert_eq!(registry.send(to_connection()).await.unwrap(), Ok(0), "only the database knows");
        tokio::time::sleep(MOMENT).await;
        world.observe(0);
        let heard = &world.clients[0].connection.as_ref().unwrap().heard;
        assert_eq!(heard.values().sum::<usize>(), 4);
        heal(&world, 1);
    });
}

/// How many an answer counts, and whether there may be more.
fn parts(Kicked { connections, partial, .. }: Kicked) -> (usize, bool) {
    (connections, partial)
}

#[test]
fn a_kick_is_carried_out_without_the_database_and_says_that_it_was_not_asked() {
    story(|mut world| async move {
        let [here, there, other] = [(0, 1), (1, 0), (2, 0)]
            .map(|(client, node)| enter(&mut world, client, node, &lobby()));
        tokio::time::sleep(MOMENT).await;
        let registry = node(&world, 1).registry.clone();
        let nobody = Kick::Connection(ConnectionId::new());
        assert_eq!(parts(registry.send(nobody.clone()).await.unwrap()), (0, false));
        cut(&world, 1);
        assert_eq!(parts(registry.send(nobody.clone()).await.unwrap()), (0, true));
        let answer = registry.send(Kick::Connection(here)).await.unwrap();
        assert_eq!(parts(answer), (1, true), "it was here");
        let answer = registry.send(Kick::Connection(there)).await.unwrap();
        assert_eq!(parts(answer), (0, true), "nobody knows");
        // One that hangs is waited for, but not for ever.
        node(&world, 1).stalled.set(true);
        let begun = Instant::now();
        assert_eq!(parts(registry.send(nobody).await.unwrap()), (0, true));
        assert!(begun.elapsed() <= Duration::from_secs(2));
        tokio::time::sleep(MOMENT).await;
        // The bus has told the node; that the one here has left is told when the database knows it.
        assert_eq!(world.seen(0, &lobby()).await, [here, other]);
    });
}

#[test]
fn whom_the_bus_cannot_reach_is_not_called_kicked() {
    story(|mut world| async move {
        let ada = enter(&mut world, 0, 0, &lobby());
        tokio::time::sleep(MOMENT).await;
        node(&world, 1).bus.cut();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let registry = node(&world, 1).registry.clone();
        let answer = registry.send(Kick::Connection(ada)).await.unwrap();
        assert_eq!(parts(answer), (0, true));
        let answer = registry.send(Kick::User(user())).await.unwrap();
        assert_eq!(parts(answer), (0, true));
        let answer = registry.send(CloseRoom { room: lobby() }).await.unwrap();
        assert_eq!(parts(answer), (0, true));
        assert_eq!(world.seen(0, &lobby()).await, [ada]);
    });
}

#[test]
fn a_room_that_cannot_be_read_is_closed_all_the_same() {
    story(|mut world| async move {
        cut(&world, 1);
        enter(&mut world, 0, 1, &attic());
        tokio::time::sleep(MOMENT).await;
        let registry = node(&world, 1).registry.clone();
        let answer = registry.send(CloseRoom { room: attic() }).await.unwrap();
        assert_eq!(parts(answer), (1, true));
        heal(&world, 1);
        tokio::time::sleep(LOST).await;
        let answer = registry.send(CloseRoom { room: attic() }).await.unwrap();
        assert_eq!(parts(answer), (0, false));
    });
}
