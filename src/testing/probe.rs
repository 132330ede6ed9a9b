//! Actors that record what they are sent, and how to know that nothing more comes.

use std::time::Duration;

use actix::{WeakRecipient, prelude::*};
use tokio::sync::mpsc;

#[cfg(doc)]
use super::ManualClock;
use crate::{
    bus::BusEvent,
    handle::PresenceClient,
    messages::{Disconnect, ForwardMessage, Heard, PresenceChanged, UserChanged},
    registry::Settle,
};

/// An actor that records what it is sent: a session or an observer for tests.
#[derive(Debug)]
pub struct Probe<M>(mpsc::UnboundedSender<M>);

/// The messages that a [`Probe`] was sent.
#[derive(Debug)]
pub struct Seen<M> {
    messages: mpsc::UnboundedReceiver<M>,
    probe: Option<WeakRecipient<Handled>>,
}

/// Answered by a probe when it has handled the messages before.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Handled;

/// Waits until nothing more comes of what was sent to the registry before, and of a
/// [clock that was moved](ManualClock::advance): frames are in the mailboxes of the sessions of this node, and
/// observers have handled their events. So an actor of the app's own that is asked afterwards has heard all.
///
/// It takes no longer than that work; an observer that never ends is waited for ten seconds. What waits for other
/// nodes is not waited for, nor is a hook of [`authorize_async`](crate::PresenceConfig::authorize_async) that has not
/// answered: await the join itself first.
pub async fn settle(presence: &PresenceClient) {
    let settled = async {
        // The second time for what the first has brought back: a session that took nothing, for one.
        for _ in 0..2 {
            if presence.registry().send(Settle).await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(MAX_WAIT, settled).await;
}

/// How long something that has to come is waited for.
const MAX_WAIT: Duration = Duration::from_secs(10);

impl<M: Unpin + 'static> Probe<M> {
    /// Starts a probe.
    #[must_use]
    pub fn new() -> (Addr<Self>, Seen<M>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let probe = Self::create(|ctx| {
            ctx.set_mailbox_capacity(4096);
            Self(sender)
        });
        let handled = probe.downgrade().recipient();
        (probe, Seen { messages: receiver, probe: Some(handled) })
    }
}

impl<M> Seen<M> {
    /// What comes on a channel.
    pub(super) fn on(messages: mpsc::UnboundedReceiver<M>) -> Self {
        Self { messages, probe: None }
    }

    /// The next message, for one that has to come; `None` if it has not come after ten seconds. That nothing comes
    /// is seen at once by [`settled`](Self::settled).
    pub async fn next(&mut self) -> Option<M> {
        tokio::time::timeout(MAX_WAIT, self.recv()).await.ok().flatten()
    }

    /// The next message; `None` if the probe has ended.
    pub(super) async fn recv(&mut self) -> Option<M> {
        self.messages.recv().await
    }

    /// The next message if it is there already.
    pub fn now(&mut self) -> Option<M> {
        self.messages.try_recv().ok()
    }

    /// All messages that were not read yet, once nothing more comes of what was sent to the registry before: see
    /// [`settle`]. Takes no time if there are none. What comes of a join that waits for a hook of
    /// [`authorize_async`](crate::PresenceConfig::authorize_async) is among them only if the join was awaited before.
    ///
    /// ```
    /// use actix_presence::{
    ///     Connection, PresenceConfig, Publish, RoomName,
    ///     testing::{Heard, Probe},
    /// };
    ///
    /// # actix::System::new().block_on(async {
    /// let presence = PresenceConfig::new("sqlite::memory:").start()?;
    /// let (session, mut heard) = Probe::<Heard>::new();
    /// let me = Connection::new(presence.registry());
    /// presence.registry().send(me.join(RoomName::new("lobby")?, session)).await??;
    /// presence.publish(Publish::new(RoomName::new("elsewhere")?, "hello")).await?;
    /// assert!(heard.settled(&presence).await.is_empty());
    /// presence.publish(Publish::new(RoomName::new("lobby")?, "hello")).await?;
    /// assert_eq!(heard.settled(&presence).await.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn settled(&mut self, presence: &PresenceClient) -> Vec<M> {
        settle(presence).await;
        if let Some(probe) = self.probe.as_ref().and_then(WeakRecipient::upgrade) {
            // It may have stopped.
            let _ = probe.send(Handled).await;
        }
        std::iter::from_fn(|| self.now()).collect()
    }
}

impl<M: Unpin + 'static> Handler<Handled> for Probe<M> {
    type Result = ();

    fn handle(&mut self, _: Handled, _: &mut Context<Self>) {}
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

impl Handler<UserChanged> for Probe<UserChanged> {
    type Result = ();

    fn handle(&mut self, msg: UserChanged, _: &mut Context<Self>) {
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
