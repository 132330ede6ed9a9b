//! Frames for the members of a room, each encoded once per dialect and only when first asked for, by
//! whichever thread that is.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ahash::RandomState;
use bytestring::ByteString;
use tokio::sync::oneshot;

use crate::{
    messages::{Content, Dialect},
    model::{Cause, Diff, Place, RoomName, Snapshot, Update, UserId},
    tally::Tally,
    wire::{json, phoenix},
};

/// One thing that was published.
pub(super) struct Published {
    room: RoomName,
    content: Content,
    from: Option<json::Sender>,
    raw: OnceLock<ByteString>,
    json: OnceLock<ByteString>,
    phoenix: OnceLock<ByteString>,
    taken: Arc<AtomicUsize>,
    deliveries: Tally,
    /// Dropped with this, and so when it has been handed to everybody.
    _served: oneshot::Sender<()>,
}

/// How many take what was published.
pub(crate) struct Taking {
    taken: Arc<AtomicUsize>,
    served: oneshot::Receiver<()>,
}

impl Published {
    pub fn new(
        room: RoomName,
        content: Content,
        from: Option<json::Sender>,
        deliveries: Tally,
    ) -> (Self, Taking) {
        let (_served, served) = oneshot::channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let taking = Taking { taken: Arc::clone(&taken), served };
        let [raw, json, phoenix] = [const { OnceLock::new() }; 3];
        (Self { room, content, from, raw, json, phoenix, taken, deliveries, _served }, taking)
    }

    pub fn room(&self) -> &RoomName {
        &self.room
    }

    /// The size of what is published, without what a dialect puts around it.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Json(value) | Content::Event { payload: value, .. } => value.get().len(),
        }
    }

    /// So many more have taken it.
    pub fn taken_by(&self, more: usize) {
        self.taken.fetch_add(more, Relaxed);
        self.deliveries.add(more);
    }

    pub fn frame(&self, dialect: Dialect) -> ByteString {
        let (room, content, from) = (&self.room, &self.content, self.from.as_ref());
        let once = match dialect {
            Dialect::Raw => &self.raw,
            Dialect::Json(_) => &self.json,
            Dialect::Phoenix => &self.phoenix,
        };
        let encode = || match (content, dialect) {
            (Content::Text(text), Dialect::Raw | Dialect::Json(_)) => text.clone(),
            (Content::Text(text), Dialect::Phoenix) => phoenix::message(room, &&**text, from),
            (Content::Json(value), Dialect::Raw) => value.get().into(),
            (Content::Json(value), Dialect::Json(_)) => json::message(None, value, from),
            (Content::Json(value), Dialect::Phoenix) => phoenix::message(room, value, from),
            (Content::Event { payload, .. }, Dialect::Raw) => payload.get().into(),
            (Content::Event { event, payload }, Dialect::Json(_)) => {
                json::message(Some(event), payload, from)
            }
            (Content::Event { event, payload }, Dialect::Phoenix) => {
                phoenix::broadcast(room, event, payload)
            }
        };
        once.get_or_init(encode).clone()
    }
}

impl Taking {
    /// Nobody.
    pub fn none() -> Self {
        Self { taken: Arc::default(), served: oneshot::channel().1 }
    }

    /// So many more take it elsewhere.
    pub fn add(&self, more: usize) {
        self.taken.fetch_add(more, Relaxed);
    }

    /// How many have taken it when everybody was served, or as many as have when the time is up.
    pub async fn count(self, patience: Duration) -> usize {
        // A thread that stands still must not hold up who publishes.
        let _ = tokio::time::timeout(patience, self.served).await;
        self.taken.load(Relaxed)
    }
}

/// What may be different between two versions of a room.
#[derive(Default)]
pub(super) struct Touched {
    /// Users whose entry may have changed, with the cause of the last leave.
    pub users: HashMap<UserId, Cause, RandomState>,
    /// Places where presences came, went or changed, with the cause of the last leave.
    pub places: BTreeMap<Place, Cause>,
}

impl Touched {
    pub fn note(&mut self, diff: &Diff) {
        let Self { users, places } = self;
        for user in diff.users() {
            users.entry(user.clone()).or_insert(Cause::Left);
        }
        for gone in &diff.offline {
            users.insert(gone.user.clone(), gone.cause);
        }
        for joined in &diff.joins {
            places.entry(joined.into()).or_insert(Cause::Left);
        }
        for left in &diff.leaves {
            places.insert((&left.presence).into(), left.cause);
        }
        for Update { before, after } in &diff.updates {
            places.entry(before.into()).or_insert(Cause::Left);
            places.entry(after.into()).or_insert(Cause::Left);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.places.is_empty()
    }
}

/// Who is there, and what changed since.
pub(super) struct Presences {
    before: Snapshot,
    after: Snapshot,
    touched: Touched,
    full: OnceLock<ByteString>,
    state: OnceLock<ByteString>,
    diff: OnceLock<ByteString>,
    count: OnceLock<ByteString>,
    phoenix_state: OnceLock<ByteString>,
    phoenix_diff: OnceLock<ByteString>,
}

impl Presences {
    pub fn new(before: Snapshot, after: Snapshot, touched: Touched) -> Self {
        let [full, state, diff, count, phoenix_state, phoenix_diff] =
            [const { OnceLock::new() }; 6];
        Self { before, after, touched, full, state, diff, count, phoenix_state, phoenix_diff }
    }

    pub fn room(&self) -> &RoomName {
        self.after.room()
    }

    /// Whether anything has changed.
    pub fn moved(&self) -> bool {
        self.after.version() != self.before.version()
    }

