//! Orders to close that go out a few at a time, so that not everybody comes back in one moment.

use std::time::Duration;

use actix::prelude::*;

use crate::{messages::Disconnect, model::Cause};

/// How many batches there are at most, and how far apart they are: everybody is told in two seconds.
const BATCHES: usize = 20;
const APART: Duration = Duration::from_millis(100);
/// A batch has no fewer.
const BATCH: usize = 64;

/// The sessions that are to close because the registry does.
pub(crate) struct Farewells {
    pub(super) sessions: Vec<Recipient<Disconnect>>,
    pub(super) code: u16,
}

impl Farewells {
    /// Orders them to close; answers when all have been told.
    pub async fn say(self) {
        let order = Disconnect { code: self.code, cause: Cause::Shutdown };
        let size = self.sessions.len().div_ceil(BATCHES).max(BATCH);
        let mut batches = self.sessions.chunks(size).peekable();
        while let Some(batch) = batches.next() {
            for session in batch {
                session.do_send(order);
            }
            if batches.peek().is_some() {
                actix::clock::sleep(APART).await;
            }
        }
    }
}
