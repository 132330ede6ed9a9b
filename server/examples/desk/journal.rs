//! An observer that writes each visit into the app's own table. It is an actor of a `SyncArbiter`, where
//! Diesel may block: the next event comes when a row is written, and nobody else waits for it.

use actix::prelude::*;
use actix_presence::{Change, PresenceChanged, UserId};
use diesel::prelude::*;

use super::tables::{Database, Failure, visits};

pub struct Journal(pub Database);

impl Actor for Journal {
    type Context = SyncContext<Self>;
}

impl Handler<PresenceChanged> for Journal {
    type Result = ();

    fn handle(&mut self, event: PresenceChanged, _: &mut Self::Context) {
        if let Err(error) = self.write(&event) {
            eprintln!("a visit of {} is not in the journal: {error}", event.room);
        }
    }
}

impl Journal {
    fn write(&self, event: &PresenceChanged) -> Result<(), Failure> {
        let mut database = self.0.get()?;
        let at = event.at.naive_utc();
        let mut write = |what: &str, who: &Option<UserId>| {
            let name = who.as_ref().map_or("", UserId::as_str);
            let visit = (visits::room.eq(event.room.as_str()), visits::name.eq(name));
            let row = (visit, visits::event.eq(what), visits::at.eq(at));
            diesel::insert_into(visits::table).values(row).execute(&mut database)
        };
        for join in event.joins() {
            write("joined", &join.user)?;
        }
        for left in event.leaves() {
            write(left.cause.as_str(), &left.presence.user)?;
        }
        // Where more happened than it could follow, the journal says that it has a gap.
        if !matches!(event.change, Change::Diff(_)) {
            write("gap", &None)?;
        }
        Ok(())
    }
}
