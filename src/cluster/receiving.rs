//! What this node hears of the rooms that it follows, and reads of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use ahash::RandomState;

use super::{
    Cluster, SenderStatus, cause_of, remote,
    view::{Verdict, View},
};
use crate::{
    bus::{Channel, RoomChanges, RowChange},
    model::{Cause, ConnectionId, Epoch, Moment, NodeName, Remote, RemoteChange, RoomName},
    store::{
        NodeRow, RoomRows,
        reader::{LAST_RETRY, retry_pause},
    },
};

/// How many rooms in a row may be unreadable by themselves before the database is taken to be in trouble.
const MAX_UNREADABLE: u32 = 4;

/// How many rooms are read at once at most.
pub(super) const MAX_READ_ROOMS: usize = 64;

/// What to do after rooms could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotRead {
    /// Read fewer of them at once.
    FewerAtOnce,
    /// Read this one again after a pause, and others meanwhile.
    OneLater(RoomName, Duration),
    /// Read nothing before the end of a pause.
    AllLater(Duration),
}

/// What another node has told of a room, to be taken into it.
#[derive(Debug)]
pub(crate) struct RemoteChanges {
    pub room: RoomName,
    pub node: NodeName,
    pub changes: Vec<RemoteChange>,
    /// Presences that the node does not hold any more.
    pub yielded: Vec<ConnectionId>,
}

/// Rooms as they were read.
#[derive(Debug, Default)]
pub(crate) struct ReadRooms {
    /// All presences on the other nodes, by room.
    pub rooms: Vec<(RoomName, Vec<Remote>)>,
    /// The presences of which this node has rows there.
    pub own: HashSet<(RoomName, ConnectionId), RandomState>,
    /// Nodes that have started again since a room was read before, with the cause of those leaves that the
    /// new incarnation does not know of.
    pub restarted: Vec<(RoomName, NodeName, Cause)>,
    /// What came while they were read, and is not in the rows.
    pub held_back: Vec<RemoteChanges>,
    /// Whether there are nodes that a survey has to confirm.
    pub unsure: bool,
}

impl Cluster {
    /// The bus is up: everything has to be subscribed to, and read, again.
    pub fn up(&mut self, now: Moment) {
        self.down = None;
        self.peers.forgive_silence(now);
        self.subscribe(Channel::Nodes);
        if self.everything {
            return self.subscribe(Channel::Rooms);
        }
        for room in self.followed() {
            self.subscribe(Channel::Room(room));
        }
    }

    pub(super) fn followed(&self) -> Vec<RoomName> {
        let mut rooms: Vec<_> = self.views.keys().cloned().collect();
        rooms.sort_unstable();
        rooms
    }

    pub fn went_down(&mut self, why: &'static str) {
        (self.down, self.carries_everything) = (Some(why), false);
        self.sent.missed = true;
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
        if let Some(view) = self.views.get_mut(room)
            && view.wants_reading()
        {
            let queue = if view.is_complete() { &mut self.to_refresh } else { &mut self.to_read };
            queue.push_back(room.clone());
        }
    }

    /// Takes a beat, which has the numbers of the last batches of some rooms. If this node is behind, or has
    /// missed a beat, it has missed something.
    pub fn beats(
        &mut self,
        node: &NodeName,
        incarnation: Epoch,
        number: u64,
        rooms: &[(RoomName, u64)],
        now: Moment,
    ) {
        if !self.peers.beats(node, number, now) {
            return self.read_all();
        }
        for (room, number) in rooms {
            if self.everything {
                self.follow(room);
            }
            let differs = |view: &View| !view.is_at(node, incarnation, *number);
            if self.views.get(room).is_some_and(differs) {
                self.read_later(room);
            }
        }
    }

    /// Takes the changes of a room; answers those to be taken into it now.
    pub fn heard(
        &mut self,
        node: &NodeName,
        epoch: Epoch,
        changes: RoomChanges,
    ) -> Option<RemoteChanges> {
        if self.views.contains_key(&changes.room) {
            self.unverified.note(&changes);
            return self.take(node, epoch, changes);
        }
        // Only a node that follows everything hears of a room that it does not know.
        if self.everything {
            self.follow(&changes.room);
        }
        None
    }

