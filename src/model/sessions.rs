//! Client sessions that outlive their connections: whose presence is whose, and who is fading.
//!
//! A presence keeps the id of the connection that founded it. When the client comes back on another
//! connection with the same key, that one takes its place in the room it joins, and nobody sees a leave
//! or a join: see [`joining`](super::joining).

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use ahash::RandomState;
use hashlink::LinkedHashMap;
use serde::{Deserialize, Serialize};

use super::{
    ConnectionId, Info, InvalidName, Moment, RoomName, UserId, collections::Shrink, micros,
};

/// Names a client session that survives reconnects: 1 to 255 characters, without control characters.
///
/// Made by the client, one per browser tab, and known to nobody else: whoever knows it can take the
/// session over. So its `Debug` output does not show it.
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

/// A newer connection of the same client session has taken this one's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a newer connection of the same session has taken its place")]
pub struct Superseded;

/// The client sessions of a registry; a plain value. Everything is known by presence and room: a
/// session key reaches no further than the room that its connection was let into.
#[derive(Debug, Default)]
pub struct Sessions {
    /// The presence of each client in each room; the latest, if a change of users has made two of one.
    clients: BTreeMap<ClientInRoom, ConnectionId>,
    sessions: HashMap<(ConnectionId, RoomName), Session, RandomState>,
    /// Presences whose client is away, in the order in which they end: when, on the monotonic clock.
    fading: LinkedHashMap<(ConnectionId, RoomName), u64, RandomState>,
}

impl Sessions {
    /// Gives back the space of a crowd that has gone.
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

    /// The presence in the room belongs to this client session from now on. Answers whether that is
    /// something new.
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

    /// The presence is not that of the client any more.
    fn unbind(&mut self, client: &ClientInRoom, presence: ConnectionId) {
        if self.clients.get(client) == Some(&presence) {
            self.clients.remove(client);
        }
    }

    fn session(&self, room: &RoomName, presence: ConnectionId) -> Option<&Session> {
        match self.sessions.is_empty() {
            true => None,
            false => self.sessions.get(&(presence, room.clone())),
        }
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

    /// The client of the presence is away: it may come back until `now + grace`.
    pub fn fade(&mut self, presence: ConnectionId, room: RoomName, now: Moment, grace: Duration) {
        let until = now.monotonic.saturating_add(micros(grace));
        self.fading.insert((presence, room), until);
    }

    /// The client of the presence is in the room again, or the presence has ended there. Answers whether
    /// it was away.
    pub fn unfade(&mut self, presence: ConnectionId, room: &RoomName) -> bool {
        !self.fading.is_empty() && self.fading.remove(&(presence, room.clone())).is_some()
    }

    /// Until when the client of the presence may come back, on the monotonic clock, if it is away.
    #[must_use]
    pub fn fading(&self, presence: ConnectionId, room: &RoomName) -> Option<u64> {
        match self.fading.is_empty() {
            true => None,
            false => self.fading.get(&(presence, room.clone())).copied(),
        }
    }

    /// When the next fading presence ends, in microseconds of the monotonic clock.
    #[must_use]
    pub fn next_end(&self) -> Option<u64> {
        self.fading.front().map(|(_, until)| *until)
    }

    /// Takes a presence whose time to come back is over.
    pub fn take_faded(&mut self, now: Moment) -> Option<(ConnectionId, RoomName)> {
        if self.next_end()? > now.monotonic {
            return None;
        }
        self.fading.pop_front().map(|(presence, _)| presence)
    }

    /// This node does not hold the presence in the room any more.
    pub fn forget(&mut self, room: &RoomName, presence: ConnectionId) {
        self.unfade(presence, room);
        if self.sessions.is_empty() {
            return;
        }
        if let Some(session) = self.sessions.remove(&(presence, room.clone())) {
            self.unbind(&session.client(room), presence);
        }
    }

    /// Whether nobody has a session key and nobody is fading.
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

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(n: u128) -> ConnectionId {
        ConnectionId::from_u128(n)
    }

    fn names() -> [RoomName; 2] {
        ["a", "b"].map(|name| RoomName::new(name).unwrap())
    }

    #[test]
    fn a_client_is_found_by_room_and_in_all_its_rooms() {
        let mut sessions = Sessions::default();
        let [a, b] = names();
        let key = |key| SessionKey::new(key).unwrap();
        let ada = UserId::new("ada").ok();
        assert!(sessions.bind(&a, id(1), key("tab"), ada.clone(), Info::EMPTY));
        assert!(!sessions.bind(&a, id(1), key("tab"), ada.clone(), Info::EMPTY), "twice");
        for (room, presence, key, user) in [
            (&b, 2, key("tab"), ada.clone()),
            (&a, 3, key("tab"), None),
            (&a, 4, key("other"), ada.clone()),
        ] {
            assert!(sessions.bind(room, id(presence), key, user, Info::EMPTY));
        }
        let tab = key("tab");
        assert_eq!(sessions.presence_in(&a, &tab, ada.as_ref()), Some(id(1)));
        assert_eq!(sessions.presence_in(&a, &tab, None), Some(id(3)));
        let all: Vec<_> = sessions.presences_of(&tab, ada.as_ref()).collect();
        assert_eq!(all, [(&a, id(1)), (&b, id(2))]);
        sessions.forget(&a, id(1));
        assert_eq!(sessions.presence_in(&a, &tab, ada.as_ref()), None);
        for (room, presence) in [(&b, 2), (&a, 3), (&a, 4)] {
            sessions.forget(room, id(presence));
        }
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_presence_that_changes_its_user_is_that_users_and_leaves_what_is_anothers() {
        let mut sessions = Sessions::default();
        let [room, _] = names();
        let tab = SessionKey::new("tab").unwrap();
        let ada = UserId::new("ada").ok();
        sessions.bind(&room, id(1), tab.clone(), None, Info::EMPTY);
        sessions.bind(&room, id(2), tab.clone(), ada.clone(), Info::EMPTY);
        sessions.bind(&room, id(1), tab.clone(), ada.clone(), Info::EMPTY);
        assert_eq!(sessions.presence_in(&room, &tab, None), None);
        assert_eq!(sessions.presence_in(&room, &tab, ada.as_ref()), Some(id(1)), "the latest");
        sessions.forget(&room, id(2));
        assert_eq!(sessions.presence_in(&room, &tab, ada.as_ref()), Some(id(1)));
        sessions.forget(&room, id(1));
        assert!(sessions.is_empty());
    }

    #[test]
    fn no_debug_output_shows_a_key() {
        let mut sessions = Sessions::default();
        let ([room, _], key) = (names(), SessionKey::new("secret of a tab").unwrap());
        sessions.bind(&room, id(1), key.clone(), None, Info::EMPTY);
        assert_eq!(format!("{key:?}"), "SessionKey(..)");
        assert!(!format!("{sessions:#?}").contains("secret"));
    }

    #[test]
    fn fading_presences_end_in_order_unless_their_client_is_back() {
        let mut sessions = Sessions::default();
        let at = |secs: u64| Moment { monotonic: secs * 1_000_000, wall: 0 };
        let [a, b] = names();
        let grace = Duration::from_secs(10);
        sessions.fade(id(1), a.clone(), at(0), grace);
        sessions.fade(id(1), b.clone(), at(1), grace);
        assert_eq!(sessions.fading(id(1), &b), Some(11_000_000));
        sessions.unfade(id(1), &a);
        assert_eq!(sessions.take_faded(at(10)), None);
        assert_eq!(sessions.take_faded(at(11)), Some((id(1), b)));
        assert!(sessions.is_empty());
    }
}
