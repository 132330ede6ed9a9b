//! [`RoomRegistry`]: the actor that owns all rooms.
//!
//! The model says what happened, and the registry makes it known: to the members, the observers and the
//! mirror. One short handler per message; each operation reads the clock once. What is sent waits for the end of a
//! batch: [`batches`].
//!
//! On one node that is [`membership`], [`authorizing`] with the [`authorizations`] that wait for the app's hook,
//! [`publishing`], [`kicking`], [`sessions`], [`queries`], [`mirroring`] and [`draining`], and [`users`] over all their
//! rooms. Where other nodes share the rooms, [`commands`] holds what has to wait for them, [`sharing`] passes on what
//! handlers do, and [`receiving`], [`reading`] and [`nodes`] take in what comes from them; [`timekeeping`] makes their
//! times comparable.

mod authorizations;
mod authorizing;
mod batches;
mod commands;
mod draining;
mod gauges;
mod kicking;
mod membership;
mod mirroring;
mod nodes;
mod pruner;
mod publishing;
mod queries;
mod reading;
mod receiving;
mod registered;
mod rights;
mod sessions;
#[cfg(any(test, feature = "testing"))]
mod settling;
mod sharing;
mod timekeeping;
mod users;

use std::{collections::HashSet, fmt, rc::Rc, sync::Arc, time::Duration};

pub use self::pruner::Pruner;
#[cfg(any(test, feature = "testing"))]
pub(crate) use self::settling::Settle;
pub(crate) use self::{
    authorizing::{AsyncHook, Authorize, AuthorizeAsync, Hooks},
    gauges::Gauges,
    queries::DrainObservers,
    timekeeping::ClockOffset,
};
use actix::prelude::*;
use ahash::RandomState;

use self::{
    commands::CommandQueue,
    draining::Draining,
    registered::Registered,
    rights::LimitedRights,
    sessions::{Places, UNRESUMABLE_DELAY},
    sharing::Unanswered,
};
use crate::{
    clock::Clock,
    cluster::{Cluster, cause_of},
    counters::{Counter, LeaveCounters},
    delivery::{Delivery, DeliveryReport, Observers, UserObservers},
    messages::{CRASHED, Change, GOING_AWAY, PresenceChanged},
    mirror::Mirror,
    model::{
        Cause, ConnectionId, Diff, Left, Moment, NodeName, RecentLeaves, RoomName, Rooms, Sessions,
        Snapshot,
    },
    store::Row,
    supervision::Guard,
};

/// How many messages may wait for the registry before `try_send` refuses another.
const REGISTRY_MAILBOX_CAPACITY: usize = 4096;

/// The rows that an earlier process of this node has left.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    pub rows: Vec<Row>,
    /// Whether that process had shut down.
    pub stopped: bool,
}

/// What a registry needs to start.
pub(crate) struct Parts {
    pub rooms: Rooms,
    pub clock: Clock,
    pub mirror: Mirror,
    pub node: NodeName,
    /// If the database is shared.
    pub cluster: Option<Box<Cluster>>,
    /// What an earlier process of this node had in the database.
    pub inherited: Inherited,
    pub hooks: Hooks,
    pub max_age: Duration,
    pub lease: Duration,
    pub grace: Duration,
    pub observer_queue: usize,
    pub max_list_size: usize,
    pub gauges: Gauges,
    pub guard: Guard,
}

