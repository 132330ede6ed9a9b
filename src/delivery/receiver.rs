//! One session as its dispatcher sends to it, and what that session knows of a room's list.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use bytestring::ByteString;

use super::{
    dispatcher::RoomMember,
    frames::{FullFrame, List},
    published::MessageFrames,
};
use crate::{
    messages::{Backlog, Dialect, Disconnect, Feed, ForwardMessage, Forwarded},
    model::RoomName,
    sockets::{self, SocketKey},
    wire::phoenix,
};

pub(crate) struct Recipients {
    /// The recipient of the join and no clone of it: each clone has a free slot in a full mailbox.
    pub forward: Recipient<ForwardMessage>,
    pub disconnect: Option<Recipient<Disconnect>>,
    pub dialect: Dialect,
    pub backlog_limit: usize,
    /// Its socket, if that is watched.
    pub socket: Option<SocketKey>,
}

impl Recipients {
    /// Whether it gets member lists.
    pub fn listens(&self) -> bool {
        !matches!(self.dialect, Dialect::Raw | Dialect::Json(Feed::None))
    }

    /// Tells the session to close, and shuts the socket down after the timeout if it does not.
    pub fn close(&self, disconnect: Disconnect, timeout: Duration) {
        if let Some(socket) = self.socket {
            sockets::end_within(socket, timeout);
        }
        if let Some(recipient) = &self.disconnect {
            recipient.do_send(disconnect);
        }
    }
}

pub(super) enum SendFailure {
    /// Its mailbox or backlog is full.
    Full,
    /// Its actor has stopped.
    Closed,
}

pub(super) enum Knowledge {
    NotListening,
    AtVersion(u64),
    /// A diff would not do: it needs the full list.
    NeedsFull(Box<FullNeeded>),
}

/// A listener that needs a full list.
#[derive(Default)]
pub(super) struct FullNeeded {
    /// The version that it was sent last, if any.
    sent: Option<u64>,
    /// The version at which it entered, if it was sent none since: an older list does not have it.
    entered: u64,
    /// Since when it has not taken a list, if so.
    pub refused_since: Option<u64>,
    /// Whether it has some list: of an earlier version, or an empty one.
    has_list: bool,
    /// The version at which it was sent a count, as the list is too large.
    counted: Option<u64>,
}

impl FullNeeded {
    /// Whether it is to be offered the full list before the next list for all: it was sent nothing, or did not
    /// take it. One that got a count waits for the next list.
    pub fn waits_for_offer(&self, only_newcomers: bool) -> bool {
        let needs_it = !self.has_list && self.counted.is_none();
        let is_new = needs_it && self.sent.is_none() && self.refused_since.is_none();
        is_new || !only_newcomers && (needs_it || self.refused_since.is_some())
    }
}

impl Knowledge {
    /// Whether a list of this version is news.
    pub fn needs(&self, version: u64) -> bool {
        match self {
            Self::NotListening => false,
            Self::AtVersion(known) => *known < version,
            Self::NeedsFull(needed) => version >= needed.entered.max(needed.sent.unwrap_or(0)),
        }
    }

    /// The member has entered the room at a version, perhaps again.
    pub fn enter(&mut self, listens: bool, version: u64) {
        match self {
            _ if !listens => *self = Self::NotListening,
            Self::NotListening => {
                let needed = FullNeeded { entered: version, ..FullNeeded::default() };
                *self = Self::NeedsFull(Box::new(needed));
            }
            // A join is answered with the full list, whatever was sent before.
            _ => {
                if let Some(needed) = self.need_full() {
                    (needed.has_list, needed.counted) = (false, None);
                }
            }
        }
    }

    /// Notes whether a frame was refused: then a listener needs the full list.
    fn note_refusal(&mut self, sent: &Result<(), SendFailure>, now: u64) {
        if matches!(sent, Err(SendFailure::Full))
            && let Some(needed) = self.need_full()
        {
            needed.refused_since.get_or_insert(now);
        }
    }

    fn need_full(&mut self) -> Option<&mut FullNeeded> {
        if let Self::AtVersion(version) = *self {
            let (sent, has_list) = (Some(version), true);
            let needed = FullNeeded { sent, has_list, ..FullNeeded::default() };
            *self = Self::NeedsFull(Box::new(needed));
        }
        match self {
            Self::NeedsFull(needed) => Some(needed),
            _ => None,
        }
    }

