//! What comes from other nodes on the bus, and what it changes here.

use actix::prelude::*;

use super::RoomRegistry;
use crate::{
    bus::{AddressedMessage, BusEvent, BusMessage, Envelope, InvalidEnvelope, RoomMessage},
    cluster::{NodeEvent, RemoteChanges, SenderStatus},
    log_limit::LogLimit,
    messages::Kick,
    model::{
        Cause, Diff, Epoch, Moment, NodeName, Remote, RemoteChange, RemoteOutcome, RoomName,
        Sender, Yielded,
    },
};

impl Handler<BusEvent> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, msg: BusEvent, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let Some(cluster) = &mut self.cluster else { return };
        match msg {
            BusEvent::Up => {
                tracing::debug!("the bus is up");
                cluster.up(now);
                // Nodes that start need not wait for one another's next beat.
                cluster.beat();
                self.survey_is_due = true;
            }
            BusEvent::Down(why) => {
                tracing::debug!(why, "the bus is down");
                cluster.went_down(why);
            }
            BusEvent::Subscribed(channel) => cluster.subscribed(&channel),
            BusEvent::Received(envelope) => self.receive(envelope, now),
            BusEvent::Unreadable(InvalidEnvelope::Unverified) => {
                static UNVERIFIED: LogLimit = LogLimit::new();
                metrics::counter!("presence_bus_unverified_total").increment(1);
                if let Some(suppressed) = UNVERIFIED.pass() {
                    tracing::warn!(
                        suppressed,
                        "dropped what no node of this database has published on the bus: is Redis private?"
                    );
                }
            }
            BusEvent::Unreadable(error) => {
                static UNREADABLE: LogLimit = LogLimit::new();
                metrics::counter!("presence_bus_unreadable_total").increment(1);
                if let Some(suppressed) = UNREADABLE.pass() {
                    tracing::warn!(
                        %error,
                        suppressed,
                        "cannot decode a message of another node"
                    );
                }
            }
        }
        self.read(ctx);
        self.advance_batch(ctx, now);
    }
}

impl RoomRegistry {
    fn receive(&mut self, envelope: Envelope, now: Moment) {
        let Some(cluster) = &mut self.cluster else { return };
        if envelope.node == *cluster.me() {
            return;
        }
        if !cluster.note_number(&envelope) {
            metrics::counter!("presence_bus_repeated_total").increment(1);
            return;
        }
        let Envelope { node, incarnation, message, .. } = envelope;
        // Envelopes contain session keys, which must not be logged.
        tracing::trace!(me = %cluster.me(), %node, %incarnation, kind = kind_of(&message), "received");
        match cluster.peers.status_of(&node, incarnation) {
            SenderStatus::Ended => return,
            SenderStatus::Unconfirmed => {
                if let BusMessage::Heartbeat { .. } = message {
                    cluster.peers.is_heard(&node, now);
                }
                self.survey_is_due = true;
                return;
            }
            // The database will say whether there is such a node.
            SenderStatus::New => self.survey_is_due = true,
            SenderStatus::Known => {}
        }
        if is_irrevocable(&message) && !cluster.peers.is_listed(&node) {
            // It may be of a node that there was: somebody has kept it, and this node has not heard that one.
            self.survey_is_due = true;
            if !cluster.early.keep(node, incarnation, message) {
                metrics::counter!("presence_bus_repeated_total").increment(1);
            }
            return;
        }
        self.take_in(node, incarnation, message, now);
    }

    /// After a survey: what was heard of nodes before the database had shown them.
    pub(super) fn receive_kept(&mut self, now: Moment) {
        let Some(cluster) = &mut self.cluster else { return };
        for (node, incarnation, message) in cluster.early.take() {
            let Some(cluster) = &mut self.cluster else { return };
            let known = cluster.peers.status_of(&node, incarnation) == SenderStatus::Known;
            if known && cluster.peers.is_listed(&node) {
                self.take_in(node, incarnation, message, now);
            }
        }
    }

