//! What every [`Bus`] has to do, as tests.
//!
//! Who writes a bus writes a [`Bench`] for it, and calls
//! [`bus_contract!`](crate::bus_contract!) in a test:
//!
//! ```
//! use actix_presence::{
//!     bus::{Bus, Channel},
//!     bus_contract,
//!     testing::{MemoryHub, bus_contract::Bench},
//! };
//!
//! struct InMemory(MemoryHub);
//!
//! impl Bench for InMemory {
//!     fn bus(&self) -> Box<dyn Bus> {
//!         Box::new(self.0.bus())
//!     }
//!     async fn publish_bytes(&self, channel: &Channel, bytes: &[u8]) {
//!         self.0.publish_bytes(channel, bytes);
//!     }
//!     async fn break_connections(&self) {
//!         self.0.break_connections();
//!     }
//!     async fn stall(&self) {
//!         self.0.stall();
//!     }
//!     async fn resume(&self) {
//!         self.0.resume();
//!     }
//! }
//!
//! bus_contract!(in_memory, || InMemory(MemoryHub::new()));
//! # fn main() {}
//! ```

mod node;

use std::{collections::HashMap, future::Future, time::Duration};

use actix::prelude::*;

use self::node::{MOST_WAIT, Node, channel};
use crate::bus::{Bus, BusEvent, BusMessage, Channel, Envelope, NotSent};

/// So many envelopes are sent where many are.
const MANY: u64 = 10_000;

/// Fewer than these are taken that go nowhere.
const MOST_UNSENT: u64 = 100_000;

/// Fewer than these wait for a listener that stands still.
const MOST_UNHEARD: u64 = 1_000_000;

/// So many it takes in at a time then.
const FEW: usize = 100;

/// What the tests need of a kind of bus: ends of one bus that nobody else uses, and ways to disturb it.
#[expect(async_fn_in_trait, reason = "the tests run in one thread")]
pub trait Bench {
    /// A further end, for one more node.
    fn bus(&self) -> Box<dyn Bus>;

    /// Publishes bytes as somebody would who is no node.
    async fn publish_bytes(&self, channel: &Channel, bytes: &[u8]);

    /// Breaks the connections that the ends have now. They come back by themselves.
    async fn break_connections(&self);

    /// Lets nothing through any more, in a way that the ends do not notice at once.
    async fn stall(&self);

    /// Ends [`stall`](Self::stall), which lasts a second or so: the connections are as before.
    async fn resume(&self);
}

