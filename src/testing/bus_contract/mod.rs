//! The rules of every [`Bus`], as tests.
//!
//! An implementation of a bus gets a [`BusFixture`], as [`MemoryHub`](super::MemoryHub) has one, and its
//! tests call [`bus_contract!`](crate::bus_contract!):
//!
//! ```
//! use actix_presence::{bus_contract, testing::MemoryHub};
//!
//! bus_contract!(in_memory, MemoryHub::new);
//! # fn main() {}
//! ```

mod node;
mod trust;

use std::{collections::HashMap, future::Future, time::Duration};

use actix::prelude::*;

use self::node::MAX_WAIT;
pub(crate) use self::node::{TestNode, channel, identity};
pub use self::trust::*;
use crate::bus::{Bus, BusEvent, BusMessage, Channel, ClusterIdentity, Envelope, NotSent};

/// The number of envelopes where many are sent.
const MANY: u64 = 10_000;

/// A stalled bus accepts fewer envelopes than this.
const MAX_UNSENT: u64 = 100_000;

/// Fewer envelopes than this are queued for a listener that does not read.
const MAX_QUEUED: u64 = 1_000_000;

/// The number of envelopes that such a listener reads at a time.
const FEW: usize = 100;

/// What the tests need of an implementation: ends of a bus of their own, and ways to disturb it.
#[expect(async_fn_in_trait, reason = "the tests run in one thread")]
pub trait BusFixture {
    /// Another end, for one more node.
    fn bus(&self) -> Box<dyn Bus>;

    /// Publishes bytes in a channel of this identity, as somebody would who knows its name.
    async fn publish_bytes(&self, identity: &ClusterIdentity, channel: &Channel, bytes: &[u8]);

    /// Breaks the current connections of the ends. They reconnect by themselves.
    async fn break_connections(&self);

    /// Delivers nothing any more, in a way that the ends do not notice at once.
    async fn stall(&self);

    /// Ends [`stall`](Self::stall), which lasts about a second: the connections are as before.
    async fn resume(&self);
}

/// Creates a module with a test for each rule of a [`Bus`]; see
/// [`testing::bus_contract`](crate::testing::bus_contract).
///
/// Its arguments are the name of the module, and a closure that creates the [`BusFixture`] of one test.
#[macro_export]
macro_rules! bus_contract {
    ($name:ident, $fixture:expr) => {
        $crate::bus_contract!(@tests $name, $fixture,
            up_comes_first
            subscribed_comes_before_what_is_heard
            each_node_is_heard_in_its_order
            all_subscribers_receive_the_same
            an_unsubscribed_channel_falls_silent
            all_rooms_are_heard_and_not_the_nodes
            the_channel_of_the_nodes_is_received_by_its_subscribers
            a_node_may_hear_itself
            odd_names_are_names
            large_envelopes_arrive
            what_waits_to_be_sent_is_bounded
            what_waits_to_be_heard_is_bounded
            a_lost_connection_is_reported_and_comes_back_without_subscriptions
            what_is_not_an_envelope_is_reported
            what_is_forged_or_moved_to_another_channel_is_unreadable
            without_an_identity_there_is_no_bus
            those_of_another_identity_do_not_hear
            another_identity_is_another_bus
            a_stopped_listener_affects_no_other
        );
    };
    (@tests $name:ident, $fixture:expr, $($test:ident)*) => {
        mod $name {
            #[allow(unused_imports, reason = "the fixture may be named with its path")]
            use super::*;

            $(
                #[test]
                fn $test() {
                    $crate::testing::bus_contract::run(|| {
                        let fixture = ($fixture)();
                        async move { $crate::testing::bus_contract::$test(&fixture).await }
                    });
                }
            )*
        }
    };
}

/// Runs a test in an actix system of its own.
pub fn run<T: Future<Output = ()>>(test: impl FnOnce() -> T) {
    System::new().block_on(async { test().await });
}

/// The first event of a listener is `Up`.
pub async fn up_comes_first(fixture: &impl BusFixture) {
    let mut node = TestNode::unheard(fixture, "a");
    assert!(matches!(node.next().await, BusEvent::Up));
}

/// Nothing of a channel is received before `Subscribed`, and everything from then on.
pub async fn subscribed_comes_before_what_is_heard(fixture: &impl BusFixture) {
    let (mut a, mut b) = (TestNode::new(fixture, "a").await, TestNode::new(fixture, "b").await);
    a.bus.subscribe(channel("lobby"));
    // It is published to all the time.
    let first = loop {
        b.say("lobby").await;
        match a.seen.now() {
            Some(told) => break told,
            None => tokio::task::yield_now().await,
        }
    };
    assert!(matches!(&first, BusEvent::Subscribed(c) if *c == channel("lobby")), "{first:?}");
    let last = b.say("lobby").await;
    let (_, mut number) = a.heard("lobby").await;
    while number < last {
        let (_, next) = a.heard("lobby").await;
        assert_eq!(next, number + 1);
        number = next;
    }
}

