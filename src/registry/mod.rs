//! [`RoomRegistry`]: the actor that owns all rooms.
//!
//! It decides nothing. The model says what happened, and the registry makes it known: to the members,
//! the observers and the mirror. One short handler per message, one reading of the clock in each.

mod clustering;
mod following;
mod membership;
mod mirroring;
mod observing;
mod places;
mod pruner;
mod queries;
mod sessions;
mod stopping;
mod turns;
mod verifying;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

pub use self::pruner::Pruner;
use actix::prelude::*;
use ahash::RandomState;
use hashlink::LinkedHashMap;

use self::{following::Waiter, places::Places, sessions::UNRESUMABLE_DELAY, stopping::Farewells};
use crate::{
    clock::Clock,
    cluster::{Cluster, cause_of},
    counters::{Counter, LeaveCounters},
    delivery::{Delivery, Observers, Refused, Report},
    messages::{Decision, Explained, JoinError},
    mirror::Mirror,
    model::{
        Cause, ConnectionId, Diff, Info, Moment, NodeName, RecentLeaves, RoomName, Rooms, Sessions,
        UserId,
    },
    store::Row,
    supervision::Guard,
};

/// Messages that may wait for the registry before a sender that minds is refused.
const MAILBOX: usize = 4096;

pub(crate) type Authorize =
    Arc<dyn Fn(&RoomName, Option<&UserId>, &Info) -> Decision + Send + Sync>;

/// What an earlier life of a node has left.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    pub rows: Vec<Row>,
    /// Whether that life had stopped in order.
    pub stopped: bool,
}

/// What a registry needs to start.
pub(crate) struct Parts {
    pub rooms: Rooms,
    pub clock: Clock,
    pub mirror: Mirror,
    pub node: NodeName,
    /// Where there may be other nodes.
    pub cluster: Option<Box<Cluster>>,
    /// What an earlier life of this node had in the database.
    pub inherited: Inherited,
    pub authorize: Option<Authorize>,
    pub max_age: Duration,
    pub lease: Duration,
    pub grace: Duration,
    pub observer_queue: usize,
    pub max_list_size: usize,
    pub guard: Guard,
}

/// The actor that owns all rooms: who is where, right now.
///
/// Started by [`PresenceConfig::start`](crate::PresenceConfig::start); its messages are in
/// [`messages`](crate::messages). It never waits for a database, a session or an observer.
pub struct RoomRegistry {
    /// Dropped first: the writer and the reader end with the registry.
    _guard: Guard,
    pub(crate) rooms: Rooms,
    pub(crate) sessions: Sessions,
    recent_leaves: RecentLeaves<Explained>,
    places: Places,
    clock: Clock,
    delivery: Delivery,
    /// When the turn has begun, if it has.
    turn_begun: Option<u64>,
    observers: Observers,
    mirror: Mirror,
    node: NodeName,
    cluster: Option<Box<Cluster>>,
    /// What waits until all is known of a room.
    waiting: LinkedHashMap<RoomName, (u64, Vec<Waiter>), RandomState>,
    impatient: bool,
    /// Connections whose joins do, and how many.
    parked: HashMap<ConnectionId, usize, RandomState>,
    /// Presences that an earlier life of this node has left, and why they end if nobody asks for them.
    orphans: HashSet<(ConnectionId, RoomName), RandomState>,
    orphaned: Cause,
    /// Those of them for which nobody can ask.
    unresumable: Vec<(RoomName, ConnectionId)>,
    /// Others have removed this node's rows: its lease is to be renewed at once.
    renewal_is_due: bool,
    /// A node is heard of that the database has to know more of.
    survey_is_due: bool,
    surveying: bool,
    authorize: Option<Authorize>,
    max_age: Duration,
    lease: Duration,
    grace: Duration,
    closing: bool,
    farewells: Option<Farewells>,
    started: Moment,
    joins: Counter,
    leaves: LeaveCounters,
    /// Too many to report one by one.
    touches: u64,
    messages: Counter,
    /// The one timer for member lists that wait and stays that fade, and when it fires.
    timer: Option<(u64, SpawnHandle)>,
}

