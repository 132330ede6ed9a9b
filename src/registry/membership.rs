//! Joins, leaves, touches and updates: one short handler for each.

use actix::prelude::*;
use tokio::sync::oneshot;

use super::{
    RoomRegistry,
    authorizations::refuse,
    commands::{Reply, RoomCommand},
};
use crate::{
    delivery::{Arrival, JoinReply, Recipients},
    messages::{
        Admit, Join, JoinError, Joined, Leave, LeaveAll, PendingJoin, SessionBatch, Touch,
        UpdateInfo, UpdatePresence,
    },
    model::{Cause, ConnectionId, Entered, Entering, Moment, NotEntered},
};

// --- entering and leaving ------------------------------------------------------------------------

impl Handler<Admit> for RoomRegistry {
    type Result = Reply<Result<(), JoinError>>;

    fn handle(&mut self, msg: Admit, ctx: &mut Context<Self>) -> Self::Result {
        let (reply, admitted) = oneshot::channel();
        self.ask_to_admit(msg, reply, ctx);
        Reply::Later(admitted)
    }
}

impl Handler<Join> for RoomRegistry {
    type Result = Reply<Result<Joined, JoinError>>;

    fn handle(&mut self, join: Join, ctx: &mut Context<Self>) -> Self::Result {
        let (reply, joined) = oneshot::channel();
        self.ask_to_join(PendingJoin::new(join, reply), ctx);
        Reply::Later(joined)
    }
}

impl Handler<SessionBatch> for RoomRegistry {
    type Result = ();

    fn handle(
        &mut self,
        SessionBatch { registrations, touches, joins, unread }: SessionBatch,
        ctx: &mut Context<Self>,
    ) {
        drop(unread);
        for registration in registrations {
            self.take_registration(registration);
        }
        let now = self.clock.now();
        for touch in touches {
            self.touch(touch, now);
        }
        for join in joins {
            self.ask_to_join(join, ctx);
        }
        self.continue_batch(ctx, now);
    }
}

impl From<NotEntered> for JoinError {
    fn from(error: NotEntered) -> Self {
        match error {
            NotEntered::Limit(limit) => Self::Limit(limit),
            NotEntered::Superseded(superseded) => Self::Superseded(superseded),
        }
    }
}

impl RoomRegistry {
    /// Whether a user whom the hooks allow it could join.
    pub(super) fn has_place_for(&self, msg: Admit) -> Result<(), JoinError> {
        let Admit { room, user, session, .. } = msg;
        if self.closing {
            return Err(JoinError::ShuttingDown);
        }
        if let Some(key) = session {
            let elsewhere = self.rooms.remote_client(&room, &key, user.as_ref());
            if elsewhere.or(self.sessions.presence_in(&room, &key, user.as_ref())).is_some() {
                return Ok(());
            }
        }
        Ok(self.rooms.has_place(&room)?)
    }

    /// Answers whether a user whom the hooks allow it could join, once all is known of the room.
    pub(super) fn admit_when_known(
        &mut self,
        msg: Admit,
        reply: oneshot::Sender<Result<(), JoinError>>,
        ctx: &mut Context<Self>,
    ) {
        if self.must_wait(&msg.room, ctx) {
            return self.queue(RoomCommand::Admit(msg, reply), ctx);
        }
        // The receiver may have been dropped.
        let _ = reply.send(self.has_place_for(msg));
    }

    /// Lets a connection in once all is known of the room.
    pub(super) fn join_when_known(&mut self, asked: PendingJoin, ctx: &mut Context<Self>) {
        if self.must_wait(&asked.join.room, ctx) {
            return self.queue(RoomCommand::Join(asked), ctx);
        }
        self.join(asked, ctx);
    }

    /// Lets a connection in. A refusal is answered at once; a join at the end of the batch, when the
    /// connection has been sent who is in the room.
    pub(super) fn join(&mut self, asked: PendingJoin, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let rights = match self.rights_for(&asked) {
            Ok(rights) => rights,
            Err(error) => return refuse(asked, error),
        };
        let PendingJoin { join, reply, .. } = asked;
        let Join { room, connection, user, info, fixed, session, .. } = join;
        let Join { dialect, forward, disconnect, backlog_limit, socket, thread, .. } = join;
        let disconnect = disconnect.or_else(|| self.registered.recipient(connection));
        let _span = tracing::debug_span!("join", %room, %connection).entered();
        let entering = Entering { room: room.clone(), connection, user, info, fixed, session };
        let (presence, changed) = match self.let_in(entering, now) {
            Ok(entered) => entered,
            // The session may have ended.
            Err(refused) => return drop(reply.send(Err(refused))),
        };
        self.rights.set(&room, connection, rights);
        let counts_only = !rights.members;
        let state = self.rooms.snapshot(&room);
        let snapshot = if counts_only { state.without_members() } else { state.clone() };
        let joined = Joined { presence, snapshot, changed, rights };
        let reply = JoinReply { channel: reply, joined };
        let recipients = Recipients { forward, disconnect, dialect, backlog_limit, socket };
        let arrival = Arrival { connection, recipients, counts_only, thread, reply };
        self.delivery.enter(&state, arrival, now.monotonic);
        self.advance_batch(ctx, now);
    }

