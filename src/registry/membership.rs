//! Joins, leaves, touches, prunes and messages.

use actix::prelude::*;

use super::RoomRegistry;
use crate::{
    clock::Stopwatch,
    messages::{
        Admit, CloseRoom, Join, JoinError, Joined, Kick, Leave, LeaveAll, NotAMember,
        PrunePresences, PruneReport, Pruned, Publish, Touch, UpdateInfo,
    },
    model::{Cause, Diff, Sign, micros},
    wire::json::Sender,
};

impl Handler<Admit> for RoomRegistry {
    type Result = Result<(), JoinError>;

    fn handle(&mut self, msg: Admit, _: &mut Context<Self>) -> Self::Result {
        let Admit { room, user, info, session } = msg;
        self.admit(&room, user.as_ref(), &info)?;
        let there = |presence| self.rooms.presence(&room, presence).is_some();
        if session.is_some_and(|key| self.sessions.presence_of(&(key, user), there).is_some()) {
            return Ok(());
        }
        Ok(self.rooms.has_place(&room)?)
    }
}

impl Handler<Join> for RoomRegistry {
    type Result = Result<Joined, JoinError>;

    fn handle(&mut self, msg: Join, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now();
        let Join { room, connection, user, info, session, dialect, forward, disconnect } = msg;
        let _span = tracing::debug_span!("join", %room, %connection).entered();
        self.admit(&room, user.as_ref(), &info)?;
        let there = |presence| self.rooms.presence(&room, presence).is_some();
        let claim = self.sessions.claim(connection, session, user.as_ref(), there)?;
        let connection = claim.presence;
        let known = self.rooms.last_seen(connection).is_some();
        let diff = self.rooms.join(&room, connection, user, info, now)?;

        self.take_place(claim, &room, now);
        self.delivery.connect(connection, forward, disconnect, dialect);
        let changed = diff.is_some();
        if known {
            self.mirror.heard(connection);
        }
        if let Some(diff) = diff {
            self.joins.add(diff.joins.len());
            tracing::debug!(room = %diff.room, %connection, version = diff.version, "joined");
            self.announce(diff, now);
        }
        let snapshot = self.rooms.snapshot(&room);
        self.delivery.listen(&snapshot, connection, now.monotonic);
        self.settle(ctx, now);
        Ok(Joined { snapshot, changed })
    }
}

impl Handler<Leave> for RoomRegistry {
    type Result = bool;

    fn handle(&mut self, msg: Leave, ctx: &mut Context<Self>) -> bool {
        let now = self.clock.now();
        let Leave { room, connection, cause } = msg;
        let _span = tracing::debug_span!("leave", %room, %connection, %cause).entered();
        let Some(connection) = self.sessions.resolve(connection) else { return false };
        let diff = self.rooms.leave(&room, connection, cause);
        let left = diff.is_some();
        self.announce_leave(diff, cause, now);
        self.settle(ctx, now);
        left
    }
}

impl Handler<LeaveAll> for RoomRegistry {
    type Result = usize;

    fn handle(&mut self, msg: LeaveAll, ctx: &mut Context<Self>) -> usize {
        let now = self.clock.now();
        let LeaveAll { connection, cause } = msg;
        let _span = tracing::debug_span!("leave_all", %connection, %cause).entered();
        let Some(connection) = self.sessions.resolve(connection) else { return 0 };
        let rooms = self.end_connection(connection, cause, now);
        self.settle(ctx, now);
        rooms
    }
}

impl Handler<Touch> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: Touch, _: &mut Context<Self>) {
        let now = self.clock.now();
        let Some(connection) = self.sessions.resolve(msg.connection) else { return };
        if self.rooms.touch(connection, msg.sign, now) {
            self.touches += 1;
            self.mirror.heard(connection);
        }
    }
}

impl Handler<UpdateInfo> for RoomRegistry {
    type Result = bool;

    fn handle(&mut self, msg: UpdateInfo, ctx: &mut Context<Self>) -> bool {
        let now = self.clock.now();
        let Some(connection) = self.sessions.resolve(msg.connection) else { return false };
        let diff = self.rooms.update_info(&msg.room, connection, msg.info);
        let changed = diff.is_some();
        if let Some(diff) = diff {
            self.announce(diff, now);
            self.settle(ctx, now);
        }
        changed
    }
}

impl Handler<Publish> for RoomRegistry {
    type Result = Result<usize, NotAMember>;

    fn handle(&mut self, msg: Publish, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now();
        let _span = tracing::debug_span!("publish", room = %msg.room).entered();
        let from = match msg.from {
            Some(connection) => {
                let connection = self.sessions.resolve(connection).ok_or(NotAMember)?;
                let sender = self.rooms.presence(&msg.room, connection).ok_or(NotAMember)?;
                self.rooms.touch(connection, Sign::Message, now);
                self.mirror.heard(connection);
                Some(Sender { id: sender.presence.user, connection })
            }
            None => None,
        };
        let Some(room) = self.rooms.room(&msg.room) else { return Ok(0) };
        // Whose client is away may have an outlet, which is that of another room then.
        let away = |connection| self.sessions.fading(connection, &msg.room).is_some();
        let except = msg.except.and_then(|connection| self.sessions.resolve(connection));
        let wanted = |connection| Some(connection) != except && !away(connection);
        let work = Stopwatch::start();
        let (taken, refused) = self.delivery.publish(room, &msg.content, from.as_ref(), wanted);
        let busy = micros(work.elapsed());
        metrics::counter!("presence_fan_out_microseconds_total").increment(busy);
        self.messages.add(1);
        self.deliveries.add(taken);
        self.put_out(&refused, now);
        self.settle(ctx, now);
        Ok(taken)
    }
}

impl Handler<Kick> for RoomRegistry {
    type Result = usize;

    fn handle(&mut self, msg: Kick, ctx: &mut Context<Self>) -> usize {
        let now = self.clock.now();
        let connections = match msg {
            Kick::Connection(connection) => vec![connection],
            Kick::User(user) => self.rooms.connections_of(&user),
        };
        let kicked = connections
            .into_iter()
            .filter(|connection| self.leave_all(*connection, Cause::Kicked, now) > 0)
            .count();
        self.settle(ctx, now);
        kicked
    }
}

impl Handler<CloseRoom> for RoomRegistry {
    type Result = usize;

    fn handle(&mut self, msg: CloseRoom, ctx: &mut Context<Self>) -> usize {
        let now = self.clock.now();
        let Some(diff) = self.rooms.close_room(&msg.room, Cause::RoomClosed) else { return 0 };
        let closed = diff.leaves.len();
        self.announce_leave(Some(diff), Cause::RoomClosed, now);
        self.settle(ctx, now);
        closed
    }
}

impl Handler<PrunePresences> for RoomRegistry {
    type Result = PruneReport;

    fn handle(&mut self, msg: PrunePresences, ctx: &mut Context<Self>) -> PruneReport {
        let now = self.clock.now();
        let _span = tracing::debug_span!("prune").entered();
        let diffs = self.rooms.prune(now, msg.age.unwrap_or(self.max_age));
        let pruned = |diff: &Diff| Pruned {
            room: diff.room.clone(),
            presences: diff.leaves.iter().map(|left| left.presence.clone()).collect(),
        };
        let report = PruneReport { rooms: diffs.iter().map(pruned).collect() };
        for diff in diffs {
            tracing::info!(room = %diff.room, removed = diff.leaves.len(), "pruned silent presences");
            self.announce_leave(Some(diff), Cause::Expired, now);
        }
        self.settle(ctx, now);
        report
    }
}
