//! The other nodes: what they tell, who lives, and the end of those that do not.

use std::time::Duration;

use actix::prelude::*;

use super::RoomRegistry;
use crate::{
    bus::{BusMessage, Envelope, RoomMessage},
    cluster::{Finding, Met, Need, beat_interval, cause_of, listen_interval, remote},
    log_limit::LogLimit,
    model::{Cause, Diff, Epoch, Moment, NodeName, RemoteChange, RoomName},
    store::{NodeRow, Reaped, Row, StoreError},
    wire::json::Sender,
};

/// How long nobody looks for nodes after that has failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How long it is at least from one look to the next, however much is heard of nodes.
const SURVEY_PAUSE: Duration = Duration::from_millis(50);

impl RoomRegistry {
    /// Beats, and listens for the beats of the other nodes, whether the database answers or not.
    pub(super) fn keep_hearing(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(beat_interval(self.lease), |registry, _| {
            if let Some(cluster) = &mut registry.cluster {
                cluster.beat();
            }
        });
        ctx.run_interval(listen_interval(self.lease), |registry, _| {
            let now = registry.clock.now();
            let Some(cluster) = &mut registry.cluster else { return };
            for (node, silence) in cluster.listen_for_beats(registry.lease, now) {
                let seconds = silence.as_secs();
                tracing::warn!(%node, seconds, "a node is not heard on the bus");
            }
        });
    }

    /// Somebody has told something.
    pub(super) fn heard(&mut self, envelope: Envelope, now: Moment) {
        let Some(cluster) = &mut self.cluster else { return };
        let Envelope { node, incarnation, message } = envelope;
        if node == *cluster.me() {
            return;
        }
        match cluster.peers.meet(&node, incarnation) {
            Met::Over => return,
            Met::Unsure => {
                if let BusMessage::Heartbeat { .. } = message {
                    cluster.peers.is_heard(&node, now);
                }
                self.survey_is_due = true;
                return;
            }
            Met::New | Met::Known => {}
        }
        match message {
            BusMessage::Changes(changes) => {
                if let Some(news) = cluster.heard(&node, incarnation, changes) {
                    self.take_news(news, now);
                }
            }
            BusMessage::Published(said) => {
                if cluster.peers.says(&node, said.number) {
                    self.said(said, now);
                }
            }
            BusMessage::Heartbeat { number, rooms } => {
                cluster.beats(&node, incarnation, number, &rooms, now);
            }
            BusMessage::Missed => cluster.read_all(),
            BusMessage::Stopping => {
                if cluster.peers.says_that_it_stops(&node) {
                    report(&Finding::Left { node });
                }
            }
            BusMessage::Close { room } => {
                self.close_room(&room, now);
            }
            BusMessage::Kick(kick) => {
                self.kick(&kick, now);
            }
            BusMessage::Reaped { node, incarnation, leaving } => {
                self.buried(&node, incarnation, leaving);
            }
        }
    }

    /// Passes on to the members here what was published on another node.
    fn said(&mut self, said: RoomMessage, now: Moment) {
        let RoomMessage { room, content, from, except, .. } = said;
        let from = from.map(|(id, connection)| Sender { id, connection });
        // Where it has overtaken the join of its sender, nothing can be waited for.
        let known = |from: &Sender| self.rooms.presence(&room, from.connection);
        let joined = from.as_ref().and_then(known).map(|seen| seen.joined_version);
        self.deliver(&room, content, from, joined, except, now);
    }

    /// Looks who lives.
    pub(super) fn survey(&mut self, ctx: &mut Context<Self>) {
        let Some(cluster) = &mut self.cluster else { return };
        if std::mem::replace(&mut self.surveying, true) {
            // The one under way may not have seen what this one is for.
            self.survey_is_due = true;
            return;
        }
        cluster.peers.ask();
        let now = self.clock.now().utc();
        let nodes = cluster.desk.ask(move |store| store.nodes(now));
        ctx.spawn(nodes.into_actor(self).map(|nodes, registry, ctx| match nodes {
            Ok(nodes) => {
                registry.surveyed(&nodes, ctx);
                registry.end_survey_after(SURVEY_PAUSE, ctx);
            }
            Err(error) => {
                static UNREADABLE: LogLimit = LogLimit::new();
                if let Some(suppressed) = UNREADABLE.pass() {
                    tracing::warn!(%error, suppressed, "the nodes cannot be read: nobody is judged");
                }
                registry.end_survey_after(AGAIN, ctx);
            }
        }));
    }

