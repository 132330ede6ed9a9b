//! Joins, leaves, touches, prunes and messages.

use std::time::Duration;

use actix::{dev::OneshotSender, prelude::*};
use tokio::sync::oneshot;

use super::{RoomRegistry, following::Reply};
use crate::{
    bus::BusMessage,
    delivery::{Answer, Arrival, Outlet, Publication, Taking},
    messages::{
        Admit, AskedToJoin, CloseRoom, Content, Join, JoinError, Joined, Kick, Leave, LeaveAll,
        NotAMember, PrunePresences, PruneReport, Pruned, Publish, Say, Together, Touch, UpdateInfo,
    },
    model::{
        Activity, Cause, ConnectionId, Diff, Entered, Entering, Moment, NotEntered, Remote,
        RoomName,
    },
    wire::json::Sender,
};

/// How long a message may take to be handed to all threads that have members of its room, before its
/// sender is told of those who took it so far.
const COUNTING: Duration = Duration::from_secs(1);
/// The same where the sender is a session that hears nothing meanwhile.
const HOLDING_UP: Duration = Duration::from_millis(50);

impl Handler<Admit> for RoomRegistry {
    type Result = Reply<Result<(), JoinError>>;

    fn handle(&mut self, msg: Admit, ctx: &mut Context<Self>) -> Self::Result {
        let room = msg.room.clone();
        self.when_known(&room, ctx, |registry, _| registry.may_join(msg))
    }
}

impl Handler<Join> for RoomRegistry {
    type Result = Reply<Result<Joined, JoinError>>;

    fn handle(&mut self, msg: Join, ctx: &mut Context<Self>) -> Self::Result {
        let (reply, joined) = oneshot::channel();
        self.ask_to_join(AskedToJoin { join: msg, reply }, ctx);
        Reply::Later(joined)
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
    fn may_join(&self, Admit { room, user, info, session }: Admit) -> Result<(), JoinError> {
        self.admit(&room, user.as_ref(), &info)?;
        if let Some(key) = session {
            let elsewhere = self.rooms.remote_client(&room, &key, user.as_ref());
            if elsewhere.or(self.sessions.presence_in(&room, &key, user.as_ref())).is_some() {
                return Ok(());
            }
        }
        Ok(self.rooms.has_place(&room)?)
    }

    /// Lets a connection in as soon as all is known of the room. A refusal is answered at once, a join
    /// when who has joined has been told who is there.
    fn ask_to_join(&mut self, AskedToJoin { join, reply }: AskedToJoin, ctx: &mut Context<Self>) {
        let (room, connection) = (join.room.clone(), join.connection);
        self.end_unresumable();
        if self.is_known(&room) {
            return self.join(join, reply, ctx);
        }
        *self.parked.entry(connection).or_default() += 1;
        // The answer goes its own way.
        drop(self.when_known(&room, ctx, move |registry, ctx| match registry.unpark(connection) {
            Some(()) => registry.join(join, reply, ctx),
            // The session may have ended, here as below.
            None => drop(reply.send(Err(JoinError::Withdrawn))),
        }));
    }

    fn join(
        &mut self,
        join: Join,
        reply: OneshotSender<Result<Joined, JoinError>>,
        ctx: &mut Context<Self>,
    ) {
        let now = self.clock.now();
        let Join { room, connection, user, info, fixed, session, .. } = join;
        let Join { dialect, forward, disconnect, backlog_limit, socket, courier, .. } = join;
        let _span = tracing::debug_span!("join", %room, %connection).entered();
        let entering = Entering { room: room.clone(), connection, user, info, fixed, session };
        let changed = match self.let_in(entering, now) {
            Ok(changed) => changed,
            Err(refused) => return drop(reply.send(Err(refused))),
        };
        let snapshot = self.rooms.snapshot(&room);
        let answer = Answer { reply, joined: Joined { snapshot: snapshot.clone(), changed } };
        let outlet = Outlet { forward, disconnect, dialect, backlog_limit, socket };
        let arrival = Arrival { connection, outlet, courier, answer };
        self.delivery.enter(&snapshot, arrival, now.monotonic);
        self.settle(ctx, now);
    }

    /// Lets a connection into a room. Answers whether that changed anything.
    fn let_in(&mut self, entering: Entering, now: Moment) -> Result<bool, JoinError> {
        let Entering { room, connection, .. } = &entering;
        let (room, connection) = (room.clone(), *connection);
        self.admit(&room, entering.user.as_ref(), &entering.info)?;
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
        if rewrite && self.cluster.is_some() {
            // Other nodes want to know whose presence it is, and that its client is here.
            self.mirror.mark_one(room, presence);
        }
        Ok(changed)
    }

    /// A join of the connection waits no longer; `None` if it has left meanwhile.
    fn unpark(&mut self, connection: ConnectionId) -> Option<()> {
        let parked = self.parked.get_mut(&connection)?;
        *parked -= 1;
        if *parked == 0 {
            self.parked.remove(&connection);
        }
        Some(())
    }
}

impl Handler<Leave> for RoomRegistry {
    type Result = Reply<bool>;

