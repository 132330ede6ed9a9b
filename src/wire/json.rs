//! The JSON dialect: frames of `/ws/{room}`.
//!
//! The shape of `presence` is that of the documentation of django-channels-presence.

use bytes::BufMut;
use bytestring::ByteString;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};
use serde_json::{Map, Value, value::RawValue};

use crate::model::{
    Cause, Epoch, Info, Member, Occupancy, RoomName, Sender, Snapshot, UnfitJson, UserId,
    check_info, check_payload,
};

#[derive(Serialize)]
struct JsonFrame<'a, P> {
    r#type: &'a str,
    payload: P,
}

fn frame(r#type: &str, payload: impl Serialize) -> ByteString {
    encode(&JsonFrame { r#type, payload })
}

pub(super) fn encode(value: &impl Serialize) -> ByteString {
    // Maps with text keys, numbers and texts can always be written as JSON.
    serde_json::to_string(value).unwrap_or_default().into()
}

/// The JSON text of a value, unless that has more bytes than the limit.
pub fn encode_within(limit: usize, value: &impl Serialize) -> Option<ByteString> {
    let mut text = Vec::new().limit(limit).writer();
    serde_json::to_writer(&mut text, value).ok()?;
    let mut text = text.into_inner().into_inner();
    text.shrink_to_fit();
    ByteString::try_from(text).ok()
}

#[derive(Serialize)]
struct Members<'a> {
    channel_name: &'a RoomName,
    members: Users<'a>,
    lurkers: usize,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<Epoch>,
}

struct Users<'a>(&'a Snapshot);

impl Serialize for Users<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.users().map(JsonMember::from))
    }
}

/// A [`Member`] whose info is written unread: lists are long.
#[derive(Serialize)]
struct JsonMember {
    id: UserId,
    #[serde(serialize_with = "Info::serialize_raw")]
    info: Info,
    connections: usize,
}

impl From<Member> for JsonMember {
    fn from(Member { id, info, connections }: Member) -> Self {
        Self { id, info, connections }
    }
}

fn members(snapshot: &Snapshot, epoch: Option<Epoch>) -> Members<'_> {
    Members {
        channel_name: snapshot.room(),
        members: Users(snapshot),
        lurkers: snapshot.anonymous_count(),
        version: snapshot.version(),
        epoch,
    }
}

impl Snapshot {
    /// The member list as the `presence` frame of the JSON dialect.
    #[must_use]
    pub fn to_json(&self) -> ByteString {
        frame("presence", members(self, None))
    }
}