    fn end_survey_after(&mut self, pause: Duration, ctx: &mut Context<Self>) {
        ctx.run_later(pause, |registry, ctx| {
            registry.surveying = false;
            if std::mem::take(&mut registry.survey_is_due) {
                registry.survey(ctx);
            }
        });
    }

    fn surveyed(&mut self, nodes: &[NodeRow], ctx: &mut Context<Self>) {
        let now = self.clock.now();
        let Some(cluster) = &mut self.cluster else { return };
        let may_judge = cluster.peers.may_judge(self.lease, now);
        for finding in cluster.peers.survey(nodes) {
            report(&finding);
            match finding {
                Finding::Met { .. } | Finding::Left { .. } | Finding::Died { .. } => {}
                Finding::Reborn => {
                    if let Some(cluster) = &mut self.cluster {
                        cluster.read_all();
                    }
                }
                Finding::Gone { node, leaving } => {
                    self.lose(&node, cause_of(leaving), false, now);
                }
                Finding::Expired { node, incarnation } if may_judge => {
                    self.bury(node, incarnation, ctx);
                }
                Finding::Expired { .. } => {}
                Finding::Alive { node } => {
                    tracing::debug!(%node, "a node that was called dead lives by the database");
                    if let Some(cluster) = &mut self.cluster {
                        cluster.read_all();
                    }
                }
            }
        }
        self.judge_silence(now);
        self.verify(ctx);
        self.read(ctx);
        self.settle(ctx, now);
    }

    /// Removes what a dead node has left, unless it lives after all, or another was faster.
    fn bury(&mut self, node: NodeName, incarnation: Epoch, ctx: &mut Context<Self>) {
        let Some(cluster) = &self.cluster else { return };
        let (name, now) = (node.clone(), self.clock.now().utc());
        let burial = cluster.desk.ask(move |store| store.reap(&name, incarnation, now));
        ctx.spawn(burial.into_actor(self).map(move |burial, registry, ctx| {
            registry.was_buried(&node, incarnation, burial, ctx);
        }));
    }

    fn was_buried(
        &mut self,
        node: &NodeName,
        incarnation: Epoch,
        burial: Result<Reaped, StoreError>,
        ctx: &mut Context<Self>,
    ) {
        let now = self.clock.now();
        let Some(cluster) = &mut self.cluster else { return };
        match burial {
            Ok(Reaped::Removed { rows, leaving }) => {
                let presences = rows.len();
                tracing::debug!(%node, presences, leaving, "a node's lease has run out: its presences end");
                let (buried, incarnation) = (node.clone(), incarnation);
                cluster.tell(BusMessage::Reaped { node: buried.clone(), incarnation, leaving });
                if let Some(news) = cluster.peers.bury(node, incarnation) {
                    report(&news);
                }
                self.hear_last_of(node, rows, now);
                self.lose(node, cause_of(leaving), true, now);
            }
            // The next survey says so, unless who did it has.
            Ok(Reaped::Gone | Reaped::Alive) => {}
            Err(error) => {
                static UNREMOVABLE: LogLimit = LogLimit::new();
                if let Some(suppressed) = UNREMOVABLE.pass() {
                    tracing::warn!(%node, %error, suppressed, "a dead node cannot be removed");
                }
            }
        }
        self.read(ctx);
        self.settle(ctx, now);
    }

    /// What the rows of a dead node say that was not heard: each of its presences has to end here, so
    /// that observers hear of each end, and once.
    fn hear_last_of(&mut self, node: &NodeName, rows: Vec<Row>, now: Moment) {
        let Some(cluster) = &self.cluster else { return };
        let me = cluster.me().clone();
        let mut rooms: std::collections::BTreeMap<RoomName, Vec<RemoteChange>> = Default::default();
        for row in rows {
            let room = row.room.clone();
            if cluster.follows(&room) || self.observers.any() {
                rooms
                    .entry(room)
                    .or_default()
                    .push(RemoteChange::Present(remote(node.clone(), row)));
            }
        }
        for (room, heard) in rooms {
            let outcome = self.rooms.hear(&room, heard, &me);
            self.take_outcome(&room, node, outcome, now);
        }
    }