    fn take(
        &mut self,
        node: &NodeName,
        epoch: Epoch,
        changes: RoomChanges,
    ) -> Option<RemoteChanges> {
        let room = changes.room.clone();
        let view = self.views.get_mut(&room)?;
        match view.judge(node, epoch, &changes) {
            Verdict::Take => Some(remote_changes(node, changes)),
            Verdict::Known => None,
            Verdict::Later => {
                view.hold(node.clone(), epoch, changes);
                None
            }
            Verdict::Missed => {
                tracing::debug!(%room, %node, "missed something: the room is read again");
                metrics::counter!("presence_bus_gaps_total").increment(1);
                // They are not held back: they were committed before the read begins.
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
            // Commands may wait for rooms that are not known.
            let next = self.to_read.pop_front().or_else(|| self.to_refresh.pop_front());
            let Some(room) = next else { break };
            if self.views.get_mut(&room).is_some_and(View::reads) {
                rooms.push(room);
            }
        }
        self.reading = !rooms.is_empty();
        self.reading.then_some(rooms)
    }

    /// Takes what was read.
    pub fn read(&mut self, rooms: Vec<RoomName>, found: RoomRows) -> ReadRooms {
        (self.reading, self.failures, self.at_once) = (false, 0, MAX_READ_ROOMS);
        let mut read = ReadRooms::default();
        // The rows may be of a moment before a node went on in another incarnation.
        let nodes: Vec<_> = found
            .nodes
            .into_iter()
            .map(|row| NodeRow { incarnation: self.peers.latest(row.incarnation), ..row })
            .collect();
        let mut alive = |row: &NodeRow| match self.peers.row_status(row) {
            SenderStatus::Ended => false,
            met => {
                read.unsure |= met != SenderStatus::Known;
                true
            }
        };
        let nodes: Arc<[NodeRow]> = nodes.into_iter().filter(|row| alive(row)).collect();
        let mut remotes: HashMap<RoomName, Vec<Remote>, RandomState> = HashMap::default();
        for (node, row) in found.rows {
            if node == self.own.node {
                read.own.insert((row.room, row.record.presence.connection));
            } else if nodes.iter().any(|known| known.node == node) {
                let room = row.room.clone();
                remotes.entry(room).or_default().push(remote(node, row));
            }
        }
        for room in rooms {
            let Some(view) = self.views.get_mut(&room) else { continue };
            for NodeRow { node, incarnation, .. } in nodes.iter() {
                let before = view.incarnation(node).map(|before| self.peers.latest(before));
                if let Some(before) = before.filter(|before| before != incarnation) {
                    let cause = cause_of(self.peers.has_stopped(node, before));
                    read.restarted.push((room.clone(), node.clone(), cause));
                }
            }
            let (held, again) = view.was_read(&nodes);
            read.rooms.push((room.clone(), remotes.remove(&room).unwrap_or_default()));
            for (node, epoch, changes) in held {
                if !self.peers.is_over(epoch) {
                    // They may have been compared while they waited, when nothing was to be seen.
                    self.unverified.note(&changes);
                    read.held_back.extend(self.take(&node, epoch, changes));
                }
            }
            if again {
                self.read_later(&room);
            }
        }
        read
    }

    /// Another node goes on in a new incarnation: what is known of it stands.
    pub fn continues(&mut self, node: &NodeName, before: Epoch, incarnation: Epoch) {
        if self.peers.continues(node, before, incarnation) {
            for view in self.views.values_mut() {
                view.continues(node, before, incarnation);
            }
        }
    }

    /// The wait after a failure is over.
    pub fn read_again(&mut self) {
        self.reading = false;
    }

    /// The rows could not be read, though the database may have `answered`.
    pub fn not_read(&mut self, rooms: &[RoomName], answered: bool) -> NotRead {
        for room in rooms {
            if let Some(view) = self.views.get_mut(room) {
                view.was_not_read();
            }
        }
        self.at_once = (rooms.len() / 2).max(1);
        // One of them may be the reason, and must not hold up the others; several in a row are not.
        let failures = self.failures;
        if answered && failures < MAX_UNREADABLE {
            self.reading = false;
            if let [room] = rooms {
                self.failures += 1;
                return NotRead::OneLater(room.clone(), LAST_RETRY);
            }
        }
        rooms.iter().for_each(|room| self.read_later(room));
        if answered && failures < MAX_UNREADABLE {
            return NotRead::FewerAtOnce;
        }
        self.failures += 1;
        NotRead::AllLater(retry_pause(failures))
    }
}

/// What was heard is compared with the rows, so that nothing lasts that the database contradicts.
impl Cluster {
    /// Begins to compare what was heard since the last time.
    pub fn verify(&mut self) {
        for room in self.unverified.begin() {
            self.read_later(&room);
        }
    }

    /// The presences to compare next, if none are being asked about.
    pub fn next_unverified(&mut self) -> Option<Vec<(RoomName, ConnectionId)>> {
        self.unverified.next()
    }

    /// The database has answered what it knows of these presences, or not.
    pub fn verified(&mut self, asked: &[(RoomName, ConnectionId)], answered: bool) {
        self.unverified.answered();
        if !answered {
            for (room, connection) in asked {
                self.unverified.postpone(room, *connection);
            }
        }
    }

    /// Whether something was heard of the presence since the comparison began, so that the next one
    /// will tell.
    pub fn is_unverified(&mut self, room: &RoomName, connection: ConnectionId) -> bool {
        let noted = self.unverified.is_noted(room, connection);
        if noted {
            self.unverified.postpone(room, connection);
        }
        noted
    }

    /// A presence is not as its row says. If that is so for the second time, the room is read again.
    pub fn differs(&mut self, room: &RoomName, connection: ConnectionId) {
        if self.unverified.differs(room, connection) {
            tracing::debug!(%room, %connection, "not as in the database: the room is read again");
            metrics::counter!("presence_bus_contradictions_total").increment(1);
            self.read_later(room);
        }
    }
}

/// Changes in the form that the model applies.
fn remote_changes(node: &NodeName, changes: RoomChanges) -> RemoteChanges {
    let RoomChanges { room, changes: told, .. } = changes;
    let (mut changes, mut yielded) = (Vec::new(), Vec::new());
    for change in told {
        match change {
            RowChange::Here(record) => {
                changes.push(RemoteChange::Present(Remote { node: node.clone(), record }));
            }
            RowChange::Yielded { connection } => yielded.push(connection),
            RowChange::Gone { connection, cause } => {
                changes.push(RemoteChange::Gone { node: node.clone(), connection, cause });
            }
        }
    }
    RemoteChanges { room, node: node.clone(), changes, yielded }
}
