//! Client sessions that outlive their connections: who may take whose place, and who is fading.
//!
//! A presence keeps the id of the connection that began it. When the client comes back on another
//! connection with the same key, that one *speaks for* the presence from then on, and what the old
//! one still sends is ignored: nobody sees a leave or a join.

use std::{collections::HashMap, time::Duration};

use ahash::RandomState;
use hashlink::LinkedHashMap;

use super::{ConnectionId, InvalidName, Moment, RoomName, UserId};

/// Names a client session that survives reconnects: 1 to 255 characters, without control characters.
///
/// Made by the client, one per browser tab, and known to nobody else: who knows it can take the
/// session's place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    key: RoomName,
    /// The one room that it is about, if it is about one.
    room: Option<RoomName>,
}

impl SessionKey {
    /// Checks the text and makes it a key.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] says which rule the text breaks.
    pub fn new(key: impl AsRef<str>) -> Result<Self, InvalidName> {
        Ok(Self { key: RoomName::new(key)?, room: None })
    }

    /// The key of the same client for this room alone: for a client with a connection to each of its
    /// rooms, of which a new one shall replace only the older one of the same room.
    #[must_use]
    pub fn within(self, room: &RoomName) -> Self {
        Self { room: Some(room.clone()), ..self }
    }
}

type Client = (SessionKey, Option<UserId>);

#[derive(Debug)]
struct Session {
    client: Client,
    /// The connection that speaks for it.
    speaker: ConnectionId,
}

/// Whose place a connection that joins gets, once the join is [taken](Sessions::take).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The id of the presences it speaks for.
    pub presence: ConnectionId,
    /// Whether another connection did until now.
    pub replaces: bool,
    connection: ConnectionId,
    /// The client it becomes the connection of.
    client: Option<Client>,
}

/// A newer connection of the same client session has taken this one's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a newer connection of the same session has taken its place")]
pub struct Superseded;

/// The client sessions of a registry; a plain value.
#[derive(Debug, Default)]
pub struct Sessions {
    clients: HashMap<Client, ConnectionId, RandomState>,
    sessions: HashMap<ConnectionId, Session, RandomState>,
    /// Connections that speak for a presence that another one began.
    speakers: HashMap<ConnectionId, ConnectionId, RandomState>,
    /// Stays whose client is away, in the order in which they end: when, on the monotonic clock.
    fading: LinkedHashMap<(ConnectionId, RoomName), u64, RandomState>,
}

impl Sessions {
    /// The id of the presences that the connection speaks for; `None` if a newer connection does.
    #[must_use]
    pub fn resolve(&self, connection: ConnectionId) -> Option<ConnectionId> {
        if let Some(presence) = self.speakers.get(&connection) {
            return Some(*presence);
        }
        match self.sessions.get(&connection) {
            Some(session) if session.speaker != connection => None,
            _ => Some(connection),
        }
    }

    /// The id of the presences of this client, if it has any.
    #[must_use]
    pub fn presence_of(&self, key: SessionKey, user: Option<UserId>) -> Option<ConnectionId> {
        self.clients.get(&(key, user)).copied()
    }

    /// Whose place the connection gets if it joins as the client with this key.
    ///
    /// # Errors
    ///
    /// [`Superseded`] if a newer connection has taken its place: ids of connections rise.
    pub fn claim(
        &self,
        connection: ConnectionId,
        key: Option<SessionKey>,
        user: Option<&UserId>,
    ) -> Result<Claim, Superseded> {
        let presence = self.resolve(connection).ok_or(Superseded)?;
        let bound = presence != connection || self.sessions.contains_key(&presence);
        let Some(key) = key.filter(|_| !bound) else {
            return Ok(Claim { presence, replaces: false, connection, client: None });
        };
        let client = (key, user.cloned());
        let older = self.clients.get(&client).and_then(|older| self.sessions.get_key_value(older));
        let (presence, replaces) = match older {
            Some((_, session)) if connection < session.speaker => return Err(Superseded),
            Some((presence, _)) => (*presence, true),
            None => (connection, false),
        };
        Ok(Claim { presence, replaces, connection, client: Some(client) })
    }

    /// Makes the connection of the claim the one that speaks.
    pub fn take(&mut self, claim: Claim) {
        let Claim { presence, connection, client, .. } = claim;
        let Some(client) = client else { return };
        let new = || Session { client: client.clone(), speaker: connection };
        let session = self.sessions.entry(presence).or_insert_with(new);
        self.speakers.remove(&session.speaker);
        session.speaker = connection;
        if connection != presence {
            self.speakers.insert(connection, presence);
        }
        self.clients.insert(client, presence);
    }

