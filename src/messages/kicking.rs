//! Removing connections whether they want to leave or not: kicks, and closing a room.

use actix::prelude::*;
use serde::{Deserialize, Serialize};

use crate::model::{ConnectionId, RoomName, UserId};

/// Removes a connection, or all connections of a user, from all rooms with
/// [`Cause::Kicked`](crate::Cause::Kicked). Returns how many connections that were, on all nodes.
///
/// On several nodes the database is asked how many are on the others, for two seconds at most, and the others are
/// told over the bus, at most once. A node that is cut off from the bus, or has just died, is counted though it may
/// hear nothing: its connections then stay until they end by themselves, or with their node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Message)]
#[serde(rename_all = "snake_case")]
#[rtype(result = "Kicked")]
pub enum Kick {
    /// This connection: by its own id, or by that of its presence, which differs after it has taken over a
    /// client session.
    Connection(ConnectionId),
    /// Every connection that is in some room as this user.
    User(UserId),
}

/// Removes a connection, or all connections of a user, from one room with
/// [`Cause::Kicked`](crate::Cause::Kicked), in one change. Returns how many connections that were, on all nodes;
/// those that fade are among them.
///
/// A connection that is still in other rooms hears of it by
/// [`Forwarded::Closed`](super::Forwarded::Closed); one that is in no other room is told to close. They may join
/// the room again. Other nodes are told at most once, as by [`Kick`].
///
/// ```
/// use actix_presence::{Kick, KickFrom, PresenceHandle, RoomName, UserId};
///
/// async fn remove(
///     presence: &PresenceHandle,
///     room: RoomName,
///     user: UserId,
/// ) -> Result<usize, actix::MailboxError> {
///     let kicked = presence.registry().send(KickFrom { room, whom: Kick::User(user) }).await?;
///     Ok(kicked.connections)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Kicked")]
pub struct KickFrom {
    /// The room.
    pub room: RoomName,
    /// Whom to remove.
    pub whom: Kick,
}

/// Removes all members of a room with [`Cause::RoomClosed`](crate::Cause::RoomClosed), in one change. Returns how
/// many, on all nodes. They may join it again. Other nodes are told at most once, as by [`Kick`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Kicked")]
pub struct CloseRoom {
    /// The room.
    pub room: RoomName,
}

/// How many connections a [`Kick`], a [`KickFrom`] or a [`CloseRoom`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Kicked {
    /// The number of connections, on all nodes unless it is partial.
    pub connections: usize,
    /// Whether there may be more, which are not counted: the database that the nodes share could not be asked
    /// who is on the others, or the bus could not tell them. It was done on this node, and on the others as
    /// far as the bus took it.
    ///
    /// Joins that wait on other nodes are refused, and not counted. A number that is not partial is no receipt: the bus tells other nodes at most once, and a node that is cut
    /// off from it or has just died is counted by its rows, though it may hear nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}