/// The envelopes of each node arrive in its order, with none missing.
pub async fn each_node_is_heard_in_its_order(fixture: &impl BusFixture) {
    let mut hearer = TestNode::hearing(fixture, "hearer", &["lobby"]).await;
    let mut nodes = [TestNode::new(fixture, "a").await, TestNode::new(fixture, "b").await];
    for _ in 0..MANY / 2 {
        for node in &mut nodes {
            node.say("lobby").await;
        }
    }
    let mut last = HashMap::<String, u64>::new();
    for _ in 0..MANY {
        let (node, number) = hearer.heard("lobby").await;
        let last = last.entry(node).or_default();
        assert_eq!(number, *last + 1);
        *last = number;
    }
    assert_eq!(last.into_values().sum::<u64>(), MANY);
}

/// All subscribers of a channel receive the same, and no others do.
pub async fn all_subscribers_receive_the_same(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby"]).await;
    let mut b = TestNode::hearing(fixture, "b", &["lobby", "garden"]).await;
    let mut c = TestNode::new(fixture, "c").await;
    c.say("garden").await;
    c.say("lobby").await;
    assert_eq!(a.heard("lobby").await, ("c".to_owned(), 2));
    assert_eq!(b.heard("garden").await, ("c".to_owned(), 1));
    assert_eq!(b.heard("lobby").await, ("c".to_owned(), 2));
}

/// After `unsubscribe` nothing of a channel is received soon, and it can be subscribed to again.
pub async fn an_unsubscribed_channel_falls_silent(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby", "garden"]).await;
    let mut b = TestNode::new(fixture, "b").await;
    a.bus.unsubscribe(channel("lobby"));
    let silent = async {
        loop {
            let in_lobby = b.say("lobby").await;
            let in_garden = b.say("garden").await;
            let mut heard = false;
            loop {
                let (_, number) = a.heard_anywhere().await;
                heard |= number == in_lobby;
                if number == in_garden {
                    break;
                }
            }
            if !heard {
                break;
            }
        }
    };
    tokio::time::timeout(MAX_WAIT, silent).await.expect("silence");
    a.subscribe(channel("lobby")).await;
    let number = b.say("lobby").await;
    assert_eq!(a.heard("lobby").await.1, number);
}

/// [`Channel::Rooms`] is every room, and not the nodes.
pub async fn all_rooms_are_heard_and_not_the_nodes(fixture: &impl BusFixture) {
    let mut a = TestNode::new(fixture, "a").await;
    a.subscribe(Channel::Rooms).await;
    let mut b = TestNode::new(fixture, "b").await;
    b.tell(BusMessage::Missed).await;
    for room in ["lobby", "garden", "nodes", "*"] {
        let number = b.say(room).await;
        assert_eq!(a.heard(room).await, ("b".to_owned(), number));
    }
    // Subscribed to twice, it is received at least once.
    a.subscribe(channel("lobby")).await;
    let number = b.say("lobby").await;
    assert_eq!(a.heard("lobby").await.1, number);
    a.bus.unsubscribe(Channel::Rooms);
    a.subscribe(channel("garden")).await;
    let number = b.say("garden").await;
    while a.heard_anywhere().await.1 != number {}
}

/// [`Channel::Nodes`] is received by its subscribers only.
pub async fn the_channel_of_the_nodes_is_received_by_its_subscribers(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby", "nodes"]).await;
    a.subscribe(Channel::Nodes).await;
    let mut b = TestNode::hearing(fixture, "b", &["lobby"]).await;
    let mut c = TestNode::new(fixture, "c").await;
    c.tell(BusMessage::Missed).await;
    let number = c.say("lobby").await;
    let told = a.next().await;
    assert!(
        matches!(&told, BusEvent::Received(Envelope { message: BusMessage::Missed, .. })),
        "{told:?}"
    );
    assert_eq!(a.heard("lobby").await.1, number);
    assert_eq!(b.heard("lobby").await.1, number);
}

/// A node may receive its own envelopes, and those are like those of others.
pub async fn a_node_may_hear_itself(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby"]).await;
    let mut b = TestNode::hearing(fixture, "b", &["lobby"]).await;
    a.say("lobby").await;
    assert_eq!(b.heard("lobby").await, ("a".to_owned(), 1));
    b.say("lobby").await;
    let first = a.heard("lobby").await;
    if first == ("a".to_owned(), 1) {
        assert_eq!(a.heard("lobby").await, ("b".to_owned(), 1));
    } else {
        assert_eq!(first, ("b".to_owned(), 1));
    }
}

/// Special characters in the name of a room have no meaning.
pub async fn odd_names_are_names(fixture: &impl BusFixture) {
    let long = "é".repeat(255);
    let names = "* ? [a-z] \\ \\* a* a? [a] a ab a:b : nodes room:a {a} %s%n '\" ^ [^a] PING ... /";
    let names: Vec<&str> =
        names.split(' ').chain([" ", " a ", "\u{1F426} ü \u{200D}", &long]).collect();
    let mut a = TestNode::hearing(fixture, "a", &names).await;
    let mut b = TestNode::hearing(fixture, "b", &["*", "a*", "?", "[a-z]", "\\*"]).await;
    let mut c = TestNode::new(fixture, "c").await;
    for name in &names {
        let number = c.say(name).await;
        assert_eq!(a.heard(name).await, ("c".to_owned(), number));
    }
    for name in names.into_iter().filter(|n| ["*", "a*", "?", "[a-z]", "\\*"].contains(n)) {
        b.heard(name).await;
    }
    assert!(b.seen.now().is_none());
}