/// The frame `presence`, unless it has more bytes than the limit.
pub(crate) fn presence_within(limit: usize, snapshot: &Snapshot) -> Option<ByteString> {
    encode_within(limit, &JsonFrame { r#type: "presence", payload: members(snapshot, None) })
}

/// The frame `presence_state`, to which later diffs apply, unless it has more bytes than the limit.
pub(crate) fn presence_state_within(limit: usize, snapshot: &Snapshot) -> Option<ByteString> {
    let payload = members(snapshot, Some(snapshot.epoch()));
    encode_within(limit, &JsonFrame { r#type: "presence_state", payload })
}

/// The frame `presence_count`; `truncated` where it replaces a list that is too large.
#[must_use]
pub fn presence_count(snapshot: &Snapshot, truncated: bool) -> ByteString {
    #[derive(Serialize)]
    struct JsonCount<'a> {
        channel_name: &'a RoomName,
        users: usize,
        lurkers: usize,
        version: u64,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    }
    let Occupancy { users, anonymous: lurkers, .. } = snapshot.occupancy();
    let (channel_name, version) = (snapshot.room(), snapshot.version());
    frame("presence_count", JsonCount { channel_name, users, lurkers, version, truncated })
}

/// The frame `presence_diff`: how the given users' entries differ between two snapshots of a room.
///
/// `changed` has to name every user whose entry differs, with the cause of the last leave. A user who left and
/// rejoined unchanged is in neither list.
#[must_use]
pub fn presence_diff<'a>(
    before: &Snapshot,
    after: &Snapshot,
    changed: impl IntoIterator<Item = (&'a UserId, Cause)>,
) -> ByteString {
    #[derive(Serialize)]
    struct LeftUser {
        id: UserId,
        #[serde(serialize_with = "Info::serialize_raw")]
        info: Info,
        cause: Cause,
    }
    #[derive(Serialize)]
    struct JsonDiff<'a> {
        channel_name: &'a RoomName,
        since: u64,
        version: u64,
        joins: Vec<JsonMember>,
        leaves: Vec<LeftUser>,
        lurkers: usize,
    }
    let (mut joins, mut leaves) = (Vec::new(), Vec::new());
    for (user, cause) in changed {
        match (before.user(user), after.user(user)) {
            (was, Some(is)) if was.as_ref() != Some(&is) => joins.push(is.into()),
            (Some(was), None) => leaves.push(LeftUser { id: was.id, info: was.info, cause }),
            _ => {}
        }
    }
    let (channel_name, lurkers) = (after.room(), after.anonymous_count());
    let (since, version) = (before.version(), after.version());
    frame("presence_diff", JsonDiff { channel_name, since, version, joins, leaves, lurkers })
}

/// The frame `message`; `event` is the event's name if a Phoenix client sent it.
#[must_use]
pub fn message(event: Option<&str>, payload: &RawValue, from: Option<&Sender>) -> ByteString {
    #[derive(Serialize)]
    struct JsonMessage<'a> {
        r#type: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        event: Option<&'a str>,
        payload: &'a RawValue,
        from: Option<&'a Sender>,
    }
    encode(&JsonMessage { r#type: "message", event, payload, from })
}

/// The frame `error`.
#[must_use]
pub fn error(code: &str, message: &str) -> ByteString {
    #[derive(Serialize)]
    struct ErrorPayload<'a> {
        code: &'a str,
        message: &'a str,
    }
    frame("error", ErrorPayload { code, message })
}

/// A frame from a client.
#[derive(Debug)]
pub enum ClientFrame {
    /// A heartbeat.
    Heartbeat,
    /// A message to the room.
    Message {
        /// What it says.
        payload: Box<RawValue>,
        /// Whether it is not for the sender itself.
        to_others: bool,
    },
    /// New info for the sender's presence.
    Update(Map<String, Value>),
}

/// Why a client's frame is invalid; the client gets this as an `error` frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// The text is not JSON.
    #[error("the frame is not JSON: {0}")]
    NotJson(String),
    /// The JSON is not an object with a `type`.
    #[error("a frame is \"heartbeat\" or an object with a \"type\"")]
    NoType,
    /// The `type` is unknown.
    #[error("there is no frame of this type; \"message\" and \"update\" there are")]
    UnknownType,
    /// A `message` has no `payload`.
    #[error("a message needs a \"payload\"")]
    NoPayload,
    /// The `to` of a `message` is not known.
    #[error("\"to\" of a message can only be \"others\"")]
    UnknownReceivers,
    /// A `payload` or an `info` cannot be passed on to others.
    #[error(transparent)]
    Unfit(#[from] UnfitJson),
    /// The `info` of an `update` is not an object.
    #[error("an update needs \"info\", a JSON object")]
    NoInfo,
}

impl BadFrame {
    /// The code in the `error` frame.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "not_json",
            Self::NoType
            | Self::NoPayload
            | Self::UnknownReceivers
            | Self::NoInfo
            | Self::Unfit(_) => "bad_frame",
            Self::UnknownType => "unknown_type",
        }
    }
}

/// The exact text of a heartbeat frame.
pub const HEARTBEAT: &str = "\"heartbeat\"";

/// Reads a client's text frame.
///
/// # Errors
///
/// [`BadFrame`], whose text is for the client.
pub fn read(text: &str) -> Result<ClientFrame, BadFrame> {
    #[derive(Deserialize)]
    struct Any {
        r#type: Option<Value>,
        #[serde(default, deserialize_with = "given")]
        payload: Option<Box<RawValue>>,
        #[serde(default, deserialize_with = "given")]
        to: Option<Box<RawValue>>,
        info: Option<Box<RawValue>>,
    }
    // `null` is a valid payload.
    fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Box<RawValue>>, D::Error> {
        Box::deserialize(value).map(Some)
    }
    if text == HEARTBEAT {
        return Ok(ClientFrame::Heartbeat);
    }
    if !text.trim_start().starts_with('{') {
        let json: Result<IgnoredAny, _> = serde_json::from_str(text);
        return Err(json.map_or_else(|e| BadFrame::NotJson(e.to_string()), |_| BadFrame::NoType));
    }
    let any: Any = match serde_json::from_str(text) {
        Ok(any) => any,
        Err(error) if error.is_data() => return Err(BadFrame::NoType),
        Err(error) => return Err(BadFrame::NotJson(error.to_string())),
    };
    match any.r#type.as_ref().and_then(Value::as_str) {
        Some("message") => {
            let payload = any.payload.ok_or(BadFrame::NoPayload)?;
            check_payload(payload.get())?;
            let to_others = match any.to.as_deref().map(RawValue::get) {
                None => false,
                Some(to) if serde_json::from_str::<String>(to).is_ok_and(|to| to == "others") => {
                    true
                }
                Some(_) => return Err(BadFrame::UnknownReceivers),
            };
            Ok(ClientFrame::Message { payload, to_others })
        }
        Some("update") => {
            let info = any.info.ok_or(BadFrame::NoInfo)?;
            check_info(info.get())?;
            serde_json::from_str(info.get()).map(ClientFrame::Update).map_err(|_| BadFrame::NoInfo)
        }
        Some(_) => Err(BadFrame::UnknownType),
        None => Err(BadFrame::NoType),
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
