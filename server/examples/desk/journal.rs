//! An observer that writes each visit into the app's own table. It is an actor of a `SyncArbiter`, where
//! Diesel may block: the next event comes when a row is written, and nobody else waits for it.

use std::error::Error;

use actix::prelude::*;
use actix_presence::{Change, PresenceChanged, UserId};
use chrono::{NaiveDateTime, Utc};
use diesel::prelude::*;

use super::tables::{Database, visits};

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
    fn write(&self, event: &PresenceChanged) -> Result<(), Box<dyn Error>> {
        let mut database = self.0.get()?;
        let mut write = |what: &str, who: &Option<UserId>, at: NaiveDateTime| {
            let name = who.as_ref().map_or("", UserId::as_str);
            let visit = (visits::room.eq(event.room.as_str()), visits::name.eq(name));
            let row = (visit, visits::event.eq(what), visits::at.eq(at));
            diesel::insert_into(visits::table).values(row).execute(&mut database)
        };
        for join in event.joins() {
            write("joined", &join.user, join.joined_at.naive_utc())?;
        }
        // It happened just now, unless this observer lags.
        let now = Utc::now().naive_utc();
        for left in event.leaves() {
            write(left.cause.as_str(), &left.presence.user, now)?;
        }
        // Where more happened than it could follow, the journal says that it has a gap.
        match event.change {
            Change::Diff(_) => {}
            Change::Resync | Change::ResyncAll => drop(write("gap", &None, now)?),
        }
        Ok(())
    }
}
