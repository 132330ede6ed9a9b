//! Commands about one room that wait until all is known of it.
//!
//! A room that other nodes share is known once its rows have been read. Until then, but for no longer than
//! [`READ_TIMEOUT`], what is asked of it waits in a queue of its own, in order. Without other nodes nothing
//! ever waits. Afterwards a question about a room of which nothing could be read is answered with the reason,
//! and everything else is carried out with what is known here.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use actix::{
    dev::{MessageResponse, OneshotSender},
    prelude::*,
};
use ahash::RandomState;
use futures_util::FutureExt;
use hashlink::LinkedHashMap;
use tokio::sync::oneshot;

use super::{RoomRegistry, authorizations::Authorizations};
use crate::{
    messages::{
        Admit, CloseRoom, Explain, Explained, GetOccupancy, GetSnapshot, Join, JoinError, KickFrom,
        Kicked, Leave, ListPresences, PendingJoin, Publish, PublishError, QueryError, UpdateInfo,
    },
    model::{
        ConnectionId, Few, Moment, Occupancy, RoomName, SeenPresence, Snapshot, UserId, micros,
    },
};

/// How long a command waits for the rows of its room.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The answer to a question that may need the database.
pub(super) type Answer<T> = Result<T, QueryError>;

/// A command that waits, with where its answer goes.
pub(super) enum RoomCommand {
    Admit(Admit, oneshot::Sender<Result<(), JoinError>>),
    Join(PendingJoin),
    Leave(Leave, oneshot::Sender<bool>),
    UpdateInfo(UpdateInfo, oneshot::Sender<bool>),
    UpdatePresence(UpdateInfo, oneshot::Sender<bool>),
    /// With the room that it waits for, and how long its receivers may take to be counted.
    Publish(RoomName, Publish, Duration, oneshot::Sender<Result<usize, PublishError>>),
    KickFrom(KickFrom, oneshot::Sender<Kicked>),
    CloseRoom(CloseRoom, oneshot::Sender<Kicked>),
    Snapshot(GetSnapshot, oneshot::Sender<Answer<Option<Snapshot>>>),
    Occupancy(GetOccupancy, oneshot::Sender<Answer<Occupancy>>),
    Presences(ListPresences, oneshot::Sender<Answer<Option<Vec<SeenPresence>>>>),
    Explain(Explain, oneshot::Sender<Answer<Option<Explained>>>),
}

impl RoomCommand {
    fn room(&self) -> &RoomName {
        match self {
            Self::Admit(msg, _) => &msg.room,
            Self::Join(asked) => &asked.join.room,
            Self::Leave(msg, _) => &msg.room,
            Self::UpdateInfo(msg, _) | Self::UpdatePresence(msg, _) => &msg.room,
            Self::Publish(room, ..) => room,
            Self::KickFrom(msg, _) => &msg.room,
            Self::CloseRoom(msg, _) => &msg.room,
            Self::Snapshot(msg, _) => &msg.room,
            Self::Occupancy(msg, _) => &msg.room,
            Self::Presences(msg, _) => &msg.room,
            Self::Explain(msg, _) => &msg.room,
        }
    }

    fn as_join(&self) -> Option<&Join> {
        match self {
            Self::Join(asked) => Some(&asked.join),
            _ => None,
        }
    }

    /// Carries it out and answers. The receiver of the answer may have been dropped.
    fn run(self, registry: &mut RoomRegistry, ctx: &mut Context<RoomRegistry>) {
        match self {
            Self::Admit(msg, reply) => drop(reply.send(registry.has_place_for(msg))),
            Self::Join(asked) => registry.join(asked, ctx),
            Self::Leave(msg, reply) => drop(reply.send(registry.leave(msg, ctx))),
            Self::UpdateInfo(msg, reply) => drop(reply.send(registry.update_info(msg, ctx))),
            Self::UpdatePresence(msg, reply) => {
                let _ = reply.send(registry.update_presence(msg, ctx));
            }
            Self::Publish(_, msg, timeout, reply) => {
                registry.publish(msg, timeout, ctx).send_to(reply);
            }
            Self::KickFrom(msg, reply) => {
                let _ = reply.send(registry.kick_from_everywhere(msg, ctx));
            }
            Self::CloseRoom(msg, reply) => drop(reply.send(registry.close_everywhere(msg, ctx))),
            Self::Snapshot(msg, reply) => drop(reply.send(registry.snapshot(&msg))),
            Self::Occupancy(msg, reply) => drop(reply.send(registry.occupancy(&msg))),
            Self::Presences(msg, reply) => registry.list_presences(msg).send_to(reply),
            Self::Explain(msg, reply) => registry.explain(msg).send_to(reply),
        }
    }
}

