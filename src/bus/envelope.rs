//! What stands in the messages between nodes, and how it is written: JSON, with the number of its
//! format.

use bytestring::ByteString;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::Channel;
use crate::{
    messages,
    model::{Cause, ConnectionId, Epoch, Info, NodeName, RoomName, SessionKey, UserId},
    store::Whom,
};

/// The format that this version writes and reads.
const FORMAT: u32 = 1;

/// The largest envelope that is read, in bytes.
pub const MAX_ENVELOPE_BYTES: usize = 512 * 1024 * 1024;

/// Something that one node tells others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// Who tells it.
    pub node: NodeName,
    /// In which of its lives.
    pub incarnation: Epoch,
    /// What it tells.
    pub told: Told,
}

/// What an [`Envelope`] tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Told {
    /// A batch was committed that had changes of a room.
    Changes(Changes),
    /// Something was published to a room.
    Said(Said),
    /// A room was closed: everybody is to go.
    Close {
        /// Which room.
        room: RoomName,
    },
    /// Somebody is to be put out.
    Kick(Whom),
    /// The node lives, and the last batches that had changes of these rooms have these numbers: who
    /// knows less has missed something.
    Beat {
        /// Counts the beats of the node's life, from 1.
        number: u64,
        /// The rooms of the batches since the last beat.
        rooms: Vec<(RoomName, u64)>,
    },
    /// A dead node's rows have been removed by the one who tells it.
    Buried {
        /// Which node.
        node: NodeName,
        /// In which of its lives.
        incarnation: Epoch,
        /// Whether it had stopped in order.
        leaving: bool,
    },
    /// The node stops in order.
    Stopping,
    /// The node could not tell something: what it has written has to be read.
    Missed,
}

/// The changes of a room in a batch that is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Which room.
    pub room: RoomName,
    /// The number of the batch.
    pub number: u64,
    /// The number of the batch before that had changes of the room, or a later one.
    pub previous: u64,
    /// The changes.
    pub changes: Vec<Change>,
}

/// A presence as a batch has left it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is there, as the node has it now.
    Here {
        /// Which connection.
        connection: ConnectionId,
        /// Whose it is.
        user: Option<UserId>,
        /// What the app attached.
        #[serde(default, skip_serializing_if = "Info::is_empty")]
        info: Info,
        /// When it joined the room.
        #[serde(with = "chrono::serde::ts_microseconds")]
        joined_at: DateTime<Utc>,
        /// When it was last heard of.
        #[serde(with = "chrono::serde::ts_microseconds")]
        last_seen: DateTime<Utc>,
        /// The client session that it belongs to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionKey>,
        /// The part of its info that is fixed, by a token.
        #[serde(default, skip_serializing_if = "Info::is_empty")]
        fixed: Info,
        /// Until when its client may come back, if it is away.
        #[serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "chrono::serde::ts_microseconds_option"
        )]
        fading: Option<DateTime<Utc>>,
        /// How often it went from one node to another.
        #[serde(default, rename = "turn")]
        generation: u32,
        /// The connection behind it, if it is not the one that founded it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        current_connection: Option<ConnectionId>,
    },
    /// The node does not hold it any more, since another does: who thinks otherwise reads the rows.
    Yielded {
        /// Which connection.
        connection: ConnectionId,
    },
    /// It has left.
    Gone {
        /// Which connection.
        connection: ConnectionId,
        /// Why.
        cause: Cause,
    },
}

/// Something that was published to a room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Said {
    /// Which room.
    pub room: RoomName,
    /// Counts what the node says: they rise.
    pub number: u64,
    /// What.
    pub content: Content,
    /// The user and the connection of the member who says it, if one does.
    pub from: Option<(Option<UserId>, ConnectionId)>,
    /// A member that shall not get it.
    pub except: Option<ConnectionId>,
}

/// What was published, as [`messages::Content`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Text as it is.
    Text(String),
    /// A JSON value.
    Json(Box<RawValue>),
    /// An event with a JSON value.
    Event(String, Box<RawValue>),
}

impl From<messages::Content> for Content {
    fn from(content: messages::Content) -> Self {
        match content {
            messages::Content::Text(text) => Self::Text(text.into()),
            messages::Content::Json(value) => Self::Json(value),
            messages::Content::Event { event, payload } => Self::Event(event.into(), payload),
        }
    }
}

impl From<Content> for messages::Content {
    fn from(content: Content) -> Self {
        match content {
            Content::Text(text) => Self::Text(ByteString::from(text)),
            Content::Json(value) => Self::Json(value),
            Content::Event(event, payload) => Self::Event { event: event.into(), payload },
        }
    }
}

/// Why some bytes are no [`Envelope`].
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
    #[error("an envelope of {bytes} bytes, where {MAX_ENVELOPE_BYTES} are taken")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is something else.
    #[error("not an envelope: {0}")]
    Malformed(String),
}

#[derive(Serialize, Deserialize)]
struct Format {
    v: u32,
}

impl Envelope {
    /// The channel that it is published to.
    #[must_use]
    pub fn channel(&self) -> Channel {
        match &self.told {
            Told::Changes(Changes { room, .. }) | Told::Said(Said { room, .. }) => {
                Channel::Room(room.clone())
            }
            Told::Close { room } => Channel::Room(room.clone()),
            Told::Kick(_)
            | Told::Beat { .. }
            | Told::Buried { .. }
            | Told::Stopping
            | Told::Missed => Channel::Nodes,
        }
    }

