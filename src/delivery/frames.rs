//! Member lists at one version, each as the full list or as the diff from the version that a listener has. Each
//! frame is encoded at most once, by the first thread that needs it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ahash::RandomState;
use bytestring::ByteString;

use crate::{
    clock::Stopwatch,
    log_limit::LogLimit,
    messages::{Dialect, Feed},
    model::{Cause, Diff, Position, RoomName, Snapshot, Update, UserId, micros},
    wire::{json, phoenix},
};

/// What may differ between two versions of a room, with the version of its last change.
#[derive(Default)]
pub(super) struct Changes {
    /// Users whose entry may have changed, with the cause of the last leave.
    users: HashMap<UserId, (Cause, u64), RandomState>,
    /// Positions of presences that joined, left or changed, with the cause of the last leave.
    places: BTreeMap<Position, (Cause, u64)>,
}

impl Changes {
    pub fn note(&mut self, diff: &Diff) {
        let Self { users, places } = self;
        let version = diff.version;
        for user in diff.users() {
            users.entry(user.clone()).or_insert((Cause::Left, version)).1 = version;
        }
        for left in &diff.offline {
            users.insert(left.user.clone(), (left.cause, version));
        }
        let mut touch = |place| places.entry(place).or_insert((Cause::Left, version)).1 = version;
        diff.joins.iter().for_each(|joined| touch(joined.into()));
        for Update { before, after } in &diff.updates {
            touch(before.into());
            touch(after.into());
        }
        for left in &diff.leaves {
            places.insert((&left.presence).into(), (left.cause, version));
        }
    }

    pub fn places(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.places.is_empty()
    }
}

/// Size and cost of a room's full list in one frame.
#[derive(Debug, Default)]
pub(super) struct FrameSize {
    /// How many connections the room had if the last encoding was over the limit; otherwise 0.
    too_large: AtomicUsize,
    micros: AtomicU64,
}

/// The sizes of a room's full list, shared by its successive lists.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// How many bytes a full list may have.
    pub limit: usize,
    frames: [FrameSize; 3],
}

impl Sizes {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, ..Self::default() })
    }

    /// Whether the last encoding was too large and the room is not much smaller now: then another attempt
    /// would be wasted.
    pub fn is_too_large(&self, frame: FullFrame, room: &Snapshot) -> bool {
        let then = self.frames[frame as usize].too_large.load(Relaxed);
        then > 0 && well_below(then) <= room.occupancy().connections
    }

    /// How long the last encoding of the frame `presence` took.
    pub fn presence_cost(&self) -> Duration {
        Duration::from_micros(self.frames[FullFrame::Presence as usize].micros.load(Relaxed))
    }

    /// Encodes the full list, unless it is over the limit. After one that was, the limit is lower, so that a
    /// room of about that size does not alternate with each join.
    fn encode(&self, frame: FullFrame, room: &Snapshot) -> Option<ByteString> {
        let FrameSize { too_large, micros: cost } = &self.frames[frame as usize];
        let was_too_large = too_large.load(Relaxed) > 0;
        let limit = if was_too_large { well_below(self.limit) } else { self.limit };
        let work = Stopwatch::start();
        let encoded = match frame {
            FullFrame::Presence => json::presence_within(limit, room),
            FullFrame::State => json::presence_state_within(limit, room),
            FullFrame::Phoenix => phoenix::presence_state_within(limit, room),
        };
        cost.store(micros(work.elapsed()), Relaxed);
        let connections = room.occupancy().connections.max(1);
        too_large.store(if encoded.is_none() { connections } else { 0 }, Relaxed);
        if encoded.is_none() && !was_too_large {
            static TOO_LARGE: LogLimit = LogLimit::new();
            metrics::counter!("presence_lists_truncated_total").increment(1);
            if let Some(suppressed) = TOO_LARGE.pass() {
                let (room, limit) = (room.room(), self.limit);
                tracing::warn!(
                    %room,
                    limit,
                    suppressed,
                    "a member list is too large: counts are sent instead of it"
                );
            }
        }
        encoded
    }
}

pub(super) const fn well_below(limit: usize) -> usize {
    limit - limit.div_ceil(10)
}

/// The frames that hold a full list.
#[derive(Clone, Copy, Debug)]
pub(super) enum FullFrame {
    /// `presence` of the JSON dialect.
    Presence,
    /// `presence_state` of the JSON dialect.
    State,
    /// `presence_state` of Phoenix.
    Phoenix,
}

impl FullFrame {
    /// The dialect's frame, if it has one.
    pub fn of(dialect: Dialect) -> Option<Self> {
        match dialect {
            Dialect::Json(Feed::Full) => Some(Self::Presence),
            Dialect::Json(Feed::Diff) => Some(Self::State),
            Dialect::Phoenix => Some(Self::Phoenix),
            Dialect::Raw | Dialect::Json(Feed::Count | Feed::None) => None,
        }
    }
}

/// A frame that is encoded at most once; `None` if it is too large.
type Once = OnceLock<Option<ByteString>>;

