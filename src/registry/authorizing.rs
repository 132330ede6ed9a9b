//! Who may join, and with which rights: the hooks of the app.
//!
//! The synchronous hook is asked on this thread. The asynchronous one runs on a thread of its own; meanwhile
//! its join waits among the [commands](super::commands), and holds up nothing but later joins of the same
//! connection to the same room.

use std::{
    collections::{HashMap, VecDeque},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use ahash::RandomState;
use hashlink::LinkedHashMap;
use tokio::sync::oneshot;

use super::RoomRegistry;
use crate::{
    log_limit::LogLimit,
    messages::{Admit, Decision, Join, JoinError, JoinRequest, PendingJoin},
    model::{ConnectionId, Few, Info, Moment, Rights, RoomName, UserId, micros},
};

/// How many answers of the asynchronous hook may be outstanding; further joins wait for their turn.
const MAX_RUNNING_HOOKS: usize = 256;
/// How many joins may wait for the hook; more are refused.
const MAX_WAITING_JOINS: usize = 16_384;

pub(crate) type Authorize =
    Arc<dyn Fn(&RoomName, Option<&UserId>, &Info) -> Decision + Send + Sync>;
pub(crate) type AuthorizeAsync =
    Arc<dyn Fn(JoinRequest) -> Pin<Box<dyn Future<Output = Decision> + Send>> + Send + Sync>;

/// The hooks of the app.
#[derive(Default)]
pub(crate) struct Hooks {
    pub sync: Option<Authorize>,
    pub later: Option<AsyncHook>,
}

/// The asynchronous hook, and the thread on which it runs, which ends with this.
pub(crate) struct AsyncHook {
    pub hook: AuthorizeAsync,
    pub arbiter: Arbiter,
    /// How long a join waits for its answer.
    pub timeout: Duration,
}

impl Drop for AsyncHook {
    fn drop(&mut self) {
        self.arbiter.stop();
    }
}

/// What became of one call of the asynchronous hook.
#[derive(Debug)]
enum Answer {
    Decided(Decision),
    TimedOut,
    /// It has panicked, or its thread has ended.
    Failed,
}

/// The answer of the asynchronous hook for one join.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Authorized {
    id: u64,
    answer: Answer,
}

/// Sends the answer when it is dropped, also by a panic of the hook.
struct AnswerGuard {
    id: u64,
    answer: Answer,
    registry: Recipient<Authorized>,
}

impl Drop for AnswerGuard {
    fn drop(&mut self) {
        let answer = std::mem::replace(&mut self.answer, Answer::Failed);
        // Bounded by the number of calls that may be outstanding.
        self.registry.do_send(Authorized { id: self.id, answer });
    }
}

/// What the hook is asked for.
enum Question {
    Join(PendingJoin),
    Admit(Admit, oneshot::Sender<Result<(), JoinError>>),
}

struct Waiting {
    question: Question,
    /// Until when the answer has to come, in microseconds of the monotonic clock.
    deadline: u64,
    /// Later joins of the connection to the room.
    later: VecDeque<PendingJoin>,
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

    fn is_full(&self) -> bool {
        self.waiting.len().max(self.uncalled.len()) + self.later >= MAX_WAITING_JOINS
    }

