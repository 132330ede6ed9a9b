//! Users over all their rooms: their state, and when they come and go.

use std::sync::Arc;

use actix::prelude::*;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::SubscriptionId;
use crate::model::{Info, Offline, UserId};

/// Replaces the info of all connections of a user, in all their rooms and on all nodes. Returns how many
/// connections that were.
///
/// One change for each room on each node. The whole info is replaced, also what is fixed by a token. Connections
/// that join later bring their own info. Other nodes are told at most once: one that is not heard keeps what it
/// has.
///
/// ```
/// use actix_presence::{Info, PresenceConfig, UpdateUser, UserId};
///
/// # actix::System::new().block_on(async {
/// let presence = PresenceConfig::new("sqlite::memory:").start()?;
/// let away = Info::new(serde_json::json!({"status": "away"}))?;
/// let update = UpdateUser { user: UserId::new("ada")?, info: away };
/// let updated = presence.registry().send(update).await?;
/// assert_eq!((updated.connections, updated.partial), (0, false));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug, Message)]
#[rtype(result = "UserUpdated")]
pub struct UpdateUser {
    /// The user.
    pub user: UserId,
    /// The new info.
    pub info: Info,
}

/// How many connections an [`UpdateUser`] has reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UserUpdated {
    /// The number of the user's connections, on this node and on those that are heard.
    pub connections: usize,
    /// Whether there may be more, which are not counted: on nodes that are not heard, or because the database
    /// that the nodes share could not be asked or the bus could not tell them.
    pub partial: bool,
}

/// Asks for a [`UserChanged`] whenever a user comes online anywhere or goes offline everywhere, from now on.
/// [`Unsubscribe`](super::Unsubscribe) ends it.
///
/// On several nodes the changes are those of all of them, as with [`Scope::Cluster`](super::Scope::Cluster):
/// this node then follows all rooms.
///
/// An observer that panics has stopped: it is unsubscribed, and
/// [`PresenceHandle::shutdown`](crate::PresenceHandle::shutdown) does not wait for it. In a
/// [`SyncArbiter`](actix::SyncArbiter) of which a thread is left it goes on, without the event in which it panicked;
/// that is logged, and counted by `presence_observer_events_lost_total`.
///
/// ```
/// use actix::prelude::*;
/// use actix_presence::{PresenceConfig, SubscribeUsers, UserChange, UserChanged};
///
/// struct Friends;
///
/// impl Actor for Friends {
///     type Context = Context<Self>;
/// }
///
/// impl Handler<UserChanged> for Friends {
///     type Result = ();
///
///     fn handle(&mut self, event: UserChanged, _: &mut Self::Context) {
///         match event.change {
///             UserChange::Online(user) => println!("{user} is online"),
///             UserChange::Offline(gone) => println!("{} is offline: {}", gone.user, gone.cause),
///             UserChange::Resync(users) => println!("{} are online, and nobody else", users.len()),
///             _ => {}
///         }
///     }
/// }
///
/// # actix::System::new().block_on(async {
/// let presence = PresenceConfig::new("sqlite::memory:").start()?;
/// let observer = Friends.start().recipient();
/// let subscribed = presence.registry().send(SubscribeUsers { observer }).await?;
/// assert!(subscribed.online.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Message)]
#[rtype(result = "UsersSubscribed")]
pub struct SubscribeUsers {
    /// The recipient of the events.
    pub observer: Recipient<UserChanged>,
}

/// The answer to [`SubscribeUsers`].
#[derive(Clone, Debug, MessageResponse)]
#[non_exhaustive]
pub struct UsersSubscribed {
    /// The subscription.
    pub id: SubscriptionId,
    /// The users that are online, as far as this node knows; the events lead on from here. Those in rooms of other
    /// nodes that this node has not followed before come as events.
    pub online: Vec<UserId>,
}

/// A user has come online or gone offline, over all rooms; sent to observers in order.
///
/// For each observer a user alternates between online and offline. Each observer has a sequence of its own: several
/// nodes tell their observers the same thing, at different times, and one that has missed something finds out
/// later. So nothing is exactly once across nodes.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
#[non_exhaustive]
pub struct UserChanged {
    /// When this node knew of it.
    pub at: DateTime<Utc>,
    /// The change.
    pub change: UserChange,
}

/// The change in a [`UserChanged`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UserChange {
    /// The user's first connection has joined a room.
    Online(UserId),
    /// The user's last connection has left its last room, with why.
    Offline(Offline),
    /// This observer was too slow: these users are online, and nobody else.
    Resync(Arc<[UserId]>),
}
