use std::future::Future;

use super::*;
use crate::{
    bus::{BusMessage, RoomMessage},
    messages::Content,
    model::{Epoch, NodeName, RoomName},
    testing::{Probe, Seen},
};

/// Runs a test with a clock that jumps to what is waited for.
fn in_virtual_time(test: impl Future<Output = ()>) {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    };
    System::with_tokio_rt(runtime).block_on(test);
}

struct Node {
    bus: MemoryBus,
    seen: Seen<BusEvent>,
    name: &'static str,
}

impl Node {
    /// A node that hears the lobby.
    async fn new(hub: &MemoryHub, name: &'static str) -> Self {
        let (probe, seen) = Probe::<BusEvent>::new();
        let mut bus = hub.bus();
        bus.listen(probe.recipient());
        bus.subscribe(lobby());
        let mut node = Self { bus, seen, name };
        assert!(matches!(node.next().await, BusEvent::Up));
        assert!(matches!(node.next().await, BusEvent::Subscribed(c) if c == lobby()));
        node
    }

    fn say(&mut self, number: u64) -> Result<(), NotSent> {
        let content = Content::Text(Default::default());
        let Channel::Room(room) = lobby() else { unreachable!() };
        let told =
            BusMessage::Published(RoomMessage { room, number, content, from: None, except: None });
        let node = NodeName::new(self.name).unwrap();
        self.bus.publish(&Envelope { node, incarnation: Epoch::new(), message: told })
    }

    async fn next(&mut self) -> BusEvent {
        self.seen.next().await.expect("something to hear")
    }

    async fn heard(&mut self) -> (String, u64) {
        match self.next().await {
            BusEvent::Received(Envelope { node, message: BusMessage::Published(said), .. }) => {
                (node.to_string(), said.number)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn silent(&mut self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let heard = self.seen.now();
        assert!(heard.is_none(), "{heard:?}");
    }
}

fn lobby() -> Channel {
    Channel::Room(RoomName::new("lobby").unwrap())
}

fn from(node: &str, number: u64) -> (String, u64) {
    (node.to_owned(), number)
}

#[test]
fn a_delayed_link_stays_in_order_and_delays_no_other() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let (mut a, mut b) = (Node::new(&hub, "a").await, Node::new(&hub, "b").await);
        let (to_b, at_b) = (a.bus.connection(), b.bus.connection());
        let start = Instant::now();
        to_b.delay_to(&at_b, Duration::from_secs(3));
        a.say(1).unwrap();
        to_b.delay_to(&at_b, Duration::ZERO);
        a.say(2).unwrap();
        b.say(1).unwrap();
        let heard = [b.heard().await, b.heard().await, b.heard().await];
        assert_eq!(heard, [from("b", 1), from("a", 1), from("a", 2)]);
        assert_eq!(start.elapsed().as_secs(), 3);
        let heard = [a.heard().await, a.heard().await, a.heard().await];
        assert_eq!(heard, [from("a", 1), from("a", 2), from("b", 1)]);
    });
}

#[test]
fn envelopes_are_lost_and_doubled_as_asked() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let mut a = Node::new(&hub, "a").await;
        let connection = a.bus.connection();
        connection.lose_next(1);
        connection.duplicate_next(1);
        (1..4).for_each(|number| a.say(number).unwrap());
        let heard = [a.heard().await, a.heard().await, a.heard().await];
        assert_eq!(heard, [from("a", 2), from("a", 2), from("a", 3)]);
    });
}

#[test]
fn a_held_node_hears_later_and_a_cut_one_never() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let (mut a, mut b) = (Node::new(&hub, "a").await, Node::new(&hub, "b").await);
        let connection = b.bus.connection();
        connection.hold();
        a.say(1).unwrap();
        b.silent().await;
        connection.release();
        assert_eq!(b.heard().await, from("a", 1));

        connection.hold();
        a.say(2).unwrap();
        connection.cut();
        assert!(matches!(b.next().await, BusEvent::Down("cut")));
        assert_eq!(b.say(1), Err(NotSent));
        connection.release();
        b.bus.subscribe(lobby());
        b.silent().await;
        connection.heal();
        assert!(matches!(b.next().await, BusEvent::Up));
        a.say(3).unwrap();
        b.silent().await;
        assert!(connection.subscriptions().is_empty());
    });
}

#[test]
fn a_stalled_hub_keeps_what_it_takes_and_takes_no_more_than_its_bound() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let (mut a, mut b) = (Node::new(&hub, "a").await, Node::new(&hub, "b").await);
        hub.stall();
        let taken = (0..10_000).take_while(|number| a.say(*number).is_ok()).count();
        assert_eq!(taken, MAX_WAITING);
        b.say(0).unwrap();
        b.silent().await;
        hub.resume();
        for number in 0..taken as u64 {
            assert_eq!(b.heard().await, from("a", number));
        }
        assert_eq!(b.heard().await, from("b", 0));
    });
}

#[test]
fn a_listener_that_cannot_keep_up_loses_the_connection() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let (mut a, mut b) = (Node::new(&hub, "a").await, Node::new(&hub, "b").await);
        a.bus.connection().delay_to(&b.bus.connection(), Duration::from_secs(3600));
        (0..=MAX_QUEUE as u64).for_each(|number| a.say(number).unwrap());
        assert!(matches!(b.next().await, BusEvent::Down("overrun")));
        assert!(matches!(b.next().await, BusEvent::Up));
        b.silent().await;
    });
}

#[test]
fn bytes_of_somebody_else_are_unreadable() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let mut a = Node::new(&hub, "a").await;
        hub.publish_bytes(&lobby(), b"hello");
        assert!(matches!(a.next().await, BusEvent::Unreadable(_)));
    });
}

#[test]
fn a_dropped_end_leaves_the_hub() {
    in_virtual_time(async {
        let hub = MemoryHub::new();
        let (mut a, b) = (Node::new(&hub, "a").await, Node::new(&hub, "b").await);
        drop(b);
        a.say(1).unwrap();
        assert_eq!(a.heard().await, from("a", 1));
        assert_eq!(hub.lock().ends.len(), 1);
    });
}
