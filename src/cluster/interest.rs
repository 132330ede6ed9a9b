//! Which rooms this node follows.

use std::time::Duration;

use super::{Cluster, view::View};
use crate::{
    bus::Channel,
    model::{Moment, RoomName, micros},
};

/// How long a room is followed in which nobody is here, after the last time it was asked for.
const LINGER: Duration = Duration::from_secs(60);
/// Rooms that are followed at most though nobody is here.
const LINGERING: usize = 10_000;

/// Whether a room is to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Somebody here is in it.
    Member,
    /// For now.
    Passing,
    None,
}

impl Cluster {
    /// Takes an interest in a room.
    pub fn follow(&mut self, room: &RoomName) {
        if self.is_shared() && !self.views.contains_key(room) {
            self.views.insert(room.clone(), View::default());
            self.seek(room);
        }
    }

    /// Whether all is known of a room that is in the database.
    pub fn knows(&self, room: &RoomName) -> bool {
        !self.is_shared() || self.views.get(room).is_some_and(View::is_complete)
    }

    /// Subscribes to a room or, without a bus, reads it as it is.
    fn seek(&mut self, room: &RoomName) {
        if self.down.is_some() || self.carries_everything {
            self.read_later(room);
        } else if !self.everything {
            self.subscribe(Channel::Room(room.clone()));
        }
    }

    pub fn follows(&self, room: &RoomName) -> bool {
        self.views.contains_key(room)
    }

    /// Follows every room there is from now on; those that are there already have to be named.
    pub fn follow_everything(&mut self) {
        self.unlisted = true;
        let before = std::mem::replace(&mut self.everything, self.bus.is_some());
        if !before && self.down.is_none() {
            self.subscribe(Channel::Rooms);
        }
    }

    pub fn follows_everything(&self) -> bool {
        self.everything
    }

    /// Nobody wants to hear of every room any more.
    pub fn follow_everything_no_longer(&mut self, now: Moment) {
        if !std::mem::take(&mut self.everything) {
            return;
        }
        self.carries_everything = false;
        if let Some(bus) = self.bus.as_mut().filter(|_| self.down.is_none()) {
            bus.unsubscribe(Channel::Rooms);
        }
        for room in self.followed() {
            self.seek(&room);
            self.linger(&room, now);
        }
    }

    /// Whether the rooms that there are have to be listed, since all are followed and some may have
    /// been missed.
    pub fn take_unlisted(&mut self) -> bool {
        self.everything && std::mem::take(&mut self.unlisted)
    }

    /// Nobody here is in the room, for now: it is followed a little longer.
    pub fn linger(&mut self, room: &RoomName, now: Moment) {
        let Some(view) = self.views.get_mut(room) else { return };
        view.until = now.monotonic + micros(LINGER);
        if !std::mem::replace(&mut view.lingers, true) {
            self.lingering.push_back((view.until, room.clone()));
        }
    }

    /// The next room that is to be followed no longer, as nobody `needs` it.
    pub fn take_lingering(
        &mut self,
        now: Moment,
        needs: impl Fn(&RoomName) -> Interest,
    ) -> Option<RoomName> {
        for _ in 0..self.lingering.len() {
            let crowded = self.lingering.len() > LINGERING;
            let (at, _) = self.lingering.front()?;
            if !crowded && *at > now.monotonic {
                return None;
            }
            let (_, room) = self.lingering.pop_front()?;
            let Some(view) = self.views.get_mut(&room) else { continue };
            match needs(&room) {
                // It lingers again when that one has gone.
                Interest::Member => view.lingers = false,
                Interest::None if crowded || view.until <= now.monotonic => {
                    self.views.remove(&room);
                    if let Some(bus) = self.bus.as_mut().filter(|_| !self.everything) {
                        bus.unsubscribe(Channel::Room(room.clone()));
                    }
                    return Some(room);
                }
                Interest::Passing | Interest::None => {
                    let until = view.until.max(now.monotonic + micros(LINGER) / 2);
                    self.lingering.push_back((until, room));
                }
            }
        }
        None
    }
}
