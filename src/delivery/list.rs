//! Who is in a room, for those who listen to it: the whole list, or what has changed since the version
//! that a listener has. Encoded once for all, and only when first asked for, by whichever thread that is.

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
    model::{Cause, Diff, Place, RoomName, Snapshot, Update, UserId, micros},
    wire::{json, phoenix},
};

/// What may be different between two versions of a room, and at which version it was touched last.
#[derive(Default)]
pub(super) struct Touched {
    /// Users whose entry may have changed, with the cause of the last leave.
    users: HashMap<UserId, (Cause, u64), RandomState>,
    /// Places where presences came, went or changed, with the cause of the last leave.
    places: BTreeMap<Place, (Cause, u64)>,
}

impl Touched {
    pub fn note(&mut self, diff: &Diff) {
        let Self { users, places } = self;
        let version = diff.version;
        for user in diff.users() {
            users.entry(user.clone()).or_insert((Cause::Left, version)).1 = version;
        }
        for gone in &diff.offline {
            users.insert(gone.user.clone(), (gone.cause, version));
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

    /// How many presences may be different.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.places.is_empty()
    }
}

/// What is known of the size and the cost of a room's whole list in one encoding.
#[derive(Debug, Default)]
pub(super) struct Size {
    /// How many connections were in the room when it was encoded last and was over the limit; 0 if it was
    /// not.
    too_large: AtomicUsize,
    /// How long that took.
    micros: AtomicU64,
}

/// The encodings of a room's whole list; shared by the room's lists, as one tells of the next.
#[derive(Debug)]
pub(super) struct Sizes {
    /// How many bytes a whole list may have.
    limit: usize,
    full: Size,
    state: Size,
    phoenix: Size,
}

impl Sizes {
    pub fn new(limit: usize) -> Arc<Self> {
        let [full, state, phoenix] = [const { Size::new() }; 3];
        Arc::new(Self { limit, full, state, phoenix })
    }

    /// Whether the whole list was too large when it was encoded last, and the room has not become much
    /// smaller since: then it is not worth the attempt.
    pub fn is_too_large(&self, whole: Whole, room: &Snapshot) -> bool {
        let then = self.of(whole).too_large.load(Relaxed);
        then > 0 && well_below(then) <= room.occupancy().connections
    }

    /// What it costs to encode the frame `presence`.
    pub fn full_cost(&self) -> Duration {
        Duration::from_micros(self.full.micros.load(Relaxed))
    }

    fn of(&self, whole: Whole) -> &Size {
        match whole {
            Whole::Full => &self.full,
            Whole::State => &self.state,
            Whole::Phoenix => &self.phoenix,
        }
    }

    /// Encodes the whole list. One that was too large has to be well below the limit, so that a room of
    /// about that size does not change between the two with each who comes.
    fn encode(&self, whole: Whole, room: &Snapshot) -> Option<ByteString> {
        let Size { too_large, micros: cost } = self.of(whole);
        let was_too_large = too_large.load(Relaxed) > 0;
        let limit = if was_too_large { well_below(self.limit) } else { self.limit };
        let work = Stopwatch::start();
        let encoded = match whole {
            Whole::Full => json::presence_within(limit, room),
            Whole::State => json::presence_state_within(limit, room),
            Whole::Phoenix => phoenix::presence_state_within(limit, room),
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
                    "a member list is too large: who needs the whole list gets counts instead"
                );
            }
        }
        encoded
    }
}

/// Nine tenths.
const fn well_below(limit: usize) -> usize {
    limit - limit.div_ceil(10)
}

impl Size {
    const fn new() -> Self {
        Self { too_large: AtomicUsize::new(0), micros: AtomicU64::new(0) }
    }
}

/// The frames that hold a whole list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whole {
    /// `presence` of the JSON dialect.
    Full,
    /// `presence_state` of the JSON dialect.
    State,
    /// `presence_state` of Phoenix.
    Phoenix,
}

impl Whole {
    /// The one of a dialect, if it has one.
    pub fn of(dialect: Dialect) -> Option<Self> {
        match dialect {
            Dialect::Json(Feed::Full) => Some(Self::Full),
            Dialect::Json(Feed::Diff) => Some(Self::State),
            Dialect::Phoenix => Some(Self::Phoenix),
            Dialect::Raw | Dialect::Json(Feed::Count | Feed::None) => None,
        }
    }
}

