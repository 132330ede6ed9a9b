//! When nothing more comes: for tests.

use actix::prelude::*;

use super::RoomRegistry;

/// Waits until all that the messages before have caused is handed out: frames to the mailboxes of sessions, events
/// to observers, who have handled them.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Settle;

impl Handler<Settle> for RoomRegistry {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Settle, ctx: &mut Context<Self>) -> Self::Result {
        if self.batch_begun.is_some() {
            self.end_batch(ctx);
        }
        let (delivered, observed) = (self.delivery.settled(), self.observers.drained());
        Box::pin(async {
            delivered.await;
            observed.await;
        })
    }
}
