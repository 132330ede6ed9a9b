//! The nodes in the tests of the contract.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use chrono::DateTime;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use super::{BusFixture, RETRY_INTERVAL};
use crate::{
    bus::{
        Bus, BusEvent, BusMessage, Channel, ClusterIdentity, Envelope, NotSent, RoomChanges,
        RoomMessage, RowChange,
    },
    messages::Content,
    model::{ConnectionId, Epoch, Info, NodeName, Presence, PresenceRecord, RoomName, UserId},
    testing::Seen,
};

/// Whatever happens at all happens within this time.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(60);

/// More permits than a listener uses.
const OPEN: usize = usize::MAX >> 8;

/// The identity of the nodes in the tests, unless they are given another one.
pub(crate) fn identity() -> ClusterIdentity {
    ClusterIdentity::new([7; 32], [7; 16])
}

/// An end of the bus, and an actor that listens to it.
pub(crate) struct TestNode {
    pub bus: Box<dyn Bus>,
    pub seen: Seen<BusEvent>,
    name: NodeName,
    incarnation: Epoch,
    said: u64,
    gate: Arc<Semaphore>,
    listener: Addr<Listener>,
}

impl TestNode {
    /// A node that has received no event yet.
    pub fn unheard(fixture: &impl BusFixture, name: &str) -> Self {
        let mut node = Self::nobody(fixture, name);
        node.bus.identify(identity());
        node
    }

    /// A node without an identity.
    pub fn nobody(fixture: &impl BusFixture, name: &str) -> Self {
        let gate = Arc::new(Semaphore::new(OPEN));
        let (sender, seen) = mpsc::unbounded_channel();
        let listener = Listener { gate: gate.clone(), sender }.start();
        let mut bus = fixture.bus();
        bus.listen(listener.clone().recipient());
        let name = NodeName::new(name).expect("a name");
        Self { bus, seen: Seen::on(seen), name, incarnation: Epoch::new(), said: 0, gate, listener }
    }

    /// A node whose bus is up.
    pub async fn new(fixture: &impl BusFixture, name: &str) -> Self {
        let mut node = Self::unheard(fixture, name);
        let first = node.next().await;
        assert!(matches!(first, BusEvent::Up), "{first:?}");
        node
    }

    /// A node of another identity, whose bus is up.
    pub async fn of(fixture: &impl BusFixture, name: &str, identity: ClusterIdentity) -> Self {
        let mut node = Self::nobody(fixture, name);
        node.bus.identify(identity);
        node.up().await;
        node
    }

    /// Waits until the bus is up.
    pub async fn up(&mut self) {
        loop {
            match self.next().await {
                BusEvent::Up => break,
                // For another reason than before.
                BusEvent::Down(_) => {}
                other => panic!("{other:?} instead of Up"),
            }
        }
    }

    /// A node that has subscribed to rooms.
    pub async fn hearing(fixture: &impl BusFixture, name: &str, rooms: &[&str]) -> Self {
        let mut node = Self::new(fixture, name).await;
        for room in rooms {
            node.subscribe(channel(room)).await;
        }
        node
    }

    /// A node that has subscribed to the lobby, and whose listener is blocked from then on.
    pub async fn stuck(fixture: &impl BusFixture, name: &str) -> Self {
        let node = Self::hearing(fixture, name, &["lobby"]).await;
        node.gate.forget_permits(OPEN);
        node
    }

    /// Unblocks the listener of a stuck node.
    pub fn release(&self) {
        self.gate.add_permits(OPEN);
    }

    /// Lets the listener of a stuck node handle this many events.
    pub fn take_in(&self, messages: usize) {
        self.gate.add_permits(messages);
    }

