//! Registrations, touches and joins of the sessions of a thread, sent to the registry in batches.

use std::{
    cell::RefCell,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::Duration,
};

use actix::{WeakAddr, prelude::*};
use tokio::sync::oneshot;

use crate::{
    messages::{Join, JoinError, Joined, PendingJoin, Registration, SessionBatch, Touch},
    registry::RoomRegistry,
};

/// How long a touch may wait. A join or a registration waits until the sessions of the thread that are ready have run.
const TOUCH_DELAY: Duration = Duration::from_millis(20);
/// How many touches a batch has at most.
const MAX_TOUCHES: usize = 1024;
/// How many batches of a thread may wait in the registry's mailbox; more touches are dropped.
const MAX_UNREAD_BATCHES: usize = 16;

thread_local! {
    static BATCHES: RefCell<Vec<RegistryBatch>> = const { RefCell::new(Vec::new()) };
}

/// The next batch of this thread for one registry: to wake the registry costs more than what it does with one
/// more touch or join.
struct RegistryBatch {
    /// Hash of the registry's address, unique for as long as `registry` is kept.
    id: u64,
    registry: WeakAddr<RoomRegistry>,
    batch: SessionBatch,
    /// Shared with the batches that the registry has not read, which are thereby counted.
    unread: Arc<()>,
}

/// Queues a touch. One that finds too many batches unread is dropped; the next one makes up for it.
pub(super) fn batch_touch(registry: &Addr<RoomRegistry>, touch: Touch) {
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
            flush_batches();
        });
    }
}

/// Queues a registration.
pub(super) fn batch_register(registry: &Addr<RoomRegistry>, registration: Registration) {
    let is_first = with_batch(registry, |pending| {
        pending.batch.registrations.push(registration);
        pending.batch.registrations.len() == 1
    });
    flush_next_turn(is_first);
}

/// Queues a join. The answer is `None` if the registry has stopped.
pub(super) fn batch_join(
    registry: &Addr<RoomRegistry>,
    join: Join,
) -> impl Future<Output = Option<Result<Joined, JoinError>>> + use<> {
    let (reply, joined) = oneshot::channel();
    let is_first = with_batch(registry, |pending| {
        pending.batch.joins.push(PendingJoin::new(join, reply));
        pending.batch.joins.len() == 1
    });
    flush_next_turn(is_first);
    async { joined.await.ok() }
}

/// Has the batches sent when the sessions that are ready have run, unless an earlier one does.
fn flush_next_turn(is_first: bool) {
    if is_first {
        actix::spawn(async { flush_batches() });
    }
}

/// Sends the batches of this thread: before anything that must not overtake them.
pub(super) fn flush_batches() {
    // A thread that is ending has nothing to send.
    let batches = BATCHES.try_with(|batches| {
        batches.borrow_mut().iter_mut().filter_map(RegistryBatch::take).collect::<Vec<_>>()
    });
    for (registry, batch) in batches.unwrap_or_default() {
        // Not refused by a full mailbox: it stands for many messages, each join is awaited by its
        // session, a session registers once, and batches of touches are bounded by `MAX_UNREAD_BATCHES`.
        registry.do_send(batch);
    }
}

fn with_batch<T>(registry: &Addr<RoomRegistry>, act: impl FnOnce(&mut RegistryBatch) -> T) -> T {
    let id = BuildHasherDefault::<DefaultHasher>::default().hash_one(registry);
    BATCHES.with_borrow_mut(|batches| {
        let known = batches.iter().position(|pending| pending.id == id);
        let index = known.unwrap_or_else(|| {
            batches.retain(|pending| pending.registry.upgrade().is_some());
            let (registry, batch) = (registry.downgrade(), SessionBatch::default());
            batches.push(RegistryBatch { id, registry, batch, unread: Arc::default() });
            batches.len() - 1
        });
        act(&mut batches[index])
    })
}

impl RegistryBatch {
    /// Takes what is to be sent, if there is anything.
    fn take(&mut self) -> Option<(Addr<RoomRegistry>, SessionBatch)> {
        let batch = std::mem::take(&mut self.batch);
        let unread = Arc::strong_count(&self.unread) - 1;
        let is_dropped = batch.touches.is_empty() || unread >= MAX_UNREAD_BATCHES;
        if batch.registrations.is_empty() && batch.joins.is_empty() && is_dropped {
            return None;
        }
        let unread = Some(Arc::clone(&self.unread));
        Some((self.registry.upgrade()?, SessionBatch { unread, ..batch }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use crate::{
        handle::PresenceConfig,
        messages::{Decision, GetStatus},
        model::{Info, RoomName, UserId},
        session::Connection,
        testing::{Heard, Probe},
    };

    #[actix::test]
    async fn batches_of_touches_are_not_lost_to_a_full_mailbox_and_a_bounded_number_waits() {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        // The registry waits there.
        let authorize = move |room: &RoomName, _: Option<&UserId>, _: &Info| {
            if *room == *"gate" {
                _ = gate.lock().unwrap().recv();
            }
            Decision::Allow
        };
        let presence = PresenceConfig::new("sqlite::memory:").authorize(authorize).start().unwrap();
        let registry = presence.registry();
        let connections = [0, 1].map(|_| Connection::new(registry.clone()));
        let (session, _heard) = Probe::<Heard>::new();
        let join = |me: &Connection, room| me.join(RoomName::new(room).unwrap(), session.clone());
        for me in &connections {
            registry.send(join(me, "lobby")).await.unwrap().unwrap();
        }
        for batches in [4, 100] {
            let before = registry.send(GetStatus).await.unwrap().counters.touches;
            registry.do_send(join(&connections[0], "gate"));
            (0..5000).for_each(|_| registry.do_send(GetStatus));
            for touch in 0..batches * 1024 {
                connections[touch % 2].batched_touch();
            }
            open.send(()).unwrap();
            let touches = registry.send(GetStatus).await.unwrap().counters.touches - before;
            assert_eq!(touches, batches.min(16) as u64 * 1024);
        }
    }
}
