//! What waits to be told to the listener.
//!
//! The client for Redis reads on, whatever becomes of what it has read; so the bound is here, and not
//! in Redis. For the same reason a slow listener does not look like a Redis that hangs.

use std::{cell::RefCell, collections::VecDeque};

use redis::Msg;
use tokio::sync::Notify;

use super::Channel;

/// So many messages wait at most.
const MOST_UNHEARD: usize = 65_536;

/// So many bytes wait at most.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Between the connections and the listener, on the thread of the bus.
#[derive(Default)]
pub(super) struct Inbox {
    state: RefCell<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Whether the bus is up, for all that the listener has been told.
    told_up: Option<bool>,
    waiting: VecDeque<Untold>,
    messages: usize,
    bytes: usize,
}

/// Something to tell.
pub(super) enum Untold {
    Up,
    Down(&'static str),
    Subscribed(Channel),
    Message(Msg),
}

/// More waits than is kept.
#[derive(Debug)]
pub(super) struct Overrun;

impl Inbox {
    pub fn up(&self) {
        self.push(Untold::Up);
    }

    /// Drops what waits, and says whether it is news that the bus is down.
    pub fn down(&self, why: &'static str) -> bool {
        let mut state = self.state.borrow_mut();
        let was_up = state.waiting.iter().any(|told| matches!(told, Untold::Up));
        let was_down = state.waiting.iter().any(|told| matches!(told, Untold::Down(_)));
        let told_up = state.told_up;
        *state = State { told_up, ..State::default() };
        // If it has not heard of the last `Up`, it need not.
        if told_up != Some(false) {
            state.waiting.push_back(Untold::Down(why));
            self.changed.notify_one();
        }
        was_up || !was_down && told_up != Some(false)
    }

    pub fn subscribed(&self, channel: Channel) {
        self.push(Untold::Subscribed(channel));
    }

    pub fn message(&self, message: Msg) -> Result<(), Overrun> {
        let mut state = self.state.borrow_mut();
        state.messages += 1;
        state.bytes += message.get_payload_bytes().len();
        // A single one is taken whatever its size: it is in memory already.
        if state.messages > 1 && (state.messages > MOST_UNHEARD || state.bytes > MOST_BYTES) {
            return Err(Overrun);
        }
        drop(state);
        self.push(Untold::Message(message));
        Ok(())
    }

    /// What to tell next.
    pub async fn next(&self) -> Untold {
        loop {
            if let Some(told) = self.state.borrow_mut().pop() {
                return told;
            }
            self.changed.notified().await;
        }
    }

    fn push(&self, told: Untold) {
        self.state.borrow_mut().waiting.push_back(told);
        self.changed.notify_one();
    }
}

impl State {
    fn pop(&mut self) -> Option<Untold> {
        let told = self.waiting.pop_front()?;
        match &told {
            Untold::Up => self.told_up = Some(true),
            Untold::Down(_) => self.told_up = Some(false),
            Untold::Subscribed(_) => {}
            Untold::Message(message) => {
                self.messages -= 1;
                self.bytes -= message.get_payload_bytes().len();
            }
        }
        Some(told)
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
        inbox.next().now_or_never().map(|told| match told {
            Untold::Up => "up",
            Untold::Down(why) => why,
            Untold::Subscribed(_) => "subscribed",
            Untold::Message(_) => "message",
        })
    }

    #[test]
    fn down_is_told_once_and_at_once() {
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
    fn an_up_that_has_not_been_told_is_taken_back() {
        let inbox = Inbox::default();
        inbox.down("refused");
        take(&inbox);
        inbox.up();
        assert!(inbox.down("lost"));
        assert_eq!(take(&inbox), None);
    }

    #[test]
    fn it_holds_so_many_and_so_much() {
        let inbox = Inbox::default();
        assert_eq!(
            (0..100_000).take_while(|_| inbox.message(message(1)).is_ok()).count(),
            MOST_UNHEARD
        );
        let inbox = Inbox::default();
        inbox.message(message(MOST_BYTES)).unwrap();
        assert!(inbox.message(message(1)).is_err());
        // One alone is taken whatever its size.
        let inbox = Inbox::default();
        inbox.message(message(MOST_BYTES + 1)).unwrap();
        assert_eq!(take(&inbox), Some("message"));
        inbox.message(message(MOST_BYTES)).unwrap();
    }
}
