//! What waits to be told to Redis: envelopes, and which channels are to be heard.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use super::{Channel, NotSent};

/// So many envelopes wait at most.
pub(super) const MOST_WAITING: usize = 8_192;

/// So many bytes wait at most.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// An envelope is at most so large.
pub(super) const LARGEST: usize = 16 * 1024 * 1024;

/// So many envelopes, of so many bytes unless it is one alone, are sent in one go.
const MOST_AT_ONCE: usize = 1_024;
const BYTES_AT_ONCE: usize = 1024 * 1024;

/// So many channels are asked for in one go.
const CHANNELS_AT_ONCE: usize = 1_024;

/// How long the last envelopes have to go out.
const GOODBYE: Duration = Duration::from_secs(1);

/// Between the node, which never waits, and the thread of its bus.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    put: Notify,
    asked: Notify,
    end: Notify,
    sent: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    ended: bool,
    envelopes: VecDeque<Outgoing>,
    bytes: usize,
    /// Whether some have been taken out, and have not arrived.
    sending: bool,
    /// By channel whether it is to be heard, so that what is asked often waits once.
    asked: HashMap<Channel, bool>,
}

/// An envelope for a channel of Redis.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub channel: String,
    pub payload: Vec<u8>,
}

impl Outbox {
    /// Takes an envelope, which is made only if there is room for one.
    pub fn put(&self, encode: impl FnOnce() -> (String, Vec<u8>)) -> Result<(), NotSent> {
        if !self.lock().has_room(0) {
            return Err(NotSent);
        }
        let (channel, payload) = encode();
        let mut state = self.lock();
        if payload.len() > LARGEST || !state.has_room(payload.len()) {
            return Err(NotSent);
        }
        state.bytes += payload.len();
        state.envelopes.push_back(Outgoing { channel, payload });
        self.put.notify_one();
        Ok(())
    }

    /// Asks that a channel be heard, or not. Nothing is asked of a bus that is down.
    pub fn ask(&self, channel: Channel, hear: bool) {
        let mut state = self.lock();
        if state.open {
            state.asked.insert(channel, hear);
            self.asked.notify_one();
        }
    }

    /// The envelopes to send next.
    pub async fn envelopes(&self) -> Vec<Outgoing> {
        loop {
            let batch = self.lock().take_envelopes();
            if !batch.is_empty() {
                return batch;
            }
            self.put.notified().await;
        }
    }

    /// The channels to ask for next, and whether they are to be heard.
    pub async fn channels(&self) -> Vec<(Channel, bool)> {
        loop {
            let batch = self.lock().take_channels();
            if !batch.is_empty() {
                return batch;
            }
            self.asked.notified().await;
        }
    }

    /// What was taken out has arrived.
    pub fn sent(&self) {
        self.lock().sending = false;
        self.sent.notify_one();
    }

    /// The bus is up.
    pub fn open(&self) {
        self.lock().open = true;
    }

    /// The bus is down: what waits is dropped, and nothing taken.
    pub fn close(&self) {
        let mut state = self.lock();
        *state = State { ended: state.ended, ..State::default() };
        self.sent.notify_one();
    }

    /// The node has dropped the bus.
    pub fn end(&self) {
        self.lock().ended = true;
        self.end.notify_one();
    }

    /// Whether the node has dropped the bus.
    pub fn ended(&self) -> bool {
        self.lock().ended
    }

    /// Waits for [`end`](Self::end), and then a little for what waits to be sent.
    pub async fn ended_and_sent(&self) {
        self.end.notified().await;
        let sent = async {
            while self.lock().has_work() {
                self.sent.notified().await;
            }
        };
        // Where it takes longer, who hears it reads the database.
        let _ = timeout(GOODBYE, sent).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self, bytes: usize) -> bool {
        self.open && self.envelopes.len() < MOST_WAITING && self.bytes + bytes <= MOST_BYTES
    }

    fn has_work(&self) -> bool {
        self.sending || !self.envelopes.is_empty()
    }

    fn take_envelopes(&mut self) -> Vec<Outgoing> {
        let mut bytes = 0;
        let within = |(taken, envelope): &(usize, &Outgoing)| {
            bytes += envelope.payload.len();
            *taken == 0 || *taken < MOST_AT_ONCE && bytes <= BYTES_AT_ONCE
        };
        let taken = self.envelopes.iter().enumerate().take_while(within).count();
        let batch: Vec<Outgoing> = self.envelopes.drain(..taken).collect();
        self.sending |= !batch.is_empty();
        self.bytes -= batch.iter().map(|envelope| envelope.payload.len()).sum::<usize>();
        batch
    }

    fn take_channels(&mut self) -> Vec<(Channel, bool)> {
        let channels: Vec<Channel> = self.asked.keys().take(CHANNELS_AT_ONCE).cloned().collect();
        channels.into_iter().filter_map(|channel| self.asked.remove_entry(&channel)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Outbox {
        let outbox = Outbox::default();
        outbox.open();
        outbox
    }

    fn put(outbox: &Outbox, bytes: usize) -> bool {
        outbox.put(|| (String::new(), vec![0; bytes])).is_ok()
    }

    #[test]
    fn it_takes_so_many_so_much_and_nothing_too_large() {
        let outbox = open();
        assert_eq!((0..10_000).filter(|_| put(&outbox, 1)).count(), MOST_WAITING);
        let outbox = open();
        assert!(!put(&outbox, LARGEST + 1));
        assert_eq!((0..10).filter(|_| put(&outbox, LARGEST)).count(), MOST_BYTES / LARGEST);
        assert!(put(&open(), LARGEST));
    }

    #[test]
    fn nothing_is_encoded_for_a_bus_that_is_down() {
        let outbox = open();
        put(&outbox, 1);
        outbox.close();
        assert_eq!(outbox.put(|| unreachable!()), Err(NotSent));
        outbox.ask(Channel::Nodes, true);
        outbox.open();
        assert!(outbox.lock().take_envelopes().is_empty());
        assert!(outbox.lock().take_channels().is_empty());
    }

    #[test]
    fn it_is_taken_out_in_order_and_in_pieces() {
        let outbox = open();
        for bytes in [BYTES_AT_ONCE + 1, 1, BYTES_AT_ONCE, 1] {
            assert!(put(&outbox, bytes));
        }
        let mut batches = (0..4).map(|_| outbox.lock().take_envelopes().len());
        assert_eq!(batches.by_ref().collect::<Vec<_>>(), [1, 1, 1, 1]);
        (0..MOST_AT_ONCE + 1).for_each(|_| assert!(put(&outbox, 1)));
        assert_eq!(outbox.lock().take_envelopes().len(), MOST_AT_ONCE);
        assert_eq!(outbox.lock().take_envelopes().len(), 1);
        assert_eq!(outbox.lock().bytes, 0);
    }

    #[test]
    fn of_what_is_asked_for_a_channel_the_last_counts() {
        let outbox = open();
        for hear in [true, false, true, false] {
            outbox.ask(Channel::Nodes, hear);
        }
        assert_eq!(outbox.lock().take_channels(), [(Channel::Nodes, false)]);
        assert!(outbox.lock().take_channels().is_empty());
    }
}
