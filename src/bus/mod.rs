//! What nodes tell each other.
//!
//! A [`Bus`] carries [`Envelope`]s to every node that has subscribed to their [`Channel`]: at most
//! once, in the order in which one node published them, and perhaps not at all. Everything that must
//! not be lost is in the database before it is told; who misses something reads there.

mod envelope;
#[cfg(feature = "redis")]
mod redis;

use actix::prelude::*;

pub use self::envelope::{
    Change, Changes, Content, Envelope, InvalidEnvelope, MAX_ENVELOPE_BYTES, Said, Told,
};
#[cfg(feature = "redis")]
pub use self::redis::{InvalidRedisUrl, RedisBus};
use crate::model::RoomName;

/// Where nodes tell each other something.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// What every node hears.
    Nodes,
    /// What concerns one room.
    Room(RoomName),
    /// What concerns any room, to subscribe to; nothing is published to it.
    Rooms,
}

/// What a bus tells the node that listens to it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub enum FromBus {
    /// It is connected, with no subscriptions: those of before are to be asked for again.
    Up,
    /// It is not connected any more, and tries to be; why in one word.
    Down(&'static str),
    /// What is published to the channel from now on is heard.
    Subscribed(Channel),
    /// Somebody, perhaps this node, has published this.
    Heard(Envelope),
    /// Something was published that this node does not understand.
    Unreadable(InvalidEnvelope),
}

/// The bus takes nothing now: it is down, or more waits to be sent than it takes.
///
/// Nothing is kept for later. Who was not told reads the database when the bus is up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bus is down, or full")]
pub struct NotSent;

/// A node's end of the bus.
///
/// Duties of every implementation, which [`testing::bus_contract`](crate::testing::bus_contract) checks:
///
/// - Nothing here waits or fails; what happens is told to the listener. The first thing it hears is
///   [`FromBus::Up`], or [`FromBus::Down`] if there is nobody to connect to yet.
/// - After [`FromBus::Subscribed`] everything that is published to the channel is heard until
///   [`FromBus::Down`], each node's in its order. A node may hear its own envelopes too, and one
///   twice that it has subscribed to twice.
/// - After `unsubscribe` the channel falls silent soon.
/// - A lost connection is told, and made again with growing pauses of at most a few seconds.
/// - What waits to be sent is bounded ([`NotSent`]); what waits to be heard is, too: a listener that
///   does not keep up is told `Down` and `Up`.
pub trait Bus: Send {
    /// Says who listens; called once, before anything else.
    fn listen(&mut self, listener: Recipient<FromBus>);

    /// Asks to hear a channel.
    fn subscribe(&mut self, channel: Channel);

    /// Asks not to hear a channel any more.
    fn unsubscribe(&mut self, channel: Channel);

    /// Tells all who hear the envelope's [channel](Envelope::channel).
    ///
    /// # Errors
    ///
    /// [`NotSent`].
    fn publish(&mut self, envelope: &Envelope) -> Result<(), NotSent>;
}
