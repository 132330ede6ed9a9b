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

/// The topics of a socket that wait. Those whose frames have had a turn go to the end.
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
    /// The reference of the join, if it is one.
    join: Option<Box<str>>,
    /// Whether it is a join that the client has left again: it is refused when its turn comes.
    pub is_withdrawn: bool,
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

    /// Has a frame wait if something of its topic waits already, or if it is one join too many. A leave withdraws the
    /// join that it is for.
    pub fn queue(&mut self, frame: &Frame<'_>, text: &str) -> Turn {
        let is_join = &*frame.event == "phx_join";
        if self.topic(&frame.topic).is_none() && (!is_join || self.may_join()) {
            return Turn::Now;
        }
        let topic = self.entry(&frame.topic);
        let is_leave = &*frame.event == "phx_leave";
        let withdrawn = if is_leave { topic.withdraw(frame) } else { None };
        let join = is_join.then(|| join_ref(frame).into());
        let waiting = WaitingFrame { text: text.into(), join, is_withdrawn: false };
        let bytes = waiting.bytes();
        topic.frames.push_back(waiting);
        match withdrawn {
            Some(room) => Turn::Withdraws(room, bytes),
            None => Turn::Later(bytes),
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
        let place = self.0.iter().position(|one| *one.topic == *room.as_str())?;
        let topic = &mut self.0[place];
        let join = topic.join.take();
        if topic.frames.is_empty() {
            self.0.remove(place);
        }
        join
    }

    /// Whether frames wait.
    pub fn has_frames(&self) -> bool {
        self.0.iter().any(|one| !one.frames.is_empty())
    }

    /// Takes the next frame out whose turn has come.
    pub fn next(&mut self) -> Option<WaitingFrame> {
        let may_join = self.may_join();
        let has_turn = |one: &WaitingTopic| {
            one.join.is_none()
                && one.frames.front().is_some_and(|frame| may_join || !frame.is_asked())
        };
        let mut topic = self.0.remove(self.0.iter().position(has_turn)?);
        let frame = topic.frames.pop_front();
        if !topic.frames.is_empty() {
            self.0.push(topic);
        }
        frame
    }

    /// Refuses all joins: the socket closes.
    pub fn refuse_all(&self, outgoing: &WriteQueue, reason: &str) {
        for topic in &self.0 {
            if let Some(join) = &topic.join {
                join.refuse(outgoing, reason);
            }
            for frame in topic.frames.iter().filter(|frame| frame.join.is_some()) {
                frame.refuse(outgoing, reason);
            }
        }
    }

    /// How many bytes all frames count for.
    pub fn bytes(&self) -> usize {
        self.0.iter().flat_map(|topic| &topic.frames).map(WaitingFrame::bytes).sum()
    }
}

impl WaitingTopic {
    /// Withdraws the join that a leave is for: the last one, unless it names another. Returns the room if the registry
    /// has been asked for it.
    fn withdraw(&mut self, leave: &Frame<'_>) -> Option<RoomName> {
        let is_meant = |join: &str| leave.join_ref.as_ref().is_none_or(|one| **one == *join);
        let queued = self.frames.iter_mut().rev();
        let mut queued = queued.filter(|frame| frame.join.as_deref().is_some_and(is_meant));
        if let Some(frame) = queued.next() {
            frame.is_withdrawn = true;
            return None;
        }
        let join =
            self.join.as_mut().filter(|join| !join.is_withdrawn && is_meant(&join.join_ref))?;
        join.is_withdrawn = true;
        Some(join.room.clone())
    }
}

/// The reference of a join.
pub(super) fn join_ref<'a>(frame: &'a Frame<'_>) -> &'a str {
    frame.join_ref.as_deref().or(frame.r#ref.as_deref()).unwrap_or_default()
}

impl WaitingFrame {
    /// How many bytes it counts for while it waits.
    pub fn bytes(&self) -> usize {
        self.text.len().max(MIN_BYTES)
    }

    /// Whether the registry will be asked for it.
    fn is_asked(&self) -> bool {
        self.join.is_some() && !self.is_withdrawn
    }

    /// Answers that the join is refused.
    pub fn refuse(&self, outgoing: &WriteQueue, reason: &str) {
        // It was read before.
        if let Ok(frame) = phoenix::read(&self.text) {
            let (join_ref, reference) = (Some(join_ref(&frame)), frame.r#ref.as_deref());
            outgoing.text(phoenix::refused(join_ref, reference, &frame.topic, reason));
        }
    }
}

impl PendingJoin {
    pub fn new(room: RoomName, join_ref: &str, reference: Option<&str>) -> Self {
        let (join_ref, reference) = (join_ref.into(), reference.map(Into::into));
        Self { room, join_ref, reference, held_back: Vec::new(), is_withdrawn: false }
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
        JoinError::Undecided => "authorization failed",
        JoinError::Busy => "busy",
        JoinError::Superseded(_) => "replaced",
        JoinError::Withdrawn => "withdrawn",
        JoinError::ShuttingDown => "shutting down",
    }
}
