use std::future::Future;

use tokio::time::Instant;

use super::{
    hub::{MAX_QUEUE, MAX_STALLED},
    *,
};
use crate::testing::bus_contract::{TestNode, channel};

/// Runs a test with a clock that jumps to what is waited for.
fn in_virtual_time(test: impl Future<Output = ()>) {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    };
    System::with_tokio_rt(runtime).block_on(test);
}

/// A node whose connection can be disturbed, and which hears the lobby.
async fn node(hub: &MemoryHub, name: &str) -> (TestNode, MemoryConnection) {
    let node = TestNode::hearing(hub, name, &["lobby"]).await;
    let end = hub.lock().last_end;
    (node, MemoryConnection { hub: hub.clone(), end })
}

async fn is_silent(node: &mut TestNode) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let heard = node.seen.now();
    assert!(heard.is_none(), "{heard:?}");
}

fn from(node: &str, number: u64) -> (String, u64) {
    (node.to_owned(), number)
}

#[test]
fn a_delayed_link_stays_in_order_and_delays_no_other() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let ((mut a, at_a), (mut b, at_b)) = (node(&hub, "a").await, node(&hub, "b").await);
        let start = Instant::now();
        at_a.delay_to(&at_b, Duration::from_secs(3));
        a.try_say("lobby").unwrap();
        at_a.delay_to(&at_b, Duration::ZERO);
        a.try_say("lobby").unwrap();
        b.try_say("lobby").unwrap();
        let heard = [b.heard("lobby").await, b.heard("lobby").await, b.heard("lobby").await];
        assert_eq!(heard, [from("b", 1), from("a", 1), from("a", 2)]);
        assert_eq!(start.elapsed().as_secs(), 3);
        let heard = [a.heard("lobby").await, a.heard("lobby").await, a.heard("lobby").await];
        assert_eq!(heard, [from("a", 1), from("a", 2), from("b", 1)]);
    });
}

#[test]
fn envelopes_are_lost_and_doubled_as_asked() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let (mut a, connection) = node(&hub, "a").await;
        connection.lose_next(1);
        connection.duplicate_next(1);
        (1..4).for_each(|_| a.try_say("lobby").unwrap());
        let heard = [a.heard("lobby").await, a.heard("lobby").await, a.heard("lobby").await];
        assert_eq!(heard, [from("a", 2), from("a", 2), from("a", 3)]);
    });
}

#[test]
fn a_held_node_hears_later_and_a_cut_one_never() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let ((mut a, _), (mut b, connection)) = (node(&hub, "a").await, node(&hub, "b").await);
        connection.hold();
        a.try_say("lobby").unwrap();
        is_silent(&mut b).await;
        connection.release();
        assert_eq!(b.heard("lobby").await, from("a", 1));

        connection.hold();
        a.try_say("lobby").unwrap();
        connection.cut();
        assert!(matches!(b.next().await, BusEvent::Down("cut")));
        assert_eq!(b.try_say("lobby"), Err(NotSent));
        connection.release();
        b.bus.subscribe(channel("lobby"));
        is_silent(&mut b).await;
        connection.heal();
        assert!(matches!(b.next().await, BusEvent::Up));
        a.try_say("lobby").unwrap();
        is_silent(&mut b).await;
        assert!(connection.subscriptions().is_empty());
    });
}

#[test]
fn a_stalled_hub_keeps_what_it_takes_and_takes_no_more_than_its_bound() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let ((mut a, _), (mut b, _)) = (node(&hub, "a").await, node(&hub, "b").await);
        hub.stall();
        let taken = (0..10_000).take_while(|_| a.try_say("lobby").is_ok()).count();
        assert_eq!(taken, MAX_STALLED);
        b.try_say("lobby").unwrap();
        is_silent(&mut b).await;
        hub.resume();
        for number in 1..=taken as u64 {
            assert_eq!(b.heard("lobby").await, from("a", number));
        }
        assert_eq!(b.heard("lobby").await, from("b", 1));
    });
}

#[test]
fn a_listener_that_cannot_keep_up_loses_the_connection() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let ((mut a, at_a), (mut b, at_b)) = (node(&hub, "a").await, node(&hub, "b").await);
        at_a.delay_to(&at_b, Duration::from_secs(3600));
        (0..=MAX_QUEUE).for_each(|_| a.try_say("lobby").unwrap());
        assert!(matches!(b.next().await, BusEvent::Down("overrun")));
        assert!(matches!(b.next().await, BusEvent::Up));
        is_silent(&mut b).await;
    });
}

#[test]
fn bytes_that_are_no_envelope_are_unreadable() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let (mut a, _) = node(&hub, "a").await;
        hub.publish_bytes(&channel("lobby"), b"hello");
        assert!(matches!(a.next().await, BusEvent::Unreadable(_)));
    });
}

#[test]
fn a_dropped_end_leaves_the_hub() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let ((mut a, _), (b, _)) = (node(&hub, "a").await, node(&hub, "b").await);
        drop(b);
        a.try_say("lobby").unwrap();
        assert_eq!(a.heard("lobby").await, from("a", 1));
        assert_eq!(hub.lock().ends.len(), 1);
    });
}
