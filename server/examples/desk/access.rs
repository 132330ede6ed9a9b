//! Who may enter which room: agents all, customers those of their own tickets.
//!
//! The hook runs on the registry's thread, so it must not wait for a database. It judges by what was
//! looked up when the person's socket was opened. A hook that may wait would ask the database right here.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use actix_presence::{Decision, RoomName, UserId};

use super::login::Person;

/// What is known of the people who have opened a socket: at most one entry for each login.
#[derive(Clone, Default)]
pub struct Access(Arc<RwLock<HashMap<UserId, Person>>>);

impl Access {
    pub fn learn(&self, person: &Person) {
        let mut people = self.0.write().unwrap_or_else(PoisonError::into_inner);
        people.insert(person.user.clone(), person.clone());
    }

    /// The answer of [`PresenceConfig::authorize`](actix_presence::PresenceConfig::authorize).
    pub fn decide(&self, room: &RoomName, user: Option<&UserId>) -> Decision {
        let people = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match user.and_then(|user| people.get(user)) {
            None => Decision::deny("log in first"),
            Some(person) if person.is_agent || person.tickets.contains(room) => Decision::Allow,
            Some(_) => Decision::deny("this is somebody else's ticket"),
        }
    }
}
