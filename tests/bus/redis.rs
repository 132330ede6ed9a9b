//! The bus through a real Redis: what a bus has to do, and what Redis may do to it.

mod rights;
#[path = "../common/redis.rs"]
mod server;

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_presence::{
    Content, Epoch, NodeName, RoomName,
    bus::{
        Bus, BusEvent, BusMessage, Channel, ClusterIdentity, Envelope, NotSent, RedisBus,
        RoomMessage,
    },
    bus_contract,
    testing::{Probe, Seen, bus_contract::BusFixture},
};
use tokio::sync::mpsc;

use self::server::Redis;

/// Nothing that is to happen takes longer.
const MAX_WAIT: Duration = Duration::from_secs(30);

impl BusFixture for Redis {
    fn bus(&self) -> Box<dyn Bus> {
        Box::new(RedisBus::new(&self.url()).unwrap())
    }

    async fn publish_bytes(&self, identity: &ClusterIdentity, channel: &Channel, bytes: &[u8]) {
        let name = format!("presence:{}:{}", identity.channel(), channel.name());
        self.bulk(&[b"PUBLISH", name.as_bytes(), bytes]);
    }

    async fn break_connections(&self) {
        self.command("CLIENT KILL TYPE pubsub");
        self.command("CLIENT KILL TYPE normal SKIPME yes");
    }

    async fn stall(&self) {
        self.pause();
    }

    async fn resume(&self) {
        Redis::resume(self);
    }
}

bus_contract!(contract, Redis::start);

/// The identity of the nodes here.
fn identity() -> ClusterIdentity {
    ClusterIdentity::new([1; 32], [0xab; 16])
}

/// The name of a channel in Redis.
fn name(channel: &Channel) -> String {
    format!("presence:{}:{}", "ab".repeat(16), channel.name())
}

struct Node {
    bus: RedisBus,
    seen: RefCell<Seen<BusEvent>>,
    said: u64,
}

impl Node {
    fn new(url: &str) -> Self {
        Self::with(RedisBus::new(url).unwrap())
    }

    fn with(mut bus: RedisBus) -> Self {
        let (listener, seen) = Probe::new();
        bus.listen(listener.recipient());
        bus.identify(identity());
        Self { bus, seen: RefCell::new(seen), said: 0 }
    }

    /// A node that hears the lobby.
    async fn hearing(url: &str) -> Self {
        let mut node = Self::new(url);
        node.up().await;
        node.subscribe(lobby()).await;
        node
    }

    #[expect(clippy::await_holding_refcell_ref, reason = "one waits at a time")]
    async fn next(&self) -> BusEvent {
        let until = Instant::now() + MAX_WAIT;
        loop {
            if let Some(told) = self.seen.borrow_mut().next().await {
                return told;
            }
            assert!(Instant::now() < until, "nothing is heard");
        }
    }

