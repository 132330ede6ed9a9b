//! Removing what is stale: presences of silent connections, and the rows of empty rooms.

use std::time::Duration;

use actix::prelude::*;

use super::FlushError;
use crate::model::{Presence, RoomName};

/// Removes every presence that was silent for longer than the age; O(number removed). Sent by the
/// [`Pruner`](crate::Pruner); an app may send it, too.
#[derive(Clone, Copy, Debug, Default, Message)]
#[rtype(result = "PruneReport")]
pub struct PrunePresences {
    /// Presences that are strictly older are removed; `None` is `max_age`.
    pub age: Option<Duration>,
}

/// The result of [`PrunePresences`].
#[derive(Clone, Debug, Default, PartialEq, Eq, MessageResponse)]
pub struct PruneReport {
    /// The rooms that changed, by name.
    pub rooms: Vec<Pruned>,
}

impl PruneReport {
    /// How many presences were removed in all.
    #[must_use]
    pub fn removed(&self) -> usize {
        self.rooms.iter().map(|room| room.presences.len()).sum()
    }
}

/// The presences that were pruned from one room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The room.
    pub room: RoomName,
    /// The presences.
    pub presences: Vec<Presence>,
}

/// Removes the rows of empty rooms. Returns how many. (In memory an empty room is removed at once.)
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<usize, FlushError>")]
pub struct PruneRooms;
