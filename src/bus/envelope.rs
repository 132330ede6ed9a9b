//! The messages between nodes and their encoding: the code that authenticates an envelope, then JSON with
//! the number of its format.

use serde::{Deserialize, Serialize, de::IgnoredAny};

use super::{
    Channel,
    encoding::{content, record, update},
};
use crate::{
    messages::{Audience, Content, Kick, UpdateUser},
    model::{
        CODE_BYTES, Cause, ClusterIdentity, ConnectionId, Epoch, NodeName, PresenceRecord,
        RoomName, UserId,
    },
};

/// The format that this version writes and reads.
const FORMAT: u32 = 2;

/// The size of the largest envelope, in bytes. A larger one is neither sent nor looked at.
pub const MAX_ENVELOPE_BYTES: usize = 16 * 1024 * 1024;

/// A message of one node to the others.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The sender.
    pub node: NodeName,
    /// The incarnation of the sender.
    pub incarnation: Epoch,
    /// Counts what the incarnation publishes in all channels, from 1. What has a number that is not higher
    /// than the highest one heard of the incarnation is dropped; a number that is left out is no fault.
    pub number: u64,
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
    /// Something was published to others than the members of one room.
    Addressed(AddressedMessage),
    /// A room was closed: all its members leave.
    Close {
        /// The room.
        room: RoomName,
    },
    /// A connection or a user was kicked from all rooms.
    Kick(Kick),
    /// A connection or a user was kicked from one room.
    KickFrom {
        /// The room.
        room: RoomName,
        /// Whom.
        whom: Kick,
    },
    /// The info of all connections of a user was replaced.
    UpdateUser(#[serde(with = "update")] UpdateUser),
    /// The node lives, and the last batches that changed these rooms have these numbers: a node that
    /// knows lower ones has missed something.
    #[serde(rename = "beat")]
    Heartbeat {
        /// Counts the heartbeats of the incarnation, from 1, so that a missing one is noticed: other numbers
        /// of envelopes are missing where a room is not followed.
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
    /// The node goes on in this incarnation, and this is the last envelope of the one before: another
    /// connection to the database has taken over. Nothing has ended.
    Continued {
        /// The incarnation from now on.
        incarnation: Epoch,
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
    /// The content.
    #[serde(with = "content")]
    pub content: Content,
    /// The user and the connection of the sender, if it is a member.
    pub from: Option<(Option<UserId>, ConnectionId)>,
    /// A member that does not get it.
    pub except: Option<ConnectionId>,
}

/// Something that was published to several rooms, to a user or to a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddressedMessage {
    /// Who gets it.
    pub to: Audience,
    /// The content.
    #[serde(with = "content")]
    pub content: Content,
    /// The user and the connection of the sender, if it is in some room.
    pub from: Option<(Option<UserId>, ConnectionId)>,
    /// A connection that does not get it.
    pub except: Option<ConnectionId>,
}

/// Why bytes are not an [`Envelope`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEnvelope {
    /// No node of this database has published it in this channel: somebody else has, or something of
    /// another database, another version or another channel was passed on.
    #[error("an envelope that no node of this database has published in this channel")]
    Unverified,
    /// Another version of the program wrote it.
    #[error("an envelope of format {format}, where this version reads {FORMAT}")]
    Format {
        /// Its format.
        format: u32,
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
    number: u64,
    #[serde(rename = "told")]
    message: M,
}

impl Envelope {
    /// The channel that it is published to.
    #[must_use]
    pub fn channel(&self) -> Channel {
        match &self.message {
            BusMessage::Changes(RoomChanges { room, .. })
            | BusMessage::Published(RoomMessage { room, .. }) => Channel::Room(room.clone()),
            // A node that does not follow the room may have a join to it that waits for the app's hook.
            BusMessage::Close { .. }
            | BusMessage::KickFrom { .. }
            | BusMessage::Addressed(_)
            | BusMessage::Kick(_)
            | BusMessage::UpdateUser(_)
            | BusMessage::Heartbeat { .. }
            | BusMessage::Reaped { .. }
            | BusMessage::Continued { .. }
            | BusMessage::Stopping
            | BusMessage::Missed => Channel::Nodes,
        }
    }

    /// The envelope as bytes: the HMAC-SHA256, under the key of the identity, of the name of its channel, a
    /// NUL and all bytes that follow; then the envelope as JSON.
    #[must_use]
    pub fn encode(&self, identity: &ClusterIdentity) -> Vec<u8> {
        let Self { node, incarnation, number, message } = self;
        let (incarnation, number) = (*incarnation, *number);
        let encoded = Encoded { v: FORMAT, node, incarnation, number, message };
        let mut bytes = vec![0; CODE_BYTES];
        if serde_json::to_writer(&mut bytes, &encoded).is_err() {
            return Vec::new();
        }
        let (place, json) = bytes.split_at_mut(CODE_BYTES);
        place.copy_from_slice(&identity.code(&self.channel().name(), json));
        bytes
    }

    /// Decodes an envelope that was received in the channel of this [name](Channel::name). Nothing of it is
    /// looked at before it has been verified.
    ///
    /// # Errors
    ///
    /// [`InvalidEnvelope`].
    pub fn decode(
        bytes: &[u8],
        channel: &str,
        identity: &ClusterIdentity,
    ) -> Result<Self, InvalidEnvelope> {
        // No node sends more, and verifying takes time.
        let bytes = if bytes.len() > MAX_ENVELOPE_BYTES { &[] } else { bytes };
        match bytes.split_at_checked(CODE_BYTES) {
            Some((code, json)) if identity.verifies(channel, json, code) => Self::parse(json),
            _ => Err(InvalidEnvelope::Unverified),
        }
    }

    fn parse(json: &[u8]) -> Result<Self, InvalidEnvelope> {
        #[derive(Deserialize)]
        struct Format {
            v: u32,
        }
        let malformed = |error: serde_json::Error| InvalidEnvelope::Malformed(error.to_string());
        let decoded = serde_json::from_slice(json);
        let format = match &decoded {
            Ok(Encoded { v, .. }) => *v,
            // It may be of a format that is not read.
            Err(_) => serde_json::from_slice::<Format>(json).map_err(malformed)?.v,
        };
        if format != FORMAT {
            return Err(InvalidEnvelope::Format { format });
        }
        match decoded {
            Ok(Encoded { node, incarnation, number, message, .. }) => {
                Ok(Self { node, incarnation, number, message })
            }
            Err(error) => unreadable_changes(json).ok_or_else(|| malformed(error)),
        }
    }
}

/// An envelope with changes of which this version cannot read all, for example an info or a user that only
/// an earlier version allowed. The result says that there are changes, so that they are read from the
/// database, where what is unreadable affects nothing else.
fn unreadable_changes(json: &[u8]) -> Option<Envelope> {
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
    let encoded: Encoded<NodeName, Outline> = serde_json::from_slice(json).ok()?;
    let Numbered { room, number: batch, .. } = encoded.message.changes;
    // A node that does not know this number yet finds that it has missed something.
    let changes = RoomChanges { room, number: batch, previous: batch, changes: Vec::new() };
    let Encoded { node, incarnation, number, .. } = encoded;
    Some(Envelope { node, incarnation, number, message: BusMessage::Changes(changes) })
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
