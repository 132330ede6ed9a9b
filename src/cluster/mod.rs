//! What a node makes of the others: which rooms it follows, what it has heard of them, who lives.
//!
//! A presence is committed before it is told ([`Outbox`]). A node subscribes to the channel of a
//! room, then reads the room's rows, then takes what the bus brings that the rows do not have
//! ([`View`]): everything is in the rows or comes after. What was missed shows in the numbers, and
//! has the rows read again. Nodes are judged by their leases in the database ([`Peers`]), never by
//! their silence on the bus: that is named ([`silence`]), and one that lives and is not heard for a lease
//! is read each lease. The database has the last word on what was heard, too ([`Unverified`]).

mod hearing;
mod interest;
mod lives;
mod outbox;
mod peers;
mod recent;
mod silence;
mod unverified;
mod view;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use actix::Recipient;
use ahash::RandomState;

use self::{hearing::READ, outbox::Outbox, unverified::Unverified, view::View};
pub(crate) use self::{
    hearing::{News, ReadRooms},
    interest::Need,
    peers::{Finding, Met, Peers},
    silence::{beat_interval, listen_interval},
};
use crate::{
    bus::{Bus, BusEvent, BusMessage, Channel, Envelope, RoomMessage},
    model::{Cause, ConnectionId, Epoch, Moment, NodeName, Remote, RoomName, UserId},
    store::Committed,
    store::{Row, reader::ReaderHandle},
};

/// This node's part in the cluster.
pub(crate) struct Cluster {
    me: NodeName,
    incarnation: Epoch,
    /// How the other nodes are heard, if they are: a node may have the database for itself.
    bus: Option<Box<dyn Bus>>,
    /// Why the bus is down, if it is.
    down: Option<&'static str>,
    pub desk: ReaderHandle,
    pub peers: Peers,
    outbox: Outbox,
    views: HashMap<RoomName, View, RandomState>,
    /// Whether every room there is is followed, and whether the bus carries them all.
    everything: bool,
    carries_everything: bool,
    unlisted: bool,
    /// Rooms of which nothing is known yet, and those that are to be read again.
    to_read: VecDeque<RoomName>,
    to_refresh: VecDeque<RoomName>,
    reading: bool,
    failures: u32,
    /// Rooms to read at once.
    at_once: usize,
    /// Rooms that nobody here may need any more, and when to look.
    lingering: VecDeque<(u64, RoomName)>,
    unverified: Unverified,
    /// When all rooms were read last because of nodes that are not heard.
    refreshed: Option<Moment>,
}

impl Cluster {
    pub fn new(
        me: NodeName,
        incarnation: Epoch,
        bus: Option<Box<dyn Bus>>,
        desk: ReaderHandle,
    ) -> Self {
        Self {
            peers: Peers::new(me.clone()),
            me,
            incarnation,
            bus,
            down: Some("connecting"),
            desk,
            outbox: Outbox::default(),
            views: HashMap::default(),
            everything: false,
            carries_everything: false,
            unlisted: false,
            to_read: VecDeque::new(),
            to_refresh: VecDeque::new(),
            reading: false,
            failures: 0,
            at_once: READ,
            lingering: VecDeque::new(),
            unverified: Unverified::default(),
            refreshed: None,
        }
    }

    pub fn me(&self) -> &NodeName {
        &self.me
    }

    pub fn incarnation(&self) -> Epoch {
        self.incarnation
    }

    /// Whether there are other nodes where clients can go.
    pub fn has_others(&self) -> bool {
        self.is_shared() && self.peers.alive() > 0
    }

    /// Whether rooms are shared with other nodes.
    pub fn is_shared(&self) -> bool {
        self.bus.is_some()
    }

    /// Says who hears what the bus brings.
    pub fn listen(&mut self, listener: Recipient<BusEvent>) {
        if let Some(bus) = &mut self.bus {
            bus.listen(listener);
        }
    }

    fn subscribe(&mut self, channel: Channel) {
        if let Some(bus) = &mut self.bus {
            bus.subscribe(channel);
        }
    }

    /// Why the bus is down, if it is.
    pub fn down(&self) -> Option<&'static str> {
        self.down
    }

    /// This node lives again under its name: what it told counts from the beginning.
    pub fn reborn(&mut self, incarnation: Epoch) {
        self.incarnation = incarnation;
        self.outbox = Outbox::default();
    }

    /// Tells something; what is lost is made up later.
    pub fn tell(&mut self, message: BusMessage) -> bool {
        let envelope = Envelope { node: self.me.clone(), incarnation: self.incarnation, message };
        let Some(bus) = self.bus.as_mut().filter(|_| self.down.is_none()) else { return false };
        bus.publish(&envelope).is_ok()
    }

    /// Tells what was committed, room by room.
    pub fn tell_committed(&mut self, committed: &Committed) {
        if !self.is_shared() {
            return;
        }
        for changes in self.outbox.changes(committed) {
            if !self.tell(BusMessage::Changes(changes)) {
                self.outbox.missed = true;
            }
        }
    }

    /// Tells the members of a room elsewhere what was published to it.
    pub fn tell_said(
        &mut self,
        room: RoomName,
        content: crate::messages::Content,
        from: Option<(Option<UserId>, ConnectionId)>,
        except: Option<ConnectionId>,
    ) -> bool {
        let number = self.outbox.next_said();
        self.tell(BusMessage::Published(RoomMessage { room, number, content, from, except }))
    }

    /// Tells that this node lives, and what it has told since the last time.
    pub fn beat(&mut self) {
        if self.outbox.missed && self.tell(BusMessage::Missed) {
            self.outbox.missed = false;
        }
        let (number, rooms) = self.outbox.beat();
        self.tell(BusMessage::Heartbeat { number, rooms });
    }
}

/// Who is not heard.
impl Cluster {
    /// Each [`listen_interval`]: the nodes of which two beats are missing now, with how long they have
    /// not been heard. Each silence is named once.
    pub fn listen_for_beats(&mut self, lease: Duration, now: Moment) -> Vec<(NodeName, Duration)> {
        let hears = self.is_shared() && self.down.is_none();
        self.peers.listen(lease, hears, now)
    }

    /// The nodes that are not heard, though this node's bus is up, and for how long.
    pub fn unheard(&self, now: Moment) -> impl Iterator<Item = (&NodeName, Duration)> {
        self.peers.unheard(now).filter(|_| self.down.is_none())
    }

    /// After a survey, where rooms are shared: the nodes that live by the database and have not been
    /// heard for longer than a dead one has a lease. As soon as one is not heard for a lease, all rooms
    /// are read again once a lease. While this node's own bus is down that is so, too, but says nothing
    /// about the others.
    pub fn judge_silence(&mut self, lease: Duration, now: Moment) -> Vec<NodeName> {
        if !self.is_shared() {
            return Vec::new();
        }
        self.peers.vouch(lease, now);
        // The timer that this runs by is not exact.
        let due = |last| now.since(last) + lease / 6 >= lease;
        if self.peers.any_contradicted(lease, now) && self.refreshed.is_none_or(due) {
            self.refreshed = Some(now);
            self.read_all();
        }
        if self.down.is_some() { Vec::new() } else { self.peers.contradicted(lease, now) }
    }
}

/// A row as the model takes it.
pub(crate) fn remote(node: NodeName, row: Row) -> Remote {
    Remote { node, record: row.record }
}

/// Why the presences of a node end with it.
pub(crate) fn cause_of(leaving: bool) -> Cause {
    if leaving { Cause::Shutdown } else { Cause::NodeLost }
}