    /// Waits until it is up; the reasons why it was not may change.
    async fn up(&self) {
        loop {
            match self.next().await {
                BusEvent::Up => break,
                BusEvent::Down(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until it is down for this reason, and is not up meanwhile.
    async fn down_for(&self, reason: &str) {
        loop {
            match self.next().await {
                BusEvent::Down(why) if why == reason => break,
                BusEvent::Down(_) | BusEvent::Received(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn down(&self) -> &'static str {
        match self.next().await {
            BusEvent::Down(why) => why,
            other => panic!("{other:?}"),
        }
    }

    async fn subscribe(&mut self, channel: Channel) {
        self.bus.subscribe(channel.clone());
        let told = self.next().await;
        assert!(matches!(&told, BusEvent::Subscribed(c) if *c == channel), "{told:?}");
    }

    fn say(&mut self, text: &str) -> Result<u64, NotSent> {
        let envelope = self.envelope(text);
        self.bus.publish(&envelope)?;
        self.said = envelope.number;
        Ok(self.said)
    }

    /// The envelope that it would publish next.
    fn envelope(&self, text: &str) -> Envelope {
        let (number, content) = (self.said + 1, Content::Text(text.to_owned().into()));
        let room = RoomName::new("lobby").unwrap();
        let said = RoomMessage { room, content, from: None, except: None };
        let (node, incarnation) = (NodeName::new("n").unwrap(), Epoch::new());
        Envelope { node, incarnation, number, message: BusMessage::Published(said) }
    }

    async fn heard(&self) -> u64 {
        match self.next().await {
            BusEvent::Received(envelope) => envelope.number,
            other => panic!("{other:?}"),
        }
    }

    /// Says something and hears it.
    async fn works(&mut self) {
        let number = self.say("").unwrap();
        assert_eq!(self.heard().await, number);
    }
}

fn lobby() -> Channel {
    Channel::Room(RoomName::new("lobby").unwrap())
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + MAX_WAIT;
    while !is_so() {
        assert!(Instant::now() < until, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[actix::test]
async fn it_comes_back_after_a_restart() {
    let mut redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    node.works().await;
    for _ in 0..2 {
        redis.stop();
        assert_eq!(node.down().await, "lost");
        assert_eq!(node.say(""), Err(NotSent));
        redis.start_again();
        node.up().await;
        node.subscribe(lobby()).await;
        node.works().await;
    }
}

#[actix::test]
async fn a_redis_that_hangs_is_found_out_and_comes_back() {
    let redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    let started = Instant::now();
    redis.pause();
    assert_eq!(node.down().await, "timeout");
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert_eq!(node.say(""), Err(NotSent));
    redis.resume();
    node.up().await;
    node.subscribe(lobby()).await;
    node.works().await;
}

#[actix::test]
async fn paused_clients_are_found_out_too() {
    let redis = Redis::start();
    let node = Node::hearing(&redis.url()).await;
    redis.command("CLIENT PAUSE 12000 ALL");
    assert_eq!(node.down().await, "timeout");
    node.up().await;
}

#[actix::test]
async fn one_that_is_not_there_yet_is_waited_for() {
    let mut redis = Redis::start();
    redis.stop();
    let mut node = Node::new(&redis.url());
    assert_eq!(node.down().await, "refused");
    assert_eq!(node.say(""), Err(NotSent));
    // What is asked of a bus that is down is forgotten.
    node.bus.subscribe(lobby());
    redis.start_again();
    node.up().await;
    node.subscribe(lobby()).await;
    node.works().await;
}

#[actix::test]
async fn a_wrong_password_is_said_once_and_tried_again() {
    let redis = Redis::with(&["--requirepass", "secret"]);
    for url in [redis.url(), redis.url().replace("//", "//:wrong@")] {
        let node = Node::new(&url);
        assert_eq!(node.down().await, "denied");
        let right = redis.url().replace("//", "//:secret@");
        Node::hearing(&right).await.works().await;
        assert!(node.seen.borrow_mut().now().is_none());
    }
    let node = Node::new(&redis.url());
    assert_eq!(node.down().await, "denied");
    // As an administrator would who has found the mistake.
    assert_eq!(redis.command_with("secret", "CONFIG SET requirepass "), "OK");
    node.up().await;
}

#[actix::test]
async fn what_does_not_speak_tls_is_not_talked_to() {
    let redis = Redis::start();
    let node = Node::new(&redis.url().replace("redis", "rediss"));
    // It waits for the end of what it takes for a line.
    assert_eq!(node.down().await, "timeout");
}

#[actix::test]
async fn either_lost_connection_loses_both() {
    let redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    for kind in ["pubsub", "normal"] {
        assert_ne!(redis.command(&format!("CLIENT KILL TYPE {kind} SKIPME yes")), "0");
        assert_eq!(node.down().await, "lost");
        node.up().await;
        node.subscribe(lobby()).await;
        node.works().await;
    }
}

#[actix::test]
async fn what_is_sent_last_goes_out_and_nothing_stays_behind() {
    let redis = Redis::start();
    let hearer = Node::hearing(&redis.url()).await;
    let mut node = Node::hearing(&redis.url()).await;
    (0..5_000).for_each(|_| assert!(node.say("").is_ok()));
    drop(node.bus);
    for number in 1..=5_000 {
        assert_eq!(hearer.heard().await, number);
    }
    let channel = name(&lobby());
    let subscribers = || redis.command(&format!("PUBSUB NUMSUB {channel}"));
    until("its connections are gone", || subscribers() == format!("{channel} 1")).await;
}

#[actix::test]
async fn who_has_stopped_listening_is_connected_no_more() {
    /// Stops when it has subscribed.
    struct Done;
    impl Actor for Done {
        type Context = Context<Self>;
    }
    impl Handler<BusEvent> for Done {
        type Result = ();
        fn handle(&mut self, msg: BusEvent, ctx: &mut Context<Self>) {
            if let BusEvent::Subscribed(_) = msg {
                ctx.stop();
            }
        }
    }

    let redis = Redis::start();
    let mut bus = RedisBus::new(&redis.url()).unwrap();
    let done = Done.start();
    bus.listen(done.clone().recipient());
    bus.identify(identity());
    until("it has stopped", || {
        bus.subscribe(lobby());
        !done.connected()
    })
    .await;
    let channel = name(&lobby());
    let subscribers = || redis.command(&format!("PUBSUB NUMSUB {channel}"));
    until("its connections are gone", || subscribers() == format!("{channel} 0")).await;
}

#[actix::test]
async fn a_listener_that_is_slow_is_no_redis_that_hangs() {
    /// Takes longer with the first envelope than Redis may take to answer.
    struct Slow(mpsc::UnboundedSender<BusEvent>, Duration);
    impl Actor for Slow {
        type Context = Context<Self>;
    }
    impl Handler<BusEvent> for Slow {
        type Result = AtomicResponse<Self, ()>;
        fn handle(&mut self, msg: BusEvent, _: &mut Context<Self>) -> Self::Result {
            let pause = match msg {
                BusEvent::Received(_) => std::mem::take(&mut self.1),
                _ => Duration::ZERO,
            };
            let slow = tokio::time::sleep(pause).into_actor(self);
            AtomicResponse::new(Box::pin(slow.map(|(), slow, _| slow.0.send(msg).unwrap())))
        }
    }

    let redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    let (sender, mut seen) = mpsc::unbounded_channel();
    let mut bus = RedisBus::new(&redis.url()).unwrap();
    bus.listen(Slow(sender, Duration::from_secs(12)).start().recipient());
    bus.identify(identity());
    assert!(matches!(seen.recv().await, Some(BusEvent::Up)));
    bus.subscribe(lobby());
    assert!(matches!(seen.recv().await, Some(BusEvent::Subscribed(_))));
    for _ in 0..1_000 {
        node.works().await;
    }
    for _ in 0..1_000 {
        let told = tokio::time::timeout(MAX_WAIT, seen.recv()).await;
        assert!(matches!(told, Ok(Some(BusEvent::Received(_)))), "{told:?}");
    }
}

#[actix::test]
async fn what_is_too_large_is_refused_and_the_largest_arrives() {
    let redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    let text = "x".repeat(16 * 1024 * 1024);
    assert_eq!(node.say(&text), Err(NotSent));
    node.say(&text[1024..]).unwrap();
    assert_eq!(node.heard().await, 1);
    node.works().await;
}

#[actix::test]
async fn systems_with_prefixes_of_their_own_do_not_hear_each_other() {
    let redis = Redis::start();
    let mut nodes = Vec::new();
    for prefix in ["a", "*", "[ab]", "b"] {
        let mut node = Node::with(RedisBus::new(&redis.url()).unwrap().prefix(prefix));
        node.up().await;
        node.subscribe(Channel::Rooms).await;
        nodes.push(node);
    }
    for node in &mut nodes {
        node.works().await;
    }
    for node in &nodes {
        assert!(node.seen.borrow_mut().now().is_none());
    }
}

#[actix::test]
async fn all_rooms_and_a_room_with_the_name_of_their_pattern_are_two_things() {
    let redis = Redis::start();
    let mut node = Node::hearing(&redis.url()).await;
    let star = Channel::Room(RoomName::new("*").unwrap());
    node.subscribe(star.clone()).await;
    node.subscribe(Channel::Rooms).await;
    node.bus.unsubscribe(Channel::Rooms);
    // Asked for after it, and answered after it.
    node.subscribe(Channel::Nodes).await;
    redis.bulk(&[b"PUBLISH", name(&star).as_bytes(), b"?"]);
    assert!(matches!(node.next().await, BusEvent::Unreadable(_)));
    node.works().await;
}