impl RoomRegistry {
    pub(crate) fn new(parts: Parts) -> Self {
        let mut registry = Self {
            _guard: parts.guard,
            started: parts.clock.now(),
            joins: Counter::new("presence_joins_total"),
            leaves: LeaveCounters::new(),
            touches: 0,
            messages: Counter::new("presence_messages_total"),
            rooms: parts.rooms,
            sessions: Sessions::default(),
            recent_leaves: RecentLeaves::default(),
            places: Places::default(),
            clock: parts.clock,
            delivery: Delivery::new(parts.max_list_size),
            turn_begun: None,
            observers: Observers::new(parts.observer_queue),
            mirror: parts.mirror,
            node: parts.node,
            cluster: parts.cluster,
            waiting: LinkedHashMap::default(),
            impatient: false,
            parked: HashMap::default(),
            orphans: HashSet::default(),
            orphaned: cause_of(parts.inherited.stopped),
            unresumable: Vec::new(),
            renewal_is_due: false,
            survey_is_due: false,
            surveying: false,
            authorize: parts.authorize,
            max_age: parts.max_age,
            lease: parts.lease,
            grace: parts.grace,
            closing: false,
            farewells: None,
            timer: None,
        };
        registry.inherit(parts.inherited.rows);
        registry
    }

    /// Whether the app lets the user in.
    fn admit(&self, room: &RoomName, user: Option<&UserId>, info: &Info) -> Result<(), JoinError> {
        if self.closing {
            return Err(JoinError::ShuttingDown);
        }
        let Some(authorize) = &self.authorize else { return Ok(()) };
        // The hook is the app's; its panic must not end everybody's presence.
        let decision = std::panic::catch_unwind(AssertUnwindSafe(|| authorize(room, user, info)));
        match decision {
            Ok(Decision::Allow) => Ok(()),
            Ok(Decision::Deny(reason)) => Err(JoinError::Denied { reason }),
            Err(_) => {
                tracing::error!(%room, "the authorize hook panicked: join denied");
                Err(JoinError::Denied { reason: "authorization failed".into() })
            }
        }
    }

    /// Gives back the space of a crowd that has gone.
    fn shrink(&mut self, now: Moment) {
        self.recent_leaves.shrink(now);
        self.rooms.shrink();
        self.sessions.shrink();
        self.delivery.shrink();
        self.mirror.shrink();
    }

    /// Makes a change known.
    fn announce(&mut self, diff: Diff, now: Moment) {
        self.mirror.mark(&diff, &self.rooms);
        self.delivery.changed(&diff, self.rooms.room(&diff.room), now.monotonic);
        for left in &diff.leaves {
            self.end(&diff, left, now);
        }
        self.linger_if_nobody_is_here(&diff.room, now);
        self.tell_observers(diff, self.node.clone(), true);
    }

    /// Members that do not take their frames leave.
    fn put_out(&mut self, refused: &Refused, now: Moment) {
        if !refused.slow.is_empty() {
            let slow = refused.slow.len() as u64;
            metrics::counter!("presence_slow_consumers_total").increment(slow);
        }
        let slow = refused.slow.iter().map(|connection| (*connection, Cause::SlowConsumer));
        let gone = refused.gone.iter().map(|connection| (*connection, Cause::Disconnected));
        for (connection, cause) in slow.chain(gone) {
            self.end_connection(connection, cause, now);
        }
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
        ctx.set_mailbox_capacity(MAILBOX);
        self.delivery.report_to(ctx.address().downgrade().recipient());
        self.keep_mirror(ctx);
        if let Some(cluster) = &mut self.cluster {
            cluster.listen(ctx.address().recipient());
        }
        let now = self.clock.now();
        self.settle(ctx, now);
        ctx.run_later(UNRESUMABLE_DELAY, |registry, ctx| {
            let now = registry.clock.now();
            registry.end_unresumable();
            registry.settle(ctx, now);
        });
    }
}

impl Handler<Report> for RoomRegistry {
    type Result = ();

    fn handle(&mut self, report: Report, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        self.delivery.returned(report, now.monotonic);
        self.settle(ctx, now);
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