    fn take_in(&mut self, node: NodeName, incarnation: Epoch, message: BusMessage, now: Moment) {
        let Some(cluster) = &mut self.cluster else { return };
        match message {
            BusMessage::Changes(changes) => {
                if let Some(changes) = cluster.heard(&node, incarnation, changes) {
                    self.apply_remote(changes, now);
                }
            }
            BusMessage::Published(said) => self.deliver_remote(said, now),
            BusMessage::Addressed(AddressedMessage { to, content, from, except }) => {
                let from = from.map(|(user, connection)| Sender { user, connection });
                self.deliver_addressed(&to, content, from, None, except, now);
            }
            BusMessage::KickFrom { room, whom } => drop(self.kick_from(&room, &whom, now)),
            BusMessage::Heartbeat { number, rooms } => {
                cluster.beats(&node, incarnation, number, &rooms, now);
            }
            BusMessage::Continued { incarnation: next } => {
                cluster.continues(&node, incarnation, next);
            }
            BusMessage::Missed => cluster.read_all(),
            BusMessage::Stopping => {
                if cluster.peers.says_that_it_stops(&node) {
                    NodeEvent::Left { node }.log();
                }
            }
            BusMessage::Close { room } => drop(self.close_room(&room, now)),
            BusMessage::Kick(Kick::Connection(connection)) => {
                self.kick(&Kick::Connection(connection), now);
            }
            BusMessage::UpdateUser(update) => self.update_user(&update, now),
            BusMessage::Kick(Kick::User(user)) => drop(self.kick(&Kick::User(user), now)),
            BusMessage::Reaped { node, incarnation, leaving } => {
                self.was_reaped_elsewhere(&node, incarnation, leaving);
            }
        }
    }

    /// Another node says that it has removed what a dead one left: perhaps what this one left. The
    /// database knows whether that is so.
    fn was_reaped_elsewhere(&mut self, node: &NodeName, incarnation: Epoch, leaving: bool) {
        let Some(cluster) = &mut self.cluster else { return };
        if node == cluster.me() {
            if incarnation == cluster.incarnation() {
                self.renewal_is_due = true;
            }
            return;
        }
        cluster.peers.is_said_to_be_reaped(node, incarnation, leaving);
        self.survey_is_due = true;
    }

    /// Passes on to the members here what was published on another node.
    fn deliver_remote(&mut self, said: RoomMessage, now: Moment) {
        let RoomMessage { room, content, from, except } = said;
        let from = from.map(|(user, connection)| Sender { user, connection });
        // It may have overtaken the join of its sender; then there is nothing to wait for.
        let known = |from: &Sender| self.rooms.presence(&room, from.connection);
        let joined = from.as_ref().and_then(known).map(|seen| seen.joined_version);
        self.deliver(&room, content, from, joined, except, now);
    }

    /// Takes the changes of a room by another node into this one's.
    pub(super) fn apply_remote(&mut self, changes: RemoteChanges, now: Moment) {
        let Some(cluster) = &mut self.cluster else { return };
        let me = cluster.me().clone();
        let RemoteChanges { room, node, changes, yielded } = changes;
        let held = |one: &_| self.rooms.remote(&room, *one).is_some_and(|known| known.node == node);
        if yielded.iter().any(held) {
            cluster.read_later(&room);
        }
        let mut present = Vec::new();
        for change in &changes {
            match change {
                RemoteChange::Present(remote) => present.push(remote),
                // The other node held it, too, and has removed its row.
                RemoteChange::Gone { connection, .. } if self.rooms.holds(&room, *connection) => {
                    self.mirror.mark_one(room.clone(), *connection);
                }
                RemoteChange::Gone { .. } => {}
            }
        }
        self.end_rivals(&room, present.into_iter(), now);
        let outcome = self.rooms.apply_remote(&room, changes, &me);
        self.take_outcome(&room, &node, outcome, now);
    }

