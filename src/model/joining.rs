//! A connection enters a room: as somebody new, or in the place of an older connection of its client
//! session, there or on another node.

use super::{
    ConnectionId, Diff, Info, LimitReached, Moment, NodeName, RoomName, Rooms, SessionKey,
    Sessions, Superseded, UserId,
};

/// A connection that enters a room.
#[derive(Clone, Debug)]
pub(crate) struct Entering {
    pub room: RoomName,
    pub connection: ConnectionId,
    pub user: Option<UserId>,
    /// Counts unless a session is resumed, whose stored info stands.
    pub info: Info,
    /// The part of the info that is fixed. It replaces what was fixed of a session that is resumed.
    pub fixed: Info,
    pub session: Option<SessionKey>,
}

/// The outcome of entering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    /// The id under which the connection is shown in the room.
    pub presence: ConnectionId,
    pub diff: Option<Diff>,
    pub resumed: Option<Resumed>,
    /// Whether the row changes beyond what the diff says: the session, or the connection behind it.
    pub rewrite: bool,
}

/// Where a resumed session was until now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// Here, with this connection.
    From(ConnectionId),
    /// On another node.
    Elsewhere,
}

/// Why a connection may not enter; nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotEntered {
    Limit(LimitReached),
    Superseded(Superseded),
}

impl From<LimitReached> for NotEntered {
    fn from(limit: LimitReached) -> Self {
        Self::Limit(limit)
    }
}

impl From<Superseded> for NotEntered {
    fn from(superseded: Superseded) -> Self {
        Self::Superseded(superseded)
    }
}

/// How a connection stands to a room before it enters.
enum Standing {
    /// Somebody new, or somebody who is in it already: under this id.
    Own(ConnectionId),
    /// Its client session has this presence there.
    Resumes(ConnectionId),
}

impl Sessions {
    /// A connection enters a room of this node, `me`.
    ///
    /// # Errors
    ///
    /// [`NotEntered`]; then nothing has changed.
    pub(crate) fn enter(
        &mut self,
        rooms: &mut Rooms,
        entering: Entering,
        me: &NodeName,
        now: Moment,
    ) -> Result<Entered, NotEntered> {
        let standing = self.standing(rooms, &entering)?;
        let Entering { room, connection, user, info, fixed, session } = entering;
        let (presence, diff, resumed) = match standing {
            Standing::Own(presence) => {
                (presence, rooms.join(&room, connection, user.clone(), info, now)?, None)
            }
            Standing::Resumes(presence) => {
                let info = self.resumed_info(rooms, &room, presence, &fixed).unwrap_or(info);
                let resumed = match rooms.take_over(&room, presence, connection, now)? {
                    Some(before) => Resumed::From(before),
                    None => {
                        rooms.adopt(&room, presence, connection, me, now)?;
                        Resumed::Elsewhere
                    }
                };
                (presence, rooms.update_info(&room, connection, info), Some(resumed))
            }
        };
        let mut rewrite = self.unfade(presence, &room) || resumed.is_some();
        if let Some(key) = self.key_of(&room, presence).cloned().or(session) {
            rewrite |= self.bind(&room, presence, key, user, fixed);
        }
        Ok(Entered { presence, diff, resumed, rewrite })
    }

    fn standing(&self, rooms: &Rooms, entering: &Entering) -> Result<Standing, Superseded> {
        let Entering { room, connection, user, session, .. } = entering;
        if let Some(presence) = rooms.presence_of(room, *connection) {
            return Ok(Standing::Own(presence));
        }
        if let Some(key) = session {
            if let Some(presence) = self.presence_in(room, key, user.as_ref())
                && let Some(current) = rooms.current_connection(room, presence)
            {
                // Ids of connections rise: one that comes late must not take a newer one's place.
                return match *connection < current {
                    true => Err(Superseded),
                    false => Ok(Standing::Resumes(presence)),
                };
            }
            if let Some(presence) = rooms.remote_client(room, key, user.as_ref()) {
                return Ok(Standing::Resumes(presence));
            }
        }
        match rooms.is_held_by_another(room, *connection) {
            true => Err(Superseded),
            false => Ok(Standing::Own(*connection)),
        }
    }

    /// The stored info of a presence, with what was fixed of it replaced; none if that is too large.
    fn resumed_info(
        &self,
        rooms: &Rooms,
        room: &RoomName,
        presence: ConnectionId,
        fixed: &Info,
    ) -> Option<Info> {
        let before = match rooms.remote(room, presence) {
            Some(remote) => remote.record.fixed.clone(),
            None => self.fixed(room, presence),
        };
        let stored = rooms.presence(room, presence)?.presence.info;
        stored.with_fixed(&before, fixed).ok()
    }
}
