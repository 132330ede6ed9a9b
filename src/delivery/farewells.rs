//! Orders to close that go out a few at a time, so that not everybody comes back in one moment.

use std::time::Duration;

use actix::dev::Request;
use futures_util::future::join_all;

use super::courier::{Courier, Farewell, HandOver};
use crate::{messages::Disconnect, model::Cause};

/// How many batches there are at most, and how far apart they are: everybody is told in two seconds.
const BATCHES: usize = 20;
const APART: Duration = Duration::from_millis(100);
/// Everybody has been told after this.
pub(super) const SPREAD: Duration = APART.saturating_mul(BATCHES as u32);
/// A batch has no fewer.
const BATCH: usize = 64;
/// How long a thread may take to give up its sessions.
const PATIENCE: Duration = Duration::from_secs(1);

/// The sessions that are to close because the registry does.
pub(crate) struct Farewells {
    sessions: Farewell,
    elsewhere: Vec<Request<Courier, HandOver>>,
    code: u16,
}

impl Farewells {
    pub(super) fn new(
        (sessions, elsewhere): (Farewell, Vec<Request<Courier, HandOver>>),
        code: u16,
    ) -> Self {
        Self { sessions, elsewhere, code }
    }

    /// Orders them to close; answers when all have been told.
    pub async fn say(mut self) {
        let couriers = self.elsewhere.into_iter().map(|courier| courier.timeout(PATIENCE));
        for sessions in join_all(couriers).await {
            // A thread that has ended has none.
            self.sessions.extend(sessions.unwrap_or_default());
        }
        self.sessions.sort_unstable_by_key(|(connection, _)| *connection);
        let order = Disconnect { code: self.code, cause: Cause::Shutdown };
        let size = self.sessions.len().div_ceil(BATCHES).max(BATCH);
        let mut batches = self.sessions.chunks(size).peekable();
        while let Some(batch) = batches.next() {
            for (_, session) in batch {
                session.do_send(order);
            }
            if batches.peek().is_some() {
                actix::clock::sleep(APART).await;
            }
        }
    }
}
