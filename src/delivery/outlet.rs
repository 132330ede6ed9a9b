//! The way to one connection, and what of a room's list goes there.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use bytestring::ByteString;

use super::list::{List, Whole};
use crate::{
    messages::{Backlog, Dialect, Disconnect, Feed, ForwardMessage, Forwarded, Reservation},
    model::RoomName,
    sockets::{self, SocketKey},
    wire::phoenix,
};

/// How to reach one connection.
pub(crate) struct Outlet {
    /// This very recipient and no clone of it: each clone has a free slot in a full mailbox.
    pub forward: Recipient<ForwardMessage>,
    pub disconnect: Option<Recipient<Disconnect>>,
    pub dialect: Dialect,
    /// How many bytes of frames may wait for it.
    pub backlog_limit: usize,
    /// Its socket, if that is watched.
    pub socket: Option<SocketKey>,
}

impl Outlet {
    /// Whether it is told who is in its rooms.
    pub fn listens(&self) -> bool {
        !matches!(self.dialect, Dialect::Raw | Dialect::Json(Feed::None))
    }

    /// Has the session close, and its socket end if the session does not get to run.
    pub fn close(&self, order: Disconnect, timeout: Duration) {
        if let Some(socket) = self.socket {
            sockets::end_within(socket, timeout);
        }
        if let Some(disconnect) = &self.disconnect {
            disconnect.do_send(order);
        }
    }
}

/// Why a frame did not reach a session.
pub(super) enum Refusal {
    /// Its mailbox is full, or its backlog.
    Full,
    /// Its actor has stopped.
    Closed,
}

/// What a listener knows of who is in a room.
pub(super) enum Knows {
    /// It does not listen.
    Nothing,
    /// The room at this version.
    Version(u64),
    /// Less than a change could be told by: it is owed the whole list.
    Owed(Box<Owed>),
}

/// A listener that is owed a whole list.
#[derive(Default)]
pub(super) struct Owed {
    /// The version that it was told last, if any.
    told: Option<u64>,
    /// The version at which it has entered, if it has been told none since: an older list is not for it.
    entered: u64,
    /// Since when it has refused to take it, if it has.
    pub refused: Option<u64>,
    /// Whether it has some list, of an earlier version, or an empty one.
    has_list: bool,
    /// The version that it was told the count of, as the list is too large.
    counted: Option<u64>,
}

impl Owed {
    /// Whether the whole list is to be offered to it before the next list for everybody: it has been told
    /// nothing, or has not taken what it was told. Who got a count as the list is too large waits for that.
    pub fn waits_for_offer(&self, only_newcomers: bool) -> bool {
        let needs_it = !self.has_list && self.counted.is_none();
        let is_new = needs_it && self.told.is_none() && self.refused.is_none();
        is_new || !only_newcomers && (needs_it || self.refused.is_some())
    }
}

impl Knows {
    /// Whether a list of this version tells it something.
    pub fn needs(&self, version: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::Version(known) => *known < version,
            Self::Owed(owed) => version >= owed.entered.max(owed.told.unwrap_or(0)),
        }
    }

    /// It has entered the room at a version, perhaps once more.
    pub fn enter(&mut self, listens: bool, version: u64) {
        match self {
            _ if !listens => *self = Self::Nothing,
            Self::Nothing => {
                *self = Self::Owed(Box::new(Owed { entered: version, ..Owed::default() }));
            }
            // It has been told something, and is to be told all.
            _ => {
                if let Some(owed) = self.owe() {
                    (owed.has_list, owed.counted) = (false, None);
                }
            }
        }
    }

    /// The same as before, or less, after a frame was not taken.
    fn refused(&mut self, now: u64) {
        if let Some(owed) = self.owe() {
            owed.refused.get_or_insert(now);
        }
    }

    /// From now on a listener is owed the whole list.
    fn owe(&mut self) -> Option<&mut Owed> {
        if let Self::Version(told) = *self {
            let (told, has_list) = (Some(told), true);
            *self = Self::Owed(Box::new(Owed { told, has_list, ..Owed::default() }));
        }
        match self {
            Self::Owed(owed) => Some(owed),
            _ => None,
        }
    }

    /// Whether it has not been told of this version, as it has refused a list.
    pub fn lacks(&self, version: u64) -> bool {
        matches!(self, Self::Owed(owed) if owed.told.is_none_or(|told| told < version))
    }
}

/// One session of a thread.
pub(super) struct Session {
    pub outlet: Outlet,
    pub backlog: Arc<Backlog>,
    /// When it last took a whole state; in many rooms it takes one after the other.
    pub state_taken: u64,
    pub serial: u32,
    /// It has refused a message, or is no more, and the registry has been told; or it was told to
    /// close.
    pub ended: bool,
}

impl Session {
    pub fn new(outlet: Outlet, serial: u32) -> Self {
        let backlog = Backlog::new(outlet.backlog_limit);
        Self { outlet, backlog, state_taken: 0, serial, ended: false }
    }

