//! This node's view of the others: the rooms it follows, what it knows of them, and which nodes live.
//!
//! A presence is committed before it is published ([`SentNumbers`]). A node subscribes to the channel of a
//! room, then reads the room's rows, then takes what the bus brings that the rows do not have
//! ([`View`]): everything is in the rows or comes after. What was missed shows in the numbers, and
//! has the rows read again. Nodes are judged by their leases in the database ([`Peers`]), never by
//! their silence on the bus: that is named ([`silence`]), and one that lives and is not heard for a lease
//! is read each lease. The database has the last word on what was heard, too ([`Unverified`]).

mod early;
mod numbers;
mod peers;
mod receiving;
mod silence;
mod unverified;
mod view;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use actix::Recipient;
use ahash::RandomState;

use self::{
    early::EarlyMessages,
    numbers::{HeardNumbers, OwnIncarnation, SentNumbers},
    receiving::MAX_READ_ROOMS,
    unverified::Unverified,
    view::View,
};
pub(crate) use self::{
    peers::{NodeEvent, Peers, SenderStatus},
    receiving::{NotRead, ReadRooms, RemoteChanges},
    silence::{beat_interval, listen_interval},
};
use crate::{
    bus::{Bus, BusEvent, BusMessage, Channel, ClusterIdentity, Envelope, RoomMessage},
    model::{Cause, ConnectionId, Epoch, Moment, NodeName, Remote, RoomName, UserId, micros},
    store::Committed,
    store::{Row, reader::ReaderHandle},
};

/// How long a room is followed in which nobody is here, after the last time it was asked for.
const LINGER_TIME: Duration = Duration::from_secs(60);
/// How many rooms are followed at most in which nobody is here.
const MAX_LINGERING: usize = 10_000;

/// This node's part in the cluster.
pub(crate) struct Cluster {
    own: OwnIncarnation,
    /// How the other nodes are heard, if they are: a node may have the database for itself.
    bus: Option<Box<dyn Bus>>,
    /// What this node has in common with those of its database, once that was read.
    identity: Option<ClusterIdentity>,
    /// Whether it could not be read the last time, and none is known.
    unidentified: bool,
    /// Why the bus is down, if it is.
    down: Option<&'static str>,
    pub reader: ReaderHandle,
    /// The reader for what may take long, and which nobody waits for.
    pub background: ReaderHandle,
    pub peers: Peers,
    sent: SentNumbers,
    heard: HeardNumbers,
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
    /// Rooms that may not be needed here any more, and when to look.
    lingering: VecDeque<(u64, RoomName)>,
    unverified: Unverified,
    pub early: EarlyMessages,
    /// When all rooms were read last because of nodes that are not heard.
    refreshed: Option<Moment>,
}

impl Cluster {
    pub fn new(
        me: NodeName,
        incarnation: Epoch,
        bus: Option<Box<dyn Bus>>,
        [reader, background]: [ReaderHandle; 2],
    ) -> Self {
        Self {
            peers: Peers::new(me.clone()),
            own: OwnIncarnation::new(me, incarnation),
            bus,
            identity: None,
            unidentified: false,
            down: Some("connecting"),
            reader,
            background,
            sent: SentNumbers::default(),
            heard: HeardNumbers::default(),
            views: HashMap::default(),
            everything: false,
            carries_everything: false,
            unlisted: false,
            to_read: VecDeque::new(),
            to_refresh: VecDeque::new(),
            reading: false,
            failures: 0,
            at_once: MAX_READ_ROOMS,
            lingering: VecDeque::new(),
            unverified: Unverified::default(),
            early: EarlyMessages::default(),
            refreshed: None,
        }
    }

    pub fn me(&self) -> &NodeName {
        &self.own.node
    }

    pub fn incarnation(&self) -> Epoch {
        self.own.incarnation()
    }

    /// Whether there are other nodes, by the database: one that says that it stops may be back before
    /// this one is.
    pub fn has_others(&self) -> bool {
        self.is_shared() && self.peers.has_others()
    }

    /// Whether rooms are shared with other nodes.
    pub fn is_shared(&self) -> bool {
        self.bus.is_some()
    }

    /// Sets the recipient of what the bus brings.
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

    /// Takes what the database says that its nodes have in common. Under another identity than before the
    /// bus goes down and comes up, so that everything is subscribed to, and read, again.
    pub fn identify(&mut self, identity: ClusterIdentity) {
        let Some(bus) = &mut self.bus else { return };
        if self.identity.as_ref() == Some(&identity) {
            return;
        }
        let channel = identity.channel();
        if self.identity.is_some() {
            tracing::warn!(
                channel,
                "the database has another identity on the bus: it was restored, or is another one"
            );
        } else {
            tracing::debug!(channel, "the identity of the database on the bus was read");
        }
        bus.identify(identity.clone());
        (self.identity, self.unidentified) = (Some(identity), false);
    }

    /// Whether the bus waits for what [`identify`](Self::identify) takes.
    pub fn lacks_identity(&self) -> bool {
        self.is_shared() && self.identity.is_none()
    }

    /// The identity could not be read: nothing is heard before it is.
    pub fn has_no_identity(&mut self) {
        self.unidentified = self.lacks_identity();
    }

    /// Whether an envelope is later than all that were heard of its sender's incarnation.
    pub fn note_number(&mut self, envelope: &Envelope) -> bool {
        self.heard.note(envelope.incarnation, envelope.number)
    }

