//! Client sessions that outlive their connections: who may take whose place, and who is fading.
//!
//! A presence keeps the id of the connection that began it. When the client comes back on another
//! connection with the same key, that one *speaks for* the presence from then on, and what the old
//! one still sends is ignored: nobody sees a leave or a join.

use std::{collections::HashMap, time::Duration};

use ahash::RandomState;
use hashlink::LinkedHashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{ConnectionId, InvalidName, Moment, RoomName, UserId, micros, shrink::Shrink};

/// Names a client session that survives reconnects: 1 to 255 characters, without control characters.
///
/// Made by the client, one per browser tab, and known to nobody else: who knows it can take the
/// session's place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// The presences of each client: one, unless it has connections in several rooms.
    clients: HashMap<Client, SmallVec<[ConnectionId; 1]>, RandomState>,
    sessions: HashMap<ConnectionId, Session, RandomState>,
    /// Connections that speak for a presence that another one began.
    speakers: HashMap<ConnectionId, ConnectionId, RandomState>,
    /// Stays whose client is away, in the order in which they end: when, on the monotonic clock.
    fading: LinkedHashMap<(ConnectionId, RoomName), u64, RandomState>,
}

impl Sessions {
    /// Gives back the space of a crowd that has gone.
    pub(crate) fn shrink(&mut self) {
        self.clients.shrink();
        self.sessions.shrink();
        self.speakers.shrink();
        self.fading.shrink();
    }

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

    /// The id of the presences of this client that has one in a room; `there` says which have.
    #[must_use]
    pub fn presence_of(
        &self,
        client: &(SessionKey, Option<UserId>),
        there: impl Fn(ConnectionId) -> bool,
    ) -> Option<ConnectionId> {
        self.clients.get(client)?.iter().copied().find(|presence| there(*presence))
    }

    /// Whose place the connection gets if it joins a room as the client with this key: that of an
    /// older connection that is in the room, which `there` says, or one that another node holds there,
    /// which is `elsewhere`.
    ///
    /// # Errors
    ///
    /// [`Superseded`] if a newer connection has taken its place: ids of connections rise.
    pub fn claim(
        &self,
        connection: ConnectionId,
        key: Option<SessionKey>,
        user: Option<&UserId>,
        there: impl Fn(ConnectionId) -> bool,
        elsewhere: Option<ConnectionId>,
    ) -> Result<Claim, Superseded> {
        let presence = self.resolve(connection).ok_or(Superseded)?;
        if let Some(session) = self.sessions.get(&presence) {
            // It has its key; what may change is the user.
            let client = Some((session.client.0.clone(), user.cloned()));
            return Ok(Claim { presence, replaces: false, connection, client });
        }
        let Some(key) = key else {
            return Ok(Claim { presence, replaces: false, connection, client: None });
        };
        let client = (key, user.cloned());
        let older = self.presence_of(&client, there).or(elsewhere);
        let speaker = older.and_then(|older| self.sessions.get(&older)).map(|older| older.speaker);
        if speaker.is_some_and(|speaker| connection < speaker) {
            return Err(Superseded);
        }
        let (presence, replaces) = (older.unwrap_or(connection), older.is_some());
        Ok(Claim { presence, replaces, connection, client: Some(client) })
    }

    /// Makes the connection of the claim the one that speaks.
    pub fn take(&mut self, claim: Claim) {
        let Claim { presence, connection, client, .. } = claim;
        let Some(client) = client else { return };
        if self.sessions.get(&presence).is_none_or(|session| session.client != client) {
            self.unbind(presence);
            self.clients.entry(client.clone()).or_default().push(presence);
        }
        let session = Session { client, speaker: connection };
        if let Some(before) = self.sessions.insert(presence, session) {
            self.speakers.remove(&before.speaker);
        }
        if connection != presence {
            self.speakers.insert(connection, presence);
        }
    }

    /// A presence of before, whose client is away.
    pub fn restore(
        &mut self,
        presence: ConnectionId,
        key: Option<SessionKey>,
        user: Option<UserId>,
    ) {
        let client = key.map(|key| (key, user));
        let (replaces, connection) = (false, presence);
        self.take(Claim { presence, replaces, connection, client });
    }

    /// The presence is not that of its client any more.
    fn unbind(&mut self, presence: ConnectionId) {
        let Some(session) = self.sessions.get(&presence) else { return };
        let Some(presences) = self.clients.get_mut(&session.client) else { return };
        presences.retain(|one| *one != presence);
        if presences.is_empty() {
            self.clients.remove(&session.client);
        }
    }

    /// The key of the client session that the presences belong to.
    #[must_use]
    pub fn key_of(&self, presence: ConnectionId) -> Option<&SessionKey> {
        self.sessions.get(&presence).map(|session| &session.client.0)
    }

    /// Whether the presences belong to a client session.
    #[must_use]
    pub fn has_key(&self, presence: ConnectionId) -> bool {
        self.sessions.contains_key(&presence)
    }

    /// The presence's client is away from the room: it may come back until `now + grace`.
    pub fn fade(&mut self, presence: ConnectionId, room: RoomName, now: Moment, grace: Duration) {
        let until = now.monotonic.saturating_add(micros(grace));
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
        self.unbind(presence);
        if let Some(session) = self.sessions.remove(&presence) {
            self.speakers.remove(&session.speaker);
        }
    }

    /// Whether nobody has a session key and nobody is fading.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
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
        let claim = sessions.claim(id(connection), key, user, |_| true, None).unwrap();
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
            assert_eq!(sessions.claim(id(old), key(), None, |_| true, None), Err(Superseded));
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
    fn who_becomes_another_user_is_that_users_session_from_then_on() {
        let mut sessions = Sessions::default();
        let ada = UserId::new("ada").unwrap();
        join(&mut sessions, 1, key(), None);
        assert_eq!(join(&mut sessions, 1, key(), Some(&ada)), (id(1), false));
        assert_eq!(join(&mut sessions, 2, key(), None), (id(2), false), "somebody anonymous");
        assert_eq!(join(&mut sessions, 3, key(), Some(&ada)), (id(1), true));
        sessions.forget(id(1));
        sessions.forget(id(2));
        assert!(sessions.is_empty());
    }

    #[test]
    fn connections_of_one_client_in_several_rooms_live_side_by_side() {
        let mut sessions = Sessions::default();
        join(&mut sessions, 1, key(), None);
        for (connection, in_the_room, expected) in [(2, 0, (2, false)), (3, 1, (1, true))] {
            let there = |presence| presence == id(in_the_room);
            let claim = sessions.claim(id(connection), key(), None, there, None).unwrap();
            assert_eq!((claim.presence, claim.replaces), (id(expected.0), expected.1));
            sessions.take(claim);
        }
        assert_eq!([1, 2, 3].map(|n| sessions.resolve(id(n))), [None, Some(id(2)), Some(id(1))]);
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
