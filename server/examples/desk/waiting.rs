//! An observer that keeps counts: in which rooms customers wait and no agent is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use actix::prelude::*;
use actix_presence::{Member, PresenceChanged, RoomName};
use actix_web::{HttpResponse, web};

use super::login::Person;

/// The customers in each room that has no agent. Clones share one count.
#[derive(Clone, Default)]
pub struct Waiting(Arc<Mutex<BTreeMap<RoomName, usize>>>);

impl Actor for Waiting {
    type Context = Context<Self>;
}

impl Handler<PresenceChanged> for Waiting {
    type Result = ();

    /// The room after the change is enough, so a `Resync` is counted like any change. (A `ResyncAll`
    /// comes where it lags in 65,536 rooms: then it would have to read all of them again.)
    fn handle(&mut self, event: PresenceChanged, _: &mut Self::Context) {
        let is_agent = |it: &Member| it.info.to_map().get("agent") == Some(&true.into());
        let (agents, customers): (Vec<_>, Vec<_>) = event.snapshot.users().partition(is_agent);
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.remove(&event.room);
        if agents.is_empty() && !customers.is_empty() {
            rooms.insert(event.room, customers.len());
        }
    }
}

/// `GET /waiting`, for agents.
pub async fn show(person: Person, waiting: web::Data<Waiting>) -> actix_web::Result<HttpResponse> {
    person.agent()?;
    let rooms = waiting.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(HttpResponse::Ok().json(&*rooms))
}