    /// Tells the session who is in a room, as far as it does not know, and what it knows then.
    pub fn tell(&mut self, list: &List, knows: &mut Knows, now: u64) -> Result<(), Refusal> {
        if !knows.needs(list.version()) {
            return Ok(());
        }
        let since = match knows {
            Knows::Version(version) => Some(*version),
            _ => None,
        };
        let told = match (self.outlet.dialect, since) {
            (Dialect::Raw | Dialect::Json(Feed::None), _) => {
                *knows = Knows::Nothing;
                return Ok(());
            }
            (Dialect::Json(Feed::Count), _) => {
                self.tell_small(list, Forwarded::State, list.count(), knows)
            }
            (Dialect::Json(Feed::Full), _) => self.tell_whole(list, Whole::Full, knows, now),
            (Dialect::Json(Feed::Diff), None) => self.tell_whole(list, Whole::State, knows, now),
            (Dialect::Phoenix, None) => self.tell_whole(list, Whole::Phoenix, knows, now),
            (Dialect::Json(Feed::Diff), Some(since)) => match list.diff(since) {
                Some(diff) => self.tell_small(list, Forwarded::Diff, diff, knows),
                None => self.tell_whole_instead(list, Whole::State, knows, now),
            },
            (Dialect::Phoenix, Some(since)) => match list.phoenix_diff(since) {
                Some(diff) => self.tell_small(list, Forwarded::Diff, diff, knows),
                None => self.tell_whole_instead(list, Whole::Phoenix, knows, now),
            },
        };
        if matches!(told, Err(Refusal::Full)) {
            knows.refused(now);
        }
        told
    }

    /// Tells what has changed, or how many there are.
    fn tell_small(
        &self,
        list: &List,
        kind: Forwarded,
        frame: ByteString,
        knows: &mut Knows,
    ) -> Result<(), Refusal> {
        self.send_small(list.room(), kind, frame)?;
        *knows = Knows::Version(list.version());
        Ok(())
    }

    /// Tells everything to one that has an earlier version, which a change cannot lead on from.
    fn tell_whole_instead(
        &mut self,
        list: &List,
        whole: Whole,
        knows: &mut Knows,
        now: u64,
    ) -> Result<(), Refusal> {
        knows.owe();
        self.tell_whole(list, whole, knows, now)
    }

    /// Tells the session who is in a room before it hears anything else of it: if the place of a whole
    /// state is taken, the list counts by its bytes.
    pub fn tell_first(&mut self, list: &List, knows: &mut Knows, now: u64) -> Result<(), Refusal> {
        let told = self.tell(list, knows, now);
        let (Err(Refusal::Full), Some(whole)) = (&told, Whole::of(self.outlet.dialect)) else {
            return told;
        };
        let Some(frame) = list.encode(whole) else {
            return self.tell_count_instead(list, whole, knows);
        };
        self.tell_small(list, Forwarded::State, frame, knows)
    }

    /// Tells everything. A whole state has a place of its own in the backlog, and is only encoded if that
    /// is free.
    fn tell_whole(
        &mut self,
        list: &List,
        whole: Whole,
        knows: &mut Knows,
        now: u64,
    ) -> Result<(), Refusal> {
        let place = self.backlog.reserve_state().ok_or(Refusal::Full)?;
        let Some(frame) = list.encode(whole) else {
            drop(place);
            return self.tell_count_instead(list, whole, knows);
        };
        self.send(list.room(), Forwarded::State, frame, Some(place))?;
        *knows = Knows::Version(list.version());
        self.state_taken = now;
        Ok(())
    }

    /// Tells a newcomer who is in the room. Where the list was too large for the last who needed it, and
    /// the room is not much smaller now, it is not tried again before the next list for everybody.
    pub fn greet(&mut self, list: &List, knows: &mut Knows, now: u64) -> Result<(), Refusal> {
        if !knows.needs(list.version()) {
            return Ok(());
        }
        let told = match Whole::of(self.outlet.dialect) {
            Some(whole) if list.is_probably_too_large(whole) => {
                self.tell_count_instead(list, whole, knows)
            }
            _ => return self.tell_first(list, knows, now),
        };
        if matches!(told, Err(Refusal::Full)) {
            knows.refused(now);
        }
        told
    }

    /// Tells how many there are, as the list is too large.
    fn tell_count_instead(
        &self,
        list: &List,
        whole: Whole,
        knows: &mut Knows,
    ) -> Result<(), Refusal> {
        let Some(owed) = knows.owe() else { return Ok(()) };
        if owed.counted == Some(list.version()) {
            return Ok(());
        }
        if let Whole::Phoenix = whole {
            if !owed.has_list {
                let empty = phoenix::empty_state(list.room());
                self.send_small(list.room(), Forwarded::State, empty)?;
                owed.has_list = true;
            }
            self.send_small(list.room(), Forwarded::Diff, list.phoenix_count())?;
        } else {
            self.send_small(list.room(), Forwarded::State, list.truncated())?;
        }
        (owed.refused, owed.counted) = (None, Some(list.version()));
        owed.told = owed.counted;
        Ok(())
    }

    /// Sends a frame that counts by its bytes.
    pub fn send_small(
        &self,
        room: &RoomName,
        kind: Forwarded,
        payload: ByteString,
    ) -> Result<(), Refusal> {
        let reservation = self.backlog.reserve(payload.len());
        self.send(room, kind, payload, reservation)
    }

    fn send(
        &self,
        room: &RoomName,
        kind: Forwarded,
        payload: ByteString,
        reservation: Option<Reservation>,
    ) -> Result<(), Refusal> {
        let reservation = Some(reservation.ok_or(Refusal::Full)?);
        let forward = ForwardMessage { room: room.clone(), kind, payload, reservation };
        self.outlet.forward.try_send(forward).map_err(|error| match error {
            SendError::Full(_) => Refusal::Full,
            SendError::Closed(_) => Refusal::Closed,
        })
    }
}