/// Makes a module with a test for each duty of a [`Bus`]; see
/// [`testing::bus_contract`](crate::testing::bus_contract).
///
/// It takes the module's name, and a closure that makes the [`Bench`] of one test.
#[macro_export]
macro_rules! bus_contract {
    ($name:ident, $bench:expr) => {
        $crate::bus_contract!(@tests $name, $bench,
            up_comes_first
            subscribed_comes_before_what_is_heard
            each_node_is_heard_in_its_order
            all_who_have_subscribed_hear
            an_unsubscribed_channel_falls_silent
            all_rooms_are_heard_and_not_the_nodes
            the_nodes_are_heard_by_who_has_subscribed
            a_node_may_hear_itself
            odd_names_are_names
            large_envelopes_arrive
            what_waits_to_be_sent_is_bounded
            what_waits_to_be_heard_is_bounded
            a_lost_connection_is_told_and_comes_back_without_subscriptions
            what_is_no_envelope_is_told
            who_does_not_listen_any_more_disturbs_nobody
        );
    };
    (@tests $name:ident, $bench:expr, $($test:ident)*) => {
        mod $name {
            #[allow(unused_imports, reason = "the bench may be named with its path")]
            use super::*;

            $(
                #[test]
                fn $test() {
                    $crate::testing::bus_contract::run(|| {
                        let bench = ($bench)();
                        async move { $crate::testing::bus_contract::$test(&bench).await }
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

/// The first thing that a listener hears is that the bus is up.
pub async fn up_comes_first(bench: &impl Bench) {
    let mut node = Node::unheard(bench, "a");
    assert!(matches!(node.next().await, BusEvent::Up));
}

/// A channel is not heard before `Subscribed`, and wholly from then on.
pub async fn subscribed_comes_before_what_is_heard(bench: &impl Bench) {
    let (mut a, mut b) = (Node::new(bench, "a").await, Node::new(bench, "b").await);
    a.bus.subscribe(channel("lobby"));
    // Something is published all the while.
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

/// Each node's envelopes come in its order, with none missing.
pub async fn each_node_is_heard_in_its_order(bench: &impl Bench) {
    let mut hearer = Node::hearing(bench, "hearer", &["lobby"]).await;
    let mut nodes = [Node::new(bench, "a").await, Node::new(bench, "b").await];
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

/// Several nodes hear the same; a channel that one has not subscribed to is not heard.
pub async fn all_who_have_subscribed_hear(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby"]).await;
    let mut b = Node::hearing(bench, "b", &["lobby", "garden"]).await;
    let mut c = Node::new(bench, "c").await;
    c.say("garden").await;
    c.say("lobby").await;
    assert_eq!(a.heard("lobby").await, ("c".to_owned(), 2));
    assert_eq!(b.heard("garden").await, ("c".to_owned(), 1));
    assert_eq!(b.heard("lobby").await, ("c".to_owned(), 2));
}

/// After `unsubscribe` a channel falls silent soon, others do not, and it can be subscribed to again.
pub async fn an_unsubscribed_channel_falls_silent(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby", "garden"]).await;
    let mut b = Node::new(bench, "b").await;
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
    tokio::time::timeout(MOST_WAIT, silent).await.expect("silence");
    a.subscribe(channel("lobby")).await;
    let number = b.say("lobby").await;
    assert_eq!(a.heard("lobby").await.1, number);
}

/// [`Channel::Rooms`] is every room, and not the nodes.
pub async fn all_rooms_are_heard_and_not_the_nodes(bench: &impl Bench) {
    let mut a = Node::new(bench, "a").await;
    a.subscribe(Channel::Rooms).await;
    let mut b = Node::new(bench, "b").await;
    b.tell(BusMessage::Missed).await;
    for room in ["lobby", "garden", "nodes", "*"] {
        let number = b.say(room).await;
        assert_eq!(a.heard(room).await, ("b".to_owned(), number));
    }
    // Subscribed to twice, it is heard at least once.
    a.subscribe(channel("lobby")).await;
    let number = b.say("lobby").await;
    assert_eq!(a.heard("lobby").await.1, number);
    a.bus.unsubscribe(Channel::Rooms);
    a.subscribe(channel("garden")).await;
    let number = b.say("garden").await;
    while a.heard_anywhere().await.1 != number {}
}

/// [`Channel::Nodes`] is heard by those who have subscribed to it, and by no others.
pub async fn the_nodes_are_heard_by_who_has_subscribed(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby", "nodes"]).await;
    a.subscribe(Channel::Nodes).await;
    let mut b = Node::hearing(bench, "b", &["lobby"]).await;
    let mut c = Node::new(bench, "c").await;
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

/// A node may hear its own envelopes, which are then as those of others.
pub async fn a_node_may_hear_itself(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby"]).await;
    let mut b = Node::hearing(bench, "b", &["lobby"]).await;
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

/// Whatever a room may be called, it is heard by its name only.
pub async fn odd_names_are_names(bench: &impl Bench) {
    let long = "é".repeat(255);
    let names = [
        "*",
        "?",
        "[a-z]",
        "\\",
        "\\*",
        "a*",
        "a?",
        "[a]",
        "a",
        "ab",
        " ",
        " a ",
        "a:b",
        ":",
        "nodes",
        "room:a",
        "\u{1F426} ü \u{200D}",
        "{a}",
        "%s%n",
        "'\"",
        "^",
        "[^a]",
        "PING",
        "..",
        "/",
        &long,
    ];
    let mut a = Node::hearing(bench, "a", &names).await;
    let mut b = Node::hearing(bench, "b", &["*", "a*", "?", "[a-z]", "\\*"]).await;
    let mut c = Node::new(bench, "c").await;
    for name in names {
        let number = c.say(name).await;
        assert_eq!(a.heard(name).await, ("c".to_owned(), number));
    }
    for name in names.into_iter().filter(|n| ["*", "a*", "?", "[a-z]", "\\*"].contains(n)) {
        b.heard(name).await;
    }
    assert!(b.seen.now().is_none());
}

/// A batch of a megabyte arrives as it was sent.
pub async fn large_envelopes_arrive(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby"]).await;
    let mut b = Node::new(bench, "b").await;
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

/// Where nothing goes out, publishing is refused in the end; and only what was taken is heard.
pub async fn what_waits_to_be_sent_is_bounded(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby"]).await;
    let mut b = Node::new(bench, "b").await;
    bench.stall().await;
    let taken = (0..MOST_UNSENT).take_while(|_| b.try_say("lobby").is_ok()).count() as u64;
    bench.resume().await;
    assert!(taken < MOST_UNSENT, "{taken} envelopes were taken that went nowhere");
    for expected in 1..=taken {
        // If it has taken too long, nothing is promised.
        let told = tokio::select! { told = a.next() => told, told = b.next() => told };
        match told {
            BusEvent::Received(Envelope { message: BusMessage::Published(said), .. }) => {
                assert_eq!(said.number, expected);
            }
            BusEvent::Down(_) => return,
            other => panic!("{other:?}"),
        }
    }
}

/// A listener that does not keep up is told `Down` and `Up`, and what it had waiting is lost.
pub async fn what_waits_to_be_heard_is_bounded(bench: &impl Bench) {
    let mut stuck = Node::stuck(bench, "stuck").await;
    let mut b = Node::new(bench, "b").await;
    'told: for _ in 0..MOST_UNHEARD / MANY {
        for _ in 0..MANY {
            b.say("lobby").await;
        }
        // What was on its way to the listener comes first.
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
    assert!(matches!(stuck.next().await, BusEvent::Up));
    stuck.subscribe(channel("lobby")).await;
    let number = b.say("lobby").await;
    while stuck.heard("lobby").await.1 != number {}
}

/// A lost connection is told and made again. Nothing is subscribed to then, until asked for.
pub async fn a_lost_connection_is_told_and_comes_back_without_subscriptions(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby", "garden"]).await;
    let mut b = Node::new(bench, "b").await;
    for _ in 0..3 {
        bench.break_connections().await;
        for node in [&mut a, &mut b] {
            assert!(matches!(node.next().await, BusEvent::Down(_)));
            assert!(matches!(node.next().await, BusEvent::Up));
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

/// What somebody else publishes is told as unreadable, and what follows is heard.
pub async fn what_is_no_envelope_is_told(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby"]).await;
    let mut b = Node::new(bench, "b").await;
    for bytes in [b"hello".as_slice(), b"", b"\xff\0\r\n", b"{\"v\":77}"] {
        bench.publish_bytes(&channel("lobby"), bytes).await;
        let told = a.next().await;
        assert!(matches!(told, BusEvent::Unreadable(_)), "{told:?}");
    }
    let number = b.say("lobby").await;
    assert_eq!(a.heard("lobby").await.1, number);
}

/// A node that ends, or whose listener has stopped, is no trouble for others, and can be asked as before.
pub async fn who_does_not_listen_any_more_disturbs_nobody(bench: &impl Bench) {
    let mut a = Node::hearing(bench, "a", &["lobby"]).await;
    let mut deaf = Node::hearing(bench, "deaf", &["lobby"]).await;
    let gone = Node::hearing(bench, "gone", &["lobby"]).await;
    deaf.stop_listening().await;
    drop(gone);
    let mut b = Node::new(bench, "b").await;
    for number in 1..=100 {
        b.say("lobby").await;
        assert_eq!(a.heard("lobby").await, ("b".to_owned(), number));
        deaf.bus.subscribe(channel("garden"));
        let (Ok(()) | Err(NotSent)) = deaf.try_say("garden");
    }
}

/// How long a test waits between two tries.
const A_MOMENT: Duration = Duration::from_millis(1);
