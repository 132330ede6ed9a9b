//! The dialect of Phoenix Channels, version 2.0.0: frames `[join_ref, ref, topic, event, payload]`.
//!
//! Follows phoenixframework/phoenix: `assets/js/phoenix` shows what a client expects,
//! `lib/phoenix/socket/serializers/v2_json_serializer.ex` and `lib/phoenix/presence.ex` show what a
//! server sends. A topic is a room.

mod read;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use bytestring::ByteString;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json, value::RawValue};

pub use self::read::{Frame, TooLong, read};
use super::json::{encode, encode_within};
use crate::model::{
    ANONYMOUS_PREFIX, Cause, ConnectionId, Epoch, Info, Occupancy, Presence, RoomName, Sender,
    Snapshot, UserId,
};

/// The event with the full list of a room.
const STATE: &str = "presence_state";

fn frame(
    join_ref: Option<&str>,
    r#ref: Option<&str>,
    topic: &str,
    event: &str,
    payload: &impl Serialize,
) -> ByteString {
    encode(&(join_ref, r#ref, topic, event, payload))
}

/// The payload of `phx_reply`.
#[derive(Serialize)]
struct ReplyPayload<R> {
    response: R,
    status: &'static str,
}

/// A reply with the status `ok`.
#[must_use]
pub fn ok(join_ref: Option<&str>, r#ref: Option<&str>, topic: &str) -> ByteString {
    #[derive(Serialize)]
    struct Nothing {}
    frame(join_ref, r#ref, topic, "phx_reply", &ReplyPayload { response: Nothing {}, status: "ok" })
}

/// A reply with the status `error` and a reason.
#[must_use]
pub fn refused(
    join_ref: Option<&str>,
    r#ref: Option<&str>,
    topic: &str,
    reason: &str,
) -> ByteString {
    #[derive(Serialize)]
    struct Refusal<'a> {
        reason: &'a str,
    }
    let answer = ReplyPayload { response: Refusal { reason }, status: "error" };
    frame(join_ref, r#ref, topic, "phx_reply", &answer)
}

/// Closes a channel; the client does not rejoin it by itself.
#[must_use]
pub fn close(join_ref: &str, topic: &str) -> ByteString {
    frame(Some(join_ref), Some(join_ref), topic, "phx_close", &json!({}))
}

/// An event for all members of a room: without references, so that one encoding serves all.
#[must_use]
pub fn broadcast(room: &RoomName, event: &str, payload: &RawValue) -> ByteString {
    frame(None, None, room.as_str(), event, &payload)
}

/// The event `message` for a message that no Phoenix client sent.
#[must_use]
pub fn message(room: &RoomName, payload: &impl Serialize, from: Option<&Sender>) -> ByteString {
    #[derive(Serialize)]
    struct MessagePayload<'a, P> {
        payload: &'a P,
        from: Option<&'a Sender>,
    }
    frame(None, None, room.as_str(), "message", &MessagePayload { payload, from })
}

/// The state of a room, unless it has more bytes than the limit; see [`addressed`].
pub(crate) fn presence_state_within(limit: usize, room: &Snapshot) -> Option<ByteString> {
    // The fewest bytes that a presence takes: a much larger room is refused without encoding it.
    const LEAST: usize = 60;
    if room.occupancy().connections.saturating_mul(LEAST) > limit {
        return None;
    }
    let (nothing, topic) = (None::<&str>, room.room().as_str());
    encode_within(limit, &(nothing, nothing, topic, STATE, MetasByKey(room)))
}

/// The state of an empty room, for a client that gets counts instead of the list.
#[must_use]
pub fn empty_state(room: &RoomName) -> ByteString {
    frame(None, None, room.as_str(), STATE, &json!({}))
}

/// The counts of a room, for a client that may not see its members; `truncated` where they replace a state
/// that is too large.
#[must_use]
pub fn presence_count(room: &Snapshot, truncated: bool) -> ByteString {
    #[derive(Serialize)]
    struct CountPayload {
        users: usize,
        lurkers: usize,
        version: u64,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    }
    let Occupancy { users, anonymous: lurkers, .. } = room.occupancy();
    let count = CountPayload { users, lurkers, version: room.version(), truncated };
    frame(None, None, room.room().as_str(), "presence_count", &count)
}

/// Adds the reference of the client's join to a frame of [`presence_state_within`].
#[must_use]
pub fn addressed(state: &str, join_ref: &str) -> ByteString {
    let join_ref = encode(&join_ref);
    let rest = state.strip_prefix("[null").unwrap_or(state);
    format!("[{join_ref}{rest}").into()
}

/// How one presence differs between two snapshots.
#[derive(Debug)]
pub struct Transition {
    /// The presence before, with the cause of its end if it has ended.
    pub before: Option<(Presence, Cause)>,
    /// The presence after.
    pub after: Option<Presence>,
}

/// The frame with the changes between two versions of a room.
///
/// Beside `joins` and `leaves`, which clients read, it has `since`, `v` and `epoch`; each meta of a
/// presence that has ended has its `cause`.
#[must_use]
pub fn presence_diff(
    room: &RoomName,
    epoch: Epoch,
    since: u64,
    version: u64,
    changes: impl IntoIterator<Item = Transition>,
) -> ByteString {
    #[derive(Serialize)]
    struct DiffPayload {
        joins: Keys,
        leaves: Keys,
        since: u64,
        v: u64,
        epoch: Epoch,
    }
    let (mut joins, mut leaves) = (Vec::new(), Vec::new());
    for Transition { before, after } in changes {
        let replaced = before.as_ref().map(|(presence, _)| phx_ref(presence));
        let cause = before.as_ref().map(|(_, cause)| *cause).filter(|_| after.is_none());
        leaves.extend(before.map(|(presence, _)| Meta { cause, ..Meta::new(presence) }));
        joins.extend(after.map(|presence| Meta { replaced, ..Meta::new(presence) }));
    }
    let (joins, leaves) = (Keys::of(joins), Keys::of(leaves));
    let diff = DiffPayload { joins, leaves, since, v: version, epoch };
    frame(None, None, room.as_str(), "presence_diff", &diff)
}

/// The `phx_ref` of a presence: constant while nothing about the presence changes, also across a
/// reconnect, and different after an update.
///
/// It is a digest of the presence, so it needs no memory and every node computes the same.
fn phx_ref(presence: &Presence) -> String {
    let Presence { connection, user, info, joined_at, updated_at: _ } = presence;
    let user = user.as_ref().map_or("", UserId::as_str);
    let text = format!("{}\n{user}\n{}", joined_at.timestamp_micros(), info.as_json());
    connection.derive(&text)
}

/// One presence under its user's key.
struct Meta {
    presence: Presence,
    replaced: Option<String>,
    cause: Option<Cause>,
}

impl Meta {
    fn new(presence: Presence) -> Self {
        Self { presence, replaced: None, cause: None }
    }

    fn key(&self) -> MetaKey {
        match &self.presence.user {
            Some(user) => MetaKey::User(user.clone()),
            None => MetaKey::Anonymous(self.presence.connection),
        }
    }
}

/// Members of a meta that an info cannot replace.
const RESERVED_MEMBERS: [&str; 4] = ["phx_ref", "phx_ref_prev", "online_at", "cause"];

impl Serialize for Meta {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { presence, replaced, cause } = self;
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in members(&presence.info) {
            map.serialize_entry(&key, &value)?;
        }
        map.serialize_entry("phx_ref", &phx_ref(presence))?;
        if let Some(replaced) = replaced {
            map.serialize_entry("phx_ref_prev", replaced)?;
        }
        map.serialize_entry("online_at", &presence.joined_at.timestamp().to_string())?;
        if let Some(cause) = cause {
            map.serialize_entry("cause", cause)?;
        }
        map.end()
    }
}

/// The members of an info, without those that would replace the server's own.
fn members(info: &Info) -> impl Iterator<Item = (Cow<'_, str>, &RawValue)> {
    let members: BTreeMap<Cow<'_, str>, &RawValue> = match info.is_empty() {
        true => BTreeMap::new(),
        false => serde_json::from_str(info.as_json()).unwrap_or_default(),
    };
    members.into_iter().filter(|(key, _)| !RESERVED_MEMBERS.contains(&key.as_ref()))
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum MetaKey {
    User(UserId),
    Anonymous(ConnectionId),
}

impl Serialize for MetaKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::User(user) => user.serialize(serializer),
            Self::Anonymous(connection) => {
                serializer.collect_str(&format_args!("{ANONYMOUS_PREFIX}{connection}"))
            }
        }
    }
}