    /// Lets a connection into a room. Answers the id of its presence, and whether that changed anything.
    fn let_in(
        &mut self,
        entering: Entering,
        now: Moment,
    ) -> Result<(ConnectionId, bool), JoinError> {
        let Entering { room, connection, .. } = &entering;
        let (room, connection) = (room.clone(), *connection);
        let known = self.rooms.last_seen(connection).is_some();
        let entered = self.sessions.enter(&mut self.rooms, entering, &self.node, now)?;
        let Entered { presence, diff, resumed, rewrite } = entered;

        if let Some(from) = resumed {
            self.resumed(&room, presence, from, now);
        }
        self.adopted_orphan(presence, &room);
        if known || resumed.is_some() {
            self.mirror.heard(connection);
        }
        let changed = diff.is_some();
        if let Some(diff) = diff {
            self.joins.add(diff.joins.len());
            tracing::debug!(%room, %connection, version = diff.version, "joined");
            self.announce(diff, now);
        }
        if rewrite {
            self.mark_shared(room, presence);
        }
        Ok((presence, changed))
    }
}

impl Handler<Leave> for RoomRegistry {
    type Result = Reply<bool>;

    fn handle(&mut self, msg: Leave, ctx: &mut Context<Self>) -> Self::Result {
        for asked in self.commands.authorizations.take_joins(msg.connection, Some(&msg.room)) {
            refuse(asked, JoinError::Withdrawn);
        }
        if self.commands.has(&msg.room) {
            return self.reply_later(ctx, |reply| RoomCommand::Leave(msg, reply));
        }
        Reply::Now(self.leave(msg, ctx))
    }
}

impl Handler<LeaveAll> for RoomRegistry {
    type Result = usize;

    fn handle(&mut self, msg: LeaveAll, ctx: &mut Context<Self>) -> usize {
        let now = self.clock.now();
        let LeaveAll { connection, cause } = msg;
        let _span = tracing::debug_span!("leave_all", %connection, %cause).entered();
        self.registered.left(connection);
        self.refuse_joins(connection, &JoinError::Withdrawn);
        if self.rooms.has_ended(connection) && cause != Cause::Left {
            // Its presences fade, and may be another connection's soon.
            return 0;
        }
        let rooms = self.end_connection(connection, cause, now);
        self.advance_batch(ctx, now);
        rooms
    }
}

impl RoomRegistry {
    pub(super) fn leave(&mut self, msg: Leave, ctx: &mut Context<Self>) -> bool {
        let now = self.clock.now();
        let Leave { room, connection, cause } = msg;
        let _span = tracing::debug_span!("leave", %room, %connection, %cause).entered();
        let diff = self.rooms.leave(&room, connection, cause);
        let left = diff.is_some();
        self.announce_leave(diff, cause, now);
        self.advance_batch(ctx, now);
        left
    }
}

// --- staying -------------------------------------------------------------------------------------

impl Handler<Touch> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: Touch, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        self.touch(msg, now);
        self.continue_batch(ctx, now);
    }
}

impl Handler<UpdateInfo> for RoomRegistry {
    type Result = Reply<bool>;

    fn handle(&mut self, msg: UpdateInfo, ctx: &mut Context<Self>) -> Self::Result {
        if self.commands.has(&msg.room) {
            return self.reply_later(ctx, |reply| RoomCommand::UpdateInfo(msg, reply));
        }
        Reply::Now(self.update_info(msg, ctx))
    }
}

impl Handler<UpdatePresence> for RoomRegistry {
    type Result = Reply<bool>;

    fn handle(&mut self, msg: UpdatePresence, ctx: &mut Context<Self>) -> Self::Result {
        let UpdatePresence(msg) = msg;
        if self.commands.has(&msg.room) {
            return self.reply_later(ctx, |reply| RoomCommand::UpdatePresence(msg, reply));
        }
        Reply::Now(self.update_presence(msg, ctx))
    }
}

impl RoomRegistry {
    fn touch(&mut self, Touch { connection, activity }: Touch, now: Moment) {
        if self.rooms.touch(connection, activity, now) {
            self.touches += 1;
            self.mirror.heard(connection);
        }
    }

    /// As [`update_info`](Self::update_info), also by the id under which a presence is listed.
    pub(super) fn update_presence(&mut self, msg: UpdateInfo, ctx: &mut Context<Self>) -> bool {
        let UpdateInfo { room, connection: id, info } = msg;
        let connection = match self.rooms.presence_of(&room, id) {
            Some(_) => id,
            None => self.rooms.current_connection(&room, id).unwrap_or(id),
        };
        self.update_info(UpdateInfo { room, connection, info }, ctx)
    }

    pub(super) fn update_info(&mut self, msg: UpdateInfo, ctx: &mut Context<Self>) -> bool {
        let now = self.clock.now();
        let Some(diff) = self.rooms.update_info(&msg.room, msg.connection, msg.info, now) else {
            return false;
        };
        self.announce(diff, now);
        self.advance_batch(ctx, now);
        true
    }
}
