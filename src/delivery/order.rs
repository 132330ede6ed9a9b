//! What the registry orders of couriers, and what comes back.

use std::{sync::Arc, time::Duration};

use actix::{WeakRecipient, dev::OneshotSender, prelude::*};
use smallvec::SmallVec;

use super::{audience::Said, couriers::Desk, list::List, outlet::Outlet};
use crate::{
    messages::{Disconnect, JoinError, Joined},
    model::{ConnectionId, Few, RoomName},
};

/// What a courier is to do.
pub(super) enum Order {
    /// The connection is in the room, and is reached like this.
    Enter(Entry),
    /// It is not in the room any more.
    Exit { connection: ConnectionId, room: RoomName },
    /// It has to know that it is not in the room any more, if its dialect has a word for that.
    Close { connection: ConnectionId, room: RoomName },
    /// It has left its last room, and is to close, if it does not know, within so long.
    End {
        connection: ConnectionId,
        rooms: Few<(RoomName, bool)>,
        order: Option<(Disconnect, Duration)>,
    },
    /// These are to close, and stay in their rooms until they leave them by themselves.
    Dismiss { connections: Vec<ConnectionId>, order: Disconnect },
    /// For everybody in a room.
    Message(Said),
    /// For those who listen to who is in the room.
    List { list: Arc<List>, now: u64 },
    /// For those of them who are owed the whole list, or the newcomers among these.
    Offer { list: Arc<List>, only_newcomers: bool, now: u64 },
}

/// A connection that enters a room.
pub(super) struct Entry {
    pub connection: ConnectionId,
    pub room: RoomName,
    pub outlet: Outlet,
    /// Tells the connection from an earlier one of the same id.
    pub serial: u32,
    /// The number of the entry, which rises.
    pub number: u64,
    /// The version of the room.
    pub version: u64,
    /// Who is in the room; `None` for who does not listen, or is owed it.
    pub list: Option<Arc<List>>,
    /// What answers its joins, after it has been told.
    pub answers: Answers,
    pub now: u64,
}

/// The answer to a join, and where it goes.
pub(crate) struct Answer {
    pub reply: OneshotSender<Result<Joined, JoinError>>,
    pub joined: Joined,
}

/// Nearly always one.
pub(super) type Answers = SmallVec<[Answer; 1]>;

/// Gives the answers to joins.
pub(super) fn give(answers: Answers) {
    for Answer { reply, joined } in answers {
        // The session may have ended.
        let _ = reply.send(Ok(joined));
    }
}

/// The list for one who has entered a room.
pub(super) struct Greeting {
    pub connection: ConnectionId,
    pub list: Arc<List>,
    /// Whether it has been a member before.
    pub again: bool,
    pub answers: Answers,
    pub now: u64,
}

/// What came of an order.
#[derive(Debug, Default, Message)]
#[rtype(result = "()")]
pub(crate) struct Report {
    /// The room, where there is something to say of it.
    pub(super) room: Option<RoomName>,
    /// The thread that has handed out a list to everybody in it.
    pub(super) listed: Option<Desk>,
    /// Some listeners could not take the list, and need the whole of it later.
    pub(super) owes: bool,
    /// How long the thread was busy with the list.
    pub(super) busy: Duration,
    /// Connections whose mailbox is full, by their serials.
    pub(super) slow: Vec<(ConnectionId, u32)>,
    /// Connections whose actor has stopped.
    pub(super) gone: Vec<(ConnectionId, u32)>,
}

impl Report {
    fn is_empty(&self) -> bool {
        self.listed.is_none() && !self.owes && self.slow.is_empty() && self.gone.is_empty()
    }
}

/// An order's way there and back: when it is dropped, the report goes home, whatever became of the
/// courier.
pub(super) struct Errand {
    pub home: Arc<WeakRecipient<Report>>,
    pub report: Report,
}

impl Drop for Errand {
    fn drop(&mut self) {
        if self.report.is_empty() {
            return;
        }
        if let Some(home) = self.home.upgrade() {
            // One for each list that is under way, and for each connection that ends.
            home.do_send(std::mem::take(&mut self.report));
        }
    }
}

/// An order for a courier on another thread.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Parcel(pub Order, pub Option<Errand>);