    pub(super) fn take_outcome(
        &mut self,
        room: &RoomName,
        node: &NodeName,
        outcome: RemoteOutcome,
        now: Moment,
    ) {
        for Yielded { presence, connection } in outcome.yielded {
            // Its client has come back on another node, which holds it from now on.
            self.mirror.mark_one(room.clone(), presence);
            self.adopted_orphan(presence, room);
            self.sessions.forget(room, presence);
            self.is_out_of(room, connection, Cause::Replaced);
        }
        if let Some(diff) = outcome.diff {
            self.announce_from(diff, node, false, now);
        }
        self.linger_if_empty(room, now);
    }

    /// A client session has one presence in a room, and one node holds it. Where two nodes took the client
    /// in without knowing of each other, one ends: that whose client is away, or else that of the older
    /// connection. All nodes judge by the same, the connection that is behind the presence *now*: so the
    /// connection that the client uses is not the one that is told to close.
    pub(super) fn end_rivals<'a>(
        &mut self,
        room: &RoomName,
        remotes: impl Iterator<Item = &'a Remote>,
        now: Moment,
    ) {
        for remote in remotes {
            let Some(session) = &remote.record.session else { continue };
            let user = remote.record.presence.user.as_ref();
            let Some(own) = self.sessions.presence_in(room, session, user) else { continue };
            let Some(connection) = self.rooms.current_connection(room, own) else { continue };
            let ours = (self.sessions.fading(own, room).is_none(), connection);
            let theirs = (remote.record.fading.is_none(), remote.current_connection());
            if own == remote.record.presence.connection {
                // It went there and came back here before this node heard of it.
                // A node of an earlier version names no connection; its generation decides.
                let named = remote.record.current_connection.is_some();
                let is_back = ours.0 && (!theirs.0 || (named && theirs < ours));
                if is_back && self.rooms.outbid(room, own, remote.record.generation) {
                    self.mirror.mark_one(room.clone(), own);
                }
            } else if ours < theirs {
                let diff = self.rooms.leave_together(room, &[own], Cause::Replaced);
                self.announce_leave(diff, Cause::Replaced, now);
            }
        }
    }

    /// Makes a change of presences known that this node does not hold; `ours` if it is the one to
    /// tell the observers of the cluster.
    pub(super) fn announce_from(&mut self, diff: Diff, node: &NodeName, ours: bool, now: Moment) {
        self.delivery.changed(&diff, self.rooms.room(&diff.room), now.monotonic);
        for left in &diff.leaves {
            let node = Some(node.clone());
            self.recent_leaves.remember(&diff.room, left, diff.version, node, now);
        }
        self.tell_user_observers(&diff, now);
        self.tell_observers(diff, node.clone(), ours, now);
    }
}

/// Whether nothing in the database can correct what a message does.
fn is_irrevocable(message: &BusMessage) -> bool {
    matches!(
        message,
        BusMessage::Published(_)
            | BusMessage::Addressed(_)
            | BusMessage::Close { .. }
            | BusMessage::Kick(_)
            | BusMessage::KickFrom { .. }
            | BusMessage::UpdateUser(_)
    )
}

fn kind_of(told: &BusMessage) -> &'static str {
    match told {
        BusMessage::Changes(_) => "changes",
        BusMessage::Published(_) | BusMessage::Addressed(_) => "message",
        BusMessage::Close { .. } => "close",
        BusMessage::Kick(_) | BusMessage::KickFrom { .. } => "kick",
        BusMessage::UpdateUser(_) => "user",
        BusMessage::Heartbeat { .. } => "beat",
        BusMessage::Reaped { .. } => "reaped",
        BusMessage::Continued { .. } => "continued",
        BusMessage::Stopping => "stopping",
        BusMessage::Missed => "missed",
    }
}