/// The commands that wait, by room; the room whose commands wait longest first.
#[derive(Default)]
pub(super) struct CommandQueue {
    /// With when the first command of the room has waited for long enough, in microseconds of the monotonic
    /// clock.
    rooms: LinkedHashMap<RoomName, (u64, Vec<RoomCommand>), RandomState>,
    /// The rooms that connections wait to join, once for each join.
    joins: HashMap<ConnectionId, Few<RoomName>, RandomState>,
    /// Those that are being carried out. One may end a connection whose join comes later.
    due: VecDeque<RoomCommand>,
    is_running: bool,
    /// The joins that wait for the app's hook.
    pub authorizations: Authorizations,
    /// Why rows could not be read the last time, if so.
    failure: Option<QueryError>,
}

impl CommandQueue {
    pub fn has(&self, room: &RoomName) -> bool {
        !self.rooms.is_empty() && self.rooms.contains_key(room)
    }

    /// When the next command has waited for long enough.
    pub fn next_deadline(&self) -> Option<u64> {
        let room = self.rooms.front().map(|(_, (deadline, _))| *deadline);
        room.into_iter().chain(self.authorizations.next_deadline()).min()
    }

    /// Whether rows could be read.
    pub fn was_read(&mut self, failure: Option<QueryError>) {
        self.failure = failure;
    }

    /// Why nothing is known of a room that is not known.
    pub fn why_unread(&self) -> QueryError {
        self.failure.clone().unwrap_or(QueryError::Timeout)
    }

    fn push(&mut self, command: RoomCommand, now: Moment) {
        let room = command.room().clone();
        if let Some(join) = command.as_join() {
            self.joins.entry(join.connection).or_default().push(room.clone());
        }
        match self.rooms.get_mut(&room) {
            Some((_, commands)) => commands.push(command),
            None => {
                let deadline = now.monotonic + micros(READ_TIMEOUT);
                self.rooms.insert(room, (deadline, vec![command]));
            }
        }
    }

    /// Makes the commands of a room due.
    fn release(&mut self, room: &RoomName) {
        let Some((_, commands)) = self.rooms.remove(room) else { return };
        for join in commands.iter().filter_map(RoomCommand::as_join) {
            self.forget_join(join.connection, room);
        }
        self.due.extend(commands);
    }

    fn forget_join(&mut self, connection: ConnectionId, room: &RoomName) {
        let Some(rooms) = self.joins.get_mut(&connection) else { return };
        let index = rooms.iter().position(|one| one == room);
        index.and_then(|index| rooms.remove(index));
        if rooms.is_empty() {
            self.joins.remove(&connection);
        }
    }

    /// Takes those joins to a room out that are meant. Who waits behind them for the hook has it asked until
    /// `deadline`. Commands that are due stay: they come later than the one that is being carried out.
    fn take_joins_to(
        &mut self,
        room: &RoomName,
        is_meant: impl Fn(&Join) -> bool,
        deadline: u64,
    ) -> Vec<PendingJoin> {
        let mut taken = self.authorizations.take_joins_to(room, &is_meant, deadline);
        let Some((_, commands)) = self.rooms.get_mut(room) else { return taken };
        let waiting: Vec<_> =
            commands.extract_if(.., |one| one.as_join().is_some_and(&is_meant)).collect();
        for command in waiting {
            if let RoomCommand::Join(asked) = command {
                self.forget_join(asked.join.connection, room);
                taken.push(asked);
            }
        }
        taken
    }

    /// Makes the commands of all rooms due that have waited until then.
    fn release_until(&mut self, deadline: u64) {
        while let Some((room, _)) = self.rooms.front().filter(|(_, (at, _))| *at <= deadline) {
            let room = room.clone();
            self.release(&room);
        }
    }

    /// Takes the joins of a connection out.
    fn take_joins(&mut self, connection: ConnectionId) -> Vec<PendingJoin> {
        let mut taken = self.authorizations.take_joins(connection, None);
        if self.joins.is_empty() && self.due.is_empty() {
            return taken;
        }
        for command in std::mem::take(&mut self.due) {
            match command {
                RoomCommand::Join(asked) if asked.join.connection == connection => {
                    taken.push(asked)
                }
                other => self.due.push_back(other),
            }
        }
        let rooms = self.joins.remove(&connection).unwrap_or_default();
        for room in rooms.iter() {
            let Some((_, commands)) = self.rooms.get_mut(room) else { continue };
            let is_its =
                |one: &mut RoomCommand| one.as_join().is_some_and(|j| j.connection == connection);
            for command in commands.extract_if(.., is_its) {
                if let RoomCommand::Join(asked) = command {
                    taken.push(asked);
                }
            }
        }
        taken
    }