    fn handle(&mut self, msg: Leave, ctx: &mut Context<Self>) -> Self::Result {
        let room = msg.room.clone();
        self.in_turn(&room, ctx, move |registry, ctx| {
            let now = registry.clock.now();
            let Leave { room, connection, cause } = msg;
            let _span = tracing::debug_span!("leave", %room, %connection, %cause).entered();
            let diff = registry.rooms.leave(&room, connection, cause);
            let left = diff.is_some();
            registry.announce_leave(diff, cause, now);
            registry.settle(ctx, now);
            left
        })
    }
}

impl Handler<LeaveAll> for RoomRegistry {
    type Result = usize;

    fn handle(&mut self, msg: LeaveAll, ctx: &mut Context<Self>) -> usize {
        let now = self.clock.now();
        let LeaveAll { connection, cause } = msg;
        let _span = tracing::debug_span!("leave_all", %connection, %cause).entered();
        if !self.parked.is_empty() {
            self.parked.remove(&connection);
        }
        if self.rooms.has_ended(connection) && cause != Cause::Left {
            // Its presences fade, and may be another connection's soon.
            return 0;
        }
        let rooms = self.end_connection(connection, cause, now);
        self.settle(ctx, now);
        rooms
    }
}

impl Handler<Touch> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: Touch, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        self.touch(msg, now);
        self.go_on_with_turn(ctx, now);
    }
}

impl Handler<Together> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, Together { touches, joins }: Together, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        for touch in touches {
            self.touch(touch, now);
        }
        for join in joins {
            self.ask_to_join(join, ctx);
        }
        self.go_on_with_turn(ctx, now);
    }
}

impl RoomRegistry {
    fn touch(&mut self, Touch { connection, activity }: Touch, now: Moment) {
        if self.rooms.touch(connection, activity, now) {
            self.touches += 1;
            self.mirror.heard(connection);
        }
    }
}

impl Handler<UpdateInfo> for RoomRegistry {
    type Result = Reply<bool>;

    fn handle(&mut self, msg: UpdateInfo, ctx: &mut Context<Self>) -> Self::Result {
        let room = msg.room.clone();
        self.in_turn(&room, ctx, move |registry, ctx| {
            let now = registry.clock.now();
            let diff = registry.rooms.update_info(&msg.room, msg.connection, msg.info);
            let changed = diff.is_some();
            if let Some(diff) = diff {
                registry.announce(diff, now);
                registry.settle(ctx, now);
            }
            changed
        })
    }
}

impl Handler<Publish> for RoomRegistry {
    type Result = Reply<Result<usize, NotAMember>>;

    fn handle(&mut self, msg: Publish, ctx: &mut Context<Self>) -> Self::Result {
        self.publish_and_count(msg, COUNTING, ctx)
    }
}

impl Handler<Say> for RoomRegistry {
    type Result = Reply<Result<usize, NotAMember>>;

    fn handle(&mut self, Say(msg): Say, ctx: &mut Context<Self>) -> Self::Result {
        self.publish_and_count(msg, HOLDING_UP, ctx)
    }
}

impl RoomRegistry {
    fn publish_and_count(
        &mut self,
        msg: Publish,
        patience: Duration,
        ctx: &mut Context<Self>,
    ) -> Reply<Result<usize, NotAMember>> {
        let room = msg.room.clone();
        let taking = self.when_known(&room, ctx, |registry, ctx| registry.publish(msg, ctx));
        taking.then(move |taking| async move { Ok(taking?.count(patience).await) })
    }