    pub fn full(&self) -> ByteString {
        self.full.get_or_init(|| self.after.to_json()).clone()
    }

    pub fn state(&self) -> ByteString {
        self.state.get_or_init(|| json::presence_state(&self.after)).clone()
    }

    pub fn count(&self) -> ByteString {
        self.count.get_or_init(|| json::presence_count(&self.after)).clone()
    }

    pub fn diff(&self) -> ByteString {
        let changed = || self.touched.users.iter().map(|(user, cause)| (user, *cause));
        let encode = || json::presence_diff(&self.before, &self.after, changed());
        self.diff.get_or_init(encode).clone()
    }

    pub fn phoenix_state(&self) -> ByteString {
        self.phoenix_state.get_or_init(|| phoenix::presence_state(&self.after)).clone()
    }

    pub fn phoenix_diff(&self) -> ByteString {
        let (before, after) = (&self.before, &self.after);
        let changes = self.touched.places.iter().filter_map(|(place, cause)| {
            let (was, is) = (before.presence(place), after.presence(place));
            let before = was.clone().map(|was| (was, *cause));
            (was != is).then_some(phoenix::Change { before, after: is })
        });
        let encode = || {
            let (room, epoch) = (after.room(), after.epoch());
            phoenix::presence_diff(room, epoch, before.version(), after.version(), changes)
        };
        self.phoenix_diff.get_or_init(encode).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::model::{ConnectionId, Info, Moment, Rooms};

    /// What happens in one room: by whom, what, as whom, and whether a list goes out then.
    type Step = (u128, u8, Option<u8>, bool);

    fn step() -> impl Strategy<Value = Step> {
        (0..6_u128, 0..8_u8, proptest::option::of(0..3_u8), any::<bool>())
    }

    fn take(rooms: &mut Rooms, room: &RoomName, step: &Step, at: u64) -> Vec<Diff> {
        let (connection, what, who, _) = *step;
        let connection = ConnectionId::from_u128(connection);
        let user = who.map(|n| UserId::new(format!("user {n}")).unwrap());
        let info = Info::new(json!({"n": what % 2})).unwrap();
        let now = Moment { monotonic: at, wall: at as i64 };
        match what {
            0..4 => rooms.join(room, connection, user, info, now).unwrap().into_iter().collect(),
            4 => rooms.update_info(room, connection, info).into_iter().collect(),
            5 => rooms.prune(now, std::time::Duration::from_micros(20)),
            _ => rooms.leave(room, connection, Cause::Left).into_iter().collect(),
        }
    }

    fn value(frame: &str) -> Value {
        serde_json::from_str(frame).unwrap()
    }

    /// What a client of the JSON dialect makes of a diff.
    fn fold_json(state: &mut Value, diff: &Value) {
        assert_eq!(state["version"], diff["since"]);
        let members = state["members"].as_array().unwrap().clone();
        let id = |member: &Value| member["id"].as_str().unwrap().to_owned();
        let mut members: BTreeMap<_, _> = members.into_iter().map(|m| (id(&m), m)).collect();
        for join in diff["joins"].as_array().unwrap() {
            members.insert(id(join), join.clone());
        }
        for leave in diff["leaves"].as_array().unwrap() {
            assert!(members.remove(&id(leave)).is_some(), "who leaves was there");
        }
        state["members"] = members.into_values().collect();
        state["lurkers"] = diff["lurkers"].clone();
        state["version"] = diff["version"].clone();
    }

    type Metas = BTreeMap<String, BTreeSet<String>>;

    fn metas(state: &Value) -> Metas {
        let texts = |metas: &Value| metas["metas"].as_array().unwrap().iter().map(meta).collect();
        let keys: &Map<String, Value> = state.as_object().unwrap();
        keys.iter().map(|(key, metas)| (key.clone(), texts(metas))).collect()
    }

    /// A meta as clients tell it from others.
    fn meta(meta: &Value) -> String {
        meta["phx_ref"].as_str().unwrap().to_owned()
    }

    /// What `presence.js` makes of a diff: joins first, then leaves.
    fn fold_phoenix(state: &mut Metas, diff: &Value) {
        for (key, joined) in metas(&diff["joins"]) {
            state.entry(key).or_default().extend(joined);
        }
        for (key, left) in metas(&diff["leaves"]) {
            let metas = state.get_mut(&key).expect("who leaves was there");
            metas.retain(|meta| !left.contains(meta));
            if metas.is_empty() {
                state.remove(&key);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn diffs_merged_to_any_lists_are_the_changes_in_their_order(
            steps in proptest::collection::vec(step(), 0..80),
        ) {
            let room = RoomName::new("room").unwrap();
            let mut rooms = Rooms::default();
            let mut flushed = rooms.snapshot(&room);
            let mut touched = Touched::default();
            let mut in_json = value(&json::presence_state(&flushed))["payload"].clone();
            let mut in_phoenix = metas(&value(&phoenix::presence_state(&flushed))[4]);
            for (at, step) in (1..).zip(&steps) {
                for diff in take(&mut rooms, &room, step, at) {
                    touched.note(&diff);
                }
                if !step.3 {
                    continue;
                }
                let now = rooms.snapshot(&room);
                let frames = Presences::new(flushed, now.clone(), std::mem::take(&mut touched));
                fold_json(&mut in_json, &value(&frames.diff())["payload"]);
                fold_phoenix(&mut in_phoenix, &value(&frames.phoenix_diff())[4]);
                prop_assert_eq!(&in_json, &value(&frames.state())["payload"]);
                prop_assert_eq!(&in_phoenix, &metas(&value(&frames.phoenix_state())[4]));
                flushed = now;
            }
        }
    }
}