/// The actor that owns all rooms: who is where, right now.
///
/// Started by [`PresenceConfig::start`](crate::PresenceConfig::start). The messages that it takes are
/// listed below as its [`Handler`]s. It never waits for a database, a session or an observer.
pub struct RoomRegistry {
    /// Dropped first: the writer and the reader end with the registry.
    guard: Guard,
    pub(crate) rooms: Rooms,
    pub(crate) sessions: Sessions,
    recent_leaves: RecentLeaves,
    places: Places,
    registered: Registered,
    clock: Clock,
    delivery: Delivery,
    /// When the batch under way began, if one is: see [`advance_batch`](Self::advance_batch).
    batch_begun: Option<u64>,
    observers: Observers,
    user_observers: UserObservers,
    mirror: Mirror,
    node: NodeName,
    cluster: Option<Box<Cluster>>,
    /// The commands that wait until their room is known.
    commands: CommandQueue,
    /// Presences of an earlier process of this node, and why they end unless their clients come back.
    orphans: HashSet<(ConnectionId, RoomName), RandomState>,
    orphaned: Cause,
    /// Those of them without a session key, which cannot be resumed.
    unresumable: Vec<(RoomName, ConnectionId)>,
    /// Other nodes have removed the rows of this one: its lease is to be renewed at once.
    renewal_is_due: bool,
    /// A node was heard of that the database has to confirm.
    survey_is_due: bool,
    surveying: bool,
    unanswered: Unanswered,
    /// Rows are to be compared with memory, once the lease is renewed.
    surplus_is_due: bool,
    /// Shared with the counts of receivers that the database is asked for.
    counting: Rc<()>,
    measuring_clock: bool,
    clock_is_off: bool,
    hooks: Hooks,
    rights: LimitedRights,
    max_age: Duration,
    lease: Duration,
    grace: Duration,
    closing: bool,
    draining: Option<Draining>,
    started: Moment,
    joins: Counter,
    leaves: LeaveCounters,
    /// Too many to report one by one.
    touches: u64,
    messages: Counter,
    gauges: Gauges,
    /// The one timer for all that is due later, and when it fires.
    timer: Option<(u64, SpawnHandle)>,
}

impl RoomRegistry {
    pub(crate) fn new(parts: Parts) -> Self {
        let mut registry = Self {
            guard: parts.guard,
            started: parts.clock.now(),
            joins: Counter::new("presence_joins_total"),
            leaves: LeaveCounters::new(),
            touches: 0,
            messages: Counter::new("presence_messages_total"),
            gauges: parts.gauges,
            rooms: parts.rooms,
            sessions: Sessions::default(),
            recent_leaves: RecentLeaves::default(),
            places: Places::default(),
            registered: Registered::default(),
            clock: parts.clock,
            delivery: Delivery::new(parts.max_list_size),
            batch_begun: None,
            observers: Observers::new(parts.observer_queue),
            user_observers: UserObservers::new(parts.observer_queue),
            mirror: parts.mirror,
            node: parts.node,
            cluster: parts.cluster,
            commands: CommandQueue::default(),
            orphans: HashSet::default(),
            orphaned: cause_of(parts.inherited.stopped),
            unresumable: Vec::new(),
            renewal_is_due: false,
            survey_is_due: false,
            surveying: false,
            unanswered: Unanswered::default(),
            surplus_is_due: false,
            counting: Rc::default(),
            measuring_clock: false,
            clock_is_off: false,
            hooks: parts.hooks,
            rights: LimitedRights::default(),
            max_age: parts.max_age,
            lease: parts.lease,
            grace: parts.grace,
            closing: false,
            draining: None,
            timer: None,
        };
        registry.inherit(parts.inherited.rows);
        registry
    }

    /// Frees unused memory after a crowd has left.
    fn shrink(&mut self, now: Moment) {
        self.recent_leaves.shrink(now);
        self.rooms.shrink();
        self.sessions.shrink();
        self.registered.shrink();
        self.delivery.shrink();
        self.mirror.shrink();
    }

    /// Publishes a change to the members, the observers and the mirror.
    fn announce(&mut self, diff: Diff, now: Moment) {
        self.mirror.mark(&diff, &self.rooms);
        self.delivery.changed(&diff, self.rooms.room(&diff.room), now.monotonic);
        for left in &diff.leaves {
            self.end(&diff, left, now);
        }
        self.linger_if_empty(&diff.room, now);
        self.tell_user_observers(&diff, now);
        self.tell_observers(diff, self.node.clone(), true, now);
    }

