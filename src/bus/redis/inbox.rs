//! The queue of events for the listener.
//!
//! The client for Redis never stops reading, so the queue is bounded here, and not in Redis. For the same
//! reason a slow listener does not look like a Redis that hangs.

use std::{cell::RefCell, collections::VecDeque};

use redis::Msg;
use tokio::sync::Notify;

use crate::bus::Channel;

/// The largest number of queued messages.
const MAX_MESSAGES: usize = 65_536;

/// The largest size of all queued messages.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Between the connections and the listener, on the thread of the bus.
#[derive(Default)]
pub(super) struct Inbox {
    state: RefCell<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// The last state of the bus that the listener got.
    reported_up: Option<bool>,
    queue: VecDeque<QueuedEvent>,
    messages: usize,
    bytes: usize,
}

/// An event for the listener.
pub(super) enum QueuedEvent {
    Up,
    Down(&'static str),
    Subscribed(Channel),
    Message(Msg),
}

/// The queue is full.
#[derive(Debug)]
pub(super) struct Overrun;

impl Inbox {
    pub fn up(&self) {
        self.push(QueuedEvent::Up);
    }

    /// Empties the queue. Returns whether the listener learns from it that the bus is down.
    pub fn down(&self, reason: &'static str) -> bool {
        let mut state = self.state.borrow_mut();
        let was_up = state.queue.iter().any(|event| matches!(event, QueuedEvent::Up));
        let was_down = state.queue.iter().any(|event| matches!(event, QueuedEvent::Down(_)));
        let reported_up = state.reported_up;
        *state = State { reported_up, ..State::default() };
        // If it has not got the last `Up`, it does not need a `Down`.
        if reported_up != Some(false) {
            state.queue.push_back(QueuedEvent::Down(reason));
            self.changed.notify_one();
        }
        was_up || !was_down && reported_up != Some(false)
    }

    pub fn subscribed(&self, channel: Channel) {
        self.push(QueuedEvent::Subscribed(channel));
    }

    pub fn message(&self, message: Msg) -> Result<(), Overrun> {
        let mut state = self.state.borrow_mut();
        state.messages += 1;
        state.bytes += message.get_payload_bytes().len();
        // A single message is accepted whatever its size: it is in memory already.
        if state.messages > 1 && (state.messages > MAX_MESSAGES || state.bytes > MAX_BYTES) {
            return Err(Overrun);
        }
        drop(state);
        self.push(QueuedEvent::Message(message));
        Ok(())
    }

    /// The next event.
    pub async fn next(&self) -> QueuedEvent {
        loop {
            if let Some(event) = self.state.borrow_mut().pop() {
                return event;
            }
            self.changed.notified().await;
        }
    }

    fn push(&self, event: QueuedEvent) {
        self.state.borrow_mut().queue.push_back(event);
        self.changed.notify_one();
    }
}

impl State {
    fn pop(&mut self) -> Option<QueuedEvent> {
        let event = self.queue.pop_front()?;
        match &event {
            QueuedEvent::Up => self.reported_up = Some(true),
            QueuedEvent::Down(_) => self.reported_up = Some(false),
            QueuedEvent::Subscribed(_) => {}
            QueuedEvent::Message(message) => {
                self.messages -= 1;
                self.bytes -= message.get_payload_bytes().len();
            }
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use redis::Value;

    use super::*;

    fn message(bytes: usize) -> Msg {
        let words = [b"message".to_vec(), b"channel".to_vec(), vec![0; bytes]];
        let value = Value::Array(words.into_iter().map(Value::BulkString).collect());
        Msg::from_owned_value(value).unwrap()
    }

    fn take(inbox: &Inbox) -> Option<&'static str> {
        inbox.next().now_or_never().map(|event| match event {
            QueuedEvent::Up => "up",
            QueuedEvent::Down(reason) => reason,
            QueuedEvent::Subscribed(_) => "subscribed",
            QueuedEvent::Message(_) => "message",
        })
    }

    #[test]
    fn down_is_reported_once_and_at_once() {
        let inbox = Inbox::default();
        assert!(inbox.down("refused"));
        assert!(!inbox.down("timeout"));
        assert_eq!((take(&inbox), take(&inbox)), (Some("timeout"), None));
        assert!(!inbox.down("refused"));
        assert_eq!(take(&inbox), None);

        inbox.up();
        assert_eq!(take(&inbox), Some("up"));
        inbox.subscribed(Channel::Nodes);
        inbox.message(message(1)).unwrap();
        assert!(inbox.down("lost"));
        inbox.up();
        assert_eq!([(); 3].map(|()| take(&inbox)), [Some("lost"), Some("up"), None]);
    }

    #[test]
    fn an_unreported_up_is_withdrawn() {
        let inbox = Inbox::default();
        inbox.down("refused");
        take(&inbox);
        inbox.up();
        assert!(inbox.down("lost"));
        assert_eq!(take(&inbox), None);
    }

    #[test]
    fn its_number_and_its_size_are_bounded() {
        let inbox = Inbox::default();
        assert_eq!(
            (0..100_000).take_while(|_| inbox.message(message(1)).is_ok()).count(),
            MAX_MESSAGES
        );
        let inbox = Inbox::default();
        inbox.message(message(MAX_BYTES)).unwrap();
        assert!(inbox.message(message(1)).is_err());
        // A single message is accepted whatever its size.
        let inbox = Inbox::default();
        inbox.message(message(MAX_BYTES + 1)).unwrap();
        assert_eq!(take(&inbox), Some("message"));
        inbox.message(message(MAX_BYTES)).unwrap();
    }
}
