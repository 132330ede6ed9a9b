//! What the sessions of a thread tell the registry, in batches: to wake it costs more than what it does
//! with one more touch or join.

use std::{
    cell::RefCell,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::Duration,
};

use actix::{WeakRecipient, prelude::*};
use tokio::sync::oneshot;

use crate::messages::{Join, JoinError, Joined, PendingJoin, SessionBatch, Touch};

/// How long a touch may wait. A join waits until the sessions of the thread that are ready have run.
const TOUCH_DELAY: Duration = Duration::from_millis(20);
/// How many touches a batch has at most.
const MAX_TOUCHES: usize = 1024;
/// How many batches of a thread may wait in the registry's mailbox; more touches are dropped.
const MAX_UNREAD_BATCHES: usize = 16;

thread_local! {
    static BATCHES: RefCell<Vec<RegistryBatch>> = const { RefCell::new(Vec::new()) };
}

/// The next batch of this thread for one registry.
struct RegistryBatch {
    /// Identity of the registry's mailbox, unique for as long as `registry` is kept.
    id: u64,
    registry: WeakRecipient<SessionBatch>,
    batch: SessionBatch,
    /// Shared with the batches that the registry has not read, which are thereby counted.
    unread: Arc<()>,
}

/// Queues a touch. One that finds too many batches unread is dropped; the next one makes up for it.
pub(crate) fn touch<A>(registry: &Addr<A>, touch: Touch)
where
    A: Actor<Context = Context<A>> + Handler<SessionBatch>,
{
    let (is_first, full) = with_batch(registry, |pending| {
        let touches = &mut pending.batch.touches;
        // A client that floods is no more alive than others.
        let is_repeated = touches.last() == Some(&touch);
        if !is_repeated {
            touches.push(touch);
        }
        let (is_first, is_full) = (touches.len() == 1, touches.len() >= MAX_TOUCHES);
        (is_first && !is_repeated, if is_full { pending.take() } else { None })
    });
    if let Some((registry, batch)) = full {
        registry.do_send(batch);
    }
    if is_first {
        actix::spawn(async {
            actix::clock::sleep(TOUCH_DELAY).await;
            flush();
        });
    }
}

/// Joins; `None` if the registry has stopped.
pub(crate) async fn join<A>(registry: Addr<A>, join: Join) -> Option<Result<Joined, JoinError>>
where
    A: Actor<Context = Context<A>> + Handler<SessionBatch>,
{
    let (reply, joined) = oneshot::channel();
    let is_first = with_batch(&registry, |pending| {
        pending.batch.joins.push(PendingJoin { join, reply });
        pending.batch.joins.len() == 1
    });
    if is_first {
        actix::spawn(async { flush() });
    }
    joined.await.ok()
}

/// Sends the batches of this thread: before anything that must not overtake them.
pub(crate) fn flush() {
    // A thread that is ending has nothing to send.
    let batches = BATCHES.try_with(|batches| {
        batches.borrow_mut().iter_mut().filter_map(RegistryBatch::take).collect::<Vec<_>>()
    });
    for (registry, batch) in batches.unwrap_or_default() {
        // Not refused by a full mailbox: it stands for many messages, each join is awaited by its
        // session, and batches of touches are bounded by `MAX_UNREAD_BATCHES`.
        registry.do_send(batch);
    }
}

fn with_batch<A, T>(registry: &Addr<A>, act: impl FnOnce(&mut RegistryBatch) -> T) -> T
where
    A: Actor<Context = Context<A>> + Handler<SessionBatch>,
{
    let id = BuildHasherDefault::<DefaultHasher>::default().hash_one(registry);
    BATCHES.with_borrow_mut(|batches| {
        let known = batches.iter().position(|pending| pending.id == id);
        let index = known.unwrap_or_else(|| {
            batches.retain(|pending| pending.registry.upgrade().is_some());
            let registry = registry.downgrade().recipient();
            batches.push(RegistryBatch {
                id,
                registry,
                batch: SessionBatch::default(),
                unread: Arc::default(),
            });
            batches.len() - 1
        });
        act(&mut batches[index])
    })
}

impl RegistryBatch {
    /// Takes what is to be sent, if there is anything.
    fn take(&mut self) -> Option<(Recipient<SessionBatch>, SessionBatch)> {
        let batch = std::mem::take(&mut self.batch);
        let unread = Arc::strong_count(&self.unread) - 1;
        let is_dropped = batch.touches.is_empty() || unread >= MAX_UNREAD_BATCHES;
        if batch.joins.is_empty() && is_dropped {
            return None;
        }
        let unread = Some(Arc::clone(&self.unread));
        Some((self.registry.upgrade()?, SessionBatch { unread, ..batch }))
    }
}
