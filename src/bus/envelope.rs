//! The messages between nodes and their encoding: JSON with the number of its format.

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{Channel, record};
use crate::{
    messages::{Content, Kick},
    model::{Cause, ConnectionId, Epoch, NodeName, PresenceRecord, RoomName, UserId},
};

/// The format that this version writes and reads.
const FORMAT: u32 = 1;

/// The size of the largest envelope that is decoded, in bytes.
pub const MAX_ENVELOPE_BYTES: usize = 512 * 1024 * 1024;

/// A message of one node to the others.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The sender.
    pub node: NodeName,
    /// The incarnation of the sender.
    pub incarnation: Epoch,
    /// The message.
    pub message: BusMessage,
}

/// The message in an [`Envelope`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BusMessage {
    /// A committed batch changed a room.
    Changes(RoomChanges),
    /// Something was published to a room.
    #[serde(rename = "said")]
    Published(RoomMessage),
    /// A room was closed: all its members leave.
    Close {
        /// The room.
        room: RoomName,
    },
    /// A connection or a user was kicked.
    Kick(Kick),
    /// The node lives, and the last batches that changed these rooms have these numbers: a node that
    /// knows lower ones has missed something.
    #[serde(rename = "beat")]
    Heartbeat {
        /// Counts the heartbeats of the incarnation, from 1.
        number: u64,
        /// The rooms of the batches since the last heartbeat.
        rooms: Vec<(RoomName, u64)>,
    },
    /// The sender has removed the rows of a dead node.
    #[serde(rename = "buried")]
    Reaped {
        /// The dead node.
        node: NodeName,
        /// Its incarnation.
        incarnation: Epoch,
        /// Whether it had shut down.
        leaving: bool,
    },
    /// The node shuts down.
    Stopping,
    /// The node could not publish something: its rows have to be read.
    Missed,
}

/// The changes of a room in a committed batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomChanges {
    /// The room.
    pub room: RoomName,
    /// The number of the batch.
    pub number: u64,
    /// The number of the previous batch that changed the room, or of a later one.
    pub previous: u64,
    /// The changes.
    pub changes: Vec<RowChange>,
}

/// The change of a presence by a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowChange {
    /// It is present, as the node has it now.
    Here(#[serde(with = "record")] PresenceRecord),
    /// Another node holds it now: who believes otherwise reads the rows.
    Yielded {
        /// Its id.
        connection: ConnectionId,
    },
    /// It has left.
    Gone {
        /// Its id.
        connection: ConnectionId,
        /// The cause.
        cause: Cause,
    },
}

/// Something that was published to a room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoomMessage {
    /// The room.
    pub room: RoomName,
    /// Counts what the node publishes: strictly increasing.
    pub number: u64,
    /// The content.
    pub content: Content,
    /// The user and the connection of the sender, if it is a member.
    pub from: Option<(Option<UserId>, ConnectionId)>,
    /// A member that does not get it.
    pub except: Option<ConnectionId>,
}

/// Why bytes are not an [`Envelope`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEnvelope {
    /// Another version of the program wrote it.
    #[error("an envelope of format {format}, where this version reads {FORMAT}")]
    Format {
        /// Its format.
        format: u32,
    },
    /// It is too large.
    #[error("an envelope of {bytes} bytes, where at most {MAX_ENVELOPE_BYTES} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is malformed.
    #[error("not an envelope: {0}")]
    Malformed(String),
}

/// An envelope as it is encoded.
#[derive(Serialize, Deserialize)]
struct Encoded<N, M> {
    v: u32,
    node: N,
    incarnation: Epoch,
    #[serde(rename = "told")]
    message: M,
}

impl Envelope {
    /// The channel that it is published to.
    #[must_use]
    pub fn channel(&self) -> Channel {
        match &self.message {
            BusMessage::Changes(RoomChanges { room, .. })
            | BusMessage::Published(RoomMessage { room, .. })
            | BusMessage::Close { room } => Channel::Room(room.clone()),
            BusMessage::Kick(_)
            | BusMessage::Heartbeat { .. }
            | BusMessage::Reaped { .. }
            | BusMessage::Stopping
            | BusMessage::Missed => Channel::Nodes,
        }
    }

    /// The envelope as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Self { node, incarnation, message } = self;
        let encoded = Encoded { v: FORMAT, node, incarnation: *incarnation, message };
        serde_json::to_vec(&encoded).unwrap_or_default()
    }

    /// Decodes an envelope.
    ///
    /// # Errors
    ///
    /// [`InvalidEnvelope`].
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidEnvelope> {
        #[derive(Deserialize)]
        struct Format {
            v: u32,
        }
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(InvalidEnvelope::TooLarge { bytes: bytes.len() });
        }
        let malformed = |error: serde_json::Error| InvalidEnvelope::Malformed(error.to_string());
        let decoded = serde_json::from_slice(bytes);
        let format = match &decoded {
            Ok(Encoded { v, .. }) => *v,
            // It may be of a format that is not read.
            Err(_) => serde_json::from_slice::<Format>(bytes).map_err(malformed)?.v,
        };
        if format != FORMAT {
            return Err(InvalidEnvelope::Format { format });
        }
        match decoded {
            Ok(Encoded { node, incarnation, message, .. }) => {
                Ok(Self { node, incarnation, message })
            }
            Err(error) => unreadable_changes(bytes).ok_or_else(|| malformed(error)),
        }
    }
}