    /// The envelope as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Versioned<'a> {
            v: u32,
            #[serde(flatten)]
            envelope: &'a Envelope,
        }
        serde_json::to_vec(&Versioned { v: FORMAT, envelope: self }).unwrap_or_default()
    }

    /// Reads an envelope.
    ///
    /// # Errors
    ///
    /// [`InvalidEnvelope`].
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidEnvelope> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(InvalidEnvelope::TooLarge { bytes: bytes.len() });
        }
        let malformed = |error: serde_json::Error| InvalidEnvelope::Malformed(error.to_string());
        let Format { v: format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format != FORMAT {
            return Err(InvalidEnvelope::Format { format });
        }
        serde_json::from_slice(bytes)
            .or_else(|error| unreadable_changes(bytes).ok_or(error))
            .map_err(malformed)
    }
}

/// An envelope with changes of which this version cannot read all, such as an info or a user that only
/// an earlier one allowed. It says that there are some, so that they are read from the database, where
/// what is unreadable holds up nothing else.
fn unreadable_changes(bytes: &[u8]) -> Option<Envelope> {
    #[derive(Deserialize)]
    struct Outline {
        node: NodeName,
        incarnation: Epoch,
        told: ToldChanges,
    }
    #[derive(Deserialize)]
    struct ToldChanges {
        changes: Numbered,
    }
    #[derive(Deserialize)]
    struct Numbered {
        room: RoomName,
        number: u64,
        #[expect(dead_code, reason = "there have to be some")]
        changes: Vec<IgnoredAny>,
    }
    let Outline { node, incarnation, told } = serde_json::from_slice(bytes).ok()?;
    let Numbered { room, number, .. } = told.changes;
    // Whoever does not know this number yet has missed something.
    let changes = Changes { room, number, previous: number, changes: Vec::new() };
    Some(Envelope { node, incarnation, told: Told::Changes(changes) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn envelope(told: Told) -> Envelope {
        Envelope { node: NodeName::new("n").unwrap(), incarnation: Epoch::new(), told }
    }

    #[test]
    fn an_envelope_reads_as_it_was_written() {
        let room = RoomName::new("lobby").unwrap();
        let connection = ConnectionId::new();
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        let here = Change::Here {
            connection,
            user: UserId::new("ada").ok(),
            info: Info::new(json!({"a": 1.5})).unwrap(),
            joined_at: at,
            last_seen: at,
            session: SessionKey::new("tab").ok(),
            fixed: Info::new(json!({"role": "admin"})).unwrap(),
            fading: Some(at),
            generation: 3,
            current_connection: Some(ConnectionId::new()),
        };
        let bare = Change::Here {
            connection,
            user: None,
            info: Info::EMPTY,
            joined_at: at,
            last_seen: at,
            session: None,
            fixed: Info::EMPTY,
            fading: None,
            generation: 0,
            current_connection: None,
        };
        let gone = Change::Gone { connection, cause: Cause::SlowConsumer };
        let changes = vec![here, bare, gone];
        let changes = Changes { room: room.clone(), number: 7, previous: 5, changes };
        let sent = envelope(Told::Changes(changes.clone()));
        let read = Envelope::decode(&sent.encode()).unwrap();
        assert_eq!((&read.node, read.incarnation), (&sent.node, sent.incarnation));
        assert_eq!(read.channel(), Channel::Room(room.clone()));
        assert!(matches!(read.told, Told::Changes(read) if read == changes));

        let payload = RawValue::from_string(r#"{"z":1,"a":1.0}"#.to_owned()).unwrap();
        let content = Content::Event("shout".to_owned(), payload);
        let said = Said { room, number: 1, content, from: None, except: Some(connection) };
        let read = Envelope::decode(&envelope(Told::Said(said)).encode()).unwrap();
        let Told::Said(Said { content: Content::Event(event, payload), .. }) = read.told else {
            panic!("{read:?}")
        };
        assert_eq!((event.as_str(), payload.get()), ("shout", r#"{"z":1,"a":1.0}"#));
    }

    #[test]
    fn changes_that_only_an_earlier_version_allowed_are_to_be_read_from_the_database() {
        let room = RoomName::new("lobby").unwrap();
        let gone = Change::Gone { connection: ConnectionId::new(), cause: Cause::Left };
        let changes = Changes { room: room.clone(), number: 7, previous: 5, changes: vec![gone] };
        let sent = envelope(Told::Changes(changes));
        let text = String::from_utf8(sent.encode()).unwrap();
        let here = |user: &str, depth: usize| {
            let info = r#"{"a":"#.repeat(depth) + "1" + &"}".repeat(depth);
            let here = format!(
                r#"{{"here":{{"connection":"{}","user":"{user}","info":{info},"joined_at":0,"last_seen":0}}}},"#,
                ConnectionId::new(),
            );
            let with = text.replace(r#"[{"gone""#, &format!(r#"[{here}{{"gone""#));
            let Told::Changes(read) = Envelope::decode(with.as_bytes()).unwrap().told else {
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
        let bytes = envelope(Told::Missed).encode();
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
}
