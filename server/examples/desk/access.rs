//! Who may enter which room: agents all, customers those of their own tickets.
//!
//! The hook asks the database at each join, off the registry's thread: the join waits, and nothing else.

use actix_presence::{Decision, JoinRequest};
use diesel::{dsl::exists, prelude::*, select};

use super::tables::{Database, Failure, ask, logins, tickets};

/// The answer of [`PresenceConfig::authorize_async`](actix_presence::PresenceConfig::authorize_async).
pub async fn decide(database: Database, join: JoinRequest) -> Decision {
    ask(database, move |database| look_up(database, &join)).await.unwrap_or_else(|error| {
        eprintln!("a join is refused, because the database does not answer: {error}");
        Decision::deny("try again later")
    })
}

fn look_up(database: &mut SqliteConnection, join: &JoinRequest) -> Result<Decision, Failure> {
    let Some(user) = &join.user else { return Ok(Decision::deny("log in first")) };
    let agent = logins::table.filter(logins::name.eq(user.as_str()).and(logins::agent));
    let own = tickets::table.find(join.room.as_str()).filter(tickets::customer.eq(user.as_str()));
    let may = select(exists(agent).or(exists(own))).get_result(database)?;
    Ok(if may { Decision::Allow } else { Decision::deny("this is somebody else's ticket") })
}