    /// Whether the presences belong to a client session.
    #[must_use]
    pub fn has_key(&self, presence: ConnectionId) -> bool {
        self.sessions.contains_key(&presence)
    }

    /// The presence's client is away from the room: it may come back until `now + grace`.
    pub fn fade(&mut self, presence: ConnectionId, room: RoomName, now: Moment, grace: Duration) {
        let until = Moment::new(now.monotonic() + grace, now.utc()).monotonic;
        self.fading.insert((presence, room), until);
    }

    /// The presence's client is in the room again, or the presence has ended there.
    pub fn unfade(&mut self, presence: ConnectionId, room: &RoomName) {
        if !self.fading.is_empty() {
            self.fading.remove(&(presence, room.clone()));
        }
    }

    /// Until when the presence's client may come back, on the monotonic clock, if it is away.
    #[must_use]
    pub fn fading(&self, presence: ConnectionId, room: &RoomName) -> Option<u64> {
        match self.fading.is_empty() {
            true => None,
            false => self.fading.get(&(presence, room.clone())).copied(),
        }
    }

    /// When the next fading stay ends, in microseconds of the monotonic clock.
    #[must_use]
    pub fn next_end(&self) -> Option<u64> {
        self.fading.front().map(|(_, until)| *until)
    }

    /// Takes a stay whose time to come back is over.
    pub fn take_faded(&mut self, now: Moment) -> Option<(ConnectionId, RoomName)> {
        if self.next_end()? > now.monotonic {
            return None;
        }
        self.fading.pop_front().map(|(stay, _)| stay)
    }

    /// The presences are no more.
    pub fn forget(&mut self, presence: ConnectionId) {
        let Some(session) = self.sessions.remove(&presence) else { return };
        self.clients.remove(&session.client);
        self.speakers.remove(&session.speaker);
    }

    /// Whether nobody has a session key and nobody is fading.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
            && self.sessions.is_empty()
            && self.speakers.is_empty()
            && self.fading.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(n: u128) -> ConnectionId {
        ConnectionId::from_u128(n)
    }

    fn key() -> Option<SessionKey> {
        SessionKey::new("tab").ok()
    }

    fn join(
        sessions: &mut Sessions,
        connection: u128,
        key: Option<SessionKey>,
        user: Option<&UserId>,
    ) -> (ConnectionId, bool) {
        let claim = sessions.claim(id(connection), key, user).unwrap();
        let (presence, replaces) = (claim.presence, claim.replaces);
        sessions.take(claim);
        (presence, replaces)
    }

    #[test]
    fn a_newer_connection_takes_the_place_and_the_older_one_is_heard_no_more() {
        let mut sessions = Sessions::default();
        assert_eq!(join(&mut sessions, 1, key(), None), (id(1), false));
        assert_eq!(join(&mut sessions, 1, key(), None), (id(1), false), "its second room");
        for (old, new) in [(1, 2), (2, 3)] {
            assert_eq!(join(&mut sessions, new, key(), None), (id(1), true));
            assert_eq!(sessions.resolve(id(new)), Some(id(1)));
            assert_ne!(sessions.resolve(id(old)), Some(id(1)));
            assert_eq!(sessions.claim(id(old), key(), None), Err(Superseded));
        }
        sessions.forget(id(1));
        assert!(sessions.is_empty());
        assert_eq!(sessions.resolve(id(3)), Some(id(3)));
    }

    #[test]
    fn another_user_or_another_key_is_another_session() {
        let mut sessions = Sessions::default();
        let ada = UserId::new("ada").unwrap();
        join(&mut sessions, 1, key(), Some(&ada));
        assert_eq!(join(&mut sessions, 2, key(), None), (id(2), false));
        let other = SessionKey::new("other").ok();
        assert_eq!(join(&mut sessions, 3, other, Some(&ada)), (id(3), false));
        assert_eq!(join(&mut sessions, 4, None, Some(&ada)), (id(4), false));
        assert_eq!(join(&mut sessions, 5, key(), Some(&ada)), (id(1), true));
    }

    #[test]
    fn fading_stays_end_in_order_unless_their_client_is_back() {
        let mut sessions = Sessions::default();
        let at = |secs: u64| Moment { monotonic: secs * 1_000_000, wall: 0 };
        let [a, b] = ["a", "b"].map(|name| RoomName::new(name).unwrap());
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
