//! What nodes send to each other.
//!
//! A [`Bus`] carries [`Envelope`]s to every node that has subscribed to their [`Channel`]: at most once, in
//! the order in which their sender published them, and perhaps not at all. Whatever must not be lost is in
//! the database before it is published; a node that has missed something reads it there.
//!
//! What an envelope contains is `Serialize` and `Deserialize` for the JSON of envelopes alone: infos and payloads are
//! written as the text that they are, for which any other format gets a map with a private key. An app that sends
//! such values on has types of the root for that, such as [`Presence`](crate::Presence) and [`Diff`](crate::Diff).

mod encoding;
mod envelope;
#[cfg(feature = "redis")]
mod redis;

use std::borrow::Cow;

use actix::prelude::*;

pub use self::envelope::{
    AddressedMessage, BusMessage, Envelope, InvalidEnvelope, MAX_ENVELOPE_BYTES, RoomChanges,
    RoomMessage, RowChange,
};
#[cfg(feature = "redis")]
pub use self::redis::{InvalidRedisUrl, RedisBus};
pub use crate::model::ClusterIdentity;
use crate::model::RoomName;

/// A channel of a [`Bus`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The channel of all nodes.
    Nodes,
    /// The channel of one room.
    Room(RoomName),
    /// The channels of all rooms, to subscribe to; nothing is published to it.
    Rooms,
}

impl Channel {
    /// The name that the [codes](Envelope::encode) of its envelopes cover: `nodes`, or `room:lobby` for the
    /// room `lobby`.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Self::Nodes => "nodes".into(),
            Self::Room(room) => format!("room:{room}").into(),
            Self::Rooms => "room:*".into(),
        }
    }
}

/// What a bus sends to the node that listens to it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub enum BusEvent {
    /// It is connected and may subscribe and publish. It is without subscriptions: the node has to subscribe
    /// again.
    Up,
    /// It is disconnected, for a reason in one word, and reconnects. Comes again when the reason is another.
    Down(&'static str),
    /// What is published to the channel from now on is received.
    Subscribed(Channel),
    /// A node, perhaps this one, has published this.
    Received(Envelope),
    /// Something was published that this node cannot decode, or that no node of this database has
    /// published there.
    Unreadable(InvalidEnvelope),
}

/// The bus accepts nothing now: it is down, or too much waits to be sent.
///
/// Nothing is kept for later. The other nodes read the database when the bus is up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bus is down, or full")]
pub struct NotSent;

/// A node's end of the bus.
///
/// Every implementation has to obey these rules, which
/// `testing::bus_contract` checks:
///
/// - Nothing here blocks or fails; the listener gets what happens as events. The first event is
///   [`BusEvent::Up`], or [`BusEvent::Down`] if the bus cannot be reached yet.
/// - There is no `Up` before the bus has an [identity](Self::identify) and may subscribe and publish.
///   Only ends with the same identity hear each other. What does not verify by it
///   ([`Envelope::decode`]) is [`BusEvent::Unreadable`].
/// - After [`BusEvent::Subscribed`] everything published to the channel is received until
///   [`BusEvent::Down`], that of each node in its order. A node may receive its own envelopes, and an
///   envelope twice if two of its subscriptions match.
/// - After `unsubscribe` nothing of the channel is received soon.
/// - A lost connection is reported, and made again with growing pauses of at most a few seconds.
/// - The queue to be sent is bounded ([`NotSent`]), and so is the queue to be received: a listener that
///   does not keep up gets `Down` and `Up`.
pub trait Bus: Send {
    /// Sets the listener; called once, before anything else.
    fn listen(&mut self, listener: Recipient<BusEvent>);

    /// Sets the identity, when the node has read it from the database. Another one than before takes the
    /// bus [`Down`](BusEvent::Down), for the reason `identity`, and up under the new one; the same one again
    /// changes nothing.
    fn identify(&mut self, identity: ClusterIdentity);

    /// Subscribes to a channel.
    fn subscribe(&mut self, channel: Channel);

    /// Ends the subscription to a channel.
    fn unsubscribe(&mut self, channel: Channel);

    /// Sends an envelope to all subscribers of its [channel](Envelope::channel).
    ///
    /// # Errors
    ///
    /// [`NotSent`].
    fn publish(&mut self, envelope: &Envelope) -> Result<(), NotSent>;
}
