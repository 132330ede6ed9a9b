//! The other nodes: who lives, and the end of those that do not.

use std::{collections::BTreeMap, error::Error, time::Duration};

use actix::prelude::*;

use super::{
    RoomRegistry,
    sharing::{count_unanswered, query_error},
};
use crate::{
    bus::{BusMessage, ClusterIdentity},
    cluster::{Interest, NodeEvent, beat_interval, cause_of, listen_interval, remote},
    log_limit::LogLimit,
    model::{Cause, Epoch, Moment, NodeName, RemoteChange, RoomName},
    store::{NodeRow, Reaped, Row, StoreError},
};

/// How long after a failure the nodes are surveyed again.
const SURVEY_RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long it is at least from one survey to the next, however much is heard of nodes.
const SURVEY_PAUSE: Duration = Duration::from_millis(50);

impl RoomRegistry {
    /// Beats, and listens for the beats of the other nodes, whether the database answers or not.
    pub(super) fn start_beating(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(beat_interval(self.lease), |registry, _| {
            if let Some(cluster) = &mut registry.cluster {
                cluster.beat();
                if registry.closing {
                    cluster.tell(BusMessage::Stopping);
                }
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

    /// Asks the database which nodes live.
    pub(super) fn survey(&mut self, ctx: &mut Context<Self>) {
        let Some(cluster) = &mut self.cluster else { return };
        if std::mem::replace(&mut self.surveying, true) {
            // The one under way may not see what this one is for.
            self.survey_is_due = true;
            return;
        }
        cluster.peers.ask();
        let now = self.clock.now().utc();
        let is_shared = cluster.is_shared();
        let asked = cluster.reader.ask(move |store| {
            // A database that may only be read has nodes, and perhaps no identity.
            let identity = is_shared.then(|| store.identity());
            Ok((identity, store.nodes(now)?))
        });
        ctx.spawn(asked.into_actor(self).map(|answer, registry, ctx| {
            let answer = answer.map_err(query_error);
            registry.unanswered.note(&answer);
            match answer {
                Ok((identity, nodes)) => {
                    let identified = registry.identified(identity);
                    registry.surveyed(&nodes, ctx);
                    let pause = if identified { SURVEY_PAUSE } else { SURVEY_RETRY_DELAY };
                    registry.end_survey_after(pause, ctx);
                }
                Err(error) => {
                    count_unanswered(&error);
                    static UNREADABLE: LogLimit = LogLimit::new();
                    if let Some(suppressed) = UNREADABLE.pass() {
                        let error = &error as &dyn Error;
                        tracing::warn!(
                            error,
                            suppressed,
                            "cannot read the node table: no node is declared dead"
                        );
                    }
                    registry.has_no_identity();
                    registry.end_survey_after(SURVEY_RETRY_DELAY, ctx);
                }
            }
        }));
    }

    /// Takes what the database has answered about the identity that its nodes have on the bus; answers
    /// whether there is one now.
    fn identified(&mut self, answer: Option<Result<ClusterIdentity, StoreError>>) -> bool {
        let Some(cluster) = &mut self.cluster else { return true };
        match answer {
            Some(Ok(identity)) => cluster.identify(identity),
            Some(Err(error)) => {
                static UNREADABLE: LogLimit = LogLimit::new();
                if let Some(suppressed) = UNREADABLE.pass() {
                    let error = &error as &dyn Error;
                    tracing::warn!(
                        error,
                        suppressed,
                        "cannot read the key of the bus from the database"
                    );
                }
                self.has_no_identity();
                return false;
            }
            None => {}
        }
        true
    }

    /// The identity could not be read, and is asked for again soon unless an earlier one is known.
    fn has_no_identity(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.has_no_identity();
            self.survey_is_due |= cluster.lacks_identity();
        }
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
        for event in cluster.peers.survey(nodes) {
            event.log();
            match event {
                NodeEvent::Joined { .. } | NodeEvent::Left { .. } | NodeEvent::Died { .. } => {}
                NodeEvent::Restarted | NodeEvent::Recovered { .. } => {
                    if let Some(cluster) = &mut self.cluster {
                        cluster.read_all();
                    }
                }
                NodeEvent::Gone { node, leaving } => {
                    self.lose(&node, cause_of(leaving), false, now);
                }
                NodeEvent::Expired { node, incarnation } if may_judge => {
                    self.reap(node, incarnation, ctx);
                }
                NodeEvent::Expired { .. } => {}
            }
        }
        self.receive_kept(now);
        self.judge_silence(now);
        self.verify(ctx);
        self.read(ctx);
        self.advance_batch(ctx, now);
    }

    /// Removes what a dead node has left, unless it lives after all, or another was faster.
    fn reap(&mut self, node: NodeName, incarnation: Epoch, ctx: &mut Context<Self>) {
        let Some(cluster) = &self.cluster else { return };
        let (name, now) = (node.clone(), self.clock.now().utc());
        let reaped = cluster.background.ask(move |store| store.reap(&name, incarnation, now));
        ctx.spawn(reaped.into_actor(self).map(move |reaped, registry, ctx| {
            let now = registry.clock.now();
            registry.was_reaped(&node, incarnation, reaped, now);
            registry.read(ctx);
            registry.advance_batch(ctx, now);
        }));
    }

    fn was_reaped(
        &mut self,
        node: &NodeName,
        incarnation: Epoch,
        reaped: Result<Reaped, StoreError>,
        now: Moment,
    ) {
        let Some(cluster) = &mut self.cluster else { return };
        match reaped {
            Ok(Reaped::Removed { rows, leaving }) => {
                let presences = rows.len();
                tracing::debug!(%node, presences, leaving, "a node's lease has run out: its presences end");
                cluster.tell(BusMessage::Reaped { node: node.clone(), incarnation, leaving });
                if let Some(event) = cluster.peers.end(node, incarnation) {
                    event.log();
                }
                self.apply_last_rows(node, rows, now);
                self.lose(node, cause_of(leaving), true, now);
            }
            // The next survey tells, unless the node that did it has.
            Ok(Reaped::Gone | Reaped::Alive) => {}
            Err(error) => {
                static UNREMOVABLE: LogLimit = LogLimit::new();
                if let Some(suppressed) = UNREMOVABLE.pass() {
                    let error = &error as &dyn Error;
                    tracing::warn!(%node, error, suppressed, "a dead node cannot be removed");
                }
            }
        }
    }

    /// What the rows of a dead node say that was not heard: each of its presences has to end here, so
    /// that observers hear of each end, and once.
    fn apply_last_rows(&mut self, node: &NodeName, rows: Vec<Row>, now: Moment) {
        let Some(cluster) = &self.cluster else { return };
        let me = cluster.me().clone();
        let mut rooms: BTreeMap<RoomName, Vec<RemoteChange>> = BTreeMap::new();
        for row in rows {
            let room = row.room.clone();
            if cluster.follows(&room) || self.observers.any() {
                let present = RemoteChange::Present(remote(node.clone(), row));
                rooms.entry(room).or_default().push(present);
            }
        }
        for (room, changes) in rooms {
            let outcome = self.rooms.apply_remote(&room, changes, &me);
            self.take_outcome(&room, node, outcome, now);
        }
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
            self.linger_if_empty(&room, now);
        }
    }

    /// This node was taken for dead, and its rows were removed: it goes on in a new incarnation. Others
    /// have seen its presences end, and see them come again.
    pub(super) fn register_again(&mut self, incarnation: Epoch, now: Moment) {
        let seen = self.mirror.begin_incarnation(&self.rooms);
        let Some(cluster) = &mut self.cluster else { return };
        cluster.register_again(incarnation);
        cluster.peers.renewed(false, self.lease, now);
        let me = cluster.me().clone();
        for (room, presences) in seen {
            let mut between = self.rooms.snapshot(&room);
            let Some([left, back]) = self.rooms.reregister(&room, &presences) else { continue };
            between.apply(&left);
            self.delivery.changed_in_place(&left, self.rooms.room(&room), now.monotonic);
            self.tell_observers_with(left, between, me.clone(), false, now);
            self.delivery.changed_in_place(&back, self.rooms.room(&room), now.monotonic);
            self.tell_observers(back, me.clone(), true, now);
        }
    }

    /// Lets go of rooms that nobody here needs any more.
    pub(super) fn stop_lingering(&mut self, now: Moment) {
        let Self { cluster: Some(cluster), rooms, observers, user_observers, commands, .. } = self
        else {
            return;
        };
        if !observers.follow_everything() && !user_observers.any() {
            cluster.follow_everything_no_longer(now);
        }
        let everything = cluster.follows_everything();
        let interest = |room: &RoomName| {
            if rooms.holds_any(room) {
                return Interest::Member;
            }
            let watched = observers.follow(room) || everything && rooms.room(room).is_some();
            if watched || commands.has(room) { Interest::Passing } else { Interest::None }
        };
        let mut gone = Vec::new();
        while let Some(room) = cluster.take_lingering(now, interest) {
            gone.push(room);
        }
        for room in gone {
            rooms.unfollow(&room);
        }
    }
}
