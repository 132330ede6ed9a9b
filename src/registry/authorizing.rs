//! Who may join, and with which rights: the hooks of the app.
//!
//! The synchronous hook is asked on this thread. The asynchronous one runs on a thread of its own; meanwhile
//! its join waits among the [commands](super::commands), and holds up nothing but later joins of the same
//! connection to the same room.

use std::{panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{
    RoomRegistry,
    authorizations::{Question, Waiting, refuse},
};
use crate::{
    log_limit::LogLimit,
    messages::{Admit, Decision, Join, JoinError, JoinRequest, PendingJoin},
    model::{Info, Moment, Rights, RoomName, UserId, micros},
};

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

    /// Lets a connection join once the hooks have allowed it. Each is asked once.
    pub(super) fn ask_to_join(&mut self, asked: PendingJoin, ctx: &mut Context<Self>) {
        if self.hooks.later.is_none() || self.closing {
            return self.join_when_known(asked, ctx);
        }
        match self.rights_for(&asked) {
            Ok(rights) => {
                self.authorize(Question::Join(PendingJoin { rights: Some(rights), ..asked }), ctx);
            }
            Err(error) => refuse(asked, error),
        }
    }

    /// The rights with which a connection may join, by the synchronous hook if no hook was asked yet.
    pub(super) fn rights_for(&self, asked: &PendingJoin) -> Result<Rights, JoinError> {
        match asked.rights {
            Some(_) if self.closing => Err(JoinError::ShuttingDown),
            Some(rights) => Ok(rights),
            None => {
                let Join { room, user, info, .. } = &asked.join;
                self.admit(room, user.as_ref(), info)
            }
        }
    }

    /// As [`Admit`] does.
    pub(super) fn ask_to_admit(
        &mut self,
        msg: Admit,
        reply: oneshot::Sender<Result<(), JoinError>>,
        ctx: &mut Context<Self>,
    ) {
        match self.admit(&msg.room, msg.user.as_ref(), &msg.info) {
            Ok(_) if self.hooks.later.is_none() => self.admit_when_known(msg, reply, ctx),
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
    pub(super) fn call_hook(&mut self, ctx: &mut Context<Self>, now: Moment) {
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
            (Ok(granted), Question::Join(asked)) => {
                let rights = Some(asked.rights.map_or(granted, |rights| rights.and(granted)));
                self.join_when_known(PendingJoin { rights, ..asked }, ctx);
            }
            (Ok(_), Question::Admit(msg, reply)) => self.admit_when_known(msg, reply, ctx),
            (Err(error), question) => question.refuse(error),
        }
        for asked in later {
            self.ask_to_join(asked, ctx);
        }
    }

    /// Refuses what has waited for the hook for too long.
    pub(super) fn refuse_overdue(&mut self, ctx: &mut Context<Self>, now: Moment) {
        while let Some(waiting) = self.commands.authorizations.take_due(now.monotonic) {
            self.authorized(waiting, Answer::TimedOut, ctx);
        }
    }

    /// Refuses all that waits for the hook: the registry shuts down.
    pub(super) fn refuse_unauthorized(&mut self) {
        while let Some(waiting) = self.commands.authorizations.take_due(u64::MAX) {
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
        if let Some(waiting) = authorizations.take_answered(id) {
            self.authorized(waiting, answer, ctx);
        }
        self.call_hook(ctx, now);
        self.advance_batch(ctx, now);
    }
}

/// The rights that an answer of a hook gives. Any other answer is counted.
fn judge(answer: Answer) -> Result<Rights, JoinError> {
    let denied = |reason| JoinError::Denied { reason };
    let (kind, error) = match answer {
        Answer::Decided(Decision::Allow) => return Ok(Rights::ALL),
        Answer::Decided(Decision::Grant(rights)) if rights.join => return Ok(rights),
        Answer::Decided(Decision::Grant(_)) => ("join", denied("unauthorized".into())),
        Answer::Decided(Decision::Deny(reason)) => ("join", denied(reason)),
        Answer::Decided(Decision::Undecided) => ("undecided", JoinError::Undecided),
        Answer::TimedOut => ("timeout", JoinError::Undecided),
        Answer::Failed => ("panic", JoinError::Undecided),
    };
    count_denial(kind);
    Err(error)
}

/// Counts something that was not allowed, and logs the first of its kind in a minute.
pub(super) fn count_denial(kind: &'static str) {
    static JOIN: LogLimit = LogLimit::new();
    static PUBLISH: LogLimit = LogLimit::new();
    static PANIC: LogLimit = LogLimit::new();
    static TIMEOUT: LogLimit = LogLimit::new();
    static UNDECIDED: LogLimit = LogLimit::new();
    static BUSY: LogLimit = LogLimit::new();
    metrics::counter!("presence_denials_total", "kind" => kind).increment(1);
    let limit = match kind {
        "join" => &JOIN,
        "publish" => &PUBLISH,
        "panic" => &PANIC,
        "timeout" => &TIMEOUT,
        "undecided" => &UNDECIDED,
        _ => &BUSY,
    };
    let Some(suppressed) = limit.pass() else { return };
    match kind {
        "join" => tracing::warn!(suppressed, "an authorization hook has denied a join"),
        "publish" => tracing::warn!(suppressed, "a member may not publish in its room"),
        "undecided" => tracing::warn!(suppressed, "an authorization hook cannot decide on joins"),
        _ => tracing::error!(kind, suppressed, "joins are refused: the authorization hook fails"),
    }
}