/// A batch of a megabyte arrives unchanged.
pub async fn large_envelopes_arrive(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby"]).await;
    let mut b = TestNode::new(fixture, "b").await;
    let changes = node::large_changes("lobby", 1_000_000);
    b.tell(BusMessage::Changes(changes.clone())).await;
    let number = b.say("lobby").await;
    match a.next().await {
        BusEvent::Received(Envelope { message: BusMessage::Changes(heard), .. }) => {
            assert_eq!(heard, changes)
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(a.heard("lobby").await.1, number);
}

/// A stalled bus refuses envelopes in the end, and exactly the accepted ones arrive.
pub async fn what_waits_to_be_sent_is_bounded(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby"]).await;
    let mut b = TestNode::new(fixture, "b").await;
    fixture.stall().await;
    let taken = (0..MAX_UNSENT).take_while(|_| b.try_say("lobby").is_ok()).count() as u64;
    fixture.resume().await;
    assert!(taken < MAX_UNSENT, "a stalled bus accepted {taken} envelopes");
    for expected in 1..=taken {
        // If the bus has reconnected, nothing is guaranteed.
        let told = tokio::select! { told = a.next() => told, told = b.next() => told };
        match told {
            BusEvent::Received(Envelope { number, .. }) => {
                assert_eq!(number, expected);
            }
            BusEvent::Down(_) => return,
            other => panic!("{other:?}"),
        }
    }
}

/// A listener that does not keep up gets `Down` and `Up`, and its queue is lost.
pub async fn what_waits_to_be_heard_is_bounded(fixture: &impl BusFixture) {
    let mut stuck = TestNode::stuck(fixture, "stuck").await;
    let mut b = TestNode::new(fixture, "b").await;
    'told: for _ in 0..MAX_QUEUED / MANY {
        for _ in 0..MANY {
            b.say("lobby").await;
        }
        // What had been sent to the listener comes first.
        stuck.take_in(FEW);
        for _ in 0..FEW {
            match stuck.next().await {
                BusEvent::Received(_) => {}
                BusEvent::Down(_) => break 'told,
                other => panic!("{other:?}"),
            }
        }
    }
    stuck.release();
    stuck.up().await;
    stuck.subscribe(channel("lobby")).await;
    let number = b.say("lobby").await;
    while stuck.heard("lobby").await.1 != number {}
}

/// A lost connection is reported and made again, without subscriptions.
pub async fn a_lost_connection_is_reported_and_comes_back_without_subscriptions(
    fixture: &impl BusFixture,
) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby", "garden"]).await;
    let mut b = TestNode::new(fixture, "b").await;
    for _ in 0..3 {
        fixture.break_connections().await;
        for node in [&mut a, &mut b] {
            assert!(matches!(node.next().await, BusEvent::Down(_)));
            node.up().await;
        }
        a.subscribe(channel("garden")).await;
        b.say("lobby").await;
        let number = b.say("garden").await;
        assert_eq!(a.heard("garden").await.1, number);
        a.subscribe(channel("lobby")).await;
        let number = b.say("lobby").await;
        assert_eq!(a.heard("lobby").await.1, number);
    }
}

/// What is not an envelope is reported as unreadable, and what follows is received.
pub async fn what_is_not_an_envelope_is_reported(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby"]).await;
    let mut b = TestNode::new(fixture, "b").await;
    for bytes in [b"hello".as_slice(), b"", b"\xff\0\r\n", b"{\"v\":77}"] {
        fixture.publish_bytes(&identity(), &channel("lobby"), bytes).await;
        let told = a.next().await;
        assert!(matches!(told, BusEvent::Unreadable(_)), "{told:?}");
    }
    let number = b.say("lobby").await;
    assert_eq!(a.heard("lobby").await.1, number);
}

/// A node that ends, or whose listener has stopped, does not affect others.
pub async fn a_stopped_listener_affects_no_other(fixture: &impl BusFixture) {
    let mut a = TestNode::hearing(fixture, "a", &["lobby"]).await;
    let mut deaf = TestNode::hearing(fixture, "deaf", &["lobby"]).await;
    let gone = TestNode::hearing(fixture, "gone", &["lobby"]).await;
    deaf.stop_listening().await;
    drop(gone);
    let mut b = TestNode::new(fixture, "b").await;
    for number in 1..=100 {
        b.say("lobby").await;
        assert_eq!(a.heard("lobby").await, ("b".to_owned(), number));
        deaf.bus.subscribe(channel("garden"));
        let (Ok(()) | Err(NotSent)) = deaf.try_say("garden");
    }
}

/// The time between two attempts of a test.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);