    /// Whether it was not sent this version, as it has not taken a list.
    pub fn lacks(&self, version: u64) -> bool {
        matches!(self, Self::NeedsFull(needed) if needed.sent.is_none_or(|sent| sent < version))
    }
}

/// One session of a dispatcher's thread.
pub(super) struct Receiver {
    pub recipients: Recipients,
    pub backlog: Arc<Backlog>,
    /// When it took a full list last; in many rooms it takes one after the other.
    pub full_taken: u64,
    pub serial: u32,
    /// Whether it gets nothing more: it has failed and the registry was told, or it was told to close.
    pub has_ended: bool,
}

impl Receiver {
    pub fn new(recipients: Recipients, serial: u32) -> Self {
        let backlog = Backlog::new(recipients.backlog_limit);
        Self { recipients, backlog, full_taken: 0, serial, has_ended: false }
    }

    /// Sends a list, as a diff if the session knows one of its bases, unless it is no news.
    pub fn send_list(
        &mut self,
        list: &List,
        member: &mut RoomMember,
        now: u64,
    ) -> Result<(), SendFailure> {
        let RoomMember { knowledge, counts_only, .. } = member;
        if !knowledge.needs(list.version()) {
            return Ok(());
        }
        if *counts_only {
            let sent = self.send_count(list, knowledge);
            knowledge.note_refusal(&sent, now);
            return sent;
        }
        let since = match knowledge {
            Knowledge::AtVersion(version) => Some(*version),
            _ => None,
        };
        let diff = match (self.recipients.dialect, since) {
            (Dialect::Json(Feed::Diff), Some(since)) => list.diff(since),
            (Dialect::Phoenix, Some(since)) => list.phoenix_diff(since),
            _ => None,
        };
        let sent = match (self.recipients.dialect, diff) {
            (_, Some(diff)) => self.send_update(list, Forwarded::Diff, diff, knowledge),
            (Dialect::Json(Feed::Count), _) => {
                self.send_update(list, Forwarded::State, list.count(), knowledge)
            }
            (dialect, None) => match FullFrame::of(dialect) {
                Some(frame) => self.send_full(list, frame, knowledge, now),
                None => {
                    *knowledge = Knowledge::NotListening;
                    return Ok(());
                }
            },
        };
        knowledge.note_refusal(&sent, now);
        sent
    }

    /// Sends the count to a member that may not see who is in the room.
    fn send_count(&self, list: &List, knowledge: &mut Knowledge) -> Result<(), SendFailure> {
        match self.recipients.dialect {
            Dialect::Raw | Dialect::Json(Feed::None) => {
                *knowledge = Knowledge::NotListening;
                Ok(())
            }
            Dialect::Json(_) => self.send_update(list, Forwarded::State, list.count(), knowledge),
            Dialect::Phoenix => {
                self.send_empty_state(list, knowledge)?;
                self.send_update(list, Forwarded::Diff, list.phoenix_count(), knowledge)
            }
        }
    }

    /// Sends an empty state to a client of Phoenix that has none yet: it waits for one.
    fn send_empty_state(&self, list: &List, knowledge: &mut Knowledge) -> Result<(), SendFailure> {
        if let Knowledge::NeedsFull(needed) = knowledge
            && !needed.has_list
        {
            let empty = phoenix::empty_state(list.room());
            self.send_sized(list.room(), Forwarded::State, empty)?;
            needed.has_list = true;
        }
        Ok(())
    }

    /// Sends a frame that brings the session to the version of the list, and counts by its bytes.
    fn send_update(
        &self,
        list: &List,
        kind: Forwarded,
        frame: ByteString,
        knowledge: &mut Knowledge,
    ) -> Result<(), SendFailure> {
        self.send_sized(list.room(), kind, frame)?;
        *knowledge = Knowledge::AtVersion(list.version());
        Ok(())
    }

