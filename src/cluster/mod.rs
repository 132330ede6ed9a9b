//! What a node makes of the others: which rooms it follows, what it has heard of them, who lives.
//!
//! A presence is committed before it is told ([`Outbox`]). A node subscribes to the channel of a
//! room, then reads the room's rows, then takes what the bus brings that the rows do not have
//! ([`View`]): everything is in the rows or comes after. What was missed shows in the numbers, and
//! has the rows read again. Nodes are judged by their leases in the database ([`Peers`]), never by
//! their silence on the bus.

mod outbox;
mod peers;
mod view;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::Recipient;
use ahash::RandomState;

pub(crate) use self::peers::{Finding, Met, Peers};
use self::{
    outbox::Outbox,
    view::{Verdict, View},
};
use crate::{
    bus::{Bus, Change, Changes, Channel, Content, Envelope, FromBus, Said, Told},
    mirror::{
        Committed, Desk,
        store::{NodeRow, RoomRows, Row},
    },
    model::{
        Cause, ConnectionId, Epoch, Heard, Moment, NodeName, Presence, Remote, RoomName, UserId,
        micros,
    },
};

/// Rooms whose rows are read at once.
const READ: usize = 64;
/// How long a room is followed in which nobody is here, after the last time it was asked for.
const LINGER: Duration = Duration::from_secs(60);
/// Rooms that are followed at most though nobody is here.
const LINGERING: usize = 10_000;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

/// This node's part in the cluster.
pub(crate) struct Cluster {
    me: NodeName,
    incarnation: Epoch,
    /// How the other nodes are heard, if they are: a node may have the database for itself.
    bus: Option<Box<dyn Bus>>,
    /// Why the bus is down, if it is.
    down: Option<&'static str>,
    pub desk: Desk,
    pub peers: Peers,
    outbox: Outbox,
    views: HashMap<RoomName, View, RandomState>,
    /// Whether every room there is is followed, and whether the bus carries them all.
    everything: bool,
    carries_everything: bool,
    unlisted: bool,
    to_read: VecDeque<RoomName>,
    reading: bool,
    failures: u32,
    /// Rooms to read at once.
    at_once: usize,
    /// Rooms that nobody here may need any more, and when to look.
    lingering: VecDeque<(u64, RoomName)>,
}

/// Whether a room is to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Somebody here is in it.
    Member,
    /// For now.
    Passing,
    None,
}

/// What was heard of a room, to be taken into it.
#[derive(Debug)]
pub(crate) struct News {
    pub room: RoomName,
    pub node: NodeName,
    pub heard: Vec<Heard>,
    /// Presences that the node does not hold any more.
    pub yielded: Vec<ConnectionId>,
}

/// Rooms as they were read.
#[derive(Debug, Default)]
pub(crate) struct ReadRooms {
    /// Everybody who is there on the other nodes, by room.
    pub rooms: Vec<(RoomName, Vec<Remote>)>,
    /// What came while they were read, and is not in the rows.
    pub news: Vec<News>,
    /// Whether there are nodes that the database has to know more of.
    pub unsure: bool,
}

