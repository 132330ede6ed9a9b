//! The joins that wait for the app's asynchronous hook.

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;
use hashlink::LinkedHashMap;
use tokio::sync::oneshot;

use crate::{
    messages::{Admit, Join, JoinError, JoinRequest, PendingJoin},
    model::{ConnectionId, Few, RoomName, UserId},
};

/// How many answers of the asynchronous hook may be outstanding; further joins wait for their turn.
const MAX_RUNNING_HOOKS: usize = 256;
/// How many joins may wait for the hook; more are refused.
const MAX_WAITING_JOINS: usize = 16_384;

/// What the hook is asked for.
pub(super) enum Question {
    Join(PendingJoin),
    Admit(Admit, oneshot::Sender<Result<(), JoinError>>),
}

pub(super) struct Waiting {
    pub question: Question,
    /// Until when the answer has to come, in microseconds of the monotonic clock.
    deadline: u64,
    /// Later joins of the connection to the room.
    pub later: VecDeque<PendingJoin>,
}

/// The joins that wait for the asynchronous hook.
#[derive(Default)]
pub(super) struct Authorizations {
    last_id: u64,
    /// In the order of their deadlines.
    waiting: LinkedHashMap<u64, Waiting, RandomState>,
    /// The joins of each connection among them.
    joins: HashMap<ConnectionId, Few<(RoomName, u64)>, RandomState>,
    /// Those for which the hook was not called yet.
    uncalled: VecDeque<u64>,
    /// How many answers are outstanding, also of joins that wait no more.
    running: usize,
    /// How many later joins there are.
    later: usize,
}

impl Authorizations {
    pub fn next_deadline(&self) -> Option<u64> {
        self.waiting.front().map(|(_, waiting)| waiting.deadline)
    }

    /// Whether as many wait as may.
    pub fn is_full(&self) -> bool {
        self.waiting.len().max(self.uncalled.len()) + self.later >= MAX_WAITING_JOINS
    }

    /// Adds a question, or a join behind another one of its connection to the room.
    pub fn push(&mut self, question: Question, deadline: u64) {
        if let Question::Join(asked) = &question {
            let (connection, room) = (asked.join.connection, &asked.join.room);
            if let Some(waiting) =
                self.id_of(connection, room).and_then(|id| self.waiting.get_mut(&id))
            {
                self.later += 1;
                if let Question::Join(asked) = question {
                    waiting.later.push_back(asked);
                }
                return;
            }
            self.joins.entry(connection).or_default().push((room.clone(), self.last_id + 1));
        }
        self.last_id += 1;
        let waiting = Waiting { question, deadline, later: VecDeque::new() };
        self.waiting.insert(self.last_id, waiting);
        self.uncalled.push_back(self.last_id);
    }

    fn id_of(&self, connection: ConnectionId, room: &RoomName) -> Option<u64> {
        let joins = self.joins.get(&connection)?;
        joins.iter().find(|(name, _)| name == room).map(|(_, id)| *id)
    }

    /// Takes out what has waited until then, one after the other.
    pub fn take_due(&mut self, now: u64) -> Option<Waiting> {
        let (&id, _) = self.waiting.front().filter(|(_, waiting)| waiting.deadline <= now)?;
        self.take(id)
    }

    /// Takes out what the hook has answered, if it still waits.
    pub fn take_answered(&mut self, id: u64) -> Option<Waiting> {
        self.running -= 1;
        self.take(id)
    }

    fn take(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        self.later -= waiting.later.len();
        if let Question::Join(PendingJoin { join, .. }) = &waiting.question
            && let Some(rooms) = self.joins.get_mut(&join.connection)
        {
            let index = rooms.iter().position(|(_, one)| *one == id);
            index.and_then(|index| rooms.remove(index));
            if rooms.is_empty() {
                self.joins.remove(&join.connection);
            }
        }
        // Those that were given up are skipped when it is their turn, which a hook that hangs never lets come.
        while self.uncalled.front().is_some_and(|id| !self.waiting.contains_key(id)) {
            self.uncalled.pop_front();
        }
        Some(waiting)
    }

    /// The next join for which the hook is to be called, with its number and its deadline.
    pub fn call_next(&mut self) -> Option<(u64, u64, JoinRequest)> {
        while self.running < MAX_RUNNING_HOOKS {
            let id = self.uncalled.pop_front()?;
            let Some(Waiting { question, deadline, .. }) = self.waiting.get(&id) else { continue };
            let (room, user, info) = match question {
                Question::Join(PendingJoin { join, .. }) => (&join.room, &join.user, &join.info),
                Question::Admit(msg, _) => (&msg.room, &msg.user, &msg.info),
            };
            let (room, user, info) = (room.clone(), user.clone(), info.clone());
            self.running += 1;
            return Some((id, *deadline, JoinRequest { room, user, info }));
        }
        None
    }

    /// Takes the joins of a connection out: those to a room, or all.
    pub fn take_joins(
        &mut self,
        connection: ConnectionId,
        room: Option<&RoomName>,
    ) -> Vec<PendingJoin> {
        let Some(joins) = self.joins.get(&connection) else { return Vec::new() };
        let of_room = joins.iter().filter(|(name, _)| room.is_none_or(|room| room == name));
        let ids: Vec<_> = of_room.map(|(_, id)| *id).collect();
        let mut taken = Vec::new();
        for Waiting { question, later, .. } in ids.into_iter().filter_map(|id| self.take(id)) {
            if let Question::Join(asked) = question {
                taken.push(asked);
            }
            taken.extend(later);
        }
        taken
    }

    /// Takes those joins to a room out that are meant. Who has waited behind them is asked for until `deadline`.
    pub fn take_joins_to(
        &mut self,
        room: &RoomName,
        is_meant: impl Fn(&Join) -> bool,
        deadline: u64,
    ) -> Vec<PendingJoin> {
        let (mut taken, mut ids) = (Vec::new(), Vec::new());
        for (id, waiting) in &mut self.waiting {
            let Question::Join(first) = &waiting.question else { continue };
            if first.join.room != *room {
                continue;
            }
            let later = std::mem::take(&mut waiting.later);
            let (meant, others): (VecDeque<_>, VecDeque<_>) =
                later.into_iter().partition(|asked| is_meant(&asked.join));
            self.later -= meant.len();
            waiting.later = others;
            taken.extend(meant);
            if is_meant(&first.join) {
                ids.push(*id);
            }
        }
        for id in ids {
            let Some(Waiting { question, later, .. }) = self.take(id) else { continue };
            if let Question::Join(asked) = question {
                taken.push(asked);
            }
            for asked in later {
                self.push(Question::Join(asked), deadline);
            }
        }
        taken
    }

    /// The connections that wait to join some room as this user.
    pub fn joining_as<'a>(&'a self, user: &'a UserId) -> impl Iterator<Item = ConnectionId> + 'a {
        let joins = self.waiting.values().flat_map(|waiting| {
            let first = match &waiting.question {
                Question::Join(asked) => Some(asked),
                Question::Admit(..) => None,
            };
            first.into_iter().chain(&waiting.later)
        });
        let joins = joins.filter(move |asked| asked.join.user.as_ref() == Some(user));
        joins.map(|asked| asked.join.connection)
    }
}

impl Question {
    pub fn refuse(self, error: JoinError) {
        match self {
            Self::Join(asked) => refuse(asked, error),
            // The receiver may have been dropped.
            Self::Admit(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

/// Refuses a join.
pub(super) fn refuse(asked: PendingJoin, error: JoinError) {
    // The session may have ended.
    let _ = asked.reply.send(Err(error));
}