    fn publish(&mut self, msg: Publish, ctx: &mut Context<Self>) -> Result<Taking, NotAMember> {
        let now = self.clock.now();
        let Publish { room, content, from, except } = msg;
        let _span = tracing::debug_span!("publish", %room).entered();
        let from = match from {
            Some(connection) => {
                let presence = self.rooms.presence_of(&room, connection).ok_or(NotAMember)?;
                let sender = self.rooms.presence(&room, presence).ok_or(NotAMember)?;
                self.rooms.touch(connection, Activity::Message, now);
                self.mirror.heard(connection);
                Some((
                    Sender { id: sender.presence.user, connection: presence },
                    sender.joined_version,
                ))
            }
            None => None,
        };
        let (from, joined) = from.unzip();
        let except = except.map(|one| self.rooms.presence_of(&room, one).unwrap_or(one));
        let abroad = self.cluster.as_ref().map(|_| (content.clone(), from.clone()));
        let taking = self.deliver(&room, content, from, joined, except, now);
        if let (Some(cluster), Some((content, from))) = (&mut self.cluster, abroad) {
            let from = from.map(|Sender { id, connection }| (id, connection));
            if cluster.tell_said(room.clone(), content, from, except) {
                let here = |remote: &&Remote| remote.record.fading.is_none();
                let others = self.rooms.remotes_in(&room).filter(here);
                let wanted = others.filter(|one| Some(one.record.presence.connection) != except);
                taking.add(wanted.count());
            }
        }
        self.messages.add(1);
        self.settle(ctx, now);
        Ok(taking)
    }

    /// Sends to the members of the room that are here, but for the connection of one presence. The version
    /// that brought the sender is `joined`, where that is known.
    pub(super) fn deliver(
        &mut self,
        room: &RoomName,
        content: Content,
        from: Option<Sender>,
        joined: Option<u64>,
        except: Option<ConnectionId>,
        now: Moment,
    ) -> Taking {
        let except = except.and_then(|presence| self.rooms.current_connection(room, presence));
        let joined = from.as_ref().map(|from| from.connection).zip(joined);
        let Some(room) = self.rooms.room(room) else { return Taking::none() };
        self.delivery.publish(room, Publication { content, from, joined, except }, now.monotonic)
    }
}

impl Handler<Kick> for RoomRegistry {
    type Result = Reply<usize>;

    fn handle(&mut self, msg: Kick, ctx: &mut Context<Self>) -> Self::Result {
        let now = self.clock.now();
        let elsewhere = self.remotes_of(&msg);
        let kicked = self.kick(&msg, now);
        self.settle(ctx, now);
        self.kick_elsewhere(msg, kicked, elsewhere, ctx)
    }
}

impl RoomRegistry {
    /// Puts out those who are here. Answers how many.
    pub(super) fn kick(&mut self, whom: &Kick, now: Moment) -> usize {
        let connections = match whom {
            Kick::Connection(id) => self.rooms.connections_known_as(*id),
            Kick::User(user) => self.rooms.connections_of(user),
        };
        let mut kicked = 0;
        for connection in connections {
            kicked += usize::from(self.leave_all(connection, Cause::Kicked, now) > 0);
        }
        match whom {
            // Its presences may have several connections behind them, and it is one all the same.
            Kick::Connection(_) => kicked.min(1),
            Kick::User(_) => kicked,
        }
    }

    /// Puts out everybody who is here. Answers how many.
    pub(super) fn close_room(&mut self, room: &RoomName, now: Moment) -> usize {
        let Some(diff) = self.rooms.close_room(room, Cause::RoomClosed) else { return 0 };
        let closed = diff.leaves.len();
        self.announce_leave(Some(diff), Cause::RoomClosed, now);
        closed
    }
}

impl Handler<CloseRoom> for RoomRegistry {
    type Result = Reply<usize>;

    fn handle(&mut self, CloseRoom { room }: CloseRoom, ctx: &mut Context<Self>) -> Self::Result {
        self.when_known(&room.clone(), ctx, move |registry, ctx| {
            let now = registry.clock.now();
            let mut closed = registry.close_room(&room, now);
            if let Some(cluster) = &mut registry.cluster
                && cluster.tell(BusMessage::Close { room: room.clone() })
            {
                closed += registry.rooms.remotes_in(&room).count();
            }
            registry.settle(ctx, now);
            closed
        })
    }
}

impl Handler<PrunePresences> for RoomRegistry {
    type Result = PruneReport;

    fn handle(&mut self, msg: PrunePresences, ctx: &mut Context<Self>) -> PruneReport {
        let now = self.clock.now();
        let _span = tracing::debug_span!("prune").entered();
        let mut diffs = self.rooms.prune(now, msg.age.unwrap_or(self.max_age));
        diffs.sort_unstable_by(|one, other| one.room.cmp(&other.room));
        let pruned = |diff: &Diff| Pruned {
            room: diff.room.clone(),
            presences: diff.leaves.iter().map(|left| left.presence.clone()).collect(),
        };
        let report = PruneReport { rooms: diffs.iter().map(pruned).collect() };
        for diff in diffs {
            tracing::info!(room = %diff.room, removed = diff.leaves.len(), "pruned silent presences");
            self.announce_leave(Some(diff), Cause::Expired, now);
        }
        self.shrink(now);
        self.settle(ctx, now);
        report
    }
}