    /// A presence has ended: remembers that, and closes its connection if it is in no other room.
    fn end(&mut self, diff: &Diff, left: &Left, now: Moment) {
        let presence = left.presence.connection;
        self.sessions.forget(&diff.room, presence);
        self.adopted_orphan(presence, &diff.room);
        self.is_out_of(&diff.room, left.connection, left.cause);
        self.recent_leaves.remember(&diff.room, left, diff.version, None, now);
    }

    fn tell_observers(&mut self, diff: Diff, node: NodeName, ours: bool, now: Moment) {
        if self.observers.any() {
            let after = self.rooms.snapshot(&diff.room);
            self.tell_observers_with(diff, after, node, ours, now);
        }
    }

    /// Notifies observers of a change, with the room after it; with `ours` also those that hear of each change
    /// once in the cluster.
    fn tell_observers_with(
        &mut self,
        diff: Diff,
        after: Snapshot,
        node: NodeName,
        ours: bool,
        now: Moment,
    ) {
        let event = PresenceChanged {
            room: diff.room.clone(),
            epoch: after.epoch(),
            version: diff.version,
            snapshot: after,
            node,
            at: now.utc(),
            change: Change::Diff(Arc::new(diff)),
        };
        self.observers.tell(&event, ours);
    }

    fn leave_all(&mut self, connection: ConnectionId, cause: Cause, now: Moment) -> usize {
        let diffs = self.rooms.leave_all(connection, cause);
        let rooms = diffs.len();
        for diff in diffs {
            self.announce_leave(Some(diff), cause, now);
        }
        rooms
    }

    fn announce_leave(&mut self, diff: Option<Diff>, cause: Cause, now: Moment) {
        let Some(diff) = diff else { return };
        self.leaves.add(cause, diff.leaves.len());
        for left in &diff.leaves {
            let (room, connection) = (&diff.room, left.presence.connection);
            tracing::debug!(%room, %connection, version = diff.version, %cause, "left");
        }
        self.announce(diff, now);
    }
}

impl Actor for RoomRegistry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(REGISTRY_MAILBOX_CAPACITY);
        self.delivery.report_to(ctx.address().downgrade().recipient());
        self.keep_mirror(ctx);
        self.judge_clock();
        if let Some(cluster) = &mut self.cluster {
            cluster.listen(ctx.address().recipient());
            // The bus waits for the identity that the database has.
            self.survey_is_due = cluster.is_shared();
        }
        let now = self.clock.now();
        self.advance_batch(ctx, now);
        ctx.run_later(UNRESUMABLE_DELAY, |registry, ctx| {
            let now = registry.clock.now();
            registry.end_unresumable();
            registry.advance_batch(ctx, now);
        });
    }
}

impl Handler<DeliveryReport> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, report: DeliveryReport, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        self.delivery.take_report(report, now.monotonic);
        self.advance_batch(ctx, now);
    }
}

impl Drop for RoomRegistry {
    /// A registry that shuts down has told all sessions, unless it had too little time: then it tells the others now.
    /// After a crash those in rooms hear of it from their dispatchers, and those in none from this.
    fn drop(&mut self) {
        let order = self.order_of_stop().or(self.guard.is_stopping().then_some(GOING_AWAY));
        let Self { registered, rooms, delivery, .. } = self;
        match order {
            Some(order) => {
                for told in delivery.order_all_to_close(order) {
                    registered.note_told(told);
                }
                registered.tell(order);
            }
            None => {
                registered.tell_those(CRASHED, |connection| rooms.last_seen(connection).is_none());
            }
        }
    }
}

impl fmt::Debug for RoomRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomRegistry")
            .field("rooms", &self.rooms.room_count())
            .field("connections", &self.rooms.connection_count())
            .field("closing", &self.closing)
            .finish_non_exhaustive()
    }
}