/// Writes the presences of a room by key, one by one: those of a user are neighbours.
struct MetasByKey<'a>(&'a Snapshot);

impl Serialize for MetasByKey<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut metas = self.0.presences().map(Meta::new).peekable();
        while let Some(first) = metas.next() {
            let key = first.key();
            let mut of_key = Metas { metas: vec![first] };
            while let Some(next) = metas.next_if(|next| next.key() == key) {
                of_key.metas.push(next);
            }
            map.serialize_entry(&key, &of_key)?;
        }
        map.end()
    }
}

/// Metas by key: `{"key":{"metas":[…]}}`.
#[derive(Serialize)]
struct Keys(BTreeMap<MetaKey, Metas>);

#[derive(Default, Serialize)]
struct Metas {
    metas: Vec<Meta>,
}

impl Keys {
    fn of(metas: impl IntoIterator<Item = Meta>) -> Self {
        let mut keys: BTreeMap<MetaKey, Metas> = BTreeMap::new();
        for meta in metas {
            keys.entry(meta.key()).or_default().metas.push(meta);
        }
        Self(keys)
    }
}

/// The event with which a client sends a new token. It is for the server only: it is answered, and
/// never forwarded.
pub const ACCESS_TOKEN: &str = "access_token";

/// Whether a client may push an event of this name to a room; presence events cannot be forged.
#[must_use]
pub fn may_push(event: &str) -> bool {
    !(event.starts_with("phx_") || event.starts_with("presence_"))
}