/// An encoding that is made at most once; none if it is too large.
type Once = OnceLock<Option<ByteString>>;

/// A version that listeners have, and how it differs from that of the list.
struct Base {
    before: Snapshot,
    json: Once,
    phoenix: Once,
}

/// A room at one version, for its listeners.
pub(super) struct List {
    after: Snapshot,
    /// The versions that listeners have, in ascending order.
    bases: Vec<Base>,
    /// What may be different since the first of them.
    touched: Touched,
    /// Whether another list follows soon, with which it is tried again what was too large.
    another_follows: bool,
    sizes: Arc<Sizes>,
    wholes: [Once; 3],
    count: OnceLock<ByteString>,
    truncated: OnceLock<ByteString>,
    phoenix_count: OnceLock<ByteString>,
}

impl List {
    /// The whole list alone.
    pub fn whole(after: Snapshot, sizes: &Arc<Sizes>) -> Self {
        Self::since(Vec::new(), after, Touched::default(), sizes)
    }

    /// The same, of which another follows soon or does not.
    pub fn followed(self, another_follows: bool) -> Self {
        Self { another_follows, ..self }
    }

    /// The list for those who have one of these versions of the room, in ascending order.
    pub fn since(
        bases: Vec<Snapshot>,
        after: Snapshot,
        touched: Touched,
        sizes: &Arc<Sizes>,
    ) -> Self {
        let base = |before| Base { before, json: Once::new(), phoenix: Once::new() };
        let [count, truncated, phoenix_count] = [const { OnceLock::new() }; 3];
        Self {
            after,
            bases: bases.into_iter().map(base).collect(),
            touched,
            another_follows: false,
            sizes: Arc::clone(sizes),
            wholes: [const { Once::new() }; 3],
            count,
            truncated,
            phoenix_count,
        }
    }

    pub fn room(&self) -> &RoomName {
        self.after.room()
    }

    pub fn version(&self) -> u64 {
        self.after.version()
    }

    /// The earliest version that a listener may have.
    pub fn told_before(&self) -> u64 {
        self.bases.first().map_or(self.version(), |base| base.before.version())
    }

    /// Whether it is not worth the attempt to encode the whole list; see [`Sizes::is_too_large`].
    pub fn is_probably_too_large(&self, whole: Whole) -> bool {
        self.another_follows && self.sizes.is_too_large(whole, &self.after)
    }

    /// The whole list, unless it is too large.
    pub fn encode(&self, whole: Whole) -> Option<ByteString> {
        let once = &self.wholes[whole as usize];
        once.get_or_init(|| self.sizes.encode(whole, &self.after)).clone()
    }

    pub fn count(&self) -> ByteString {
        self.count.get_or_init(|| json::presence_count(&self.after, false)).clone()
    }

    /// The count in the place of a list that is too large.
    pub fn truncated(&self) -> ByteString {
        self.truncated.get_or_init(|| json::presence_count(&self.after, true)).clone()
    }

    /// The count in the place of a Phoenix state that is too large.
    pub fn phoenix_count(&self) -> ByteString {
        self.phoenix_count.get_or_init(|| phoenix::presence_count(&self.after)).clone()
    }

    /// What has changed since a version; none if that is too large, or nobody was to have that version.
    pub fn diff(&self, since: u64) -> Option<ByteString> {
        let Base { before, json, .. } = self.base(since)?;
        let changed = || {
            let users = self.touched.users.iter().filter(|(_, (_, at))| *at > since);
            users.map(|(user, (cause, _))| (user, *cause))
        };
        let encode = || self.small(json::presence_diff(before, &self.after, changed()));
        json.get_or_init(encode).clone()
    }

    /// The same for Phoenix.
    pub fn phoenix_diff(&self, since: u64) -> Option<ByteString> {
        let Base { before, phoenix, .. } = self.base(since)?;
        let after = &self.after;
        let places = self.touched.places.iter().filter(|(_, (_, at))| *at > since);
        let changes = places.filter_map(|(place, (cause, _))| {
            let (was, is) = (before.presence(place), after.presence(place));
            let before = was.clone().map(|was| (was, *cause));
            (was != is).then_some(phoenix::Transition { before, after: is })
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

    /// A diff that is larger than a whole list may be is none.
    fn small(&self, diff: ByteString) -> Option<ByteString> {
        (diff.len() <= self.sizes.limit).then_some(diff)
    }
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