    /// Stops the listener.
    pub async fn stop_listening(&mut self) {
        self.listener.send(Stop).await.expect("a listener");
        let stopped = async {
            while self.listener.connected() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        tokio::time::timeout(MAX_WAIT, stopped).await.expect("an end");
    }

    /// Subscribes, and waits for the confirmation.
    pub async fn subscribe(&mut self, channel: Channel) {
        self.bus.subscribe(channel.clone());
        loop {
            match self.next().await {
                BusEvent::Subscribed(subscribed) => break assert_eq!(subscribed, channel),
                BusEvent::Received(_) => {}
                other => panic!("{other:?} instead of Subscribed({channel:?})"),
            }
        }
    }

    /// Publishes to a room, if the bus accepts it. The numbers of a node's envelopes begin with 1.
    pub fn try_say(&mut self, room: &str) -> Result<(), NotSent> {
        let room = RoomName::new(room).expect("a name");
        let content = Content::Text("hello".into());
        self.try_tell(BusMessage::Published(RoomMessage {
            room,
            content,
            from: None,
            except: None,
        }))
    }

    /// Publishes to a room as soon as the bus accepts it, and returns the number.
    pub async fn say(&mut self, room: &str) -> u64 {
        let taken = async {
            while self.try_say(room).is_err() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        tokio::time::timeout(MAX_WAIT, taken).await.expect("a bus that takes it");
        self.said
    }

    /// Publishes a message as soon as the bus accepts it.
    pub async fn tell(&mut self, message: BusMessage) {
        let taken = async {
            while self.try_tell(message.clone()).is_err() {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        tokio::time::timeout(MAX_WAIT, taken).await.expect("a bus that takes it");
    }

    fn try_tell(&mut self, message: BusMessage) -> Result<(), NotSent> {
        self.bus.publish(&self.envelope(message))?;
        self.said += 1;
        Ok(())
    }

    /// The envelope that it would publish next.
    pub fn envelope(&self, message: BusMessage) -> Envelope {
        let (node, incarnation, number) = (self.name.clone(), self.incarnation, self.said + 1);
        Envelope { node, incarnation, number, message }
    }

    /// The next event of the listener.
    pub async fn next(&mut self) -> BusEvent {
        let next = tokio::time::timeout(MAX_WAIT, self.seen.recv()).await;
        next.ok().flatten().unwrap_or_else(|| panic!("{} hears nothing", self.name))
    }

    /// The sender and the number of the next message to any room.
    pub async fn heard_anywhere(&mut self) -> (String, u64) {
        let (_, node, number) = self.next_said().await;
        (node, number)
    }

    /// The sender and the number of the next message, which has to be to this room.
    pub async fn heard(&mut self, room: &str) -> (String, u64) {
        let (heard, node, number) = self.next_said().await;
        assert_eq!(heard, room);
        (node, number)
    }

    async fn next_said(&mut self) -> (String, String, u64) {
        match self.next().await {
            BusEvent::Received(Envelope {
                node,
                number,
                message: BusMessage::Published(said),
                ..
            }) => (said.room.to_string(), node.to_string(), number),
            other => panic!("{other:?}"),
        }
    }
}

/// The channel of a room.
pub(crate) fn channel(room: &str) -> Channel {
    Channel::Room(RoomName::new(room).expect("a name"))
}

/// Changes of a room of at least this size.
pub(super) fn large_changes(room: &str, bytes: usize) -> RoomChanges {
    let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap_or_default();
    let info = Info::new(json!({ "text": "\u{1F426}\"\\\n".repeat(200) })).expect("an info");
    let user = UserId::new("ada").ok();
    let here = || {
        let (connection, user, info) = (ConnectionId::new(), user.clone(), info.clone());
        let (joined_at, updated_at) = (at, at);
        let presence = Presence { connection, user, info, joined_at, updated_at };
        RowChange::Here(PresenceRecord::new(presence))
    };
    let changes = (0..bytes / info.as_json().len() + 1).map(|_| here()).collect();
    let room = RoomName::new(room).expect("a name");
    RoomChanges { room, number: 2, previous: 1, changes }
}

/// Forwards the events that its gate admits.
struct Listener {
    gate: Arc<Semaphore>,
    sender: mpsc::UnboundedSender<BusEvent>,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<BusEvent> for Listener {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, msg: BusEvent, _: &mut Context<Self>) -> Self::Result {
        let gate = self.gate.clone();
        let pass = async move {
            if let Ok(passed) = gate.acquire().await {
                passed.forget();
            }
        };
        AtomicResponse::new(Box::pin(pass.into_actor(self).map(|(), listener, _| {
            let _ = listener.sender.send(msg);
        })))
    }
}

/// Stops the listener.
#[derive(Message)]
#[rtype(result = "()")]
struct Stop;

impl Handler<Stop> for Listener {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}
