//! Kicks, from all rooms or one, and closed rooms.

use actix::prelude::*;

use super::{
    RoomRegistry,
    commands::{Reply, RoomCommand},
};
use crate::{
    messages::{CloseRoom, Join, JoinError, Kick, KickFrom, Kicked},
    model::{Cause, ConnectionId, Moment, RoomName},
};

/// How a join that waits is refused when its connection is kicked, or its room is closed.
fn refusal(cause: Cause) -> JoinError {
    JoinError::Denied { reason: cause.as_str().into() }
}

impl Handler<Kick> for RoomRegistry {
    type Result = Reply<Kicked>;

    fn handle(&mut self, msg: Kick, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now();
        let kicked = self.kick(&msg, now);
        self.advance_batch(ctx, now);
        self.kick_elsewhere(msg, kicked, ctx)
    }
}

impl RoomRegistry {
    /// Kicks connections that are here or wait to join. Returns how many.
    pub(super) fn kick(&mut self, whom: &Kick, now: Moment) -> usize {
        let mut connections = match whom {
            Kick::Connection(id) => self.rooms.connections_known_as(*id),
            Kick::User(user) => self.rooms.connections_of(user),
        };
        match whom {
            Kick::Connection(id) => connections.push(*id),
            Kick::User(user) => connections.extend(self.commands.joining_as(user)),
        }
        connections.sort_unstable();
        connections.dedup();
        let mut kicked = 0;
        for connection in connections {
            let was_joining = self.refuse_joins(connection, &refusal(Cause::Kicked));
            let was_here = self.leave_all(connection, Cause::Kicked, now) > 0;
            kicked += usize::from(was_joining || was_here);
        }
        match whom {
            // Its presences may have several connections by now; it counts once.
            Kick::Connection(_) => kicked.min(1),
            Kick::User(_) => kicked,
        }
    }
}

impl Handler<CloseRoom> for RoomRegistry {
    type Result = Reply<Kicked>;

    fn handle(&mut self, msg: CloseRoom, ctx: &mut Context<Self>) -> Self::Result {
        if self.must_wait(&msg.room, ctx) {
            return self.reply_later(ctx, |reply| RoomCommand::CloseRoom(msg, reply));
        }
        Reply::Now(self.close_everywhere(msg, ctx))
    }
}

impl RoomRegistry {
    pub(super) fn close_everywhere(&mut self, msg: CloseRoom, ctx: &mut Context<Self>) -> Kicked {
        let now = self.clock.now();
        let here = self.close_room(&msg.room, now);
        let elsewhere = self.close_elsewhere(&msg.room);
        self.advance_batch(ctx, now);
        Kicked { connections: here + elsewhere.unwrap_or(0), partial: elsewhere.is_none() }
    }

    /// Ends all presences that are here, and refuses the joins that wait. Returns how many connections that were.
    pub(super) fn close_room(&mut self, room: &RoomName, now: Moment) -> usize {
        let members = self.rooms.room(room);
        let members = members.map(|room| room.connections().collect()).unwrap_or_default();
        self.end_in(room, members, |_| true, Cause::RoomClosed, now)
    }

    /// Ends presences in a room, and refuses those joins to it that wait and are meant. Returns how many connections
    /// that were.
    fn end_in(
        &mut self,
        room: &RoomName,
        presences: Vec<ConnectionId>,
        is_meant: impl Fn(&Join) -> bool,
        cause: Cause,
        now: Moment,
    ) -> usize {
        let mut joining = self.refuse_joins_to(room, is_meant, &refusal(cause), now);
        joining.sort_unstable();
        joining.dedup();
        // A member that joins again is one connection.
        joining.retain(|connection| {
            let presence = self.rooms.presence_of(room, *connection);
            presence.is_none_or(|presence| !presences.contains(&presence))
        });
        let diff = self.rooms.leave_together(room, &presences, cause);
        let ended = diff.as_ref().map_or(0, |diff| diff.leaves.len());
        self.announce_leave(diff, cause, now);
        joining.len() + ended
    }
}

impl Handler<KickFrom> for RoomRegistry {
    type Result = Reply<Kicked>;

    fn handle(&mut self, msg: KickFrom, ctx: &mut Context<Self>) -> Self::Result {
        if self.must_wait(&msg.room, ctx) {
            return self.reply_later(ctx, |reply| RoomCommand::KickFrom(msg, reply));
        }
        Reply::Now(self.kick_from_everywhere(msg, ctx))
    }
}

impl RoomRegistry {
    pub(super) fn kick_from_everywhere(
        &mut self,
        msg: KickFrom,
        ctx: &mut Context<Self>,
    ) -> Kicked {
        let now = self.clock.now();
        let single = matches!(msg.whom, Kick::Connection(_));
        let here = self.kick_from(&msg.room, &msg.whom, now);
        let elsewhere = self.kick_from_elsewhere(msg);
        self.advance_batch(ctx, now);
        let all = here + elsewhere.unwrap_or(0);
        let connections = if single { all.min(1) } else { all };
        // One connection that was here is nowhere else.
        Kicked { connections, partial: elsewhere.is_none() && !(single && here > 0) }
    }

    /// Kicks connections that are in the room here, or wait to join it. Returns how many.
    pub(super) fn kick_from(&mut self, room: &RoomName, whom: &Kick, now: Moment) -> usize {
        let is_meant = |join: &Join| match whom {
            Kick::Connection(id) => join.connection == *id,
            Kick::User(user) => join.user.as_ref() == Some(user),
        };
        let presences: Vec<_> = match whom {
            Kick::Connection(id) => vec![self.rooms.presence_of(room, *id).unwrap_or(*id)],
            Kick::User(user) => match self.rooms.room(room) {
                Some(state) => state.connections_of(user).collect(),
                None => Vec::new(),
            },
        };
        self.end_in(room, presences, is_meant, Cause::Kicked, now)
    }
}