/// An envelope with changes of which this version cannot read all, for example an info or a user that only
/// an earlier version allowed. The result says that there are changes, so that they are read from the
/// database, where what is unreadable affects nothing else.
fn unreadable_changes(bytes: &[u8]) -> Option<Envelope> {
    #[derive(Deserialize)]
    struct Outline {
        changes: Numbered,
    }
    #[derive(Deserialize)]
    struct Numbered {
        room: RoomName,
        number: u64,
        #[expect(dead_code, reason = "the field has to be there")]
        changes: Vec<IgnoredAny>,
    }
    let encoded: Encoded<NodeName, Outline> = serde_json::from_slice(bytes).ok()?;
    let Numbered { room, number, .. } = encoded.message.changes;
    // A node that does not know this number yet finds that it has missed something.
    let changes = RoomChanges { room, number, previous: number, changes: Vec::new() };
    let Encoded { node, incarnation, .. } = encoded;
    Some(Envelope { node, incarnation, message: BusMessage::Changes(changes) })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::{json, value::RawValue};

    use super::*;
    use crate::model::{Info, Presence, SessionKey};

    fn envelope(message: BusMessage) -> Envelope {
        Envelope { node: NodeName::new("n").unwrap(), incarnation: Epoch::new(), message }
    }

    #[test]
    fn an_envelope_is_decoded_as_it_was_encoded() {
        let room = RoomName::new("lobby").unwrap();
        let connection = ConnectionId::new();
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        let record = PresenceRecord {
            presence: Presence {
                connection,
                user: UserId::new("ada").ok(),
                info: Info::new(json!({"a": 1.5})).unwrap(),
                joined_at: at,
            },
            last_seen: at,
            session: SessionKey::new("tab").ok(),
            fixed: Info::new(json!({"role": "admin"})).unwrap(),
            fading: Some(at),
            generation: 3,
            current_connection: Some(ConnectionId::new()),
        };
        let bare = Presence { connection, user: None, info: Info::EMPTY, joined_at: at };
        let (here, bare) = (RowChange::Here(record), RowChange::Here(PresenceRecord::new(bare)));
        let gone = RowChange::Gone { connection, cause: Cause::SlowConsumer };
        let changes = vec![here, bare, gone];
        let changes = RoomChanges { room: room.clone(), number: 7, previous: 5, changes };
        let sent = envelope(BusMessage::Changes(changes.clone()));
        let read = Envelope::decode(&sent.encode()).unwrap();
        assert_eq!((&read.node, read.incarnation), (&sent.node, sent.incarnation));
        assert_eq!(read.channel(), Channel::Room(room.clone()));
        assert!(matches!(read.message, BusMessage::Changes(read) if read == changes));

        let payload = RawValue::from_string(r#"{"z":1,"a":1.0}"#.to_owned()).unwrap();
        let content = Content::Event { event: "shout".into(), payload };
        let published =
            RoomMessage { room, number: 1, content, from: None, except: Some(connection) };
        let read = Envelope::decode(&envelope(BusMessage::Published(published)).encode()).unwrap();
        let BusMessage::Published(published) = read.message else { panic!("{read:?}") };
        let Content::Event { event, payload } = published.content else { panic!("{published:?}") };
        assert_eq!((&*event, payload.get()), ("shout", r#"{"z":1,"a":1.0}"#));
    }

    #[test]
    fn changes_that_only_an_earlier_version_allowed_are_to_be_read_from_the_database() {
        let room = RoomName::new("lobby").unwrap();
        let gone = RowChange::Gone { connection: ConnectionId::new(), cause: Cause::Left };
        let changes =
            RoomChanges { room: room.clone(), number: 7, previous: 5, changes: vec![gone] };
        let sent = envelope(BusMessage::Changes(changes));
        let text = String::from_utf8(sent.encode()).unwrap();
        let here = |user: &str, depth: usize| {
            let info = r#"{"a":"#.repeat(depth) + "1" + &"}".repeat(depth);
            let here = format!(
                r#"{{"here":{{"connection":"{}","user":"{user}","info":{info},"joined_at":0,"last_seen":0}}}},"#,
                ConnectionId::new(),
            );
            let with = text.replace(r#"[{"gone""#, &format!(r#"[{here}{{"gone""#));
            let BusMessage::Changes(read) = Envelope::decode(with.as_bytes()).unwrap().message
            else {
                panic!("{with}")
            };
            (read.room, read.number, read.previous, read.changes.len())
        };
        assert_eq!(here("ada", 100), (room.clone(), 7, 5, 2), "deeper than is allowed today");
        assert_eq!(here("ada", 126), (room.clone(), 7, 7, 0));
        assert_eq!(here("toString", 1), (room, 7, 7, 0));
    }

    #[test]
    fn what_is_not_of_this_format_is_refused() {
        let bytes = envelope(BusMessage::Missed).encode();
        let text = String::from_utf8(bytes).unwrap();
        let later = text.replace("\"v\":1", "\"v\":2");
        let refused = Envelope::decode(later.as_bytes()).unwrap_err();
        assert_eq!(refused, InvalidEnvelope::Format { format: 2 });
        for bad in ["", "{}", "[]", "{\"v\":1}", &text[1..], &text.replace("missed", "dance")] {
            let refused = Envelope::decode(bad.as_bytes());
            assert!(matches!(refused, Err(InvalidEnvelope::Malformed(_))), "{bad}");
        }
        let name = text.replace("\"n\"", "\"a b\"");
        assert!(Envelope::decode(name.as_bytes()).is_err());
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut sent = envelope(BusMessage::Missed);
        sent.incarnation = "0000000000000007".parse().unwrap();
        let connection = ConnectionId::from_u128(10);
        let room = RoomName::new("lobby").unwrap();
        let at = DateTime::from_timestamp_micros(5).unwrap();
        let bare = Presence { connection, user: None, info: Info::EMPTY, joined_at: at };
        let changes = vec![
            RowChange::Here(PresenceRecord::new(bare)),
            RowChange::Yielded { connection },
            RowChange::Gone { connection, cause: Cause::Left },
        ];
        let payload = RawValue::from_string("[1.0]".to_owned()).unwrap();
        let published = |content| {
            let (from, except) = (Some((UserId::new("ada").ok(), connection)), Some(connection));
            let room = RoomName::new("lobby").unwrap();
            BusMessage::Published(RoomMessage { room, number: 2, content, from, except })
        };
        let from = r#""from":["ada","0000000000000000000000000000000a"],"except":"0000000000000000000000000000000a"}}"#;
        let content =
            |json: &str| format!(r#"{{"said":{{"room":"lobby","number":2,"content":{json},{from}"#);
        let reaped = BusMessage::Reaped {
            node: sent.node.clone(),
            incarnation: sent.incarnation,
            leaving: true,
        };
        for (message, json) in [
            (
                BusMessage::Changes(RoomChanges { room: room.clone(), number: 7, previous: 5, changes }),
                concat!(
                    r#"{"changes":{"room":"lobby","number":7,"previous":5,"changes":["#,
                    r#"{"here":{"connection":"0000000000000000000000000000000a","user":null,"#,
                    r#""joined_at":5,"last_seen":5,"turn":0}},"#,
                    r#"{"yielded":{"connection":"0000000000000000000000000000000a"}},"#,
                    r#"{"gone":{"connection":"0000000000000000000000000000000a","cause":"left"}}]}}"#,
                )
                .to_owned(),
            ),
            (published(Content::Text("hi".into())), content(r#"{"text":"hi"}"#)),
            (published(Content::Json(payload.clone())), content(r#"{"json":[1.0]}"#)),
            (
                published(Content::Event { event: "shout".into(), payload }),
                content(r#"{"event":["shout",[1.0]]}"#),
            ),
            (BusMessage::Close { room: room.clone() }, r#"{"close":{"room":"lobby"}}"#.to_owned()),
            (
                BusMessage::Kick(Kick::Connection(connection)),
                r#"{"kick":{"connection":"0000000000000000000000000000000a"}}"#.to_owned(),
            ),
            (
                BusMessage::Kick(Kick::User(UserId::new("ada").unwrap())),
                r#"{"kick":{"user":"ada"}}"#.to_owned(),
            ),
            (
                BusMessage::Heartbeat { number: 3, rooms: vec![(room, 7)] },
                r#"{"beat":{"number":3,"rooms":[["lobby",7]]}}"#.to_owned(),
            ),
            (
                reaped,
                r#"{"buried":{"node":"n","incarnation":"0000000000000007","leaving":true}}"#.to_owned(),
            ),
            (BusMessage::Stopping, r#""stopping""#.to_owned()),
            (BusMessage::Missed, r#""missed""#.to_owned()),
        ] {
            sent.message = message;
            let expected = format!(r#"{{"v":1,"node":"n","incarnation":"0000000000000007","told":{json}}}"#);
            assert_eq!(String::from_utf8(sent.encode()).unwrap(), expected);
            let again = Envelope::decode(expected.as_bytes()).unwrap();
            assert_eq!(again.encode(), expected.into_bytes());
        }
    }
}
