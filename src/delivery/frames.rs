//! Frames for the members of a room, each encoded once per dialect and only when first asked for.

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;
use bytestring::ByteString;

use crate::{
    messages::{Content, Dialect},
    model::{Cause, Diff, Place, Snapshot, Update, UserId},
    wire::{json, phoenix},
};

/// One thing that was published.
pub(super) struct Published<'a> {
    room: &'a Snapshot,
    content: &'a Content,
    from: Option<&'a json::Sender>,
    raw: Option<ByteString>,
    json: Option<ByteString>,
    phoenix: Option<ByteString>,
}

impl<'a> Published<'a> {
    pub fn new(room: &'a Snapshot, content: &'a Content, from: Option<&'a json::Sender>) -> Self {
        Self { room, content, from, raw: None, json: None, phoenix: None }
    }

    pub fn frame(&mut self, dialect: Dialect) -> ByteString {
        let (room, content, from) = (self.room.room(), self.content, self.from);
        let once = match dialect {
            Dialect::Raw => &mut self.raw,
            Dialect::Json(_) => &mut self.json,
            Dialect::Phoenix => &mut self.phoenix,
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
        once.get_or_insert_with(encode).clone()
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

    pub fn clear(&mut self) {
        self.users.clear();
        self.places.clear();
    }
}

/// Who is there, and what changed since.
pub(super) struct Presences<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    touched: &'a Touched,
    full: Option<ByteString>,
    state: Option<ByteString>,
    diff: Option<ByteString>,
    count: Option<ByteString>,
    phoenix_state: Option<ByteString>,
    phoenix_diff: Option<ByteString>,
}

impl<'a> Presences<'a> {
    pub fn new(before: &'a Snapshot, after: &'a Snapshot, touched: &'a Touched) -> Self {
        Self {
            before,
            after,
            touched,
            full: None,
            state: None,
            diff: None,
            count: None,
            phoenix_state: None,
            phoenix_diff: None,
        }
    }

    pub fn full(&mut self) -> ByteString {
        self.full.get_or_insert_with(|| self.after.to_json()).clone()
    }

    pub fn state(&mut self) -> ByteString {
        self.state.get_or_insert_with(|| json::presence_state(self.after)).clone()
    }

    pub fn count(&mut self) -> ByteString {
        self.count.get_or_insert_with(|| json::presence_count(self.after)).clone()
    }

    pub fn diff(&mut self) -> ByteString {
        let changed = || self.touched.users.iter().map(|(user, cause)| (user, *cause));
        let encode = || json::presence_diff(self.before, self.after, changed());
        self.diff.get_or_insert_with(encode).clone()
    }

    pub fn phoenix_state(&mut self) -> ByteString {
        self.phoenix_state.get_or_insert_with(|| phoenix::presence_state(self.after)).clone()
    }

    pub fn phoenix_diff(&mut self) -> ByteString {
        let (before, after) = (self.before, self.after);
        let changes = self.touched.places.iter().filter_map(|(place, cause)| {
            let (was, is) = (before.presence(place), after.presence(place));
            let before = was.clone().map(|was| (was, *cause));
            (was != is).then_some(phoenix::Change { before, after: is })
        });
        let encode = || {
            let (room, epoch) = (after.room(), after.epoch());
            phoenix::presence_diff(room, epoch, before.version(), after.version(), changes)
        };
        self.phoenix_diff.get_or_insert_with(encode).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::model::{ConnectionId, Info, Moment, RoomName, Rooms};

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
                let mut frames = Presences::new(&flushed, &now, &touched);
                fold_json(&mut in_json, &value(&frames.diff())["payload"]);
                fold_phoenix(&mut in_phoenix, &value(&frames.phoenix_diff())[4]);
                prop_assert_eq!(&in_json, &value(&frames.state())["payload"]);
                prop_assert_eq!(&in_phoenix, &metas(&value(&frames.phoenix_state())[4]));
                touched.clear();
                flushed = now;
            }
        }
    }
}
