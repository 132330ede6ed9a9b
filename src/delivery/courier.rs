//! The last step to the sessions of one thread.
//!
//! The registry gives each thread one order for a broadcast, and the courier there hands it to the
//! thread's own sessions. Its orders are one queue: who is out of a room gets nothing of what is said
//! there after.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix::{WeakRecipient, prelude::*};
use ahash::RandomState;
use bytestring::ByteString;

use super::frames::{Presences, Published};
use crate::{
    clock::Stopwatch,
    messages::{Backlog, Dialect, Disconnect, Feed, ForwardMessage, Forwarded, Reservation},
    model::{ConnectionId, Few, RoomName, Shrink, micros},
    sockets::{self, CLOSE_TIMEOUT, SocketKey},
};

/// A listener that takes no list for this long is too slow.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Has the session close, and its socket end if the session does not get to run.
    fn close(&self, order: Disconnect, timeout: Duration) {
        if let Some(socket) = self.socket {
            sockets::end_within(socket, timeout);
        }
        if let Some(disconnect) = &self.disconnect {
            disconnect.do_send(order);
        }
    }
}

/// What a courier is to do.
pub(super) enum Order {
    /// The connection is in the room, is owed its state if it `listens`, and is reached like this; with
    /// a number, as another may be of the same id.
    Enter { connection: ConnectionId, room: RoomName, listens: bool, serial: u32, outlet: Outlet },
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
    Message { message: Arc<Published>, except: Option<ConnectionId> },
    /// For those who listen to who is in the room.
    List { list: Arc<Presences>, now: u64 },
}

/// What came of an order.
#[derive(Debug, Default, Message)]
#[rtype(result = "()")]
pub(crate) struct Report {
    /// The room, if it was a list.
    pub(super) listed: Option<RoomName>,
    /// Some could not take the list, and need the whole state later.
    pub(super) owes: bool,
    pub(super) busy: Duration,
    /// Connections whose mailbox is full, by their serials.
    pub(super) slow: Vec<(ConnectionId, u32)>,
    /// Connections whose actor has stopped.
    pub(super) gone: Vec<(ConnectionId, u32)>,
}