/// The payload of a frame as an object; Phoenix accepts nothing else.
#[must_use]
pub fn object(payload: &RawValue) -> Option<serde_json::Map<String, Value>> {
    serde_json::from_str(payload.get()).ok()
}

/// The params of a join: the members of its payload, unparsed.
#[must_use]
pub fn params(payload: &RawValue) -> Option<HashMap<String, &RawValue>> {
    serde_json::from_str(payload.get()).ok()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn presence(connection: u128, user: Option<&str>, info: Value) -> Presence {
        Presence {
            connection: ConnectionId::from_u128(connection),
            user: user.map(|id| UserId::new(id).unwrap()),
            info: Info::new(info).unwrap(),
            joined_at: DateTime::from_timestamp(1_700_000_000, 5000).unwrap(),
            updated_at: DateTime::from_timestamp(1_700_000_000, 5000).unwrap(),
        }
    }

    fn value(frame: &str) -> Value {
        serde_json::from_str(frame).unwrap()
    }

    #[test]
    fn replies_have_exactly_the_text_that_the_client_expects() {
        assert_eq!(
            ok(Some("3"), Some("4"), "room:1"),
            r#"["3","4","room:1","phx_reply",{"response":{},"status":"ok"}]"#
        );
        assert_eq!(
            refused(None, Some("4"), "r", "unmatched topic"),
            r#"[null,"4","r","phx_reply",{"response":{"reason":"unmatched topic"},"status":"error"}]"#
        );
        assert_eq!(close("3", "r"), r#"["3","3","r","phx_close",{}]"#);
        let empty = Snapshot::empty(RoomName::new("r").unwrap(), Epoch::new(), 0);
        let state = presence_state_within(usize::MAX, &empty).unwrap();
        assert_eq!(state, r#"[null,null,"r","presence_state",{}]"#);
        assert_eq!(addressed(&state, "3\""), r#"["3\"",null,"r","presence_state",{}]"#);
    }

    #[test]
    fn an_update_is_in_both_lists_with_the_old_reference_and_a_leave_has_its_cause() {
        let [old, new] = ["old", "new"].map(|name| presence(1, Some("ada"), json!({"name": name})));
        let gone = presence(2, None, json!({}));
        let change = |before, after| Transition { before, after };
        let changes = [
            change(Some((old.clone(), Cause::Left)), Some(new.clone())),
            change(Some((gone.clone(), Cause::Expired)), None),
        ];
        let epoch = Epoch::new();
        let diff = presence_diff(&RoomName::new("r").unwrap(), epoch, 3, 5, changes);
        let online_at = "1700000000";
        assert_eq!(
            value(&diff)[4],
            json!({
                "joins": {"ada": {"metas": [{"name": "new", "phx_ref": phx_ref(&new),
                    "phx_ref_prev": phx_ref(&old), "online_at": online_at}]}},
                "leaves": {
                    "ada": {"metas": [{"name": "old", "phx_ref": phx_ref(&old), "online_at": online_at}]},
                    "anonymous:00000000000000000000000000000002": {"metas": [
                        {"phx_ref": phx_ref(&gone), "online_at": online_at, "cause": "expired"}]},
                },
                "since": 3, "v": 5, "epoch": epoch.to_string(),
            })
        );
    }

    #[test]
    fn an_info_cannot_forge_a_reference() {
        let forged = presence(1, Some("eve"), json!({"phx_ref": "x", "cause": "left", "a": 1}));
        let meta = serde_json::to_value(Meta::new(forged.clone())).unwrap();
        let online_at = "1700000000";
        assert_eq!(meta, json!({"a": 1, "phx_ref": phx_ref(&forged), "online_at": online_at}));
    }

    #[test]
    fn a_reference_is_stable_and_new_after_an_update() {
        let one = presence(1, Some("ada"), json!({"a": 1}));
        assert_eq!(phx_ref(&one), phx_ref(&one.clone()));
        for other in [
            presence(2, Some("ada"), json!({"a": 1})),
            presence(1, Some("bob"), json!({"a": 1})),
            presence(1, Some("ada"), json!({"a": 2})),
        ] {
            assert_ne!(phx_ref(&one), phx_ref(&other));
        }
    }
}
