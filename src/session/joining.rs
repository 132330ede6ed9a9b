//! The topics of a socket that wait: for the answer to a join, or for their turn after it.
//!
//! An answer may take long, as an app's hook may decide it. The other channels of the socket go on meanwhile. What
//! the room sends is held back until the answer is written, and what the client sends on the topic waits, in order.

use std::collections::VecDeque;

use super::write_queue::WriteQueue;
use crate::{
    messages::{ForwardMessage, JoinError},
    model::{LimitReached, RoomName},
    wire::phoenix::{self, Frame},
};

/// How many joins of a socket may wait for their answers. Further ones wait in the socket, so that one client cannot
/// take the place of others in the registry's queue.
const MAX_PENDING_JOINS: usize = 16;

/// What a frame that waits counts for at least, in bytes: so their number is bounded, too.
const MIN_BYTES: usize = 256;

/// The topics of a socket that wait, the longest first.
#[derive(Debug, Default)]
pub(super) struct WaitingTopics(Vec<WaitingTopic>);

#[derive(Debug)]
struct WaitingTopic {
    topic: Box<str>,
    join: Option<PendingJoin>,
    /// What the client has sent meanwhile.
    frames: VecDeque<WaitingFrame>,
}

/// A frame of the client that waits.
#[derive(Debug)]
pub(super) struct WaitingFrame {
    pub text: Box<str>,
    is_join: bool,
}

/// A join that is not answered yet.
#[derive(Debug)]
pub(super) struct PendingJoin {
    room: RoomName,
    pub join_ref: Box<str>,
    pub reference: Option<Box<str>>,
    /// What the room has sent meanwhile; the backlog of the connection bounds it.
    pub held_back: Vec<ForwardMessage>,
    /// Whether the client has left again.
    pub is_withdrawn: bool,
}

/// What becomes of a frame.
#[derive(Debug)]
pub(super) enum Turn {
    /// It is to be handled now.
    Now,
    /// It waits, and counts for so many bytes.
    Later(usize),
    /// The same for a leave, which withdraws the pending join to this room.
    Withdraws(RoomName, usize),
}

impl WaitingTopics {
    fn topic(&mut self, topic: &str) -> Option<&mut WaitingTopic> {
        self.0.iter_mut().find(|one| &*one.topic == topic)
    }

    fn entry(&mut self, topic: &str) -> &mut WaitingTopic {
        let place = self.0.iter().position(|one| &*one.topic == topic).unwrap_or_else(|| {
            let (topic, frames) = (topic.into(), VecDeque::new());
            self.0.push(WaitingTopic { topic, join: None, frames });
            self.0.len() - 1
        });
        &mut self.0[place]
    }

    fn may_join(&self) -> bool {
        self.0.iter().filter(|one| one.join.is_some()).count() < MAX_PENDING_JOINS
    }

    /// Has a frame wait if something of its topic waits already, or if it is one join too many.
    pub fn queue(&mut self, frame: &Frame<'_>, text: &str) -> Turn {
        let is_join = &*frame.event == "phx_join";
        let waits = self.topic(&frame.topic).is_some() || (is_join && !self.may_join());
        if !waits {
            return Turn::Now;
        }
        let topic = self.entry(&frame.topic);
        let waiting = WaitingFrame { text: text.into(), is_join };
        let bytes = waiting.bytes();
        topic.frames.push_back(waiting);
        match &mut topic.join {
            Some(join) if &*frame.event == "phx_leave" && join.is_left_by(frame) => {
                join.is_withdrawn = true;
                Turn::Withdraws(join.room.clone(), bytes)
            }
            _ => Turn::Later(bytes),
        }
    }

    /// The join that is pending on a topic.
    pub fn join(&mut self, topic: &str) -> Option<&mut PendingJoin> {
        self.topic(topic)?.join.as_mut()
    }

    /// Adds a join.
    pub fn push(&mut self, join: PendingJoin) {
        let topic = self.entry(join.room.as_str());
        topic.join = Some(join);
    }

    /// Takes a join out that is answered.
    pub fn answered(&mut self, room: &RoomName) -> Option<PendingJoin> {
        let join = self.topic(room.as_str())?.join.take();
        self.forget_idle();
        join
    }

    /// Whether frames wait.
    pub fn has_frames(&self) -> bool {
        self.0.iter().any(|one| !one.frames.is_empty())
    }

    fn forget_idle(&mut self) {
        self.0.retain(|one| one.join.is_some() || !one.frames.is_empty());
    }

    /// Takes the next frame out whose turn has come.
    pub fn next(&mut self) -> Option<WaitingFrame> {
        self.forget_idle();
        let may_join = self.may_join();
        let has_turn = |one: &&mut WaitingTopic| {
            one.join.is_none() && one.frames.front().is_some_and(|frame| may_join || !frame.is_join)
        };
        self.0.iter_mut().find(has_turn)?.frames.pop_front()
    }

    /// Refuses all joins: the socket closes.
    pub fn refuse_all(&mut self, outgoing: &WriteQueue, reason: &str) {
        for join in std::mem::take(self).0.into_iter().filter_map(|one| one.join) {
            join.refuse(outgoing, reason);
        }
    }
}

impl WaitingFrame {
    /// How many bytes it counts for while it waits.
    pub fn bytes(&self) -> usize {
        self.text.len().max(MIN_BYTES)
    }
}

impl PendingJoin {
    pub fn new(room: RoomName, join_ref: &str, reference: Option<&str>) -> Self {
        let (join_ref, reference) = (join_ref.into(), reference.map(Into::into));
        Self { room, join_ref, reference, held_back: Vec::new(), is_withdrawn: false }
    }

    /// Whether this is the first leave of this join.
    fn is_left_by(&self, frame: &Frame<'_>) -> bool {
        !self.is_withdrawn && frame.join_ref.as_ref().is_none_or(|one| **one == *self.join_ref)
    }

    /// Answers that it is refused.
    pub fn refuse(&self, outgoing: &WriteQueue, reason: &str) {
        let (reference, topic) = (self.reference.as_deref(), self.room.as_str());
        outgoing.text(phoenix::refused(Some(&self.join_ref), reference, topic, reason));
    }
}

/// What a client is told of the refusal of its join.
pub(super) fn reason(error: &JoinError) -> &str {
    match error {
        JoinError::Limit(LimitReached::TooManyRooms { .. }) => "too many channels joined",
        JoinError::Limit(LimitReached::RoomFull { .. }) => "room is full",
        JoinError::Denied { reason } => reason,
        JoinError::Busy => "busy",
        JoinError::Superseded(_) => "replaced",
        JoinError::Withdrawn => "withdrawn",
        JoinError::ShuttingDown => "shutting down",
    }
}
