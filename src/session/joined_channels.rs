//! The channels of a Phoenix socket whose joins were answered.

use smallvec::SmallVec;

use crate::{model::RoomName, wire::phoenix::Frame};

/// The channels that a client has joined, by room; nearly always one.
#[derive(Debug, Default)]
pub(super) struct JoinedChannels(SmallVec<[JoinedChannel; 1]>);

#[derive(Debug)]
pub(super) struct JoinedChannel {
    pub room: RoomName,
    pub join_ref: Box<str>,
    /// Whether the client has got the room's state since: diffs from before do not apply to it.
    pub has_state: bool,
}

impl JoinedChannels {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&mut self, room: &str) -> Option<&mut JoinedChannel> {
        let place = self.position(room).ok()?;
        self.0.get_mut(place)
    }

    /// Adds a channel, or begins it anew. Returns the reference of its join before, if there was one.
    pub fn put(&mut self, room: RoomName, join_ref: Box<str>) -> Option<Box<str>> {
        match self.position(room.as_str()) {
            Ok(place) => {
                let channel = &mut self.0[place];
                channel.has_state = false;
                Some(std::mem::replace(&mut channel.join_ref, join_ref))
            }
            Err(place) => {
                self.0.insert(place, JoinedChannel { room, join_ref, has_state: false });
                None
            }
        }
    }

    pub fn remove(&mut self, room: &str) -> Option<JoinedChannel> {
        let place = self.position(room).ok()?;
        Some(self.0.remove(place))
    }

    /// Removes all channels.
    pub fn drain(&mut self) -> impl Iterator<Item = JoinedChannel> {
        self.0.drain(..)
    }

    /// The index of the room's channel, or where it would be.
    fn position(&self, room: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|channel| channel.room.as_str().cmp(room))
    }
}

impl JoinedChannel {
    /// Whether the frame belongs to the latest join.
    pub fn is_current(&self, frame: &Frame<'_>) -> bool {
        frame.join_ref.as_ref().is_none_or(|one| **one == *self.join_ref)
    }
}
