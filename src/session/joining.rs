//! The joins of channels, while they wait for their answers.
//!
//! An answer may take long, as an app's hook may decide it. The other channels of the socket go on meanwhile. What
//! the room sends is held back until the answer is written, and what the client sends on the topic waits, in order,
//! until the join is answered.

use std::collections::VecDeque;

use super::write_queue::WriteQueue;
use crate::{
    messages::{ForwardMessage, JoinError},
    model::{LimitReached, RoomName},
    wire::phoenix::{self, Frame},
};

/// How many joins of a socket may wait while its client is read. The next one is answered before another
/// frame is read, so that one client cannot take the place of others in the registry's queue.
const MAX_PENDING_JOINS: usize = 16;

/// How many bytes of a client's frames may wait for joins, unless it is one frame.
const MAX_WAITING_BYTES: usize = 64 * 1024;

/// The joins of a socket that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct PendingJoins {
    joins: Vec<PendingJoin>,
    /// The bytes of the frames that wait for them.
    waiting_bytes: usize,
}

/// A join that is not answered yet.
#[derive(Debug)]
pub(super) struct PendingJoin {
    room: RoomName,
    pub join_ref: Box<str>,
    pub reference: Option<Box<str>>,
    /// What the room has sent meanwhile; the backlog of the connection bounds it.
    pub held_back: Vec<ForwardMessage>,
    /// What the client has sent on the topic meanwhile.
    pub waiting: VecDeque<Box<str>>,
    /// Whether the client has left again.
    pub is_withdrawn: bool,
}

impl PendingJoins {
    /// The join on a topic.
    pub fn get(&mut self, topic: &str) -> Option<&mut PendingJoin> {
        self.joins.iter_mut().find(|join| join.room.as_str() == topic)
    }

    /// Adds a join. Answers whether it is one too many to read on before its answer.
    pub fn push(&mut self, join: PendingJoin) -> bool {
        self.joins.push(join);
        self.joins.len() > MAX_PENDING_JOINS
    }

    /// Has a frame of the client wait for the join on its topic.
    pub fn queue(&mut self, frame: &Frame<'_>, text: &str) -> Queued {
        let Self { joins, waiting_bytes } = self;
        let Some(join) = joins.iter_mut().find(|join| join.room.as_str() == frame.topic) else {
            return Queued::NoJoin;
        };
        if *waiting_bytes > 0 && *waiting_bytes + text.len() > MAX_WAITING_BYTES {
            return Queued::Full;
        }
        *waiting_bytes += text.len();
        join.waiting.push_back(text.into());
        let is_current = frame.join_ref.as_ref().is_none_or(|one| **one == *join.join_ref);
        if &*frame.event != "phx_leave" || !is_current || join.is_withdrawn {
            return Queued::Waits;
        }
        join.is_withdrawn = true;
        Queued::Withdraws(join.room.clone())
    }

    /// Takes a join out that is answered.
    pub fn take(&mut self, room: &RoomName) -> Option<PendingJoin> {
        let place = self.joins.iter().position(|join| join.room == *room)?;
        let join = self.joins.swap_remove(place);
        self.waiting_bytes -= join.waiting.iter().map(|text| text.len()).sum::<usize>();
        Some(join)
    }

    /// Refuses all: the socket closes.
    pub fn refuse_all(&mut self, outgoing: &WriteQueue, reason: &str) {
        for join in std::mem::take(self).joins {
            join.refuse(outgoing, reason);
        }
    }
}

/// What becomes of a frame whose topic may have a join that is not answered.
#[derive(Debug)]
pub(super) enum Queued {
    /// No join is pending: it is to be handled now.
    NoJoin,
    Waits,
    /// It waits, and is the leave that withdraws the join to this room.
    Withdraws(RoomName),
    /// Too many bytes wait.
    Full,
}

impl PendingJoin {
    pub fn new(room: RoomName, join_ref: &str, reference: Option<&str>) -> Self {
        Self {
            room,
            join_ref: join_ref.into(),
            reference: reference.map(Into::into),
            held_back: Vec::new(),
            waiting: VecDeque::new(),
            is_withdrawn: false,
        }
    }

    /// Holds back what the room has sent.
    pub fn hold_back(&mut self, msg: ForwardMessage) {
        self.held_back.push(msg);
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
