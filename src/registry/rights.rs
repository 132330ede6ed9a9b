//! What members may do: the rights that the hooks of the app have given.

use std::collections::HashMap;

use ahash::RandomState;

use crate::model::{ConnectionId, Rights, RoomName};

/// The rights of the connections that do not have all, in their rooms.
#[derive(Default)]
pub(super) struct LimitedRights(HashMap<(ConnectionId, RoomName), Rights, RandomState>);

impl LimitedRights {
    pub fn of(&self, room: &RoomName, connection: ConnectionId) -> Rights {
        if self.0.is_empty() {
            return Rights::ALL;
        }
        self.0.get(&(connection, room.clone())).copied().unwrap_or(Rights::ALL)
    }

    pub fn set(&mut self, room: &RoomName, connection: ConnectionId, rights: Rights) {
        if rights == Rights::ALL {
            return self.forget(room, connection);
        }
        self.0.insert((connection, room.clone()), rights);
    }

    pub fn forget(&mut self, room: &RoomName, connection: ConnectionId) {
        if !self.0.is_empty() {
            self.0.remove(&(connection, room.clone()));
        }
    }
}
