//! Orders to close that go out a few at a time, so that not everybody comes back in one moment.

use std::time::Duration;

use super::{Delivery, couriers::Desk, order::Order};
use crate::{
    messages::Disconnect,
    model::{ConnectionId, Rooms},
};

/// How many batches there are at most, and how far apart they are: everybody is told within two
/// seconds.
const BATCHES: usize = 20;
pub(crate) const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// A batch has no fewer.
const MIN_BATCH: usize = 64;

impl Delivery {
    /// Whether nobody is left to deliver to.
    pub fn is_empty(&self) -> bool {
        self.stays.is_empty()
    }

    /// All connections, in the batches in which they are to be told to close.
    pub fn batches(&self) -> Vec<Vec<ConnectionId>> {
        let mut all: Vec<_> = self.stays.keys().copied().collect();
        all.sort_unstable();
        let size = all.len().div_ceil(BATCHES).max(MIN_BATCH);
        all.chunks(size).map(<[_]>::to_vec).collect()
    }

    /// Tells connections to close. Each is a member of its rooms until its session has left them, and
    /// hears what was said before the order.
    pub fn dismiss(
        &mut self,
        connections: Vec<ConnectionId>,
        order: Disconnect,
        rooms: &Rooms,
        now: u64,
    ) {
        self.end_turn(rooms, now);
        self.flush_messages(rooms, now);
        let mut desks: Vec<(Desk, Vec<ConnectionId>)> = Vec::new();
        for connection in connections {
            let Some(stay) = self.stays.get_mut(&connection) else { continue };
            if std::mem::replace(&mut stay.dismissed, true) {
                continue;
            }
            match desks.iter_mut().find(|(desk, _)| *desk == stay.desk) {
                Some((_, connections)) => connections.push(connection),
                None => desks.push((stay.desk, vec![connection])),
            }
        }
        for (desk, connections) in desks {
            self.couriers.tell(desk, Order::Dismiss { connections, order });
        }
    }

    /// Whether the connection was told to close because this node stops.
    pub fn is_dismissed(&self, connection: ConnectionId) -> bool {
        self.stays.get(&connection).is_some_and(|stay| stay.dismissed)
    }
}