    /// Sends a list that has to come before anything else of the room: if the place of a full list is
    /// taken, it counts by its bytes.
    pub fn send_list_first(
        &mut self,
        list: &List,
        member: &mut RoomMember,
        now: u64,
    ) -> Result<(), SendFailure> {
        let sent = self.send_list(list, member, now);
        let (Err(SendFailure::Full), Some(frame)) = (&sent, self.full_frame(member)) else {
            return sent;
        };
        let knowledge = &mut member.knowledge;
        match list.encode(frame) {
            Some(full) => self.send_update(list, Forwarded::State, full, knowledge),
            None => self.send_count_instead(list, frame, knowledge),
        }
    }

    /// Sends the full list. It has a place of its own in the backlog, and is only encoded if that is free.
    fn send_full(
        &mut self,
        list: &List,
        frame: FullFrame,
        knowledge: &mut Knowledge,
        now: u64,
    ) -> Result<(), SendFailure> {
        if !matches!(frame, FullFrame::Presence) {
            // A diff from the version that it has is not to be had.
            knowledge.need_full();
        }
        let place = self.backlog.reserve_state().ok_or(SendFailure::Full)?;
        let Some(full) = list.encode(frame) else {
            drop(place);
            return self.send_count_instead(list, frame, knowledge);
        };
        let (room, kind, reservation) = (list.room().clone(), Forwarded::State, Some(place));
        self.send(ForwardMessage { room, kind, payload: full, from: None, reservation })?;
        *knowledge = Knowledge::AtVersion(list.version());
        self.full_taken = now;
        Ok(())
    }

    /// Sends the initial list to a newcomer. A list that is probably too large is not encoded before the
    /// next list for all.
    pub fn send_initial_list(
        &mut self,
        list: &List,
        member: &mut RoomMember,
        now: u64,
    ) -> Result<(), SendFailure> {
        if !member.knowledge.needs(list.version()) {
            return Ok(());
        }
        let frame = self.full_frame(member);
        let Some(frame) = frame.filter(|frame| list.is_probably_too_large(*frame)) else {
            return self.send_list_first(list, member, now);
        };
        let knowledge = &mut member.knowledge;
        let sent = self.send_count_instead(list, frame, knowledge);
        knowledge.note_refusal(&sent, now);
        sent
    }

    /// The frame in which the member gets the full list, if it does.
    fn full_frame(&self, member: &RoomMember) -> Option<FullFrame> {
        FullFrame::of(self.recipients.dialect).filter(|_| !member.counts_only)
    }

    /// Sends a count instead of a list that is too large.
    fn send_count_instead(
        &self,
        list: &List,
        frame: FullFrame,
        knowledge: &mut Knowledge,
    ) -> Result<(), SendFailure> {
        let Some(needed) = knowledge.need_full() else { return Ok(()) };
        if needed.counted == Some(list.version()) {
            return Ok(());
        }
        if let FullFrame::Phoenix = frame {
            self.send_empty_state(list, knowledge)?;
            self.send_sized(list.room(), Forwarded::Diff, list.phoenix_truncated())?;
        } else {
            self.send_sized(list.room(), Forwarded::State, list.truncated())?;
        }
        let Some(needed) = knowledge.need_full() else { return Ok(()) };
        (needed.refused_since, needed.counted) = (None, Some(list.version()));
        needed.sent = needed.counted;
        Ok(())
    }

    /// Sends a message in the dialect of the session.
    pub fn send_message(&self, frames: &MessageFrames) -> Result<(), SendFailure> {
        let payload = frames.frame(self.recipients.dialect);
        let reservation = self.backlog.reserve(payload.len());
        let (room, kind) = (frames.room().clone(), Forwarded::Message);
        let from = frames.sender().cloned();
        self.send(ForwardMessage { room, kind, payload, from, reservation })
    }

    /// Sends a frame of a list that counts by its bytes.
    fn send_sized(
        &self,
        room: &RoomName,
        kind: Forwarded,
        payload: ByteString,
    ) -> Result<(), SendFailure> {
        let (room, reservation) = (room.clone(), self.backlog.reserve(payload.len()));
        self.send(ForwardMessage { room, kind, payload, from: None, reservation })
    }

    fn send(&self, message: ForwardMessage) -> Result<(), SendFailure> {
        if message.reservation.is_none() {
            return Err(SendFailure::Full);
        }
        self.recipients.forward.try_send(message).map_err(|error| match error {
            SendError::Full(_) => SendFailure::Full,
            SendError::Closed(_) => SendFailure::Closed,
        })
    }
}
