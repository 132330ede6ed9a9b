//! What a member may do in a room.

/// What a member may do in a room, as the app's hook answers it.
///
/// ```
/// use actix_presence::Rights;
///
/// let reader = Rights { publish: false, ..Rights::ALL };
/// assert!(reader.join && reader.members && !reader.publish);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    /// Enter the room. Without it there is nothing.
    pub join: bool,
    /// Publish messages. A member without it can still update its own info.
    pub publish: bool,
    /// See who is in the room. A member without it is sent counts instead of lists. A message still says who
    /// it is from.
    pub members: bool,
}

impl Rights {
    /// All rights.
    pub const ALL: Self = Self { join: true, publish: true, members: true };
    /// No right.
    pub const NONE: Self = Self { join: false, publish: false, members: false };

    /// The rights that both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            join: self.join && other.join,
            publish: self.publish && other.publish,
            members: self.members && other.members,
        }
    }
}
