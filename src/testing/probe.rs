//! Actors that record what they are sent.

use std::time::Duration;

use actix::prelude::*;
use tokio::sync::mpsc;

use crate::bus::BusEvent;
use crate::messages::{Disconnect, ForwardMessage, PresenceChanged};

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

/// What a session is sent.
#[derive(Clone, Debug)]
pub enum Heard {
    /// A frame.
    Frame(ForwardMessage),
    /// The order to close.
    Close(Disconnect),
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
