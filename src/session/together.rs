//! What the sessions of a thread tell the registry together, because to wake it costs more than what it
//! does then: signs of life, and joins.

use std::{cell::RefCell, time::Duration};

use actix::prelude::*;
use tokio::sync::oneshot;

use crate::{
    messages::{AskedToJoin, Join, JoinError, Joined, Together, Touch},
    registry::RoomRegistry,
};

/// How long a sign of life is on its way. A join is until all sessions of the thread that are ready
/// have had their turn.
const UNDERWAY: Duration = Duration::from_millis(20);
/// How many signs go together at most.
const TOGETHER: usize = 1024;

thread_local! {
    /// For each of them a [`go`] is to come.
    static WAITING: RefCell<Vec<(Addr<RoomRegistry>, Together)>> = const { RefCell::new(Vec::new()) };
}

/// Has a sign of life told. One that meets a full mailbox is lost; the next one repairs it.
pub(super) fn touch(registry: &Addr<RoomRegistry>, touch: Touch) {
    WAITING.with_borrow_mut(|waiting| {
        if let Some((_, together)) = waiting.iter_mut().find(|(to, _)| to == registry) {
            // A client that floods is as alive as one that does not.
            let repeated = |last: &Touch| {
                (last.connection, last.activity) == (touch.connection, touch.activity)
            };
            if together.touches.last().is_some_and(repeated) {
                return;
            }
            together.touches.push(touch);
            if together.touches.len() >= TOGETHER {
                send(registry, std::mem::take(together));
            }
        } else if Arbiter::try_current().is_some() {
            let together = Together { touches: vec![touch], ..Together::default() };
            waiting.push((registry.clone(), together));
            actix::spawn(async {
                actix::clock::sleep(UNDERWAY).await;
                go();
            });
        } else {
            // Nobody here would send it later.
            let _ = registry.try_send(touch);
        }
    });
}

/// Joins; `None` if the registry has stopped.
pub(super) async fn join(
    registry: Addr<RoomRegistry>,
    join: Join,
) -> Option<Result<Joined, JoinError>> {
    let (reply, joined) = oneshot::channel();
    let asked = AskedToJoin { join, reply };
    let first = WAITING.with_borrow_mut(|waiting| {
        let known = waiting.iter().position(|(to, _)| *to == registry);
        let index = known.unwrap_or_else(|| {
            waiting.push((registry, Together::default()));
            waiting.len() - 1
        });
        let joins = &mut waiting[index].1.joins;
        joins.push(asked);
        joins.len() == 1
    });
    if first {
        actix::spawn(async { go() });
    }
    joined.await.ok()
}

/// Sends what waits on this thread: before anything that must not overtake it.
pub(super) fn go() {
    for (registry, together) in WAITING.take() {
        send(&registry, together);
    }
}

fn send(registry: &Addr<RoomRegistry>, together: Together) {
    if !together.joins.is_empty() {
        // Each session waits for the answer to its own.
        registry.do_send(together);
    } else if !together.touches.is_empty() {
        let _ = registry.try_send(together);
    }
}