    /// The connections that wait to join some room as this user.
    pub fn joining_as(&self, user: &UserId) -> Vec<ConnectionId> {
        let waiting = self.rooms.values().flat_map(|(_, commands)| commands);
        let commands = waiting.chain(&self.due);
        let joins = commands.filter_map(RoomCommand::as_join);
        let joins = joins.filter(|join| join.user.as_ref() == Some(user));
        let waiting = joins.map(|join| join.connection);
        waiting.chain(self.authorizations.joining_as(user)).collect()
    }
}

impl RoomRegistry {
    /// Whether a command about the room has to wait: then its rows are read.
    pub(super) fn must_wait(&mut self, room: &RoomName, ctx: &mut Context<Self>) -> bool {
        self.end_unresumable();
        self.follow(room);
        let waits = !self.is_known(room);
        if waits {
            self.read(ctx);
        }
        waits
    }

    /// Has a command wait until all is known of its room.
    pub(super) fn queue(&mut self, command: RoomCommand, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        self.commands.push(command, now);
        self.set_timer(ctx, now);
    }

    /// Has a command wait that is answered like this.
    pub(super) fn reply_later<T>(
        &mut self,
        ctx: &mut Context<Self>,
        command: impl FnOnce(oneshot::Sender<T>) -> RoomCommand,
    ) -> Reply<T> {
        let (reply, answer) = oneshot::channel();
        self.queue(command(reply), ctx);
        Reply::Later(answer)
    }

    /// Carries out what waits for a room.
    pub(super) fn run_commands(&mut self, room: &RoomName, ctx: &mut Context<Self>) {
        self.commands.release(room);
        self.run_due(ctx);
    }

    /// Carries out what has waited for long enough.
    pub(super) fn run_expired_commands(&mut self, ctx: &mut Context<Self>, now: Moment) {
        self.commands.release_until(now.monotonic);
        self.run_due(ctx);
    }

    /// Carries out all that waits, and refuses what waits for the app's hook.
    pub(super) fn run_all_commands(&mut self, ctx: &mut Context<Self>) {
        self.refuse_unauthorized();
        self.commands.release_until(u64::MAX);
        self.run_due(ctx);
    }

    /// Carries out the commands that are due. Each ends with a look at what is due, which leaves the rest
    /// to this call.
    fn run_due(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.commands.is_running, true) {
            return;
        }
        while let Some(command) = self.commands.due.pop_front() {
            command.run(self, ctx);
        }
        self.commands.is_running = false;
    }

    /// Refuses the joins of a connection that still wait: it has ended, or is to end. Answers whether there
    /// were any.
    pub(super) fn refuse_joins(&mut self, connection: ConnectionId, error: &JoinError) -> bool {
        !refuse(self.commands.take_joins(connection), error).is_empty()
    }

    /// Refuses the joins to a room that still wait and are meant. Answers whose they were.
    pub(super) fn refuse_joins_to(
        &mut self,
        room: &RoomName,
        is_meant: impl Fn(&Join) -> bool,
        error: &JoinError,
        now: Moment,
    ) -> Vec<ConnectionId> {
        let deadline = self.hook_deadline(now);
        refuse(self.commands.take_joins_to(room, is_meant, deadline), error)
    }
}

/// Refuses joins. Answers whose they were.
fn refuse(joins: Vec<PendingJoin>, error: &JoinError) -> Vec<ConnectionId> {
    let refused = joins.into_iter().map(|PendingJoin { join, reply, .. }| {
        // The session may have ended.
        let _ = reply.send(Err(error.clone()));
        join.connection
    });
    refused.collect()
}

/// The answer of a handler, now or later. Public because it is the `Result` of public `Handler`s; not exported.
pub enum Reply<T> {
    /// Now.
    Now(T),
    /// When it comes; if it never does, the sender of the message gets `MailboxError::Closed`.
    Later(oneshot::Receiver<T>),
}

impl<T: 'static> Reply<T> {
    /// The output of a future, which may be done at once.
    pub(super) fn when_done(future: impl Future<Output = T> + 'static) -> Self {
        let mut future = Box::pin(future);
        if let Some(answer) = (&mut future).now_or_never() {
            return Self::Now(answer);
        }
        let (reply, answer) = oneshot::channel();
        drop(actix::spawn(async { drop(reply.send(future.await)) }));
        Self::Later(answer)
    }

    /// Sends the answer when it is known. The receiver may have been dropped.
    fn send_to(self, reply: oneshot::Sender<T>) {
        match self {
            Self::Now(answer) => drop(reply.send(answer)),
            Self::Later(answer) => drop(actix::spawn(async {
                if let Ok(answer) = answer.await {
                    drop(reply.send(answer));
                }
            })),
        }
    }
}

impl<M: Message<Result = T>, T: 'static> MessageResponse<RoomRegistry, M> for Reply<T> {
    fn handle(self, _: &mut Context<RoomRegistry>, reply: Option<OneshotSender<T>>) {
        if let Some(reply) = reply {
            self.send_to(reply);
        }
    }
}
