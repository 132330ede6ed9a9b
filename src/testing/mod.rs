//! What tests of an app that embeds presence need: a manual clock, probes in the place of sessions and
//! observers, and a database in memory and a bus that several nodes share. The rules that a database and
//! a bus have to obey, as tests: [`store_contract`], [`bus_contract`].

pub mod bus_contract;
mod memory;
mod memory_bus;
pub mod store_contract;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::prelude::*;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc;

pub use self::{
    memory::{MemoryDatabase, MemoryLink, MemoryStore},
    memory_bus::{MemoryBus, MemoryConnection, MemoryHub},
};
pub use crate::messages::Heard;
use crate::{
    bus::BusEvent,
    clock::Clock,
    messages::{Disconnect, ForwardMessage, PresenceChanged},
    model::Moment,
};

/// The payload of a panic, which panics when it is dropped, so that it cannot be caught.
#[cfg(test)]
pub(crate) struct Bomb;

#[cfg(test)]
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("again");
    }
}

/// A clock that stands still until it is moved. A clone is the same clock.
///
/// ```
/// use std::time::Duration;
///
/// use actix_presence::{PresenceConfig, testing::ManualClock};
///
/// let clock = ManualClock::new();
/// let config = PresenceConfig::new("sqlite::memory:").clock(clock.clock());
/// clock.advance(Duration::from_secs(61));
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Moment>>);

impl ManualClock {
    /// A clock at the start of 2026.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "two clocks are never equal")]
    pub fn new() -> Self {
        let wall = DateTime::<Utc>::from_timestamp(1_767_225_600, 0).unwrap_or_default();
        Self(Arc::new(Mutex::new(Moment::new(Duration::from_secs(1), wall))))
    }

    /// The clock for [`PresenceConfig::clock`](crate::PresenceConfig::clock).
    #[must_use]
    pub fn clock(&self) -> Clock {
        let moment = self.0.clone();
        Clock::from_fn(move || *moment.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The wall time it shows.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).utc()
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut moment = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let monotonic = moment.monotonic() + by;
        *moment = Moment::new(monotonic, moment.utc() + by);
    }

    /// Adjusts the wall clock, as an administrator would; the monotonic clock stays.
    pub fn set_wall(&self, by: TimeDelta) {
        let mut moment = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *moment = Moment::new(moment.monotonic(), moment.utc() + by);
    }
}

/// An actor that records what it is sent: a session or an observer for tests.
#[derive(Debug)]
pub struct Probe<M>(mpsc::UnboundedSender<M>);

/// The messages that a [`Probe`] was sent.
#[derive(Debug)]
pub struct Seen<M>(pub(crate) mpsc::UnboundedReceiver<M>);

impl<M: 'static> Probe<M>
where
    Self: Actor<Context = Context<Self>>,
{
    /// Starts a probe.
    #[must_use]
    pub fn new() -> (Addr<Self>, Seen<M>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let probe = Self::create(|ctx| {
            ctx.set_mailbox_capacity(4096);
            Self(sender)
        });
        (probe, Seen(receiver))
    }
}

impl<M> Seen<M> {
    /// The next message; `None` if none comes within ten seconds.
    pub async fn next(&mut self) -> Option<M> {
        tokio::time::timeout(Duration::from_secs(10), self.0.recv()).await.ok().flatten()
    }

    /// The next message if it is there already.
    pub fn now(&mut self) -> Option<M> {
        self.0.try_recv().ok()
    }
}

impl<M: Unpin + 'static> Actor for Probe<M> {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Probe<PresenceChanged> {
    type Result = ();

    fn handle(&mut self, msg: PresenceChanged, _: &mut Context<Self>) {
        // The receiver may have been dropped.
        let _ = self.0.send(msg);
    }
}

impl Handler<ForwardMessage> for Probe<Heard> {
    type Result = ();

    fn handle(&mut self, msg: ForwardMessage, _: &mut Context<Self>) {
        // A clone, so that a message that the test has not read does not count as backlog.
        let _ = self.0.send(Heard::Frame(msg.clone()));
    }
}

impl Handler<Disconnect> for Probe<Heard> {
    type Result = ();

    fn handle(&mut self, msg: Disconnect, _: &mut Context<Self>) {
        let _ = self.0.send(Heard::Close(msg));
    }
}

impl Handler<BusEvent> for Probe<BusEvent> {
    type Result = ();

    fn handle(&mut self, msg: BusEvent, _: &mut Context<Self>) {
        let _ = self.0.send(msg);
    }
}