    /// Another node says that it has removed what a dead one left: perhaps what this one left. The
    /// database knows whether that is so.
    fn buried(&mut self, node: &NodeName, incarnation: Epoch, leaving: bool) {
        let Some(cluster) = &mut self.cluster else { return };
        if node == cluster.me() {
            if incarnation == cluster.incarnation() {
                self.renewal_is_due = true;
            }
            return;
        }
        cluster.peers.is_said_to_be_buried(node, incarnation, leaving);
        self.survey_is_due = true;
    }

    /// Names the nodes that live by the database and are not heard on the bus; all rooms are read
    /// meanwhile.
    fn judge_silence(&mut self, now: Moment) {
        let Some(cluster) = &mut self.cluster else { return };
        let unheard = cluster.judge_silence(self.lease, now);
        if !unheard.is_empty() {
            let nodes: Vec<_> = unheard.iter().map(NodeName::as_str).collect();
            let nodes = nodes.join(", ");
            tracing::warn!(
                nodes,
                "nodes that live by the database are not heard on the bus: do all use the same Redis? \
                 Rooms are read from the database once a lease"
            );
        }
    }

    /// The presences of a node have ended with it.
    fn lose(&mut self, node: &NodeName, cause: Cause, ours: bool, now: Moment) {
        if let Some(cluster) = &mut self.cluster {
            // It may have written what it did not get to tell: that it took presences of others.
            cluster.read_all();
        }
        for diff in self.rooms.lose(node, cause) {
            if ours {
                self.leaves.add(cause, diff.leaves.len());
            }
            let room = diff.room.clone();
            self.announce_from(diff, node, ours, now);
            self.linger_if_nobody_is_here(&room, now);
        }
    }

    /// This node was taken for dead, and its rows were removed: it lives on in a new incarnation. Others
    /// have seen its presences end, and see them come again.
    pub(super) fn reborn(&mut self, incarnation: Epoch, now: Moment) {
        let seen = self.mirror.begin_incarnation(&self.rooms);
        let Some(cluster) = &mut self.cluster else { return };
        cluster.reborn(incarnation);
        cluster.peers.renewed(false, self.lease, now);
        let me = cluster.me().clone();
        for (room, connections) in seen {
            let Some([left, back]) = self.rooms.revive(&room, &connections) else { continue };
            let changed: [(Diff, bool); 2] = [(left, false), (back, true)];
            for (diff, ours) in changed {
                self.delivery.changed_in_place(&diff, self.rooms.room(&room), now.monotonic);
                self.tell_observers(diff, me.clone(), ours);
            }
        }
    }

    /// Lets go of rooms that nobody here needs any more.
    pub(super) fn stop_lingering(&mut self, now: Moment) {
        let Self { cluster: Some(cluster), rooms, observers, waiting, .. } = self else { return };
        if !observers.follow_everything() {
            cluster.follow_everything_no_longer(now);
        }
        let everything = cluster.follows_everything();
        let needs = |room: &RoomName| {
            if rooms.holds_any(room) {
                return Need::Member;
            }
            let watched = observers.follow(room) || everything && rooms.room(room).is_some();
            if watched || waiting.contains_key(room) { Need::Passing } else { Need::None }
        };
        let mut gone = Vec::new();
        while let Some(room) = cluster.take_lingering(now, needs) {
            gone.push(room);
        }
        for room in gone {
            rooms.unfollow(&room);
        }
    }
}

/// One line for each arrival, each orderly leave and each death of another node.
fn report(finding: &Finding) {
    match finding {
        Finding::Met { node, again: false } => tracing::info!(%node, "met a node"),
        Finding::Met { node, again: true } => {
            tracing::info!(%node, "a node has come back under its name");
        }
        Finding::Left { node } => tracing::info!(%node, "a node has left"),
        Finding::Died { node } => tracing::warn!(%node, "a node has died: its presences end"),
        Finding::Gone { .. }
        | Finding::Expired { .. }
        | Finding::Reborn
        | Finding::Alive { .. } => {}
    }
}