impl Cluster {
    pub fn new(me: NodeName, incarnation: Epoch, bus: Option<Box<dyn Bus>>, desk: Desk) -> Self {
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
            reading: false,
            failures: 0,
            at_once: READ,
            lingering: VecDeque::new(),
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
    pub fn listen(&mut self, listener: Recipient<FromBus>) {
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

    // What this node tells.

    /// Tells something; what is lost is made up later.
    pub fn tell(&mut self, told: Told) -> bool {
        let envelope = Envelope { node: self.me.clone(), incarnation: self.incarnation, told };
        let Some(bus) = self.bus.as_mut().filter(|_| self.down.is_none()) else { return false };
        bus.publish(&envelope).is_ok()
    }

    /// Tells what was committed, room by room.
    pub fn tell_committed(&mut self, committed: &Committed) {
        if !self.is_shared() {
            return;
        }
        for changes in self.outbox.changes(committed) {
            if !self.tell(Told::Changes(changes)) {
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
        let (number, content) = (self.outbox.next_said(), Content::from(content));
        self.tell(Told::Said(Said { room, number, content, from, except }))
    }

    /// Tells that this node lives, and what it has told since the last time.
    pub fn beat(&mut self) {
        if self.outbox.missed && self.tell(Told::Missed) {
            self.outbox.missed = false;
        }
        let (number, rooms) = self.outbox.beat();
        self.tell(Told::Beat { number, rooms });
    }

    // Which rooms it follows.

    /// Takes an interest in a room.
    pub fn follow(&mut self, room: &RoomName) {
        if self.is_shared() && !self.views.contains_key(room) {
            self.views.insert(room.clone(), View::default());
            self.seek(room);
        }
    }

    /// Whether all is known of a room that is in the database.
    pub fn knows(&self, room: &RoomName) -> bool {
        !self.is_shared() || self.views.get(room).is_some_and(View::is_complete)
    }

    /// Subscribes to a room or, without a bus, reads it as it is.
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

    /// Nobody wants to hear of every room any more.
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

    /// Nobody here is in the room, for now: it is followed a little longer.
    pub fn linger(&mut self, room: &RoomName, now: Moment) {
        let Some(view) = self.views.get_mut(room) else { return };
        view.until = now.monotonic + micros(LINGER);
        if !std::mem::replace(&mut view.lingers, true) {
            self.lingering.push_back((view.until, room.clone()));
        }
    }

    /// The next room that is to be followed no longer, as nobody `needs` it.
    pub fn take_lingering(
        &mut self,
        now: Moment,
        needs: impl Fn(&RoomName) -> Need,
    ) -> Option<RoomName> {
        for _ in 0..self.lingering.len() {
            let crowded = self.lingering.len() > LINGERING;
            let (at, _) = self.lingering.front()?;
            if !crowded && *at > now.monotonic {
                return None;
            }
            let (_, room) = self.lingering.pop_front()?;
            let Some(view) = self.views.get_mut(&room) else { continue };
            match needs(&room) {
                // It lingers again when that one has gone.
                Need::Member => view.lingers = false,
                Need::None if crowded || view.until <= now.monotonic => {
                    self.views.remove(&room);
                    if let Some(bus) = self.bus.as_mut().filter(|_| !self.everything) {
                        bus.unsubscribe(Channel::Room(room.clone()));
                    }
                    return Some(room);
                }
                Need::Passing | Need::None => {
                    let until = view.until.max(now.monotonic + micros(LINGER) / 2);
                    self.lingering.push_back((until, room));
                }
            }
        }
        None
    }

    // What it hears.

    /// The bus is up: everything has to be subscribed to, and read, again.
    pub fn up(&mut self) {
        self.down = None;
        self.peers.forgive_beats();
        self.subscribe(Channel::Nodes);
        if self.everything {
            return self.subscribe(Channel::Rooms);
        }
        for room in self.followed() {
            self.subscribe(Channel::Room(room));
        }
    }

    fn followed(&self) -> Vec<RoomName> {
        let mut rooms: Vec<_> = self.views.keys().cloned().collect();
        rooms.sort_unstable();
        rooms
    }

    pub fn is_down(&mut self, why: &'static str) {
        (self.down, self.carries_everything) = (Some(why), false);
        self.outbox.missed = true;
        for room in self.followed() {
            if self.views.get(&room).is_some_and(|view| !view.is_complete()) {
                self.read_later(&room);
            }
        }
    }

    /// The bus carries a channel from now on, so the rows can be read.
    pub fn subscribed(&mut self, channel: &Channel) {
        match channel {
            Channel::Room(room) => self.read_later(room),
            Channel::Rooms => {
                self.carries_everything = true;
                self.read_all();
            }
            Channel::Nodes => {}
        }
    }

    /// The rows of all rooms are to be read again.
    pub fn read_all(&mut self) {
        self.unlisted = true;
        for room in self.followed() {
            self.read_later(&room);
        }
    }

    /// The rows of a room are to be read.
    pub fn read_later(&mut self, room: &RoomName) {
        if self.views.get_mut(room).is_some_and(View::wants_reading) {
            self.to_read.push_back(room.clone());
        }
    }

    /// A node tells how far it has come with some rooms: who knows less of them, or has missed a beat,
    /// has missed something.
    pub fn beats(
        &mut self,
        node: &NodeName,
        incarnation: Epoch,
        number: u64,
        rooms: &[(RoomName, u64)],
    ) {
        if !self.peers.beats(node, number) {
            return self.read_all();
        }
        for (room, number) in rooms {
            if self.everything {
                self.follow(room);
            }
            let behind = |view: &View| view.head(node, incarnation) < *number;
            if self.views.get(room).is_some_and(behind) {
                self.read_later(room);
            }
        }
    }

    /// Takes the changes of a room; answers those to be taken into it now.
    pub fn heard(&mut self, node: &NodeName, epoch: Epoch, changes: Changes) -> Option<News> {
        let room = changes.room.clone();
        let Some(view) = self.views.get_mut(&room) else {
            // Only who follows everything hears of a room before it knows it.
            if self.everything {
                self.follow(&room);
            }
            return None;
        };
        match view.judge(node, epoch, &changes) {
            Verdict::Take => Some(news(node, changes)),
            Verdict::Known => None,
            Verdict::Later => {
                view.hold(node.clone(), epoch, changes);
                None
            }
            Verdict::Missed => {
                tracing::debug!(%room, %node, "missed something: the room is read again");
                metrics::counter!("presence_bus_gaps_total").increment(1);
                view.hold(node.clone(), epoch, changes);
                self.read_later(&room);
                None
            }
        }
    }

    /// The rooms to read next, if there are any and nothing is being read.
    pub fn next_read(&mut self) -> Option<Vec<RoomName>> {
        if self.reading {
            return None;
        }
        let mut rooms = Vec::new();
        while rooms.len() < self.at_once {
            let Some(room) = self.to_read.pop_front() else { break };
            if self.views.get_mut(&room).is_some_and(View::reads) {
                rooms.push(room);
            }
        }
        self.reading = !rooms.is_empty();
        self.reading.then_some(rooms)
    }

    /// Takes what was read.
    pub fn read(&mut self, rooms: Vec<RoomName>, found: RoomRows) -> ReadRooms {
        (self.reading, self.failures, self.at_once) = (false, 0, READ);
        let mut read = ReadRooms::default();
        let mut alive = |row: &NodeRow| match self.peers.meet_row(row) {
            Met::Over => false,
            met => {
                read.unsure |= met == Met::Unsure;
                true
            }
        };
        let nodes: Arc<[NodeRow]> = found.nodes.into_iter().filter(|row| alive(row)).collect();
        let mut remotes: HashMap<RoomName, Vec<Remote>, RandomState> = HashMap::default();
        for (node, row) in found.rows {
            if node != self.me && nodes.iter().any(|known| known.node == node) {
                let room = row.room.clone();
                remotes.entry(room).or_default().push(remote(node, row));
            }
        }
        for room in rooms {
            let Some(view) = self.views.get_mut(&room) else { continue };
            let (held, again) = view.was_read(&nodes);
            read.rooms.push((room.clone(), remotes.remove(&room).unwrap_or_default()));
            for (node, epoch, changes) in held {
                if !self.peers.is_retired(epoch) {
                    read.news.extend(self.heard(&node, epoch, changes));
                }
            }
            if again {
                self.read_later(&room);
            }
        }
        read
    }

    /// The wait after a failure is over.
    pub fn read_again(&mut self) {
        self.reading = false;
    }

    /// The rows could not be read: how long to wait before they are asked for again, and fewer at once.
    pub fn not_read(&mut self, rooms: Vec<RoomName>) -> Duration {
        for room in rooms {
            if let Some(view) = self.views.get_mut(&room) {
                view.was_not_read();
                self.read_later(&room);
            }
        }
        self.at_once = (self.at_once / 2).max(1);
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LAST_RETRY);
        self.failures += 1;
        wait
    }
}

/// Changes as the model takes them.
fn news(node: &NodeName, changes: Changes) -> News {
    let (mut heard, mut yielded) = (Vec::new(), Vec::new());
    for change in changes.changes {
        match change {
            Change::Here {
                connection,
                user,
                info,
                joined_at,
                last_seen,
                session,
                fading,
                turn,
            } => {
                let presence = Presence { connection, user, info, joined_at };
                let node = node.clone();
                heard.push(Heard::Here(Remote {
                    presence,
                    node,
                    session,
                    fading,
                    turn,
                    last_seen,
                }));
            }
            Change::Yielded { connection } => yielded.push(connection),
            Change::Gone { connection, cause } => {
                heard.push(Heard::Gone { node: node.clone(), connection, cause });
            }
        }
    }
    News { room: changes.room, node: node.clone(), heard, yielded }
}

/// A row as the model takes it.
pub(crate) fn remote(node: NodeName, row: Row) -> Remote {
    let Row { presence, last_seen, session, fading, turn, .. } = row;
    Remote { presence, node, session, fading, turn, last_seen }
}

/// Why the presences of a node end with it.
pub(crate) fn cause_of(leaving: bool) -> Cause {
    if leaving { Cause::Shutdown } else { Cause::NodeLost }
}