/// A version that listeners have, with the diffs from it.
struct Base {
    before: Snapshot,
    json: Once,
    phoenix: Once,
}

/// The member list of a room at one version.
pub(super) struct List {
    after: Snapshot,
    /// In ascending order.
    bases: Vec<Base>,
    /// Since the first of the bases.
    changes: Changes,
    /// Whether another list follows soon, which is the next attempt to encode what was too large.
    another_follows: bool,
    sizes: Arc<Sizes>,
    full_frames: [Once; 3],
    count: OnceLock<ByteString>,
    truncated: OnceLock<ByteString>,
    phoenix_count: OnceLock<ByteString>,
    phoenix_truncated: OnceLock<ByteString>,
}

impl List {
    /// A full list without diffs.
    pub fn full(after: Snapshot, sizes: &Arc<Sizes>) -> Self {
        Self::since(Vec::new(), after, Changes::default(), sizes)
    }

    /// Sets whether another list follows soon.
    pub fn followed(self, another_follows: bool) -> Self {
        Self { another_follows, ..self }
    }

    /// A list with the diffs from these versions, which are in ascending order.
    pub fn since(
        bases: Vec<Snapshot>,
        after: Snapshot,
        changes: Changes,
        sizes: &Arc<Sizes>,
    ) -> Self {
        let base = |before| Base { before, json: Once::new(), phoenix: Once::new() };
        Self {
            after,
            bases: bases.into_iter().map(base).collect(),
            changes,
            another_follows: false,
            sizes: Arc::clone(sizes),
            full_frames: Default::default(),
            count: OnceLock::new(),
            truncated: OnceLock::new(),
            phoenix_count: OnceLock::new(),
            phoenix_truncated: OnceLock::new(),
        }
    }

    pub fn room(&self) -> &RoomName {
        self.after.room()
    }

    pub fn version(&self) -> u64 {
        self.after.version()
    }

    /// The earliest version that it has a diff from.
    pub fn first_base(&self) -> u64 {
        self.bases.first().map_or(self.version(), |base| base.before.version())
    }

    /// Whether an attempt to encode the full list would be wasted: see [`Sizes::is_too_large`].
    pub fn is_probably_too_large(&self, frame: FullFrame) -> bool {
        self.another_follows && self.sizes.is_too_large(frame, &self.after)
    }

    /// The full list, unless it is too large.
    pub fn encode(&self, frame: FullFrame) -> Option<ByteString> {
        let once = &self.full_frames[frame as usize];
        once.get_or_init(|| self.sizes.encode(frame, &self.after)).clone()
    }

    pub fn count(&self) -> ByteString {
        self.count.get_or_init(|| json::presence_count(&self.after, false)).clone()
    }

    /// The count that replaces a list that is too large.
    pub fn truncated(&self) -> ByteString {
        self.truncated.get_or_init(|| json::presence_count(&self.after, true)).clone()
    }

    pub fn phoenix_count(&self) -> ByteString {
        self.phoenix_count.get_or_init(|| phoenix::presence_count(&self.after, false)).clone()
    }

    /// The count for Phoenix that replaces a list that is too large.
    pub fn phoenix_truncated(&self) -> ByteString {
        self.phoenix_truncated.get_or_init(|| phoenix::presence_count(&self.after, true)).clone()
    }

    /// The diff from a version; `None` if it is too large, or not from one of the bases.
    pub fn diff(&self, since: u64) -> Option<ByteString> {
        let Base { before, json, .. } = self.base(since)?;
        let changed = || {
            let users = self.changes.users.iter().filter(|(_, (_, at))| *at > since);
            users.map(|(user, (cause, _))| (user, *cause))
        };
        let encode = || self.small(json::presence_diff(before, &self.after, changed()));
        json.get_or_init(encode).clone()
    }

    /// The same for Phoenix.
    pub fn phoenix_diff(&self, since: u64) -> Option<ByteString> {
        let Base { before, phoenix, .. } = self.base(since)?;
        let after = &self.after;
        let places = self.changes.places.iter().filter(|(_, (_, at))| *at > since);
        let changes = places.filter_map(|(place, (cause, _))| {
            let (was, is) = (before.presence(place), after.presence(place));
            let before = was.clone().map(|was| (was, *cause));
            let is_same = match (&was, &is) {
                (Some(was), Some(is)) => was.shows_the_same(is),
                (was, is) => was.is_none() && is.is_none(),
            };
            (!is_same).then_some(phoenix::Transition { before, after: is })
        });
        let encode = || {
            let (room, epoch) = (after.room(), after.epoch());
            self.small(phoenix::presence_diff(room, epoch, since, after.version(), changes))
        };
        phoenix.get_or_init(encode).clone()
    }

    fn base(&self, since: u64) -> Option<&Base> {
        let version = |base: &Base| base.before.version();
        let index = self.bases.binary_search_by_key(&since, version).ok()?;
        self.bases.get(index)
    }

    /// A diff that is larger than a full list may be is not sent.
    fn small(&self, diff: ByteString) -> Option<ByteString> {
        (diff.len() <= self.sizes.limit).then_some(diff)
    }
}