impl Report {
    fn is_empty(&self) -> bool {
        self.listed.is_none() && self.slow.is_empty() && self.gone.is_empty()
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

struct Session {
    outlet: Outlet,
    backlog: Arc<Backlog>,
    /// When it last took a whole state; in many rooms it takes one after the other.
    state_taken: u64,
    serial: u32,
    /// It has refused a message, or is no more, and the registry has been told; or it was told to
    /// close.
    ended: bool,
}

/// What a member of a room knows of who is there.
enum Knows {
    /// It does not listen.
    Nothing,
    /// The room as it was listed last.
    Current,
    /// Less: it needs the whole state. Since when it has refused to take it, if it has.
    Owed { refused: Option<u64> },
}

type Members = HashMap<ConnectionId, Knows, RandomState>;

/// How many broadcasts are handed out before the sessions have their turn: fewer than the smallest
/// mailbox takes. One counts for more by as many of these bytes as it has, as a backlog is bounded in
/// bytes.
const TURN: usize = 8;
const TURN_BYTES: usize = 64 * 1024;

/// Hands frames to sessions.
#[derive(Default)]
pub(crate) struct Courier {
    /// How many broadcasts it has handed out since the sessions had their turn.
    broadcasts: usize,
    sessions: HashMap<ConnectionId, Session, RandomState>,
    rooms: HashMap<RoomName, Members, RandomState>,
}

impl Courier {
    pub(super) fn take(&mut self, order: Order, report: &mut Report) {
        match order {
            Order::Enter { connection, room, listens, serial, outlet } => {
                self.connect(connection, serial, outlet);
                let knows = if listens { Knows::Owed { refused: None } } else { Knows::Nothing };
                self.rooms.entry(room).or_default().insert(connection, knows);
            }
            Order::Exit { connection, room } => self.exit(connection, &room),
            Order::Close { connection, room } => {
                if let Some(Session { outlet, .. }) = self.sessions.get(&connection)
                    && outlet.dialect == Dialect::Phoenix
                {
                    // Once per stay, so it may go past a full mailbox.
                    outlet.forward.do_send(ForwardMessage::new(room, Forwarded::Closed, ""));
                }
            }
            Order::End { connection, rooms, order } => {
                for (room, _) in &*rooms {
                    self.exit(connection, room);
                }
                let ended = self.sessions.remove(&connection);
                self.sessions.shrink();
                self.rooms.shrink();
                if let (Some((order, timeout)), Some(session)) = (order, ended) {
                    session.outlet.close(order, timeout);
                }
            }
            Order::Dismiss { connections, order } => self.dismiss(&connections, order),
            Order::Message { message, except } => self.message(&message, except, report),
            Order::List { list, now } => self.list(&list, now, report),
        }
    }

    /// Orders sessions to close. A session ignores what comes after that order in its mailbox, so it
    /// is sent nothing more, and cannot become too slow.
    fn dismiss(&mut self, connections: &[ConnectionId], order: Disconnect) {
        for connection in connections {
            if let Some(session) = self.sessions.get_mut(connection) {
                // One that cannot be told is ended by the registry.
                session.ended |= session.outlet.disconnect.is_some();
                session.outlet.close(order, CLOSE_TIMEOUT);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.sessions.is_empty() && self.rooms.is_empty()
    }

    fn connect(&mut self, connection: ConnectionId, serial: u32, outlet: Outlet) {
        match self.sessions.get_mut(&connection) {
            Some(known) if known.outlet.forward == outlet.forward => {
                // What it has refused is not forgiven.
                known.outlet.dialect = outlet.dialect;
            }
            _ => {
                let backlog = Backlog::new(outlet.backlog_limit);
                let session = Session { outlet, backlog, state_taken: 0, serial, ended: false };
                self.sessions.insert(connection, session);
            }
        }
    }

    fn exit(&mut self, connection: ConnectionId, room: &RoomName) {
        let Some(members) = self.rooms.get_mut(room) else { return };
        members.remove(&connection);
        if members.is_empty() {
            self.rooms.remove(room);
        }
    }

    fn message(&mut self, message: &Published, except: Option<ConnectionId>, report: &mut Report) {
        let Some(members) = self.rooms.get(message.room()) else { return };
        let work = Stopwatch::start();
        let mut taken = 0;
        for connection in members.keys().filter(|one| Some(**one) != except) {
            let Some(session) = self.sessions.get_mut(connection).filter(|one| !one.ended) else {
                continue;
            };
            let payload = message.frame(session.outlet.dialect);
            let reservation = session.backlog.reserve(payload.len());
            let refused =
                match session.send(message.room(), Forwarded::Message, payload, reservation) {
                    Ok(()) => {
                        taken += 1;
                        continue;
                    }
                    Err(Refusal::Full) => &mut report.slow,
                    Err(Refusal::Closed) => &mut report.gone,
                };
            session.ended = true;
            refused.push((*connection, session.serial));
        }
        message.taken_by(taken);
        let busy = micros(work.elapsed());
        metrics::counter!("presence_fan_out_microseconds_total").increment(busy);
    }

    fn list(&mut self, list: &Presences, now: u64, report: &mut Report) {
        let Some(members) = self.rooms.get_mut(list.room()) else { return };
        let work = Stopwatch::start();
        for (connection, knows) in members {
            let (current, since) = match knows {
                Knows::Nothing => continue,
                Knows::Current if !list.moved() => continue,
                Knows::Current => (true, None),
                Knows::Owed { refused } => (false, *refused),
            };
            let Some(session) = self.sessions.get_mut(connection).filter(|one| !one.ended) else {
                continue;
            };
            let Some(part) = part(session.outlet.dialect, current) else {
                *knows = Knows::Current;
                continue;
            };
            match session.send_list(list, part) {
                Ok(()) => {
                    *knows = Knows::Current;
                    if part.is_whole() {
                        session.state_taken = now;
                    }
                }
                Err(Refusal::Closed) => {
                    session.ended = true;
                    report.gone.push((*connection, session.serial));
                }
                Err(Refusal::Full) => {
                    let since = since.unwrap_or(now);
                    *knows = Knows::Owed { refused: Some(since) };
                    if now.saturating_sub(since.max(session.state_taken)) >= micros(PATIENCE) {
                        session.ended = true;
                        report.slow.push((*connection, session.serial));
                    } else {
                        report.owes = true;
                    }
                }
            }
        }
        report.busy = work.elapsed();
    }
}

/// Why a frame did not reach a session.
enum Refusal {
    /// Its mailbox is full, or its backlog.
    Full,
    /// Its actor has stopped.
    Closed,
}

/// What a listener gets of a list.
#[derive(Clone, Copy)]
enum Part {
    FullState,
    Count,
    State,
    Diff,
    PhoenixState,
    PhoenixDiff,
}

impl Part {
    fn is_whole(self) -> bool {
        matches!(self, Self::FullState | Self::State | Self::PhoenixState)
    }
}

/// What a listener of the dialect gets that knows the list before, or does not; none for a dialect
/// without lists.
fn part(dialect: Dialect, current: bool) -> Option<Part> {
    Some(match (dialect, current) {
        (Dialect::Raw | Dialect::Json(Feed::None), _) => return None,
        (Dialect::Json(Feed::Full), _) => Part::FullState,
        (Dialect::Json(Feed::Count), _) => Part::Count,
        (Dialect::Json(Feed::Diff), false) => Part::State,
        (Dialect::Json(Feed::Diff), true) => Part::Diff,
        (Dialect::Phoenix, false) => Part::PhoenixState,
        (Dialect::Phoenix, true) => Part::PhoenixDiff,
    })
}

impl Session {
    /// Sends a list. A whole state has a place of its own in the backlog, and is only encoded if that is
    /// free; diffs and counts are frames like others.
    fn send_list(&self, list: &Presences, part: Part) -> Result<(), Refusal> {
        let (kind, encode): (_, fn(&Presences) -> ByteString) = match part {
            Part::FullState => (Forwarded::State, Presences::full),
            Part::State => (Forwarded::State, Presences::state),
            Part::PhoenixState => (Forwarded::State, Presences::phoenix_state),
            Part::Count => (Forwarded::State, Presences::count),
            Part::Diff => (Forwarded::Diff, Presences::diff),
            Part::PhoenixDiff => (Forwarded::Diff, Presences::phoenix_diff),
        };
        let (payload, reservation) = if part.is_whole() {
            let place = self.backlog.reserve_state().ok_or(Refusal::Full)?;
            (encode(list), Some(place))
        } else {
            let frame = encode(list);
            let room = self.backlog.reserve(frame.len());
            (frame, room)
        };
        self.send(list.room(), kind, payload, reservation)
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

impl Actor for Courier {
    type Context = Context<Self>;
}

impl Handler<Parcel> for Courier {
    type Result = ();

    fn handle(&mut self, Parcel(order, errand): Parcel, ctx: &mut Context<Self>) {
        let Some(mut errand) = errand else { return self.take(order, &mut Report::default()) };
        let message = match &order {
            Order::Message { message, .. } => Some(Arc::clone(message)),
            _ => None,
        };
        self.take(order, &mut errand.report);
        // It is done when those who were woken by it have had their turn, and written it to their
        // sockets: who waits for that cannot fill their mailboxes.
        let bytes = message.as_ref().map_or(0, |message| message.bytes());
        let done = actix::spawn(async { drop((message, errand)) });
        self.broadcasts += 1 + bytes / TURN_BYTES;
        if self.broadcasts >= TURN {
            self.broadcasts = 0;
            ctx.wait(done.into_actor(self).map(|_, _, _| ()));
        }
    }
}
