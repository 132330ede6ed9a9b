//! Client sessions that outlive their connections: which presence belongs to which, and which are fading.
//!
//! When a client returns on another connection with the same session key, that connection takes over its
//! presence in the room that it joins, and the room sees no leave and no join.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use ahash::RandomState;
use hashlink::LinkedHashMap;
use serde::{Deserialize, Serialize};

use super::{
    ConnectionId, Diff, Info, InvalidName, LimitReached, Moment, NodeName, RoomName, Rooms, UserId,
    collections::Shrink, micros,
};

/// Names a client session that survives reconnects: 1 to 255 characters, without control characters.
///
/// Made by the client, one per browser tab, and secret: it is all that is needed to take the session over. So
/// its `Debug` output does not show it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionKey(RoomName);

impl SessionKey {
    /// Checks the text and makes it a key.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] says which rule the text breaks.
    pub fn new(key: impl AsRef<str>) -> Result<Self, InvalidName> {
        RoomName::new(key).map(Self)
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

/// A client in a room. Without a room it sorts before all rooms of the client.
type ClientInRoom = (SessionKey, Option<UserId>, Option<RoomName>);

/// The client session that a presence belongs to.
#[derive(Debug)]
struct Session {
    key: SessionKey,
    user: Option<UserId>,
    /// The part of the presence's info that is fixed, by a token.
    fixed: Info,
}

/// A newer connection of the same client session has taken over the presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a newer connection of the same session has taken its place")]
pub struct Superseded;

/// The client sessions of a registry; a plain value. Everything is kept by presence and room: a session key
/// gives no access to a room that its connection has not joined.
#[derive(Debug, Default)]
pub struct Sessions {
    /// The presence of each client in each room; the latest, if a change of users has made two of one.
    clients: BTreeMap<ClientInRoom, ConnectionId>,
    sessions: HashMap<(ConnectionId, RoomName), Session, RandomState>,
    /// Until when the clients of fading presences may return, on the monotonic clock; in the order of the ends.
    fading: LinkedHashMap<(ConnectionId, RoomName), u64, RandomState>,
}

impl Sessions {
    /// Releases memory that was needed for more sessions than there are now.
    pub(crate) fn shrink(&mut self) {
        self.sessions.shrink();
        self.fading.shrink();
    }

    /// The presence of this client in the room.
    #[must_use]
    pub fn presence_in(
        &self,
        room: &RoomName,
        key: &SessionKey,
        user: Option<&UserId>,
    ) -> Option<ConnectionId> {
        if self.clients.is_empty() {
            return None;
        }
        self.clients.get(&(key.clone(), user.cloned(), Some(room.clone()))).copied()
    }

    /// The presences of this client, by room.
    pub fn presences_of(
        &self,
        key: &SessionKey,
        user: Option<&UserId>,
    ) -> impl Iterator<Item = (&RoomName, ConnectionId)> {
        let first = (key.clone(), user.cloned(), None);
        let (key, user) = (first.0.clone(), first.1.clone());
        let all = self.clients.range(first..);
        let all = all.take_while(move |((one, who, _), _)| (one, who) == (&key, &user));
        all.filter_map(|((_, _, room), presence)| Some((room.as_ref()?, *presence)))
    }

    /// Assigns the presence in the room to a client session. Returns whether that is a change.
    pub fn bind(
        &mut self,
        room: &RoomName,
        presence: ConnectionId,
        key: SessionKey,
        user: Option<UserId>,
        fixed: Info,
    ) -> bool {
        let place = (presence, room.clone());
        let session = Session { key, user, fixed };
        let client = session.client(room);
        match self.sessions.insert(place, session) {
            Some(before) if before.client(room) == client => {
                return before.fixed != self.fixed(room, presence);
            }
            Some(before) => self.unbind(&before.client(room), presence),
            None => {}
        }
        self.clients.insert(client, presence);
        true
    }

    fn unbind(&mut self, client: &ClientInRoom, presence: ConnectionId) {
        if self.clients.get(client) == Some(&presence) {
            self.clients.remove(client);
        }
    }

    fn session(&self, room: &RoomName, presence: ConnectionId) -> Option<&Session> {
        if self.sessions.is_empty() {
            return None;
        }
        self.sessions.get(&(presence, room.clone()))
    }

    /// The key of the client session that the presence in the room belongs to.
    #[must_use]
    pub fn key_of(&self, room: &RoomName, presence: ConnectionId) -> Option<&SessionKey> {
        self.session(room, presence).map(|session| &session.key)
    }

    /// The part of the presence's info that is fixed, as far as a client session needs it.
    #[must_use]
    pub fn fixed(&self, room: &RoomName, presence: ConnectionId) -> Info {
        self.session(room, presence).map(|session| session.fixed.clone()).unwrap_or_default()
    }

    /// Notes that the client of the presence was lost: it may return until `now + grace`.
    pub fn fade(&mut self, presence: ConnectionId, room: RoomName, now: Moment, grace: Duration) {
        let until = now.monotonic.saturating_add(micros(grace));
        self.fading.insert((presence, room), until);
    }

    /// Ends the fading of a presence, whose client has returned or which has ended. Returns whether it was
    /// fading.
    pub fn unfade(&mut self, presence: ConnectionId, room: &RoomName) -> bool {
        !self.fading.is_empty() && self.fading.remove(&(presence, room.clone())).is_some()
    }

    /// Until when the client of a fading presence may return, in microseconds of the monotonic clock.
    #[must_use]
    pub fn fading(&self, presence: ConnectionId, room: &RoomName) -> Option<u64> {
        if self.fading.is_empty() {
            return None;
        }
        self.fading.get(&(presence, room.clone())).copied()
    }

    /// When the next fading presence ends, in microseconds of the monotonic clock.
    #[must_use]
    pub fn next_end(&self) -> Option<u64> {
        self.fading.front().map(|(_, until)| *until)
    }

    /// Takes a presence whose grace is over.
    pub fn take_faded(&mut self, now: Moment) -> Option<(ConnectionId, RoomName)> {
        if self.next_end()? > now.monotonic {
            return None;
        }
        self.fading.pop_front().map(|(presence, _)| presence)
    }

    /// Forgets a presence that this node no longer holds.
    pub fn forget(&mut self, room: &RoomName, presence: ConnectionId) {
        self.unfade(presence, room);
        if self.sessions.is_empty() {
            return;
        }
        if let Some(session) = self.sessions.remove(&(presence, room.clone())) {
            self.unbind(&session.client(room), presence);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.sessions.is_empty() && self.fading.is_empty()
    }
}

impl Session {
    fn client(&self, room: &RoomName) -> ClientInRoom {
        (self.key.clone(), self.user.clone(), Some(room.clone()))
    }
}

/// A connection that enters a room.
#[derive(Clone, Debug)]
pub(crate) struct Entering {
    pub room: RoomName,
    pub connection: ConnectionId,
    pub user: Option<UserId>,
    /// Not used if a session is resumed, which keeps its info.
    pub info: Info,
    /// The fixed part of the info; replaces that of a resumed session.
    pub fixed: Info,
    pub session: Option<SessionKey>,
}

/// The outcome of entering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    /// The id of its presence in the room.
    pub presence: ConnectionId,
    pub diff: Option<Diff>,
    pub resumed: Option<Resumed>,
    /// Whether the row changes beyond the diff: its session, or its current connection.
    pub rewrite: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// On this node, by this connection.
    From(ConnectionId),
    /// On another node.
    Elsewhere,
}

/// Why a connection may not enter; nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub(crate) enum NotEntered {
    Limit(#[from] LimitReached),
    Superseded(#[from] Superseded),
}

/// How a connection stands to a room before it enters.
enum Standing {
    /// A new presence, or one of its own already: with this id.
    Own(ConnectionId),
    /// It resumes this presence of its client session.
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
                (presence, rooms.replace_info(&room, connection, &info, now), Some(resumed))
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
                // Ids of connections ascend: a late one must not replace a newer one.
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

    /// The stored info of a presence with its fixed part replaced; `None` if that is too large.
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