    /// Why the bus is down, if it is.
    pub fn down(&self) -> Option<&'static str> {
        if self.unidentified { Some("no_key") } else { self.down }
    }

    /// This node has a new incarnation: its numbers begin anew.
    pub fn register_again(&mut self, incarnation: Epoch) {
        self.own.begin(incarnation);
        self.sent = SentNumbers::default();
    }

    /// This node goes on in a new incarnation, and says so with its last word in the old one. What it has
    /// published stands, and its numbers go on.
    pub fn continue_as(&mut self, incarnation: Epoch) {
        self.tell(BusMessage::Continued { incarnation });
        self.own.begin(incarnation);
    }

    /// Publishes something. Answers whether the bus took it; what is lost is made up for later.
    pub fn tell(&mut self, message: BusMessage) -> bool {
        let Some(bus) = self.bus.as_mut().filter(|_| self.down.is_none()) else { return false };
        bus.publish(&self.own.envelope(message)).is_ok()
    }

    /// Publishes what was committed, room by room.
    pub fn tell_committed(&mut self, committed: &Committed) {
        if !self.is_shared() {
            return;
        }
        for changes in self.sent.changes(committed) {
            if !self.tell(BusMessage::Changes(changes)) {
                self.sent.missed = true;
            }
        }
    }

    /// Publishes a message to the members of a room on other nodes.
    pub fn tell_said(
        &mut self,
        room: RoomName,
        content: crate::messages::Content,
        from: Option<(Option<UserId>, ConnectionId)>,
        except: Option<ConnectionId>,
    ) -> bool {
        self.tell(BusMessage::Published(RoomMessage { room, content, from, except }))
    }

    /// Publishes that this node lives, with what it has published since the last beat.
    pub fn beat(&mut self) {
        if self.sent.missed && self.tell(BusMessage::Missed) {
            self.sent.missed = false;
        }
        let (number, rooms) = self.sent.beat();
        self.tell(BusMessage::Heartbeat { number, rooms });
    }
}

/// Whether a room is to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// It has members here.
    Member,
    /// An observer or a waiting command wants it.
    Passing,
    None,
}

/// Which rooms are followed.
impl Cluster {
    /// Follows a room from now on.
    pub fn follow(&mut self, room: &RoomName) {
        if self.is_shared() && !self.views.contains_key(room) {
            self.views.insert(room.clone(), View::default());
            self.seek(room);
        }
    }

    /// Whether the room's rows have been read, or need not be.
    pub fn knows(&self, room: &RoomName) -> bool {
        !self.is_shared() || self.views.get(room).is_some_and(View::is_complete)
    }

    /// Subscribes to a room or, while the bus is down, reads it as it is.
    fn seek(&mut self, room: &RoomName) {
        if self.down.is_some() || self.carries_everything {
            self.read_later(room);
        } else if !self.everything {
            self.subscribe(Channel::Room(room.clone()));
        }
    }

    pub fn follows(&self, room: &RoomName) -> bool {
        self.views.contains_key(room)
    }

    /// Follows every room there is from now on; those that are there already have to be named.
    pub fn follow_everything(&mut self) {
        self.unlisted = true;
        let before = std::mem::replace(&mut self.everything, self.bus.is_some());
        if !before && self.down.is_none() {
            self.subscribe(Channel::Rooms);
        }
    }

    pub fn follows_everything(&self) -> bool {
        self.everything
    }

    /// No observer wants every room any more.
    pub fn follow_everything_no_longer(&mut self, now: Moment) {
        if !std::mem::take(&mut self.everything) {
            return;
        }
        self.carries_everything = false;
        if let Some(bus) = self.bus.as_mut().filter(|_| self.down.is_none()) {
            bus.unsubscribe(Channel::Rooms);
        }
        for room in self.followed() {
            self.seek(&room);
            self.linger(&room, now);
        }
    }

    /// Whether the rooms that there are have to be listed, since all are followed and some may have
    /// been missed.
    pub fn take_unlisted(&mut self) -> bool {
        self.everything && std::mem::take(&mut self.unlisted)
    }

    /// The room has no member here, for now: it is followed for a while.
    pub fn linger(&mut self, room: &RoomName, now: Moment) {
        let Some(view) = self.views.get_mut(room) else { return };
        view.until = now.monotonic + micros(LINGER_TIME);
        if !std::mem::replace(&mut view.lingers, true) {
            self.lingering.push_back((view.until, room.clone()));
        }
    }

    /// The next room that is to be followed no longer, as nobody `needs` it.
    pub fn take_lingering(
        &mut self,
        now: Moment,
        needs: impl Fn(&RoomName) -> Interest,
    ) -> Option<RoomName> {
        for _ in 0..self.lingering.len() {
            let crowded = self.lingering.len() > MAX_LINGERING;
            let (at, _) = self.lingering.front()?;
            if !crowded && *at > now.monotonic {
                return None;
            }
            let (_, room) = self.lingering.pop_front()?;
            let Some(view) = self.views.get_mut(&room) else { continue };
            match needs(&room) {
                // It lingers again when that one has gone.
                Interest::Member => view.lingers = false,
                Interest::None if crowded || view.until <= now.monotonic => {
                    self.views.remove(&room);
                    if let Some(bus) = self.bus.as_mut().filter(|_| !self.everything) {
                        bus.unsubscribe(Channel::Room(room.clone()));
                    }
                    return Some(room);
                }
                Interest::Passing | Interest::None => {
                    let until = view.until.max(now.monotonic + micros(LINGER_TIME) / 2);
                    self.lingering.push_back((until, room));
                }
            }
        }
        None
    }
}

/// Which nodes are not heard.
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

/// The cause of the leaves of a node's presences when it ends.
pub(crate) fn cause_of(leaving: bool) -> Cause {
    if leaving { Cause::Shutdown } else { Cause::NodeLost }
}