    fn push(&mut self, question: Question, deadline: u64) {
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
    fn call_next(&mut self) -> Option<(u64, u64, JoinRequest)> {
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

// --- asking --------------------------------------------------------------------------------------

impl RoomRegistry {
    /// Whether the user may join, and with which rights, as far as that is known at once.
    pub(super) fn admit(
        &self,
        room: &RoomName,
        user: Option<&UserId>,
        info: &Info,
    ) -> Result<Rights, JoinError> {
        if self.closing {
            return Err(JoinError::ShuttingDown);
        }
        let Some(authorize) = &self.hooks.sync else { return Ok(Rights::ALL) };
        // A panic of the app's hook must not end the registry.
        let decision = std::panic::catch_unwind(AssertUnwindSafe(|| authorize(room, user, info)));
        judge(decision.map_or(Answer::Failed, Answer::Decided))
    }

    /// Lets a connection join once the hooks have allowed it.
    pub(super) fn ask_to_join(&mut self, asked: PendingJoin, ctx: &mut Context<Self>) {
        if self.hooks.later.is_none() || self.closing {
            return self.join_when_known(asked, None, ctx);
        }
        let join = &asked.join;
        match self.admit(&join.room, join.user.as_ref(), &join.info) {
            Ok(_) => self.authorize(Question::Join(asked), ctx),
            Err(error) => refuse(asked, error),
        }
    }

    /// As [`Admit`] does.
    pub(super) fn ask_to_admit(
        &mut self,
        msg: Admit,
        reply: oneshot::Sender<Result<(), JoinError>>,
        ctx: &mut Context<Self>,
    ) {
        if self.hooks.later.is_none() || self.closing {
            return self.admit_when_known(msg, reply, ctx);
        }
        match self.admit(&msg.room, msg.user.as_ref(), &msg.info) {
            Ok(_) => self.authorize(Question::Admit(msg, reply), ctx),
            Err(error) => Question::Admit(msg, reply).refuse(error),
        }
    }

    fn authorize(&mut self, question: Question, ctx: &mut Context<Self>) {
        if self.commands.authorizations.is_full() {
            count_denial("busy");
            return question.refuse(JoinError::Busy);
        }
        let now = self.clock.now();
        let deadline = self.hook_deadline(now);
        self.commands.authorizations.push(question, deadline);
        self.call_hook(ctx, now);
        self.set_timer(ctx, now);
    }

    /// Until when the asynchronous hook has to answer what is asked now.
    pub(super) fn hook_deadline(&self, now: Moment) -> u64 {
        let timeout = self.hooks.later.as_ref().map_or(Duration::ZERO, |later| later.timeout);
        now.monotonic.saturating_add(micros(timeout))
    }

    /// Calls the asynchronous hook for the joins whose turn it is.
    fn call_hook(&mut self, ctx: &mut Context<Self>, now: Moment) {
        let Some(AsyncHook { hook, arbiter, .. }) = &self.hooks.later else { return };
        while let Some((id, deadline, request)) = self.commands.authorizations.call_next() {
            let registry = ctx.address().recipient();
            let guard = AnswerGuard { id, answer: Answer::Failed, registry };
            let hook = Arc::clone(hook);
            let timeout = Duration::from_micros(deadline.saturating_sub(now.monotonic));
            // A thread that has ended drops it, which is an answer, too.
            arbiter.spawn(async move {
                let mut guard = guard;
                let decision = tokio::time::timeout(timeout, async { hook(request).await }).await;
                guard.answer = decision.map_or(Answer::TimedOut, Answer::Decided);
            });
        }
    }

    /// Goes on with what has waited for the hook.
    fn authorized(&mut self, waiting: Waiting, answer: Answer, ctx: &mut Context<Self>) {
        let Waiting { question, later, .. } = waiting;
        match (judge(answer), question) {
            (Ok(rights), Question::Join(asked)) => {
                self.join_when_known(asked, Some(rights), ctx);
            }
            (Ok(_), Question::Admit(msg, reply)) => self.admit_when_known(msg, reply, ctx),
            (Err(error), question) => question.refuse(error),
        }
        for asked in later {
            self.ask_to_join(asked, ctx);
        }
    }

    /// Denies what has waited for the hook for too long.
    pub(super) fn deny_overdue(&mut self, ctx: &mut Context<Self>, now: Moment) {
        let is_due = |waiting: &Waiting| waiting.deadline <= now.monotonic;
        while let Some((&id, _)) =
            self.commands.authorizations.waiting.front().filter(|(_, waiting)| is_due(waiting))
        {
            if let Some(waiting) = self.commands.authorizations.take(id) {
                self.authorized(waiting, Answer::TimedOut, ctx);
            }
        }
    }

    /// Refuses all that waits for the hook: the registry shuts down.
    pub(super) fn refuse_unauthorized(&mut self) {
        while let Some(id) = self.commands.authorizations.waiting.front().map(|(id, _)| *id) {
            let Some(waiting) = self.commands.authorizations.take(id) else { continue };
            waiting.question.refuse(JoinError::ShuttingDown);
            for asked in waiting.later {
                refuse(asked, JoinError::ShuttingDown);
            }
        }
    }
}

impl Handler<Authorized> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, Authorized { id, answer }: Authorized, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let authorizations = &mut self.commands.authorizations;
        authorizations.running -= 1;
        if let Some(waiting) = authorizations.take(id) {
            self.authorized(waiting, answer, ctx);
        }
        self.call_hook(ctx, now);
        self.advance_batch(ctx, now);
    }
}

impl Question {
    fn refuse(self, error: JoinError) {
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

/// The rights that an answer of a hook gives. A denial is counted.
fn judge(answer: Answer) -> Result<Rights, JoinError> {
    let (kind, reason) = match answer {
        Answer::Decided(Decision::Allow) => return Ok(Rights::ALL),
        Answer::Decided(Decision::Grant(rights)) if rights.join => return Ok(rights),
        Answer::Decided(Decision::Grant(_)) => ("join", "unauthorized".into()),
        Answer::Decided(Decision::Deny(reason)) => ("join", reason),
        Answer::TimedOut => ("timeout", FAILED.into()),
        Answer::Failed => ("panic", FAILED.into()),
    };
    count_denial(kind);
    Err(JoinError::Denied { reason })
}

/// The reason of a denial where a hook has given none.
const FAILED: &str = "authorization failed";

/// Counts something that was not allowed, and logs the first of its kind in a minute.
pub(super) fn count_denial(kind: &'static str) {
    static JOIN: LogLimit = LogLimit::new();
    static PUBLISH: LogLimit = LogLimit::new();
    static PANIC: LogLimit = LogLimit::new();
    static TIMEOUT: LogLimit = LogLimit::new();
    static BUSY: LogLimit = LogLimit::new();
    metrics::counter!("presence_denials_total", "kind" => kind).increment(1);
    let limit = match kind {
        "join" => &JOIN,
        "publish" => &PUBLISH,
        "panic" => &PANIC,
        "timeout" => &TIMEOUT,
        _ => &BUSY,
    };
    let Some(suppressed) = limit.pass() else { return };
    match kind {
        "join" => tracing::warn!(suppressed, "an authorization hook has denied a join"),
        "publish" => tracing::warn!(suppressed, "a member may not publish in its room"),
        _ => tracing::error!(kind, suppressed, "joins are denied: the authorization hook fails"),
    }
}
